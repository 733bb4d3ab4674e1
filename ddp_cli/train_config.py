"""Configuration of training runs: frozen, validated, the same in Python, on the command line and in JSON.

Names and defaults are those of the published training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from ddp_cli.base_config import BaseConfig
from ddp_cli.choices import TrainingPrecision
from ddp_cli.errors import ConfigError
from ddp_cli.policy_config import PolicyConfig


class TrainConfig(BaseConfig):
    """Everything that defines a training run, given its store."""

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
    """Weight of an auxiliary loss of image policies: the store's `object` (poses, from the simulator), regressed from
    the features. Only used in training; the policy runs on images."""

    shared_scale: bool = False
    """State policies: one scale for the whole observation, as published, instead of ranges per key."""
    precision: TrainingPrecision = "auto"

    lr: float = Field(1e-4, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.95)
    transformer_weight_decay: float = Field(1e-3, ge=0)
    obs_encoder_weight_decay: float = Field(1e-6, ge=0)
    warmup_steps: int = Field(1000, ge=0)
    """Linear warm-up of the learning rate; at most 5% of the run."""

    ema_inv_gamma: float = Field(1.0, gt=0)
    ema_power: float = Field(0.75, gt=0)
    ema_max_value: float = Field(0.9999, ge=0, lt=1)

    clip_grad_norm: float = Field(0.0, ge=0)
    """Maximum norm of the gradient; 0: no clipping, as published."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Gradient accumulation: parts that a batch is split into. Same result, less memory."""
    compile: bool = False
    """torch.compile the encoders and the denoiser. No faster on 2 CPU cores."""
    memory_gb: float = Field(0.0, ge=0)
    """Memory limit for decoded images [GB]; images beyond it stay on disk. 0: half of the available memory."""
    cache_dir: str = ""
    """Folder for images that are decoded to disk. Empty: beside the store."""
    pad_short: bool = False
    """Pad episodes that are shorter than a window at their end, by repetition of their last step. False, as published:
    episodes that are too short for any window are not used."""

    steps: int = Field(0, ge=0)
    epochs: float = Field(0.0, ge=0)
    minutes: float = Field(0.0, ge=0)
    checkpoint_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: `eval_every`, or ten checkpoints in a run."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Maximum time between checkpoints [min]; of those saved only because of it, the newest is kept."""
    keep: int = Field(10, ge=1)
    """Number of newest checkpoints to keep, besides the best."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations in the simulator; there is one at the end, too. 0: none. `best` is chosen by them."""
    eval_episodes: int = Field(20, ge=1)
    """Episodes per evaluation."""

    @field_validator("cache_dir")
    @classmethod
    def _make_absolute(cls, path: str) -> str:
        return str(Path(path).expanduser().absolute()) if path else ""

    @model_validator(mode="after")
    def _check(self) -> Self:
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
        if self.eval_every and not self.policy.task.simulator:
            raise ConfigError(
                f"eval_every {self.eval_every}: the task '{self.policy.task.name}' has no simulator.",
                "Leave it at 0: only tasks of robosuite can be evaluated during training.",
            )
        if self.object_loss and self.policy.obs == "image" and not self.policy.task.object_dim:
            raise ConfigError(
                f"object_loss {self.object_loss:g}: the task '{self.policy.task.name}' defines no object.",
                'Leave it at 0, or add "object": {OBSERVABLE: WIDTH} to the task file and convert again.',
            )
        return self

    @property
    def object_weight(self) -> float:
        """Weight of the object loss; 0 for state policies, which observe the object."""
        return self.object_loss if self.policy.obs == "image" else 0.0
