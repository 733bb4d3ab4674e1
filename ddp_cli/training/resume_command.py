"""The command that resumes a run, for messages. Without torch, so that all commands can name it at once."""

from __future__ import annotations

import shlex
from pathlib import Path


def resume_command(run: Path, *more: str) -> str:
    """The command that resumes the run in the folder `run` (RUNS/TASK/NAME), with the arguments `more`.

    A resumed run has its task from its own configuration: `--task` only names its folder, also for a task that is not
    built in.
    """
    folder = run if run.parent.name else run.resolve()  # a name alone does not say where it is
    if len(folder.parents) < 3:  # too near to the root for RUNS/TASK/NAME
        return shlex.join(["ddp", "train", "--resume", *more])
    arguments = ["--task", folder.parent.name, "--name", folder.name]
    if folder.parents[1] != Path("runs"):
        arguments += ["--runs", str(folder.parents[1])]
    return shlex.join(["ddp", "train", *arguments, "--resume", *more])
