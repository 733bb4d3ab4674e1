"""Pictures per second from an HDF5 file that holds them to a store: `python tests/bench/copying.py DEMOS.hdf5 STORE`.

STORE was converted from DEMOS.hdf5; of both, the first episodes make an image file as robomimic writes it. The baseline
is what the field's best-known converter does: every frame is encoded by itself as JPEG 2000 (level 50), written to a
file, and decoded again to see that it can be, by as many threads as there are processors (`pip install imagecodecs`).
Memory: how much higher the peak of this process is than what it had before. Then what was written is read again: all of
it, and windows at random places, straight from the store (training reads from memory, see training.py).

Ours is `ddp_cli.data.conversion.convert`, from the end of the check of a demo, which takes as long for any file and is
timed by itself, to the store's final name.
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


def write_file(demos: Path, store: Store, path: Path, episodes: int) -> int:
    """The first episodes with what was seen; returns how many pictures that is."""
    ends = [0, *store.episode_ends[:episodes].tolist()]
    with h5py.File(demos) as source, h5py.File(path, "w") as f:
        f.create_group("data").attrs.update(source["data"].attrs)
        source.copy("models", f)
        for name, (begin, end) in zip(store.attrs["source"]["demos"], itertools.pairwise(ends), strict=False):
            source.copy(f"data/{name}", f["data"])
            for key in (*store.task.cameras, *store.task.vectors("state")):
                f[f"data/{name}/obs/{key}"] = store.read(key, rows=slice(begin, end))
    return len(store.task.cameras) * ends[-1]


def plain(source: Path, out: Path, keys: list[str]) -> int:
    """Frame by frame; returns the bytes written."""

    def one(path: Path, frame: np.ndarray) -> int:
        path.write_bytes(imagecodecs.jpeg2k_encode(frame, level=50))
        imagecodecs.jpeg2k_decode(path.read_bytes())
        return path.stat().st_size

    sizes = []
    with h5py.File(source) as f, ThreadPoolExecutor(os.cpu_count()) as pool:
        for key in keys:
            folder, row = out / key, 0
            folder.mkdir(parents=True)
            for name in sorted(f["data"], key=lambda n: int(n[5:])):
                frames = f[f"data/{name}/obs/{key}"][:]
                paths = [folder / f"{row + i}.0.0.0" for i in range(len(frames))]
                sizes += list(pool.map(one, paths, frames))
                row += len(frames)
    return sum(sizes)


def megabytes(name: str) -> float:
    """Memory of this process, by Linux: VmRSS, now, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def read_again(store: Store, keys: list[str]) -> tuple[float, float]:
    """Pictures per second when all are read, and windows of 2 steps per second."""
    begun = time.perf_counter()
    count = sum(len(store.read(key)) for key in keys)
    whole = count / (time.perf_counter() - begun)
    rows = np.random.default_rng(0).integers(0, count // len(keys) - 2, 300)
    begun = time.perf_counter()
    for row in rows:
        for key in keys:
            store.read(key, rows=slice(row, row + 2))
    return whole, len(rows) / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demos", type=Path)
    parser.add_argument("store", type=Path)
    parser.add_argument("-n", "--episodes", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    store = Store(args.store)
    keys = list(store.task.cameras)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write_file(args.demos, store, folder / "image.hdf5", args.episodes)
        rates: dict[str, list[float]] = {"plain": [], "ddp": []}
        for i in range(args.rounds):
            begun = time.perf_counter()
            plain_bytes = plain(folder / "image.hdf5", folder / f"plain{i}", keys)
            rates["plain"].append(pictures / (time.perf_counter() - begun))
            out, heard = folder / f"ours{i}.zarr", {}

            def progress(what: str, done: int, _total: int, heard: dict[tuple[str, int], float] = heard) -> None:
                heard[what, done] = time.perf_counter()

            before = megabytes("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            done = convert(folder / "image.hdf5", out, os.cpu_count() or 1, progress, ConvertOptions(check=1))
            assert set(keys) <= set(done.observations)
            rates["ddp"].append(pictures / (time.perf_counter() - heard["check", 1]))
            memory = megabytes("VmHWM") - before
            checking = heard["check", 1] - heard["check", 0]
            ours = sum(p.stat().st_size for key in keys for p in (out / "data" / key).rglob("*") if p.is_file())
        whole, windows = read_again(Store(out), keys)
        assert all(np.array_equal(Store(out).read(key), store.read(key)[: pictures // len(keys)]) for key in keys)
    one, other = (float(np.median(found)) for found in rates.values())
    print(f"{pictures} images, {args.rounds} rounds, medians")
    print(f"plain, JPEG 2000 frame by frame, lossy: {one:.0f} images/s, {plain_bytes / pictures:.0f} bytes an image")
    print(f"ddp, lossless (compared):               {other:.0f} images/s, {ours / pictures:.0f} bytes an image")
    print(f"and {checking:.0f} s for the check of one demo; at most {memory:.0f} MB more memory, the check included")
    print(f"read again: {whole:.0f} images/s, {windows:.0f} windows/s at random places")
    print(f"{other / one:.1f} times as fast, {ours / plain_bytes:.2f} times the size")


if __name__ == "__main__":
    main()
