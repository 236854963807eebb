"""An operator at the terminal: real commands in real processes on one home."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch

from model import LoRAConfig, ModelConfig, initial_adapter, save_adapter
from server.artifacts import LocalArtifactStore
from server.config import load_settings
from server.publishing import Gate, create_candidate, publish
from server.registry import Registry
from server.signing import KeyFolder, SignedMetadata

SCRIPTS = Path(sys.executable).parent
# Few and short: these tests ask whether the parts work together, not how well the model learns.
RECIPE = {
    "local-steps": "2",
    "batch-size": "8",
    "max-length": "32",
    "evaluation-examples": "8",
    "budget-rounds": "6",
    "max-examples": "64",
}


class Service:
    """One operator: a home, the `lamella` command, and the processes that were started on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def offline_keys(self) -> Path:
        """The operator's offline keys and their passphrase, beside the home."""
        return self.home.with_name(f"{self.home.name}-offline")

    def init_trust(self) -> None:
        """What comes first in every new home."""
        self.offline_keys.mkdir(mode=0o700)
        passphrase = self.offline_keys / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text(secrets.token_urlsafe(24))
        self.lamella("trust", "init")

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LAMELLA_", "FLWR_"))}
        return kept | {
            "LAMELLA_HOME": str(self.home),
            "LAMELLA_CACHE": str(self.home.parent / "cache"),
            "LAMELLA_OFFLINE_KEYS": str(self.offline_keys),
            "LAMELLA_PASSPHRASE_FILE": str(self.offline_keys / "passphrase"),
            "LAMELLA_PORT": str(self.port),
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=400, check=False)
        told = f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == expect, told
        assert "Traceback" not in done.stderr, told
        return done

    def lamella(self, *arguments: str, expect: int = 0) -> str:
        done = self.run("lamella", *arguments, expect=expect)
        return done.stdout if expect == 0 else done.stderr

    def device(self, home: Path, command: str, *arguments: str, expect: int = 0) -> str:
        done = self.run("lamella-device", command, "--home", str(home), *arguments, expect=expect)
        return done.stdout if expect == 0 else done.stderr

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.processes.append(process)
        return process

    def serve(self) -> subprocess.Popen[str]:
        process = self.start("lamella", "serve")
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/healthz", timeout=2).close()
                return process
            time.sleep(0.2)
        raise AssertionError("the update service did not start")

    @property
    def train_command(self) -> list[str]:
        """`lamella train federated` on two simulated devices with a few people's text; rounds are up to the caller."""
        settings = [part for key, value in RECIPE.items() for part in ("--set", f"{key}={value}")]
        where = ["--simulate", "2", "--cohort", "2", "--data", f"jsonl:{self.home / 'text'}"]
        return ["lamella", "train", "federated", "--model", "chat", *where, *settings]

    def train(self, *arguments: str, expect: int = 0) -> str:
        done = self.run(*self.train_command, *arguments, expect=expect)
        return done.stdout if expect == 0 else done.stderr

    def release_adapter(self, *, seed: int) -> dict[str, Any]:
        """Release a made-up adapter on the newest version."""
        lora = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj"))
        with tempfile.TemporaryDirectory() as folder:
            config = ModelConfig.from_json(self._file_of_latest("base/config.json"))
            generator = torch.Generator().manual_seed(seed)
            state = {
                name: value + 0.01 * torch.randn(value.shape, generator=generator)
                for name, value in initial_adapter(config, lora, 0).items()
            }
            save_adapter(Path(folder) / "adapter", state, lora)
            return self.release(Path(folder) / "adapter")

    def release(self, adapter: Path) -> dict[str, Any]:
        """Release an adapter on the newest version, through the real publishing but without training or gate."""
        settings = load_settings(home=self.home)
        registry, artifacts = Registry.open(settings), LocalArtifactStore(settings.artifacts_dir)
        parent = registry.latest_released("chat")
        assert parent is not None
        candidate = create_candidate(registry, artifacts, model="chat", adapter=adapter, parent=parent.number)
        gate = Gate(margin=0.0).judge(candidate_loss=1.0, parent_loss=1.0)
        passphrase = (self.offline_keys / "passphrase").read_bytes()
        metadata = SignedMetadata.open(settings, release_keys=KeyFolder(self.offline_keys, lambda: passphrase))
        publish(
            registry, artifacts, metadata, model="chat", version=candidate.number, gate=gate, work=settings.work_dir
        )
        registry.close()
        return self.versions()[-1]

    def _file_of_latest(self, path: str) -> bytes:
        settings = load_settings(home=self.home)
        registry, artifacts = Registry.open(settings), LocalArtifactStore(settings.artifacts_dir)
        latest = registry.latest_released("chat")
        assert latest is not None
        registry.close()
        return next(artifacts.read_bytes(f.sha256) for f in latest.manifest.files if f.path == path)

    def runs(self) -> list[dict[str, Any]]:
        return json.loads(self.lamella("runs", "list", "--json"))

    def run_facts(self, run_id: str) -> dict[str, Any]:
        return json.loads(self.lamella("runs", "show", run_id, "--json"))

    def versions(self) -> list[dict[str, Any]]:
        return json.loads(self.lamella("versions", "--json"))

    def enroll(self, home: Path) -> None:
        invitation = home.with_suffix(".json")
        self.lamella("devices", "invite", "--model", "chat", "--out", str(invitation))
        self.device(home, "enroll", str(invitation), "--name", home.name)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
