"""Configuration of policies: frozen, validated, the same in Python, on the command line and in JSON.

Names and defaults are those of the published policy. (The source document's tables give `crop_shape` as 10 in one place
and 8 in another: the published crop is 76x76, and 8 is the number of layers.)
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from ddp_cli.base_config import BaseConfig
from ddp_cli.choices import (
    BetaSchedule,
    ImageBackbone,
    Obs,
    PolicyActions,
    PredictionType,
    Sampler,
    TimestepSpacing,
)
from ddp_cli.errors import ConfigError, UnknownNameError
from ddp_cli.image_size import MIN_SIDE
from ddp_cli.schema import ActionPart, Camera
from ddp_cli.task_file import task_from_json
from ddp_cli.tasks import Task, get_task

PREFIX, PREFIX_LENGTH = "prefix", "prefix_length"
"""Inputs of policies with `prefix_steps`."""


def as_task(value: Any) -> Task:
    """A task from its name or its JSON description."""
    return value if isinstance(value, Task) else task_from_json(value)


TaskField = Annotated[Task, PlainValidator(as_task), PlainSerializer(Task.to_json)]
"""Input and JSON: the name of a built-in task, or the full description of another one."""


class PolicyConfig(BaseConfig):
    """Everything but the weights that defines a policy."""

    task: TaskField = get_task("square")
    obs: Obs = "image"
    actions: PolicyActions = "delta"

    # windows, in control steps
    horizon: int = Field(10, ge=1, le=512)
    n_obs_steps: int = Field(2, ge=1, le=64)
    n_action_steps: int = Field(8, ge=1, le=512)

    # vision
    encoder: ImageBackbone = "resnet18"
    encoder_width: int = Field(1, ge=1, le=16, exclude_if=lambda width: width == 1)
    """Factor on the channels of the encoder `small`. Files leave out 1, so that earlier versions can read them."""

    crop_shape: tuple[int, int] = (76, 76)
    """Height and width of the crop of every image, random in training, central otherwise."""
    crop_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Sides of the crop as a share of those of each image, instead of `crop_shape`; 0: `crop_shape`."""

    share_encoder: bool = False
    """One encoder for all cameras, whose crops must have the same shape and channels."""

    fusion: int = Field(0, ge=0, le=4096)
    """Hidden width of an MLP over all features of one step; its output is appended to the features. It runs once per
    observation, the transformer once per denoising step. 0: no MLP, as published."""

    # conditioning on observations
    obs_as_cond: bool = True
    """True: observations are tokens of the transformer's memory. False: inpainting, in [action, features]."""
    pred_action_steps_only: bool = False
    """Predict only the n_action_steps that are executed, instead of the whole horizon."""
    prefix_steps: int = Field(0, ge=0, le=511, exclude_if=lambda steps: steps == 0)
    """Number of executed actions that may be given: training gives a random number of them, up to this one, and the
    policy learns to continue them. 0: none; it is then left out of files, which earlier versions can read."""

    # transformer
    n_layer: int = Field(8, ge=1, le=64)
    n_cond_layers: int = Field(0, ge=0, le=64)
    """Encoder layers over the memory; 0: an MLP."""
    time_as_cond: bool = True
    """True: the diffusion step is a token of the memory. False: it is the first token of a transformer encoder."""
    n_head: int = Field(4, ge=1, le=64)
    n_emb: int = Field(256, ge=4, le=4096)
    p_drop_emb: float = Field(0.0, ge=0.0, lt=1.0)
    p_drop_attn: float = Field(0.3, ge=0.0, lt=1.0)
    causal_attn: bool = True

    # diffusion
    num_train_timesteps: int = Field(100, ge=2, le=10000)
    beta_start: float = Field(0.0001, gt=0, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: BetaSchedule = "squaredcos_cap_v2"
    clip_sample: bool = True
    prediction_type: PredictionType = "epsilon"
    sampler: Sampler = "ddpm"
    num_inference_steps: int = Field(100, ge=1)
    timestep_spacing: TimestepSpacing = "auto"

    @model_validator(mode="after")
    def _check_observations(self) -> Self:
        name = self.task.name
        if self.obs == "state" and self.task.simulator and not self.task.object_dim:
            raise ConfigError(
                f"the task '{name}' defines no object, which a state policy observes.",
                'Add "object": {OBSERVABLE: WIDTH} to the task file and convert again, or train with --obs image.',
            )
        if not self.cameras and not self.low_dim:
            other = "image" if self.obs == "state" else "state"
            raise ConfigError(f"the task '{name}' has no observations for --obs {self.obs}.", f"Use --obs {other}.")
        return self

    @model_validator(mode="after")
    def _check_actions(self) -> Self:
        if self.actions not in self.task.conventions:
            valid = " or ".join(self.task.conventions)
            raise ValueError(f"actions '{self.actions}' do not fit the task '{self.task.name}': expected {valid}")
        return self

    @model_validator(mode="after")
    def _check_crop(self) -> Self:
        for key, camera in self.cameras.items():
            for side, size in zip(self.crop(key), (camera.height, camera.width), strict=True):
                if not MIN_SIDE <= side <= size:
                    setting = f"crop_ratio {self.crop_ratio}" if self.crop_ratio else f"crop_shape {self.crop_shape}"
                    raise ValueError(
                        f"{setting} must lie between {MIN_SIDE} and {size} pixels, the size of the images '{key}'"
                        + (f" (resized from {'x'.join(map(str, camera.recorded))})" if camera.recorded else "")
                    )
        return self

    @model_validator(mode="after")
    def _check_encoder_width(self) -> Self:
        if self.encoder_width > 1 and self.encoder != "small":
            raise ValueError(f"encoder_width {self.encoder_width} needs encoder small: {self.encoder} has one width")
        return self

    @model_validator(mode="after")
    def _check_shared_encoder(self) -> Self:
        inputs = {key: (camera.channels, *self.crop(key)) for key, camera in self.cameras.items()}
        if self.share_encoder and len(set(inputs.values())) > 1:
            listed = ", ".join(
                f"{key} {height}x{width}x{channels}" for key, (channels, height, width) in inputs.items()
            )
            raise ValueError(
                f"share_encoder needs crops of one shape: {listed}; --set image_size=96x96 gives all images one size"
            )
        return self

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        if self.n_obs_steps > self.horizon:
            raise ValueError(f"n_obs_steps {self.n_obs_steps} is longer than horizon {self.horizon}")
        max_action_steps = self.horizon - self.n_obs_steps + 1
        if self.n_action_steps > max_action_steps:
            raise ValueError(
                f"n_action_steps {self.n_action_steps} is more than horizon - n_obs_steps + 1 = {max_action_steps}: "
                "actions start at the last observation"
            )
        if self.obs_as_cond and not self.time_as_cond:
            raise ValueError("obs_as_cond needs time_as_cond: without it there is no memory for the observations")
        if self.n_cond_layers and not self.time_as_cond:
            raise ValueError(f"n_cond_layers {self.n_cond_layers} needs time_as_cond: there is no memory to encode")
        if self.pred_action_steps_only and not self.obs_as_cond:
            raise ValueError("pred_action_steps_only needs obs_as_cond: inpainting fills in the whole window")
        if self.prefix_steps >= self.n_action_steps:
            raise ValueError(
                f"prefix_steps {self.prefix_steps} must be less than n_action_steps {self.n_action_steps}: "
                "a chunk needs an action to predict"
            )
        if self.prefix_steps and not self.obs_as_cond:
            raise ValueError(f"prefix_steps {self.prefix_steps} needs obs_as_cond: inpainting marks no tokens as given")
        if self.prefix_steps and (taken := {PREFIX, PREFIX_LENGTH} & {*self.low_dim, *self.image_keys}):
            raise ValueError(f"the observation '{taken.pop()}' has the name of an input of policies with prefix_steps")
        if self.n_emb % self.n_head or self.n_emb % 2:
            raise ValueError(f"n_emb {self.n_emb} must be even and a multiple of n_head {self.n_head}")
        return self

    @model_validator(mode="after")
    def _check_diffusion(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        if self.num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} is above "
                f"num_train_timesteps {self.num_train_timesteps}"
            )
        all_steps = self.num_inference_steps == self.num_train_timesteps
        if self.sampler == "dpm" and self.resolved_timestep_spacing == "leading" and all_steps:
            raise ValueError(
                "the sampler dpm cannot use all timesteps with timestep_spacing leading, only with trailing"
            )
        return self

    def with_sampler(self, sampler: str | None, num_inference_steps: int | None) -> PolicyConfig:
        """A copy with another sampler or number of inference steps. None keeps the current value, except that DDPM,
        which needs all steps, uses num_train_timesteps instead of the number of another sampler. ConfigError if the
        sampler cannot take that number of steps.
        """
        if sampler == "ddpm" and self.sampler != "ddpm" and num_inference_steps is None:
            num_inference_steps = self.num_train_timesteps
        changes = {"sampler": sampler, "num_inference_steps": num_inference_steps}
        try:
            return PolicyConfig(**self.model_dump() | {k: v for k, v in changes.items() if v is not None})
        except UnknownNameError:
            raise
        except ConfigError as e:  # its hint is that of a training
            hint = f"Choose --inference-steps from 1 to {self.num_train_timesteps}, or another --sampler."
            raise ConfigError(e.message, hint) from None

    def with_prefix_steps(self, steps: int) -> PolicyConfig:
        """A copy with another `prefix_steps`."""
        return PolicyConfig(**self.model_dump() | {"prefix_steps": steps})

    @property
    def resolved_timestep_spacing(self) -> str:
        """`timestep_spacing` with `auto` resolved."""
        if self.timestep_spacing != "auto":
            return self.timestep_spacing
        n_train, n = self.num_train_timesteps, self.num_inference_steps
        starts_noisy = (n - 1) * (n_train // n) >= 0.8 * n_train  # with leading
        return "leading" if n >= 10 and starts_noisy and self.sampler != "dpm" else "trailing"

    @property
    def low_dim(self) -> dict[str, int]:
        """Low-dimensional keys and widths, in the order of the features."""
        return self.task.vectors(self.obs)

    @property
    def cameras(self) -> dict[str, Camera]:
        """Cameras by key, in the order of the features."""
        return self.task.images(self.obs)

    @property
    def image_keys(self) -> list[str]:
        """Image keys, in the order of the features."""
        return list(self.cameras)

    def crop(self, key: str) -> tuple[int, int]:
        """Height and width of the crop of a camera."""
        if not self.crop_ratio:
            return self.crop_shape
        camera = self.cameras[key]
        return round(self.crop_ratio * camera.height), round(self.crop_ratio * camera.width)

    @property
    def action_parts(self) -> tuple[ActionPart, ...]:
        """The parts of an action."""
        return self.task.action_parts(self.actions)

    @property
    def trajectory_steps(self) -> int:
        """Number of steps of the denoised trajectory."""
        return self.n_action_steps if self.pred_action_steps_only else self.horizon

    @property
    def trajectory_start(self) -> int:
        """Step of the window at which the denoised trajectory starts."""
        return self.n_obs_steps - 1 if self.pred_action_steps_only else 0

    @property
    def action_start(self) -> int:
        """Step of the denoised trajectory at which the executed actions start: that of the last observation."""
        return self.n_obs_steps - 1 - self.trajectory_start

    @property
    def n_encoded_steps(self) -> int:
        """Observations of a window that training encodes: inpainting learns to predict the features of all steps."""
        return self.n_obs_steps if self.obs_as_cond else self.horizon

    @property
    def action_dim(self) -> int:
        return sum(part.width for part in self.action_parts)

    @property
    def pad_before(self) -> int:
        return self.n_obs_steps - 1

    @property
    def pad_after(self) -> int:
        return self.n_action_steps - 1
