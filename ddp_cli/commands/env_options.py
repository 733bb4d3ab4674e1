"""The options that name a Gymnasium environment, shared by `ddp eval` and `ddp rollout`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ddp_cli.errors import ConfigError

if TYPE_CHECKING:
    from ddp_cli.sim.gymnasium_env import GymnasiumSettings

PANEL = "Gymnasium environment"

Env = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="ID",
        help="Run the episodes in this Gymnasium environment: gym_pusht/PushT-v0, or MODULE:ID.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
EnvArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--env-arg",
        metavar="KEY=VALUE",
        help="Argument of the environment, such as obs_type=pixels_agent_pos; may be repeated.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Map = Annotated[
    str | None,
    typer.Option(
        "--map",
        metavar="KEY=NAME,...",
        help="Observations of the environment for keys of the policy: img=pixels,agent=state[0:2]; 'render' is the "
        "rendered image.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
SuccessKey = Annotated[
    str | None,
    typer.Option(
        "--success-key",
        help="Key of info that says success, or 'terminated'; is_success or success by default.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
ScoreKey = Annotated[
    str | None,
    typer.Option(
        "--score-key",
        help="Key of info whose highest value in an episode is its score; the reward by default.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option(
        "--max-steps",
        min=1,
        help="Longest episode; the limit of the environment or task by default.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]


def gymnasium_settings(
    env: str | None,
    env_args: list[str] | None,
    sources: str | None,
    success_key: str | None,
    score_key: str | None,
    max_steps: int | None,
) -> GymnasiumSettings | None:
    """The environment that the options name; None without --env, ConfigError if the others were given."""
    from ddp_cli.presets import parse_settings
    from ddp_cli.sim.gymnasium_env import REWARD, GymnasiumSettings

    given = {
        "--env-arg": env_args, "--map": sources, "--success-key": success_key, "--score-key": score_key,
        "--max-steps": max_steps,
    }  # fmt: skip
    if env is None:
        unused = [option for option, value in given.items() if value]
        if unused:
            raise ConfigError(f"{unused[0]} describes an environment.", "Name it with --env.")
        return None
    arguments = parse_settings(env_args or [], "--env-arg")
    return GymnasiumSettings(env, arguments, _parse_map(sources), success_key, score_key or REWARD, max_steps)


def _parse_map(text: str | None) -> dict[str, str]:
    """`img=pixels,agent=state[0:2]` -> {"img": "pixels", "agent": "state[0:2]"}."""
    sources = {}
    for entry in text.split(",") if text else []:
        key, equals, source = (part.strip() for part in entry.partition("="))
        if not (key and equals and source):
            raise ConfigError(f"--map '{entry}' maps nothing.", "Write KEY=NAME, such as --map img=pixels.")
        sources[key] = source
    return sources
