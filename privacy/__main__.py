"""`python -m privacy recompute FOLDER`, `verify FOLDER --key PUB`: check a report, or a release's signed statement."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.errors import BrokenChainError, PrivacyError, StatementError
from privacy.recompute import compare
from privacy.verification import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CODES = "Exits with 0 when all agree, 1 when anything differs, 2 when the folder cannot be used."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when what was checked holds, 1 when anything differs, 2 when the folder cannot be used."""
    options = _parser().parse_args(arguments)
    folder: Path = options.folder
    if options.command == "verify":
        return _told("statement", lambda: verify(folder, key=options.key))
    return _told("report", lambda: compare(folder))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m privacy", description="Check a privacy report or a release's statement, without any server."
    )
    commands = parser.add_subparsers(required=True, dest="command")
    recompute = commands.add_parser(
        "recompute",
        help="recompute every epsilon from ledger.jsonl and compare it with report.json",
        description="Recompute every epsilon from FOLDER/ledger.jsonl and compare it with FOLDER/report.json. "
        + _CODES,
    )
    recompute.add_argument("folder", type=Path, metavar="FOLDER", help="holds report.json and ledger.jsonl")
    check = commands.add_parser(
        "verify",
        help="check the signature of statement.json, and all that it says",
        description="Check FOLDER/statement.json: signed by the key, about these files, and following from the ledger. "
        + _CODES,
    )
    check.add_argument("folder", type=Path, metavar="FOLDER", help="holds statement.json, report.json, ledger.jsonl")
    check.add_argument("--key", type=Path, required=True, metavar="PUB", help="the releases key's public half, in PEM")
    return parser


def _told(what: str, check: Callable[[], list[str]]) -> int:
    try:
        differences = check()
    except (BrokenChainError, StatementError) as error:
        differences = [str(error)]
    except (PrivacyError, OSError) as error:
        sys.stderr.write(f"cannot check: {error}\n")
        return 2
    for difference in differences:
        sys.stdout.write(f"DIFFERS  {difference}\n")
    does_not = "does NOT follow from its ledger" if what == "report" else "does NOT hold"
    sys.stdout.write(f"The {what} {does_not}.\n" if differences else f"The {what} holds.\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
