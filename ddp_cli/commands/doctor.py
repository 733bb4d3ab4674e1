"""`ddp doctor`: what works on this machine, and the cure for what does not."""

from __future__ import annotations

import typer

from ddp_cli import console
from ddp_cli.commands import options


def doctor(json: options.Json = False) -> None:
    """Check versions, rendering, GPU and memory; one line of cure for each trouble. Exit 1 if something is wrong."""
    from dataclasses import asdict

    from ddp_cli.commands.diagnosis import diagnose

    findings = diagnose()
    if json:
        console.print_json([asdict(f) for f in findings])
    else:
        console.table("", [("ok" if f.ok else "WRONG", f.what, f.found) for f in findings])
        for f in findings:
            if not f.ok:
                console.result(f"cure for {f.what}: {f.cure}")
    if not all(f.ok for f in findings):
        raise typer.Exit(1)
