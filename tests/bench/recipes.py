"""Trains the policies of the table of success rates, from demonstrations to evaluations, by commands that users type.

    python tests/bench/recipes.py FOLDER [NAME ...] [--seeds 1 2 3] [--machine "2 cores of ..."]

Those of Push-T need the published demonstrations, as FOLDER/NAME/pusht_cchi_v7_replay.zarr.

Takes hours. It may be interrupted at any time: what is finished is not repeated, and a training run is resumed. The
result of a seed is stored in tests/data/results as soon as it is evaluated, from which results.py makes the table.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from results import FINAL_EPISODES, LAST_EPISODES, N_LAST, add

from ddp_cli.disk import atomic_file
from ddp_cli.seeds import FIRST_SEED

SAMPLER = "--sampler ddim --inference-steps 10"

Commands = tuple[tuple[str, str], ...]
"""Commands that make data, each with what it writes."""

FIRST = "first"
"""Name of the run that all seeds of a recipe share."""

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PUSHT_FILES = ("pusht_keypoints.py", "pusht_mirrored.py")
PUSHT_DEMOS = "pusht_cchi_v7_replay.zarr"
PUSHT_OPTIONS = "--rate 10 --keys img,agent_pos=state[0:2],object=keypoint --task pusht"


def join(*parts: str) -> str:
    """The parts of a command that are not empty."""
    return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Recipe:
    """Commands that make a store, and the options of `ddp train`. `first` are those of the run FIRST, whose policy
    the commands `corrections` use; empty: none. `env` are options of `ddp eval`. `files` are copied from
    docs/examples first, and `inputs` have to be in the folder of the recipe.
    """

    task: str
    data: Commands
    train: str
    first: str = ""
    corrections: Commands = ()
    env: str = ""
    files: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    def commands(self) -> str:
        """What a user types, for one seed."""
        first = [f"ddp train {self.first} --name {FIRST}"] if self.first else []
        data, corrections = ([command for command, _ in commands] for commands in (self.data, self.corrections))
        evaluate = join("ddp eval", self.env, "-n 100 --seed 300000")
        return " && ".join([*data, *first, *corrections, f"ddp train {self.train}", evaluate])


def collected(task: str, demos: int, options: str = "") -> Commands:
    """Scripted demonstrations in data/TASK.zarr, or with `options` for state, data/TASK-state.zarr."""
    store = f"data/{task}-state.zarr" if "state" in options else f"data/{task}.zarr"
    convert = join("ddp convert", f"{task}.hdf5", options)
    return (f"ddp collect --task {task} -n {demos} -o {task}.hdf5", f"{task}.hdf5"), (convert, store)


def two_stages(task: str, demos: int, options: str, first_steps: int, episodes: int, steps: int) -> Recipe:
    """A first policy is trained on demonstrations. A second one goes on from it, on these and on episodes of the first
    one in which the scripted policy takes over before a failure. `options` are those of `ddp convert`.
    """
    collect = f"ddp collect --policy runs/{task}/{FIRST} --takeover -n {episodes} -o corrections.hdf5"
    corrections = (
        (collect, "corrections.hdf5"),
        (f"ddp convert corrections.hdf5 {options} --out data/corrections.zarr", "data/corrections.zarr"),
        (f"ddp convert data/{task}.zarr data/corrections.zarr --out data/all.zarr", "data/all.zarr"),
    )
    return Recipe(
        task,
        collected(task, demos, options),
        f"--data data/all.zarr --init-from runs/{task}/{FIRST} --steps {steps}",
        f"--task {task} --steps {first_steps}",
        corrections,
    )


def pusht() -> Commands:
    """The published demonstrations of Push-T and their mirror images, in data/pusht.zarr."""
    return (
        (f"python pusht_mirrored.py {PUSHT_DEMOS} mirrored_replay.zarr", "mirrored_replay.zarr"),
        (f"ddp convert {PUSHT_DEMOS} {PUSHT_OPTIONS} --out original.zarr", "original.zarr"),
        (f"ddp convert mirrored_replay.zarr {PUSHT_OPTIONS} --out mirrored.zarr", "mirrored.zarr"),
        ("ddp convert original.zarr mirrored.zarr --out data/pusht.zarr", "data/pusht.zarr"),
    )


RECIPES = {
    "lift": Recipe("lift", collected("lift", 200), "--task lift --steps 5000"),
    "can": two_stages("can", 400, "--actions absolute --render coarse", first_steps=4000, episodes=300, steps=12000),
    "square": two_stages("square", 600, "--actions absolute", first_steps=24000, episodes=500, steps=28000),
    "lift-state": Recipe("lift", collected("lift", 200, "--obs state"), "--task lift --obs state --steps 3000"),
    "can-state": Recipe("can", collected("can", 300, "--obs state"), "--task can --obs state --steps 9000"),
    "square-state": Recipe(
        "square",
        collected("square", 300, "--obs state --actions absolute"),
        "--task square --obs state --steps 5000",
    ),
    "two-arm-lift": Recipe("two_arm_lift", collected("two_arm_lift", 300), "--task two_arm_lift --steps 10000"),
    "pusht": Recipe(
        "pusht", pusht(), "--task pusht --set crop_shape=[84,84] --set val_ratio=0.02 --steps 20000",
        env="--env gym_pusht/PushT-v0 --env-arg obs_type=pixels_agent_pos", files=PUSHT_FILES, inputs=(PUSHT_DEMOS,),
    ),
    "pusht-state": Recipe(
        "pusht", pusht(), "--task pusht --obs state --set val_ratio=0.02 --steps 24000",
        env="--env pusht_keypoints:PushTKeypoints-v0", files=PUSHT_FILES, inputs=(PUSHT_DEMOS,),
    ),
}  # fmt: skip


def run(command: str, folder: Path) -> None:
    """Run a command of `ddp` or `python` in `folder`; SystemExit if it fails, or was interrupted."""
    print("$", command, flush=True)
    program, *arguments = shlex.split(command)
    module = {"ddp": ["-m", "ddp_cli"], "python": []}[program]
    process = subprocess.Popen([sys.executable, *module, *arguments], cwd=folder)
    while process.returncode is None:
        with suppress(KeyboardInterrupt):  # the command gets Ctrl-C as well, and saves what it has
            process.wait()
    if code := process.returncode:
        raise SystemExit(code if code > 0 else 128 - code)  # negative: the number of a signal


def run_once(command: str, folder: Path, marker: Path, output: Path | None = None) -> None:
    """`run`, unless `marker` says that it has finished, or its `output` is there, which appears when it is complete."""
    if marker.exists():
        finished = marker.read_text()
        if finished != command:
            raise SystemExit(f"'{marker}' is of another command, `{finished}`: use another folder, or remove this one")
        return
    if output is None or not output.exists():
        run(command, folder)
    with atomic_file(marker) as partial:
        partial.write_text(command)


def make_data(commands: Commands, folder: Path) -> None:
    """Run those whose output is missing."""
    for command, output in commands:
        run_once(command, folder, folder / f"{Path(output).name}.written", folder / output)


def train(options: str, task: str, name: str, folder: Path) -> Path:
    """The run `name` with the laptop preset, on a GPU too, resumed if it was interrupted."""
    path = folder / "runs" / task / name
    trained = folder / f"{name}.trained"
    if not trained.exists() and (path / "config.json").exists():
        run(f"ddp train --task {task} --name {name} --resume", folder)
    run_once(f"ddp train {options} --preset laptop --name {name}", folder, trained, path / "config.json")
    return path


def train_and_evaluate(recipe: Recipe, folder: Path, seed: int) -> Path:
    """The run of `seed`, trained and evaluated."""
    name = f"seed-{seed}"
    path = train(f"{recipe.train} --seed {seed} --keep {N_LAST}", recipe.task, name, folder)
    evaluate = join("ddp eval", str(path.relative_to(folder)), recipe.env, SAMPLER)
    run_once(f"{evaluate} -n {FINAL_EPISODES} --seed {FIRST_SEED['report']}", folder, folder / f"{name}.final")
    run_once(f"{evaluate} -n {LAST_EPISODES} --last {N_LAST}", folder, folder / f"{name}.last")
    return path


def make(name: str, folder: Path, seeds: Sequence[int], machine: str) -> None:
    """Train and evaluate every seed of a recipe, and store its result."""
    recipe = RECIPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file in recipe.files:
        shutil.copy(EXAMPLES / file, folder)
    make_data(recipe.data, folder)
    if recipe.first:
        train(recipe.first, recipe.task, FIRST, folder)
        make_data(recipe.corrections, folder)
    for seed in seeds:
        print(add([train_and_evaluate(recipe, folder, seed)], recipe.commands(), machine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--machine", default="2 cores, no GPU")
    args = parser.parse_args()
    for name in args.names:
        if name not in RECIPES:
            raise SystemExit(f"unknown recipe '{name}', valid: {', '.join(RECIPES)}")
    names = args.names or list(RECIPES)
    for path in (args.folder / name / file for name in names for file in RECIPES[name].inputs):
        if not path.exists():
            raise SystemExit(f"'{path}' is missing: see --help")
    for name in names:
        make(name, args.folder / name, args.seeds, args.machine)


if __name__ == "__main__":
    main()
