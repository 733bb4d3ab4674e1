"""Reads and writes parquet files; the only user of pyarrow, which is an extra (`pip install 'pyarrow>=17,<26'`)."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddp_cli.errors import DataError, DdpError

Columns = dict[str, Any]
"""Name -> values: an array (n,) or (n, width), or a list."""

COPY_AGAIN = "Copy the dataset again."


def _import_pyarrow() -> ModuleType:
    try:
        import pyarrow as pa
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a small table as plain values; DataError if it is missing or damaged."""
    return list(_read(path, None).to_pylist())


def read_columns(path: Path, widths: dict[str, int]) -> dict[str, NDArray[np.float64]]:
    """Numeric columns by name: (n,) where the width is 0, otherwise (n, width)."""
    table = _read(path, list(widths))
    columns = {}
    for name, width in widths.items():
        column = table.column(name).combine_chunks()
        try:
            values = np.asarray((column.flatten() if width else column).to_numpy(zero_copy_only=False), np.float64)
            columns[name] = values.reshape(len(table), width) if width else values
        except (ValueError, TypeError, AttributeError, _import_pyarrow().ArrowException) as e:
            numbers = f"{width} numbers" if width else "one number"
            raise DataError(f"'{path}': expected {numbers} per row in the column '{name}'.", COPY_AGAIN) from e
    return columns


def _read(path: Path, names: list[str] | None) -> Any:
    arrow = _import_pyarrow()
    try:
        table = arrow.parquet.ParquetFile(path).read(names)
    except FileNotFoundError as e:
        raise DataError(f"no file '{path}'.", COPY_AGAIN) from e
    except (OSError, ValueError, arrow.ArrowException) as e:
        raise DataError(f"'{path}' is damaged or not a parquet file.", COPY_AGAIN) from e
    missing = [name for name in names or () if name not in table.column_names]
    if missing:
        raise DataError(f"'{path}' has no column '{missing[0]}'.", f"It has {', '.join(table.column_names)}.")
    return table
