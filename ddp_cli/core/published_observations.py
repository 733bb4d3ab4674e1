"""The observations of a published checkpoint: their order, and whether they are those of the task."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.core.published_settings import Cfg, check_value, look_up
from ddp_cli.errors import CheckpointError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.tasks import Task


def feature_order(cfg: Cfg, config: PolicyConfig, path: Path) -> list[str] | None:
    """The keys of the observations in the order in which the published policy concatenates their features, None if
    `cfg` does not say. CheckpointError if they are not those of `config`.
    """
    if config.obs == "state":
        keys = obs_keys(cfg, path)
    else:
        obs = shape_meta(cfg).get("obs")
        keys = None if obs is None else list(obs)
    if keys is None:
        return None
    expected = [*config.image_keys, *config.low_dim]
    name = config.task.name
    hint = f"Supported: {', '.join(expected)}, in any order."
    for key in keys:
        if key not in expected:
            raise CheckpointError(f"'{path}' observes {key}, which policies of '{name}' do not.", hint)
    for key in expected:
        if key not in keys:
            raise CheckpointError(f"'{path}' does not observe {key}.", hint)
    if len(keys) != len(expected):
        raise CheckpointError(f"'{path}' observes a key twice: {', '.join(keys)}.", hint)
    if config.obs == "image":
        for key, attributes in shape_meta(cfg)["obs"].items():
            _check_observation(key, attributes, config, path)
    return keys


def shape_meta(cfg: Cfg) -> Cfg:
    """Shapes and kinds of the observations and of the action; empty if `cfg` has none."""
    places = (cfg["policy"], cfg, cfg.get("task") or {})
    return next((place["shape_meta"] for place in places if place.get("shape_meta")), {})


def obs_keys(cfg: Cfg, path: Path) -> list[str] | None:
    """The keys that a low-dim dataset concatenates; every part of `cfg` that lists them must agree."""
    places = ("task.dataset.obs_keys", "task.obs_keys", "task.env_runner.obs_keys")
    lists = {place: list(keys) for place in places if (keys := look_up(cfg, place)) is not None}
    for place, keys in lists.items():
        first = next(iter(lists))
        if keys != lists[first]:
            raise CheckpointError(
                f"'{path}': {first} is {', '.join(lists[first])}, but {place} is {', '.join(keys)}.",
                "Use another checkpoint.",
            )
    return next(iter(lists.values()), None)


def image_size(task: Task) -> tuple[int, int]:
    """Height and width of the images of a built-in task, which are the same for all cameras."""
    camera = next(iter(task.schema.cameras.values()))
    return camera.height, camera.width


def _check_observation(key: str, attributes: Cfg, config: PolicyConfig, path: Path) -> None:
    shape, kind = list(attributes["shape"]), attributes.get("type", "low_dim")
    is_image = key in config.image_keys
    expected = [3, *image_size(config.task)] if is_image else [config.low_dim[key]]
    if kind != ("rgb" if is_image else "low_dim") or shape != expected:
        raise CheckpointError(
            f"'{path}' observes {key} as {kind} of shape {shape}.",
            f"Only {'rgb' if is_image else 'low_dim'} of shape {expected} is supported.",
        )
    for name, value in attributes.items():
        if name not in ("shape", "type"):
            check_value(path, f"shape_meta.obs.{key}.{name}", value, config.n_obs_steps if name == "horizon" else None)
