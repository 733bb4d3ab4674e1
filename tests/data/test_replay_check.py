from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.demo_file import Demo, DemoFile
from ddp_cli.data.observations import RECORDED, TODAYS, RenderSpec
from ddp_cli.data.replay_check import check_demo, psnr
from ddp_cli.data.replay_report import ReplayResult, in_words, verdict
from ddp_cli.data.store import Store
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import get_task


@pytest.fixture(scope="module")
def sim() -> Simulator:
    return Simulator(get_task("lift"), "full")


@pytest.fixture
def demo(lift_demos: Path) -> Demo:
    with DemoFile(lift_demos) as file:
        return file.read("demo_1")


def scaled(demo: Demo) -> Demo:
    return dataclasses.replace(demo, actions=demo.actions * [0.5, 0.5, 0.5, 1, 1, 1, 1])


def turned(demo: Demo) -> Demo:
    """As if recorded in a frame that is turned by 90 degrees."""
    actions = demo.actions.copy()
    actions[:, :2] = np.stack([-actions[:, 1], actions[:, 0]], 1)
    return dataclasses.replace(demo, actions=actions)


def late(demo: Demo) -> Demo:
    """States after the actions, not before."""
    return dataclasses.replace(demo, states=demo.states[3:], actions=demo.actions[:-3], intended=None)


def let_go(demo: Demo) -> Demo:
    return dataclasses.replace(demo, actions=demo.actions * [1, 1, 1, 1, 1, 1, -1])


def test_what_was_recorded_here_is_done_again_exactly(sim: Simulator, demo: Demo) -> None:
    checked = check_demo(sim, RenderSpec(), sim, demo)
    assert (checked.model, checked.succeeds, checked.replay_succeeds) == (RECORDED, True, True)
    assert (checked.replay_mm, checked.replay_deg) == (0.0, pytest.approx(0.0, abs=1e-5))
    found = verdict([checked])
    assert (found["result"], found["why"]) == ("passed", "")
    assert "1 demo executed" in in_words(found)


@pytest.mark.parametrize("wrong", [scaled, turned, late, let_go])
def test_what_does_something_else_fails(sim: Simulator, demo: Demo, wrong: Callable[[Demo], Demo]) -> None:
    found = verdict([check_demo(sim, RenderSpec(), sim, wrong(demo))])
    assert found["result"] == "failed"
    assert "of the recorded actions" in found["why"]


def test_a_try_that_begins_while_the_fingers_move(sim: Simulator, demo: Demo) -> None:
    """They close by steps that no state holds; the actions before tell how far they were."""
    actions = np.tile(demo.actions[:1] * 0, (60, 1))
    actions[:, 6] = np.where(np.arange(60) % 24 < 4, -1, 1)  # let go every 24 steps, just before a try begins
    sim.load_xml(demo.xml)
    sim.set_state(demo.states[0])
    states = []
    for action in actions:
        states.append(sim.state())
        sim.step(action)
    checked = check_demo(sim, RenderSpec(), sim, dataclasses.replace(demo, states=np.array(states), actions=actions))
    assert max(gap for _, _, gap in checked.chunks) < 0.5


def test_states_of_another_robosuite_are_set_in_a_model_of_today(sim: Simulator, demo: Demo) -> None:
    old = dataclasses.replace(demo, xml='<mujoco><asset><mesh file="gone.stl"/></asset></mujoco>')
    checked = check_demo(sim, RenderSpec(), sim, old)
    assert (checked.model, checked.succeeds) == (TODAYS, True)
    assert verdict([checked])["result"] == "passed"


def test_pictures_and_observations_are_compared(sim: Simulator, demo: Demo) -> None:
    sim.load_xml(demo.xml)
    frames = []
    for state in demo.states:
        sim.show_state(state)
        frames.append(sim.observe("image") | sim.low_dim())
    obs = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    seen = check_demo(sim, RenderSpec(), sim, dataclasses.replace(demo, obs=obs))
    assert (seen.psnr, seen.differing) == (99.0, [])
    upside_down = obs | {"agentview_image": obs["agentview_image"][:, ::-1], "object": obs["object"][:, ::-1]}
    seen = check_demo(sim, RenderSpec(), sim, dataclasses.replace(demo, obs=upside_down))
    assert seen.differing == ["object"]
    found = verdict([seen])
    assert found["result"] == "failed"
    assert "PSNR" in found["why"]


def test_limits_decide() -> None:
    def found(good: int, bad: int, psnr: float | None = None, succeeds: bool = True) -> dict:
        chunks = [(1.0, 1.0, 1.0)] * good + [(6.0, 1.0, 1.0)] * bad
        return verdict([ReplayResult("demo_0", TODAYS, succeeds, False, 90.0, 9.0, chunks, psnr, [])])

    assert found(9, 1)["result"] == "passed"  # a whole demo may drift, and fail
    assert found(8, 2)["result"] == "failed"
    assert found(9, 1, psnr=29.0)["result"] == "failed"
    assert found(9, 1, psnr=31.0)["result"] == "passed"
    assert found(9, 1, succeeds=False)["result"] == "passed"  # people also record what fails
    assert in_words(verdict([])) == "not verified: no demo was checked"


def test_psnr_is_that_of_the_textbook() -> None:
    flat = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(flat, flat) == 99
    assert psnr(flat, flat + np.uint8(10)) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(np.zeros_like(flat), np.full_like(flat, 255)) == pytest.approx(0)


@pytest.mark.parametrize("actions", ["delta", "absolute"])
def test_the_store_keeps_the_result(lift_demos: Path, tmp_path: Path, actions: str) -> None:
    done = convert(lift_demos, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state", actions, check=1))
    check = Store(tmp_path / "s.zarr").check
    assert check == done.check
    assert (check["result"], check["replay_successes"], len(check["demos"])) == ("passed", 1, 1)
    assert check["replay_mm"] < (1e-6 if actions == "delta" else 1.0)


def test_a_store_whose_demos_do_something_else_says_so(lift_demos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "d.hdf5"
    copy.write_bytes(lift_demos.read_bytes())
    with h5py.File(copy, "r+") as f:
        for demo in f["data"].values():
            demo["actions"][:, :3] *= 0.5
    convert(copy, tmp_path / "s.zarr", 1, lambda *_: None, ConvertOptions("state"))
    assert Store(tmp_path / "s.zarr").check["result"] == "failed"
