"""What every command shares: the service it works on, and how it speaks to the person at the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from server.artifacts import open_artifacts
from server.config import Settings, load_settings
from server.errors import ConfigurationError
from server.files import read_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from server.artifacts import ArtifactStore
    from server.registry import Registry
    from server.signing import SignedMetadata

console = Console()
problems = Console(stderr=True)
_SHOWN_AS_MEGABYTES = 10_000  # bytes


@dataclass(frozen=True)
class Service:
    """The operator's side of the update service, opened piece by piece as a command needs it."""

    settings: Settings

    @cached_property
    def registry(self) -> Registry:
        """The registry, migrated to this release."""
        from server.registry import Registry

        return Registry.open(self.settings)

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """The artifact store."""
        return open_artifacts(self.settings)

    @cached_property
    def metadata(self) -> SignedMetadata:
        """The signed metadata and its online keys; `lamella trust init` has made them."""
        from server.signing import KeyFolder, SignedMetadata

        # Opened, and its passphrase asked for, only when a version is released.
        release_keys = KeyFolder(self.settings.offline_keys, passphrase_of(self.settings))
        return SignedMetadata.open(self.settings, release_keys=release_keys)


def is_at_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def passphrase_of(settings: Settings, *, confirm: bool = False) -> Callable[[], bytes]:
    """Where the passphrase of the offline keys comes from: the file that is set, or the person at the terminal.

    Args:
        settings: With ``passphrase_file``.
        confirm: Ask twice, as it is a new one.
    """

    @cache
    def ask() -> bytes:
        if settings.passphrase_file is not None:
            return read_secret(settings.passphrase_file).rstrip(b"\r\n")
        if not is_at_terminal():
            raise ConfigurationError(
                "The offline keys need a passphrase. Run this at a terminal, or put it into a file of mode 0600 and "
                "set LAMELLA_PASSPHRASE_FILE."
            )
        return str(
            typer.prompt("Passphrase of the offline keys", hide_input=True, confirmation_prompt=confirm)
        ).encode()

    return ask


def open_service() -> Service:
    """The service of this environment (`LAMELLA_*`)."""
    return Service(load_settings())


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; None becomes a dash."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("-" if value is None else str(value) for value in row))
    console.print(table)


def words_aside(as_json: bool) -> None:  # noqa: FBT001 - what an option holds
    """With --json: what is said to people goes to stderr from here on, and stdout holds the answer alone."""
    console.stderr = as_json


def show_json(value: object) -> None:
    """Print JSON alone on stdout, for programs."""
    print(json.dumps(value, indent=2, sort_keys=True, default=str))  # noqa: T201 - stdout is the interface


def megabytes(length: int) -> str:
    """A length in bytes as people read it: 10^6 bytes are a MB."""
    return f"{length / 1e6:.2f} MB" if length >= _SHOWN_AS_MEGABYTES else f"{length} bytes"
