"""`ddp eval` as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import ddp, ok, ok_json, refused

from ddp_cli.commands.eval import _check_one_process
from ddp_cli.commands.measurement import EvalOptions
from ddp_cli.commands.paired_comparison import compare
from ddp_cli.commands.sweep import _default_image
from ddp_cli.core.checkpoint import load_policy, save_checkpoint
from ddp_cli.errors import DdpError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.tasks import TASKS
from ddp_cli.training.distributed import Processes

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and episodes that end early: an untrained policy does not succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "lift", dataclasses.replace(TASKS["lift"], horizon=30))


def test_eval_reports_and_writes(trained: Path) -> None:
    report = ok_json(
        "eval", trained / "lift/tiny", "--episodes", 1, "--workers", 1, "--inference-steps", 1, "--out", "r.json"
    )
    assert report == json.loads(Path("r.json").read_text())
    assert (report["task"], report["first_seed"], report["inference_steps"]) == ("lift", 100000, 1)
    assert 0 <= report["interval_95"][0] <= report["success_rate"] <= report["interval_95"][1] <= 1
    assert "exists" in refused(ddp("eval", trained / "lift/tiny", "--episodes", 1, "--out", "r.json"))


def test_a_report_that_its_run_cannot_take_does_not_end_the_evaluation(trained: Path) -> None:
    run = Path(shutil.copytree(trained / "lift/tiny", "run", symlinks=True, ignore=shutil.ignore_patterns("eval")))
    (run / "eval").touch()  # no report can be written there
    command = ("eval", run, "-n", 1, "--workers", 1, "--sweep", "inference-steps=1,2", "--json")
    result = ok(ddp(*command))
    assert [report["inference_steps"] for report in json.loads(result.stdout)["sweep"]] == [1, 2]
    warnings = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 3  # two reports and their plot
    assert all("run/eval': File exists. Choose another place with --out." in line for line in warnings)
    ok(ddp(*command, "--out", "s.json"))
    assert len(json.loads(Path("s.json").read_text())["sweep"]) == 2
    assert "no file can be created there" in refused(ddp("eval", run, "--out", "/proc/r.json"))


def test_two_checkpoints_are_compared_on_the_same_seeds(trained: Path) -> None:
    run = trained / "lift" / "tiny"
    text = ok(ddp("eval", run, run, "-n", 2, "--workers", 1, "--inference-steps", 1)).stdout
    assert (
        "of 2 episodes both succeed in 0, only the first in 0, only the second in 0: first minus second +0.0% "
        "(95% interval -65.8% to +65.8%), p = 1 (exact McNemar test)\n"
    ) in text
    report = ok_json("eval", run, run, "-n", 2, "--workers", 1, "--inference-steps", 1)
    assert report["paired"] == {
        "both": 0, "only_first": 0, "only_second": 0, "neither": 2, "difference": 0.0,
        "interval_95": pytest.approx([-0.6576, 0.6576], abs=1e-4), "interval_is_approximate": False, "p": 1.0,
        "differing": [],
    }  # fmt: skip
    assert "Give one checkpoint, two to compare" in refused(ddp("eval", run, run, run))


def outcomes(first: int, successes: list[bool], **more: object) -> dict:
    """A report of episodes from the seed `first` on."""
    return {"episodes": [{"seed": first + i, "success": success} for i, success in enumerate(successes)], **more}


def test_seeds_with_different_outcomes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = outcomes(5, [True, True, False, False]), outcomes(5, [True, False, True, False])
    assert compare(one, other)["paired"]["differing"] == [6, 7]
    assert "seeds with different outcomes: 6, 7" in capsys.readouterr().out


def test_a_comparison_states_the_interval_of_the_difference(capsys: pytest.CaptureFixture[str]) -> None:
    """No verdict: 12 against 2 of 14 seeds, with p < .05 and an interval that tells how little is known."""
    first, second = [True] * 48 + [False] * 2, [True] * 36 + [False] * 12 + [True] * 2
    paired = compare(outcomes(0, first), outcomes(0, second, until_ci=0.1))["paired"]
    assert paired["difference"] == pytest.approx(0.2)
    assert paired["interval_95"] == pytest.approx([0.0569, 0.3404], abs=1e-4)
    assert paired["p"] == pytest.approx(0.012939, abs=1e-6)
    assert paired["interval_is_approximate"]
    text = capsys.readouterr().out
    assert "+20.0% (95% interval +5.7% to +34.0%, approximate because of --until-ci), p = 0.0129" in text
    assert "significant" not in text
    assert compare(outcomes(0, first), outcomes(100, second))["paired"]["difference"] is None


def test_hints_name_options_that_the_command_has(trained: Path) -> None:
    run = trained / "lift/tiny"
    hint = "Choose --inference-steps from 1 to 100, or another --sampler."
    assert refused(ddp("eval", run, "--inference-steps", 101)).endswith(hint)
    assert refused(ddp("rollout", run, "--inference-steps", 1000)).endswith(hint)
    assert "--env-arg key=value" in refused(ddp("eval", run, "--env", "a:B-v0", "--env-arg", "fast"))


def test_an_interval_that_stops_the_evaluation_is_called_approximate(trained: Path) -> None:
    command = ("eval", trained / "lift/tiny", "-n", 12, "--workers", 1, "--inference-steps", 1)
    text = ok(ddp(*command, "--until-ci", 0.28)).stdout
    assert "0 of 10 episodes" in text
    assert "approximate: when --until-ci stops depends on the results" in " ".join(text.split())
    assert "12 episodes are not enough for --until-ci 0.01: raise -n." in ok(ddp(*command, "--until-ci", 0.01)).stderr
    report = ok_json(*command, "--until-ci", 0.28)
    assert (report["until_ci"], report["interval_is_approximate"], len(report["episodes"])) == (0.28, True, 10)
    sampling = f"{report['sampler']}{report['inference_steps']}-{report['engine']}"
    name = f"lift/tiny/eval/{Path(report['checkpoint']).name}-{sampling}-{report['first_seed']}x10{{}}.json"
    assert (trained / name.format("-until-ci-0.28")).exists()
    report = ok_json(*command, "-n", 10)
    assert (report["until_ci"], report["interval_is_approximate"]) == (None, False)
    reports = [json.loads((trained / name.format(suffix)).read_text()) for suffix in ("", "-until-ci-0.28")]
    assert [report["until_ci"] for report in reports] == [None, 0.28]  # the exact one did not replace the other


@pytest.mark.parametrize(
    ("seed", "first_fresh"), [(300_000, 300_001), (299_999, 300_000), (300_001, 300_000), (0, 300_000)]
)
def test_fresh_seeds_are_never_those_that_chose(trained: Path, seed: int, first_fresh: int) -> None:
    command = ("eval", trained / "lift/tiny", "--last", 2, "-n", 1, "--workers", 1, "--inference-steps", 1)
    report = ok_json(*command, "--seed", seed)
    chosen = {episode["seed"] for checkpoint in report["checkpoints"] for episode in checkpoint["episodes"]}
    assert chosen == {seed}
    assert [episode["seed"] for episode in report["fresh"]["episodes"]] == [first_fresh]


@pytest.mark.parametrize(
    ("seed", "purpose", "text"),
    [(1_000, "collect", "knows these initial states"), (200_000, "training", "by which the best checkpoint")],
)
def test_seeds_that_shaped_the_policy_are_stated(trained: Path, seed: int, purpose: str, text: str) -> None:
    command = ("eval", trained / "lift/tiny", "-n", 1, "--workers", 1, "--inference-steps", 1)
    result = ok(ddp(*command, "--seed", seed, "--json"))
    assert json.loads(result.stdout)["seeds_also_used_for"] == [purpose]
    assert f"warning: the seeds {seed} to {seed} are those of" in result.stderr
    assert text in result.stderr
    result = ok(ddp(*command, "--json"))
    assert json.loads(result.stdout)["seeds_also_used_for"] == []
    assert "warning" not in result.stderr


def test_last_checkpoints_and_the_best_on_fresh_seeds(trained: Path) -> None:
    report = ok_json("eval", trained / "lift/tiny", "--last", 2, "-n", 1, "--workers", 1, "--inference-steps", 1)
    steps = [r["step"] for r in report["checkpoints"]]
    assert steps == [3, 4]
    assert report["mean"] == report["best"] == 0.0
    assert (report["fresh"]["first_seed"], report["fresh"]["step"]) == (300_000, 4)
    assert "expects a run folder" in refused(ddp("eval", trained, "--last", 2))


def test_initial_weights_are_not_among_the_last_checkpoints(trained: Path) -> None:
    run = Path(shutil.copytree(trained / "lift/tiny", "run", symlinks=True))
    for step in (2, 3):
        shutil.rmtree(run / f"checkpoints/step-0000000{step}")
    (run / "checkpoints/step-00000001").rename(run / "checkpoints/step-00000000")
    report = ok_json("eval", run, "--last", 2, "-n", 1, "--workers", 1, "--inference-steps", 1)
    assert [Path(r["checkpoint"]).name for r in report["checkpoints"]] == ["step-00000004"]
    assert "of the task 'lift', not of 'can'" in refused(ddp("eval", run, "--last", 2, "--task", "can"))
    shutil.rmtree(run / "checkpoints/step-00000004")
    assert "no trained checkpoints in 'run'" in refused(ddp("eval", run, "--last", 2))


@pytest.mark.parametrize(("option", "value"), [("--until-ci", 0.1), ("--cluster", "auto")])
def test_what_several_processes_cannot_follow_is_refused(option: str, value: object) -> None:
    _check_one_process(Processes(), {option: value})
    _check_one_process(Processes(world_size=2), {option: None})
    with pytest.raises(DdpError, match=f"{option} does not go with torchrun"):
        _check_one_process(Processes(world_size=2), {option: value})


def test_a_sweep_evaluates_every_combination_and_plots_it(trained: Path, policy_folder: Path) -> None:
    run = trained / "lift/tiny"
    command = (
        "eval", run, "-n", 1, "--workers", 1, "--sweep", "inference-steps=1,2", "--sweep", "sampler=ddim,dpm",
    )  # fmt: skip
    text = ok(ddp(*command)).stdout
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["ddim", "1"], ["ddim", "2"], ["dpm", "1"], ["dpm", "2"],
    ]  # fmt: skip
    (image,) = (run / "eval").glob("sweep-step-*-ddim+dpm-1+2-100000x1.png")
    assert image.read_bytes().startswith(b"\x89PNG")
    reports = ok_json(*command, "--seed", 100007, "--out", "s.json")["sweep"]
    assert [(r["sampler"], r["inference_steps"]) for r in reports] == [
        ("ddim", 1), ("ddim", 2), ("dpm", 1), ("dpm", 2),
    ]  # fmt: skip
    assert {r["episodes"][0]["seed"] for r in reports} == {100007}
    assert Path("s.png").is_file()
    Path("s.json").unlink()
    assert "'s.png' exists" in refused(ddp(*command, "--out", "s.json"))
    for sweep, word in (
        ("steps=1", "unknown --sweep setting 'steps'"), ("sampler=", "has no values"),
        ("inference-steps=1,x", "'x' is not"), ("inference-steps=1,101", "101"), ("sampler=ddmi", "ddmi"),
    ):  # fmt: skip
        assert word in refused(ddp("eval", run, "--sweep", sweep))
    positional = ("eval", run, "--sweep", "inference-steps=1", "sampler=ddim")
    assert "--sweep sampler=ddim" in refused(ddp(*positional))
    assert "contradicts --sweep sampler=" in refused(ddp("eval", run, "--sweep", "sampler=dpm", "--sampler", "ddim"))
    assert "whose sampler is fixed" in refused(ddp("eval", policy_folder, "--sweep", "sampler=ddim"))
    assert "one with --sweep" in refused(ddp("eval", run, run, "--sweep", "inference-steps=1"))


def test_names_of_plots_are_short_enough_for_file_systems() -> None:
    options = EvalOptions(10, 300_000, 0.0, None, None, "auto", 1, "cpu", None)
    names = []
    for steps in (range(2), range(100), range(101)):
        reports = [{"sampler": "ddim", "inference_steps": n} for n in steps]
        names.append(_default_image(Path("policy"), options, reports).name)
    assert names[0] == "sweep-policy-ddim-0+1-300000x10.png"
    assert max(map(len, names)) < 150
    assert names[1] != names[2]


def test_policies_of_different_tasks_are_not_compared(trained: Path) -> None:
    square = Path(__file__).parents[2] / "sample_data/square-policy"
    message = refused(ddp("eval", trained / "lift/tiny", square, "-n", 1))
    assert 'are policies of different tasks: name "lift" instead of "square"' in message
    assert "Their success rates cannot be compared" in message


def test_policies_that_observe_images_of_other_sizes_are_compared(trained: Path, tmp_path: Path) -> None:
    policy, meta = load_policy(trained / "lift/tiny/checkpoints/last")
    config = policy.config
    cameras = {key: camera.resized(80, 80) for key, camera in config.task.schema.cameras.items()}
    task = dataclasses.replace(config.task, schema=config.task.schema.model_copy(update={"cameras": cameras}))
    save_checkpoint(
        tmp_path / "small", PolicyConfig(**config.model_dump() | {"task": task}), policy.state_dict(), meta, None
    )
    report = ok_json("eval", trained / "lift/tiny", tmp_path / "small", "-n", 1, "--seed", 300_000)
    assert [e["seed"] for name in ("first", "second") for e in report[name]["episodes"]] == [300_000] * 2
