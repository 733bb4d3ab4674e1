"""What a user chooses of a page. Commands import this file when `ddp` starts."""

from __future__ import annotations

from dataclasses import dataclass

from ddp_cli.errors import DdpError

FAILURES, ALL = "failures", "all"


@dataclass(frozen=True)
class PageOptions:
    """`film`: which episodes of evaluations are run again and filmed, see `parse_film`; None for none."""

    max_mb: float = 50.0
    """Videos of more than this together are written beside the page."""
    max_episodes: int = 48
    """Episodes of each dataset that are shown in full; 96x128 images of two cameras take about 10 MB then."""
    film: str | int | None = None


DEFAULTS = PageOptions()


def parse_film(text: str) -> str | int:
    """What `--film` asks for: `failures`, `all`, or a number of episodes; DdpError for anything else."""
    if text in (FAILURES, ALL):
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise DdpError(f"--film '{text}' is not a choice of episodes.", "Valid: failures, all, or a number of episodes.")
