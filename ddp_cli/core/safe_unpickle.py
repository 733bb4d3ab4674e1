"""Reads torch checkpoints without executing code from them.

A pickle can call any function by name. Here only tensors, their storages and plain containers are rebuilt; every other
class or function becomes an `InertObject` that records its name and arguments.
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

STORAGE_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class InertObject:
    """Stands for an instance of the class, or a call of the function, `name`; nothing of it is executed."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def __new__(cls, *_: Any, **__: Any) -> InertObject:
        # Pickles may create objects without calling __init__.
        instance = super().__new__(cls)
        InertObject.__init__(instance)
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        self.items.append(item)

    def extend(self, items: Any) -> None:
        self.items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value


def read_torch_zip(path: Path) -> Any:
    """The content of a file by `torch.save`: tensors, plain containers and InertObjects.

    CheckpointError if it is missing, damaged or another kind of file.
    """
    hint = "Give a .ckpt of the published code."
    try:
        with zipfile.ZipFile(path) as archive:
            pickle_name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            pickle_file = io.BytesIO(archive.read(pickle_name))
            return _RestrictedUnpickler(pickle_file, archive, pickle_name.removesuffix("data.pkl")).load()
    except FileNotFoundError:
        raise CheckpointError(f"no file '{path}'.", hint) from None
    except (zipfile.BadZipFile, StopIteration) as e:
        raise CheckpointError(f"'{path}' is not a torch checkpoint.", hint) from e
    except Exception as e:  # a damaged pickle may raise anything
        raise CheckpointError(f"'{path}' is damaged: {type(e).__name__}: {e}.", "Copy or download it again.") from e


def to_plain_containers(value: Any) -> Any:
    """Converts OmegaConf nodes (as InertObjects) to dictionaries, lists and values, recursively."""
    if isinstance(value, InertObject):
        state: dict[Any, Any] = value.state if isinstance(value.state, dict) else {}
        if "_content" in state:
            return to_plain_containers(state["_content"])
        if "_val" in state:
            return to_plain_containers(state["_val"])
        return to_plain_containers(value.entries or value.items) if value.entries or value.items else None
    if isinstance(value, dict):
        return {to_plain_containers(k): to_plain_containers(v) for k, v in value.items()}
    return [to_plain_containers(v) for v in value] if isinstance(value, list | tuple) else value


class _RestrictedUnpickler(pickle.Unpickler):
    """`prefix` is the folder of the tensors' data in `archive`."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(file)
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
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        return type("Inert", (InertObject,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _location, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._prefix}data/{key}"))
            self._storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


class _RebuildTensor:
    """Has neither slots nor a __dict__, because a pickle may set attributes of any object that it gets."""

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        return torch.as_strided(storage, size, stride, offset).clone()


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Tensor, *_: Any) -> Tensor:
        return data
