"""The configuration of a policy from that of a published checkpoint: its `cfg`, as plain dictionaries and lists.

Every setting that changes what the policy computes is taken over or refused. What `cfg` lacks is listed by
`describe_assumptions`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddp_cli.core.published_observations import image_size, obs_keys, shape_meta
from ddp_cli.core.published_settings import Cfg, check_resolved, check_value, look_up
from ddp_cli.errors import CheckpointError
from ddp_cli.policy_config import PolicyConfig
from ddp_cli.tasks import TASKS, Task

POLICY_CLASSES = {
    "DiffusionTransformerHybridImagePolicy": "image",
    "DiffusionTransformerLowdimPolicy": "state",
}
"""Published classes that can be imported -> their kind of observations."""

TASK_SUFFIXES = {"image", "lowdim", "low", "dim", "abs", "ph", "mh", "mg"}
"""What may follow the name of a task: `square_image_abs` is the task square, `square_d2` is not."""

WINDOW = ("horizon", "n_obs_steps", "n_action_steps")
ARCHITECTURE = (
    "n_layer", "n_cond_layers", "n_head", "n_emb", "p_drop_emb", "p_drop_attn", "causal_attn", "time_as_cond",
)  # fmt: skip
POLICY_SETTINGS = {
    *WINDOW, *ARCHITECTURE, "_target_", "shape_meta", "noise_scheduler", "num_inference_steps", "crop_shape",
    "obs_encoder_group_norm", "eval_fixed_crop", "obs_as_cond", "pred_action_steps_only", "model", "obs_dim",
    "action_dim",
}  # fmt: skip
"""Settings of both classes. The published classes pass all others to the scheduler in every denoising step."""

LOW_DIM_DEFAULTS = {"n_layer": 12, "n_emb": 768}
"""Defaults of the published transformer that differ from those of its experiments and show in the shapes."""

SCHEDULERS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}
SCHEDULER_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "clip_sample": True, "prediction_type": "epsilon", "timestep_spacing": "leading",
}  # fmt: skip
"""Defaults of diffusers' schedulers for what is taken over."""
SCHEDULER_FIXED = {
    "variance_type": "fixed_small", "set_alpha_to_one": True, "steps_offset": 0, "trained_betas": None,
    "thresholding": False, "clip_sample_range": 1.0, "rescale_betas_zero_snr": False, "predict_epsilon": True,
}  # fmt: skip
"""The only supported values of other settings of the scheduler."""
SCHEDULER_UNUSED = {"_target_", "_diffusers_version", "dynamic_thresholding_ratio", "sample_max_value"}

EXPERIMENT_FIXED = (
    ("n_latency_steps", 0), ("past_action_visible", False),
    ("task.env_runner.n_latency_steps", 0), ("task.env_runner.past_action", False),
)  # fmt: skip
"""Settings outside of the policy -> their only supported value."""


def published_config(cfg: Cfg, path: Path, weight_names: Collection[str] = ()) -> PolicyConfig:
    """The PolicyConfig for the `cfg` of the checkpoint `path`, whose state dict has `weight_names`.

    CheckpointError if it is of another class or task, or has a setting that is not supported.
    """
    policy = cfg["policy"]
    class_name = str(policy["_target_"]).rsplit(".", 1)[-1]
    if class_name not in POLICY_CLASSES:
        raise CheckpointError(
            f"'{path}' is a {class_name}, which is not supported.", f"Valid: {', '.join(POLICY_CLASSES)}."
        )
    check_resolved(policy, "policy", path)
    obs = POLICY_CLASSES[class_name]
    task = _find_task(cfg, path)
    values: dict[str, Any] = {"task": task, "obs": obs, "actions": _action_convention(cfg, task, path)}
    values |= {name: policy[name] for name in WINDOW} | _scheduler_settings(policy["noise_scheduler"], path)
    _check_fixed_settings(cfg, path)
    settings = ("num_inference_steps", "obs_as_cond", "pred_action_steps_only")
    values |= {k: policy[k] for k in settings if policy.get(k) is not None}
    values.setdefault("num_inference_steps", values["num_train_timesteps"])
    if obs == "state":
        values |= _low_dim_settings(policy, weight_names, path)
    else:
        values |= {k: policy[k] for k in ARCHITECTURE if policy.get(k) is not None}
        values["crop_shape"] = _crop_shape(policy, weight_names, image_size(task), path)
    values |= _causal_attention(values, weight_names, path)
    return PolicyConfig(**values)


def describe_assumptions(cfg: Cfg, config: PolicyConfig) -> list[str]:
    """Settings that `cfg` lacks and that neither the weights nor a default of the published class tells, with the
    assumed value: that of the published experiments.
    """
    if config.obs == "state":
        model = cfg["policy"].get("model") or {}
        missing = [f"{k} {getattr(config, k)}" for k in ("n_head", "causal_attn") if model.get(k) is None]
        order_name, order_known = "obs_keys", obs_keys(cfg, Path()) is not None
    else:
        cropped = config.crop_shape != image_size(config.task)
        missing = ["eval_fixed_crop True"] if cropped and cfg["policy"].get("eval_fixed_crop") is None else []
        order_name, order_known = "shape_meta.obs", shape_meta(cfg).get("obs") is not None
    order = [] if order_known else [f"{order_name} {', '.join([*config.image_keys, *config.low_dim])}"]
    return missing + order


def _find_task(cfg: Cfg, path: Path) -> Task:
    task = cfg.get("task") or {}
    names = [str(name) for name in (cfg.get("task_name"), task.get("name"), task.get("task_name")) if name]
    if not names:
        raise CheckpointError(f"'{path}' names no task (task_name).", "Use another checkpoint.")
    tasks = []
    for name in names:
        task = next((task for task in TASKS.values() if _is_named(task, name)), None)
        if task is None:
            raise CheckpointError(
                f"'{path}' is of the unknown task '{name}'.",
                f"Valid tasks: {', '.join(TASKS)}, followed by _image, _lowdim, _abs, _ph or _mh.",
            )
        tasks.append(task)
        if task != tasks[0]:
            raise CheckpointError(f"'{path}' is of the tasks '{names[0]}' and '{name}'.", "Use another checkpoint.")
    return tasks[0]


def _is_named(task: Task, name: str) -> bool:
    suffixes = name.removeprefix(task.name).split("_")
    return name.startswith(task.name) and suffixes[0] == "" and TASK_SUFFIXES.issuperset(suffixes[1:])


def _action_convention(cfg: Cfg, task: Task, path: Path) -> str:
    """The convention with as many values per action; settings that say otherwise are refused."""
    action = shape_meta(cfg).get("action") or {}
    widths = {name: sum(part.width for part in task.action_parts(name)) for name in task.conventions}
    width = action["shape"][0] if action else cfg["policy"].get("action_dim", widths["delta"])
    convention = next((name for name, dim in widths.items() if dim == width), None)
    if convention is None:
        valid = " and ".join(f"{dim} ({name})" for name, dim in widths.items())
        raise CheckpointError(f"'{path}' has actions of {width} values.", f"Valid: {valid}.")
    is_absolute = convention == "absolute"
    for place in ("task.abs_action", "task.dataset.abs_action", "task.env_runner.abs_action"):
        check_value(path, f"{place} for actions of {width} values,", look_up(cfg, place), is_absolute)
    if is_absolute:  # published datasets ignore it for delta actions
        rotation = action.get("rotation_rep") or look_up(cfg, "task.dataset.rotation_rep")
        check_value(path, "rotation_rep", rotation, "rotation_6d")
    return convention


def _check_fixed_settings(cfg: Cfg, path: Path) -> None:
    for place, supported in EXPERIMENT_FIXED:
        check_value(path, place, look_up(cfg, place), supported)
    for name, value in cfg["policy"].items():
        # eta is an argument of DDIM's steps; with 0 they are deterministic, as here.
        if name not in POLICY_SETTINGS and value is not None and (name, value) != ("eta", 0):
            raise CheckpointError(
                f"'{path}' has the policy setting {name} {value!r}, which is not supported.",
                "Use a checkpoint without it.",
            )


def _crop_shape(policy: Cfg, weight_names: Collection[str], full_size: tuple[int, int], path: Path) -> Any:
    """The crop of an image policy. Encoders with BatchNorm and random crops in evaluation are refused."""
    if policy.get("obs_encoder_group_norm") is False or any(n.endswith(".running_mean") for n in weight_names):
        raise CheckpointError(
            f"the image encoders of '{path}' use BatchNorm.", "Only obs_encoder_group_norm True is supported."
        )
    crop = policy.get("crop_shape", (76, 76)) or full_size
    if policy.get("eval_fixed_crop") is False and tuple(crop) != full_size:
        raise CheckpointError(
            f"'{path}' crops images at random in evaluation, too (eval_fixed_crop False).",
            "Only eval_fixed_crop True, the central crop, is supported.",
        )
    return crop


def _low_dim_settings(policy: Cfg, weight_names: Collection[str], path: Path) -> dict[str, Any]:
    """Settings of a low-dim policy's transformer, which has a configuration of its own."""
    model = policy.get("model") or {}
    for name in WINDOW:
        if model.get(name) not in (None, policy[name]):
            raise CheckpointError(
                f"'{path}': policy.{name} is {policy[name]}, but policy.model.{name} is {model[name]}.",
                "Use another checkpoint.",
            )
    values = LOW_DIM_DEFAULTS | {k: model[k] for k in ARCHITECTURE if model.get(k) is not None}
    if "n_head" not in values and values["n_emb"] % 12 == 0:
        values["n_head"] = 12  # the default of the published class
    if policy.get("obs_as_cond") is None and weight_names:
        values["obs_as_cond"] = "model.cond_obs_emb.weight" in weight_names
    return values


def _causal_attention(values: Cfg, weight_names: Collection[str], path: Path) -> dict[str, bool]:
    """`causal_attn` as the buffers of the state dict tell it; nothing if it was saved without buffers."""
    if "model._dummy_variable" not in weight_names:
        return {}
    has_mask = "model.mask" in weight_names
    if values.get("causal_attn", has_mask) != has_mask:
        raise CheckpointError(
            f"'{path}' has causal_attn {values['causal_attn']}, but its weights have {'a' if has_mask else 'no'} mask.",
            "Use another checkpoint.",
        )
    return {"causal_attn": has_mask}


def _scheduler_settings(scheduler: Cfg, path: Path) -> dict[str, Any]:
    class_name = str(scheduler.get("_target_", "")).rsplit(".", 1)[-1]
    if class_name not in SCHEDULERS:
        raise CheckpointError(f"'{path}' has the noise scheduler '{class_name}'.", f"Valid: {', '.join(SCHEDULERS)}.")
    for name, value in scheduler.items():
        if name in SCHEDULER_DEFAULTS or name in SCHEDULER_UNUSED:
            continue
        if name not in SCHEDULER_FIXED:
            raise CheckpointError(
                f"the noise scheduler of '{path}' has the unknown setting {name} {value!r}.",
                f"Valid: {', '.join([*SCHEDULER_DEFAULTS, *SCHEDULER_FIXED])}.",
            )
        check_value(path, f"the noise scheduler's {name}", value, SCHEDULER_FIXED[name])
    return {k: scheduler.get(k, v) for k, v in SCHEDULER_DEFAULTS.items()} | {"sampler": SCHEDULERS[class_name]}
