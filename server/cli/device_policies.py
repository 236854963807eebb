"""`lamella devices tag|group|channel|force|opt-out|opt-in|explain`: which version a device gets, and why."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from server.cli.auditing import audited
from server.cli.console import console, open_service
from server.cli.rollout_options import AsJson, print_json
from server.errors import ConfigurationError, InvalidRecordError
from server.rollouts import parse_plan

DeviceId = Annotated[str, typer.Argument(help="Device id, from `lamella devices list`.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `lamella devices`."""
    for name, command in (
        ("tag", tag),
        ("group", group),
        ("channel", channel),
        ("force", force),
        ("opt-out", opt_out),
        ("opt-in", opt_in),
        ("explain", explain),
    ):
        app.command(name)(command)


def tag(
    device_id: DeviceId,
    add: Annotated[list[str] | None, typer.Option(help="A tag to add; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A tag to remove; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add and remove tags, by which rollouts choose devices."""
    if not add and not remove:
        raise ConfigurationError("Say which tags: --add NAME or --remove NAME.")
    _require_names(*(add or ()))
    _set(device_id, as_json=as_json, add_tags=tuple(add or ()), remove_tags=tuple(remove or ()))


def group(
    device_id: DeviceId,
    name: Annotated[str | None, typer.Argument(help="The group; none takes the device out of its group.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a device into a group; it is in one at most."""
    _require_names(*([name] if name else []))
    _set(device_id, as_json=as_json, group=name or None)


def channel(
    device_id: DeviceId,
    name: Annotated[str, typer.Argument(help="The channel, e.g. stable or beta.")],
    as_json: AsJson = False,
) -> None:
    """Put a device on a channel; it still gets what is newer on the stable one."""
    _require_names(name)
    _set(device_id, as_json=as_json, channel=name)


def force(
    device_id: DeviceId,
    version: Annotated[int | None, typer.Option(help="The version that it shall get now.", min=1)] = None,
    is_cleared: Annotated[bool, typer.Option("--clear", help="Force nothing any more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a device a version, whatever rollouts say."""
    if (version is None) != is_cleared:
        raise ConfigurationError("Say which version to force, --version N, or --clear.")
    _set(device_id, as_json=as_json, forced_version=version)


def opt_out(device_id: DeviceId, as_json: AsJson = False) -> None:
    """Keep a device on what it has; only a forced version moves it."""
    _set(device_id, as_json=as_json, is_opted_out=True)


def opt_in(device_id: DeviceId, as_json: AsJson = False) -> None:
    """Let rollouts move a device again."""
    _set(device_id, as_json=as_json, is_opted_out=False)


def explain(device_id: DeviceId, as_json: AsJson = False) -> None:
    """Say why a device gets, or does not get, a version: what it would be told if it asked now."""
    from server.offers import explain as explain_device
    from server.way_told import told

    service = open_service()
    registry = service.registry
    device, policy = registry.device(device_id), registry.device_policy(device_id)
    found = explain_device(registry, device_id, installed_version=device.installed_version, is_full=True)
    packages = told(registry, service.metadata, device, found)
    if as_json:
        print_json({"device": device, "policy": policy, "explanation": found, "packages": packages})
        return
    runs = "nothing yet" if device.installed_version is None else f"v{device.installed_version}"
    revoked = " It is revoked: it can ask for nothing." if device.revoked_at else ""
    console.print(f"{escape(device.name)} runs {runs} of {device.model}.{revoked}")
    for number, reason in enumerate(found.reasons, start=1):
        console.print(escape(f"{number}. {reason}"), highlight=False)
    console.print(f"So it gets [bold]v{found.version}[/]." if found.is_move else "So it gets nothing new.")
    for sentence in packages:
        console.print(escape(sentence), highlight=False)


def _set(device_id: str, *, as_json: bool, **changes: object) -> None:
    registry = open_service().registry
    with audited(registry, "device.policy", f"{device_id}: {', '.join(sorted(changes))}"):
        policy = registry.set_device_policy(device_id, **changes)
    if as_json:
        print_json(policy)
        return
    parts = [f"channel {policy.channel}", f"group {policy.group}" if policy.group else "no group"]
    parts.append(f"tags {', '.join(policy.tags)}" if policy.tags else "no tags")
    parts += [f"forced to v{policy.forced_version}"] if policy.forced_version else []
    parts += ["opted out of rollouts"] if policy.is_opted_out else []
    console.print(f"{escape(registry.device(device_id).name)}: {'; '.join(parts)}.")


def _require_names(*names: str) -> None:
    try:
        parse_plan(groups=names)
    except InvalidRecordError:
        raise ConfigurationError(
            "Names of channels, groups and tags are letters, digits, dots, dashes and underscores, 64 at most."
        ) from None
