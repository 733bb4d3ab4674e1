"""Reads recordings of any robot in HDF5: a file per episode as of ALOHA and ACT, or all in one as of robomimic.

episode_0.hdf5, ...           /action, /observations/{qpos,qvel,effort}, /observations/images/<camera>: raw, or one JPEG
                              per step, padded with zeros
FILE data/demo_0, demo_1 ...  actions, obs/<key>, attribute num_samples; data has the attribute env_args
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ddp_cli.data.demo_selection import sort_names
from ddp_cli.data.hdf5 import check_complete, open_hdf5, reject_single_episode, report_read_errors
from ddp_cli.data.recording import StepArray, describe_unobserved
from ddp_cli.disk import file_hash, files_hash
from ddp_cli.errors import DataError
from ddp_cli.schema import Camera
from ddp_cli.video.images import decode_image, image_size

ALOHA_FILE = re.compile(r"episode_(\d+)\.(?:hdf5|h5)")
BASE_ACTION = "base_action"  # of Mobile ALOHA
ALOHA_RATE = 50.0  # [Hz], of ACT; the files do not state it
KIND_HINT = "Keep recordings of one kind in a folder of their own."
COPY_HINT = "Record or copy it again."
ROBOMIMIC_HINT = "Expected robomimic's layout: data/demo_0/{actions,obs}."


def is_aloha_folder(path: Path) -> bool:
    """Whether `path` is a folder of episode_0.hdf5, episode_1.hdf5, ..."""
    return path.is_dir() and any(ALOHA_FILE.fullmatch(file.name) for file in path.iterdir())


def open_aloha(path: Path) -> Hdf5Recording:
    """The episodes in a folder, in the order of their numbers."""
    files = [(int(m[1]), file) for file in path.iterdir() if (m := ALOHA_FILE.fullmatch(file.name))]
    episodes = [(file, "/") for _, file in sorted(files)]
    observed = re.compile(r"observations/(qpos|images/.*)")
    recording = Hdf5Recording(path, episodes, [file.stem for _, file in sorted(files)], "action", observed, None)
    recording.default_rate = ALOHA_RATE
    recording.kind = "ALOHA episodes (HDF5)"
    recording.notes.append(
        f"the files do not state the control rate: {ALOHA_RATE:g} Hz, as ACT records, without --rate"
    )
    if recording.has_encoded_images:
        recording.notes.append(
            "the encoded images are decoded as RGB. Recorders that give RGB images to OpenCV, as ACT's, exchange red "
            "and blue: look at the colors on the page of --report, and convert with --bgr if they are wrong"
        )
    if BASE_ACTION in recording.arrays:
        recording.notes.append(
            f"{BASE_ACTION} is not converted: the actions are those of one array, {recording.action}"
        )
    return recording


def open_robomimic(path: Path) -> Hdf5Recording:
    """The demonstrations in a file of any environment, as they were recorded."""
    with open_hdf5(path) as file, report_read_errors(path, "data"):
        reject_single_episode(path, file)
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            raise DataError(f"'{path}' has no group 'data'.", ROBOMIMIC_HINT)
        names = [name for name in sort_names(data) if not isinstance(data.get(name), h5py.Dataset)]
        rate = None
        with suppress(ValueError, KeyError, TypeError):
            rate = float(json.loads(data.attrs["env_args"])["env_kwargs"]["control_freq"])
    if not names:
        raise DataError(f"'{path}' holds no demonstrations.", ROBOMIMIC_HINT)
    return Hdf5Recording(path, [(path, f"data/{name}") for name in names], names, "actions", re.compile("obs/.*"), rate)


class Hdf5Recording:
    """A recording; see recording.Recording. `episodes` are (file, group)."""

    def __init__(
        self,
        path: Path,
        episodes: list[tuple[Path, str]],
        names: list[str],
        action: str,
        observed: re.Pattern[str],
        rate: float | None,
    ) -> None:
        self.path, self.episode_names, self.action, self.rate = path, names, action, rate
        self.instructions = [""] * len(names)
        self.default_rate: float | None = None
        self.kind = "demonstrations (HDF5), taken as they were recorded"
        self.notes, self.in_videos, self.unreadable = list[str](), list[str](), dict[str, str]()
        self._episodes = episodes
        self._encoded: dict[str, tuple[int, int]] = {}  # arrays of encoded images -> height, width
        self.arrays: dict[str, StepArray] = {}
        self.lengths = [0] * len(episodes)
        self._faults: dict[int, DataError] = {}  # episodes that cannot be read
        self._differences: dict[int, dict[str, str]] = {}  # how arrays of an episode differ from those of most others
        self._is_needed = re.compile(f"{re.escape(action)}|{observed.pattern}").fullmatch
        described: dict[int, tuple[dict[str, StepArray], dict[str, str]]] = {}
        for i in range(len(episodes)):
            try:
                arrays, unreadable, self.lengths[i] = self._describe(i)
                described[i] = arrays, unreadable
            except DataError as e:
                self._faults[i] = e
        if not described:
            raise self._faults[0]
        self._reference = self._find_reference({i: arrays for i, (arrays, _) in described.items()})
        arrays, unreadable = described[self._reference]
        self.arrays, self.unreadable = dict(arrays), dict(unreadable)
        for i, (arrays, unreadable) in described.items():
            self._compare(i, arrays, unreadable)
        self.observations = [name for name in self.arrays if observed.fullmatch(name)]
        self.notes += describe_unobserved({n: why for n, why in self.unreadable.items() if observed.fullmatch(n)})

    def _find_reference(self, described: dict[int, dict[str, StepArray]]) -> int:
        """The first episode whose observations and actions have the shapes that most episodes have."""
        kinds = {
            i: frozenset((name, array.shape) for name, array in arrays.items() if self._is_needed(name))
            for i, arrays in described.items()
        }
        most, _ = Counter(kinds.values()).most_common(1)[0]
        return next(i for i, kind in kinds.items() if kind == most)

    def _compare(self, i: int, arrays: dict[str, StepArray], unreadable: dict[str, str]) -> None:
        """Note how the arrays of episode `i` differ from those of the reference. Arrays are left out that no policy
        observes by itself, and those that the reference lacks.
        """
        for name, reference in list(self.arrays.items()):
            fault = _difference(reference, arrays.get(name), unreadable.get(name, "it is missing"))
            if fault and reference.is_numeric and self._is_needed(name):
                self._differences.setdefault(i, {})[name] = fault
            elif fault:
                del self.arrays[name]
                self.unreadable[name] = f"in {self.episode_names[i]} {fault}"
        for name in arrays.keys() - self.arrays.keys() - self.unreadable.keys():
            self.unreadable[name] = f"{self.episode_names[self._reference]} does not have it"

    @property
    def has_encoded_images(self) -> bool:
        """Whether images are stored as JPEG or in another format of image files."""
        return bool(self._encoded)

    def _where(self, episode: int) -> str:
        return f"'{self.path}' {self.episode_names[episode]}"

    def _describe(self, episode: int) -> tuple[dict[str, StepArray], dict[str, str], int]:
        """Its arrays of as many rows as steps, the others with the reason, and the number of steps."""
        file_path, group_name = self._episodes[episode]
        with open_hdf5(file_path) as file, report_read_errors(file_path, group_name):
            group = file[group_name]
            datasets: dict[str, h5py.Dataset] = {}
            group.visititems(lambda name, x: datasets.update({name: x}) if isinstance(x, h5py.Dataset) else None)
            if self.action not in datasets or not datasets[self.action].shape:
                raise DataError(f"{self._where(episode)} has no array '{self.action}'.", COPY_HINT)
            length = int(datasets[self.action].shape[0])
            declared = group.attrs.get("num_samples", length)
            length = int(declared) if 0 < declared <= length else length
            if not length:
                raise DataError(f"{self._where(episode)} has no steps.", COPY_HINT)
            # A padded array is as long as the actions, and some recorders add an observation after the last action.
            valid = {length, length + 1, datasets[self.action].shape[0]}
            rows = {name: dataset.shape[0] for name, dataset in datasets.items() if dataset.shape}
            arrays = {name: self._describe_array(name, datasets[name], episode) for name in rows if rows[name] in valid}
            reasons = {name: f"it has {n} rows for {length} steps" for name, n in rows.items() if n not in valid}
            return arrays, reasons, length

    def _describe_array(self, name: str, dataset: h5py.Dataset, episode: int) -> StepArray:
        is_encoded = "images/" in name and (h5py.check_vlen_dtype(dataset.dtype) or dataset.ndim == 2)
        if not is_encoded:
            return StepArray(dataset.shape[1:], dataset.dtype)
        if name not in self._encoded:
            self._encoded[name] = image_size(_content(dataset[0]), f"{self._where(episode)}, {name} of step 0")
        return StepArray((*self._encoded[name], 3), np.dtype(np.uint8))

    def read(self, array: str, episode: int) -> NDArray[Any]:
        """The values of `array` in an episode, (n, ...), as recorded; encoded images are decoded."""
        return (
            np.stack(list(self.iter_images(array, episode))) if array in self._encoded else self._read(array, episode)
        )

    def _read(self, array: str, episode: int) -> NDArray[Any]:
        """The values in the file; DataError if they are of another shape than those of most episodes."""
        if episode in self._faults:
            raise self._faults[episode]
        if fault := self._describe_difference(episode, array):
            raise DataError(f"{self._where(episode)}: {fault}.", KIND_HINT)
        file_path, group_name = self._episodes[episode]
        location = f"{group_name}/{array}".replace("//", "/")
        with open_hdf5(file_path) as file, report_read_errors(file_path, location):
            dataset = file[group_name][array]
            check_complete(file_path, dataset, location, self.lengths[episode])
            return np.asarray(dataset[: self.lengths[episode]])

    def iter_images(
        self,
        array: str,
        episode: int,
        exact: bool = True,  # noqa: ARG002
        camera: Camera | None = None,  # noqa: ARG002
    ) -> Iterator[NDArray[Any]]:
        """The images of an episode one by one."""
        values = self._read(array, episode)
        if array not in self._encoded:
            return iter(values)
        where = f"{self._where(episode)}, {array} of step"
        size = self._encoded[array]
        return (decode_image(_content(value), size, f"{where} {i}") for i, value in enumerate(values))

    def _describe_difference(self, episode: int, array: str) -> str:
        """How `array` differs from that of most episodes, empty if it does not."""
        fault = self._differences.get(episode, {}).get(array)
        reference = self.episode_names[self._reference]
        return f"{array} differs from that of {reference}: {fault}" if fault else ""

    def faults(self, arrays: Collection[str]) -> dict[int, str]:
        """Episodes that cannot be read, have no steps, or other arrays than most."""
        faults = {i: e.message.removeprefix(f"{self._where(i)} ") for i, e in self._faults.items()}
        for array in arrays:
            for i in self._differences:
                if fault := self._describe_difference(i, array):
                    faults.setdefault(i, fault)
        return faults

    def sha256(self) -> str:
        """Hash of the names and hashes of all files."""
        return file_hash(self.path) if self.path.is_file() else files_hash(self.path, [p for p, _ in self._episodes])


def _difference(reference: StepArray, other: StepArray | None, reason: str) -> str:
    """How `other` differs from `reference`, so that they cannot be one array; `reason` if it is None, empty if they
    can be one.
    """
    if other is None:
        return reason
    if other.shape != reference.shape:
        return f"it has shape {other.shape} instead of {reference.shape}"
    is_vector = reference.is_numeric and other.is_numeric and reference.image_shape is None
    if is_vector or other.dtype == reference.dtype:
        return ""
    return f"it has type {other.dtype} instead of {reference.dtype}"


def _content(value: Any) -> bytes:
    """An encoded image; zeros that pad it to the length of the others do no harm."""
    return value if isinstance(value, bytes) else np.asarray(value, np.uint8).tobytes()
