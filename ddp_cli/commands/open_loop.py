"""`ddp eval` without episodes: predicted actions against those of recorded episodes that were held out of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli import console
from ddp_cli.commands.measurement import write_or_warn
from ddp_cli.errors import DataError
from ddp_cli.evaluation.report import engine_name, report_folder

if TYPE_CHECKING:
    from ddp_cli.data.store import Store
    from ddp_cli.deploy.policy_source import PolicySource

MEANING = "open-loop error: distance from the recorded actions in recorded states, not a success rate"


def evaluate_open_loop(
    source: PolicySource, data: Path | None, max_episodes: int | None, image: Path | None
) -> dict[str, Any]:
    """Compares the policy with held-out episodes of `data`, by default of the store that it was trained on, at most
    `max_episodes`. Prints a table, writes a picture to `image` and returns the report.

    Without `image`, report and picture go to the run's eval/ folder, or the picture to the current folder for a policy
    outside of a run.
    """
    from ddp_cli.data.store import Store
    from ddp_cli.evaluation.open_loop import open_loop_report
    from ddp_cli.evaluation.report import write_report
    from ddp_cli.training.held_out import predict_episodes, split_episodes
    from ddp_cli.training.plots import plot_predictions

    store = Store(data or _training_store(source)).for_task(source.task)
    if (convention := store.attrs["action"]["convention"]) != source.actions:
        raise DataError(
            f"'{store.path}' holds {convention} actions, '{source.folder}' predicts {source.actions} ones.",
            f"Convert the recording again with --actions {source.actions}.",
        )
    split = split_episodes(store, source.meta)
    episodes = split.held_out[:max_episodes]
    console.note(f"policy {source.folder}, {len(episodes)} episodes of {store.path}")
    if split.doubt:
        console.warn(f"whether these episodes were trained on is not known: {split.doubt}")
    with console.progress(f"eval {source.task.name}") as update:
        chunks = predict_episodes(
            source.make_agent(), source.config, store, split, episodes, lambda n: update(n, len(episodes), "")
        )
    parts = source.config.action_parts
    report: dict[str, Any] = {
        "checkpoint": str(source.folder), "task": source.task.name, "obs": source.obs, "step": source.step,
        "sampler": source.sampler, "inference_steps": source.inference_steps, "engine": source.engine,
        "device": source.device, "kind": "open loop", "data": str(store.path), "held_out": not split.doubt,
        "episodes": [{"name": e.name, "chunks": len(e.steps)} for e in chunks],
        "rate": source.task.schema.rate, "parts": open_loop_report(parts, chunks),
    }  # fmt: skip
    _print(report)
    picture = image or _default_picture(source, store, max_episodes)
    if image is None and report_folder(source.folder):
        path = picture.with_suffix(".json")
        write_or_warn(path, lambda: write_report(path, report))
    if write_or_warn(picture, lambda: plot_predictions(parts, chunks[0], report, picture)):
        console.note(f"picture: {picture}")
    return report


def _default_picture(source: PolicySource, store: Store, max_episodes: int | None) -> Path:
    """In the run's eval/ folder, or in the current folder for a policy outside of a run."""
    count = f"-first{max_episodes}" if max_episodes else ""
    what = f"{store.path.stem}-{store.content_hash()[:8]}{count}"
    sampling = f"{source.sampler}{source.inference_steps}-{engine_name(source.engine, source.device)}"
    name = f"{source.folder.name}-{sampling}-open-loop-{what}.png"
    return (report_folder(source.folder) or Path()) / name


def _training_store(source: PolicySource) -> Path:
    from ddp_cli.training.run_folder import find_training_store

    store = find_training_store(source.folder)
    if store is None:
        raise DataError(
            f"the store that '{source.folder}' was trained on is not where it was.", "Name it with --data STORE."
        )
    return store


def _print(report: dict[str, Any]) -> None:
    from ddp_cli.evaluation.open_loop import BASELINES, POLICY

    rows = []
    for name, part in report["parts"].items():
        rows.append((f"{name} [{part['unit'] or 'as recorded'}]", *[""] * 5))
        for key, label in {POLICY: "policy", **BASELINES}.items():
            method = part[key]
            low, high = method["interval_95"] or (None, None)
            count = sum(error is not None for error in method["episodes"])
            better = f"{part['better_than'][key]} of {count}" if key in BASELINES else ""
            missing = "one episode" if count else "no episode"
            # That of few episodes may reach below 0.
            interval = missing if low is None else f"{max(low, 0.0):.3g} to {high:.3g}"
            shown = (method["error"], method["by_step"][0], method["by_step"][-1])
            error, first, last = ("-" if x is None else f"{x:.3g}" for x in shown)
            rows.append((f"  {label}", error, interval, first, last, better))
    console.table(
        f"{report['task']} from {report['obs']}: {report['checkpoint']}",
        rows,
        ("", "error", "95% interval", "first step", "last step", "policy better"),
    )
    console.result(MEANING)
