"""The one line that `ddp` prints for an exception: of its own, of the system, of a library, or an unexpected one. The
traceback of an unexpected one is written to a file that the line names.
"""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback

from ddp_cli import __version__
from ddp_cli.errors import DdpError

MAX_MESSAGE = 300  # characters of an unexpected error; the traceback has all of them


def error_message(e: Exception, debug: bool) -> str:
    """What the exception `e`, which is being handled, means to a user. The traceback of an unexpected one is written to
    a file, unless `debug` says that it was printed.
    """
    if isinstance(e, DdpError):
        return str(e)
    if isinstance(e, OSError) and (e.errno or _is_disk_full(e)):
        return _os_error_message(e)
    if isinstance(e, ModuleNotFoundError) and e.name and e.name.partition(".")[0] != "ddp_cli":
        return f"the package '{e.name}' is not installed. Run `ddp doctor`."
    if isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(e):
        return "out of memory. Use fewer --workers, a smaller batch_size or a smaller model." + _traceback_hint(debug)
    text = " ".join(str(e).split())
    name = type(e).__name__ + (f": {text[:MAX_MESSAGE]}" if text else "")
    return f"unexpected {name.rstrip('.')}. Run `ddp doctor`.{_traceback_hint(debug)}"


def _traceback_hint(debug: bool) -> str:
    """A sentence that names the file to which the traceback of the current exception is written."""
    if debug:
        return ""
    try:
        with tempfile.NamedTemporaryFile("wb", prefix="ddp-traceback-", suffix=".txt", delete=False) as file:
            text = f"ddp {__version__}: {' '.join(sys.argv)}\n{traceback.format_exc()}"
            file.write(text.encode(errors="replace"))  # arguments may not be valid UTF-8
    except OSError:
        return " DDP_DEBUG=1 prints the traceback."
    return f" The traceback is in '{file.name}'; DDP_DEBUG=1 prints it."


def _is_disk_full(e: OSError) -> bool:
    # h5py wraps the operating system's error in a longer message.
    is_full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return is_full or "No space left" in str(e) or "File too large" in str(e)


def _os_error_message(e: OSError) -> str:
    if _is_disk_full(e):
        return "the disk is full. Free some space, or choose an output on another disk, and run the same command again."
    path = f"'{e.filename}': " if e.filename else ""
    return f"{path}{e.strerror or ' '.join(str(e).split())}."
