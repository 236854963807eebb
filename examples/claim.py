"""Test the claim "fewer than 0.3% of the training examples can be traced", and show what the same run leaks without DP.

    python examples/claim.py [--work-dir FOLDER]

A tiny model learns from the real chat of the person who wrote most (chitchat-dataset), under differential privacy. Then
the audit attacks the release: 3,072 examples that were trained on against what the same person wrote and the device
kept back. The control, the same run without noise and clipping, must be caught. Ends with 0 when the claim is earned,
1 when it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODEL, RUN = "chat", "claim"
# One device in one round: nothing is averaged away, in the control neither. That is where an attacker finds most.
DEVICES, ROUNDS = 1, 1
EXAMPLES, PASSES, BATCH = 3072, 20, 32
# As many again must be kept back, or nobody could tell members from others of the same person.
WRITTEN = 2 * EXAMPLES
RECIPE = {
    "rank": 32,
    "alpha": 64,
    "targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    "max-examples": EXAMPLES,
    "max-length": 48,
    "batch-size": BATCH,
    "local-steps": PASSES * EXAMPLES // BATCH,
    "learning-rate": 0.8,
    # Small, and the learning rate large: clipped steps are as usual, and those of the control are bold.
    "clipping-norm": 0.0025,
    # At most e^1 of the false alarms are hits, by the theorem; the audit sees whether that is so.
    "target-epsilon": 1,
    "deadline-s": 7200,
    "evaluation-examples": 200,
}


def main() -> int:
    """Make a base, train on it, attack the result, tell the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".lamella/claim"), help="folder for everything that is written; emptied"
    )
    work = parser.parse_args().work_dir.absolute()
    started = time.monotonic()
    _prepare(work)
    for command in _commands():
        run(work, *command)
    findings = json.loads(
        run(
            work,
            *("lamella", "privacy", "audit", RUN, "--part", "membership", "--json"),
            *("--members", str(DEVICES * EXAMPLES)),
            capture=True,
        )
    )
    found = next(finding for finding in findings if finding["part"] == "membership")
    run(work, "lamella", "privacy", "report", RUN)
    _tell(found, minutes=(time.monotonic() - started) / 60)
    print(f"The report: {work / 'server' / 'reports' / RUN / 'report.html'}")
    return 0 if found["verdict"] == "pass" else 1


def _commands() -> list[tuple[str, ...]]:
    settings = tuple(part for key, value in RECIPE.items() for part in ("--set", f"{key}={value}"))
    everybody = str(DEVICES)
    fleet = ("--simulate", everybody, "--cohort", everybody, "--quorum", everybody, "--cpus-per-device", "1")
    text = ("--data", "chitchat", "--users", everybody, "--at-least", str(WRITTEN), "--out", "text")
    train = ("lamella", "train", "federated", "--model", MODEL, "--data", "jsonl:text", "--rounds", str(ROUNDS))
    return [
        ("lamella", "trust", "init"),
        ("lamella", "base", "pretrain", "--model", MODEL, "--data", "chitchat", "--steps", "600"),
        ("lamella", "data", "export", *text),
        (*train, *fleet, "--set", f"run-name={RUN}", *settings),
    ]


def run(work: Path, *command: str, capture: bool = False) -> str:
    """Run one command as a person would; its output is shown, or returned when `capture`.

    Exit codes of 1 from an audit that failed are what this script is for; all others end it.
    """
    print(f"\n$ {' '.join(command)}", flush=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LAMELLA_")}
    environment = clean | {
        "LAMELLA_HOME": str(work / "server"),
        "LAMELLA_CACHE": str(work / "cache"),
        "LAMELLA_OFFLINE_KEYS": str(work / "offline-keys"),
        "LAMELLA_PASSPHRASE_FILE": str(work / "passphrase"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",  # so small a model gains nothing by more
    }
    done = subprocess.run(
        command, cwd=work, env=environment, check=False, text=True, stdout=subprocess.PIPE if capture else None
    )
    if done.returncode and not (capture and done.returncode == 1 and done.stdout.strip()):
        sys.exit(f"`{' '.join(command[:3])} ...` ended with exit code {done.returncode}; the reason is above.")
    return done.stdout or ""


def _tell(found: dict[str, Any], *, minutes: float) -> None:
    low, high = found["interval"]
    control = {True: "caught", False: "not caught", None: "none"}[found["is_control_caught"]]
    facts = found["facts"]
    print(f"\nVerdict: {found['verdict']}. {found['reason']}.")
    print(f"Found at 0.1% false alarms: {found['measured']:.2%} (95% interval {low:.2%} to {high:.2%}).")
    print(f"Control ({found['control']}): {control}.")
    print(
        f"Area under the curve: {facts['auc']:.3f}, of the control {facts['control_auc']:.3f}. {minutes:.0f} minutes."
    )


def _prepare(work: Path) -> None:
    """An empty work folder that is ours, with a passphrase for its keys."""
    marker = work / ".lamella-claim"
    if work.exists() and any(work.iterdir()) and not marker.exists():
        sys.exit(f"{work} holds other files. Choose an empty folder with --work-dir.")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    marker.touch()
    with os.fdopen(os.open(work / "passphrase", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(24))


if __name__ == "__main__":
    sys.exit(main())
