"""`ddp serve`: an exported policy for robots on the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ddp_cli import console
from ddp_cli.errors import DdpError


def serve(
    policy: Annotated[Path, typer.Argument(help="Folder of `ddp export`.")] = Path("policy"),
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than this machine's want a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            "--token", envvar="DDP_TOKEN", help="What clients must know; made where one is needed.", show_default=False
        ),
    ] = None,
    max_clients: Annotated[int, typer.Option("--max-clients", min=1, help="More are sent away.")] = 64,
) -> None:
    """Serve an exported policy over websockets, until Ctrl-C. Clients: ddp_cli/deploy/client.py."""
    try:
        from ddp_cli.deploy.server import Server, ServerOptions, is_loopback, new_token
    except ImportError as e:
        raise DdpError(f"serving needs {e.name}.", "pip install 'ddp-cli[serve]'") from e
    import asyncio

    from ddp_cli.deploy.runtime import Policy, PolicyError

    try:
        loaded = Policy.load(policy)
    except PolicyError as e:
        raise DdpError(str(e), "Make one: `ddp export CHECKPOINT --out policy/`.") from e
    if not is_loopback(host) and not token:
        token = new_token()
        console.result(f"token {token}")
    shown = f"[{host}]" if ":" in host else host
    how = ServerOptions(host, port, token, max_clients=max_clients)

    async def run() -> None:
        server = Server(loaded, how, console.note)
        await server.run(lambda found: console.result(f"serving {policy} at ws://{shown}:{found}, Ctrl-C ends it"))

    try:
        asyncio.run(run())
    except UnicodeError as e:
        raise DdpError(f"--host '{host}' is no address.", "For example 127.0.0.1, or 0.0.0.0.") from e
