"""Reads torch checkpoints without executing code from them.

A pickle can call any function by name. Here only tensors, their storages and plain containers are rebuilt; every other
class or function becomes an `InertObject` that records its name and arguments.

Both formats of `torch.save` are read: a zip archive with one pickle and a file per storage, and the legacy format
(`_use_new_zipfile_serialization=False`), a stream of pickles followed by the storages.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddp_cli.errors import CheckpointError, describe_exception

STORAGE_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip

LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""A legacy file begins with this magic number."""

FILE_HINT = "Give a .ckpt saved by the published code."


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


def read_torch_file(path: Path) -> Any:
    """The content of a file by `torch.save`: tensors, plain containers and InertObjects.

    CheckpointError if it is missing, damaged or another kind of file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_START))
            if start == LEGACY_START:
                return _read_legacy(io.BytesIO(start + file.read()))
        with zipfile.ZipFile(path) as archive:
            return _read_zip(archive)
    except FileNotFoundError:
        raise CheckpointError(f"no file '{path}'.", FILE_HINT) from None
    except OSError as e:
        raise CheckpointError(
            f"'{path}' cannot be read: {e.strerror or e}.", "Check the path and its permissions."
        ) from e
    except (zipfile.BadZipFile, StopIteration) as e:
        kind = "a safetensors file: weights without a configuration" if start[8:9] == b"{" else "not a torch checkpoint"
        raise CheckpointError(f"'{path}' is {kind}.", FILE_HINT) from e
    except Exception as e:  # a damaged pickle may raise anything
        cause = describe_exception(e)
        raise CheckpointError(f"'{path}' is damaged: {cause}.", "Copy or download it again.") from e


def _read_zip(archive: zipfile.ZipFile) -> Any:
    pickle_name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
    prefix = pickle_name.removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise pickle.UnpicklingError("its byte order is not little-endian")

    def read_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        data = bytearray(archive.read(f"{prefix}data/{key}"))
        if len(data) != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} has {len(data)} bytes instead of {count * dtype.itemsize}")
        return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)

    return _RestrictedUnpickler(io.BytesIO(archive.read(pickle_name)), read_storage).load()


def _read_legacy(file: io.BytesIO) -> Any:
    """Magic number, protocol version, system information, the object, the keys of its storages, and per storage its
    number of values (int64) and the values.
    """
    size = file.getbuffer().nbytes
    storages: dict[str, Tensor] = {}

    def allocate_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        total = count * dtype.itemsize + sum(storage.nbytes for storage in storages.values())
        if count < 0 or total > size:
            raise pickle.UnpicklingError(f"a storage of {count} values in a file of {size} bytes")
        storages[key] = torch.zeros(count, dtype=dtype)
        return storages[key]

    def load() -> Any:
        return _RestrictedUnpickler(file, allocate_storage).load()

    _magic_number, version, system = load(), load(), load()
    if version != 1001 or not system["little_endian"]:
        raise pickle.UnpicklingError(f"protocol {version}, little-endian {system['little_endian']}")
    content, keys = load(), load()
    if set(keys) != set(storages):
        raise pickle.UnpicklingError("its storages are not those of its tensors")
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != len(storage):
            raise pickle.UnpicklingError(f"storage {key} has another size")
        data = file.read(storage.nbytes)
        if len(data) != storage.nbytes:
            raise pickle.UnpicklingError(f"it ends within storage {key}")
        if data:
            storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
    return content


def to_plain_containers(value: Any) -> Any:
    """Converts OmegaConf nodes (as InertObjects) to dictionaries, lists and values, recursively."""
    if isinstance(value, InertObject):
        state: dict[Any, Any] = value.state if isinstance(value.state, dict) else {}
        if "_content" in state:
            return to_plain_containers(state["_content"])
        if "_val" in state:
            return to_plain_containers(state["_val"])
        return to_plain_containers(value.entries or value.items) if value.entries or value.items else value
    if isinstance(value, dict):
        return {to_plain_containers(k): to_plain_containers(v) for k, v in value.items()}
    return [to_plain_containers(v) for v in value] if isinstance(value, list | tuple) else value


class _RestrictedUnpickler(pickle.Unpickler):
    """`read_storage(key, dtype, number of values)` returns the values of a storage, or where they will be read to."""

    def __init__(self, file: io.BytesIO, read_storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        _check_memo(file)
        super().__init__(file)
        self._read_storage = read_storage
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
        kind, dtype, key, _location, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise pickle.UnpicklingError(f"unknown storage {kind!r}")
        if key not in self._storages:
            self._storages[key] = self._read_storage(key, dtype, count)
        return self._storages[key]


def _check_memo(file: io.BytesIO) -> None:
    """UnpicklingError if the next pickle in `file` numbers its objects beyond its size: unpickling would allocate
    memory for all numbers below.
    """
    start, size = file.tell(), file.getbuffer().nbytes
    for opcode, number, _ in pickletools.genops(file):
        if "PUT" in opcode.name and isinstance(number, int) and number > size:
            raise pickle.UnpicklingError(f"an object has the number {number}")
    file.seek(start)


class _RebuildTensor:
    """Has neither slots nor a __dict__, because a pickle may set attributes of any object that it gets."""

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
        if math.prod(size) > storage.numel():
            raise pickle.UnpicklingError(f"a tensor of shape {size} in a storage of {storage.numel()} values")
        return torch.as_strided(storage, size, stride, offset)  # legacy files hold the values behind the tensors


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, data: Tensor, *_: Any) -> Tensor:
        return data
