"""Images per second from videos to a store: `python tests/bench/video_conversion.py DATASET --image-size 112x112`.

DATASET is a LeRobot dataset with videos. Two baselines decode its videos with ffmpeg alone, one after another with all
processors, and throw the frames away: as the codec stores them, and as RGB, which is what a conversion needs. `ddp` is
the whole command `ddp convert`, its start included, so that DATASET should take some ten seconds. Rounds alternate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from ddp_cli.video.decoder import count_frames


def decode(videos: list[Path], *options: str) -> None:
    for video in videos:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-i", video, *options, "-f", "null", "-"]
        subprocess.run(command, check=True)


def convert(dataset: Path, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ddp_cli", "convert", dataset, "--out", f"{folder}/s.zarr", *options]
        subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--image-size")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    videos = sorted(args.dataset.rglob("*.mp4"))
    n_images = sum(count_frames(video) for video in videos)
    options = ["--image-size", args.image_size] if args.image_size else []
    runs = {
        "decoder alone": lambda: decode(videos),
        "decoder alone, to RGB": lambda: decode(videos, "-pix_fmt", "rgb24"),
        "ddp convert": lambda: convert(args.dataset, options),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            rates[name].append(n_images / (time.perf_counter() - start))
    medians = {name: float(np.median(values)) for name, values in rates.items()}
    print(f"{n_images} images in {len(videos)} videos, {args.rounds} rounds, medians")
    for name, rate in medians.items():
        print(f"{name}: {rate:.0f} images/s ({min(rates[name]):.0f} to {max(rates[name]):.0f})")
    for name in ("decoder alone", "decoder alone, to RGB"):
        print(f"{medians['ddp convert'] / medians[name]:.2f} of '{name}'")


if __name__ == "__main__":
    main()
