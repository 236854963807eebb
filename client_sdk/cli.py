"""`lamella-device`: one device at the terminal."""

import dataclasses
import enum
import gc
import json
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from client_sdk.agent import describe, run_agent
from client_sdk.backends import MAX_LOGPROBS, EngineSettings
from client_sdk.conditions import system_conditions
from client_sdk.device import Device
from client_sdk.errors import DeviceError
from client_sdk.generation import GenerationOptions, Prompt
from client_sdk.runtime import Answer
from client_sdk.update_result import UpdateResult

DEFAULT_HOME = Path("~/.lamella/device")

app = typer.Typer(
    name="lamella-device",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_console = Console()
_problems = Console(stderr=True)


class BackendOption(enum.StrEnum):
    """The engines by name."""

    auto = "auto"
    torch = "torch"
    llamacpp = "llamacpp"


Backend = Annotated[
    BackendOption, typer.Option(help="Which engine generates; auto takes the fastest that is installed.")
]
Home = Annotated[Path, typer.Option("--home", envvar="LAMELLA_DEVICE_HOME", help="The device's folder.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample among the likeliest tokens of this much mass.")]
Metered = Annotated[bool, typer.Option("--metered", help="The connection costs money: see download.metered.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone, for programs.")]


def _print_version(is_asked: bool) -> None:  # noqa: FBT001 - what typer calls it with
    if is_asked:
        print(f"lamella {version('lamella')}")  # noqa: T201 - stdout is the interface
        raise typer.Exit


@app.callback()
def lamella_device(
    _version: Annotated[  # noqa: FBT002 - a flag on the command line
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep a language model on this device up to date, talk to it, and train it together with others."""


@app.command()
def enroll(
    enrolment_file: Annotated[Path, typer.Argument(metavar="FILE", help="The enrolment file from the operator.")],
    name: Annotated[str, typer.Option(help="What the operator sees this device as.")] = "device",
    allow_http: Annotated[  # noqa: FBT002 - a flag on the command line
        bool, typer.Option("--allow-http", help="Accept plain http to another machine, on a private network only.")
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Become a device of the server that the enrolment file names."""
    status = Device(home).enroll(enrolment_file, name=name, allow_http=allow_http)
    _say(f"Enrolled as {status.name} ({status.device_id}) for {status.model} at {status.server_url}.")


@app.command()
def check(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line
    """Ask whether there is an update, and verify it against the signed metadata."""
    offer = Device(home).check()
    if as_json:
        print(offer.model_dump_json(indent=2) if offer else "null")  # noqa: T201 - stdout is the interface
    elif offer is None:
        _say("Nothing new for this device.")
    else:
        source = offer.package.source_version
        kind = "a full package" if source is None else f"a delta from v{source}"
        _say(f"v{offer.version} is offered: {kind} of {offer.package.length / 1e6:.2f} MB. `lamella-device update`")


@app.command()
def update(
    now: Annotated[  # noqa: FBT002 - a flag on the command line
        bool, typer.Option("--now", help="Whatever device.toml says about battery and metered connections.")
    ] = False,
    metered: Metered = False,  # noqa: FBT002 - as above
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,  # noqa: FBT002 - as above
) -> None:
    """Download, apply and test what is offered; the old version serves until the new one passed."""
    device = _open(home, is_metered=metered)
    _show_result(_with_bar(lambda bar: device.update(on_progress=bar, ignore_policy=now)), as_json=as_json)


@app.command()
def repair(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line
    """Hash the installed version, and replace it from the server if a file is damaged."""
    device = _open(home)
    result = _with_bar(lambda bar: device.repair(on_progress=bar))
    if not as_json and result.decision == "up_to_date":
        _say(f"v{result.from_version} is whole.")
    else:
        _show_result(result, as_json=as_json)


@app.command()
def rotate_key(home: Home = DEFAULT_HOME) -> None:
    """Replace the key that this device signs its requests with."""
    Device(home).rotate_key()
    _say("This device signs with a new key; the service has forgotten the old one.")


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to answer, or to go on from.")],
    chat: Annotated[  # noqa: FBT002 - a flag on the command line
        bool, typer.Option("--chat", help="Treat each prompt as a chat message.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="An answer ends here at the latest.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy and always the same.")] = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal answers on the same back end.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="An answer ends before this text (repeatable).")] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_LOGPROBS, help="With --json: log-probabilities, and this many rivals a token."),
    ] = None,
    backend: Backend = BackendOption.auto,
    home: Home = DEFAULT_HOME,
    as_json: Annotated[  # noqa: FBT002 - a flag on the command line
        bool, typer.Option("--json", help="Print one line of JSON an answer, for programs.")
    ] = False,
) -> None:
    """Answer each prompt with the version that serves; the model is loaded once."""
    device = Device(home, engine=EngineSettings(backend=backend.value))
    options = GenerationOptions(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop or ()
    )
    for prompt in prompts:
        asked: Prompt = [{"role": "user", "content": prompt}] if chat else prompt
        if as_json:
            options["logprobs"] = logprobs
            answer = device.answer(asked, **options)
            print(json.dumps(_as_json(answer), ensure_ascii=False), flush=True)  # noqa: T201 - stdout is the interface
            continue
        for piece in device.stream(asked, **options):
            print(piece, end="", flush=True)  # noqa: T201 - stdout is the interface
        print()  # noqa: T201 - stdout is the interface


@app.command()
def chat(
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="An answer ends here at the latest.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy and always the same.")] = 0.0,
    top_p: TopP = 1.0,
    seed: Annotated[int | None, typer.Option(help="Equal seeds give equal answers on the same back end.")] = None,
    base_only: Annotated[  # noqa: FBT002 - a flag on the command line
        bool, typer.Option("--base", help="Talk to the base, without the version's adapter.")
    ] = False,
    backend: Backend = BackendOption.auto,
    home: Home = DEFAULT_HOME,
) -> None:
    """Talk to the version that serves. /reset forgets the conversation, /quit ends it, Ctrl-C ends an answer."""
    from client_sdk.terminal_chat import StandardTerminal, run_chat  # noqa: PLC0415 - no other command talks

    options = GenerationOptions(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    if base_only:
        options["adapter"] = None
    device = Device(home, engine=EngineSettings(backend=backend.value))
    run_chat(device, options, system=system, terminal=StandardTerminal())


@app.command()
def train(
    superlink: Annotated[str, typer.Option(help="Address of the federation's SuperLink, host:port.")],
    data: Annotated[str, typer.Option(help="A data source such as jsonl:FOLDER; default: data/ in the home.")] = "",
    user: Annotated[str, typer.Option(help="Whose examples of that source; default: the only user's.")] = "",
    root_certificates: Annotated[
        Path | None, typer.Option(help="CA certificate of the SuperLink; without it the connection is plain.")
    ] = None,
    private_key: Annotated[Path | None, typer.Option(help="This node's key, where the SuperLink demands one.")] = None,
    max_epsilon: Annotated[
        float | None,
        typer.Option(min=0.0, help="The most ε this device ever spends, whatever the server asks; default 10."),
    ] = None,
    trust_server: Annotated[  # noqa: FBT002 - a flag on the command line
        bool,
        typer.Option(
            "--trust-server",
            help="Also send updates without noise of this device's own; the server adds it to the sum.",
        ),
    ] = False,
    require_secure_aggregation: Annotated[  # noqa: FBT002 - a flag on the command line
        bool,
        typer.Option(
            "--require-secure-aggregation",
            help="Decline every round that would show this device's update alone.",
        ),
    ] = False,
    interval_s: Annotated[float, typer.Option(min=1.0, help="Mean seconds between two looks for an update.")] = 3600.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port for Flower itself; 0: a free one.")] = 0,
    home: Home = DEFAULT_HOME,
) -> None:
    """Take part in federated training with this device's own data, and stay up to date, until stopped."""
    from client_sdk.supernode import Membership, run_supernode  # noqa: PLC0415 - no other command starts a process

    _log_to_stderr()
    membership = Membership(
        superlink=superlink,
        data=data,
        user=user,
        root_certificates=root_certificates,
        private_key=private_key,
        port=port,
        max_epsilon=max_epsilon,
        trusts_server=trust_server,
        requires_secure_aggregation=require_secure_aggregation,
    )
    raise typer.Exit(run_supernode(Device(home), membership, interval_s=interval_s))


@app.command()
def status(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:  # noqa: FBT002 - a flag on the command line
    """Who this device is, what it runs, and what it decided last."""
    facts = dataclasses.asdict(Device(home).status())
    if as_json:
        print(json.dumps(facts, indent=2))  # noqa: T201 - stdout is the interface
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
        table.add_row(key.replace("_", " "), "-" if shown in {None, ""} else str(shown))
    _console.print(table)


@app.command()
def agent(
    interval_s: Annotated[float, typer.Option(min=1.0, help="Mean seconds between two polls.")] = 3600.0,
    jitter: Annotated[float, typer.Option(min=0.0, max=1.0, help="Each wait varies by up to this fraction.")] = 0.2,
    metered: Metered = False,  # noqa: FBT002 - a flag on the command line
    home: Home = DEFAULT_HOME,
) -> None:
    """Keep this device up to date and whole until stopped; logs one line a decision."""
    _log_to_stderr()
    run_agent(_open(home, is_metered=metered), interval_s=interval_s, jitter=jitter)


def main() -> None:
    """Entry point: an expected error is one clear sentence on stderr and exit code 1."""
    # Threads that wait for each other spin for microseconds only: the device has other things to do. Not at all (the
    # policy PASSIVE) would more than halve the speed of generation, whose products are as short.
    if "OMP_WAIT_POLICY" not in os.environ:  # somebody's own wish
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Importing torch makes half a million objects that stay: looking for garbage among them, and once more at the end,
    # took a third of a short command's time.
    gc.set_threshold(50_000, 20, 50)
    code = _run()
    gc.freeze()
    sys.exit(code)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        _say_problem("Stopped. What was downloaded is kept.")
        return 130
    except (DeviceError, OSError) as error:
        _say_problem(f"Error: {_sentence(error)}")
        return 1
    return code if isinstance(code, int) else 0


def _sentence(error: DeviceError | OSError) -> str:
    if isinstance(error, DeviceError):
        return str(error)
    return f"{error.filename or 'the disk'}: {error.strerror or error}. Free space, or check who may write there."


def _open(home: Path, *, is_metered: bool = False) -> Device:
    return Device(home, conditions=lambda: dataclasses.replace(system_conditions(), is_metered=is_metered or None))


def _show_result(result: UpdateResult, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(result), indent=2))  # noqa: T201 - stdout is the interface
    else:
        _say(describe(result))
    if result.decision == "reverted":
        raise typer.Exit(1)


def _with_bar(run: Callable[[Callable[[int, int], None]], UpdateResult]) -> UpdateResult:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_problems, transient=True, disable=not _problems.is_terminal) as bars:
        bar = bars.add_task("Downloading", total=None)
        return run(lambda done, total: bars.update(bar, completed=done, total=total))


def _as_json(answer: Answer) -> dict[str, object]:
    """What programs get; keys stay, and more may come."""
    ending = answer.ending
    rate = ending.tokens_per_second
    facts: dict[str, object] = {
        "text": answer.text,
        "version": answer.version,
        "seconds": round(answer.seconds, 3),
        "finish_reason": ending.reason,
        "prompt_tokens": ending.prompt_tokens,
        "cached_tokens": ending.cached_tokens,
        "new_tokens": ending.new_tokens,
        "tokens_per_second": None if rate is None else round(rate, 1),
        "adapter": answer.adapter,
        "backend": answer.engine.backend,
        "precision": answer.engine.precision,
        "threads": answer.engine.threads,
        "why_backend": answer.engine.why,
    }
    if answer.logprobs:
        facts["logprobs"] = [
            {
                "token": token.text,
                "id": token.token_id,
                "logprob": token.logprob,
                "top": [{"token": text, "id": token_id, "logprob": value} for token_id, text, value in token.top],
            }
            for token in answer.logprobs
        ]
    return facts


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("tuf").setLevel(logging.WARNING)


def _say(text: str) -> None:
    _console.print(text, markup=False, highlight=False, soft_wrap=True)


def _say_problem(text: str) -> None:
    _problems.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
