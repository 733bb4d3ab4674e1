"""Run a policy exported by `ddp export --format onnx`. Requires numpy and onnxruntime only; this file may be copied.

    from runtime import Policy, ChunkRunner

    policy = Policy.load("policy")
    actions = policy.act({key: the last To observations, oldest first})      # (Ta, Da), to be executed in order
    runner = ChunkRunner(policy)
    action = runner.action({key: one observation})                           # (Da,), once per control step

Images are uint8 (height, width, 3), all other observations float32, in the units given in `policy.json`. Its "action"
entry defines the actions (convention, frame, rotation), its "limits" the range that they are clipped to.

Shapes: To n_obs_steps, Ta n_action_steps, Da action, T trajectory steps, D trajectory width, N noise tensors.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FORMAT_VERSION = 2
SPEC_FILE, GRAPH_FILE = "policy.json", "policy.onnx"

Array = np.ndarray[Any, Any]


class PolicyError(Exception):
    """A folder without a usable policy, or an observation that does not match the policy."""


class Policy:
    """An exported policy. `spec` is the content of its policy.json."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.folder = Path(folder)
        self.spec = self._read_spec()
        try:
            self.obs: dict[str, dict[str, Any]] = self.spec["obs"]
            self.n_obs_steps, self.n_action_steps = self.spec["n_obs_steps"], self.spec["n_action_steps"]
            self._noise_shape = tuple(self.spec["noise"])
            limits = self.spec["limits"]
            self._low = np.array([-np.inf if x is None else float(x) for x in limits["low"]])
            self._high = np.array([np.inf if x is None else float(x) for x in limits["high"]])
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            options.log_severity_level = 3  # errors only: warnings about the graph are of no use here
            graph = self.folder / GRAPH_FILE
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime raises its own exception types
            reason = (str(e) or type(e).__name__).splitlines()[0]
            raise PolicyError(f"'{self.folder}' is damaged: {reason} Export it again.") from e

    @classmethod
    def load(cls, folder: str | Path, threads: int = 1) -> Policy:
        """Load the policy in `folder`; PolicyError if there is none."""
        return cls(folder, threads)

    def _read_spec(self) -> dict[str, Any]:
        try:
            spec = json.loads((self.folder / SPEC_FILE).read_text())
            version = spec.get("format")
        except (OSError, ValueError, AttributeError) as e:
            raise PolicyError(f"'{self.folder}' holds no exported policy ({SPEC_FILE}).") from e
        if version != FORMAT_VERSION or not (self.folder / GRAPH_FILE).is_file():
            raise PolicyError(
                f"'{self.folder}' has no {GRAPH_FILE} of format {FORMAT_VERSION}. Export it again, as onnx."
            )
        return dict(spec)

    def sample_noise(self, generator: np.random.Generator) -> Array:
        """The noise of one prediction, (N, T, D) float32: the initial trajectory, then the noise of each step."""
        return generator.standard_normal(self._noise_shape, np.float32)

    def act(self, obs: Mapping[str, Any], noise: Array | None = None) -> Array:
        """Predict the next actions (Ta, Da), float32, from observations {key: (To, ...)}, oldest first.

        `noise` (N, T, D) determines the result; by default it is sampled.
        """
        inputs = {key: self._to_input(key, obs) for key in self.obs}
        noise = self.sample_noise(np.random.default_rng()) if noise is None else np.asarray(noise, np.float32)
        if noise.shape != self._noise_shape:
            raise PolicyError(f"the noise has shape {noise.shape}, expected {self._noise_shape}.")
        action = self._session.run(["action"], inputs | {"noise": noise[:, None]})[0][0]
        if not np.isfinite(action).all():
            raise PolicyError("the policy predicts actions that are not finite.")
        return np.clip(action, self._low, self._high).astype(np.float32)

    def validate_obs(self, key: str, obs: Mapping[str, Any], *leading: int) -> Array:
        """`obs[key]` as the policy's dtype; PolicyError if its shape, dtype or values are invalid.

        `leading` dimensions precede the shape of one step: none for a single step, To for a history.
        """
        if key not in obs:
            raise PolicyError(f"the observation '{key}' is missing; the policy observes {', '.join(self.obs)}.")
        expected, value = self.obs[key], np.asarray(obs[key])
        shape = (*leading, *expected["shape"])
        if value.shape != shape:
            raise PolicyError(f"'{key}' has shape {value.shape}, expected {shape}.")
        if expected["dtype"] == "uint8":
            if value.dtype != np.uint8:
                raise PolicyError(f"'{key}' is {value.dtype}, expected uint8 from 0 to 255.")
            return value
        if value.dtype.kind not in "fiu":
            raise PolicyError(f"'{key}' is {value.dtype}, expected numbers.")
        value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise PolicyError(f"'{key}' is not finite.")
        return value

    def _to_input(self, key: str, obs: Mapping[str, Any]) -> Array:
        """An input of the graph: a batch of one, images with their channels first."""
        value = self.validate_obs(key, obs, self.n_obs_steps)[None]
        return np.ascontiguousarray(value.transpose(0, 1, 4, 2, 3)) if value.ndim == 5 else value


class ChunkRunner:
    """Takes one observation and returns one action per control step: predicts a chunk, executes it, predicts the next.

    `action` runs the policy when the chunk is used up, so one call in Ta takes the policy's latency. With a `seed`
    the actions are reproducible.
    """

    def __init__(self, policy: Policy, seed: int | None = None) -> None:
        self.policy = policy
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: forget all observations and the current chunk."""
        self._generator = np.random.default_rng(seed)
        self._history: deque[Mapping[str, Any]] = deque(maxlen=self.policy.n_obs_steps)
        self._chunk: list[Array] = []

    def action(self, obs: Mapping[str, Any]) -> Array:
        """The action (Da,) for the observation {key: value}. Call it once per control step."""
        self._append(self._copy_obs(obs))
        if not self._chunk:
            self._chunk = list(self._predict())
        return self._chunk.pop(0)

    def chunk(self, observations: Sequence[Mapping[str, Any]]) -> Array:
        """Predict the next actions (Ta, Da) from new observations, oldest first. Earlier ones are remembered."""
        for obs in [self._copy_obs(obs) for obs in observations]:  # if one is invalid, none is stored
            self._append(obs)
        if not self._history:
            raise PolicyError("nothing has been observed yet.")
        self._chunk = []
        return self._predict()

    @property
    def pending(self) -> int:
        """Number of predicted actions not yet returned; at 0, the next call of `action` runs the policy."""
        return len(self._chunk)

    def _copy_obs(self, obs: Mapping[str, Any]) -> dict[str, Array]:
        return {key: np.array(self.policy.validate_obs(key, obs)) for key in self.policy.obs}

    def _append(self, obs: Mapping[str, Array]) -> None:
        # The first observation of an episode is repeated to fill the history.
        self._history.extend([obs] if self._history else [obs] * self.policy.n_obs_steps)

    def _predict(self) -> Array:
        obs = {key: np.stack([step[key] for step in self._history]) for key in self.policy.obs}
        return self.policy.act(obs, self.policy.sample_noise(self._generator))
