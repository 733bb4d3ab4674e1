"""Images per second of each render profile: `python tests/bench/rendering.py DEMOS.hdf5`.

States spread over the demos are rendered by both cameras at 84x84, by robosuite's own observations (the baseline) and
by each profile. All run in alternation in one process and one thread; setting states is not timed. The difference
between the images of a profile and those of the next better one is reported as PSNR.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np

os.environ["LP_NUM_THREADS"] = "0"  # Mesa renders in the calling thread, as in our worker processes

from ddp_cli.choices import RenderProfile
from ddp_cli.data.demo import Demo
from ddp_cli.data.demo_file import DemoFile
from ddp_cli.sim.environment import env_args, import_robosuite
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

REFERENCE = {"fast": "full", "coarse": "fast"}  # full has the pixels of robosuite (tested)


class RobosuiteRenderer:
    """robosuite's own camera observations. Its model is never replaced, so in Lift the cube keeps its size."""

    def __init__(self, task: Task) -> None:
        kwargs = env_args(task)["env_kwargs"] | {"has_offscreen_renderer": True}
        self.task, self._sim = task, import_robosuite().make(task.robosuite.env_name, **kwargs, hard_reset=False).sim

    def load_xml(self, _xml: str) -> None:
        """Keep the model."""

    def set_kinematic_state(self, state: Any) -> None:
        self._sim._render_context_offscreen.gl_ctx.make_current()  # robosuite assumes that it is the only renderer
        self._sim.set_state_from_flattened(state)
        self._sim.forward()

    def image(self, key: str) -> np.ndarray:
        name, camera = self.task.robosuite.cameras[key], self.task.schema.cameras[key]
        return self._sim.render(camera_name=name, width=camera.width, height=camera.height, depth=False)[::-1]


def select_states(demos: list[Demo], count: int) -> list[tuple[Demo, Any]]:
    """`count` states, evenly spread over all demos."""
    states = [(demo, state) for demo in demos for state in demo.states]
    return [states[i] for i in np.linspace(0, len(states) - 1, count).round().astype(int)]


def render(sim: Simulator | RobosuiteRenderer, states: list[tuple[Demo, Any]]) -> tuple[np.ndarray, float]:
    """Images (n, 84, 84, 3), and the time to render them [s]."""
    images, seconds, loaded_demo = [], 0.0, None
    for demo, state in states:
        if sim.task.robosuite.model_varies and demo is not loaded_demo:
            sim.load_xml(demo.xml)
            loaded_demo = demo
            sim.image("agentview_image")  # creates a context
        sim.set_kinematic_state(state)
        for key in sim.task.schema.cameras:
            start = time.perf_counter()
            images.append(sim.image(key))
            seconds += time.perf_counter() - start
    return np.stack(images), seconds


def median_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Median PSNR of the images that differ [dB]."""
    errors = ((a.astype(np.float64) - b) ** 2).mean((1, 2, 3))
    return float(np.median(10 * np.log10(255**2 / errors[errors > 0]))) if (errors > 0).any() else np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demos", type=Path)
    parser.add_argument("-n", "--states", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with DemoFile(args.demos) as file:
        states = select_states([file.read(name) for name in file.names[:4]], args.states)
        sims: dict[str, Simulator | RobosuiteRenderer] = {"robosuite": RobosuiteRenderer(file.task)}
        sims |= {name: Simulator(file.task, name) for name in get_args(RenderProfile)}
    rates: dict[str, list[float]] = {name: [] for name in sims}
    images: dict[str, np.ndarray] = {}
    for sim in sims.values():
        render(sim, states[:1])
    for _ in range(args.rounds):
        for name, sim in sims.items():
            images[name], seconds = render(sim, states)
            rates[name].append(len(images[name]) / seconds)
    medians = {name: float(np.median(rounds)) for name, rounds in rates.items()}
    for name, rate in medians.items():
        line = f"{name:9} {rate:6.1f} images/s, {1000 / rate:5.1f} ms each"
        if name != "robosuite":
            line += f", {rate / medians['robosuite']:.1f} times robosuite, {rate / medians['full']:.1f} times full"
        if name in REFERENCE:
            line += f", PSNR {median_psnr(images[name], images[REFERENCE[name]]):.1f} dB against {REFERENCE[name]}"
        print(line)


if __name__ == "__main__":
    main()
