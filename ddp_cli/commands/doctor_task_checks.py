"""The checks of `ddp doctor --task`: what the simulator does in an environment, and which shortcuts it takes."""

from __future__ import annotations

from contextlib import closing

from ddp_cli.commands.doctor_checks import CheckResult
from ddp_cli.errors import DdpError
from ddp_cli.sim.discovery import is_model_constant
from ddp_cli.sim.exactness import is_culling_exact, is_stepping_exact
from ddp_cli.sim.simulator import Simulator
from ddp_cli.tasks import Task

EXACT = "used: equal to robosuite's own"


def diagnose_task(task: Task) -> list[CheckResult]:
    """Whether the environment of `task` works, and whether its shortcuts give robosuite's own states and pixels.

    A shortcut that would change something is not taken; the environment is slower then.
    """
    try:
        with closing(Simulator(task)) as sim:
            sim.reset(0)
            cameras = list(task.schema.cameras)
            culled = [key for key in cameras if is_culling_exact(sim, key) and sim.culls(key)]
            steps_fast = is_stepping_exact(sim, compare=True)
        soft_reset = not task.robosuite.model_varies and is_model_constant(task)
    except DdpError as e:
        return [CheckResult(f"task {task.name}", False, e.message, e.hint)]
    simulator, robots = task.robosuite, " and ".join(task.robosuite.robots)
    parts = ", ".join(f"{part.name} {part.width}" for part in task.schema.action)
    reset = EXACT if soft_reset else "not used: the model differs between episodes, or resets give other states"
    stepping = EXACT if steps_fast else "not used: other robots, controllers or physics"
    others = [key for key in cameras if key not in culled]
    culling = EXACT if not others else f"not used for {', '.join(others)}: other pixels"
    return [
        CheckResult("environment", True, f"{simulator.env_name}, {robots}, {task.schema.rate:g} Hz"),
        CheckResult("actions", True, parts),
        CheckResult("soft reset", True, reset),
        CheckResult("fast stepping", True, stepping),
        CheckResult("culling", True, culling),
    ]  # fmt: skip
