"""The Python interface for notebooks and scripts: `open_store`, `load_policy` and `evaluate`.

`import ddp_cli` offers them without loading torch until one of them is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.choices import Engine, Sampler
from ddp_cli.data.store import Store
from ddp_cli.deploy.policy_source import PolicySource, open_policy_source, resolve_policy
from ddp_cli.errors import ConfigError
from ddp_cli.evaluation.evaluation import Evaluation, make_simulator
from ddp_cli.evaluation.evaluation import evaluate as evaluate_agent
from ddp_cli.evaluation.rollout import EpisodeResult, clamp_chunk
from ddp_cli.seeds import FIRST_SEED

__all__ = ["LoadedPolicy", "evaluate", "load_policy", "open_store"]


def open_store(path: str | Path) -> Store:
    """Opens a zarr store; DataError if it is missing, damaged or of another format.

    `store.read("action")` is an array (N, Da), `store.episode_ends` (E,) holds one past the last step of each episode.
    """
    return Store(Path(path))


class LoadedPolicy:
    """A policy that predicts action chunks from observations. Made by `load_policy`.

    Shapes: To `n_obs_steps`, Ta `n_action_steps`, Da action.
    """

    def __init__(self, source: PolicySource) -> None:
        self.source = source
        self._agent = source.make_agent()
        self.n_obs_steps = self._agent.n_obs_steps
        self._cameras = source.task.images(source.obs)
        self.obs_shapes: dict[str, tuple[int, ...]] = {
            **{key: camera.shape for key, camera in self._cameras.items()},
            **{key: (width,) for key, width in source.task.vectors(source.obs).items()},
        }
        """Shape of one observation by key: images uint8 (height, width, 3), all others float32."""
        self.reset(0)

    def reset(self, seed: int = 0) -> None:
        """Starts an episode: `seed` determines the noise that the following chunks are sampled from."""
        self._agent.reset(seed)
        self._previous_action: NDArray[np.float64] | None = None

    def act(self, obs: Mapping[str, NDArray[Any]]) -> NDArray[np.floating[Any]]:
        """The next actions (Ta, Da) after the last To observations {key: (To, ...)}, oldest first, limited as in an
        evaluation. The last action counts as the previous one of the next call.

        ConfigError if a key is missing or has another shape, DdpError if the actions cannot be executed.
        """
        for key, shape in self.obs_shapes.items():
            expected = (self.n_obs_steps, *shape)
            if key not in obs:
                raise ConfigError(f"the observation '{key}' is missing.", f"Expected: {', '.join(self.obs_shapes)}.")
            recorded = (self.n_obs_steps, *self._cameras[key].recorded_shape) if key in self._cameras else expected
            if np.shape(obs[key]) not in (expected, recorded):
                alternative = f" or {recorded}" if recorded != expected else ""
                raise ConfigError(f"'{key}' has shape {np.shape(obs[key])}, expected {expected}{alternative}.")
        steps = range(self.n_obs_steps)
        history = [{key: self._as_observed(key, obs[key][i]) for key in self.obs_shapes} for i in steps]
        chunk = clamp_chunk(self._agent.action_limits, self._agent.act(history), self._previous_action)
        self._previous_action = chunk[-1]
        return chunk.astype(np.float32)

    def _as_observed(self, key: str, value: Any) -> NDArray[Any]:
        array = np.asarray(value)
        if len(self.obs_shapes[key]) == 3:
            if array.dtype != np.uint8:  # a cast would turn images of 0 to 1 black
                raise ConfigError(f"'{key}' is {array.dtype}, expected uint8 from 0 to 255.")
            return self._cameras[key].take(array)
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ConfigError(f"'{key}' is not finite numbers.", "Give the observation in the units of the store.")
        return array.astype(np.float32)


def load_policy(
    path: str | Path,
    *,
    device: str = "auto",
    sampler: Sampler | None = None,
    inference_steps: int | None = None,
    engine: Engine = "auto",
) -> LoadedPolicy:
    """Loads a checkpoint, a run (its best checkpoint) or a folder of `ddp export`.

    On a CPU torch is limited to one thread, so that results do not depend on the machine's load. CheckpointError if
    there is no policy in `path`, ConfigError for options that it does not support.
    """
    return LoadedPolicy(_open_source(path, device, sampler, inference_steps, engine))


def _open_source(
    path: str | Path,
    device: str = "auto",
    sampler: Sampler | None = None,
    inference_steps: int | None = None,
    engine: Engine = "auto",
) -> PolicySource:
    folder = resolve_policy(Path(path), Path("runs"), None)
    return open_policy_source(folder, device, sampler, inference_steps, engine)


def evaluate(
    policy: LoadedPolicy | str | Path,
    episodes: int = 50,
    seed: int = FIRST_SEED["eval"],
    workers: int = 1,
    on_episode: Callable[[EpisodeResult], None] = lambda _: None,
) -> Evaluation:
    """Success rate of a policy over the seeds `seed`, `seed` + 1, ..., as `ddp eval` measures it.

    The result has `success_rate`, `interval` (95%) and `episodes`; it does not depend on `workers`. With more than one
    worker a script needs the usual `if __name__ == "__main__":` guard of multiprocessing.
    """
    source = policy.source if isinstance(policy, LoadedPolicy) else _open_source(policy)
    seeds = range(seed, seed + episodes)
    return evaluate_agent(
        source.make_agent, functools.partial(make_simulator, source.task, source.render), seeds, workers, on_episode
    )
