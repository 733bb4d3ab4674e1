"""Episodes in Gymnasium environments: observations are mapped, results are read from rewards and info."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import zarr
from conftest import ddp, ok, ok_json, read_video, refused
from numpy.typing import NDArray
from reach_env import SUCCESS_REWARD

from ddp_cli.action_limits import ActionLimits
from ddp_cli.errors import ConfigError, SimulatorError
from ddp_cli.evaluation.evaluation import evaluate, make_gymnasium_env
from ddp_cli.evaluation.rollout import Observation, run_episode
from ddp_cli.schema import ActionPart, Camera, Schema, Vector
from ddp_cli.sim.gymnasium_env import GymnasiumEnv, GymnasiumSettings
from ddp_cli.sim.gymnasium_observations import flatten
from ddp_cli.tasks import Task

PART = ActionPart(name="action", width=2)
SCHEMA = Schema(rate=10, cameras={"img": Camera(height=16, width=20)}, vectors={"pos": Vector(width=2)}, action=(PART,))
TASK = Task("reach", SCHEMA)
REACH = "reach_env:Reach-v0"


class ConstantAgent:
    """Always the same action; keeps what it observes."""

    obs, actions, n_obs_steps, action_limits = "image", "recorded", 2, ActionLimits.from_parts((PART,))

    def __init__(self, action: Sequence[float]) -> None:
        self.action, self.histories = np.array(action), list[Sequence[Observation]]()

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: Sequence[Observation]) -> NDArray[np.floating[Any]]:
        self.histories.append(history)
        return np.tile(self.action, (4, 1))


def make(**settings: Any) -> GymnasiumEnv:
    return GymnasiumEnv(TASK, "image", GymnasiumSettings(**{"id": REACH, **settings}))


def rewards(env: GymnasiumEnv, seed: int, action: Sequence[float], steps: int) -> list[float]:
    """The rewards of `steps` constant actions, by the environment alone."""
    env._env.reset(seed=seed)
    return [env._env.step(np.array(action, np.float32))[1] for _ in range(steps)]


def test_an_episode_ends_with_the_environment_and_scores_its_highest_reward() -> None:
    env, agent = make(), ConstantAgent([0.5, 0.5])
    result = run_episode(env, agent, 3)
    expected = rewards(env, 3, [0.5, 0.5], result.steps)
    assert result.success
    assert max(expected[:-1]) <= SUCCESS_REWARD < expected[-1]
    assert result.score == pytest.approx(max(expected))
    assert result.total_reward == pytest.approx(sum(expected))
    again = run_episode(make(), ConstantAgent([0.5, 0.5]), 3)
    assert dataclasses.replace(again, chunk_ms=0) == dataclasses.replace(result, chunk_ms=0)


def test_without_success_an_episode_lasts_to_its_limit() -> None:
    away = run_episode(make(), ConstantAgent([-0.5, -0.5]), 3)
    assert (away.success, away.steps) == (False, 12)
    assert run_episode(make(max_steps=5), ConstantAgent([-0.5, -0.5]), 3).steps == 5
    with pytest.raises(ConfigError, match="Add --max-steps"):
        make(id="reach_env:Endless-v0")
    assert run_episode(make(id="reach_env:Endless-v0", max_steps=7), ConstantAgent([-0.5, -0.5]), 3).steps == 7


def test_success_ends_an_episode_only_if_the_environment_ends_it() -> None:
    env = make(kwargs={"terminates": False})
    result = run_episode(env, ConstantAgent([1, 1]), 3)
    assert result.success
    assert result.steps < 12
    assert len(env._env.unwrapped.actions) == 12


def test_observations_are_found_by_their_kind_or_by_the_map() -> None:
    agent = ConstantAgent([0.1, 0.1])
    run_episode(make(), agent, 5)
    nested = ConstantAgent([0.1, 0.1])
    run_episode(make(kwargs={"nested": True}, sources={"pos": "state[1:3]"}), nested, 5)
    for mine, other in zip(agent.histories, nested.histories, strict=True):
        for step, other_step in zip(mine, other, strict=True):
            assert (step["img"].dtype, step["img"].shape, step["pos"].dtype) == (np.uint8, (16, 20, 3), np.float32)
            np.testing.assert_array_equal(step["img"], other_step["img"])
            np.testing.assert_array_equal(step["pos"], other_step["pos"])
    first, second = agent.histories[0]
    np.testing.assert_array_equal(first["pos"], second["pos"])  # the first observation is repeated
    assert (agent.histories[1][1]["pos"] > agent.histories[0][1]["pos"]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kwargs": {"nested": True}}, r"pos with 2.*--map pos=NAME"),
        ({"sources": {"pos": "position"}}, r"does not observe 'position'; it observes pixels \(16, 20, 3\), agent_pos"),
        ({"sources": {"img": "render"}}, r"render has uint8 \(30, 50, 3\).*img with uint8 \(16, 20, 3\)"),
        ({"sources": {"image": "pixels"}}, "does not observe 'image'.*It observes img, pos"),
        ({"kwargs": {"success": "done"}}, "does not report 'is_success'.*--success-key: done, x, terminated, reward"),
        ({"success_key": "name"}, "does not report 'name' as a number"),
        ({"success_key": "ragged"}, "does not report 'ragged' as a number"),
        ({"sources": {"img": "pixels[0:3]"}}, r"pixels\[0:3\] has elements, not images.*img with images \(16, 20, 3\)"),
        (
            {"kwargs": {"nested": True}, "sources": {"pos": "state[2:6]"}},
            r"'state\[2:6\]' goes beyond the 4 numbers of a step. Select some of state\[0:4\]",
        ),
        ({"kwargs": {"mode": "tuple"}}, r"does not observe 'img'; it observes 0 \(2,\)"),
        ({"score_key": "coverage"}, "does not report 'coverage'.*--score-key: is_success, x"),
    ],
)
def test_what_does_not_fit_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run_episode(make(**settings), ConstantAgent([0, 0]), 3)
    assert re.search(message, f"{error.value.message} {error.value.hint}"), error.value.message


def test_results_can_be_read_from_info() -> None:
    env = make(kwargs={"success": "done"}, success_key="done", score_key="x")
    result = run_episode(env, ConstantAgent([0.5, 0.1]), 3)
    env.reset(3)
    for _ in range(result.steps):
        env.step(np.array([0.5, 0.1]))
    assert result.score == pytest.approx(env._env.unwrapped.position[0])


def test_actions_are_clipped_to_the_action_space() -> None:
    env = make()
    env.reset(0)
    env.step(np.array([5.0, -5.0]))
    (action,) = env._env.unwrapped.actions
    assert (action.dtype, action.tolist()) == (np.float32, [1.0, -1.0])
    wide = Task("reach", SCHEMA.model_copy(update={"action": (ActionPart(name="action", width=3),)}))
    with pytest.raises(ConfigError, match="the policy predicts 3 numbers"):
        GymnasiumEnv(wide, "image", GymnasiumSettings(REACH))


def test_an_environment_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_env.py").write_text("missing")
    monkeypatch.syspath_prepend(tmp_path)
    for id, message in (
        ("nowhere/X-v0", "no module 'nowhere'"),
        ("reach_env:Other-v0", "cannot create the environment 'reach_env:Other-v0'"),
        ("broken_env:X-v0", "'broken_env' cannot be imported: NameError: name 'missing' is not defined"),
        ("./broken_env.py:X-v0", "'./broken_env.py' is not the name of a module"),
    ):
        with pytest.raises(SimulatorError, match=message):
            make(id=id)


DOCS = Path(__file__).parents[2] / "docs"


def distances_to_block(points: NDArray[np.generic], block: Any) -> list[float]:
    """[pixels], of each point to the nearest shape of the block; negative inside."""
    return [min(s.point_query(tuple(p)).distance for s in block.shapes) for p in points.astype(float).tolist()]


def test_the_points_of_the_push_t_example_lie_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS / "examples")
    schema = SCHEMA.model_copy(
        update={"cameras": {}, "vectors": {"agent_pos": Vector(width=2), "object": Vector(width=18)}}
    )
    env = GymnasiumEnv(Task("pusht", schema), "state", GymnasiumSettings("pusht_keypoints:PushTKeypoints-v0"))
    assert env.task.horizon == 300
    env.reset(300_000)
    env.step(np.array([100.0, 400.0]))
    observation, push_t = env.observe("state"), env._env.unwrapped
    np.testing.assert_allclose(observation["agent_pos"], push_t.agent.position, atol=1e-3)
    points = observation["object"].reshape(9, 2)
    assert np.ptp(points, axis=0).min() > 50
    assert max(distances_to_block(points, push_t.block)) < 3.5  # [pixels]


def test_mirrored_demonstrations_of_push_t_are_what_the_simulator_does(tmp_path: Path) -> None:
    """From the mirrored start, the mirrored actions move the block to where the mirrored demonstration has it."""
    rng = np.random.default_rng(0)
    simulated = gymnasium.make(
        "gym_pusht:gym_pusht/PushT-v0", obs_type="state", disable_env_checker=True, render_mode="rgb_array",
        visualization_width=96, visualization_height=96,
    )  # fmt: skip
    push_t = simulated.unwrapped
    state, _ = simulated.reset(seed=300_000)
    target = state[2:4]  # through the block
    actions = np.linspace(state[:2], 2 * target - state[:2], 20) + rng.uniform(-5, 5, (20, 2))
    states, images = [], []
    for action in actions:
        states.append(state)
        images.append(simulated.render())
        state = simulated.step(action)[0]
    assert np.abs(states[-1][2:] - states[0][2:]).max() > 5  # the block was pushed
    demos = {
        "data/img": np.array(images, np.float32), "data/state": np.array(states, np.float32),
        "data/action": actions.astype(np.float32), "meta/episode_ends": np.array([20]),
    }  # fmt: skip
    group = zarr.create_group(tmp_path / "demos.zarr")
    for name, array in demos.items():
        group.create_array(name, data=array)
    script = [sys.executable, DOCS / "examples" / "pusht_mirrored.py", tmp_path / "demos.zarr", tmp_path / "out.zarr"]
    subprocess.run(script, check=True)
    out = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert out["meta/episode_ends"][:].tolist() == [20]
    mirrored = out["data/state"][:].astype(float)
    simulated.reset(seed=0)
    push_t.agent.position = mirrored[0, :2].tolist()
    push_t.block.angle = mirrored[0, 4]  # before the position, which it would change
    push_t.block.position = mirrored[0, 2:4].tolist()
    push_t.space.step(1e-6)
    for action, following in zip(out["data/action"][:-1], mirrored[1:], strict=True):
        state = simulated.step(action)[0]
        np.testing.assert_allclose(state[:4], following[:4], atol=0.1)
        np.testing.assert_allclose(np.exp(1j * state[4]), np.exp(1j * following[4]), atol=1e-3)
    assert np.abs(simulated.render() - out["data/img"][-1]).mean() < 2
    assert max(distances_to_block(out["data/keypoint"][-1], push_t.block)) < 3.5  # [pixels]


def test_the_example_in_the_docs_is_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(
        r"^```python\n(# my_robot.py.*?)^```$", (DOCS / "evaluation.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "docs_robot.py").write_text(code.replace("Reach-v0", "DocsReach-v0"))
    monkeypatch.syspath_prepend(tmp_path)
    schema = SCHEMA.model_copy(update={"cameras": {}, "vectors": {"position": Vector(width=2)}})
    env = GymnasiumEnv(Task("reach", schema), "state", GymnasiumSettings("docs_robot:DocsReach-v0"), film=True)
    agent = ConstantAgent([0, 0])
    agent.obs = "state"
    assert run_episode(env, agent, 1).steps == 100
    assert env.render().shape == (240, 240, 3)


def test_success_may_be_reported_at_the_end_alone() -> None:
    expected = run_episode(make(), ConstantAgent([0.5, 0.5]), 3)
    result = run_episode(make(kwargs={"mode": "at the end"}), ConstantAgent([0.5, 0.5]), 3)
    assert dataclasses.replace(result, chunk_ms=0) == dataclasses.replace(expected, chunk_ms=0)
    with pytest.raises(ConfigError, match="does not report 'is_success'"):
        run_episode(make(kwargs={"mode": "at the end"}), ConstantAgent([-1, -1]), 3)


def test_success_may_be_reported_in_any_step() -> None:
    for action, success, steps in (([1, 1], True, 4), ([-1, -1], False, 12)):
        settings = {"mode": "success is of one step", "success": "success", "terminates": False}
        result = run_episode(make(kwargs=settings), ConstantAgent(action), 3)
        assert (result.success, result.steps) == (success, steps)


def test_an_environment_may_write_all_images_into_one_array() -> None:
    agents = [ConstantAgent([0.1, 0.1]) for _ in range(2)]
    for agent, mode in zip(agents, ("one image", ""), strict=True):
        run_episode(make(kwargs={"mode": mode}), agent, 5)
    for mine, other in zip(*(agent.histories for agent in agents), strict=True):
        for step, other_step in zip(mine, other, strict=True):
            np.testing.assert_array_equal(step["img"], other_step["img"])


def test_tensors_of_a_gpu_are_read() -> None:
    class Tensor:
        def __array__(self, *_: object, **__: object) -> NDArray[Any]:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    class MovableTensor(Tensor):
        def cpu(self) -> NDArray[Any]:
            return np.arange(2.0)

    arrays = flatten({"a": MovableTensor(), "b": Tensor()})
    assert {name: value.tolist() for name, value in arrays.items()} == {"a": [0.0, 1.0]}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("stop_after", [1, 99])
def test_processes_of_an_environment_end_with_the_evaluation(tmp_path: Path, workers: int, stop_after: int) -> None:
    """Also where the evaluation is stopped, and its workers are terminated."""
    settings = GymnasiumSettings(REACH, {"pid_file": str(tmp_path / "pid")})

    def stop(_: object) -> None:
        nonlocal stop_after
        stop_after -= 1
        if not stop_after:
            raise RuntimeError("stopped")

    make_agent = functools.partial(ConstantAgent, [0.1, 0.1])
    make_env = functools.partial(make_gymnasium_env, TASK, settings)
    with contextlib.suppress(RuntimeError):
        evaluate(make_agent, make_env, range(3), workers, stop)
    gc.collect()
    pid = int((tmp_path / "pid").read_text())
    assert "sleep" not in subprocess.run(["ps", "-p", str(pid), "-o", "comm="], capture_output=True, text=True).stdout  # noqa: PLW1510


def test_failures_of_the_environment_are_one_line() -> None:
    for mode, message in (
        ("forgets", "no longer observes 'agent_pos'"), ("blind", "values of pos that are not finite"),
        ("vectorized", r"reward is array\(\[0., 0.\]\), not a number"),
    ):  # fmt: skip
        with pytest.raises(SimulatorError, match=message):
            run_episode(make(kwargs={"mode": mode}), ConstantAgent([0, 0]), 3)
    env = make(kwargs={"mode": "fractions"})
    env.reset(3)
    with pytest.raises(SimulatorError, match=r"renders float64 of shape \(30, 50, 3\)"):
        env.render()
    assert run_episode(make(kwargs={"mode": "no info"}, success_key="terminated"), ConstantAgent([1, 1]), 3).success
    with pytest.raises(SimulatorError, match="'reach_env:Reach-v0' failed in step: AssertionError: the cable is loose"):
        run_episode(make(kwargs={"mode": "fails"}), ConstantAgent([0, 0]), 3)
    with pytest.raises(SimulatorError, match="reports a reward or score that is not finite"):
        run_episode(make(kwargs={"mode": "nan"}), ConstantAgent([0, 0]), 3)


# -- commands -------------------------------------------------------------------------------------


def test_eval_reports_scores_and_rollout_films_the_same_episodes(
    reach_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("eval", reach_run, "--env", REACH, "-n", 3, "--seed", 5)
    one, two = (ok_json(*command, "--workers", n) for n in (1, 2))
    for key in ("score", "score_interval_95", "total_reward", "success_rate"):
        assert one[key] == two[key]
    scores = [episode["score"] for episode in one["episodes"]]
    assert one["score"] == pytest.approx(np.mean(scores))
    assert one["env"]["id"] == REACH
    assert one["seeds_also_used_for"] == []
    reports = list((reach_run / "eval").glob("*reach_env_Reach-v0*.json"))
    assert [json.loads(path.read_text())["score"] for path in reports] == [one["score"]]
    # The environment prints; another option makes another report.
    printing = ok_json(*command, "--env-arg", "mode=print", "--workers", 1)
    assert printing["score"] == one["score"]
    assert len(list((reach_run / "eval").glob("*reach_env_Reach-v0*.json"))) == 2
    single = ok_json("eval", reach_run, "--env", REACH, "-n", 1)
    assert single["score_interval_95"] is None
    assert "(one episode)" in ok(ddp("eval", reach_run, "--env", REACH, "-n", 1, "--last", 2)).output
    table = ok(ddp(*command)).stdout
    assert f"{one['score']:.3f}" in table
    assert "held" not in table

    filmed = ok_json("rollout", reach_run, "--env", REACH, "--seed", 6, "--video", "v.mp4")
    assert filmed["episodes"][0]["score"] == scores[1]
    frames = read_video(Path("v.mp4"))
    assert frames.shape[:3] == (len(frames), 512, 512)
    assert frames.shape[0] == 13  # before every action, and after the last
    assert frames[0, 256, 256].tolist() == pytest.approx([200, 200, 200], abs=6)
    ok(ddp("rollout", reach_run, "--env", REACH, "--grid", "1x2", "--video", "grid.mp4"))
    failures = [episode["seed"] for episode in one["episodes"] if not episode["success"]]
    again = ok_json("rollout", "--failures", reports[0], "--video", "f.mp4")
    assert [episode["seed"] for episode in again["episodes"]] == failures
    other = ddp("rollout", "--failures", reports[0], "--env", REACH, "--max-steps", 3, "--video", "g.mp4")
    assert "was evaluated in 'reach_env:Reach-v0' with other options" in refused(other)


def test_a_dry_run_observes_until_the_limit_of_the_environment(reach_run: Path) -> None:
    command = ("run", reach_run, "--robot", "sim", "--env", REACH, "--dry-run", "--sync")
    assert ok_json(*command)["episodes"] == [{"success": False, "steps": 12}]
    assert len(ok(ddp(*command, "--max-steps", 5)).stdout.splitlines()[0].split()) == 2, "an action"


def test_options_of_an_environment_need_one(reach_run: Path) -> None:
    assert "--map describes an environment" in refused(ddp("eval", reach_run, "--map", "img=pixels"))
    assert "--map 'img' maps nothing" in refused(ddp("eval", reach_run, "--env", REACH, "--map", "img"))
    assert "Add --env" in refused(ddp("rollout", reach_run))


def test_modules_of_the_current_folder_are_found(
    reach_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (Path(__file__).parents[1] / "reach_env.py").read_text()
    (tmp_path / "my_robot.py").write_text(source.replace("Reach-v0", "MyRobot-v0"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert ok_json("eval", reach_run, "--env", "my_robot:MyRobot-v0", "-n", 2, "--workers", 1)["lost"] == []
