"""`ddp doctor`: what works on this machine, and how to fix what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options

EXAMPLES = options.examples("ddp doctor", "ddp doctor --task two_arm_lift")


def doctor(
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            help="Check this task instead: a name or a JSON file. Says which shortcuts the simulator takes in it.",
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Check the installation and print a fix for each problem.

    Versions, rendering, GPU, memory and disk. Exits with 1 if there is a problem.
    """
    from dataclasses import asdict

    from ddp_cli.commands.doctor_checks import diagnose
    from ddp_cli.commands.doctor_task_checks import diagnose_task
    from ddp_cli.task_file import read_task

    checks = diagnose_task(read_task(task)) if task else diagnose()
    if json:
        console.print_json([asdict(check) for check in checks])
    else:
        console.table("", [("ok" if check.ok else "PROBLEM", check.name, check.detail) for check in checks])
        for check in checks:
            if not check.ok:
                console.result(f"fix for {check.name}: {check.fix}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
