"""The table that `ddp eval` prints for one policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ddp_cli import console

if TYPE_CHECKING:
    from ddp_cli.evaluation.evaluation import Evaluation


def print_table(report: dict[str, Any], result: Evaluation) -> None:
    """Print the result of one policy; `report` is what is stored of it."""
    low, high = result.interval
    count, seconds, first = len(result.episodes), report["seconds"], report["first_seed"]
    rows = [
        (
            "success rate",
            f"{result.success_rate:.1%}",
            f"{result.successes} of {count} episodes, 95% interval {low:.1%} to {high:.1%}",
        ),
        *_score_rows(report, result),
        (
            "steps to success",
            f"{result.mean_steps:.1f}" if result.successes else "none",
            "mean over successful episodes",
        ),
        (
            "time per action chunk",
            f"{result.chunk_ms:.0f} ms",
            f"median, {report['sampler']} with {report['inference_steps']} steps, engine {report['engine']}",
        ),
        (
            "episodes per hour",
            f"{3600 * count / seconds:.0f}",
            f"seeds {first} to {first + count + len(result.crashed_seeds) - 1}, in {console.duration(seconds)}",
        ),
    ]
    if report["until_ci"]:
        rows.insert(1, ("", "", "approximate: when --until-ci stops depends on the results"))
    if result.crashed_seeds:
        crashed = result.crashed_seeds
        rows.append(("not run", str(len(crashed)), f"their worker process crashed each time: seeds {crashed}"))
    console.table(f"{report['task']} from {report['obs']}: {report['checkpoint']}", rows)


def _score_rows(report: dict[str, Any], result: Evaluation) -> list[tuple[str, str, str]]:
    """Score and rewards where the environment has them; otherwise how often success was held."""
    if not result.scores:
        return [("held for 10 steps", f"{result.held_rate:.1%}", "")]
    interval = describe_interval(report["score_interval_95"], ".3f")
    return [
        (
            "score",
            f"{report['score']:.3f}",
            f"mean of the highest {report['env']['score_key']} of an episode, {interval}",
        ),
        ("return", f"{report['total_reward']:.1f}", "mean sum of rewards"),
    ]


def describe_interval(interval: Sequence[float] | None, style: str) -> str:
    """A 95% interval as text, its ends formatted as `style` says; None for a single episode."""
    return "one episode" if interval is None else f"95% interval {interval[0]:{style}} to {interval[1]:{style}}"
