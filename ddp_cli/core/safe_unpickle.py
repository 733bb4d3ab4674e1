"""Reads a torch checkpoint without running anything that it carries.

A pickle is a program: it may call any function it names. Here only tensors, their storages and plain
containers are rebuilt; every other class or function becomes an `InertObject` record that remembers its name
and what it was given.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_cli.errors import CheckpointError

DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class InertObject:
    """Something of a class or function `name` that does not exist here, or must not run."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def __new__(cls, *_: Any, **__: Any) -> InertObject:
        made = super().__new__(cls)
        InertObject.__init__(made)
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


def read_checkpoint(path: Path) -> Any:
    """The content of a torch zip file: tensors, plain containers and Inert records.

    CheckpointError when it is no such file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            program = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            return _Reader(io.BytesIO(archive.read(program)), archive, program.removesuffix("data.pkl")).load()
    except FileNotFoundError:
        raise CheckpointError(f"no file '{path}'.", "Name a .ckpt of the published code.") from None
    except (zipfile.BadZipFile, StopIteration) as e:
        raise CheckpointError(f"'{path}' is not a torch checkpoint.", "Name a .ckpt of the published code.") from e
    except Exception as e:  # a damaged pickle raises what it likes
        raise CheckpointError(f"'{path}' is damaged: {type(e).__name__}: {e}.", "Copy it again.") from e


def plain(value: Any) -> Any:
    """OmegaConf's nodes, read as Inert records, as plain dictionaries, lists and values."""
    if isinstance(value, InertObject):
        state: dict[Any, Any] = value.state if isinstance(value.state, dict) else {}
        if "_content" in state:
            return plain(state["_content"])
        if "_val" in state:
            return plain(state["_val"])
        return plain(value.entries or value.items) if value.entries or value.items else None
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


class _Reader(pickle.Unpickler):
    def __init__(self, program: io.BytesIO, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(program)
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _RebuildParameter()
        if module == "torch" and name == "Size":
            return tuple
        if module in ("torch", "torch.storage") and name in DTYPES:
            return DTYPES[name]
        return type("Inert", (InertObject,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        if key not in self._storages:
            raw = bytearray(self._archive.read(f"{self._prefix}data/{key}"))
            self._storages[key] = (
                torch.frombuffer(raw, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


class _RebuildTensor:
    """Without slots or a __dict__: a pickle may set attributes of what it is handed."""

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        return torch.as_strided(storage, size, stride, offset).clone()


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Tensor, *_: Any) -> Tensor:
        return data
