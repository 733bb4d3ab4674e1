"""Open-loop evaluation: errors of action parts in their units, baselines, and which episodes are held out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import TINY, ddp, ok, ok_json, refused
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ddp_cli.action_limits import ActionLimits
from ddp_cli.data.store import Store
from ddp_cli.errors import DataError
from ddp_cli.evaluation.open_loop import EpisodeChunks, open_loop_report, part_errors
from ddp_cli.evaluation.rollout import Observation
from ddp_cli.evaluation.stored_reports import read_stored_reports
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.report.runs import run_evaluations
from ddp_cli.robots import delta_parts
from ddp_cli.schema import ActionPart
from ddp_cli.training.held_out import Split, predict_episodes, split_episodes
from ddp_cli.training.run_folder import store_identity
from ddp_cli.training.validation_split import validation_episodes

LENGTHS = [6, 9, 6, 5]
TA = 4


@pytest.mark.parametrize("rotation", ["axis-angle", "quaternion-xyzw", "quaternion-wxyz", "rotation-6d"])
def test_errors_of_rotations_are_angles(rotation: str) -> None:
    rng = np.random.default_rng(0)
    a = Rotation.from_rotvec(rng.normal(size=(6, 3)))
    b = Rotation.from_rotvec(np.radians(30) * np.array([0.6, 0.0, 0.8])) * a

    def values(r: Rotation) -> NDArray[np.float64]:
        quaternion = r.as_quat()
        return {
            "axis-angle": r.as_rotvec(),
            "quaternion-xyzw": quaternion,
            "quaternion-wxyz": np.roll(quaternion, 1, axis=1),
            "rotation-6d": r.as_matrix()[:, :2].reshape(6, 6),
        }[rotation]

    width = values(a).shape[1]
    parts = [ActionPart(name="joint", width=1), ActionPart(name="turn", width=width, rotation=rotation)]  # type: ignore[arg-type]
    recorded = np.concatenate([np.zeros((6, 1)), values(a)], axis=1).reshape(2, 3, -1)
    predicted = np.concatenate([np.full((6, 1), -0.5), values(b)], axis=1).reshape(2, 3, -1)
    recorded[1, 2] = np.nan
    errors = part_errors(parts, predicted, recorded)
    known = np.array([[True] * 3, [True, True, False]])
    np.testing.assert_allclose(errors["turn"][known], 30, atol=1e-3)
    np.testing.assert_allclose(errors["joint"][known], 0.5)
    assert np.isnan(errors["turn"][~known]).all()
    assert np.isnan(errors["joint"][~known]).all()


@pytest.mark.parametrize("rotation", ["quaternion-xyzw", "quaternion-wxyz", "rotation-6d"])
def test_errors_of_what_is_no_rotation_are_unknown(rotation: str) -> None:
    """Recorders write zeros where a pose is missing; the baselines repeat them."""
    width = 6 if rotation == "rotation-6d" else 4
    part = ActionPart(name="turn", width=width, rotation=rotation)  # type: ignore[arg-type]
    recorded = np.tile(np.eye(width)[0] + np.eye(width)[-1], (2, 3, 1))  # any rotation
    predicted = recorded.copy()
    recorded[0, 1] = predicted[1, 2] = 0
    errors = part_errors([part], predicted, recorded)["turn"]
    np.testing.assert_allclose(errors, [[0, np.nan, 0], [0, 0, np.nan]], atol=1e-3)

    def episode(name: str, recorded: NDArray[np.float64]) -> EpisodeChunks:
        return EpisodeChunks(name, np.arange(2), recorded, dict.fromkeys(("policy", "hold", "nearest"), predicted))

    report = open_loop_report([part], [episode("a", recorded), episode("b", np.zeros_like(recorded))])["turn"]
    assert report["policy"]["error"] == pytest.approx(0, abs=1e-3)  # of the episode whose rotations are known
    assert report["policy"]["interval_95"] is None
    assert report["policy"]["episodes"][1] is None
    unknown = np.zeros_like(recorded)  # only what the baselines repeat is no rotation
    methods = {"policy": predicted, "hold": unknown, "nearest": unknown}
    held = open_loop_report([part], [EpisodeChunks("a", np.arange(2), recorded, methods)])["turn"]
    assert held["better_than"] == {"hold": 0, "nearest": 0}
    json.dumps(report, allow_nan=False)


def test_rotations_of_robosuite_are_fractions_of_half_a_radian() -> None:
    parts = delta_parts()
    predicted = np.zeros((1, 1, 7))
    predicted[..., 5] = 1.0
    errors = part_errors(parts, predicted, np.zeros((1, 1, 7)))
    np.testing.assert_allclose(errors["rotation"], np.degrees(0.5))


def test_means_are_over_episodes_and_steps() -> None:
    part = ActionPart(name="action", width=2, names=("x", "y"), unit="rad")

    def episode(name: str, errors: Sequence[Sequence[float]]) -> EpisodeChunks:
        """Chunks whose value x is off by `errors` (K, Ta), and y by 0."""
        recorded = np.zeros((len(errors), 2, 2))
        off = np.stack([np.array(errors), np.zeros((len(errors), 2))], axis=-1)
        return EpisodeChunks(
            name, np.arange(len(errors)), recorded, {"policy": off, "hold": 2 * off, "nearest": 0 * off}
        )

    report = open_loop_report([part], [episode("a", [[1, 3]]), episode("b", [[2, 2], [2, 6], [2, 4]])])["action"]
    assert report["policy"]["episodes"] == [1.0, 1.5]
    assert report["policy"]["error"] == 1.25
    assert report["policy"]["by_step"] == [(0.5 + 1) / 2, (1.5 + 2) / 2]
    assert report["values"] == {"x": 2.5, "y": 0.0}
    assert report["better_than"] == {"hold": 2, "nearest": 0}
    half = 12.706 * 0.25  # Student's t of one degree of freedom, standard error .25
    assert report["policy"]["interval_95"] == pytest.approx([1.25 - half, 1.25 + half], abs=1e-3)
    assert open_loop_report([part], [episode("a", [[1, 3]])])["action"]["policy"]["interval_95"] is None


class RecordedAgent:
    """Knows the recording: its observation is the number of the step, its prediction the recorded actions."""

    obs, actions, n_obs_steps = "state", "recorded", 2

    def __init__(self, actions: NDArray[np.float64]) -> None:
        self.recorded, self.histories = actions, list[list[float]]()
        self.action_limits = ActionLimits.from_parts((ActionPart(name="action", width=2),))

    def reset(self, seed: int) -> None:
        pass

    def act(self, history: Sequence[Observation]) -> NDArray[np.floating[Any]]:
        steps = [float(step["step"][0]) for step in history]
        self.histories.append(steps)
        rows = np.minimum(int(steps[-1]) + np.arange(TA), len(self.recorded) - 1)
        return self.recorded[rows]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four episodes; the third one repeats the first one, but for the number of its steps."""
    ends = np.cumsum(LENGTHS)
    rng = np.random.default_rng(0)
    action = rng.normal(size=(ends[-1], 2)).astype(np.float32)
    pose = rng.normal(size=(ends[-1], 3)).astype(np.float32)
    for array in (action, pose):
        array[15:21] = array[:6]
    root = zarr.open_group(tmp_path / "r.zarr", mode="w", zarr_format=2)
    step = np.arange(ends[-1], dtype=np.float32)[:, None]
    for key, value in {"step": step, "pose": pose, "action": action}.items():
        root.create_array(f"data/{key}", data=value)
    root.create_array("meta/episode_ends", data=ends)
    ok(ddp("convert", tmp_path / "r.zarr", "--rate", 10, "--out", tmp_path / "s.zarr"))
    return Store(tmp_path / "s.zarr")


def test_chunks_start_at_every_step_and_end_with_the_episode(store: Store) -> None:
    actions = store.read("action").astype(np.float64)
    config = PolicyConfig(task=store.task, obs="state", actions="recorded", horizon=8, n_action_steps=TA)
    agent, split = RecordedAgent(actions), Split([1, 2, 3], [0])
    (chunks,) = predict_episodes(agent, config, store, split, [0], lambda _: None)
    assert chunks.steps.tolist() == [1, 2, 3, 4, 5]
    assert agent.histories[0] == [0, 1]
    np.testing.assert_array_equal(chunks.recorded[0], actions[1:5])
    assert np.isfinite(chunks.recorded[4]).all(1).tolist() == [True, False, False, False]
    known = np.isfinite(chunks.recorded)
    np.testing.assert_array_equal(chunks.predicted["policy"][known], chunks.recorded[known])
    np.testing.assert_array_equal(chunks.predicted["hold"], np.repeat(actions[:5, None], TA, axis=1))


def test_the_nearest_window_is_found_in_the_training_episodes(store: Store) -> None:
    config = PolicyConfig(task=store.task, obs="state", actions="recorded", horizon=8, n_action_steps=TA)
    agent = RecordedAgent(store.read("action").astype(np.float64))
    config.task.schema.vectors.pop("step")  # only `pose` is compared
    with_copy, without = (
        predict_episodes(_without_step(agent, store), config, store, split, [0], lambda _: None)[0]
        for split in (Split([1, 2, 3], [0]), Split([1, 3], [0, 2]))
    )
    known = np.isfinite(with_copy.recorded)
    np.testing.assert_array_equal(with_copy.predicted["nearest"][known], with_copy.recorded[known])
    assert not np.allclose(without.predicted["nearest"][known], without.recorded[known])


def _without_step(agent: RecordedAgent, store: Store) -> Any:
    """The agent for a policy that observes `pose` alone."""
    agent.act = lambda _: np.zeros((TA, 2))  # type: ignore[method-assign]
    return agent


# -- ddp eval -------------------------------------------------------------------------------------


def test_eval_without_a_simulator_compares_with_held_out_episodes(reach_run: Path, tmp_path: Path) -> None:
    report = ok_json("eval", reach_run)
    held_out = np.flatnonzero(validation_episodes(3, 0.1, 42))
    assert [episode["name"] for episode in report["episodes"]] == [str(i) for i in held_out]
    assert report["kind"] == "open loop"
    assert report["held_out"] is True
    names = sorted(path.name for path in (reach_run / "eval").glob("*open-loop*"))
    assert [Path(name).suffix for name in names] == [".json", ".png"]
    assert json.loads((reach_run / "eval" / names[0]).read_text())["parts"] == report["parts"]
    table = " ".join(ok(ddp("eval", reach_run, "--out", tmp_path / "x.json")).stdout.split())
    assert "not a success rate" in table
    assert f"policy {report['parts']['action']['policy']['error']:.3g} one episode" in table
    assert (tmp_path / "x.json").is_file()
    assert (tmp_path / "x.png").is_file()
    assert "x.json' exists" in refused(ddp("eval", reach_run, "--out", tmp_path / "x.json"))
    ok(ddp("eval", reach_run, "--out", tmp_path / "x.json", "--overwrite"))


def test_an_exported_policy_knows_its_held_out_episodes(reach_run: Path, tmp_path: Path) -> None:
    ok(ddp("export", reach_run, "--out", tmp_path / "policy"))
    assert "Name it with --data" in refused(ddp("eval", tmp_path / "policy"))
    store = json.loads((reach_run / "config.json").read_text())["data"]
    exported = ok_json("eval", tmp_path / "policy", "--data", store, "--out", tmp_path / "e.json")
    report = ok_json("eval", reach_run)
    assert exported["held_out"] is True
    assert exported["parts"]["action"]["policy"]["error"] == pytest.approx(
        report["parts"]["action"]["policy"]["error"], rel=1e-4
    )


def test_episodes_of_another_store_are_all_compared(reach_run: Path, tmp_path: Path) -> None:
    store = Path(json.loads((reach_run / "config.json").read_text())["data"])
    ok(ddp("convert", store, "--only", "1:", "--out", tmp_path / "part.zarr"))
    report = ok_json("eval", reach_run, "--data", tmp_path / "part.zarr", "--out", tmp_path / "x.json")
    assert (report["held_out"], [e["name"] for e in report["episodes"]]) == (False, ["1", "2"])
    in_run = ok_json("eval", reach_run / "checkpoints/last", "--data", tmp_path / "part.zarr")
    assert Path(in_run["checkpoint"]).name.startswith("step-")
    shown = [error["episodes"] for error in run_evaluations(reach_run)["errors"]]
    assert "2 of part.zarr, may have been trained on" in shown
    limited = ok_json(
        "eval", reach_run, "--data", tmp_path / "part.zarr", "-n", 1, "--out", tmp_path / "x.json", "--overwrite"
    )
    assert [e["name"] for e in limited["episodes"]] == ["1"]


def test_a_single_episode_is_compared_without_a_nearest_window(reach_run: Path, tmp_path: Path) -> None:
    store = Path(json.loads((reach_run / "config.json").read_text())["data"])
    ok(ddp("convert", store, "--only", "1:2", "--out", tmp_path / "one.zarr"))
    report = ok_json("eval", reach_run, "--data", tmp_path / "one.zarr")
    for part in report["parts"].values():
        assert part["policy"]["error"] > 0
        assert (part["nearest"]["error"], part["better_than"]["nearest"]) == (None, 0)
    (error, *_) = read_stored_reports((reach_run / "checkpoints/last").resolve()).open_loop[0].errors
    assert (error.baselines["nearest"], error.baselines["hold"] is None) == (None, False)
    ok(ddp("export", reach_run, "--out", tmp_path / "policy", "--data", store))
    card = (tmp_path / "policy/README.md").read_text()
    assert re.search(r"\| one episode \| [\d.]+ \| - \|", card)


def test_what_needs_episodes_is_refused(reach_run: Path) -> None:
    assert "--last does not go with --data" in refused(ddp("eval", reach_run, "--last", 2, "--data", "x.zarr"))
    for arguments in (
        ["--sweep", "inference-steps=1"], ["--until-ci", "0.1"], [reach_run], ["--seed", 0], ["--workers", 2],
    ):  # fmt: skip
        assert "does not go with recorded episodes" in refused(ddp("eval", reach_run, *arguments))
    assert "Add --env" in refused(ddp("eval", reach_run, "--last", 2))


def test_seeds_that_nothing_starts_from_are_not_warned_of(reach_run: Path, tmp_path: Path) -> None:
    result = ok(ddp("eval", reach_run, "-n", 150_000, "--out", tmp_path / "x.json"))  # as seeds, those of training
    assert "warning" not in result.stderr


def test_a_policy_of_a_simulator_can_be_compared_with_recorded_episodes(trained: Path, lift_zarr: Path) -> None:
    report = ok_json("eval", trained / "lift/tiny", "--data", lift_zarr)
    assert report["held_out"] is True
    assert {name: part["unit"] for name, part in report["parts"].items()}["rotation"] == "degrees"
    shutil.rmtree(trained / "lift/tiny/eval")


def test_initial_weights_may_have_been_trained_on_the_held_out_episodes(reach_run: Path, tmp_path: Path) -> None:
    config = json.loads((reach_run / "config.json").read_text())
    settings = [f"--set={key}={value}" for key, value in {**TINY, "crop_ratio": 1.0, "encoder": "small"}.items()]
    command = ("train", "--task", "reach", "--data", config["data"], "--steps", 2, "--preset", "laptop", *settings)
    ok(ddp(*command, "--init-from", reach_run, "--seed", 1, "--runs", tmp_path / "runs", "--name", "b"))
    result = ddp("eval", tmp_path / "runs/reach/b", "--json")
    assert json.loads(ok(result).stdout)["held_out"] is False
    assert "whether these episodes were trained on is not known: the training started from" in " ".join(
        result.stderr.split()
    )


def test_a_policy_of_all_episodes_has_none_to_compare_with(store: Store) -> None:
    meta = {"store": store_identity(store), "train": {"val_ratio": 0.0, "seed": 1}}
    with pytest.raises(DataError, match="trained on all 4 episodes"):
        split_episodes(store, meta)
    assert split_episodes(store, {"store": None}).held_out == [0, 1, 2, 3]


def test_a_checkpoint_that_does_not_know_the_observations_knows_its_episodes(store: Store) -> None:
    identity = store_identity(store)
    meta = {"store": identity, "train": {"val_ratio": 0.5, "seed": 1}}
    split = split_episodes(store, meta)
    assert split.held_out != [0, 1, 2, 3]
    older = {key: value for key, value in identity.items() if key != "observations_sha256"}
    assert split_episodes(store, meta | {"store": older}) == split
    assert split_episodes(store, meta | {"store": identity | {"observations_sha256": "0" * 64}}).doubt
