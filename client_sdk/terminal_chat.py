"""A conversation at the terminal: streams answers, and says after each what made it and how fast."""

import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from client_sdk.backends import Ending, EngineFacts
from client_sdk.device import Device
from client_sdk.errors import DeviceError, NothingInstalledError
from client_sdk.generation import VERSION_ADAPTER, GenerationOptions
from client_sdk.session import ChatSession

_HELP = "/reset forgets the conversation, /quit ends it."
_INDENT = "  "


class Terminal(Protocol):
    """Where a conversation is held."""

    def read(self) -> str | None:
        """The next line of the person; None at the end of the input."""
        ...

    def write(self, text: str) -> None:
        """Show text as it is."""
        ...


class StandardTerminal:
    """Standard input and output."""

    def read(self) -> str | None:
        """The next line; None at the end of the input."""
        try:
            return input("> ")
        except EOFError:
            return None

    def write(self, text: str) -> None:
        """Show text at once."""
        sys.stdout.write(text)
        sys.stdout.flush()


def run_chat(device: Device, options: GenerationOptions, *, system: str | None, terminal: Terminal) -> None:
    """Talk until /quit or the end of the input; Ctrl-C ends an answer, not the conversation.

    Raises:
        NothingInstalledError: update first.
        DeviceError: the engine cannot be opened.
    """
    engine = device.load()
    terminal.write(f"{_opening(device, engine, options)}\n{_HELP}\n")
    session = device.chat(system=system)
    commands: dict[str, Callable[[], None]] = {"/reset": session.reset}
    while (line := terminal.read()) is not None and (said := line.strip()) != "/quit":
        if command := commands.get(said):
            command()
            terminal.write("Forgotten.\n")
        elif said.startswith("/"):
            terminal.write(f"{_HELP}\n")
        elif said:
            _turn(session, said, options, device, terminal)


def _turn(session: ChatSession, said: str, options: GenerationOptions, device: Device, terminal: Terminal) -> None:
    before, ending = session.dropped, None
    pieces = session.ask(said, **options)
    try:
        for piece in pieces:
            terminal.write(printable_lines(piece.text))
            ending = piece.ending or ending
    except NothingInstalledError:
        raise
    except DeviceError as error:
        terminal.write(f"{error}\n")
        return
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]  # a generator: it remembers what was said so far
        terminal.write(" ...")
    facts = _closing(ending, session.dropped - before, device)
    terminal.write("\n" + "".join(f"{_INDENT}[{fact}]\n" for fact in facts))


def _opening(device: Device, engine: EngineFacts, options: GenerationOptions) -> str:
    adapter = options.get("adapter", VERSION_ADAPTER if VERSION_ADAPTER in engine.adapters else None)
    megabytes = engine.weight_bytes / 1e6
    with_adapter = {None: "without adapter", VERSION_ADAPTER: "with its adapter"}.get(adapter, f"adapter {adapter}")
    return (
        f"v{device.running_version()} {with_adapter}, {engine.backend} {engine.precision} ({megabytes:.0f} MB, "
        f"{engine.threads} thread{'s' * (engine.threads != 1)})"
    )


def _closing(ending: Ending | None, dropped: int, device: Device) -> Iterator[str]:
    if ending is not None:
        rate = ending.tokens_per_second
        speed = "" if rate is None else f", {rate:.1f} tokens/s"
        reused = f", {ending.cached_tokens} of {ending.prompt_tokens} prompt tokens reused"
        engine = device.engine()
        name = f", {engine.backend}" if engine else ""
        yield f"v{device.running_version()}{name}: {ending.new_tokens} tokens{speed}{reused}"
    if dropped:
        yield f"the context is full: the oldest {dropped} messages were dropped"


def printable_lines(text: str) -> str:
    """Text that a terminal shows and does not obey: line breaks stay, other control characters become spaces."""
    return "".join(c if c == "\n" or c.isprintable() else " " for c in text)
