"""`lamella ddi`: tokens for fleets that run SWUpdate or another client of hawkBit."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from server.cli.auditing import audited
from server.cli.console import console, open_service, show_json, show_table
from server.cli.rollout_options import AsJson
from server.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, help="Fleets that run SWUpdate or another hawkBit client: their tokens.")
_CONTROLLER_ID = re.compile(r"[A-Za-z0-9._:@+-]{1,64}")

Model = Annotated[str, typer.Option(help="The model, which is the tenant in the client's settings.")]


@app.command("target-token")
def target_token(
    controller_id: Annotated[str, typer.Argument(help="The controller id (device id) in the client's settings.")],
    model: Model,
    as_json: AsJson = False,
) -> None:
    """Enrol one controller and print its token; an older token of it is no good any more."""
    if not _CONTROLLER_ID.fullmatch(controller_id):
        raise ConfigurationError(
            f"{controller_id!r} is no controller id: 1 to 64 of the letters, digits and . _ : @ + - are allowed."
        )
    registry = open_service().registry
    with audited(registry, "ddi.target-token", f"{model}: {controller_id}"):
        token, controller = registry.issue_target_token(model, controller_id)
    if as_json:
        show_json({"controller_id": controller_id, "device_id": controller.device.device_id, "token": token})
        return
    console.print(f"{controller_id} is device {controller.device.device_id}. Its token is shown this once:")
    typer.echo(token)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List controllers, what they run and what they say of themselves."""
    controllers = open_service().registry.controllers()
    if as_json:
        show_json([{**vars(one), "device": vars(one.device)} for one in controllers])
        return
    rows = [
        (
            one.controller_id,
            one.device.model,
            one.device.device_id,
            one.device.installed_version and f"v{one.device.installed_version}",
            ", ".join(f"{name}={value}" for name, value in sorted((one.attributes or {}).items())),
        )
        for one in controllers
    ]
    show_table("Controllers", ("controller", "model", "device", "runs", "says"), rows)


@app.command("gateway-token")
def gateway_token(
    model: Model,
    devices: Annotated[int, typer.Option(help="How many unknown controllers may enrol with it.", min=0)] = 1000,
    as_json: AsJson = False,
) -> None:
    """Print a token with which controllers of a model enrol themselves, and that speaks for all of them."""
    registry = open_service().registry
    with audited(registry, "ddi.gateway-token", f"{model}, for {devices}"):
        token, record = registry.issue_gateway_token(model, device_limit=devices)
    if as_json:
        show_json(vars(record) | {"token": token})
        return
    console.print(f"Gateway token {record.token_id}, for at most {devices} new devices; it is shown this once:")
    typer.echo(token)


@app.command("gateway-tokens")
def gateway_tokens(as_json: AsJson = False) -> None:
    """List gateway tokens, without the tokens themselves."""
    tokens = open_service().registry.gateway_tokens()
    if as_json:
        show_json([vars(token) for token in tokens])
        return
    rows = [
        (
            str(token.token_id),
            token.model,
            f"{token.devices} of {token.device_limit}",
            f"{token.created_at:%Y-%m-%d %H:%M}",
            "revoked" if token.revoked_at else "valid",
        )
        for token in tokens
    ]
    show_table("Gateway tokens", ("token", "model", "devices", "made", "state"), rows)


@app.command("revoke-gateway")
def revoke_gateway(
    token_id: Annotated[int, typer.Argument(help="From `lamella ddi gateway-tokens`.")], as_json: AsJson = False
) -> None:
    """Refuse a gateway token from now on; who only had this one needs another."""
    registry = open_service().registry
    with audited(registry, "ddi.revoke-gateway", str(token_id)):
        registry.revoke_gateway_token(token_id)
    if as_json:
        show_json({"token_id": token_id, "revoked": True})
        return
    console.print(f"Gateway token {token_id} is revoked.")
