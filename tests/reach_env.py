"""A small Gymnasium environment: a point moves by its action, the reward is its nearness to the goal (1, 1)."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

SUCCESS_REWARD = 0.9


class Reach(gymnasium.Env):  # type: ignore[type-arg]
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        nested: bool = False,
        terminates: bool = True,
        success: str = "is_success",
        mode: str = "",
        pid_file: str = "",
        **_: Any,
    ) -> None:
        self.nested, self.terminates, self.success, self.mode = nested, terminates, success, mode
        self.buffer = np.empty((16, 20, 3), np.uint8)
        self.process = subprocess.Popen(["sleep", "60"]) if pid_file else None
        if self.process:
            Path(pid_file).write_text(str(self.process.pid))
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Dict()  # not used by the evaluation
        self.actions: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 0, 2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.position = np.clip(self.position + 0.5 * action, -1, 1)
        reward = 1 - float(np.linalg.norm(self.position - 1)) / 3
        is_success = np.array([reward > SUCCESS_REWARD])  # an array of one value, as vectorized simulators return
        info = {self.success: is_success, "x": self.position[0], "name": "reach", "ragged": [1, [2]]}
        if self.mode == "print":
            print("a message")
        if self.mode == "fails":
            raise AssertionError("the cable is loose")
        if self.mode == "nan":
            reward = float("nan")
        if self.mode == "at the end" and not is_success:
            del info[self.success]
        if self.mode == "success is of one step" and len(self.actions) != 4:
            del info[self.success]
        if self.mode == "no info":
            info = None
        if self.mode == "vectorized":
            reward = np.zeros(2)
        return self._observe(), reward, bool(is_success) and self.terminates, False, info

    def _observe(self) -> dict[str, Any]:
        if self.mode == "tuple":
            return (self.position, [1, [2, 3]])
        image = np.full((16, 20, 3), int(100 + 100 * self.position[0]), np.uint8)
        if self.mode == "forgets" and len(self.actions) > 2:
            return {"pixels": image}
        if self.mode == "blind":
            return {"pixels": image, "agent_pos": self.position * np.nan}
        if self.mode == "one image":
            self.buffer[:] = image
            image = self.buffer
        if self.nested:
            return {"pixels": {"top": image.transpose(2, 0, 1)}, "state": np.array([0.5, *self.position, 7.0])}
        return {"pixels": image, "agent_pos": self.position}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((30, 50, 3), 0.8) if self.mode == "fractions" else np.full((30, 50, 3), 200, np.uint8)

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


gymnasium.register("Reach-v0", Reach, max_episode_steps=12)
gymnasium.register("Endless-v0", Reach)
