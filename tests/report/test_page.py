from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import ddp, ok, ok_json, refused
from report.browser import OpenPage, open_page, shown
from report.conftest import HOSTILE, LENGTHS, evaluation, write_json, write_recording

from ddp_cli.data.store import Store
from ddp_cli.errors import WorkerError
from ddp_cli.evaluation.statistics import wilson_interval
from ddp_cli.presets import train_config
from ddp_cli.report import films
from ddp_cli.report.dataset import choose_episodes, dataset_section
from ddp_cli.report.evaluations import Report
from ddp_cli.report.page import render_page, to_json
from ddp_cli.report.runs import differences_from_preset, runs_section
from ddp_cli.report.videos import Videos, fit_frame


def sections(page: Path) -> list[dict]:
    """What a page shows, as its program reads it."""
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(data)["sections"]


def test_json_cannot_end_its_element() -> None:
    value = {HOSTILE: ["<!--", "\u2028\u2029", float("nan"), 1.5]}
    text = to_json(value)
    assert not {"<", ">", "&", "\u2028"} & set(text)
    assert json.loads(text) == {HOSTILE: ["<!--", "\u2028\u2029", None, 1.5]}


def test_the_security_policy_allows_the_program_of_the_page_alone() -> None:
    page = render_page(HOSTILE, [{"kind": "policy", "title": HOSTILE}], {})
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1  # the title and the data have not become another one
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert "Leon Sorokin" in page  # the licence of the plotting library


@pytest.mark.parametrize(("at_most", "expected"), [(3, [1, 2, 5]), (2, [1, 5]), (9, [0, 1, 2, 3, 4, 5])])
def test_episodes_with_rare_findings_are_shown_first(at_most: int, expected: list[int]) -> None:
    flags = [[], ["jump"], ["pause", "jump"], [], ["pause"], ["length", "pause"]]
    assert choose_episodes(flags, at_most) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((84, 84), (168, 168)), ((480, 640), (240, 320)), ((9, 300), (10, 300)), ((35, 33), (176, 166))],
)
def test_frames_have_even_sides_of_a_size_to_look_at(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    frame = fit_frame(np.full((*shape, 1), 300.0))
    assert frame.shape == (*expected, 3)
    assert (frame == 255).all()


def test_values_of_a_dataset_are_those_of_the_store(store: Store) -> None:
    with Videos() as videos:
        section = dataset_section(store.path, videos, 2, lambda *_: None)
        contents = videos.sources(store.path.parent / "page.html", 50.0)
    assert list(section["full"]) == ["0", "1"]  # the second one has a pause
    begin, end = store.episode_bounds[1]
    for key in ("pos", "action"):
        curve = np.frombuffer(base64.b64decode(section["full"]["1"]["curves"][key]), "<f4").reshape(-1, 2)
        np.testing.assert_array_equal(curve, store.read(key)[begin:end])
    first = np.frombuffer(base64.b64decode(section["starts"]["values"]), "<f4").reshape(4, 4)
    np.testing.assert_array_equal(first[:, :2], store.read("pos")[[bounds[0] for bounds in store.episode_bounds]])
    dimension = section["dimensions"][1]
    assert (dimension["low"], dimension["high"]) == (store.read("pos")[:, 1].min(), store.read("pos")[:, 1].max())
    assert sum(dimension["counts"]) == store.episode_ends[-1]
    assert [episode["length"] for episode in section["episodes"]] == [20, 30, 25, 22]
    assert "pause at start" in section["episodes"][1]["flags"]
    assert section["findings"][0]["episodes"] == [1]
    assert len(contents) == 4  # two cameras of two episodes
    assert all(content[4:8] == b"ftyp" for content in contents.values())


def test_videos_beyond_the_limit_are_beside_the_page(store: Store, tmp_path: Path) -> None:
    page = tmp_path / "a b.html"
    result = ok_json("report", store.path, "--out", page, "--max-mb", 0)
    assert result["videos_in"] == str(tmp_path / "a b-videos")
    assert len(list((tmp_path / "a b-videos").glob("*.mp4"))) == result["videos"] == 8
    assert "exists" in refused(ddp("report", store.path, "--out", page))
    ok(ddp("report", store.path, "--out", page, "--overwrite"))
    assert [path.name for path in tmp_path.iterdir()] == ["a b.html"]  # they are inside now


def test_a_page_that_fails_leaves_the_one_before_with_its_videos(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    ok(ddp("report", store.path, "--out", page, "--max-mb", 0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert len(before) == 9
    for render in ("render_page", "atomic_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ddp_cli.report.report.{render}", lambda *_: 1 / 0)
            for max_mb in (0, 50):
                assert ddp("report", store.path, "--out", page, "--overwrite", "--max-mb", max_mb).exit_code == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before


def is_drawn(opened: OpenPage, steps: list[float]) -> list[bool]:
    """Whether the first chart has a pixel of the second curve, which is red, at each of `steps` from 0 to 29."""
    return opened.page.evaluate(
        """(steps) => {
            const chart = document.querySelector('.episode .uplot');
            const [canvas, over] = [chart.querySelector('canvas'), chart.querySelector('.u-over')];
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            const isRed = (at) => data[at] - data[at + 1] > 60 && data[at + 3] > 100;
            return steps.map((step) => {
                const x = Math.round((over.offsetLeft + (over.clientWidth * step) / 29) * width / canvas.clientWidth);
                return Array.from({ length: height }, (_, y) => 4 * (y * width + x)).some(isRed);
            });
        }""",
        steps,
    )


def test_cameras_and_values_that_cannot_be_shown_are_named(browser: Any, tmp_path: Path) -> None:
    write_recording(tmp_path / "r.zarr")
    group = zarr.open_group(tmp_path / "r.zarr", mode="r+")
    position = group["data/pos"][:]
    position[LENGTHS[0] + 3, 1] = np.nan
    group["data/pos"][:] = position
    for chunk in (tmp_path / "r.zarr/data/wrist").glob("[0-9]*"):
        chunk.write_bytes(b"damaged")
    ok(ddp("report", tmp_path / "r.zarr", "--out", tmp_path / "r.html"))
    (section,) = sections(tmp_path / "r.html")
    assert [list(one["videos"]) for one in section["full"].values()] == [["top"]] * 4
    curve = np.frombuffer(base64.b64decode(section["full"]["1"]["curves"]["pos"]), "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(curve, position[LENGTHS[0] : LENGTHS[0] + LENGTHS[1]])
    with open_page(browser, tmp_path / "r.html") as opened:
        opened.page.locator("tr[data-episode='1']").click()
        assert opened.text(".episode .warning") == "Cannot be read: wrist."
        for _ in range(3):
            opened.page.keyboard.press("ArrowRight")
        value, missing = opened.legend(0)
        assert value == shown(position[LENGTHS[0] + 3, :1])[0]
        assert missing == "\u2013"
        assert is_drawn(opened, [1.5, 2.5, 3.5, 4.5]) == [True, False, False, True]


def test_episodes_without_a_readable_image_are_a_finding(tmp_path: Path) -> None:
    count = 60  # the lint looks at 20 of them
    root = zarr.open_group(tmp_path / "r.zarr", mode="w", zarr_format=2)
    rng = np.random.default_rng(0)
    root.create_array("data/top", data=rng.integers(0, 255, (2 * count, 8, 8, 3), np.uint8), chunks=(2, 8, 8, 3))
    root.create_array("data/action", data=rng.normal(size=(2 * count, 2)).astype(np.float32))
    root.create_array("meta/episode_ends", data=np.arange(2, 2 * count + 2, 2))
    for i in (7, 8, 9):
        (tmp_path / f"r.zarr/data/top/{i}.0.0.0").write_bytes(b"damaged")
    ok(ddp("report", tmp_path / "r.zarr", "--out", tmp_path / "r.html", "-n", 3))
    (section,) = sections(tmp_path / "r.html")
    episodes = [finding["episodes"] for finding in section["findings"] if finding["kind"] == "unreadable"]
    assert {i for one in episodes for i in one} == {7, 8, 9}
    assert list(section["full"]) == ["7", "8", "9"]


def test_names_that_are_not_utf_8(browser: Any, tmp_path: Path) -> None:
    write_recording(tmp_path / "r.zarr")
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.zarr"))
    (tmp_path / "r.zarr").rename(path)
    page = path.with_suffix(".html")
    command = [sys.executable, "-m", "ddp_cli", "report", path, "--out", page, "--max-mb", "0", "-n", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert "\\udcff.html: " in result.stdout
    with open_page(browser, page) as opened:
        video = opened.page.locator("video").first
        video.evaluate("(video) => video.readyState || new Promise((done) => { video.onloadeddata = done; })")
        assert opened.text("h1").endswith(".zarr")


def test_a_folder_of_something_else_is_not_replaced(store: Store, tmp_path: Path) -> None:
    (tmp_path / "page-videos").mkdir()
    (tmp_path / "page-videos/mine.mp4").touch()
    line = refused(ddp("report", store.path, "--out", tmp_path / "page.html", "--overwrite"))
    assert "page-videos' is a folder that ddp did not write" in line
    (tmp_path / "empty.html").mkdir()
    line = refused(ddp("report", store.path, "--out", tmp_path / "empty.html", "--overwrite"))
    assert "empty.html' is a folder, but the output is a file" in line


def test_recordings_need_no_conversion(tmp_path: Path) -> None:
    write_recording(tmp_path / "r.zarr")
    ok(ddp("report", tmp_path / "r.zarr", "--out", tmp_path / "r.html", "--episodes", 1))
    (section,) = sections(tmp_path / "r.html")
    assert section["cameras"] == ["top", "wrist"]
    assert len(section["full"]) == 1
    assert all(episode["thumbnail"] for episode in section["episodes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.zarr"], "missing.zarr"),
        (["missing.json"], "no file 'missing.json'. Name a report of `ddp eval`"),
        (["README.md", "--out", "page.pdf"], "cannot write a page to 'page.pdf'. Name a file that ends in .html"),
        (["README.md", "--film", "some"], "--film 'some' is not a choice of episodes. Valid: failures, all, or a"),
        (["sample_data", "--film", "all"], "--film needs an evaluation"),
        (["docs/examples"], "docs/examples"),
        (["README.md", "--film", ""], "--film '' is not a choice of episodes"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    out = [] if "--out" in arguments else ["--out", tmp_path / "page.html"]
    assert message in refused(ddp("report", *arguments, *out))
    assert list(tmp_path.iterdir()) == []


INFINITE_SEED = {"checkpoint": "x", "episodes": [{"seed": math.inf, "success": True, "steps": 1}]}


@pytest.mark.parametrize(
    "content", [[], {}, {"episodes": 1}, {"episodes": [], "checkpoint": "x"}, {"sweep": 3}, "text", INFINITE_SEED]
)
def test_files_that_are_no_evaluations_are_refused(content: object, tmp_path: Path) -> None:
    path = write_json(tmp_path / "e.json", content)
    assert "e.json'" in refused(ddp("report", path, "--out", tmp_path / "page.html"))


def test_a_crash_while_filming_names_an_option_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> Iterator[object]:
        raise WorkerError("a worker process crashed.", "Run again with fewer --workers.")
        yield

    monkeypatch.setattr(films, "_open_source", lambda _: SimpleNamespace(make_agent=None))
    monkeypatch.setattr(films, "_make_env", lambda *_: None)
    monkeypatch.setattr(films, "ordered_map", crash)
    report = Report("r", tmp_path / "r.json", {"checkpoint": "c", "episodes": [{"seed": 1, "success": False}]})
    with Videos() as videos, pytest.raises(WorkerError, match="crashed.*such as --film 1"):
        films.film_report(report, "all", videos, lambda *_: None)


def test_two_evaluations_are_compared_on_their_common_starts(tmp_path: Path) -> None:
    first = write_json(tmp_path / "a.json", evaluation([True, True, False, False]))
    second = write_json(tmp_path / "b.json", evaluation([True, False, True, False, True]))
    ok(ddp("report", first, second, "--out", tmp_path / "page.html"))
    (section,) = sections(tmp_path / "page.html")
    pair = section["paired"]
    assert [pair[key] for key in ("both", "only_first", "only_second", "neither")] == [1, 1, 1, 1]
    assert section["differing"] == [101, 102]
    assert section["place"] == "nut_pos"
    assert section["evaluations"][1]["interval"] == pytest.approx(wilson_interval(3, 5))
    # The same two as `ddp eval A B --out` writes them.
    content = {"first": json.loads(first.read_text()), "second": json.loads(second.read_text()), "paired": {}}
    ok(ddp("report", write_json(tmp_path / "ab.json", content), "--out", tmp_path / "page.html", "--overwrite"))
    (other,) = sections(tmp_path / "page.html")
    assert (other["paired"], other["differing"]) == (pair, section["differing"])
    # The same seeds of another task are other starts.
    write_json(tmp_path / "b.json", evaluation([True, False, True, False, True]) | {"task": "another"})
    ok(ddp("report", first, second, "--out", tmp_path / "page.html", "--overwrite"))
    (section,) = sections(tmp_path / "page.html")
    assert (section["paired"], section["differing"]) == (None, [])


def write_run(folder: Path) -> Path:
    config = train_config("lift", "state", "laptop", None, {"steps": 40, "lr": 0.001})
    content = {
        "format": 2, "train": config.model_dump(mode="json"), "total_steps": 40, "data": "lift.zarr",
        "store": {"demos": 3, "steps": 100}, "command": f"ddp train {HOSTILE}",
    }  # fmt: skip
    write_json(folder / "config.json", content)
    (folder / "checkpoints").mkdir()
    rows = [{"step": step, "loss": 1 / step, "lr": 1e-3, "samples_per_s": 10.0, "seconds": 6.0 * step}
            for step in range(10, 41, 10)]  # fmt: skip
    lines = [*map(json.dumps, [*rows, {"step": 40, "success_rate": 0.5, "seconds": 300.0}]), '{"step": 50, "lo']
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    report = evaluation([True, False]) | {"checkpoint": str(folder / "checkpoints/step-00000040")}
    write_json(folder / "eval/step-00000040-training.json", report)
    write_json(folder / "eval/step-00000040-x.json", report | {"sampler": "ddpm"})
    write_json(folder / "eval/step-00000050.json", {"other": 1})
    return folder


def test_settings_that_files_leave_out_are_compared_with_the_preset() -> None:
    config = train_config("square", "image", "laptop", None, {"steps": 40, "prefix_steps": 4}, "m")
    rows = differences_from_preset(config)
    assert ["encoder_width", "1", "2"] in rows
    assert ["prefix_steps", "0", "4"] in rows
    assert differences_from_preset(train_config("square", "image", "laptop")) == []


@pytest.mark.parametrize("damage", [{"store": "lift"}, {"train": {}}, {"total_steps": None}, {"format": "x"}])
def test_a_damaged_run_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    config = write_run(tmp_path / "lift" / "a") / "config.json"
    write_json(config, json.loads(config.read_text()) | damage)
    assert "config.json' is damaged: " in refused(ddp("report", config.parent, "--out", tmp_path / "page.html"))


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs/lift/a")
    for folder in (run.parent, run.parent.parent):
        line = refused(ddp("report", folder, "--out", tmp_path / "page.html"))
        assert f"'{folder}' is a folder of runs. Name one or several of them: {run}." in line


def test_a_run_shows_its_metrics_and_what_differs_from_the_preset(tmp_path: Path) -> None:
    path = write_run(tmp_path / "lift" / "a")
    films = {step: path / f"videos/step-{step:08}.mp4" for step in range(10, 80, 10)}
    films[10].parent.mkdir()
    for step, film in films.items():
        film.write_bytes(b"%d" % step)
    (path / "videos/mine.mp4").write_bytes(b"")
    with Videos() as videos:
        section = runs_section([path], videos)
        contents = videos.sources(tmp_path / "page.html", 50.0)
    (run,) = section["runs"]
    assert {step: contents[id] for step, id in run["films"].items()} == {10: b"10", 30: b"30", 50: b"50", 70: b"70"}
    assert films[10].exists()
    assert run["name"] == "lift/a"
    assert run["metrics"]["loss"] == [[10, 0.1], [20, 0.05], [30, 1 / 30], [40, 0.025]]
    assert run["metrics"]["seconds"][-1] == [40, 5.0]  # [min], the evaluation included
    assert [metric["key"] for metric in section["metrics"]] == ["loss", "lr", "samples_per_s", "seconds"]
    assert run["settings"] == [["lr", "0.0015", "0.001"], ["steps", "0", "40"], ["minutes", "60.0", "0.0"]]
    success, again = run["success"]
    assert (success["step"], success["rate"], success["during_training"]) == (40, 0.5, True)
    assert (success["by"], again["by"]) == ("during training", "ddp eval, ddpm, 10 steps")
    assert (success["low"], success["high"]) == pytest.approx(wilson_interval(1, 2))
