"""`lamella operators`: accounts, roles, passwords and API tokens."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.auditing import audited
from server.cli.console import console, is_at_terminal, open_service, show_json, show_table
from server.errors import ConfigurationError
from server.files import read_secret
from server.registry.operator_records import Role

if TYPE_CHECKING:
    from server.registry import OperatorRecord

app = typer.Typer(no_args_is_help=True, help="Operators: accounts with roles, passwords, API tokens.")
token_app = typer.Typer(no_args_is_help=True, help="API tokens of operators.")
app.add_typer(token_app, name="token")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="The operator's name, such as ada.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="File with the password, mode 0600; else it is asked for.", exists=True, dir_okay=False),
]


@app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="What the operator may do; each role includes the ones before it.")],
    password_file: PasswordFile = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="For a program: API tokens only, no console.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make an operator's account.

    A viewer looks, a publisher enrols and revokes devices and releases, an admin also sees the operators.
    """
    registry = open_service().registry
    password = None if no_password else _new_password(password_file)
    with audited(registry, "operator.add", f"{name} ({role})"):
        record = registry.add_operator(name, role=role, password=password)
    if as_json:
        show_json(vars(record))
        return
    way = "in the console under /console" if password else f"with a token: lamella operators token create {name}"
    console.print(f"{name} is a {role} now, {way}.", soft_wrap=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List operators, removed ones included."""
    operators = open_service().registry.operators()
    if as_json:
        show_json([vars(operator) for operator in operators])
        return
    show_table(
        "Operators",
        ("name", "role", "console", "since", "state"),
        [
            (o.name, o.role, _yes(o), f"{o.created_at:%Y-%m-%d}", "removed" if o.removed_at else "active")
            for o in operators
        ],
    )


@app.command()
def remove(name: Name, as_json: AsJson = False) -> None:
    """Close an account: its tokens are revoked, its sessions end. The name is not given out again."""
    registry = open_service().registry
    with audited(registry, "operator.remove", name):
        record = registry.remove_operator(name)
    if as_json:
        show_json(vars(record))
        return
    console.print(f"{name} is removed.")


@app.command()
def passwd(name: Name, password_file: PasswordFile = None, as_json: AsJson = False) -> None:
    """Give an operator a new password; whoever is logged in with the old one is logged out."""
    registry = open_service().registry
    password = _new_password(password_file)
    with audited(registry, "operator.passwd", name):
        record = registry.set_password(name, password)
    if as_json:
        show_json(vars(record))
        return
    console.print(f"{name} has a new password.")


@token_app.command()
def create(
    name: Name,
    label: Annotated[str, typer.Option(help="What it is for, such as ci.")],
    days: Annotated[float, typer.Option(help="Days until it expires.", min=0.001, max=3650)] = 90,
    as_json: AsJson = False,
) -> None:
    """Make an API token with its operator's role; it is shown this once."""
    registry = open_service().registry
    with audited(registry, "token.create", f"{name}: {label}"):
        token, record = registry.create_operator_token(name, label=label, valid_for=timedelta(days=days))
    if as_json:
        show_json(vars(record) | {"token": token})
        return
    console.print(token, soft_wrap=True, highlight=False)
    console.print(
        f"Shown this once. Works until {record.expires_at:%Y-%m-%d %H:%M} UTC; "
        f"lamella operators token revoke {record.token_id} ends it before.",
        soft_wrap=True,
    )


@token_app.command("list")
def list_tokens(as_json: AsJson = False) -> None:
    """List API tokens, the newest first, without their secrets."""
    tokens = open_service().registry.operator_tokens()
    if as_json:
        show_json([vars(token) for token in tokens])
        return
    show_table(
        "API tokens",
        ("token", "operator", "label", "expires (UTC)", "revoked"),
        [
            (
                t.token_id,
                t.operator,
                t.label,
                f"{t.expires_at:%Y-%m-%d %H:%M}",
                t.revoked_at and f"{t.revoked_at:%Y-%m-%d %H:%M}",
            )
            for t in tokens
        ],
    )


@token_app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="The token's id, from `lamella operators token list`.")],
    as_json: AsJson = False,
) -> None:
    """Refuse an API token from now on."""
    registry = open_service().registry
    with audited(registry, "token.revoke", token_id):
        record = registry.revoke_operator_token(token_id)
    if as_json:
        show_json(vars(record))
        return
    console.print(f"{token_id} of {record.operator} is revoked.")


def _new_password(file: Path | None) -> str:
    if file is not None:
        return read_secret(file).decode().rstrip("\r\n")
    if not is_at_terminal():
        raise ConfigurationError(
            "An operator needs a password. Run this at a terminal, or put it into a file of mode 0600 and give it "
            "with --password-file."
        )
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _yes(operator: OperatorRecord) -> str:
    return "yes" if operator.has_password else "no"
