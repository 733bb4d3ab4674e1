"""Runs a policy that `ddp export --format onnx` wrote. Needs numpy and onnxruntime, and nothing else: this file may be
copied out of the package.

    from runtime import Policy, Stream

    policy = Policy.load("policy")
    actions = policy.act({key: the last To observations, oldest first})      # (Ta, Da), to be executed one by one
    stream = Stream(policy)
    action = stream.action({key: one observation})                           # (Da,), at every control step

Pictures are uint8 (height, width, 3), everything else float32, in the units of `policy.json`. What actions mean is
written there, too ("action": convention, frame, rotation), with the limits that they are clipped to.

Shapes: To observation steps, Ta action steps, Da action, T and D trajectory and its width.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FORMAT = 2
SPEC, GRAPH = "policy.json", "policy.onnx"

Array = np.ndarray[Any, Any]


class PolicyError(Exception):
    """A folder that is no policy, or an observation that does not fit it."""


class Policy:
    """An exported policy. `spec` is its policy.json."""

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self.folder = Path(folder)
        self.spec = self._read()
        try:
            self.obs: dict[str, dict[str, Any]] = self.spec["obs"]
            self.n_obs_steps, self.n_action_steps = self.spec["n_obs_steps"], self.spec["n_action_steps"]
            self._noise_shape = tuple(self.spec["noise"])
            limits = self.spec["limits"]
            self._low, self._high = (
                np.array([_number(x, e) for x in limits[k]]) for k, e in (("low", -1), ("high", 1))
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            # Warnings about the graph are for who made it.
            options.log_severity_level = 3
            graph = self.folder / GRAPH
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime raises kinds of its own
            raise PolicyError(
                f"'{self.folder}' is damaged: {(str(e) or type(e).__name__).splitlines()[0]} Export it again."
            ) from e

    @classmethod
    def load(cls, folder: str | Path, threads: int = 1) -> Policy:
        """The policy in `folder`; PolicyError if it is none."""
        return cls(folder, threads)

    def _read(self) -> dict[str, Any]:
        try:
            spec = json.loads((self.folder / SPEC).read_text())
            version = spec.get("format")
        except (OSError, ValueError, AttributeError) as e:
            raise PolicyError(f"'{self.folder}' holds no exported policy ({SPEC}).") from e
        if version != FORMAT or not (self.folder / GRAPH).is_file():
            raise PolicyError(f"'{self.folder}' has no {GRAPH} of format {FORMAT}. Export it again, as onnx.")
        return dict(spec)

    def noise(self, generator: np.random.Generator) -> Array:
        """What `act` begins with and adds on the way: (draws, T, D) float32."""
        return generator.standard_normal(self._noise_shape, np.float32)

    def act(self, obs: Mapping[str, Any], noise: Array | None = None) -> Array:
        """The next actions (Ta, Da), float32, after observations {key: (To, ...)}, the oldest first.

        `noise` (draws, T, D) decides what is random; without, it is drawn anew.
        """
        feeds = {key: self._input(key, obs) for key in self.obs}
        drawn = self.noise(np.random.default_rng()) if noise is None else np.asarray(noise, np.float32)
        if drawn.shape != self._noise_shape:
            raise PolicyError(f"the noise has shape {drawn.shape}, expected {self._noise_shape}.")
        action = self._session.run(["action"], feeds | {"noise": drawn[:, None]})[0][0]
        if not np.isfinite(action).all():
            raise PolicyError("the policy predicts actions that are not finite.")
        return np.clip(action, self._low, self._high).astype(np.float32)

    def fitting(self, key: str, obs: Mapping[str, Any], *before: int) -> Array:
        """`obs[key]`, of one step or of so many `before`; PolicyError if it is not what the policy looks at."""
        if key not in obs:
            raise PolicyError(f"the observation '{key}' is missing; the policy looks at {', '.join(self.obs)}.")
        wanted, value = self.obs[key], np.asarray(obs[key])
        shape = (*before, *wanted["shape"])
        if value.shape != shape:
            raise PolicyError(f"'{key}' has shape {value.shape}, expected {shape}.")
        if wanted["dtype"] == "uint8":
            if value.dtype != np.uint8:
                raise PolicyError(f"'{key}' is {value.dtype}, expected uint8 from 0 to 255.")
            return value
        if value.dtype.kind not in "fiu":
            raise PolicyError(f"'{key}' is {value.dtype}, expected numbers.")
        found = value.astype(np.float32)
        if not np.isfinite(found).all():
            raise PolicyError(f"'{key}' is not finite.")
        return found

    def _input(self, key: str, obs: Mapping[str, Any]) -> Array:
        """As the graph takes it: a batch of one, pictures with their channels first."""
        value = self.fitting(key, obs, self.n_obs_steps)[None]
        return np.ascontiguousarray(value.transpose(0, 1, 4, 2, 3)) if value.ndim == 5 else value


class Stream:
    """Observations one by one in, actions one by one out: a chunk is predicted, executed, and the next is predicted.

    `action` computes where a chunk ends, so one call of Ta takes as long as the policy. `seed` makes it repeatable.
    """

    def __init__(self, policy: Policy, seed: int | None = None) -> None:
        self.policy = policy
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Forgets what was seen: call it when an episode begins."""
        self._generator = np.random.default_rng(seed)
        self._seen: deque[Mapping[str, Any]] = deque(maxlen=self.policy.n_obs_steps)
        self._chunk: list[Array] = []

    def action(self, obs: Mapping[str, Any]) -> Array:
        """The action (Da,) after the observation {key: value}; call it once per control step."""
        self._remember(self._fitting(obs))
        if not self._chunk:
            self._chunk = list(self._predict())
        return self._chunk.pop(0)

    def chunk(self, observations: Sequence[Mapping[str, Any]]) -> Array:
        """The next actions (Ta, Da), after observations that are new, oldest first (those before are remembered)."""
        for own in [self._fitting(obs) for obs in observations]:  # all or none are taken in
            self._remember(own)
        if not self._seen:
            raise PolicyError("nothing has been observed yet.")
        self._chunk = []
        return self._predict()

    @property
    def pending(self) -> int:
        """How many actions of the chunk are left: without any, the next call of `action` takes the policy's time."""
        return len(self._chunk)

    def _fitting(self, obs: Mapping[str, Any]) -> dict[str, Array]:
        return {key: np.array(self.policy.fitting(key, obs)) for key in self.policy.obs}

    def _remember(self, own: Mapping[str, Array]) -> None:
        self._seen.extend([own] if self._seen else [own] * self.policy.n_obs_steps)  # the first one stands for all

    def _predict(self) -> Array:
        seen = {key: np.stack([frame[key] for frame in self._seen]) for key in self.policy.obs}
        return self.policy.act(seen, self.policy.noise(self._generator))


def _number(value: float | None, endless: int) -> float:
    return endless * np.inf if value is None else float(value)
