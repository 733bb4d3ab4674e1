"""Configuration: frozen, validated, and the same in Python, on the command line and in JSON.

Names and defaults are those of the published policy. (The source document's tables give `crop_shape` as
10 in one place and 8 in another: the published crop is 76x76, and 8 is the number of layers.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from ddp_cli.errors import ConfigError, close_match
from ddp_cli.tasks import ACTIONS, IMAGE_SIZE, Task, get_task, task_from_json

Fraction = Field(ge=0.0, lt=1.0)


def as_task(value: Any) -> Task:
    """A task from its name or its description."""
    return value if isinstance(value, Task) else task_from_json(value)


AnyTask = Annotated[Task, PlainValidator(as_task), PlainSerializer(Task.to_json)]
"""In JSON, and wherever it is given: the name of a built-in task, or the whole description of another."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as e:
            raise _explain(type(self), e) from None


class PolicyConfig(_Config):
    """Everything that decides what function a policy is, given its weights."""

    task: AnyTask = get_task("square")
    obs: Literal["image", "state"] = "image"
    actions: Literal["delta", "absolute"] = "delta"

    # windows [steps of 1/20 s]
    horizon: int = Field(10, ge=1, le=512)
    n_obs_steps: int = Field(2, ge=1, le=64)
    n_action_steps: int = Field(8, ge=1, le=512)

    # vision
    encoder: Literal["resnet18", "small"] = "resnet18"
    crop_shape: tuple[int, int] = (76, 76)

    fusion: int = Field(0, ge=0, le=4096)
    """Hidden width of a network that sees all features of a step together, and adds its own to them. It runs once
    per observation, not once per action and diffusion step as the transformer does. 0: none, as published."""

    # how observations reach the transformer
    obs_as_cond: bool = True
    """True: tokens of the memory. False: inpainting, the trajectory is [action, features]."""
    pred_action_steps_only: bool = False
    """Predict the n_action_steps that are executed, instead of all of the horizon."""

    # transformer
    n_layer: int = Field(8, ge=1, le=64)
    n_cond_layers: int = Field(0, ge=0, le=64)
    """Encoder layers of the condition; 0: an MLP."""
    time_as_cond: bool = True
    """True: the diffusion step is a token of the memory. False: it is the first token of an encoder."""
    n_head: int = Field(4, ge=1, le=64)
    n_emb: int = Field(256, ge=4, le=4096)
    p_drop_emb: float = Fraction
    p_drop_attn: float = Fraction
    causal_attn: bool = True

    # diffusion
    num_train_timesteps: int = Field(100, ge=2, le=10000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    clip_sample: bool = True
    prediction_type: Literal["epsilon", "sample"] = "epsilon"
    sampler: Literal["ddpm", "ddim", "dpm"] = "ddpm"
    num_inference_steps: int = Field(100, ge=1)
    timestep_spacing: Literal["auto", "leading", "trailing"] = "auto"
    """Which steps of the training chain are taken. leading, as published, ends at 0: one step would take pure
    noise for nearly clean actions. trailing begins at the last. auto: leading, but trailing below 10 steps and
    for dpm."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**{"p_drop_emb": 0.0, "p_drop_attn": 0.3} | values)

    @model_validator(mode="after")
    def _observable(self) -> Self:
        if self.obs == "state" and not self.task.object:
            raise ConfigError(
                f"the task '{self.task.name}' names no object, which a state policy observes.",
                'Add "object": {OBSERVABLE: WIDTH} to its file and convert again, or train with --obs image.',
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_obs_steps > self.horizon:
            raise ValueError(f"n_obs_steps {self.n_obs_steps} is longer than horizon {self.horizon}")
        room = self.horizon - self.n_obs_steps + 1
        if self.n_action_steps > room:
            raise ValueError(
                f"n_action_steps {self.n_action_steps} is more than horizon - n_obs_steps + 1 = {room}: "
                "actions start at the last observation"
            )
        if self.obs_as_cond and not self.time_as_cond:
            raise ValueError("obs_as_cond needs time_as_cond: without it there is no memory to hold observations")
        if self.n_cond_layers and not self.time_as_cond:
            raise ValueError(f"n_cond_layers {self.n_cond_layers} needs time_as_cond: there is no condition to encode")
        if self.pred_action_steps_only and not self.obs_as_cond:
            raise ValueError("pred_action_steps_only needs obs_as_cond: inpainting fills in the whole window")
        if self.n_emb % self.n_head or self.n_emb % 2:
            raise ValueError(f"n_emb {self.n_emb} must be even and a multiple of n_head {self.n_head}")
        if not all(16 <= side <= IMAGE_SIZE for side in self.crop_shape):
            raise ValueError(f"crop_shape {self.crop_shape} must lie between 16 and {IMAGE_SIZE}")
        return self

    @model_validator(mode="after")
    def _samplable(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        if self.num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} is above "
                f"num_train_timesteps {self.num_train_timesteps}"
            )
        if self.sampler == "dpm" and self.spacing == "leading" and self.num_inference_steps == self.num_train_timesteps:
            raise ValueError("the sampler dpm cannot take all steps with timestep_spacing leading, but with trailing")
        return self

    def with_sampler(self, sampler: str | None, num_inference_steps: int | None) -> PolicyConfig:
        """The same policy, sampled otherwise; None keeps what is there, except that another sampler
        without a number of steps takes all of them.
        """
        if sampler not in (None, self.sampler) and num_inference_steps is None:
            num_inference_steps = self.num_train_timesteps
        changes = {"sampler": sampler, "num_inference_steps": num_inference_steps}
        return PolicyConfig(**self.model_dump() | {k: v for k, v in changes.items() if v is not None})

    @property
    def spacing(self) -> str:
        """`timestep_spacing`, decided."""
        if self.timestep_spacing != "auto":
            return self.timestep_spacing
        return "trailing" if self.num_inference_steps < 10 or self.sampler == "dpm" else "leading"

    @property
    def low_dim(self) -> dict[str, int]:
        """Low-dimensional keys and widths, in the order of the features."""
        return self.task.vectors(self.obs)

    @property
    def image_keys(self) -> list[str]:
        """Image keys, in the order of the features."""
        return list(self.task.images(self.obs))

    @property
    def trajectory_steps(self) -> int:
        """Steps of the denoised trajectory."""
        return self.n_action_steps if self.pred_action_steps_only else self.horizon

    @property
    def frames(self) -> int:
        """How many observations of a window training looks at: inpainting learns to fill in all of them."""
        return self.n_obs_steps if self.obs_as_cond else self.horizon

    @property
    def action_dim(self) -> int:
        return int(ACTIONS[self.actions]["dim"])

    @property
    def pad_before(self) -> int:
        return self.n_obs_steps - 1

    @property
    def pad_after(self) -> int:
        return self.n_action_steps - 1


class TrainConfig(_Config):
    """Everything that decides a training run, given its store."""

    policy: PolicyConfig
    preset: str = "paper"
    seed: int = Field(42, ge=0, lt=2**32)
    val_ratio: float = Field(0.02, ge=0.0, le=0.5)
    batch_size: int = Field(64, ge=1)
    noise_samples: int = Field(1, ge=1, le=256)
    """Noise levels per encoded observation: the encoder runs once for all of them."""
    action_loss: float = Field(0.0, ge=0.0)
    """Weight of an auxiliary loss: the action chunk, regressed directly from the features."""
    object_loss: float = Field(0.0, ge=0.0)
    """Weight of an auxiliary loss of image policies: the store's `object` (the simulator knows where things
    are), regressed from the features. Only training sees it; the policy runs on images."""

    shared_scale: bool = False
    """State policies: the published rule, one scale for the whole observation, instead of ranges per key."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bfloat16 autocast in training where the hardware has it. Weights are always float32."""

    lr: float = Field(1e-4, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    transformer_weight_decay: float = Field(1e-3, ge=0)
    obs_encoder_weight_decay: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(1000, ge=0)
    """Linear warm-up of the learning rate; never more than 5% of the run."""

    ema_inv_gamma: float = Field(1.0, gt=0)
    ema_power: float = Field(0.75, gt=0)
    ema_max_value: float = Field(0.9999, ge=0, lt=1)

    clip_grad_norm: float = Field(0.0, ge=0)
    """Largest norm of the gradient; 0: it is not clipped, as published."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Parts that a batch is computed in: the same result with so much less memory."""
    compile: bool = False
    """torch.compile the encoders and the denoiser. On 2 CPU cores it gained nothing."""
    memory_gb: float = Field(0.0, ge=0)
    """What decoded pictures may take; more of them stay on disk. 0: half of the memory that is free."""

    steps: int = Field(0, ge=0)
    epochs: float = Field(0.0, ge=0)
    minutes: float = Field(0.0, ge=0)
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: ten in a run, or as often as `eval_every`."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """A checkpoint is also written after so long; only the newest of these is kept."""
    keep: int = Field(10, ge=1)
    """Newest checkpoints that are kept, besides the best."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations in the simulator, and one at the end; 0: none. `best` is by success then."""
    eval_episodes: int = Field(20, ge=1)
    """Episodes of each such evaluation."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if sum(x > 0 for x in (self.steps, self.epochs, self.minutes)) > 1:
            raise ValueError("give only one of steps, epochs and minutes")
        if not (self.steps or self.epochs or self.minutes):
            raise ValueError("a run needs a length above 0: steps, epochs or minutes")
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas {self.betas} must lie in [0, 1)")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate {self.accumulate} is more than batch_size {self.batch_size}")
        if self.checkpoint_every and self.eval_every % self.checkpoint_every:
            raise ValueError(
                f"eval_every {self.eval_every} must be a multiple of checkpoint_every {self.checkpoint_every}"
            )
        if self.object_loss and self.policy.obs == "image" and not self.policy.task.object:
            raise ConfigError(
                f"object_loss {self.object_loss:g}: the task '{self.policy.task.name}' names no object.",
                'Leave it at 0, or add "object": {OBSERVABLE: WIDTH} to the task\'s file and convert again.',
            )
        return self

    @property
    def object_weight(self) -> float:
        """Weight of the object loss: 0 for policies that are told where the object is."""
        return self.object_loss if self.policy.obs == "image" else 0.0


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError says what is wrong with it."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no file '{path}'.", "Name a JSON file.") from None
    except (ValueError, UnicodeDecodeError, OSError) as e:
        raise ConfigError(f"'{path}' is not JSON: {e}.", "See `ddp train --help`.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"'{path}' holds no JSON object.", 'Write {"key": value, ...}.')
    return value


def _explain(kind: type[BaseModel], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        valid = sorted(kind.model_fields)
        return ConfigError(f"unknown setting '{name}'{close_match(name, valid)}", f"Valid: {', '.join(valid)}.")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return ConfigError(f"{message}.", "Change one of them with --set.")
    message = message[0].lower() + message[1:]
    return ConfigError(f"{name} = {first['input']!r}: {message}.", "Change it with --set.")
