"""Run a policy exported by `ddp export --format onnx`. Requires numpy and onnxruntime only; this file may be copied,
with action_limits.py and resize.py beside it.

    from runtime import Policy, ChunkRunner

    policy = Policy.load("policy")
    actions = policy.act({key: the last To observations, oldest first})      # (Ta, Da), to be executed in order
    runner = ChunkRunner(policy)
    action = runner.action({key: one observation})                           # (Da,), once per control step

Images are uint8 (height, width, 3), of the size that the policy takes or of the size in the recording (then they are
resized as at conversion); all other observations float32, in the units given in `policy.json`. Its "action"
entry defines the actions (convention, frame, rotation), its "limits" the range of their values. `act` and
`ChunkRunner` limit actions by the rule of action_limits.py, which evaluation uses too; `predict` does not.

Shapes: To n_obs_steps, Ta n_action_steps, Da action, T trajectory steps, D trajectory width, N noise tensors.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

if TYPE_CHECKING or __package__ == "ddp_cli.deploy":
    from ddp_cli.action_limits import ActionError, ActionLimits
    from ddp_cli.resize import resize
else:  # a copy: by their paths, because other packages may have the same names

    def _load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"ddp_{name}", Path(__file__).with_name(f"{name}.py"))
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    resize, _action_limits = _load("resize").resize, _load("action_limits")
    ActionError, ActionLimits = _action_limits.ActionError, _action_limits.ActionLimits

FORMAT_VERSION = 2
SPEC_FILE, GRAPH_FILE = "policy.json", "policy.onnx"
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
"""What ONNX Runtime computes with. All but cpu need a build of ONNX Runtime that contains them."""


class PolicyError(Exception):
    """A folder without a usable policy, an observation that does not match the policy, or actions that are unusable."""


class Policy:
    """An exported policy. `spec` is the content of its policy.json, `limits` the limits of its actions.

    `threads` and `provider`, one of PROVIDERS, say what ONNX Runtime computes with.
    """

    def __init__(self, folder: str | Path, threads: int = 1, provider: str = "cpu") -> None:
        self.folder = Path(folder)
        self.spec = self._read_spec()
        try:
            self.obs: dict[str, dict[str, Any]] = self.spec["obs"]
            self.n_obs_steps, self.n_action_steps = self.spec["n_obs_steps"], self.spec["n_action_steps"]
            self.prefix_steps = int(self.spec.get("prefix_steps", 0))
            self._noise_shape = tuple(self.spec["noise"])
            self.limits = ActionLimits.from_json(self.spec["limits"])
            expected_hash = self.spec.get("sha256", {}).get(GRAPH_FILE)
            shapes = self._expected_shapes()
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            cause = f"it has no {e}." if isinstance(e, KeyError) else str(e)
            raise PolicyError(f"'{self.folder / SPEC_FILE}' is damaged: {cause} Export the policy again.") from e
        self._session = self._open_session(threads, provider, expected_hash)
        self._check_shapes(shapes)

    @classmethod
    def load(cls, folder: str | Path, threads: int = 1, provider: str = "cpu") -> Policy:
        """Load the policy in `folder`; PolicyError if there is none."""
        return cls(folder, threads, provider)

    def _read_spec(self) -> dict[str, Any]:
        path = self.folder / SPEC_FILE
        if not path.is_file():
            raise PolicyError(f"'{self.folder}' holds no exported policy: {SPEC_FILE} is missing.")
        try:
            spec = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError, RecursionError) as e:
            raise PolicyError(f"'{path}' is damaged: {e}. Export the policy again.") from e
        if spec.get("format") != FORMAT_VERSION or not (self.folder / GRAPH_FILE).is_file():
            raise PolicyError(
                f"'{self.folder}' has no {GRAPH_FILE} of format {FORMAT_VERSION}. Export it again, as onnx."
            )
        return spec

    def _open_session(self, threads: int, provider: str, expected_hash: str | None) -> onnxruntime.InferenceSession:
        path = self.folder / GRAPH_FILE
        available = [name for name, full in PROVIDERS.items() if full in onnxruntime.get_available_providers()]
        if provider not in available:
            raise PolicyError(
                f"ONNX Runtime {onnxruntime.__version__} has no provider '{provider}' here; available: "
                f"{', '.join(available)}. Install the build of ONNX Runtime for your device."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only: warnings about the graph are of no use here
        try:
            graph = path.read_bytes()
            if expected_hash and hashlib.sha256(graph).hexdigest() != expected_hash:
                raise PolicyError(
                    f"'{path}' is not the graph that was exported with {SPEC_FILE} (other sha256): it is damaged, or "
                    "belongs to another policy. Export the policy again."
                )
            providers = list(dict.fromkeys([PROVIDERS[provider], PROVIDERS["cpu"]]))
            session = onnxruntime.InferenceSession(graph, options, providers=providers)
            if session.get_providers()[0] != providers[0]:  # it falls back silently
                raise PolicyError(f"the provider '{provider}' of ONNX Runtime cannot be loaded: check its libraries.")
            return session
        except PolicyError:
            raise
        except Exception as e:  # onnxruntime raises its own exception types
            reason = (str(e).strip() or type(e).__name__).splitlines()
            if provider != "cpu":
                raise PolicyError(
                    f"the provider '{provider}' of ONNX Runtime cannot run '{path}': {reason[-1].rstrip('.')}. Use cpu."
                ) from e
            raise PolicyError(f"'{path}' is damaged: {reason[0]} Export the policy again.") from e

    def _expected_shapes(self) -> dict[str, list[int]]:
        """Shape of each input and output of the graph, without the batch dimension."""
        shapes = {"noise": [int(size) for size in self._noise_shape], "action": [self.n_action_steps, self.limits.dim]}
        if self.prefix_steps:
            shapes = {**shapes, "prefix": [self.prefix_steps, self.limits.dim], "prefix_length": []}
        for key, obs in self.obs.items():
            size = [int(n) for n in obs["shape"]]
            shapes[key] = [self.n_obs_steps, *(size if len(size) < 3 else [size[2], *size[:2]])]
        return shapes

    def _check_shapes(self, expected: dict[str, list[int]]) -> None:
        """PolicyError if the graph has other inputs or outputs than policy.json says."""
        actual = {}
        for value in (*self._session.get_inputs(), *self._session.get_outputs()):
            batch_axis = 1 if value.name == "noise" else 0
            actual[value.name] = [size for axis, size in enumerate(value.shape) if axis != batch_axis]
        if actual != expected:
            names = sorted(name for name in {*actual, *expected} if actual.get(name) != expected.get(name))
            raise PolicyError(
                f"'{self.folder / GRAPH_FILE}' does not fit {SPEC_FILE}, which belongs to another policy: "
                f"{', '.join(names)} differ. Export the policy again."
            )

    def sample_noise(self, generator: np.random.Generator) -> Array:
        """The noise of one prediction, (N, T, D) float32: the initial trajectory, then the noise of each step."""
        return generator.standard_normal(self._noise_shape, np.float32)

    def act(
        self,
        obs: Mapping[str, Any],
        noise: Array | None = None,
        previous_action: Array | None = None,
        prefix: Array | None = None,
    ) -> Array:
        """The next actions (Ta, Da), float32, within the limits, from observations {key: (To, ...)}, oldest first.

        `noise` (N, T, D) determines the result; by default it is sampled. `previous_action` (Da,) is the last one
        before the chunk: if an absolute action has no valid rotation, the previous rotation is held. `prefix` (P, Da),
        P up to `prefix_steps`, are the first actions of the chunk, those that will be executed while it is predicted;
        the rest continues them. PolicyError if there is no rotation to hold, for actions that are not finite, and for
        invalid arguments.
        """
        try:
            if previous_action is not None:
                previous_action = self.limits.validate_action(np.asarray(previous_action), "previous_action")
            return self.limits.clamp(self.predict(obs, noise, prefix), previous_action).astype(np.float32)
        except ActionError as e:
            raise PolicyError(str(e)) from e

    def predict(self, obs: Mapping[str, Any], noise: Array | None = None, prefix: Array | None = None) -> Array:
        """The actions of `act` before they are limited: for callers that apply `limits` themselves, never for a robot.

        PolicyError if they are not finite.
        """
        inputs = {key: self._to_input(key, obs) for key in self.obs}
        noise = self.sample_noise(np.random.default_rng()) if noise is None else np.asarray(noise, np.float32)
        if noise.shape != self._noise_shape:
            raise PolicyError(f"the noise has shape {noise.shape}, expected {self._noise_shape}.")
        inputs = {**inputs, "noise": noise[:, None], **self._prefix_inputs(prefix)}
        action = self.run_graph(inputs)
        if not np.isfinite(action).all():
            raise PolicyError("the policy predicts actions that are not finite.")
        return action

    def run_graph(self, inputs: Mapping[str, Array]) -> Array:
        """The actions (Ta, Da) that the graph computes from its inputs, a batch of one."""
        return np.asarray(self._session.run(["action"], dict(inputs))[0][0])

    def _prefix_inputs(self, prefix: Array | None) -> dict[str, Array]:
        """The inputs of the graph for the actions `prefix` (P, Da); none for a policy that takes no prefix."""
        if not self.prefix_steps:
            if prefix is None:
                return {}
            raise PolicyError("the policy takes no prefix: it has no prefix_steps. Train one with prefix_steps.")
        n, da = self.prefix_steps, self.limits.dim
        actions = np.zeros((0, da), np.float32) if prefix is None else np.asarray(prefix, np.float32)
        if actions.ndim != 2 or len(actions) > n or actions.shape[1] != da:
            raise PolicyError(f"the prefix has shape {actions.shape}, expected (P, {da}) with P from 0 to {n}.")
        if not np.isfinite(actions).all():
            raise PolicyError("the prefix is not finite.")
        padded = np.pad(actions, ((0, n - len(actions)), (0, 0)))
        return {"prefix": padded[None], "prefix_length": np.array([len(actions)])}

    def validate_obs(self, key: str, obs: Mapping[str, Any], *leading: int) -> Array:
        """`obs[key]` as the policy's dtype; PolicyError if its shape, dtype or values are invalid.

        `leading` dimensions precede the shape of one step: none for a single step, To for a history.
        """
        if key not in obs:
            raise PolicyError(f"the observation '{key}' is missing; the policy observes {', '.join(self.obs)}.")
        expected, value = self.obs[key], np.asarray(obs[key])
        shapes = [(*leading, *expected[name]) for name in ("shape", "recorded_shape") if name in expected]
        if value.shape not in shapes:
            raise PolicyError(f"'{key}' has shape {value.shape}, expected {' or '.join(map(str, shapes))}.")
        if expected["dtype"] == "uint8":
            if value.dtype != np.uint8:
                raise PolicyError(f"'{key}' is {value.dtype}, expected uint8 from 0 to 255.")
            return resize(value, expected["shape"][:2], expected.get("fit", "stretch"))
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
    the actions are reproducible. Each chunk is limited with the last action before it as the previous one.
    """

    def __init__(self, policy: Policy, seed: int | None = None) -> None:
        self.policy = policy
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Start an episode: forget all observations, the current chunk and the previous action."""
        self._generator = np.random.default_rng(seed)
        self._history: deque[Mapping[str, Any]] = deque(maxlen=self.policy.n_obs_steps)
        self._chunk: list[Array] = []
        self._previous_action: Array | None = None

    def action(self, obs: Mapping[str, Any]) -> Array:
        """The action (Da,) for the observation {key: value}. Call it once per control step."""
        self._append(self._copy_obs(obs))
        if not self._chunk:
            self._chunk = list(self._predict())
        self._previous_action = self._chunk.pop(0)
        return self._previous_action.copy()

    def chunk(self, observations: Sequence[Mapping[str, Any]]) -> Array:
        """Predict the next actions (Ta, Da) from new observations, oldest first. Earlier ones are remembered.

        The last action counts as the previous one of the next chunk.
        """
        for obs in [self._copy_obs(obs) for obs in observations]:  # if one is invalid, none is stored
            self._append(obs)
        if not self._history:
            raise PolicyError("nothing has been observed yet.")
        self._chunk = []
        chunk = self._predict()
        self._previous_action = chunk[-1].copy()
        return chunk

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
        return self.policy.act(obs, self.policy.sample_noise(self._generator), self._previous_action)
