"""Pictures per second of each render profile: `python tests/bench/rendering.py DEMOS.hdf5`.

States spread over the demos are drawn by both cameras at 84x84: as robosuite draws its own observations (the plain
way), and by each profile. All of them in one process and one thread, by turns; that states are set is not counted.
How far the pictures of a profile are from those of the one before it is said as PSNR.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ["LP_NUM_THREADS"] = "0"  # Mesa draws in the thread that asks, as in a process of ours

from ddp_cli.data.demo_file import Demo, DemoFile
from ddp_cli.sim.renderer import RENDER_PROFILES
from ddp_cli.sim.simulator import Simulator, env_args
from ddp_cli.tasks import IMAGE_SIZE, Task


class Plain:
    """An environment of robosuite that draws its own observations; its cube, where the size varies, is another."""

    def __init__(self, task: Task) -> None:
        import robosuite

        kwargs = env_args(task)["env_kwargs"] | {"has_offscreen_renderer": True}
        self.task, self._sim = task, robosuite.make(task.env_name, **kwargs, hard_reset=False).sim

    def load_xml(self, _xml: str) -> None:
        """Its model stays."""

    def show_state(self, state: Any) -> None:
        self._sim.set_state_from_flattened(state)
        self._sim.forward()

    def image(self, key: str) -> np.ndarray:
        camera = self.task.cameras[key]
        return self._sim.render(camera_name=camera, width=IMAGE_SIZE, height=IMAGE_SIZE, depth=False)[::-1]


def states(demos: list[Demo], count: int) -> list[tuple[Demo, Any]]:
    every = [(demo, state) for demo in demos for state in demo.states]
    return [every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int)]


def draw(sim: Simulator | Plain, chosen: list[tuple[Demo, Any]]) -> tuple[np.ndarray, float]:
    """Pictures (n, 84, 84, 3), and the seconds that they took."""
    pictures, seconds, loaded = [], 0.0, None
    for demo, state in chosen:
        if sim.task.model_varies and demo is not loaded:
            sim.load_xml(demo.xml)
            loaded = demo
            sim.image("agentview_image")  # a context is made
        sim.show_state(state)
        for key in sim.task.cameras:
            begun = time.perf_counter()
            pictures.append(sim.image(key))
            seconds += time.perf_counter() - begun
    return np.stack(pictures), seconds


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Of pictures that differ, the median [dB]."""
    errors = ((one.astype(np.float64) - other) ** 2).mean((1, 2, 3))
    return float(np.median(10 * np.log10(255**2 / errors[errors > 0]))) if (errors > 0).any() else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demos", type=Path)
    parser.add_argument("-n", "--states", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with DemoFile(args.demos) as file:
        chosen = states([file.read(name) for name in file.names[:4]], args.states)
        sims: dict[str, Simulator | Plain] = {"robosuite": Plain(file.task)}
        sims |= {name: Simulator(file.task, name) for name in RENDER_PROFILES}
    rates: dict[str, list[float]] = {name: [] for name in sims}
    seen: dict[str, np.ndarray] = {}
    for sim in sims.values():
        draw(sim, chosen[:1])
    for _ in range(args.rounds):
        for name, sim in sims.items():
            seen[name], seconds = draw(sim, chosen)
            rates[name].append(len(seen[name]) / seconds)
    medians = {name: float(np.median(found)) for name, found in rates.items()}
    above = {"robosuite": "", "full": "", "fast": "full", "coarse": "fast"}  # full is robosuite's own, by a test
    for name, rate in medians.items():
        ratios = (
            ""
            if name == "robosuite"
            else f", {rate / medians['robosuite']:.1f} times robosuite, {rate / medians['full']:.1f} times full"
        )
        close = f", PSNR {psnr(seen[name], seen[above[name]]):.1f} dB against {above[name]}" if above[name] else ""
        print(f"{name:9} {rate:6.1f} images/s, {1000 / rate:5.1f} ms each{ratios}{close}")


if __name__ == "__main__":
    main()
