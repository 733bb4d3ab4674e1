"""`ddp serve`: an exported policy for robots on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.commands import options
from ddp_cli.errors import DdpError

EXAMPLES = options.examples(
    "ddp export sample_data/square-policy --out policy/ && ddp serve policy/",
    "ddp serve policy/ --host 0.0.0.0 --port 9000 --max-clients 4",
)
NETWORK = "Network"


def serve(
    policy: Annotated[Path, typer.Argument(help="Folder written by `ddp export`.")] = Path("policy"),
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. Addresses that other machines can reach require a token.",
            rich_help_panel=NETWORK,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 for any free port.", rich_help_panel=NETWORK)
    ] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="DDP_TOKEN",
            help="Token that clients must send; generated and printed where one is required.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None,
    max_clients: Annotated[
        int,
        typer.Option("--max-clients", min=1, help="Further connections are refused.", rich_help_panel=NETWORK),
    ] = 64,
    sync: Annotated[
        bool,
        typer.Option(
            "--sync",
            help="Compute a chunk while the robot waits, one action in every chunk: reproducible by a seed.",
            rich_help_panel=options.EXECUTION,
        ),
    ] = False,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime",
            help="Give replies real-time priority, so that they do not wait for chunks (Linux; needs permission).",
            rich_help_panel=options.EXECUTION,
        ),
    ] = False,
    blend_steps: options.BlendSteps = 0,
    provider: options.Provider = None,
) -> None:
    """Serve an exported policy over websockets.

    Actions are returned at once, and the next ones computed while the robot moves. The client is
    ddp_cli/deploy/client.py, a file that can be copied. Runs until Ctrl-C.
    """
    try:
        from ddp_cli.deploy.server import Server, ServerOptions, generate_token, is_loopback
    except ImportError as e:
        raise DdpError(f"serving needs {e.name}.", "Install it: pip install websockets msgpack") from e
    import asyncio

    from ddp_cli.deploy.exported_folder import open_exported_policy
    from ddp_cli.deploy.inference_processes import PolicyInProcesses

    if policy.is_file():
        raise DdpError(
            f"'{policy}' is a file, not an exported folder.",
            "Export a checkpoint: `ddp export CHECKPOINT --out policy/`. `ddp import` reads published .ckpt files.",
        )
    loaded = open_exported_policy(policy, provider or "cpu", PolicyInProcesses)
    options.check_chunk_options(loaded.n_action_steps, sync, blend_steps)
    if not is_loopback(host) and not token:
        token = generate_token()
        console.result(f"token {token}")
    address = f"[{host}]" if ":" in host else host
    server_options = ServerOptions(
        host, port, token, max_clients=max_clients, sync=sync, blend_steps=blend_steps, realtime=realtime
    )

    async def run() -> None:
        server = Server(loaded, server_options, console.note)
        await server.run(lambda bound: console.result(f"serving {policy} at ws://{address}:{bound}, Ctrl-C to stop"))

    try:
        asyncio.run(run())
    except UnicodeError as e:
        raise DdpError(f"--host '{host}' is not an address.", "For example 127.0.0.1, or 0.0.0.0.") from e
