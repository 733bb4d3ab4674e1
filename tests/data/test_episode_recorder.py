"""Episodes of a policy come back as a store, also after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ddp, ok, refused

from ddp_cli.commands.run import _run_episodes
from ddp_cli.data.episode_recorder import EpisodeRecorder
from ddp_cli.data.store import Store
from ddp_cli.data.store_copy import copy_store
from ddp_cli.data.store_writer import StoreWriter
from ddp_cli.deploy import operator_keys
from ddp_cli.errors import DataError


def attributes_of(store: Store) -> dict[str, Any]:
    return {key: store.attrs[key] for key in ("render", "env_args", "versions", "action")} | {"obs": "image"}


def make_recorder(store: Store, out: Path, **changes: Any) -> EpisodeRecorder:
    return EpisodeRecorder(out, store.task, attributes_of(store) | changes)


def record(recorder: EpisodeRecorder, store: Store, begin: int, end: int, takeovers: range = range(0)) -> None:
    keys = [*store.image_keys, *store.task.vectors("state")]
    for row in range(begin, end):
        obs = {key: store.read(key, rows=slice(row, row + 1))[0] for key in keys}
        recorder.add(obs, store.read("action", rows=slice(row, row + 1))[0] * 0.5, row - begin in takeovers)


def test_a_recording_is_a_store_that_merges_with_demonstrations(lift_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "tries.zarr"
    recorder = make_recorder(lift_store, out)
    record(recorder, lift_store, 0, 12)
    recorder.save(True)
    record(recorder, lift_store, 3, 20)
    recorder.discard()
    record(recorder, lift_store, 5, 30, range(10, 15))
    recorder.save(False)
    assert recorder.finish() == 2
    assert not recorder.folder.exists()
    store = Store(out)
    assert store.episode_ends.tolist() == [12, 37]
    assert store.policy_episodes == {"episode-00001": True, "episode-00002": False}
    assert store.takeovers == {"episode-00002": [[10, 15]]}
    key = store.image_keys[0]
    np.testing.assert_array_equal(store.read(key)[12:], lift_store.read(key, rows=slice(5, 30)))
    np.testing.assert_array_equal(store.read("action")[:12], lift_store.read("action", rows=slice(0, 12)) * 0.5)
    merged = tmp_path / "all.zarr"
    ok(ddp("convert", lift_store.path, out, "--out", merged))
    assert Store(merged).policy_episodes == {"tries/episode-00001": True, "tries/episode-00002": False}
    assert Store(merged).takeovers == {"tries/episode-00002": [[10, 15]]}


def test_takeovers_can_be_all_that_is_learned_from(lift_store: Store, tmp_path: Path) -> None:
    out, only = tmp_path / "tries.zarr", tmp_path / "takeovers.zarr"
    recorder = make_recorder(lift_store, out)
    record(recorder, lift_store, 0, 12)
    recorder.save(True)
    record(recorder, lift_store, 5, 30, range(10, 15))
    recorder.save(True)
    recorder.finish()
    ok(ddp("convert", out, "--keep", "takeovers", "--out", only))
    store = Store(only)
    assert store.episode_ends.tolist() == [5]
    np.testing.assert_array_equal(store.read("action"), Store(out).read("action")[22:27])
    assert store.policy_episodes == store.takeovers == {}, "the actions are those of the operator"
    assert store.episode_names == ["episode-00002/10"]
    message = refused(ddp("convert", lift_store.path, "--keep", "takeovers", "--out", tmp_path / "none.zarr"))
    assert "holds no steps in which an operator took over" in message


@pytest.mark.parametrize("span", [[3, 9999], [-3, 2], [3, 3], [8, 3], "ab", [1]])
def test_damaged_takeovers_are_named(lift_store: Store, tmp_path: Path, span: object) -> None:
    store = Store(Path(shutil.copytree(lift_store.path, tmp_path / "damaged.zarr")))
    store.attrs["source"]["takeovers"] = {store.episode_names[1]: [span]}
    with pytest.raises(DataError, match="is damaged: the takeover .* is not within its"):
        copy_store(store, tmp_path / "out.zarr", None, None, 3, lambda *_: None, "takeovers")


def test_failed_episodes_can_be_left_out(lift_store: Store, tmp_path: Path) -> None:
    out, both, kept = tmp_path / "tries.zarr", tmp_path / "both.zarr", tmp_path / "kept.zarr"
    recorder = make_recorder(lift_store, out)
    for begin, success in ((0, False), (12, True), (24, False)):
        record(recorder, lift_store, begin, begin + 12, range(2, 4))
        recorder.save(success)
    recorder.finish()
    ok(ddp("convert", out, "--keep", "successes", "--out", kept))
    store = Store(kept)
    assert (store.episode_ends.tolist(), store.episode_names) == ([12], ["episode-00002"])
    np.testing.assert_array_equal(store.read("action"), Store(out).read("action", rows=slice(12, 24)))
    assert store.policy_episodes == {"episode-00002": True}
    assert store.takeovers == {"episode-00002": [[2, 4]]}

    ok(ddp("convert", lift_store.path, out, "--out", both))
    ok(ddp("convert", both, "--keep", "successes", "--overwrite", "--out", kept))
    assert len(Store(kept).episode_ends) == len(lift_store.episode_ends) + 1, "demonstrations are kept"

    message = refused(ddp("convert", lift_store.path, "--keep", "successes", "--out", tmp_path / "none.zarr"))
    assert "holds no episodes of a policy" in message
    message = refused(ddp("convert", out, "--only", ":1", "--keep", "successes", "--out", tmp_path / "none.zarr"))
    assert "the policy failed in all 1 episodes" in message


def test_a_recording_goes_on_after_an_interruption(lift_store: Store, tmp_path: Path) -> None:
    out = tmp_path / "tries.zarr"
    recorder = make_recorder(lift_store, out)
    record(recorder, lift_store, 0, 12)
    recorder.save(True)
    record(recorder, lift_store, 12, 20)  # not saved
    assert [Store(path).episode_ends.tolist() for path in recorder.paths()] == [[12]]
    with pytest.raises(DataError, match="episodes of another recording"):
        make_recorder(lift_store, out, render="full")
    recorder = make_recorder(lift_store, out)
    record(recorder, lift_store, 12, 20)
    recorder.save(False)
    assert recorder.finish() == 2
    assert Store(out).episode_names == ["episode-00001", "episode-00002"]


def test_an_episode_that_was_being_written_is_not_mixed_with_the_next(
    lift_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    recorder = make_recorder(lift_store, tmp_path / "tries.zarr")
    record(recorder, lift_store, 0, 12)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "finish", kill)
        recorder.save(True)
    assert list(recorder.folder.glob("*.partial"))
    recorder = make_recorder(lift_store, tmp_path / "tries.zarr")
    record(recorder, lift_store, 12, 24)  # of the same length, and with the same outcome
    recorder.save(True)
    assert recorder.finish() == 1
    expected = lift_store.read("action", rows=slice(12, 24)) * 0.5
    np.testing.assert_array_equal(Store(tmp_path / "tries.zarr").read("action"), expected)


def test_keys_that_were_pressed_before_an_episode_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pressed = list("s")

    class Loop:
        """Runs episodes of at most three steps. The key is pressed twice in the second step of the first one."""

        def run(self, seed: int, on_step: Any) -> tuple[bool | None, int]:
            for step in range(3):
                pressed.extend("ss" if (seed, step) == (0, 1) else "")
                if (success := on_step(None)) is not None:
                    return success, step + 1
            return None, 3

    monkeypatch.setattr(operator_keys, "pressed_keys", lambda: nullcontext(lambda: pressed.pop(0) if pressed else None))
    assert _run_episodes(Loop(), 0, 2, None, None) == [(True, 2), (None, 3)]  # type: ignore[arg-type]


def test_a_missing_observation_is_named(lift_store: Store, tmp_path: Path) -> None:
    recorder = make_recorder(lift_store, tmp_path / "tries.zarr")
    with pytest.raises(DataError, match="does not observe 'agentview_image'"):
        recorder.add({}, np.zeros(7), False)
    assert recorder.finish() == 0
    assert not (tmp_path / "tries.zarr").exists()


@pytest.mark.slow
def test_a_killed_run_leaves_complete_episodes(policy_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ddp_cli", "run", policy_folder, "--robot", "mock", "--max-steps", "20"]
    command += ["--episodes", "50", "--record", "tries.zarr"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "tries.zarr.episodes/episode-00002.zarr").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "tries.zarr").exists()
    paths = sorted((tmp_path / "tries.zarr.episodes").glob("episode-*.zarr"))
    assert len(paths) >= 2
    assert all(Store(path).episode_ends.tolist() == [20] for path in paths)
    ok(ddp("convert", *paths, "--out", tmp_path / "merged.zarr"))
