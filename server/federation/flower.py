"""Flower's processes: a private SuperLink for simulation, starting a run, and learning how it really ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from server.errors import FederationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from server.federation.recipe import Recipe

CONNECTION = "lamella"
_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 120.0

_APP = """\
# Written by `lamella train federated`. The code is the installed package; this only names it.
[project]
name = "lamella-run"
version = "{version}"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "lamella"

[tool.flwr.app.components]
serverapp = "server.federation.server_app:app"
clientapp = "client_sdk.client_app:app"

[tool.flwr.app.config]
{config}
"""


@dataclass(frozen=True)
class FlowerHome:
    """A Flower home of our own: its connection file, state and logs, apart from the user's `~/.flwr`."""

    folder: Path

    @property
    def log(self) -> Path:
        """The SuperLink's log file."""
        return self.folder / "superlink.log"

    def environment(self) -> dict[str, str]:
        """This process's environment with what keeps Flower offline, quiet and out of the user's home."""
        scripts = str(Path(sys.executable).parent)
        return os.environ | {
            "FLWR_HOME": str(self.folder),
            # By default a SuperLink makes a fresh environment from a registry for every run; ours is installed already.
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        }

    def write_connection(self, address: str, *, root_certificates: Path | None) -> None:
        """Name the SuperLink that runs are sent to; plain HTTP unless a CA certificate is given."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        security = (
            f"root-certificates = {json.dumps(str(root_certificates))}" if root_certificates else "insecure = true"
        )
        (self.folder / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = {json.dumps(address)}\n'
            f"{security}\n",
            encoding="utf-8",
        )

    def write_app(self, recipe: Recipe, *, version: str) -> Path:
        """Write the folder that `flwr run` bundles: a project file alone, a few hundred bytes."""
        folder = self.folder / "app"
        folder.mkdir(parents=True, exist_ok=True)
        config = "\n".join(f"{key} = {json.dumps(value)}" for key, value in recipe.to_run_config().items())
        (folder / "pyproject.toml").write_text(_APP.format(version=version, config=config), encoding="utf-8")
        return folder


@contextlib.contextmanager
def simulation_superlink(home: FlowerHome, *, extra_environment: Mapping[str, str]) -> Iterator[str]:
    """Start a private SuperLink in simulation mode on loopback; ends every process that came of it.

    Yields its address at once, so that other things can be prepared while it comes up (`wait_until_listening`).
    """
    home.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    pid_file = home.folder / "superlink.pid"
    _end_leftover(pid_file)
    port = _free_port()
    address = f"127.0.0.1:{port}"
    # No --database: what lasts is in our registry, and a run left over in Flower's would start again by itself.
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    command = ["flower-superlink", "--insecure", "--simulation", "--isolation", "subprocess", *listen]
    command += ["--disable-runtime-dependency-installation"]
    environment = home.environment() | dict(extra_environment)
    with home.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            env=environment,
            cwd=home.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        pid_file.write_text(str(process.pid), encoding="ascii")
        yield address
    finally:
        # Nothing of ours is in there any more: what a run reached is in the registry.
        end_process_tree(process.pid, grace_s=1.0)
        pid_file.unlink(missing_ok=True)


def end_process_tree(pid: int, *, grace_s: float = 5.0) -> None:
    """Ask a process and everything under it to end, then insist. Ray's workers are among its descendants."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        processes = [parent, *parent.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        for process in _still_alive(processes, within_s=grace_s):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _still_alive(processes, within_s=grace_s)


def _still_alive(processes: list[psutil.Process], *, within_s: float) -> list[psutil.Process]:
    """Wait until all have ended; those that have not in time.

    One that ended counts as ended even if nobody collects it: in a container without an init process, orphans stay
    as zombies for ever (and `psutil.wait_procs` would wait for each).
    """
    give_up = time.monotonic() + within_s
    while True:
        processes = [process for process in processes if not _has_ended(process)]
        if not processes or time.monotonic() >= give_up:
            return processes
        time.sleep(0.05)


def _has_ended(process: psutil.Process) -> bool:
    try:
        process.wait(timeout=0)  # collects it, if it is a child of this process
    except psutil.TimeoutExpired:
        with contextlib.suppress(psutil.NoSuchProcess):
            return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        pass
    return True


def _end_leftover(pid_file: Path) -> None:
    """End the SuperLink of a command that was killed before it could: two must not share a home."""
    with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        pid = int(pid_file.read_text(encoding="ascii"))
        # The number may belong to somebody else by now.
        if any("flower-superlink" in part for part in psutil.Process(pid).cmdline()):
            end_process_tree(pid)


@dataclass(frozen=True)
class RunStatus:
    """Flower's word for a run (`pending`, `running`, `finished:completed`, `finished:failed`, ...) and its reason."""

    word: str
    details: str = ""

    @property
    def is_completed(self) -> bool:
        """Whether the run reached its end."""
        return self.word == "finished:completed"


@dataclass(frozen=True)
class FlowerRun:
    """A run that a SuperLink has accepted."""

    home: FlowerHome
    run_id: str

    def status(self) -> RunStatus:
        """What Flower says of the run."""
        answer = _flwr(self.home, "ls", CONNECTION, "--run-id", self.run_id, "--format", "json")
        runs = answer.get("runs") or [{}]
        run = runs[0] if isinstance(runs, list) else {}
        details = str(run.get("status-details", ""))
        return RunStatus(str(run.get("status", "unknown")), "" if details == "N/A" else details)

    def log_tail(self, *, lines: int = 30) -> str:
        """The end of what the run printed, for a person to read."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(  # noqa: S603 - our own command
                ["flwr", "log", self.run_id, CONNECTION, "--show"],  # noqa: S607 - on the PATH of our environment
                env=self.home.environment(),
                cwd=self.home.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMMAND_TIMEOUT_S,
                check=False,
            )
            return "\n".join(done.stdout.strip().splitlines()[-lines:])
        return "(Flower gives no log)"

    def stop(self) -> None:
        """Ask the SuperLink to stop the run; used when the person at the terminal gives up."""
        with contextlib.suppress(FederationError):
            _flwr(self.home, "stop", self.run_id, CONNECTION, "--format", "json")

    def wait(
        self, *, on_poll: Callable[[], str | None], poll_s: float = 0.5, status_every_s: float = 30.0
    ) -> RunStatus:
        """Wait for the end and return Flower's status.

        `flwr run --stream` exits with 0 even when the run failed, so its exit code says nothing. The ServerApp's last
        act is to write into the registry that the run completed; where that does not come, Flower is asked.

        Args:
            on_poll: Called every `poll_s`; `completed` or `failed` as the registry says, None while the run goes on.
            poll_s: Seconds between two looks at the registry.
            status_every_s: Seconds between two questions to Flower itself (each costs a process).
        """
        next_status = time.monotonic() + status_every_s
        while True:
            said = on_poll()
            if said == "completed":
                return RunStatus("finished:completed")
            if said is not None or time.monotonic() >= next_status:
                status = self.status()
                if status.word.startswith("finished"):
                    on_poll()
                    return status
                next_status = time.monotonic() + (2.0 if said else status_every_s)
            time.sleep(poll_s)


def start_run(home: FlowerHome, app: Path, *, devices: int | None, cpus_per_device: int) -> FlowerRun:
    """Hand the app to the SuperLink of `home`.

    Args:
        home: Whose connection is used.
        app: The folder that `FlowerHome.write_app` wrote.
        devices: Simulated devices; None for real SuperNodes.
        cpus_per_device: CPU cores that one simulated device gets while it trains.
    """
    simulation = []
    if devices is not None:
        simulation = [
            "--federation-config",
            f"num-supernodes={devices} client-resources-num-cpus={cpus_per_device} init-args-log-to-driver=false",
        ]
    answer = _flwr(home, "run", str(app), CONNECTION, *simulation, "--format", "json")
    run_id = answer.get("run-id")
    if not run_id:
        raise FederationError(f"Flower did not start the run: {answer.get('error-message') or answer}")
    return FlowerRun(home, str(run_id))


def _flwr(home: FlowerHome, *arguments: str) -> dict[str, object]:
    """Run one `flwr` command and return its JSON answer."""
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            ["flwr", *arguments],  # noqa: S607 - on the PATH of our environment
            env=home.environment(),
            cwd=home.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise FederationError("`flwr` is not installed here. Install lamella[server].") from None
    except subprocess.TimeoutExpired:
        raise FederationError(f"`flwr {arguments[0]}` did not answer within {_COMMAND_TIMEOUT_S:.0f} s.") from None
    found = re.search(r"\{.*\}", done.stdout, flags=re.DOTALL)
    if found is None:
        told = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise FederationError(f"`flwr {arguments[0]}` failed: {' '.join(told)[:300]}")
    answer: dict[str, object] = json.loads(found.group())
    if answer.get("success") is False:
        raise FederationError(f"`flwr {arguments[0]}` failed: {str(answer.get('error-message'))[:300]}")
    return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_listening(address: str, log: Path) -> None:
    """Wait until a SuperLink answers at `address`.

    Raises:
        FederationError: It does not come up; the message names its log.
    """
    host, _, port = address.rpartition(":")
    give_up = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.2)
    raise FederationError(
        f"No SuperLink answers at {address}; waited {_START_TIMEOUT_S:.0f} s. The log of a private one: {log}"
    )
