"""`lamella devices`: who is enrolled, invitations, revocation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.auditing import audited
from server.cli.console import Service, console, open_service, show_json, show_table
from server.cli.rollout_options import AsJson
from server.config import load_settings
from server.errors import ConfigurationError
from server.rollouts import STABLE

if TYPE_CHECKING:
    from server.registry import DevicePolicyRecord

app = typer.Typer(no_args_is_help=True, help="Devices: invite, list, revoke; which version each gets, and why.")


@app.command()
def invite(
    model: Annotated[str, typer.Option(help="The model that the device will run.")],
    out: Annotated[Path, typer.Option(help="Enrolment file to write; hand it to the device on a safe way.")],
    uses: Annotated[
        int, typer.Option(help="How many devices may use the file. Whoever has it enrols a device.", min=1, max=100_000)
    ] = 1,
    url: Annotated[
        str | None,
        typer.Option(help="Where the device reaches the service (LAMELLA_PUBLIC_URL)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an enrolment file: where the service is, a token for one or more devices, and the root of its trust."""
    from server.enrolment import make_enrolment_file

    service = Service(load_settings(**({"public_url": url} if url else {})))
    with audited(service.registry, "enrolment.create", f"{model}, for {uses}"):
        enrolment, token = make_enrolment_file(
            service.settings, service.registry, service.metadata, model=model, uses=uses
        )
    try:
        # Secret, and never over a file that is there.
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(enrolment.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ConfigurationError(f"Cannot write {out}: {error.strerror}. Choose another --out.") from None
    if as_json:
        show_json({"file": str(out), "model": model, "uses": uses, "expires_at": token.expires_at})
        return
    console.print(
        f"{out}: for {'one device' if uses == 1 else f'{uses} devices'}, until {token.expires_at:%Y-%m-%d %H:%M} UTC. "
        f"On the device: lamella-device enroll {out.name}"
    )


@app.command()
def invitations(
    as_json: AsJson = False,
) -> None:
    """List the tokens of enrolment files: how often they were used, and until when they work."""
    tokens = open_service().registry.enrolment_tokens()
    if as_json:
        show_json([vars(token) for token in tokens])
        return
    show_table(
        "Invitations",
        ("number", "model", "used", "expires (UTC)", "revoked"),
        [
            (
                t.token_id,
                t.model,
                f"{t.uses} of {t.max_uses}",
                f"{t.expires_at:%Y-%m-%d %H:%M}",
                t.revoked_at and f"{t.revoked_at:%Y-%m-%d %H:%M}",
            )
            for t in tokens
        ],
    )


@app.command()
def uninvite(
    number: Annotated[int, typer.Argument(help="From `lamella devices invitations`.")], as_json: AsJson = False
) -> None:
    """Let an enrolment file enrol no further device; those that it enrolled stay."""
    registry = open_service().registry
    with audited(registry, "enrolment.revoke", str(number)):
        record = registry.revoke_enrolment_token(number)
    if as_json:
        show_json(vars(record))
        return
    console.print(f"Invitation {number} for {record.model} is revoked; it was used {record.uses} times.")


@app.command("list")
def list_(
    as_json: AsJson = False,
) -> None:
    """List enrolled devices and what they run."""
    registry = open_service().registry
    devices, policies = registry.devices(), registry.device_policies()
    if as_json:
        show_json(
            [vars(d) | {"policy": vars(policies[d.device_id]) if d.device_id in policies else None} for d in devices]
        )
        return
    show_table(
        "Devices",
        ("device", "name", "model", "runs", "last seen", "state", "channel, group, tags"),
        [
            (
                d.device_id,
                d.name,
                d.model,
                d.installed_version and f"v{d.installed_version}",
                d.last_seen_at and f"{d.last_seen_at:%Y-%m-%d %H:%M}",
                "revoked" if d.revoked_at else "enrolled",
                _labels(policies.get(d.device_id)),
            )
            for d in devices
        ],
    )


@app.command()
def revoke(
    device_id: Annotated[str, typer.Argument(help="Device id, from `lamella devices list`.")], as_json: AsJson = False
) -> None:
    """Take a device's credential away; it keeps what it runs and gets nothing more."""
    registry = open_service().registry
    with audited(registry, "device.revoke", device_id):
        record = registry.revoke_device(device_id)
    if as_json:
        show_json(vars(record))
        return
    console.print(f"{record.name} ({record.device_id}) is revoked.")


def _labels(policy: DevicePolicyRecord | None) -> str:
    if policy is None:
        return STABLE
    marks = [f"forced to v{policy.forced_version}"] if policy.forced_version else []
    marks += ["opted out"] if policy.is_opted_out else []
    return " ".join([policy.channel, *([policy.group] if policy.group else []), *policy.tags, *marks])
