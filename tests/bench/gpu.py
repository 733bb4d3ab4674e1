"""What `ddp` does on a GPU, without a simulator. In the root of the repository:

    PYTHONPATH=.:tests/data python tests/bench/gpu.py --part 1 --store square.zarr --out results

    part 1    is it correct: losses, resuming, bf16, torch.compile and CUDA graphs against the CPU in float32
    part 2    is it fast: training steps, data loader, busy share of the GPU, latency of action chunks, several GPUs
    part 3    trains the paper preset for --minutes, or towards --steps; run again, it continues

Each part ends within --minutes and writes OUT/gpu-part-N.json. Without --store the data is random. `--small` shrinks
everything to sizes that a CPU can do. It needs torch, torchvision, diffusers, zarr, h5py, pydantic, typer, rich and
scipy, no robosuite.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from gpu_checks import check_correctness
from gpu_kit import Kit
from gpu_speed import measure_speed
from random_stores import write_store
from safetensors.torch import save_file

from ddp_cli.data.store import Store
from ddp_cli.presets import parse_settings
from ddp_cli.tasks import get_task
from ddp_cli.training.loop import Callbacks
from ddp_cli.training.resume import resume_run
from ddp_cli.training.run import create_run, run_training

TARGETS = {"step, times as fast": 4.0, "ddpm 100 [ms]": 15.0, "ddim 10 [ms]": 3.0}


def train_paper(kit: Kit, out: Path, settings: dict[str, Any]) -> None:
    """Part 3: the run OUT/run is created, or resumed where the call before left it. Its weights are also written in
    half precision, in files of at most 15 MiB: machines with a GPU do not always have a fast way out.
    """
    folder = out / "run"
    if (folder / "config.json").exists():
        run = resume_run(folder, kit.device, print, print, data=kit.store.path)
    else:
        config = kit.config(p_drop_attn=0.3, compile=not kit.small, checkpoint_minutes=3.0, **settings)
        run = create_run(folder, config, kit.store, kit.device, print)
    first = run.trainer.step_number
    run_training(run, Callbacks(should_stop=lambda: time.monotonic() > kit.deadline))
    write_half_precision(run.trainer.ema_weights(), out)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps_per_s = [line["steps_per_s"] for line in lines if "steps_per_s" in line]
    kit.record(
        "training of the paper preset",
        {
            "from step": first, "to step": run.trainer.step_number, "of": run.trainer.total,
            "loss": [line["loss"] for line in lines if "loss" in line][-1:],
            "val_loss": [line["val_loss"] for line in lines if "val_loss" in line][-1:],
            "steps/s": steps_per_s[-1] if steps_per_s else None,
        },
    )  # fmt: skip


def write_half_precision(weights: dict[str, torch.Tensor], out: Path) -> None:
    """OUT/weights-N.safetensors."""
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, x in weights.items():
        half = x.detach().cpu().half().contiguous()
        if size + half.nbytes > 15 * 2**20:
            parts, size = [*parts, {}], 0
        parts[-1][name] = half
        size += half.nbytes
    for i, part in enumerate(parts):
        save_file(part, out / f"weights-{i}.safetensors")


def describe_machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {"device": name, "gpus": torch.cuda.device_count(), "torch": torch.__version__, "cuda": torch.version.cuda}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=int, choices=(1, 2, 3), required=True)
    parser.add_argument("--store", type=Path, help="store of square or lift with images; random data without")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, help="length of the run of part 3; without, as many as fit into --minutes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of part 3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    deadline = time.monotonic() + 60.0 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        lengths = [30, 30] if args.small else [150] * 40
        path = args.store or write_store(Path(folder) / "random.zarr", lengths, task=get_task("square"))
        kit = Kit(Store(path), device, args.small, deadline)
        kit.record("machine", describe_machine(device))
        if args.part == 1:
            check_correctness(kit)
        elif args.part == 2:
            measure_speed(kit)
            kit.record("targets", TARGETS)
        else:
            # Two minutes are left for the measurement of the rate, torch.compile and checkpoints.
            length = {"steps": args.steps} if args.steps else {"steps": 0, "minutes": max(0.1, args.minutes - 2.0)}
            train_paper(kit, args.out, parse_settings(args.set) | length)
    report = args.out / f"gpu-part-{args.part}.json"
    report.write_text(json.dumps(kit.results, indent=2) + "\n")
    failed = [name for name, value in kit.results.items() if isinstance(value, dict) and value.get("passed") is False]
    print(f"{report}: {len(failed)} checks failed {failed}" if failed else str(report))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
