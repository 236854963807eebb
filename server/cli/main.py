"""`lamella`: the commands, and how every error is told."""

from __future__ import annotations

import errno
import gc
import os
import sys
from importlib.metadata import version
from typing import Annotated

import click
import typer
from rich.markup import escape

from delta_updates import DeltaError
from server.cli import (
    audit,
    base,
    channels,
    convert,
    data,
    ddi,
    delta,
    device_policies,
    devices,
    evaluate,
    fleet,
    model,
    operators,
    privacy,
    quantize,
    release,
    rollouts,
    runs,
    serve,
    stopping,
    superlink,
    train,
    trust,
    upkeep,
)
from server.cli.console import problems, words_aside
from server.config import unknown_settings
from server.errors import ServerError

app = typer.Typer(
    name="lamella",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(is_asked: bool) -> None:  # noqa: FBT001 - what typer calls it with
    if is_asked:
        print(f"lamella {version('lamella')}")  # noqa: T201 - stdout is the interface
        raise typer.Exit


@app.callback()
def lamella(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated fine-tuning and over-the-air updates for language models on devices.

    Settings come from LAMELLA_* (docs/settings.md).
    """
    words_aside(False)  # noqa: FBT003 - until a command says otherwise
    for name, meant in unknown_settings(os.environ).items():
        suggestion = f"; {meant} is one" if meant else ""
        problems.print(f"[yellow]{name} is no setting{suggestion}. docs/settings.md lists all.[/]", soft_wrap=True)


app.command("serve")(serve.serve)
app.add_typer(base.app, name="base")
app.add_typer(model.app, name="model")
app.command("quantize")(quantize.quantize)
app.command("convert")(convert.convert)
app.command("evaluate")(evaluate.evaluate)
app.add_typer(data.app, name="data")
app.add_typer(fleet.app, name="fleet")
app.add_typer(train.app, name="train")
app.add_typer(runs.app, name="runs")
app.command("release")(release.release)
app.command("versions")(release.versions)
app.add_typer(rollouts.app, name="rollout")
app.command("channels")(channels.channels)
app.command("withdraw")(channels.withdraw)
device_policies.add_to(devices.app)
app.add_typer(devices.app, name="devices")
app.add_typer(operators.app, name="operators")
app.add_typer(audit.app, name="audit")
app.add_typer(ddi.app, name="ddi")
app.add_typer(trust.app, name="trust")
# Under the name that who thinks of the ceremony looks for, too.
app.add_typer(trust.app, name="keys", hidden=True)
app.command("doctor")(upkeep.doctor)
app.command("gc")(upkeep.gc)
app.add_typer(superlink.app, name="superlink")
app.add_typer(privacy.app, name="privacy")
app.add_typer(delta.app, name="delta")


def main() -> None:
    """Entry point: runs a command; an expected error is one sentence on stderr and exit code 1."""
    # Importing torch makes half a million objects that stay: looking for garbage among them, and once more at the end,
    # took a third of a short command's time.
    gc.set_threshold(50_000, 20, 50)
    code = _run()
    gc.freeze()
    sys.exit(code)


def _run() -> int:
    # Threads that wait for each other spin for microseconds only: where others need the cores too, more makes
    # everything slower, while less (the policy PASSIVE) halves the speed of generation.
    if "OMP_WAIT_POLICY" not in os.environ:  # somebody's own wish
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # A supervisor's SIGTERM ends a command the way Ctrl-C does: with everything that it started.
    stopping.install()
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        problems.print("Stopped.")
        return 130
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            _say_problem(f"the disk is full ({error.filename or 'while writing'}). Free some space and run this again.")
        else:
            _say_problem(f"{error.filename or 'the system'}: {error.strerror or error}.")
        return 1
    except _expected_errors() as error:
        _say_problem(str(error))
        return 1
    return code if isinstance(code, int) else 0


def _say_problem(sentence: str) -> None:
    """One sentence on stderr; brackets in it are text, not colours."""
    problems.print(f"[red]Error:[/] {escape(sentence)}", highlight=False)


def _expected_errors() -> tuple[type[Exception], ...]:
    """The error roots of the rooms that this command loaded; the others cannot have been raised."""
    roots: list[type[Exception]] = [ServerError, DeltaError]
    for room, root in (("model", "ModelError"), ("privacy", "PrivacyError")):
        if room in sys.modules:
            roots.append(getattr(sys.modules[room], root))
    return tuple(roots)
