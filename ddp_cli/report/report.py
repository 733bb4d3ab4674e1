"""A page of datasets, runs, evaluations and policies: what is at each path, and the file that shows all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_cli.core.checkpoint_files import is_run
from ddp_cli.deploy.policy_inspection import is_policy
from ddp_cli.disk import atomic_file
from ddp_cli.errors import DataError, DdpError
from ddp_cli.report.dataset import DEFAULT_EPISODES, dataset_section
from ddp_cli.report.evaluations import EvaluationFile, evaluations_section, open_loop_section, read_evaluations
from ddp_cli.report.films import film_report
from ddp_cli.report.page import Section, render_page
from ddp_cli.report.runs import runs_section
from ddp_cli.report.videos import Videos, video_folder

DEFAULT_MAX_MB = 50.0

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PageOptions:
    """`film`: which episodes of evaluations are run again and filmed, see films.parse_film; None for none."""

    max_mb: float = DEFAULT_MAX_MB
    """Videos of more than this together are written beside the page."""
    max_episodes: int = DEFAULT_EPISODES
    """Episodes of each dataset that are shown in full."""
    film: str | int | None = None


@dataclass(frozen=True)
class PageResult:
    """The page that was written. `videos_in`: the folder of its videos, None if it holds them."""

    out: Path
    megabytes: float
    videos: int
    videos_in: Path | None


def write_page(
    paths: Sequence[Path], out: Path, options: PageOptions = PageOptions(), progress: Progress = lambda *_: None
) -> PageResult:
    """Writes a page of `paths` to `out`, which is replaced. A DdpError names the path that cannot be shown."""
    runs = [path for path in paths if is_run(path)]
    files = [read_evaluations(path) for path in paths if is_evaluation(path)]
    others = [path for path in paths if path not in runs and not is_evaluation(path)]
    if options.film is not None and not any(file.reports for file in files):
        raise DdpError("--film needs an evaluation.", "Name a report of `ddp eval`: --out, or eval/ in a run.")
    with Videos() as videos:
        sections = [runs_section(runs)] if runs else []
        sections += _evaluation_sections(files, options, videos, progress)
        sections += [_other_section(path, options, videos, progress) for path in others]
        title = ", ".join(section["title"] for section in sections)
        contents = videos.publish(out, options.max_mb)
        with atomic_file(out) as partial:
            partial.write_text(render_page(title, sections, contents))
    is_beside = any(isinstance(content, str) for content in contents.values())
    return PageResult(out, out.stat().st_size / 1e6, len(contents), video_folder(out) if is_beside else None)


def _other_section(path: Path, options: PageOptions, videos: Videos, progress: Progress) -> Section:
    if not is_policy(path):
        return dataset_section(path, videos, options.max_episodes, progress)
    from ddp_cli.report.policy import policy_section  # imports torch, which other pages do not need

    return policy_section(path)


def is_evaluation(path: Path) -> bool:
    """Whether `path` is a file that may be a report of an evaluation."""
    if path.suffix == ".json" and not path.exists():
        raise DataError(f"no file '{path}'.", "Name a report of `ddp eval`: --out, or eval/ in a run.")
    return path.is_file() and path.suffix == ".json"


def _evaluation_sections(
    files: Sequence[EvaluationFile], options: PageOptions, videos: Videos, progress: Progress
) -> list[Section]:
    """Sweeps have a section each; all other evaluations share one, which compares them."""
    sections = [open_loop_section(file.path, file.open_loop) for file in files if file.open_loop]
    groups = [(file.reports, True) for file in files if file.is_sweep]
    single = [report for file in files if not file.is_sweep for report in file.reports]
    groups += [(single, False)] if single else []
    for reports, is_sweep in groups:
        films = [
            {} if options.film is None else film_report(report, options.film, videos, progress) for report in reports
        ]
        sections.append(evaluations_section(reports, is_sweep, films))
    return sections
