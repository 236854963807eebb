"""A server's home with tiny versions in it, made by the server's own code."""

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
from safetensors.numpy import save_file

from delta_updates import FileEntry, VersionManifest, base_hash, tree_hash
from privacy.event import PrivacyEvent
from server.artifacts import LocalArtifactStore, open_artifacts
from server.config import Settings
from server.publishing import Gate, create_candidate, import_base, publish
from server.registry import GateResult, PackageRecord, Registry, VersionRecord
from server.rollouts import AT_ONCE, Launch
from server.signing import KeyFolder, Lifetimes, SignedMetadata, initialise

MODEL = "tiny"


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, **units: float) -> None:
        self.time += timedelta(**units)


@dataclasses.dataclass
class Home:
    """An opened server's home, and how to fill it."""

    settings: Settings
    registry: Registry
    artifacts: LocalArtifactStore
    metadata: SignedMetadata
    folder: Path

    def base(self, seed: int = 0) -> VersionRecord:
        tree = self.folder / f"base-{seed}"
        write_base(tree, seed=seed)
        return import_base(self.registry, self.artifacts, model=MODEL, tree=tree, facts={"source": "made up"})

    def candidate(self, seed: int, *, parent: int) -> VersionRecord:
        adapter = self.folder / f"adapter-{seed}"
        write_adapter(adapter, seed=seed)
        return create_candidate(
            self.registry, self.artifacts, model=MODEL, adapter=adapter, parent=parent, facts={"seed": seed}
        )

    def publish(self, number: int, *, loss: float | None = 2.0, launch: Launch = AT_ONCE) -> VersionRecord:
        gate = None if loss is None else Gate(margin=0.1).judge(candidate_loss=loss, parent_loss=2.0)
        return publish(
            self.registry,
            self.artifacts,
            self.metadata,
            model=MODEL,
            version=number,
            gate=gate,
            work=self.settings.work_dir,
            launch=launch,
        ).version

    def release_three(self) -> None:
        """v1 a base, v2 and v3 adapters on it; a device that has v1 keeps v1 in the field."""
        self.base()
        self.publish(1, loss=None)
        self.candidate(1, parent=1)
        self.publish(2)
        self.candidate(2, parent=2)
        self.publish(3)


def write_base(tree: Path, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (tree / "base").mkdir(parents=True)
    save_file({"w": rng.normal(size=(64, 64)).astype(np.float16)}, tree / "base" / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tree / "base" / name).write_text(json.dumps({"file": name, "seed": seed}))


def write_adapter(folder: Path, *, seed: int) -> None:
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    weights = rng.normal(size=(32, 32)) + seed * 1e-3 * rng.normal(size=(32, 32))
    save_file({"a": weights.astype(np.float16)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))


def make_event(
    run_id: str, server_round: int, *, device_id: str = "user-1", event_id: str | None = None
) -> PrivacyEvent:
    return PrivacyEvent(
        event_id=event_id or uuid4().hex,
        run_id=run_id,
        server_round=server_round,
        device_id=device_id,
        noise_multiplier=1.1,
        sampling_probability=0.05,
        steps=20,
        clipping_norm=1.0,
        target_delta=1e-5,
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


def make_user_event(run_id: str, server_round: int, *devices: str) -> PrivacyEvent:
    return PrivacyEvent(
        run_id=run_id,
        server_round=server_round,
        privacy_unit="user",
        population=MODEL,
        devices=devices,
        cohort_rule="fixed",
        mechanism="gaussian_capped",
        noise_multiplier=2.0,
        sampling_probability=1.0,
        steps=1,
        clipping_norm=1.0,
        target_delta=1e-6,
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )


PASSPHRASE = b"a passphrase of a test"


def offline_keys(folder: Path) -> KeyFolder:
    """The operator's offline keys, beside the home."""
    return KeyFolder(folder / "offline-keys", lambda: PASSPHRASE)


def init_trust(
    settings: Settings, keys: KeyFolder, *, bins: int = 4, now: Callable[[], datetime] | None = None
) -> None:
    """What `lamella trust init` does; with fewer bins, to spare the time of writing them."""
    initialise(settings.home, keys, lifetimes=Lifetimes.of(settings), bins=bins, now=now)


def open_home(folder: Path, **overrides: object) -> Home:
    """A home in ``folder``, with trust made on first use and with the releases key at hand."""
    settings = Settings(home=folder / "home", offline_keys=folder / "offline-keys", **overrides)
    keys = offline_keys(folder)
    if not (settings.home / "metadata").exists():
        init_trust(settings, keys)
    metadata = SignedMetadata.open(settings, release_keys=keys)
    return Home(settings, Registry.open(settings), open_artifacts(settings), metadata, folder)


def make_manifest(
    *, model: str = MODEL, kind: str = "base", parent: int | None = None, base: str = "a", adapter: str = ""
) -> VersionManifest:
    """A manifest whose files exist nowhere; equal letters are equal contents."""
    files = [FileEntry(path="base/model.safetensors", length=10, sha256=base * 64)]
    if adapter:
        files.append(FileEntry(path="adapter/adapter_model.safetensors", length=5, sha256=adapter * 64))
    return VersionManifest.model_validate(
        {
            "model": model,
            "version": (parent or 0) + 1,
            "kind": kind,
            "parent": parent,
            "base_hash": base_hash(files),
            "tree_hash": tree_hash(files),
            "files": files,
            "created_at": "2026-03-01T12:00:00+00:00",
            "facts": {},
        }
    )


def make_package(number: int, source: int | None = None, *, model: str = MODEL, digest: str = "c") -> PackageRecord:
    name = "full" if source is None else f"from-{source}"
    return PackageRecord(
        model=model,
        version=number,
        source_version=source,
        path=f"packages/{model}/{number}/{name}.lmpkg",
        length=3_000_000_000,
        sha256=digest * 64,
        format=3 if source is None else 5,
        facts={"ratio": 0.5},
    )


def release(registry: Registry, number: int, *sources: int, model: str = MODEL) -> VersionRecord:
    """Release a candidate in the registry alone: nothing is built or signed."""
    registry.record_gate(model, number, GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0))
    registry.add_packages(model, number, [make_package(number, source, model=model) for source in (None, *sources)])
    return registry.mark_released(model, number)
