"""The episodes of a source that `--only` selects."""

from __future__ import annotations

from ddp_cli.errors import DataError


def select_episodes(count: int, only: str | None, where: str) -> list[int]:
    """Indices that the Python slice `only` (`:50`, `10:20`, `::2`) selects from `count` episodes; None selects all.

    DataError, with `where` naming the source, when `only` is no slice or selects nothing.
    """
    if only is None:
        return list(range(count))
    parts = only.split(":")
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        indices = list(range(count))[slice(*(int(part) if part else None for part in parts))]
    except ValueError:
        raise DataError(f"'{only}' is not a slice of episodes.", "Write --only :50 or --only 10:20.") from None
    if not indices:
        raise DataError(f"'{only}' selects none of the {count} episodes of {where}.", "Write --only :50.")
    return indices
