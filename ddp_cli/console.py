"""Terminal output; the only user of rich. Results go to stdout, progress, notes and errors to stderr."""

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
from rich.text import Text

_err = Console(stderr=True, highlight=False, soft_wrap=True)
_notes = Console(stderr=True, highlight=False, soft_wrap=True)
_out = Console(highlight=False, soft_wrap=True)

SECONDS_BETWEEN_LINES = 15.0  # of progress, where stderr is not a terminal

Update = Callable[[int, int, str], None]


def is_terminal() -> bool:
    """Whether progress and notes go to a terminal, while it is open."""
    return _notes.is_terminal


def silence() -> None:
    """Prints nothing but errors from now on; used by all but the main process of a distributed run, and when the
    terminal was closed, to which every write would fail.
    """
    _out.quiet = True
    _notes.quiet = True


def note(text: str) -> None:
    """Prints a line that is not part of the result."""
    _notes.print(text, markup=False, style="dim")


def warn(text: str) -> None:
    """Prints a warning."""
    _notes.print(f"warning: {text}", markup=False, style="yellow")


def error(text: str) -> None:
    """Prints an error."""
    _err.print(f"error: {text}", markup=False, style="bold red")


def result(text: str) -> None:
    """Prints a line of the result."""
    _out.print(text, markup=False)


def table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ()) -> None:
    """Prints the result as an aligned table."""
    grid = Table(title=Text(title), title_justify="left", show_header=bool(header), box=None, pad_edge=False)
    for name in header or rows[0]:
        grid.add_column(name if header else "", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))  # paths may hold what rich reads as markup
    _out.print(grid)


@contextmanager
def results_silenced(silent: bool) -> Iterator[None]:
    """Inside, if `silent`, results are not printed as text: a JSON document follows."""
    before, _out.quiet = _out.quiet, silent or _out.quiet
    try:
        yield
    finally:
        _out.quiet = before


def print_json(value: Any) -> None:
    """Prints the result as one JSON document."""
    if not _out.quiet and sys.stdout is not None:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


@contextmanager
def progress(title: str) -> Iterator[Update]:
    """A progress bar on a terminal, or a line every 15 s elsewhere; yields `update(done, total, detail)`."""
    if _notes.quiet or not _notes.is_terminal:
        yield _line_printer(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TextColumn("{task.fields[detail]}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=_notes, transient=True) as bar:
        task = bar.add_task(title, total=None, detail="")

        def update(done: int, total: int, detail: str) -> None:
            bar.update(task, completed=done, total=total, detail=detail)

        yield update


def _line_printer(title: str) -> Update:
    started = last_line = begun = time.perf_counter()
    first_done = last_done = last_total = -1

    def print_line(done: int, total: int, detail: str) -> None:
        nonlocal last_line, begun, first_done, last_done, last_total
        now = time.perf_counter()
        if total != last_total or done < last_done:  # something else is counted: its rate is measured from here
            begun, first_done = now, done
        last_done, last_total = done, total
        if now - last_line >= SECONDS_BETWEEN_LINES:
            last_line = now
            seconds = (now - begun) * (total - done) / (done - first_done) if done > first_done else None
            remaining = "" if seconds is None else f", {duration(seconds)} remaining"
            note(f"{title} {done}/{total} {detail}, {duration(now - started)} elapsed{remaining}")

    return print_line


def duration(seconds: float) -> str:
    """`75.0` -> `1 min 15 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
