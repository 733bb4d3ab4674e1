"""episode.jpg of an exported folder: six moments of an episode in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ddp_cli.action_limits import Array
from ddp_cli.data.preview import FRAMES_PER_ROW, read_frames
from ddp_cli.data.store import Store
from ddp_cli.errors import SimulatorError
from ddp_cli.evaluation.rollout import EpisodeResult, StepInfo
from ddp_cli.resize import resize
from ddp_cli.sim.simulator import Simulator
from ddp_cli.video.images import encode_jpeg

HEIGHT, MAX_WIDTH = 160, 320  # [pixels] of a frame
MAX_BYTES = 60_000
QUALITIES = (85, 75, 60, 45, 30, 15)  # of the JPEG: the first that is small enough


@dataclass(frozen=True)
class EpisodePicture:
    """A JPEG file and what it shows."""

    jpeg: bytes
    caption: str


@dataclass
class EpisodeStates:
    """The states of an episode in the simulator, from which it is rendered when it is over. `append` is its `on_step`:
    rendering while it runs would take as long as an image policy's observations.
    """

    sim: Simulator
    states: list[Array] = field(default_factory=list)

    def append(self, _info: StepInfo) -> None:
        """Keep the current state."""
        self.states.append(self.sim.state())

    def render(self, result: EpisodeResult) -> EpisodePicture | None:
        """The episode that ended with `result`, seen by the first camera of the task; None where nothing can be
        rendered. The simulator must be reset afterwards.
        """
        camera = next(iter(self.sim.task.schema.cameras), None)
        if camera is None:
            return None
        frames = []
        try:
            for i in np.linspace(0, len(self.states) - 1, FRAMES_PER_ROW).round().astype(int):
                self.sim.set_kinematic_state(self.states[i])
                frames.append(self.sim.image(camera, HEIGHT))
        except SimulatorError:  # a state policy runs on machines that cannot render
            return None
        outcome = f"success after {result.steps} steps" if result.success else f"no success after {result.steps} steps"
        return EpisodePicture(encode_frames(frames), f"An episode in the simulator, seed {result.seed}: {outcome}")


def picture_of_store(store: Store) -> EpisodePicture | None:
    """The first episode of `store`, seen by its first camera; None if it holds no images."""
    if not store.image_keys:
        return None
    return EpisodePicture(encode_frames(read_frames(store, store.image_keys[0], 0)), "A recorded episode")


def encode_frames(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """`frames` (H, W, 1 or 3) of one size in a row, as a JPEG file of about 60 kB at most."""
    height, width = frames[0].shape[:2]
    scale = min(HEIGHT / height, MAX_WIDTH / width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    row = np.concatenate([np.broadcast_to(resize(frame, size), (*size, 3)) for frame in frames], axis=1)
    file = b""
    for quality in QUALITIES:
        file = encode_jpeg(row, quality)
        if len(file) <= MAX_BYTES:
            break
    return file
