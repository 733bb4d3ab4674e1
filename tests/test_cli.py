"""Unexpected errors, closed outputs and Ctrl-C: one line and an exit code, never a traceback."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ddp, refused

from ddp_cli.__main__ import main
from ddp_cli.data import inspection
from ddp_cli.errors import DdpError

PROGRAM = [sys.executable, "-m", "ddp_cli"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, to which tracebacks are written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # output that stays in a buffer fails late


def raise_in_inspect(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(*_: object) -> None:
        raise error

    monkeypatch.setattr(inspection, "inspect_source", raise_error)


def tracebacks(folder: Path) -> list[Path]:
    return list(folder.glob("ddp-traceback-*.txt"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("pose"), "unexpected KeyError: 'pose'. Run `ddp doctor`."),
        (RecursionError(), "unexpected RecursionError. Run `ddp doctor`."),
        (ValueError("two\nlines. " + 400 * "x"), "unexpected ValueError: two lines. xxx"),
        (MemoryError(), "out of memory. Use fewer --workers, a smaller batch_size or a smaller model."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory. Use fewer --workers"),
    ],
)
def test_an_unexpected_error_is_one_line_that_names_its_traceback(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_inspect(error, monkeypatch)
    line = refused(ddp("inspect", "x"))
    assert line.startswith(f"error: {message}")
    (path,) = tracebacks(tmp_path)
    assert line.endswith(f"The traceback is in '{path}'; DDP_DEBUG=1 prints it.")
    assert len(line) < 600
    text = path.read_text()
    assert text.startswith("ddp 0.1.0: ")
    assert "raise_error" in text
    assert type(error).__name__ in text


@pytest.mark.parametrize("error", [KeyError("pose"), DdpError("wrong.", "Do better.")])
def test_the_traceback_of_every_error_can_be_printed(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_inspect(error, monkeypatch)
    monkeypatch.setenv("DDP_DEBUG", "1")
    result = ddp("inspect", "x")
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last)")
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "traceback is in" not in result.stderr
    assert tracebacks(tmp_path) == []


def test_expected_errors_have_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = DdpError("wrong.", "Do better.")
    error.add_note("Something is kept.")
    raise_in_inspect(error, monkeypatch)
    assert refused(ddp("inspect", "x")) == "error: wrong. Do better. Something is kept."
    raise_in_inspect(ModuleNotFoundError("No module named 'zarr'", name="zarr"), monkeypatch)
    assert refused(ddp("inspect", "x")) == "error: the package 'zarr' is not installed. Run `ddp doctor`."
    assert tracebacks(tmp_path) == []


def test_a_full_disk_does_not_hide_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    raise_in_inspect(KeyError("pose"), monkeypatch)
    expected = "error: unexpected KeyError: 'pose'. Run `ddp doctor`. DDP_DEBUG=1 prints the traceback."
    assert refused(ddp("inspect", "x")) == expected


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    interruption = KeyboardInterrupt()
    interruption.add_note("2 demonstrations are kept.")
    replaced = ImportError("numpy cannot be imported")
    replaced.__context__ = KeyboardInterrupt()  # what some libraries make of it while they are imported
    for error, line in ((interruption, "interrupted (2 demonstrations are kept)"), (replaced, "interrupted")):
        raise_in_inspect(error, monkeypatch)
        result = ddp("inspect", "x")
        assert (result.exit_code, result.stderr.strip()) == (130, line)
    assert tracebacks(tmp_path) == []


@pytest.mark.slow
def test_ctrl_c_at_any_moment_is_not_a_traceback(lift_demos: Path) -> None:
    """While the program is imported, works and exits. Before its first line, Python itself reports the interruption."""
    # A shell that runs the tests in the background makes them, and their child processes, ignore Ctrl-C.
    code = "import signal as s; s.signal(s.SIGINT, s.default_int_handler); print('started', flush=True); "
    code += "import ddp_cli.__main__; ddp_cli.__main__.main()"
    rng = random.Random(0)
    exit_codes = set()
    for _ in range(12):
        command = [sys.executable, "-c", code, "inspect", str(lift_demos)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.01, 1.5))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        exit_codes.add(process.returncode)
    assert exit_codes <= {0, 130, -signal.SIGINT}
    assert 130 in exit_codes


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_leaves_is_not_an_error(options: list[str], lift_demos: Path) -> None:
    command = [*PROGRAM, "inspect", str(lift_demos), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()  # before anything is written
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.slow
def test_a_full_output_is_one_line(lift_demos: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*PROGRAM, "inspect", str(lift_demos), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the disk is full.")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_an_error_of_a_worker_process_is_one_line_with_its_own_traceback(lift_demos: Path, tmp_path: Path) -> None:
    """It names the line that failed in the worker; one that cannot be sent is described."""
    code = (
        "import functools, sys; from test_cli import make_failing; from ddp_cli.data import inspection;"
        "from ddp_cli.parallel import ordered_map; import ddp_cli.__main__;"
        "make_function = functools.partial(make_failing, sys.argv.pop());"
        "inspection.inspect_source = lambda *_: list(ordered_map(make_function, range(3), 2));"
        "ddp_cli.__main__.main()"
    )
    for kind, message in (("KeyError", "KeyError: 'pose'"), ("Unsendable", "RuntimeError: UnsendableError: pose, 3")):
        command = [sys.executable, "-c", code, "inspect", str(lift_demos), kind]
        environment = {"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": str(tmp_path), "PATH": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: unexpected {message}. Run `ddp doctor`.")
        (path,) = tracebacks(tmp_path)
        assert "in fail_in_worker" in path.read_text()
        path.unlink()


class UnsendableError(Exception):
    """Cannot be created from its arguments, and so not be sent to another process."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name}, {code}")


def make_failing(kind: str) -> Callable[[int], None]:
    def fail_in_worker(_item: int) -> None:
        raise KeyError("pose") if kind == "KeyError" else UnsendableError("pose", 3)

    return fail_in_worker


def test_windows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match="ddp does not run on Windows"):
        main()
