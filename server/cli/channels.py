"""`lamella channels` and `lamella withdraw`: what everybody on a channel gets, and taking a release back."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from server.cli.auditing import audited
from server.cli.console import console, open_service, show_table
from server.cli.rollout_options import AsJson, print_json


def channels(
    model: Annotated[str, typer.Option(help="Name of the model in the registry.")],
    has_history: Annotated[bool, typer.Option("--history", help="All that they ever pointed at.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the version that everybody on each channel gets; devices of every channel get what stable has, too."""
    registry = open_service().registry
    moves = registry.channel_history(model) if has_history else registry.channels(model)
    if as_json:
        print_json(moves)
        return
    show_table(
        f"Channels of {model}",
        ("channel", "version", "since", "rollout", "why"),
        [
            (
                move.channel,
                move.version and f"v{move.version}",
                f"{move.moved_at:%Y-%m-%d %H:%M}",
                move.rollout_id,
                escape(move.reason),
            )
            for move in moves
        ],
    )


def withdraw(
    model: Annotated[str, typer.Option(help="Name of the model in the registry.")],
    version: Annotated[int, typer.Option(help="Number of the release.", min=1)],
    reason: Annotated[str, typer.Option(help="Why; `lamella devices explain` tells it.")],
    as_json: AsJson = False,
) -> None:
    """Offer a release no more: its rollouts halt, and devices on it take the next release at once."""
    registry = open_service().registry
    with audited(registry, "version.withdraw", f"{model} v{version}"):
        registry.withdraw(model, version, reason=reason)
    if as_json:
        print_json(registry.channels(model))
        return
    console.print(f"{model} v{version} is withdrawn: {escape(registry.version(model, version).reason)}.")
    for move in registry.channels(model):
        console.print(f"Channel {move.channel}: {f'v{move.version}' if move.version else 'nothing'}.")
    stranded = [device for device in registry.devices(model=model) if device.installed_version == version]
    newest = registry.latest_released(model)
    if stranded and (newest is None or newest.number < version):
        console.print(
            f"{len(stranded)} device(s) run it and wait for a newer release. To bring older contents back: "
            "lamella rollout restore"
        )
