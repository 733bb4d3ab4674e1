"""The tasks as data: environment, observations, action, limits.

A single Franka Panda, controlled at 20 Hz by operational-space control of the hand's pose.
Shapes are per time step; images are stored (H, W, 3) and seen by the policy as (3, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass

from ddp_cli.errors import ConfigError, close_match

IMAGE_SIZE = 84  # [pixels], height and width of both cameras
CONTROL_HZ = 20

CAMERAS = {
    "agentview_image": "agentview",
    "robot0_eye_in_hand_image": "robot0_eye_in_hand",
}
"""Image key -> name of the simulator's camera, in the order the encoder sees them."""

PROPRIO = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
"""Low-dimensional key -> width: hand position [m], hand quaternion (x, y, z, w), finger joints [m]."""

ACTION_DIM = 7
"""Delta action: translation (3), rotation as axis-angle (3), gripper (1); each in [-1, 1].
A positive gripper value closes."""

DELTA_METRES, DELTA_RADIANS = 0.05, 0.5
"""The goal offset that 1.0 in a delta action stands for."""

ACTIONS: dict[str, dict[str, str | int]] = {
    "delta": {"convention": "delta", "frame": "base", "rotation": "axis-angle", "dim": ACTION_DIM},
    "absolute": {"convention": "absolute", "frame": "world", "rotation": "rotation-6d", "dim": 10},
}
"""Action conventions, as stores and checkpoints describe them. Absolute: the controller's goal, position
[m] (3), the first two rows of its rotation matrix (6), gripper (1)."""


@dataclass(frozen=True)
class Task:
    """One task. `object_dim` is the width of the `object` observation (state policies only)."""

    name: str
    env_name: str
    object_dim: int
    state_dim: int
    model_varies: bool  # the XML differs from episode to episode (Lift: size of the cube)
    horizon: int = 400  # [steps]

    def low_dim(self, obs: str) -> dict[str, int]:
        """Low-dimensional keys and widths of an `image` or `state` policy, in network order."""
        return {"object": self.object_dim, **PROPRIO} if obs == "state" else dict(PROPRIO)

    def cameras(self, obs: str) -> dict[str, str]:
        """Image keys and cameras of an `image` or `state` policy, in network order."""
        return dict(CAMERAS) if obs == "image" else {}


TASKS = {
    t.name: t
    for t in (
        Task("lift", "Lift", object_dim=10, state_dim=32, model_varies=True),
        Task("can", "PickPlaceCan", object_dim=14, state_dim=71, model_varies=False),
        Task("square", "NutAssemblySquare", object_dim=14, state_dim=45, model_varies=False),
    )
}


def get_task(name: str) -> Task:
    """The task called `name`; ConfigError lists the valid names."""
    if name not in TASKS:
        raise ConfigError(f"unknown task '{name}'{close_match(name, TASKS)}", f"Valid tasks: {', '.join(TASKS)}.")
    return TASKS[name]


def task_of_env(env_name: str) -> Task:
    """The task whose robosuite environment is `env_name`; ConfigError lists the known ones."""
    for task in TASKS.values():
        if task.env_name == env_name:
            return task
    known = ", ".join(f"{t.env_name} ({t.name})" for t in TASKS.values())
    raise ConfigError(f"no task for the environment '{env_name}'", f"Known environments: {known}.")


FIRST_SEED = {"collect": 1_000, "eval": 100_000, "training": 200_000, "report": 300_000}
"""Where the starts of each purpose begin, so that by default they never mix: what a policy was trained on,
looked at and judged by are different episodes."""
