"""Opens HDF5 files and reads their arrays. Every failure is a DataError with its cause, where HDF5 tells it.

HDF5 itself returns zeros for chunks that were never written and for virtual datasets whose source files are missing:
both are refused here.
"""

from __future__ import annotations

import contextlib
import errno
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from ddp_cli.errors import DataError

HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, zlib.error)
"""Exceptions that reading a damaged file raises."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
COPY_AGAIN = "Copy the file again."
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_hdf5(path: Path) -> h5py.File:
    """The HDF5 file `path`, opened for reading; DataError if it is missing, locked, truncated or another kind."""
    if path.is_dir():
        raise DataError(f"'{path}' is a folder, not an HDF5 file.", "Name a file of demonstrations.")
    if not path.exists():
        raise DataError(
            f"no file '{path}'.", "Name an HDF5 file of raw demonstrations, or record one with `ddp collect`."
        )
    with contextlib.suppress(ImportError):
        # Where it is installed, it registers the compression filters that HDF5 lacks.
        import hdf5plugin  # type: ignore[import-not-found] # noqa: F401
    try:
        return h5py.File(path, "r", locking="best-effort")
    except HDF5_ERRORS as e:
        raise _opening_error(path, e) from e


def _opening_error(path: Path, error: Exception) -> DataError:
    message = str(error)
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return DataError(f"'{path}' cannot be read: permission denied.", f"Allow it, for example `chmod u+r {path}`.")
    if "unable to lock file" in message and number not in NO_LOCKS:
        return DataError(
            f"'{path}' is open for writing in another program.",
            "Close it there (a notebook, a recording that is still running), then try again.",
        )
    if "unable to lock file" in message:
        return DataError(
            f"'{path}' is on a file system that cannot lock files.",
            "Set HDF5_USE_FILE_LOCKING=FALSE, or copy the file to a local disk.",
        )
    if "already open for" in message:
        return DataError(
            f"'{path}' is marked as open for writing: another program has it open, or ended without closing it.",
            f"Close it there; if no program uses it, clear the mark with `h5clear -s {path}`.",
        )
    try:
        with path.open("rb") as file:
            has_signature = file.read(len(SIGNATURE)) == SIGNATURE
    except OSError as e:
        return DataError(f"'{path}' cannot be read: {e.strerror}.", COPY_AGAIN)
    if "truncated file" in message:
        return DataError(
            f"'{path}' is a damaged or truncated HDF5 file: it has {path.stat().st_size:,} bytes, fewer than its "
            "header declares.",
            COPY_AGAIN,
        )
    kind = "a damaged or truncated HDF5 file" if has_signature else "not an HDF5 file"
    return DataError(f"'{path}' is {kind}.", "Copy or record it again (`ddp collect`).")


def reject_folder_of_files(path: Path) -> None:
    """DataError that names the HDF5 files in the folder `path`, if it holds some."""
    files = sorted(file.name for file in path.iterdir() if file.suffix in (".hdf5", ".h5"))
    if files:
        raise DataError(
            f"'{path}' is a folder with {len(files)} HDF5 files.", f"Name one of them: {', '.join(files[:5])}."
        )


def reject_single_episode(path: Path, file: h5py.File) -> None:
    """DataError if `file` is one of the files of ALOHA, which hold an episode each."""
    if "action" in file and "observations" in file:
        raise DataError(
            f"'{path}' is a single episode, as ALOHA records them in files episode_0.hdf5, episode_1.hdf5, ...",
            f"Convert their folder: `ddp convert {path.parent}`.",
        )


@contextmanager
def report_read_errors(path: Path, location: str) -> Iterator[None]:
    """Re-raise exceptions of reading `location` in `path` as a DataError with the cause."""
    try:
        yield
    except DataError:
        raise
    except HDF5_ERRORS as e:
        message = str(e)
        if "plugin" in message or ("filter" in message and "regist" in message):
            raise DataError(
                f"'{path}': {location} is compressed with a filter that is not installed here.",
                "Install the common ones, pip install hdf5plugin, or write the file again with gzip.",
            ) from e
        if "external raw data" in message:
            raise DataError(
                f"'{path}': {location} is stored in an external file that is missing.", "Copy that file as well."
            ) from e
        raise DataError(f"'{path}': {location} is damaged.", "Copy or record the file again.") from e


def check_links(path: Path, group: h5py.Group, location: str) -> None:
    """DataError if a member of `group` is a link to a file or an object that is missing."""
    prefix = f"{location}/" if location else ""
    for name in group:
        if group.get(name) is not None:
            continue
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise DataError(
                f"'{path}': {prefix}{name} is a link to the file '{link.filename}', which is missing or not readable.",
                "Put that file where the link expects it.",
            )
        target = f"'{link.path}', which does not exist" if isinstance(link, h5py.SoftLink) else "nothing"
        raise DataError(f"'{path}': {prefix}{name} is a link to {target}.", COPY_AGAIN)


def _count_chunks(dataset: h5py.Dataset, rows: int) -> int:
    """The chunks of the first `rows` rows."""
    shape = (rows, *dataset.shape[1:])
    return math.prod(math.ceil(n / c) for n, c in zip(shape, dataset.chunks, strict=True))


def check_complete(path: Path, dataset: h5py.Dataset, location: str, rows: int | None = None) -> None:
    """DataError if parts of `dataset`, or of its first `rows` rows, were never written, or are in files that are
    missing.

    That finds absurd shapes in damaged headers as well, since most of their chunks are missing. Of an array in one
    piece, HDF5 itself compares shape and size.
    """
    if dataset.is_virtual:
        missing = [
            source.file_name
            for source in dataset.virtual_sources()
            if source.file_name != "." and not (path.parent / source.file_name).exists()
        ]
        if missing:
            raise DataError(
                f"'{path}': {location} is made of other files, of which '{missing[0]}' is missing.",
                "Copy that file as well.",
            )
        return
    for name, *_ in dataset.external or ():
        # What another file holds, of any format, would be copied into stores that are shared.
        if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
            raise DataError(
                f"'{path}': {location} is stored in '{name}', outside of the folder of the file.",
                "Move both into one folder.",
            )
    if dataset.external or 0 in dataset.shape:
        return
    if dataset.chunks:
        expected, written = _count_chunks(dataset, dataset.shape[0]), int(dataset.id.get_num_chunks())
        if written < expected and rows and 0 < rows < dataset.shape[0]:
            offsets: list[int] = []
            dataset.id.chunk_iter(lambda chunk: offsets.append(chunk.chunk_offset[0]))
            expected, written = _count_chunks(dataset, rows), sum(offset < rows for offset in offsets)
        missing_chunks = expected - written
        if missing_chunks:
            raise DataError(
                f"'{path}': {missing_chunks} of {expected} chunks of {location} were never written.",
                "Record or copy the file again.",
            )
    elif dataset.id.get_storage_size() == 0:
        raise DataError(f"'{path}': {location} was never written.", "Record or copy the file again.")
