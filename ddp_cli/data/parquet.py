"""Parquet files; the only user of pyarrow, which is an extra (`pip install 'ddp-cli[lerobot]'`)."""

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


def _arrow() -> ModuleType:
    try:
        import pyarrow as pa
        import pyarrow.parquet as _parquet  # noqa: F401
    except ImportError:
        raise DdpError("LeRobot datasets need pyarrow.", "pip install 'ddp-cli[lerobot]'") from None
    return pa


def check_installed() -> None:
    """DdpError unless pyarrow is there."""
    _arrow()


def write_table(path: Path, columns: Columns, index: str | None = None) -> None:
    """Writes `columns`; those of two dimensions as lists of fixed length. pandas will make `index` the index."""
    arrow = _arrow()
    table = arrow.table({name: _column(arrow, values) for name, values in columns.items()})
    if index is not None:
        described = [
            {
                "name": name, "field_name": name, "metadata": None,
                "pandas_type": "unicode" if field.type == arrow.string() else str(field.type),
                "numpy_type": "object" if field.type == arrow.string() else str(field.type),
            }
            for name, field in zip(table.column_names, table.schema, strict=True)
        ]  # fmt: skip
        pandas = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
        table = table.replace_schema_metadata({"pandas": json.dumps(pandas)})
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.parquet.write_table(table, path)


def _column(arrow: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])
    return arrow.array(values)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a small table as plain values; DataError when it is missing or damaged."""
    return list(_read(path, None).to_pylist())


def read_columns(path: Path, widths: dict[str, int]) -> dict[str, NDArray[np.float64]]:
    """Numeric columns: (n,) where the width is 0, otherwise (n, width)."""
    table = _read(path, list(widths))
    found = {}
    for name, width in widths.items():
        column = table.column(name).combine_chunks()
        try:
            values = np.asarray((column.flatten() if width else column).to_numpy(zero_copy_only=False), np.float64)
            found[name] = values.reshape(len(table), width) if width else values
        except (ValueError, TypeError, AttributeError, _arrow().ArrowException) as e:
            raise DataError(
                f"'{path}': the column '{name}' does not hold {width or 'one'} numbers in every row.",
                "Copy the dataset again.",
            ) from e
    return found


def _read(path: Path, columns: list[str] | None) -> Any:
    arrow = _arrow()
    try:
        table = arrow.parquet.ParquetFile(path).read(columns)
    except FileNotFoundError as e:
        raise DataError(f"no file '{path}'.", "Copy the dataset again.") from e
    except (OSError, ValueError, arrow.ArrowException) as e:
        raise DataError(f"'{path}' is damaged, or no parquet file.", "Copy the dataset again.") from e
    absent = [name for name in columns or () if name not in table.column_names]
    if absent:
        raise DataError(f"'{path}' has no column '{absent[0]}'.", f"It has {', '.join(table.column_names)}.")
    return table
