"""Joining a federation: runs Flower's SuperNode, which calls this device's ClientApp for every round."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from client_sdk.agent import poll
from client_sdk.device import Device
from client_sdk.errors import DeviceError, MissingExtraError

_JITTER = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How a device takes part in a federation.

    Attributes:
        superlink: where the SuperLink's fleet API is, `host:port`.
        data: a source of `model.open_source`; empty is the folder `data` in the device's home.
        user: whose examples of that source; empty: the only one there is.
        root_certificates: the CA that signed the SuperLink's certificate; without it the connection is plain.
        private_key: this node's key, where the SuperLink demands one.
        port: port on loopback that the SuperNode and its ClientApps talk through, with `/health`; 0: a free one.
        max_epsilon: the most ε this device lets anyone spend, whatever the server asks for; None: the default.
        trusts_server: whether it also sends updates without noise of its own, for rounds whose noise the server adds.
        requires_secure_aggregation: whether it declines rounds that would show its update alone; what `device.toml`
            says holds as well.
    """

    superlink: str
    data: str = ""
    user: str = ""
    root_certificates: Path | None = None
    private_key: Path | None = None
    port: int = 0
    max_epsilon: float | None = None
    trusts_server: bool = False
    requires_secure_aggregation: bool = False


def run_supernode(device: Device, membership: Membership, *, interval_s: float) -> int:
    """Take part in training until stopped and stay up to date meanwhile; returns the SuperNode's exit status.

    A round always trains on what serves when it begins. SIGTERM and SIGINT end the SuperNode in an orderly way, so that
    the SuperLink knows at once.

    Args:
        device: an enrolled device; updated first when nothing is installed yet.
        membership: which federation, with which data.
        interval_s: mean seconds between two looks for an update.

    Raises:
        NothingInstalledError: no version is offered to this device yet.
        MissingExtraError: Flower is not installed.
        EnrolmentError: the device is not enrolled (any more).
        DeviceError: it cannot be started.
    """
    program, environment = _flower(device.home)
    if device.status().version is None:
        poll(device)
    device.active()
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command
            _command(program, device.home, membership), env=environment
        )
    except OSError as error:
        raise DeviceError(f"{program} cannot be started: {error.strerror}.") from error

    def stop(_signal_number: int, _frame: FrameType | None) -> None:
        process.terminate()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, stop)
    jittered = random.SystemRandom()
    try:
        while True:
            try:
                return process.wait(timeout=interval_s * jittered.uniform(1.0 - _JITTER, 1.0 + _JITTER))
            except subprocess.TimeoutExpired:
                poll(device)
    finally:
        process.terminate()
        process.wait()


def _command(program: str, home: Path, membership: Membership) -> list[str]:
    config = {
        "home": str(home),
        "data": membership.data,
        "user": membership.user,
        "max-epsilon": membership.max_epsilon,
        "trust-server": membership.trusts_server or None,
        "require-secure-aggregation": membership.requires_secure_aggregation or None,
    }
    command = [program, "--superlink", membership.superlink, "--port", str(membership.port or _free_port())]
    command += [
        "--node-config",
        " ".join(f"{key}={json.dumps(value)}" for key, value in config.items() if value not in {"", None}),
    ]
    authority, key = membership.root_certificates, membership.private_key
    command += ["--root-certificates", str(authority)] if authority else ["--insecure"]
    return command + (["--auth-supernode-private-key", str(key)] if key else [])


def _flower(home: Path) -> tuple[str, Mapping[str, str]]:
    """Flower's program, and an environment that keeps it offline, quiet and inside the device's home."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("flower-supernode", path=path)
    if program is None:
        raise MissingExtraError("Training needs `pip install lamella[federated]`: there is no flower-supernode here.")
    return program, os.environ | {
        "FLWR_HOME": str(home / "flower"),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": path,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
