"""Observations of a Gymnasium environment as a policy takes them.

The observation, a dict, a nested dict (`pixels/top`) or a single array (called `observation`), is mapped to the keys of
the policy: by --map, by equal names, or because there is only one image or one vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import ConfigError, DdpError, SimulatorError
from ddp_cli.schema import Camera
from ddp_cli.selection import parse_selection

RENDER = "render"
"""The source that stands for the image of `env.render()`."""

SINGLE = "observation"
"""Name of an observation that is not a dict."""

Observations = dict[str, NDArray[Any]]


class ObservationMapping:
    """Maps the observation of the environment `env_id` to the `cameras` and `vectors` of a policy.

    `chosen_sources`: key of the policy -> name in the observation, or some elements of it: `state[0:2]`. ConfigError if
    the policy does not observe one of these keys.
    """

    def __init__(
        self,
        env_id: str,
        cameras: Mapping[str, Camera],
        vectors: Mapping[str, int],
        chosen_sources: Mapping[str, str],
    ) -> None:
        self._env_id, self._cameras, self._vectors = env_id, cameras, vectors
        self._chosen_sources = chosen_sources
        self._sources: dict[str, str] = {}
        unknown = [key for key in chosen_sources if key not in {**cameras, **vectors}]
        if unknown:
            keys = ", ".join([*cameras, *vectors])
            raise ConfigError(f"--map: the policy does not observe '{unknown[0]}'.", f"It observes {keys}.")

    @property
    def needs_render(self) -> bool:
        """Whether an observation is the rendered image."""
        sources = self._sources or self._chosen_sources
        return any(parse_selection(source).array == RENDER for source in sources.values())

    def find_sources(self, arrays: Observations) -> None:
        """Find the source of every key of the policy in the first observation; ConfigError if one has none."""
        if self._sources:
            return
        images = [name for name, value in arrays.items() if _is_image(value)]
        vectors = [name for name in arrays if name not in images]
        sources = {}
        for keys, names in ((list(self._cameras), images), (list(self._vectors), vectors)):
            for key in keys:
                only = names[0] if len(names) == len(keys) == 1 else None
                source = self._chosen_sources.get(key) or (key if key in arrays else only)
                array = parse_selection(source).array if source else None
                if source is None or (array not in arrays and array != RENDER):
                    known = ", ".join(f"{name} {np.shape(value)}" for name, value in arrays.items())
                    raise ConfigError(
                        f"'{self._env_id}' does not observe '{source or key}'; it observes {known}.",
                        f"Say what '{key}' is: --map {key}=NAME ('{RENDER}' is the rendered image), or change the "
                        "observation with --env-arg.",
                    )
                sources[key] = source
        self._sources = sources

    def observe(self, arrays: Observations) -> Observations:
        """Observations of the policy: images uint8 (H, W, C), vectors float32 (width,)."""
        images: Observations = {key: self._image(key, arrays) for key in self._cameras}
        return images | {key: self._vector(key, arrays) for key in self._vectors}

    def _image(self, key: str, arrays: Observations) -> NDArray[np.uint8]:
        camera = self._cameras[key]
        selection = parse_selection(self._sources[key])
        if selection.elements != slice(None):
            raise self._mismatch(key, "elements, not images", f"images {camera.shape}")
        image = np.squeeze(self._find(arrays, selection.array))
        image = image[..., None] if image.ndim == 2 else image
        is_other = image.ndim == 3 and image.shape not in (camera.shape, camera.recorded_shape)
        if is_other and image.shape[0] == camera.channels:
            image = image.transpose(1, 2, 0)
        image = camera.take(image) if image.dtype == np.uint8 else image
        if image.shape != camera.shape or image.dtype != np.uint8:
            raise self._mismatch(key, f"{image.dtype} {image.shape}", f"uint8 {camera.shape}")
        return np.array(image)  # a copy: environments may write the next image into the same array

    def _vector(self, key: str, arrays: Observations) -> NDArray[np.float32]:
        selection = parse_selection(self._sources[key])
        array = self._find(arrays, selection.array)
        width = selection.width(array.shape)
        if width != self._vectors[key]:
            raise self._mismatch(key, f"{width} numbers", f"{self._vectors[key]}")
        values = array.reshape(-1)[selection.elements].astype(np.float32)
        if not np.isfinite(values).all():
            raise SimulatorError(f"'{self._env_id}' observes values of {key} that are not finite.", "Correct it.")
        return values

    def _find(self, arrays: Observations, name: str) -> NDArray[Any]:
        if name not in arrays:
            raise SimulatorError(f"'{self._env_id}' no longer observes '{name}', as in its first step.", "Correct it.")
        return arrays[name]

    def _mismatch(self, key: str, actual: str, expected: str) -> DdpError:
        return ConfigError(
            f"'{self._env_id}': {self._sources[key]} has {actual}, but the policy observes {key} with {expected}.",
            f"Choose another observation with --map {key}=NAME, or change it with --env-arg.",
        )


def to_array(value: Any) -> NDArray[Any]:
    """A value of an environment as an array; PyTorch's tensors may be on a GPU. What is no array of numbers, such as
    lists of different lengths, is an array () of objects.
    """
    try:
        return np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    except (TypeError, ValueError, RuntimeError):
        return np.array(None)


def flatten(observation: Any, prefix: str = "") -> Observations:
    """Arrays of an observation by name; nested names are joined by `/`."""
    if isinstance(observation, tuple):
        observation = dict(enumerate(observation))
    if not isinstance(observation, Mapping):
        value = to_array(observation)
        return {prefix or SINGLE: value} if value.dtype.kind in "fiub" else {}
    arrays: Observations = {}
    for name, value in observation.items():
        arrays |= flatten(value, f"{prefix}/{name}" if prefix else str(name))
    return arrays


def _is_image(value: NDArray[Any]) -> bool:
    return value.dtype == np.uint8 and np.squeeze(value).ndim >= 2
