"""Data, sizes and results that the parts of gpu.py share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.data.store import Store
from ddp_cli.presets import train_config
from ddp_cli.train_config import TrainConfig
from ddp_cli.training.dataloader import load_training_data
from ddp_cli.training.trainer import Trainer

SMALL = {"n_layer": 1, "n_emb": 16, "n_head": 2, "batch_size": 4, "encoder": "small"}


class Kit:
    """Data, sizes and results of one call."""

    def __init__(self, store: Store, device: torch.device, small: bool, deadline: float) -> None:
        self.store, self.device, self.small, self.deadline = store, device, small, deadline
        self.results: dict[str, Any] = {}

    def config(self, **settings: Any) -> TrainConfig:
        """The paper preset, without dropout, which random numbers of the device decide."""
        values = {"p_drop_attn": 0.0, "p_drop_emb": 0.0, "steps": 100_000, **(SMALL if self.small else {}), **settings}
        return train_config(self.store.task, "image", "paper", None, values)

    def trainer(self, device: torch.device, graph: bool = True, **settings: Any) -> Trainer:
        config = self.config(**settings)
        trainer = Trainer(config, load_training_data(config, self.store, device, print), device, total=100_000)
        if not graph:
            trainer.graph = None
        return trainer

    def observations(self, policy: DiffusionPolicy) -> dict[str, torch.Tensor]:
        """Those of one moment, the same on every device."""
        rng = torch.Generator().manual_seed(0)
        shape = (1, policy.config.n_obs_steps)
        images = {
            key: torch.randint(0, 256, (*shape, camera.channels, camera.height, camera.width), generator=rng).byte()
            for key, camera in policy.config.cameras.items()
        }
        return images | {k: torch.randn(*shape, n, generator=rng) for k, n in policy.config.low_dim.items()}

    def record(self, name: str, value: Any) -> None:
        self.results[name] = value
        print(f"{name}: {value}", flush=True)

    def check(self, name: str, value: float, limit: float) -> None:
        """Record a difference; the check passes if it is at most `limit`."""
        self.record(name, {"value": value, "limit": limit, "passed": bool(value <= limit)})

    def try_check(self, name: str, measure: Callable[[], float], limit: float) -> None:
        """`check`, with an error as a result: one failure must not hide the others."""
        try:
            self.check(name, measure(), limit)
        except Exception as e:  # noqa: BLE001 - torch.compile raises errors of any type
            self.record(name, {"error": f"{type(e).__name__}: {str(e)[:300]}", "passed": False})
