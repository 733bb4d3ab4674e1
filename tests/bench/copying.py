"""Images per second from an HDF5 file with images to a store: `python tests/bench/copying.py DEMOS.hdf5 STORE`.

STORE was converted from DEMOS.hdf5. The first episodes of both are written to an image file in robomimic's layout. The
baseline does what the field's best-known converter does: it encodes each frame as JPEG 2000 (level 50), writes it to a
file and decodes it again to verify it, in as many threads as there are processors (`pip install imagecodecs`).
`ddp` is `ddp_cli.data.conversion.convert`, timed from the end of the check of a demo until the store has its final
name. The check takes equally long for any file and is timed separately.

Memory is the peak of this process less its memory before the conversion. Finally, images are read back from the store
(training reads from memory, see training.py): all of them, and windows at random positions.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import imagecodecs
import numpy as np

from ddp_cli.data.conversion import convert
from ddp_cli.data.conversion_plan import ConvertOptions
from ddp_cli.data.store import Store


def write_image_file(demos: Path, store: Store, path: Path, n_episodes: int) -> int:
    """Write the first episodes, with their observations, to `path`; returns the number of images."""
    ends = [0, *store.episode_ends[:n_episodes].tolist()]
    with h5py.File(demos) as source, h5py.File(path, "w") as f:
        f.create_group("data").attrs.update(source["data"].attrs)
        source.copy("models", f)
        for name, (begin, end) in zip(store.attrs["source"]["demos"], itertools.pairwise(ends), strict=False):
            source.copy(f"data/{name}", f["data"])
            for key in (*store.task.schema.cameras, *store.task.vectors("state")):
                f[f"data/{name}/obs/{key}"] = store.read(key, rows=slice(begin, end))
    return len(store.task.schema.cameras) * ends[-1]


def convert_frame_by_frame(source: Path, out: Path, image_keys: list[str]) -> int:
    """Write one JPEG 2000 file per frame; returns the number of bytes."""

    def write_frame(path: Path, frame: np.ndarray) -> int:
        path.write_bytes(imagecodecs.jpeg2k_encode(frame, level=50))
        imagecodecs.jpeg2k_decode(path.read_bytes())
        return path.stat().st_size

    sizes = []
    with h5py.File(source) as f, ThreadPoolExecutor(os.cpu_count()) as pool:
        for key in image_keys:
            folder, row = out / key, 0
            folder.mkdir(parents=True)
            for name in sorted(f["data"], key=lambda n: int(n[5:])):
                frames = f[f"data/{name}/obs/{key}"][:]
                paths = [folder / f"{row + i}.0.0.0" for i in range(len(frames))]
                sizes += list(pool.map(write_frame, paths, frames))
                row += len(frames)
    return sum(sizes)


def process_memory(field: str) -> float:
    """Memory of this process [MB], on Linux: VmRSS (current) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure_reads(store: Store, image_keys: list[str]) -> tuple[float, float]:
    """Images per second when reading everything, and windows of 2 steps per second at random positions."""
    start = time.perf_counter()
    n_images = sum(len(store.read(key)) for key in image_keys)
    images_per_s = n_images / (time.perf_counter() - start)
    rows = np.random.default_rng(0).integers(0, n_images // len(image_keys) - 2, 300)
    start = time.perf_counter()
    for row in rows:
        for key in image_keys:
            store.read(key, rows=slice(row, row + 2))
    return images_per_s, len(rows) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demos", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("-n", "--episodes", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    store = Store(args.store)
    image_keys = list(store.task.schema.cameras)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_images = write_image_file(args.demos, store, folder / "image.hdf5", args.episodes)
        rates: dict[str, list[float]] = {"baseline": [], "ddp": []}
        for i in range(args.rounds):
            start = time.perf_counter()
            baseline_bytes = convert_frame_by_frame(folder / "image.hdf5", folder / f"baseline{i}", image_keys)
            rates["baseline"].append(n_images / (time.perf_counter() - start))
            out, timestamps = folder / f"ddp{i}.zarr", {}

            def progress(
                stage: str, done: int, _total: int, timestamps: dict[tuple[str, int], float] = timestamps
            ) -> None:
                timestamps[stage, done] = time.perf_counter()

            memory_before = process_memory("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            result = convert(folder / "image.hdf5", out, os.cpu_count() or 1, progress, ConvertOptions(check=1))
            assert set(image_keys) <= set(result.observations)
            rates["ddp"].append(n_images / (time.perf_counter() - timestamps["check", 1]))
            peak_memory = process_memory("VmHWM") - memory_before
            check_s = timestamps["check", 1] - timestamps["check", 0]
            files = (path for key in image_keys for path in (out / "data" / key).rglob("*") if path.is_file())
            ddp_bytes = sum(path.stat().st_size for path in files)
        images_per_s, windows_per_s = measure_reads(Store(out), image_keys)
        n_steps = n_images // len(image_keys)
        assert all(np.array_equal(Store(out).read(key), store.read(key)[:n_steps]) for key in image_keys)
    baseline, ddp = (float(np.median(rounds)) for rounds in rates.values())
    print(f"{n_images} images, {args.rounds} rounds, medians")
    print(f"baseline, JPEG 2000 per frame, lossy: {baseline:.0f} images/s, {baseline_bytes / n_images:.0f} bytes/image")
    print(f"ddp, lossless (compared):             {ddp:.0f} images/s, {ddp_bytes / n_images:.0f} bytes/image")
    print(f"check of one demo: {check_s:.0f} s; additional peak memory, including the check: {peak_memory:.0f} MB")
    print(f"reading back: {images_per_s:.0f} images/s, {windows_per_s:.0f} windows/s at random positions")
    print(f"{ddp / baseline:.1f} times as fast, {ddp_bytes / baseline_bytes:.2f} times the size")


if __name__ == "__main__":
    main()
