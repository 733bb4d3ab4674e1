"""What a person sees; the only user of rich. Progress and notes on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

_err = Console(stderr=True, highlight=False, soft_wrap=True)
_notes = Console(stderr=True, highlight=False, soft_wrap=True)
_out = Console(highlight=False, soft_wrap=True)

QUIET_SECONDS = 15.0  # between progress lines where there is no terminal

Update = Callable[[int, int, str], None]


def mute() -> None:
    """Says nothing from now on but errors: another process speaks for this one."""
    _out.quiet = True
    _notes.quiet = True


def note(text: str) -> None:
    """A line for the person, not part of the result."""
    _notes.print(text, markup=False, style="dim")


def warn(text: str) -> None:
    """Something is not as it should be, and the work goes on."""
    _notes.print(f"warning: {text}", markup=False, style="yellow")


def error(text: str) -> None:
    """Why the command ends here."""
    _err.print(f"error: {text}", markup=False, style="bold red")


def result(text: str) -> None:
    """A line of the result."""
    _out.print(text, markup=False)


def table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Rows of the result, aligned."""
    grid = Table(title=title, title_justify="left", show_header=bool(header), box=None, pad_edge=False)
    for name in header or rows[0]:
        grid.add_column(name if header else "", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    _out.print(grid)


@contextmanager
def without_results(silent: bool) -> Iterator[None]:
    """Inside, if `silent`, results are not shown as text: one JSON document will say them."""
    before, _out.quiet = _out.quiet, silent or _out.quiet
    try:
        yield
    finally:
        _out.quiet = before


def print_json(value: Any) -> None:
    """The result as one JSON document."""
    if not _out.quiet:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def progress(what: str) -> Iterator[Update]:
    """A progress bar on a terminal, now and then a line elsewhere: `update(done, total, detail)`."""
    started = time.perf_counter()
    if _notes.quiet or not _notes.is_terminal:
        last, first = [started], [-1]

        def line(done: int, total: int, detail: str) -> None:
            now = time.perf_counter()
            first[0] = done if first[0] < 0 else first[0]
            if now - last[0] >= QUIET_SECONDS:
                last[0] = now
                left = (now - started) * (total - done) / max(1, done - first[0])
                note(f"{what} {done}/{total} {detail}, {duration(now - started)} gone, {duration(left)} left")

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TextColumn("{task.fields[detail]}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=_notes, transient=True) as bar:
        task = bar.add_task(what, total=None, detail="")

        def update(done: int, total: int, detail: str) -> None:
            bar.update(task, completed=done, total=total, detail=detail)

        yield update


def duration(seconds: float) -> str:
    """`75.0` -> `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
