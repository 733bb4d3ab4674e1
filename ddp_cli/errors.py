"""Errors that a user can act on: what is wrong, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DdpError(Exception):
    """An error of the user. `message` names the invalid value, `hint` the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Worker processes send errors to their parent: pickle both arguments, not only args[0].
        return type(self), (self.message, self.hint)


class ConfigError(DdpError, ValueError):
    """A setting that is unknown, out of range or inconsistent with another."""


class UnknownNameError(ConfigError):
    """A name that is not among the valid ones; the message lists them, and the closest match.

    `kind` says what is named ("task", "sampler"); `hint` replaces the list of valid names as the next step.
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str], hint: str = "") -> None:
        names = list(valid)
        super().__init__(f"unknown {kind} '{name}'{close_match(name, names)}", hint or f"Valid: {', '.join(names)}.")
        self._arguments = (kind, name, names, hint)

    def __reduce__(self) -> tuple[type, tuple[str, str, list[str], str]]:  # type: ignore[override]
        return type(self), self._arguments


class DataError(DdpError, ValueError):
    """A recording, dataset or store that is damaged or unsuitable."""


class CheckpointError(DdpError, ValueError):
    """A checkpoint that is damaged or unsuitable."""


class SimulatorError(DdpError, RuntimeError):
    """The simulator or its renderer does not work on this machine, or a task has none."""


class WorkerError(DdpError, RuntimeError):
    """A worker process that crashed; finished work is kept."""


def close_match(value: str, valid: Iterable[str]) -> str:
    """End of an error message: `, did you mean 'x'?` if `value` resembles a valid one, otherwise a full stop."""
    match = difflib.get_close_matches(value, list(valid), n=1, cutoff=0.5)
    return f", did you mean '{match[0]}'?" if match else "."


def describe_exception(e: BaseException) -> str:
    """The class and the message of an exception, on one line."""
    return " ".join(f"{type(e).__name__}: {e}".split())


def last_line(e: BaseException) -> str:
    """The last line of the message of a library's exception, which may hold a traceback, or else its class; without a
    full stop.
    """
    return next((line.strip() for line in reversed(str(e).splitlines()) if line.strip()), type(e).__name__).rstrip(".")
