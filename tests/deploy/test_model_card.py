"""README.md of exported folders: what it says about the policy, its evaluations, and its picture."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ddp, ok
from deploy.exporting import random_policy
from huggingface_hub import ModelCard
from PIL import Image

from ddp_cli.data.store import Store
from ddp_cli.deploy.episode_picture import HEIGHT, MAX_BYTES, encode_frames, picture_of_store
from ddp_cli.deploy.export import CardSources, ExportOptions, export_policy
from ddp_cli.deploy.model_card import format_model_card
from ddp_cli.deploy.model_card_results import model_index
from ddp_cli.deploy.model_card_tables import action_table, obs_table
from ddp_cli.evaluation.report import EvalReport
from ddp_cli.evaluation.stored_reports import StoredReports

SAFETENSORS = ("--format", "safetensors")


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a run without evaluations."""
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(trained / "lift/tiny", tmp_path / "runs/lift/tiny", symlinks=True))
    shutil.rmtree(copy / "eval", ignore_errors=True)
    (copy / "eval").mkdir()
    return copy


def write_report(run: Path, name: str, successes: list[bool], first_seed: int = 100_000, **changes: Any) -> None:
    checkpoint = (run / "checkpoints/last").resolve()
    report = {
        "checkpoint": str(checkpoint), "sampler": "ddim", "inference_steps": 10, "engine": "onnx",
        "episodes": [{"seed": first_seed + i, "success": success} for i, success in enumerate(successes)],
    }  # fmt: skip
    (run / "eval" / name).write_text(json.dumps(report | changes))


def card_of(run: Path, *options: object) -> str:
    ok(ddp("export", run, *SAFETENSORS, *options, "--out", "policy", "--overwrite"))
    return Path("policy/README.md").read_text()


def test_the_schema_is_shown_with_units_and_limits(run: Path) -> None:
    card = card_of(run)
    assert "| `agentview_image` | (84, 84, 3) | uint8 | RGB, 0 to 255, upright |" in card
    assert "| `robot0_eef_pos` | (3,) | float32 | m, position of the end effector, world frame |" in card
    assert "| position | 0 to 2 | delta | 0.05 m, base frame | -1 to 1 |" in card
    assert "| gripper | 6 | gripper | 1 closes, -1 opens | -1 to 1 |" in card
    assert "At 20 Hz, the policy takes the last 2 observations and predicts 10 actions, of which 8 are executed" in card


def test_names_and_units_of_a_recording_do_not_break_tables() -> None:
    obs = {"state": {"shape": [2], "dtype": "float32", "unit": "m | rad\nmixed", "names": ["x|y", "z"]}}
    assert obs_table(obs).splitlines()[2] == "| `state` | (2,) | float32 | m \\| rad mixed | x\\|y, z |"
    obs["state"] = {**obs["state"], "unit": "<b>\\|", "names": []}
    assert obs_table(obs).splitlines()[2] == "| `state` | (2,) | float32 | &lt;b&gt;\\\\\\| |"
    parts = [
        {"name": "joints", "width": 2, "names": ["a", "b"]}, {"name": "gripper", "width": 1, "gripper": True},
        {"name": "rotation", "width": 6, "rotation": "rotation-6d", "representation": "absolute"},
    ]  # fmt: skip
    limits = {"low": [-1.0, None, 0.0, *[None] * 6], "high": [1.0, None, 0.04, *[None] * 6], "rotations": [3]}
    assert action_table(parts, limits).splitlines()[2:] == [
        "| joints | 0 to 1 | as recorded | -1 to 1; none | a, b |", "| gripper | 2 | gripper | 0 to 0.04 |  |",
        "| rotation | 3 to 8 | absolute, rotation-6d | orthonormalized |  |",
    ]  # fmt: skip


def test_a_unit_adds_no_lines_to_the_code_of_the_card(policy_folder: Path) -> None:
    spec = json.loads((policy_folder / "policy.json").read_text())
    spec["obs"]["robot0_eef_pos"]["unit"] = "m\nimport this\r```\u2028"
    card = format_model_card(spec, {}, {}, StoredReports(), None)
    assert '"robot0_eef_pos": ...,  # float32 (3,): m import this ```\n' in card


def test_model_hubs_read_every_name() -> None:
    name = 'a: "b"\n---\n\U0001f916'
    report = EvalReport(Path(), "", [], "ddim", 4, "onnx", env={"id": name}, seeds=[1, 2])
    index = yaml.safe_load(model_index("lift", [report]))["model-index"]
    assert index[0]["results"][0]["dataset"]["name"] == name


def test_training_is_described_without_paths(run: Path, tmp_path: Path, lift_store: Store) -> None:
    card = card_of(run)
    assert f"| data | 2 demonstrations, {lift_store.episode_ends[-1]:,} steps; recording with SHA-256 `" in card
    assert "| preset | laptop |" in card
    assert "| steps | 4 of batch size 4 |" in card
    assert str(tmp_path) not in card
    assert str(lift_store.path) not in card


def test_the_weights_that_training_started_from_are_named_without_their_folder(tmp_path: Path) -> None:
    meta = {"init_from": "/home/someone/runs/lift/a/checkpoints/step-00000040"}
    out = tmp_path / "policy"
    export_policy(random_policy(obs="state"), meta, ExportOptions(format="safetensors"), out, dict)
    assert json.loads((out / "policy.json").read_text())["init_from"] == "step-00000040"
    assert "| started from | the weights of another policy |" in (out / "README.md").read_text()
    assert "someone" not in (out / "README.md").read_text()


def test_evaluations_of_the_checkpoint_are_shown_and_no_others(run: Path) -> None:
    other = str(run / "checkpoints/step-00000002")
    write_report(run, "a.json", [True, True, False, True])
    write_report(run, "b.json", [False] * 7, checkpoint=other)
    write_report(run, "c.json", [True] * 3, 200_000, sampler=None, inference_steps=None)
    (run / "eval/damaged.json").write_text("{")
    card = card_of(run)
    assert "| 3 of 4 | 30.1% to 95.4% | ddim, 10 steps | 100000 |\n" in card
    assert "| 3 of 3 | 43.9% to 100.0% | that of the checkpoint | 200000 |\n" in card
    assert "of 7" not in card
    assert "training chooses the best checkpoint" in card
    assert "None of them used the sampler" not in card  # one does not say which it used


def test_a_reader_is_told_if_the_export_differs_from_what_was_evaluated(run: Path) -> None:
    write_report(run, "a.json", [True, False])
    sentence = "None of them used the sampler of this export"
    assert f"{sentence} (ddim, 4 steps)" in card_of(run, "--sampler", "ddim", "--inference-steps", 4)
    assert sentence not in card_of(run, "--sampler", "ddim", "--inference-steps", 10)


def test_scores_and_environments_are_shown(run: Path) -> None:
    env = {"id": "gym_pusht/PushT-v0"}
    write_report(run, "a.json", [True, False], score=0.731, score_interval_95=[0.6, 0.85], env=env)
    card = card_of(run)
    assert (
        "| 1 of 2 | 9.5% to 90.5% | ddim, 10 steps | 100000 | 0.731 (0.600 to 0.850) | gym_pusht/PushT-v0 |\n" in card
    )


def test_model_hubs_read_the_results(run: Path) -> None:
    write_report(run, "a.json", [True, True, False, True])
    write_report(run, "b.json", [True, False], score=0.5, score_interval_95=None, env={"id": 'odd: "id"'})
    data = ModelCard(card_of(run)).data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("ddp", "robotics", ["diffusion-policy", "robosuite"])
    assert [(r.dataset_name, r.task_type, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("lift", "robotics", "success_rate", 0.75),
        ('odd: "id"', "robotics", "success_rate", 0.5),
        ('odd: "id"', "robotics", "score", 0.5),
    ]
    assert data.eval_results[0].metric_name == "success rate, 4 episodes from seed 100000, ddim, 10 steps"


def test_without_evaluations_the_card_says_so(run: Path) -> None:
    card = card_of(run)
    assert "Not evaluated yet" in card
    assert "`ddp eval CHECKPOINT`" in card
    assert ModelCard(card).data.eval_results is None


@pytest.mark.slow
def test_errors_on_recorded_episodes_are_shown(
    reach_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ok(ddp("eval", reach_run))
    (report,) = [json.loads(path.read_text()) for path in (reach_run / "eval").glob("*.json")]
    card = card_of(reach_run)
    error = report["parts"]["action"]
    assert (
        f"| action [as recorded] | {error['policy']['error']:.3g} | one episode | {error['hold']['error']:.3g} |"
        in card
    )
    assert "it is not a success rate" in card
    assert "robosuite" not in card


def test_the_picture_shows_a_recorded_episode(run: Path, lift_store: Store) -> None:
    assert "![A recorded episode](episode.jpg)" in card_of(run)
    file = Path("policy/episode.jpg").read_bytes()
    assert file == picture_of_store(lift_store).jpeg  # type: ignore[union-attr]
    image = np.asarray(Image.open(io.BytesIO(file))).astype(float)
    assert image.shape == (HEIGHT, 6 * HEIGHT, 3)
    last = Image.fromarray(lift_store.read("agentview_image")[lift_store.episode_ends[0] - 1])
    expected = np.asarray(last.resize((HEIGHT, HEIGHT), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(image[:, -HEIGHT:] - expected).mean() < 6  # JPEG


def test_pictures_are_small() -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (480, 640, 3), np.uint8) for i in range(6)]
    assert len(encode_frames(frames)) <= MAX_BYTES
    assert Image.open(io.BytesIO(encode_frames([frame[:, :, :1] for frame in frames]))).size == (6 * 213, 160)
    assert Image.open(io.BytesIO(encode_frames([frame[:100] for frame in frames]))).size == (6 * 320, 50)


def test_the_picture_may_be_replaced_or_removed(run: Path) -> None:
    card_of(run)
    Path("policy/episode.jpg").write_bytes(b"")
    ok(ddp("inspect", "policy"))
    Path("policy/episode.jpg").unlink()
    ok(ddp("inspect", "policy"))


@pytest.mark.slow
def test_a_compared_episode_is_the_picture(run: Path, lift_store: Store) -> None:
    ok(ddp("export", run, "--episodes", 1, "--out", "onnx"))
    assert "![An episode in the simulator, seed 100000: no success after " in Path("onnx/README.md").read_text()
    picture = np.asarray(Image.open("onnx/episode.jpg")).astype(float)
    assert picture.shape == (HEIGHT, 6 * HEIGHT, 3)
    first, last = picture[:, :HEIGHT], picture[:, -HEIGHT:]
    assert np.abs(first - last).mean() > 1  # the arm has moved
    recorded = np.asarray(Image.open(io.BytesIO(picture_of_store(lift_store).jpeg))).astype(float)  # type: ignore[union-attr]
    assert np.abs(first - recorded[:, :HEIGHT]).mean() < 20  # the same scene


def test_a_policy_without_images_has_no_picture(tmp_path: Path) -> None:
    policy = random_policy(obs="state")
    export_policy(policy, {}, ExportOptions(format="safetensors"), tmp_path / "policy", dict, card=CardSources())
    card = (tmp_path / "policy/README.md").read_text()
    assert "episode.jpg" not in card
    assert "The checkpoint does not say what it was trained on." in card
    assert not (tmp_path / "policy/episode.jpg").exists()
