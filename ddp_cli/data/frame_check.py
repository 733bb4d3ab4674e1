"""Compares the recorded observations of every demo with those of the simulator, at some steps of each.

Files are merged from several sources: a few demos may have images that are upside down, or observations of another
robosuite version, without any in the demos that are replayed (replay_check.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ddp_cli.data.demo import Demo
from ddp_cli.data.image_faults import Image, describe_fault, psnr
from ddp_cli.data.observations import load_demo_model
from ddp_cli.sim.simulator import Simulator

IDENTICAL_PSNR = 60.0  # [dB], above which images differ in the last bits only
OBS_TOLERANCE = 1e-3  # [m], [rad], components of a quaternion


@dataclass
class FrameResult:
    """The comparison of one or more steps of a demo."""

    demo: str
    psnr: float | None = None
    """Lowest PSNR of a recorded image against the rendered one [dB]; None if no images were recorded."""
    image_faults: dict[str, str] = field(default_factory=dict)
    """Image key -> how its image differs from the rendered one."""
    differing: set[str] = field(default_factory=set)
    """Low-dimensional keys whose values differ."""

    def add(self, other: FrameResult) -> None:
        """Adds the comparison of another step."""
        values = [x for x in (self.psnr, other.psnr) if x is not None]
        self.psnr = min(values, default=None)
        self.image_faults |= other.image_faults
        self.differing |= other.differing


@dataclass(frozen=True)
class Frame:
    """One step of a demo: `demo` has its observations, (1, ...) each, and the states around it; `index` is its own."""

    demo: Demo
    index: int


def check_frame(sim: Simulator, frame: Frame) -> FrameResult:
    """Compares the recorded observations of one step with the simulator's."""
    demo = frame.demo
    load_demo_model(sim, demo)
    sim.set_kinematic_state(demo.states[frame.index])
    recorded = {key: demo.obs[key][0] for key in sim.task.schema.cameras if key in demo.obs}
    rendered = {key: sim.image(key) for key in recorded}
    differing = {
        key
        for key, value in sim.low_dim().items()
        if key in demo.obs and not np.allclose(demo.obs[key][0], value, atol=OBS_TOLERANCE)
    }
    lowest_psnr = min((psnr(rendered[key], recorded[key]) for key in recorded), default=None)
    faults: dict[str, str] = {}
    if lowest_psnr is not None and lowest_psnr < IDENTICAL_PSNR:
        neighbors = _render_neighbors(sim, frame, list(recorded))
        for key, image in recorded.items():
            around = {offset: images[key] for offset, images in neighbors.items()}
            fault = describe_fault(image, key, rendered, around)
            faults |= {key: fault} if fault else {}
    return FrameResult(demo.name, lowest_psnr, faults, differing)


def _render_neighbors(sim: Simulator, frame: Frame, keys: list[str]) -> dict[int, dict[str, Image]]:
    """The images of the other states of `frame`, by their offset from its own."""
    images = {}
    for i, state in enumerate(frame.demo.states):
        if i != frame.index:
            sim.set_kinematic_state(state)
            images[i - frame.index] = {key: sim.image(key) for key in keys}
    return images
