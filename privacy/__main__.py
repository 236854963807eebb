"""`python -m privacy recompute FOLDER`: does a report's ε follow from its own ledger?"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.accountant import ACCOUNTANT, epsilon_by_device
from privacy.errors import PrivacyError, ReportError
from privacy.ledger import JsonlLedger
from privacy.report import AuditReport

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_REPORT_BYTES = 64 * 1024 * 1024
# Another version of the accountant may round its grid differently; a fault would be far larger.
_TOLERANCE = 2e-3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when the report holds, 1 when anything differs, 2 when the folder cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m privacy", description="Check a privacy report against the ledger it was written from."
    )
    commands = parser.add_subparsers(required=True)
    recompute = commands.add_parser(
        "recompute",
        help="recompute epsilon from ledger.jsonl and compare it with report.json",
        description="Recompute every device's epsilon from FOLDER/ledger.jsonl and compare it with FOLDER/report.json. "
        "Exits with 0 when all agree, 1 when anything differs, 2 when the folder cannot be used.",
    )
    recompute.add_argument("folder", type=Path, metavar="FOLDER", help="holds report.json and ledger.jsonl")
    folder: Path = parser.parse_args(arguments).folder
    try:
        differences = _compare(folder)
    except (PrivacyError, OSError) as error:
        sys.stderr.write(f"cannot recompute: {error}\n")
        return 2
    for difference in differences:
        sys.stdout.write(f"DIFFERS  {difference}\n")
    sys.stdout.write("The report does NOT follow from its ledger.\n" if differences else "The report holds.\n")
    return 1 if differences else 0


def _compare(folder: Path) -> list[str]:
    report = AuditReport.from_json(_read(folder / "report.json"))
    raw = _read(folder / "ledger.jsonl")
    events = JsonlLedger(folder / "ledger.jsonl").events()
    found = epsilon_by_device(events, target_delta=report.target_delta)
    sys.stdout.write(f"{len(events)} events, {len(found)} devices, delta {report.target_delta:g}\n{ACCOUNTANT}\n\n")
    reported = {device.device_id: device.epsilon for device in report.devices}
    differences: list[str] = []
    if hashlib.sha256(raw).hexdigest() != report.ledger_sha256:
        differences.append("ledger.jsonl is not the file that the report names (sha256)")
    if len(events) != report.event_count:
        differences.append(f"events: report {report.event_count}, ledger {len(events)}")
    for device in sorted(found.keys() | reported.keys()):
        differences += _line(f"device {device}", reported.get(device), found.get(device))
    differences += _line("maximum", report.epsilon_max, max(found.values(), default=0.0))
    return differences


def _line(name: str, reported: float | None, found: float | None) -> list[str]:
    """Print one comparison; the difference to report, if there is one."""
    text = f"{name}: report {_text(reported)}, recomputed {_text(found)}"
    sys.stdout.write(text + "\n")
    if reported is None or found is None:
        return [text]
    is_same = reported == found or math.isclose(reported, found, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return [] if is_same else [text]


def _text(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4f}"


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ReportError(f"{path} is missing; give the folder that write_report made")
    if path.stat().st_size > _MAX_REPORT_BYTES:
        raise ReportError(f"{path} has {path.stat().st_size} bytes, more than the {_MAX_REPORT_BYTES} that are read")
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
