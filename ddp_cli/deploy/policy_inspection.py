"""What `ddp inspect` says about a checkpoint or an exported policy.

Imports are inside the functions: commands import this file when `ddp` starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddp_cli.deploy.policy_source import is_exported
from ddp_cli.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from ddp_cli.policy_config import PolicyConfig


def is_policy(path: Path) -> bool:
    """Whether `path` is a checkpoint, a run with a checkpoint, or a folder exported in any format."""
    from ddp_cli.checkpoint_files import CONFIG, MODEL, best_checkpoint, follow_link

    path = follow_link(path)
    is_checkpoint = (path / CONFIG).is_file() and (path / MODEL).is_file()
    return is_checkpoint or best_checkpoint(path) is not None or is_exported(path)


def inspect_policy(path: Path) -> dict[str, Any]:
    """Describe a checkpoint, the best checkpoint of a run, or an exported folder, after comparing its files with the
    hashes that it records.

    The values can be written as JSON:

        kind                                    "checkpoint" or "exported policy"
        path, run                               the folder; the run that it belongs to, or None
        format, precision                       of exported policies; None for checkpoints
        task, obs, action                       name, image or state, action convention with its frame and rotation
        inputs                                  observation key -> shape of one step
        n_obs_steps, horizon, n_action_steps    [control steps]
        sampler, inference_steps
        step                                    training step, or None if it was imported
        parameters                              number of trainable parameters
        resumable                               whether training can continue from it
        store                                   file (None if unknown), demos, steps, ... of the training data, or None
        versions                                library -> version
        files                                   name -> size [bytes]

    CheckpointError if there is no policy or it is damaged.
    """
    from ddp_cli.checkpoint_files import TRAIN_STATE
    from ddp_cli.core.checkpoint import check_weights, load_meta
    from ddp_cli.core.checkpoint_lookup import resolve_checkpoint
    from ddp_cli.deploy.exported_folder import check_files, read_spec
    from ddp_cli.policy_config import PolicyConfig

    exported = is_exported(path)
    folder = path if exported else resolve_checkpoint(path, Path())
    meta: dict[str, Any] = read_spec(folder) if exported else load_meta(folder)
    if exported:
        check_files(folder, meta)
    else:
        check_weights(folder, meta)
    config = PolicyConfig(**meta["policy"])
    run = folder.parents[1] if folder.parent.name == "checkpoints" else None
    store = meta.get("store") or {}
    return {
        "kind": "exported policy" if exported else "checkpoint",
        "path": str(folder),
        "run": str(run) if run else None,
        "format": meta.get("files") if exported else None,
        "precision": meta.get("precision") if exported else None,
        "task": config.task.name,
        "obs": config.obs,
        "action": meta.get("action"),
        "inputs": _input_shapes(config),
        "n_obs_steps": config.n_obs_steps,
        "horizon": config.horizon,
        "n_action_steps": config.n_action_steps,
        "sampler": config.sampler,
        "inference_steps": config.num_inference_steps,
        "step": meta.get("step"),
        "parameters": _count_parameters(config, None if exported else folder),
        "resumable": (folder / TRAIN_STATE).is_file(),
        "store": {"file": _store_path(run), **store} if store else None,
        "versions": {**(store.get("versions") or {}), **(meta.get("versions") or {})},
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()},
    }


def describe_policy(contents: dict[str, Any]) -> list[tuple[str, ...]]:
    """The result of `inspect_policy` as rows (name, value) for people."""
    store, action = contents["store"] or {}, contents["action"] or {}
    origin = (
        f"{store['file'] or 'unknown path'}, {store['demos']} demonstrations, {store['steps']} steps" if store else ""
    )
    megabytes = sum(contents["files"].values()) / 1e6
    kind = contents["kind"] + (f" ({contents['format']}, {contents['precision']})" if contents["format"] else "")
    rows: list[tuple[str, ...]] = [
        ("kind", kind),
        ("task", f"{contents['task']}, from {contents['obs']} observations"),
        ("inputs", "; ".join(f"{key} {tuple(shape)}" for key, shape in contents["inputs"].items())),
        ("action", ", ".join(f"{key} {value}" for key, value in action.items())),
        ("chunk", f"{contents['n_action_steps']} of {contents['horizon']} predicted actions are executed"),
        ("observations", f"the last {contents['n_obs_steps']} steps"),
        ("sampler", f"{contents['sampler']}, {contents['inference_steps']} steps"),
        ("parameters", f"{contents['parameters']:,}"),
        ("training step", "imported" if contents["step"] is None else str(contents["step"])),
        ("run", contents["run"] or "none"),
        ("store", origin),
        ("versions", ", ".join(f"{name} {version}" for name, version in contents["versions"].items())),
        ("files", f"{', '.join(contents['files'])} ({megabytes:.1f} MB)"),
    ]
    if contents["kind"] == "checkpoint":
        rows.append(("resumable", "yes" if contents["resumable"] else "no: it has no training state"))
    return rows


def _input_shapes(config: PolicyConfig) -> dict[str, list[int]]:
    images = {key: list(camera.shape) for key, camera in config.cameras.items()}
    return images | {key: [width] for key, width in config.low_dim.items()}


def _count_parameters(config: PolicyConfig, checkpoint: Path | None) -> int:
    """From the header of the checkpoint's weights, or else from the architecture."""
    import math

    from safetensors import SafetensorError, safe_open

    from ddp_cli.checkpoint_files import MODEL
    from ddp_cli.core.policy import DiffusionPolicy

    if checkpoint is None:
        return sum(parameter.numel() for parameter in DiffusionPolicy(config).parameters())
    try:
        with safe_open(checkpoint / MODEL, "pt") as weights:
            names = [name for name in weights.keys() if not name.startswith("normalizer.")]  # noqa: SIM118
            return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"'{checkpoint / MODEL}' is damaged.", "Use another checkpoint.") from e


def _store_path(run: Path | None) -> str | None:
    """The store that a run was trained on, as its config.json names it."""
    from ddp_cli.json_file import read_json

    try:
        return str(read_json(run / "config.json")["data"]) if run else None
    except (ConfigError, KeyError):
        return None
