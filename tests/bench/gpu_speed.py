"""Part 2 of gpu.py: is `ddp` fast on the device?"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_kit import Kit
from plain import PlainPolicy, PlainTrainer
from training import plain_batches, time_per_call

from ddp_cli.core.diffusion import make_scheduler
from ddp_cli.core.policy import DiffusionPolicy
from ddp_cli.core.windows import to_device
from ddp_cli.inference.engine import make_predict_fn
from ddp_cli.train_config import TrainConfig

SAMPLERS = [("ddpm", 100), ("ddim", 10), ("ddim", 4), ("ddim", 1)]


def measure_speed(kit: Kit) -> None:
    """Part 2."""
    # The baseline has no auxiliary losses and no object pose: without them both do the same work.
    config = kit.config(action_loss=0.0, object_loss=0.0)
    n_steps, n_loads = (2, 2) if kit.small else (50, 200)
    plain_s = time_plain_step(kit, config, n_steps)
    variants: dict[str, dict[str, bool]] = {"one kernel at a time": {"graph": False}, "CUDA graph": {}}
    if not kit.small:
        variants |= {f"{name}, torch.compile": {**v, "compile": True} for name, v in variants.items()}
    for name, settings in variants.items():
        trainer = kit.trainer(kit.device, action_loss=0.0, object_loss=0.0, **settings)
        for _ in range(5):  # compiles and records
            trainer.step()
        with BusyShare(kit.device) as busy:
            seconds = time_per_call(trainer.step, n_steps, 5, kit.device)
        kit.record(
            f"training step, {name}",
            {
                "plain_s": plain_s, "ddp_s": seconds, "times as fast": plain_s / seconds, "GPU busy [%]": busy.percent,
                "samples/s": config.batch_size / seconds,
            },
        )  # fmt: skip
    steps = itertools.count()
    loading_s = time_per_call(
        lambda: to_device(trainer.loader.batch(next(steps)), kit.device), n_loads, 5, kit.device
    )  # fmt: skip
    kit.record("loader [batches/s]", 1.0 / loading_s)
    measure_latency(kit)
    measure_several_gpus(kit)


def time_plain_step(kit: Kit, config: TrainConfig, n_steps: int) -> float:
    trainer = PlainTrainer(config, kit.device)
    batches = plain_batches(config, kit.store, 0 if kit.small else 4)
    return time_per_call(lambda: trainer.step(next(batches)), n_steps, 2, kit.device)


class BusyShare:
    """Samples the utilization of the GPU that nvidia-smi reports; `percent` is None without it."""

    def __init__(self, device: torch.device) -> None:
        self._enabled = device.type == "cuda" and shutil.which("nvidia-smi") is not None
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BusyShare:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        if self._enabled:
            self._thread.join()

    def _run(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.2):
            self._samples.append(float(subprocess.check_output(query, text=True).split()[0]))

    @property
    def percent(self) -> float | None:
        return float(np.median(self._samples)) if self._samples else None


@torch.no_grad()
def measure_latency(kit: Kit) -> None:
    """Time of an action chunk of the paper policy with images, batch size 1, by sampler and engine."""
    plain = PlainPolicy(kit.config()).eval().to(kit.device)
    images = torch.rand(2, 3, *kit.config().policy.crop_shape, device=kit.device)
    vectors = torch.randn(2, plain.cond_emb.in_features - 64 * len(plain.encoders), device=kit.device)

    def plain_loop(scheduler: Any) -> torch.Tensor:
        cond = torch.cat([*(encoder(images) for encoder in plain.encoders.values()), vectors], -1)[None]
        x = torch.randn(1, 10, 7, device=kit.device)
        for k in scheduler.timesteps:
            x = scheduler.step(plain.denoise(x, k.expand(1), cond), k, x).prev_sample
        return x

    n = 2 if kit.small else 20
    table = {}
    for sampler, n_denoising in SAMPLERS:
        config = kit.config(sampler=sampler, num_inference_steps=n_denoising).policy
        scheduler = make_scheduler(config)
        scheduler.set_timesteps(n_denoising, device=kit.device)
        plain_s = time_per_call(lambda scheduler=scheduler: plain_loop(scheduler), n, 2, kit.device)
        table[f"{sampler} {n_denoising}, plain"] = 1000.0 * plain_s
        policy = DiffusionPolicy(config).eval()
        policy.to(kit.device)
        obs = {key: x.to(kit.device) for key, x in kit.observations(policy).items()}
        for engine in ["torch"] if kit.small else ["torch", "compile"]:
            try:
                predict = make_predict_fn(policy, engine)
                seconds = time_per_call(
                    lambda predict=predict, obs=obs: predict(obs, torch.Generator()), n, 5, kit.device
                )
            except Exception as e:  # noqa: BLE001 - torch.compile raises errors of any type
                kit.record(f"{sampler} {n_denoising}, {engine}", {"error": str(e)[:300]})
                continue
            table[f"{sampler} {n_denoising}, {engine}"] = 1000.0 * seconds
    kit.record("time per action chunk [ms]", table)


def measure_several_gpus(kit: Kit) -> None:
    """Steps/s of `ddp train` under torchrun with 1, 2, 4, ... GPUs, if there are several."""
    count = torch.cuda.device_count() if kit.device.type == "cuda" else 1
    rates = {}
    while count > 1 and time.monotonic() < kit.deadline - 120:
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            command += ["-m", "ddp_cli.cli", "train", "--data", str(kit.store.path), "--preset", "paper"]
            command += ["--steps", "200", "--runs", runs, "--name", "a", "--allow-unverified"]
            subprocess.run(command, check=True)
            lines = next(Path(runs).rglob("metrics.jsonl")).read_text().splitlines()
            rates[count] = [json.loads(line)["steps_per_s"] for line in lines if "steps_per_s" in line][-1]
        count //= 2
    kit.record("steps/s by number of GPUs", rates or "one device")
