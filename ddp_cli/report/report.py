"""A page of datasets, runs, evaluations and policies: what is at each path, and the file that shows all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_cli.checkpoint_files import is_run
from ddp_cli.console import Update
from ddp_cli.data.lint_source import list_some
from ddp_cli.deploy.policy_inspection import is_policy
from ddp_cli.disk import atomic_file
from ddp_cli.errors import DataError, DdpError
from ddp_cli.report.dataset import dataset_section
from ddp_cli.report.evaluations import EvaluationFile, evaluations_section, open_loop_section, read_evaluations
from ddp_cli.report.films import film_report
from ddp_cli.report.page import Section, render_page
from ddp_cli.report.page_options import DEFAULTS, PageOptions
from ddp_cli.report.runs import runs_section
from ddp_cli.report.videos import Videos, remove_videos_beside, video_folder


@dataclass(frozen=True)
class PageResult:
    """The page that was written. `videos_in`: the folder of its videos, None if it holds them."""

    out: Path
    megabytes: float
    videos: int
    videos_in: Path | None


def write_page(
    paths: Sequence[Path], out: Path, options: PageOptions = DEFAULTS, progress: Update = lambda *_: None
) -> PageResult:
    """Writes a page of `paths` to `out`, which is replaced. A DdpError names the path that cannot be shown."""
    runs = [path for path in paths if is_run(path)]
    files = [read_evaluations(path) for path in paths if is_evaluation(path)]
    others = [path for path in paths if path not in runs and not is_evaluation(path)]
    if options.film is not None and not any(file.reports for file in files):
        raise DdpError("--film needs an evaluation.", "Name a report of `ddp eval`: --out, or eval/ in a run.")
    with Videos() as videos:
        sections = [runs_section(runs, videos)] if runs else []
        sections += _evaluation_sections(files, options, videos, progress)
        sections += [_other_section(path, options, videos, progress) for path in others]
        title = ", ".join(section["title"] for section in sections)
        sources = videos.sources(out, options.max_mb)
        is_beside = any(isinstance(source, str) for source in sources.values())
        with atomic_file(out) as partial:
            # The title may be a file name that is not valid UTF-8.
            partial.write_text(render_page(title, sections, sources), encoding="utf-8", errors="replace")
            if is_beside:
                videos.write_beside(out)
    if not is_beside:  # not before the page that used them is replaced
        remove_videos_beside(out)
    return PageResult(out, out.stat().st_size / 1e6, len(sources), video_folder(out) if is_beside else None)


def _other_section(path: Path, options: PageOptions, videos: Videos, progress: Update) -> Section:
    if not is_policy(path):
        _reject_folder_of_runs(path)
        return dataset_section(path, videos, options.max_episodes, progress)
    from ddp_cli.report.policy import policy_section  # imports torch, which other pages do not need

    return policy_section(path)


def _reject_folder_of_runs(path: Path) -> None:
    runs = sorted(str(run) for pattern in ("*", "*/*") for run in path.glob(pattern) if is_run(run))
    if runs:
        raise DataError(f"'{path}' is a folder of runs.", f"Name one or several of them: {list_some(runs)}.")


def is_evaluation(path: Path) -> bool:
    """Whether `path` is a file that may be a report of an evaluation."""
    if path.suffix == ".json" and not path.exists():
        raise DataError(f"no file '{path}'.", "Name a report of `ddp eval`: --out, or eval/ in a run.")
    return path.is_file() and path.suffix == ".json"


def _evaluation_sections(
    files: Sequence[EvaluationFile], options: PageOptions, videos: Videos, progress: Update
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
