"""Which recordings can be converted as they are, without a simulator: recognized by their content."""

from __future__ import annotations

from pathlib import Path

from ddp_cli.data.demo_file import DemoFile
from ddp_cli.data.hdf5_recording import is_aloha_folder, open_aloha, open_robomimic
from ddp_cli.data.lerobot_layout import STORE_ATTRIBUTES_PATH, is_lerobot
from ddp_cli.data.lerobot_recording import LeRobotRecording
from ddp_cli.data.recording import Recording
from ddp_cli.data.replay_buffer import ReplayBuffer, is_replay_buffer


def open_recording(path: Path, as_recorded: bool) -> Recording | None:
    """The recording at `path`, None if it is none of these, or one whose simulator is known.

    `as_recorded` reads demonstrations of a known simulator as well.
    """
    if is_aloha_folder(path):
        return open_aloha(path)
    if (path.is_dir() or path.suffix == ".zip") and is_replay_buffer(path):
        return ReplayBuffer(path)
    if is_lerobot(path) and not (path / STORE_ATTRIBUTES_PATH).is_file():
        return LeRobotRecording(path)
    if path.is_dir() or path.suffix == ".zip":
        return None
    return open_robomimic(path) if as_recorded or _has_unknown_environment(path) else None


def _has_unknown_environment(path: Path) -> bool:
    """Whether demonstrations with observations are of an environment that robosuite does not have."""
    with DemoFile(path, allow_unknown_env=True) as demos:
        return demos.task.name == "none" and bool(demos.observation_shapes(demos.names[0]))
