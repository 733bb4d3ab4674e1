from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.check_summary import check_summary, summarize_checks
from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.frame_check import FrameResult
from ddp_cli.data.observations import MODEL_CURRENT, MODEL_RECORDED, RenderSpec
from ddp_cli.data.replay_check import GAP_STEPS, MAX_GAP_ERROR, ReplayResult, WholeReplay, _Replay, check_demo
from ddp_cli.data.store import Store
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sim() -> Simulator:
    return Simulator(get_task("lift"), "full")


@pytest.fixture
def demo(lift_demos: Path) -> Demo:
    with DemoFile(lift_demos) as file:
        return file.read("demo_1")


def scaled_actions(demo: Demo) -> Demo:
    return dataclasses.replace(demo, actions=demo.actions * [0.5, 0.5, 0.5, 1, 1, 1, 1])


def rotated_actions(demo: Demo) -> Demo:
    """As if recorded in a frame that is rotated by 90 degrees."""
    actions = demo.actions.copy()
    actions[:, :2] = np.stack([-actions[:, 1], actions[:, 0]], 1)
    return dataclasses.replace(demo, actions=actions)


def shifted_states(demo: Demo) -> Demo:
    """As if states had been recorded after the actions, not before."""
    return dataclasses.replace(demo, states=demo.states[3:], actions=demo.actions[:-3], intended=None)


def inverted_gripper(demo: Demo) -> Demo:
    return dataclasses.replace(demo, actions=demo.actions * [1, 1, 1, 1, 1, 1, -1])


def test_demos_of_this_simulator_replay_exactly(sim: Simulator, demo: Demo) -> None:
    result = check_demo(sim, RenderSpec(), sim, demo)
    assert (result.model, result.succeeds, len(result.chunks)) == (
        MODEL_RECORDED,
        True,
        -(-(len(demo.actions) - 1) // 8),
    )
    assert result.whole == WholeReplay(True, 0.0, pytest.approx(0.0, abs=1e-5))
    check = summarize_checks([result])
    assert (check["result"], check["why"]) == ("passed", "")
    assert "1 demo replayed" in check_summary(check)


@pytest.mark.parametrize("change", [scaled_actions, rotated_actions, shifted_states, inverted_gripper])
def test_actions_with_another_effect_fail(sim: Simulator, demo: Demo, change: Callable[[Demo], Demo]) -> None:
    for policy_steps in (None, len(demo.actions)):
        changed = dataclasses.replace(change(demo), policy_steps=policy_steps)
        check = summarize_checks([check_demo(sim, RenderSpec(), sim, changed)])
        assert check["result"] == "failed"
        assert "replayed chunks of 8 actions end within 5 mm" in check["why"]


def test_chunks_count_where_the_replay_of_the_whole_episode_follows_the_recording(
    sim: Simulator, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pressed against something, the arm moves in another way after its state was restored."""
    monkeypatch.setattr(_Replay, "chunk_error", lambda *_: (99.0, 99.0, 99.0))
    result = check_demo(sim, RenderSpec(), sim, demo, whole=False)
    assert np.max(result.chunks) < 1e-4
    wrong = dataclasses.replace(demo, actions=demo.actions * 0.8)
    assert np.max(check_demo(sim, RenderSpec(), sim, wrong, whole=False).chunks) == 99.0


@pytest.mark.parametrize("lag", [1, 2])
def test_fingers_may_be_late_only_in_recordings_of_older_versions(sim: Simulator, demo: Demo, lag: int) -> None:
    actions = demo.actions.copy()
    actions[lag:, -1] = demo.actions[:-lag, -1]
    late = dataclasses.replace(demo, actions=actions)

    def worst_gap(gap_steps: int) -> float:
        return max(gap for *_, gap in check_demo(sim, RenderSpec(), sim, late, gap_steps=gap_steps).chunks)

    assert worst_gap(0) > MAX_GAP_ERROR >= worst_gap(GAP_STEPS)


def record_with_stale_controller(sim: Simulator, demo: Demo) -> Demo:
    """As robosuite's collectors record: the state is restored, but the controller still has the goal of another one."""
    other_state = demo.states[0].copy()
    other_state[1:8] += 0.03 * np.array([1, -1, 1, 1, -1, 1, 1])  # joints of the arm [rad]
    sim.load_xml(demo.xml)
    sim.set_state(other_state)
    sim.set_kinematic_state(demo.states[0])
    states = []
    for action in demo.actions:
        states.append(sim.state())
        sim.step(action)
    return dataclasses.replace(demo, states=np.stack(states))


def test_startup_effect_of_a_collector_is_told_from_drift(sim: Simulator, demo: Demo) -> None:
    recording = record_with_stale_controller(sim, demo)
    result = check_demo(sim, RenderSpec(), sim, recording)
    assert result.startup_mm > 5
    check = summarize_checks([result])
    assert (check["result"], check["startup_demos"]) == ("passed", 1)
    assert check["chunks_within_limits"] == 1
    assert "the first actions of 1 demo had another effect" in check_summary(check)


@pytest.mark.parametrize("change", [scaled_actions, rotated_actions, shifted_states, inverted_gripper])
def test_startup_effect_does_not_excuse_the_rest(sim: Simulator, demo: Demo, change: Callable[[Demo], Demo]) -> None:
    recording = change(record_with_stale_controller(sim, demo))
    result = check_demo(sim, RenderSpec(), sim, recording)
    assert result.startup_mm == 0
    assert summarize_checks([result])["result"] == "failed"


def test_fingers_may_close_as_fast_as_in_older_versions(
    sim: Simulator, demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to robosuite 1.4 they took 8 steps, not 10."""
    sim.load_xml(demo.xml)
    gripper = sim.env.robots[0].gripper["right"]

    def record(speed: float) -> Demo:
        with monkeypatch.context() as patch:
            patch.setattr(type(gripper), "speed", speed)
            sim.set_state(demo.states[0])
            states = []
            for action in demo.actions:
                states.append(sim.state())
                sim.step(action)
        return dataclasses.replace(demo, states=np.stack(states))

    def verdict(speed: float, gap_steps: int) -> str:
        return str(summarize_checks([check_demo(sim, RenderSpec(), sim, record(speed), gap_steps=gap_steps)])["result"])

    assert verdict(0.25, GAP_STEPS) == "passed"
    assert verdict(0.25, 0) == verdict(0.05, GAP_STEPS) == "failed"


def test_chunks_may_start_while_the_gripper_moves(sim: Simulator, demo: Demo) -> None:
    """The gripper integrates its actions, which is not part of the state: it is restored from the actions before."""
    actions = np.tile(demo.actions[:1] * 0, (60, 1))
    actions[:, 6] = np.where(np.arange(60) % 24 < 4, -1, 1)  # opens every 24 steps, just before a chunk starts
    sim.load_xml(demo.xml)
    sim.set_state(demo.states[0])
    states = []
    for action in actions:
        states.append(sim.state())
        sim.step(action)
    result = check_demo(sim, RenderSpec(), sim, dataclasses.replace(demo, states=np.array(states), actions=actions))
    assert max(gap for _, _, gap in result.chunks) < 0.5


def test_states_are_set_in_the_current_model_if_the_recorded_one_does_not_load(sim: Simulator, demo: Demo) -> None:
    old_demo = dataclasses.replace(demo, xml='<mujoco><asset><mesh file="gone.stl"/></asset></mujoco>')
    result = check_demo(sim, RenderSpec(), sim, old_demo)
    assert (result.model, result.succeeds) == (MODEL_CURRENT, True)
    assert summarize_checks([result])["result"] == "passed"


def test_limits_determine_the_result() -> None:
    def check(good: int, bad: int, faults: dict[str, str] | None = None, succeeds: bool = True) -> dict:
        chunks = [(1.0, 1.0, 1.0)] * good + [(6.0, 1.0, 1.0)] * bad
        result = ReplayResult("demo_0", MODEL_CURRENT, succeeds, chunks, whole=WholeReplay(False, 90.0, 9.0))
        return summarize_checks([result], [FrameResult("demo_0", 40.0), FrameResult("demo_1", 40.0, faults or {})])

    assert check(9, 1)["result"] == "passed"  # the replay of the whole demo may drift and fail
    assert check(8, 2)["result"] == "failed"
    failed = check(9, 1, faults={"agentview_image": "agentview_image is upside down"})
    assert failed["result"] == "failed"
    assert "images of 1 of 2 demos do not match" in failed["why"]
    assert "(demo_1: agentview_image is upside down); --rerender" in failed["why"]
    assert check(9, 1, succeeds=False)["result"] == "passed"  # recordings may hold failed episodes
    assert check_summary(summarize_checks([])) == "not verified: no demo was checked"


@pytest.mark.parametrize("actions", ["delta", "absolute"])
def test_the_store_holds_the_check(lift_demos: Path, tmp_path: Path, actions: str) -> None:
    result = convert(lift_demos, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", actions, check=1))
    check = Store(tmp_path / "s.zarr").check
    assert check == result.check
    assert (check["result"], check["replay_successes"], len(check["demos"])) == ("passed", 1, 1)
    assert check["checked_demos"] == ["demo_0", "demo_1"]
    assert check["replay_mm"] < (1e-6 if actions == "delta" else 1.0)


def test_demos_of_one_step_are_not_verified(lift_demos: Path, tmp_path: Path) -> None:
    with h5py.File(lift_demos) as f, h5py.File(tmp_path / "d.hdf5", "w") as out:
        data = out.create_group("data")
        data.attrs["env_args"] = f["data"].attrs["env_args"]
        f.copy("models", out)
        demo = data.create_group("demo_0")
        demo["states"], demo["actions"] = f["data/demo_0/states"][:1], np.ones((1, 7))
        demo.attrs["model"] = f["data/demo_0"].attrs["model"]
    check = convert(tmp_path / "d.hdf5", tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state")).check
    assert check["result"] == "not verified"
    assert "the demos have a single step" in check_summary(check)


def test_one_wrong_demo_among_many_fails_the_check() -> None:
    whole = WholeReplay(True, 1.0, 1.0)
    results = [ReplayResult(f"demo_{i}", "m", True, [(1.0, 1.0, 1.0)] * 12, whole=whole) for i in range(3)]
    assert summarize_checks(results)["result"] == "passed"
    check = summarize_checks([*results, ReplayResult("demo_12", "m", True, [(90.0, 9.0, 0.0)] * 4)])
    assert (check["result"], check["wrong_demos"]) == ("failed", ["demo_12"])
    assert check["chunks_within_limits"] == 1
    why = "the actions of 1 of 4 demos have another effect than when they were recorded (demo_12); --skip-bad"
    assert check["why"].startswith(why)


def test_one_chunk_of_a_demo_may_drift_but_fingers_may_not() -> None:
    def result(n: int, *bad: tuple[float, float, float]) -> str:
        whole = WholeReplay(True, 1.0, 1.0)
        chunks = [(1.0, 1.0, 1.0)] * (n - len(bad)) + list(bad)
        good = ReplayResult("demo_0", "m", True, [(1.0, 1.0, 1.0)] * 100, whole=whole)
        return str(summarize_checks([good, ReplayResult("demo_1", "m", True, chunks, whole=whole)])["result"])

    drift, fingers = (6.0, 1.0, 1.0), (1.0, 1.0, 6.0)
    assert [result(5, drift), result(5, drift, drift), result(5, fingers)] == ["passed", "failed", "failed"]
    assert [result(1, drift), result(2, drift)] == ["failed", "passed"]
    assert [result(30, *[drift] * 3), result(30, *[drift] * 4)] == ["passed", "failed"]


def gripper_stays_open(demo: Demo) -> Demo:
    return dataclasses.replace(
        demo, actions=np.concatenate([demo.actions[:, :6], -np.ones_like(demo.actions[:, 6:])], 1)
    )


def wrong_at_the_end(demo: Demo) -> Demo:
    actions = demo.actions.copy()
    actions[-10:, :6] *= -1
    return dataclasses.replace(demo, actions=actions)


@pytest.mark.parametrize("change", [rotated_actions, inverted_gripper, gripper_stays_open, wrong_at_the_end])
def test_wrong_demos_are_found_wherever_they_are(
    lift_demos: Path, tmp_path: Path, change: Callable[[Demo], Demo]
) -> None:
    """Only the first demo is replayed as a whole."""
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with DemoFile(copy) as file:
        actions = change(file.read("demo_1")).actions
    with h5py.File(copy, "r+") as f:
        f["data/demo_1/actions"][:] = actions
        del f["data/demo_1/intended"]
    options = ConvertOptions("state", check=1)
    check = convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, options).check
    assert (check["result"], check["wrong_demos"]) == ("failed", ["demo_1"])
    options = dataclasses.replace(options, skip_bad=True)
    result = convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, options)
    assert (result.check["result"], result.episodes, list(result.left_out)) == ("passed", 1, ["demo_1"])


def test_demos_that_are_replayed_as_a_whole_are_replaced_if_they_are_left_out(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        del f["data/demo_0/intended"]
        f["data/demo_0/actions"][:, :3] *= -1
    options = ConvertOptions("state", check=1)
    check = convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, options).check
    assert "(demo_0); --skip-bad leaves them out" in check["why"]
    result = convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, dataclasses.replace(options, skip_bad=True))
    assert (result.check["result"], list(result.left_out)) == ("passed", ["demo_0"])
    assert [demo["demo"] for demo in result.check["demos"]] == ["demo_1"]


def test_a_demo_of_one_step_does_not_hide_that_others_are_wrong(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        for name in ("states", "actions"):
            values = f[f"data/demo_0/{name}"][:1]
            del f[f"data/demo_0/{name}"]
            f[f"data/demo_0/{name}"] = values
        f["data/demo_0"].attrs["num_samples"] = 1
        f["data/demo_1/actions"][:, :3] *= -1
        for demo in f["data"].values():
            del demo["intended"]
    check = convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", check=1)).check
    assert (check["result"], check["wrong_demos"], check["checked_demos"]) == ("failed", ["demo_1"], ["demo_1"])


def test_chunks_cover_the_replayed_demo(sim: Simulator, demo: Demo) -> None:
    """Actions that have an effect of their own anywhere, such as a single chunk that is too fast, are found."""
    for start in (0, 8, 16, 24):
        actions = demo.actions.copy()
        actions[start : start + 8, :3] = 1
        result = check_demo(sim, RenderSpec(), sim, dataclasses.replace(demo, actions=actions))
        assert [error[0] > 5 for error in result.chunks].index(True) == start // 8
        assert sum(error[0] > 5 for error in result.chunks) == 1


def test_a_store_of_demos_with_another_effect_holds_a_failed_check(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        for demo in f["data"].values():
            demo["actions"][:, :3] *= 0.5
    convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state"))
    assert Store(tmp_path / "s.zarr").check["result"] == "failed"
