"""`ddp run`: a policy on a robot."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ddp_cli import console
from ddp_cli.commands import env_options, options
from ddp_cli.deploy.policy_source import PolicySource, open_policy_source, resolve_policy
from ddp_cli.errors import DdpError
from ddp_cli.interruption import is_ignored, signals_handled
from ddp_cli.seeds import FIRST_POLICY_SEED, FIRST_SEED, MAX_SEED

if TYPE_CHECKING:
    from ddp_cli.action_limits import Array
    from ddp_cli.data.episode_recorder import EpisodeRecorder
    from ddp_cli.deploy.control_loop import ControlLoop, Step
    from ddp_cli.deploy.robot import Robot
    from ddp_cli.sim.gymnasium_env import GymnasiumSettings

EXAMPLES = options.examples(
    "ddp run sample_data/square-policy --robot mock --max-steps 100",
    "ddp run policy/ --robot my_robot:MyRobot --episodes 20 --record data/tries.zarr",
)
CONTROL = "Control"
TIMINGS = {
    "late_ms": "command after its tick",
    "busy_ms": "observation to command",
    "chunk_ms": "time per action chunk",
}


def run(
    policy: Annotated[
        Path | None,
        typer.Argument(
            help="Exported folder, checkpoint or run; the best checkpoint of the newest run by default.",
            show_default=False,
        ),
    ] = None,
    robot: Annotated[
        str, typer.Option("--robot", metavar="NAME", help="MODULE:CLASS, an installed robot, sim, or mock.")
    ] = "",
    robot_args: Annotated[
        list[str] | None,
        typer.Option(
            "--robot-arg", metavar="KEY=VALUE", help="Argument of the class; may be repeated.", show_default=False
        ),
    ] = None,
    task: options.RunTask = None,
    runs: options.Runs = options.RUNS,
    episodes: Annotated[int, typer.Option("--episodes", min=1, rich_help_panel=options.EPISODES)] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=MAX_SEED,
            help="Seed of the first episode: its noise, and the initial state of a simulator.",
            show_default=f"{FIRST_SEED['eval']}, or {FIRST_POLICY_SEED} with --record",
            rich_help_panel=options.EPISODES,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Observe, and print actions instead of moving.", rich_help_panel=CONTROL)
    ] = False,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync", help="Compute each chunk while the robot waits, as `ddp rollout`.", rich_help_panel=CONTROL
        ),
    ] = False,
    replan_every: Annotated[
        int | None,
        typer.Option(
            "--replan-every",
            min=1,
            help="Control periods from one chunk to the next; half a chunk by default.",
            show_default=False,
            rich_help_panel=CONTROL,
        ),
    ] = None,
    blend_steps: options.BlendSteps = 0,
    max_age: Annotated[
        float,
        typer.Option(
            "--max-age", min=0.0, help="Stop if an observation is older, in seconds.", rich_help_panel=CONTROL
        ),
    ] = 0.5,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            metavar="STORE",
            help="Write what happens to a new store.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    env: env_options.Env = None,
    env_args: env_options.EnvArgs = None,
    sources: env_options.Map = None,
    success_key: env_options.SuccessKey = None,
    max_steps: env_options.MaxSteps = None,
    sampler: options.Sampler = None,
    inference_steps: options.InferenceSteps = None,
    engine: options.Engine = "auto",
    device: options.Device = "auto",
    provider: options.Provider = None,
) -> None:
    """Run a policy on a robot, at the control rate of its demonstrations.

    The next actions are computed while the robot moves. It is stopped at the end, after any error, and on Ctrl-C.
    """
    from ddp_cli.data.store import STORE_MARKERS
    from ddp_cli.deploy.control_loop import ControlLoop, LoopOptions
    from ddp_cli.deploy.robot import SIM
    from ddp_cli.deploy.sim_robot import SimulatedRobot

    if not robot:
        raise DdpError("no robot was named.", "Add --robot MODULE:CLASS; 'mock' and 'sim' need no hardware.")
    if record and dry_run:
        raise DdpError("--record does not go with --dry-run: nothing is executed.", "Leave one of them out.")
    is_sim = robot == SIM
    if env and not is_sim:
        raise DdpError(f"--env does not go with --robot {robot}.", "Use --robot sim.")
    environment = env_options.gymnasium_settings(env, env_args, sources, success_key, None, max_steps if env else None)
    first = (FIRST_POLICY_SEED if record else FIRST_SEED["eval"]) if seed is None else seed
    if record and is_sim and not env:
        options.warn_of_evaluation_seeds(range(first, first + episodes))
    source = open_policy_source(resolve_policy(policy, runs, task), device, sampler, inference_steps, engine, provider)
    agent: Any = source.make_agent()
    options.check_chunk_options(agent.n_action_steps, sync, blend_steps, replan_every)
    with ExitStack() as stack:
        if record:
            stack.enter_context(options.reserve_output(record, overwrite, STORE_MARKERS))
        body = stack.enter_context(_open_robot(robot, robot_args, source, environment, first))
        horizon = body.horizon if isinstance(body, SimulatedRobot) else source.task.horizon
        recorder = _make_recorder(record, source, is_sim and not env) if record else None
        stack.enter_context(_terminated_as_interrupted())
        loop_options = LoopOptions(
            max_steps or horizon, sync, not (is_sim and sync), replan_every, max_age, blend_steps
        )
        if dry_run:
            body = _DryRun(body, is_sim, console.note if json else console.result)
        loop = ControlLoop(body, agent, source.task, loop_options)
        console.note(f"policy {source.folder}, engine {source.engine}, robot {robot}, {agent.control_hz:g} Hz")
        outcomes = _run_episodes(loop, first, episodes, recorder, False if is_sim else None)
    _report(loop, outcomes, record if recorder else None, json)


class _DryRun:
    """A robot that observes, and prints its actions."""

    def __init__(self, robot: Robot, is_sim: bool, show: Callable[[str], None]) -> None:
        self._robot, self._is_sim, self._show = robot, is_sim, show

    def observe(self) -> Any:
        return self._robot.observe()

    def command(self, action: Array) -> None:
        self._show(" ".join(f"{value:8.4f}" for value in action.tolist()))

    def reset(self) -> None:
        """Nothing moves, but a simulator has nothing to observe before."""
        if self._is_sim:
            self._robot.reset()

    def stop(self) -> None:
        self._robot.stop()


@contextmanager
def _open_robot(
    name: str, arguments: list[str] | None, source: PolicySource, environment: GymnasiumSettings | None, seed: int
) -> Iterator[Robot]:
    from ddp_cli.deploy.robot import MOCK, SIM, MockRobot, make_robot
    from ddp_cli.presets import parse_settings

    if name not in {SIM, MOCK}:
        yield make_robot(name, parse_settings(arguments or [], "--robot-arg"))
        return
    if arguments:
        raise DdpError(f"--robot-arg does not apply to '{name}'.", "Leave it out.")
    if name == MOCK:
        yield MockRobot(source.task, source.obs)
        return
    from ddp_cli.deploy.sim_robot import SimulatedRobot
    from ddp_cli.evaluation.rollout import Environment
    from ddp_cli.sim.gymnasium_env import GymnasiumEnv
    from ddp_cli.sim.simulator import Simulator

    simulator: Environment = (
        GymnasiumEnv(source.task, source.obs, environment)
        if environment
        else Simulator(source.task, source.render, source.actions)
    )
    with closing(simulator):
        yield SimulatedRobot(simulator, source.obs, seed)


def _make_recorder(record: Path, source: PolicySource, is_robosuite: bool) -> EpisodeRecorder:
    from ddp_cli.data.episode_recorder import EpisodeRecorder
    from ddp_cli.sim.environment import env_args, simulator_versions

    attributes = {
        "render": source.render, "obs": source.obs, "action": source.task.describe_action(source.actions),
        "env_args": env_args(source.task, source.actions) if is_robosuite else {},
        "versions": simulator_versions() if is_robosuite else {},
    }  # fmt: skip
    recorder = EpisodeRecorder(record, source.task, attributes)
    if earlier := len(recorder.paths()):
        console.note(f"{earlier} episodes of an interrupted recording in '{recorder.folder}' are kept")
    return recorder


def _run_episodes(
    loop: ControlLoop, seed: int, episodes: int, recorder: EpisodeRecorder | None, at_limit: bool | None
) -> list[tuple[bool | None, int]]:
    """Success and steps of each episode; `at_limit` is the success of one that reaches the limit of its steps. What was
    recorded is complete, also after an error or Ctrl-C.
    """
    from ddp_cli.deploy.operator_keys import DISCARD, FAILURE, HELP, SUCCESS, pressed_keys

    outcomes: list[tuple[bool | None, int]] = []
    discarded = is_first_step = False

    def on_step(step: Step) -> bool | None:
        nonlocal discarded, is_first_step
        if recorder:
            recorder.add(step.obs, step.action, step.is_takeover)
        key = read_key()
        while is_first_step and key:  # pressed before the episode, such as a second time for the last one
            key = read_key()
        is_first_step = False
        discarded = key == DISCARD
        return {SUCCESS: True, FAILURE: False, DISCARD: False}.get(key or "")

    console.note(HELP)
    with pressed_keys() as read_key:
        try:
            for i in range(episodes):
                is_first_step = True
                success, steps = loop.run(seed + i, on_step)
                success = at_limit if success is None else success
                if discarded:
                    console.note(f"episode {i + 1}: discarded")
                elif recorder:
                    recorder.save(bool(success))
                if recorder:
                    recorder.discard()
                if not discarded:
                    outcomes.append((success, steps))
                    ending = {True: "success", False: "no success", None: "success unknown"}[success]
                    console.note(f"episode {i + 1}: {ending} after {steps} steps")
        finally:
            if recorder:
                recorder.finish()
    return outcomes


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """The signals of a closed terminal, of Ctrl-Z and of Ctrl-backslash stop the robot as Ctrl-C does. By default the
    process would end or pause while the robot executes its last command.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)
    with signals_handled({number: interrupt for number in numbers if not is_ignored(number)}):
        yield


def _report(loop: ControlLoop, outcomes: list[tuple[bool | None, int]], record: Path | None, json: bool) -> None:
    timing = loop.timing.summary()
    if json:
        console.print_json({
            "episodes": [{"success": success, "steps": steps} for success, steps in outcomes],
            "timing": timing, "record": str(record) if record else None,
        })  # fmt: skip
        return
    successes = [success for success, _ in outcomes if success is not None]
    console.result(f"{len(outcomes)} episodes, {sum(successes)} of {len(successes)} with a known outcome succeeded")
    for name, label in TIMINGS.items():
        if name in timing:
            p50, p95, p99 = timing[name].values()
            console.result(f"{label:24} p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    console.result(f"{'stopped for a late chunk':24} {timing['held_ticks']} steps")
    console.result(f"{'skipped':24} {timing['skipped_ticks']} control periods")
    if record:
        console.result(f"recorded: {record}")
