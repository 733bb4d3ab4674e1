"""Reads and writes parquet files; the only user of pyarrow, which is an extra (`pip install 'pyarrow>=17,<26'`)."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError, DdpError

Columns = dict[str, Any]
"""Name -> values: an array (n,) or (n, width), or a list."""

COPY_AGAIN = "Copy the dataset again."


def _import_pyarrow() -> ModuleType:
    try:
        import pyarrow as pa
        import pyarrow.compute as _compute  # noqa: F401
        import pyarrow.ipc as _ipc  # noqa: F401
        import pyarrow.parquet as _parquet  # noqa: F401
    except ImportError:
        raise DdpError("LeRobot datasets need pyarrow.", "pip install 'pyarrow>=17,<26'") from None
    return pa


def check_installed() -> None:
    """DdpError unless pyarrow is installed."""
    _import_pyarrow()


def write_table(path: Path, columns: Columns, index: str | None = None) -> None:
    """Writes `columns`, two-dimensional ones as lists of fixed length. pandas reads the column `index` as the index."""
    arrow = _import_pyarrow()
    table = arrow.table({name: _to_arrow(arrow, values) for name, values in columns.items()})
    if index is not None:
        descriptions = [
            {
                "name": name, "field_name": name, "metadata": None,
                "pandas_type": "unicode" if field.type == arrow.string() else str(field.type),
                "numpy_type": "object" if field.type == arrow.string() else str(field.type),
            }
            for name, field in zip(table.column_names, table.schema, strict=True)
        ]  # fmt: skip
        pandas = {"index_columns": [index], "column_indexes": [], "columns": descriptions, "pandas_version": "2.0.0"}
        table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(table, path)


def _to_arrow(arrow: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])
    return arrow.array(values)


def read_rows(path: Path, skip_prefix: str) -> list[dict[str, Any]]:
    """The rows of a small table as plain values, without the columns whose name begins with `skip_prefix`.

    DataError if the table is missing or damaged.
    """
    names = [name for name in column_names(path) if not name.startswith(skip_prefix)]
    return list(_read(path, names).to_pylist())


def count_rows(path: Path) -> int:
    """The number of rows of a table, from its header; DataError if it is missing or damaged."""
    with _open(path) as file:
        return int(file.metadata.num_rows)


def column_names(path: Path) -> list[str]:
    """The names of the columns of a table; DataError if it is missing or damaged."""
    with _open(path) as file:
        return list(file.schema_arrow.names)


def read_columns(path: Path, widths: dict[str, int], optional: Collection[str] = ()) -> dict[str, NDArray[np.float64]]:
    """Numeric columns by name: (n,) where the width is 0, otherwise (n, width). `optional` ones may be absent."""
    present = column_names(path) if optional else []
    names = [name for name in widths if name in present or name not in optional]
    table = _read(path, names)
    return {name: _to_numpy(path, name, table.column(name), widths[name]) for name in names}


def _to_numpy(path: Path, name: str, column: Any, width: int) -> NDArray[np.float64]:
    arrow = _import_pyarrow()
    try:
        array = column.combine_chunks()
        if width and arrow.types.is_list(array.type):
            lengths = arrow.compute.list_value_length(array).to_numpy(zero_copy_only=False)
            if not (lengths == width).all():
                raise ValueError(lengths)
        # Values of width 1 are often stored as plain numbers.
        is_plain = width == 0 or (width == 1 and arrow.types.is_primitive(array.type))
        values = np.asarray((array if is_plain else array.flatten()).to_numpy(zero_copy_only=False), np.float64)
        return values.reshape(len(column), width) if width else values
    except (ValueError, TypeError, AttributeError, arrow.ArrowException) as e:
        numbers = f"{width} numbers" if width else "one number"
        raise DataError(f"'{path}': expected {numbers} per row in the column '{name}'.", COPY_AGAIN) from e


class ColumnReader:
    """Reads single rows of columns as plain values. Holds one column of one table in memory per instance."""

    def __init__(self) -> None:
        self._source: tuple[Path, str] | None = None
        self._column: Any = None

    def read(self, path: Path, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """The values of the column `name` in `rows`."""
        if self._source != (path, name):
            self._column, self._source = _read(path, [name]).column(name), (path, name)
        return list(self._column.take(_import_pyarrow().array(rows)).to_pylist())


class ArrowSummary(NamedTuple):
    """An arrow table of LeRobot's first format.

    `columns` have the type and number of their values per row; `episodes` are its episode indices, `files` the files
    that it refers to, by column; `period` is the time between most rows [s], None if it holds no time.
    """

    rows: int
    columns: dict[str, tuple[str, int]]
    episodes: set[int]
    files: dict[str, set[str]]
    period: float | None


def summarize_arrow(path: Path) -> ArrowSummary:
    """What an arrow table holds; DataError if it is missing or damaged."""
    arrow = _import_pyarrow()
    columns, files = {}, {}
    try:
        with path.open("rb") as file:
            table = arrow.ipc.open_stream(file).read_all()
        for name, kind in zip(table.schema.names, table.schema.types, strict=True):
            is_vector = arrow.types.is_fixed_size_list(kind)
            columns[name] = (str(kind.value_type), kind.list_size) if is_vector else (str(kind), 1)
            if arrow.types.is_struct(kind) and kind.get_field_index("path") >= 0:
                files[name] = {value["path"] for value in table.column(name).to_pylist() if value and value["path"]}
        times = table.column("timestamp").to_numpy() if "timestamp" in columns else np.zeros(0)
        episodes = set(table.column("episode_index").to_pylist()) if "episode_index" in columns else set()
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as e:
        raise DataError(f"'{path}' is damaged or not an arrow table.", COPY_AGAIN) from e
    period = float(np.median(np.diff(times.astype(np.float64)))) if len(times) > 1 else None
    return ArrowSummary(len(table), columns, episodes, files, period)


def _read(path: Path, names: list[str]) -> Any:
    arrow = _import_pyarrow()
    with _open(path) as file:
        columns = list(file.schema_arrow.names)
        for name in names:
            if columns.count(name) != 1:
                number = "several columns" if name in columns else "no column"
                raise DataError(f"'{path}' has {number} '{name}'.", f"It has {', '.join(columns)}.")
        try:
            return file.read(names)
        except (OSError, ValueError, arrow.ArrowException) as e:
            raise _damaged(path) from e


def _open(path: Path) -> Any:
    arrow = _import_pyarrow()
    try:
        return arrow.parquet.ParquetFile(path)
    except FileNotFoundError as e:
        raise DataError(f"no file '{path}'.", COPY_AGAIN) from e
    except (OSError, ValueError, arrow.ArrowException) as e:
        raise _damaged(path) from e


def _damaged(path: Path) -> DataError:
    return DataError(f"'{path}' is damaged or not a parquet file.", COPY_AGAIN)
