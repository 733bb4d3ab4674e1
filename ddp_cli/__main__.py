"""The command `ddp`, and `python -m ddp_cli`. Ctrl-C is not a traceback while the program is imported or exits."""

from __future__ import annotations

import io
import signal
import sys

from ddp_cli import interruption


def main() -> None:
    """Run the command line, and exit with its code."""
    if sys.platform == "win32":
        sys.exit("error: ddp does not run on Windows. Use Linux, for example in WSL.")
    interruption.install()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: not every file name can be encoded
    try:
        from ddp_cli.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
