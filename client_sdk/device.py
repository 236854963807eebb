"""The one door for an application: enrol, check, update, generate, train, status."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from client_sdk.backends import EngineFacts, EngineSettings, likely_backend
from client_sdk.conditions import Conditions, ConditionsSource, system_conditions
from client_sdk.crash_guard import CrashGuard
from client_sdk.device_config import DeviceConfig, DownloadPolicy
from client_sdk.disk import Disk, LocalDisk
from client_sdk.download import Fetcher, HttpFetcher, MirroredFetcher, Progress
from client_sdk.enrolment import enrol, read_enrolment
from client_sdk.errors import DeclinedError, DeviceError, EnrolmentError, MissingExtraError, NothingInstalledError
from client_sdk.generation import GenerationOptions, Prompt
from client_sdk.identity import Identity
from client_sdk.key_ring import KeyRing
from client_sdk.metadata import SignedCatalogue
from client_sdk.offers import OfferFinder
from client_sdk.pace import Clock, Limits
from client_sdk.reports import Reporter
from client_sdk.runtime import Answer, Runtime
from client_sdk.self_test_process import SelfTestProcess
from client_sdk.service import UpdateService
from client_sdk.session import ChatSession
from client_sdk.slot_filler import SlotFiller
from client_sdk.slots import ActiveVersion, SlotStore
from client_sdk.state import StateFile
from client_sdk.transport import Transport, checked_server_url
from client_sdk.update_result import UpdateResult
from client_sdk.updater import SelfTest, Updater
from delta_updates import Offer

if TYPE_CHECKING:
    from client_sdk.local_training import AdapterArrays
    from privacy import Contribution, RoundInstructions

_logger = logging.getLogger(__name__)
_MAX_ENROLMENT_BYTES = 1 << 20
_MAX_CREDENTIAL_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """What a person wants to know about a device; contains no secret."""

    device_id: str
    name: str
    model: str
    server_url: str
    version: int | None
    kind: str | None
    tree_hash: str | None
    base_hash: str | None
    in_test: int | None
    highest_version: int
    failed_versions: tuple[int, ...]
    reports_waiting: int
    last_check_at: str | None
    last_decision: str
    backend: str


class Device:
    """One device, whose whole memory is the folder `home`.

    Examples:
        >>> device = Device(Path("~/.lamella/device").expanduser())
        >>> device.enroll(Path("enrolment.json"), name="kitchen")
        >>> device.update().decision
        'confirmed'
        >>> device.generate([{"role": "user", "content": "Hello!"}])
        'Hi there! How are you?'
    """

    def __init__(  # noqa: PLR0913 - each is a choice of its own, and all but the first go by name
        self,
        home: Path,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        test_version: SelfTest | None = None,
        engine: EngineSettings | None = None,
        conditions: ConditionsSource = system_conditions,
        max_epsilon: float | None = None,
        require_secure_aggregation: bool = False,
    ) -> None:
        """Open a device's folder; touches nothing yet.

        Args:
            home: the device's folder; `enroll` makes it.
            limits: how long and how often the server is bothered; what `device.toml` says unless given.
            clock: time for waits and deadlines of the network.
            disk: where durable changes go through.
            test_version: the self-test of a new version; in a process of its own unless given.
            engine: which back end runs models, and how; the fastest that is installed unless said otherwise.
            conditions: tells the battery and whether the connection is metered, for the download policy.
            max_epsilon: releases whose signed privacy statement says more, or that have none, are refused. The stricter
                of this and what `device.toml` says holds.
            require_secure_aggregation: train only where this device's update is seen in a sum alone; so does
                `device.toml`, for whoever opens the home.
        """
        self.home = home.expanduser().absolute()
        self._limits = limits
        self._clock = clock
        self._disk = disk or LocalDisk()
        self._conditions = conditions
        self._max_epsilon = max_epsilon
        self._require_secure_aggregation = require_secure_aggregation
        self._states = StateFile(self.home, self._disk)
        self._slots = SlotStore(self.home / "slots", self._disk)
        self._engine = engine or EngineSettings()
        self._test_version = test_version or SelfTestProcess(self.home, self._slots)
        guard = CrashGuard(self.home, self._states, self._slots, self._disk)
        self._runtime = Runtime(self._slots, derived=self.home / "engine", settings=self._engine, guard=guard)

    # --- enrol

    def enroll(self, enrolment_file: Path, *, name: str = "device", allow_http: bool = False) -> DeviceStatus:
        """Become a device of the server that the enrolment file names.

        The file comes from the operator out of band: it pins the root of trust and carries a one-time token.

        Args:
            enrolment_file: JSON as `lamella devices invite` writes it.
            name: what the operator sees this device as.
            allow_http: accept plain http to another machine (a private container network). Remembered.

        Raises:
            EnrolmentError: the file is not valid, or this home is already enrolled.
            ServiceUnavailableError, ServiceRefusedError: the server is away, or does not take the token.
            DeviceDiskError: this disk.
        """
        enrolment = read_enrolment(enrolment_file)
        transport = self._transport_to(
            checked_server_url(enrolment.server_url, allow_http=allow_http), allow_http=allow_http
        )
        enrol(
            self.home,
            enrolment,
            name=name,
            transport=transport,
            allow_http=allow_http,
            states=self._states,
            slots=self._slots,
            disk=self._disk,
        )
        return self.status()

    # --- update

    def check(self) -> Offer | None:
        """Ask whether there is an update; what is returned was verified against the signed metadata.

        Raises:
            DeviceError: see `client_sdk.errors`.
        """
        return self._updater().check()

    def update(
        self, *, on_progress: Progress = lambda _done, _total: None, ignore_policy: bool = False
    ) -> UpdateResult:
        """Bring this device to the version it is offered; the old one serves until the new one passed its self-test.

        Other threads may generate meanwhile. What they ask for after this has returned is answered by the new version.

        Args:
            on_progress: called with the bytes that are here and the packages' length, while downloading.
            ignore_policy: download now, whatever `device.toml` says about battery and metered connections.

        Raises:
            DeviceError: see `client_sdk.errors`; the old version serves on.
        """
        return self._refreshed(self._updater(ignore_policy=ignore_policy).update(on_progress=on_progress))

    def repair(self, *, on_progress: Progress = lambda _done, _total: None) -> UpdateResult:
        """Hash the installed version and, where a file is damaged, bring a whole version from the server in its place.

        Returns:
            `up_to_date` when nothing was damaged, else as `update`.

        Raises:
            DeviceDiskError: damaged, and the server has nothing to repair it with.
            DeviceError: see `client_sdk.errors`.
        """
        return self._refreshed(self._updater().repair(on_progress=on_progress))

    def rotate_key(self) -> None:
        """Replace the key that this device signs its requests with; the service forgets the old one.

        Raises:
            EnrolmentError: not enrolled, or the service is of a release that knows no keys.
            DeviceError: see `client_sdk.errors`; the old key works on, and the next contact goes on from there.
        """
        state = self._states.load()
        ring = KeyRing(self.home, state.device_id, self._disk)
        transport = self._transport_to(state.server_url, allow_http=state.allow_http, identity=ring.identity())
        if not ring.renew(transport):
            raise EnrolmentError(f"{state.server_url} knows no keys of devices yet; its operator has to update it.")

    def config(self) -> DeviceConfig:
        """What `device.toml` in the home says, with the defaults of all it does not say.

        Raises:
            ConfigurationError: it cannot be read or says what cannot be.
        """
        return DeviceConfig.read(self.home)

    # --- run

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> str:
        """The active version's answer as a whole; see `stream`."""
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """The active version's answer, piece by piece, while it is made.

        The model stays loaded between calls and is loaded again after an update, also one by another process. Threads
        may ask at the same time.

        Args:
            prompt: plain text to go on from, or chat messages.
            options: as in `GenerationOptions`: max_new_tokens, temperature, top_p, seed, stop, adapter, json_schema.

        Raises:
            NothingInstalledError: update first.
            DeviceError: this model cannot answer this prompt; the message says why.
        """
        return self._runtime.stream(prompt, **options)

    def answer(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Answer:
        """The active version's answer with what `logprobs` asks for, how it ended, and which engine made it."""
        return self._runtime.answer(prompt, **options)

    def chat(self, *, system: str | None = None) -> ChatSession:
        """Begin a conversation that remembers its turns.

        Args:
            system: what the model is told before the first turn.
        """
        return ChatSession(self._runtime, system=system)

    def add_adapter(self, name: str, folder: Path, *, base_hash: str) -> None:
        """Let requests choose another adapter (`adapter=name`) without loading the base again.

        Args:
            name: what requests say.
            folder: an adapter in PEFT's layout.
            base_hash: the base it was trained on, which must be the active version's (`status().base_hash`).

        Raises:
            NothingInstalledError: update first.
            DeviceError: another base, a damaged adapter, or one that changes nothing.
        """
        self._runtime.add_adapter(name, folder, base_hash=base_hash)

    def load(self) -> EngineFacts:
        """Open the engine now rather than at the first answer; says which it is.

        Raises:
            NothingInstalledError: update first.
            DeviceError: it cannot be opened; the message says why.
        """
        return self._runtime.load()

    def running_version(self) -> int | None:
        """The version whose model is in memory, or None before the first answer."""
        return self._runtime.version()

    def engine(self) -> EngineFacts | None:
        """The engine that is open, or None before the first answer."""
        return self._runtime.facts()

    # --- train

    def train(
        self, instructions: "RoundInstructions", adapter: "AdapterArrays", *, data: str = ""
    ) -> "tuple[Contribution, AdapterArrays]":
        """Train one federated round on this device's own examples; see `client_sdk.local_training.train_round`.

        A device that joins a federation needs no call of this: Flower calls it (`lamella-device train`).

        Args:
            instructions: what the server asks for.
            adapter: the adapter of this round, float32, by the names of `model.adapter_state_dict`.
            data: a source of `model.open_source`; empty is the folder `data` in this device's home.

        Returns:
            The facts and the update that may leave this device.

        Raises:
            MissingExtraError: this install cannot train.
            NothingInstalledError: update first.
            DeclinedError: another base, no examples, or the privacy budget does not allow it; or this device takes part
                in secure sums only: what is returned here is an update by itself.
        """
        if self.requires_secure_aggregation():
            raise DeclinedError(
                "this device shows its update in secure sums only (`require_secure_aggregation`), and this call would "
                "give it alone; join the federation with `lamella-device train`"
            )
        try:
            from client_sdk import local_training  # noqa: PLC0415 - updating and generating must not import Opacus
        except ImportError as error:
            raise MissingExtraError(f"Training needs `pip install lamella[federated]` ({error}).") from error
        site = local_training.TrainingSite(
            home=self.home, tree=self.active().tree, data=data or f"jsonl:{self.home / 'data'}"
        )
        return local_training.train_round(site, instructions, adapter)

    def requires_secure_aggregation(self) -> bool:
        """Whether this device declines every round that would show its update alone; its owner says so.

        Raises:
            ConfigurationError: `device.toml` cannot be read.
        """
        return self._require_secure_aggregation or self.config().training.require_secure_aggregation

    # --- look

    def active(self) -> ActiveVersion:
        """The version that serves: its tree and its manifest.

        Raises:
            NothingInstalledError: nothing (whole) is installed.
        """
        active = self._slots.active()
        if active is None:
            raise NothingInstalledError("No version is installed yet. Run `lamella-device update` first.")
        return active

    def status(self) -> DeviceStatus:
        """Who this device is, what it runs, and what it decided last.

        Raises:
            EnrolmentError: not enrolled yet.
            DeviceDiskError: this disk.
        """
        state, pointer, active = self._states.load(), self._slots.pointer(), self._slots.active()
        manifest = active.manifest if active else None
        return DeviceStatus(
            device_id=state.device_id,
            name=state.name,
            model=state.model,
            server_url=state.server_url,
            version=manifest.version if manifest else None,
            kind=manifest.kind if manifest else None,
            tree_hash=manifest.tree_hash if manifest else None,
            base_hash=manifest.base_hash if manifest else None,
            in_test=pointer.test.record.version if pointer.test else None,
            highest_version=max(state.highest_version, pointer.highest_version),
            failed_versions=tuple(failed.version for failed in state.failed),
            reports_waiting=len(state.outbox),
            last_check_at=state.last_check_at,
            last_decision=state.last_decision,
            backend=facts.backend if (facts := self._runtime.facts()) else likely_backend(self._engine),
        )

    # --- the parts

    def _refreshed(self, result: UpdateResult) -> UpdateResult:
        """The result, after an open model was changed for the new version."""
        if result.decision == "confirmed":
            try:
                self._runtime.refresh()
            except DeviceError as error:
                # Not the update's failure; whoever generates next is told.
                _logger.warning("v%s cannot be opened: %s", result.to_version, error)
        return result

    def _updater(self, *, ignore_policy: bool = False) -> Updater:
        state, config = self._states.load(), self.config()
        ring = KeyRing(self.home, state.device_id, self._disk)
        transport = self._transport_to(state.server_url, allow_http=state.allow_http, identity=ring.identity())
        if ring.is_under_way:
            ring.finish(transport)
        service = UpdateService(transport, memory=self.home / "nothing-new")
        reporter = Reporter(self._states, service, config.reports)
        catalogue = SignedCatalogue(self.home / "trust", transport, self._disk)
        filler = SlotFiller(
            home=self.home,
            slots=self._slots,
            fetcher=self._fetcher(transport, config.download, allow_http=state.allow_http),
            reporter=reporter,
            disk=self._disk,
            policy=config.download,
            conditions=Conditions if ignore_policy else self._conditions,
        )
        return Updater(
            home=self.home,
            states=self._states,
            slots=self._slots,
            finder=OfferFinder(
                states=self._states,
                slots=self._slots,
                service=service,
                transport=transport,
                ring=ring,
                catalogue=catalogue,
                reporter=reporter,
                free_bytes=filler.free_bytes,
                max_epsilon=config.releases.limit(self._max_epsilon),
            ),
            filler=filler,
            reporter=reporter,
            self_test=self._test_version,
        )

    def _fetcher(self, transport: Transport, policy: DownloadPolicy, *, allow_http: bool) -> Fetcher:
        service = HttpFetcher(transport, self._disk)
        mirrors = [
            HttpFetcher(self._transport_to(str(url).rstrip("/"), allow_http=allow_http), self._disk, prefix="/")
            for url in policy.mirrors
        ]
        return MirroredFetcher(mirrors, service, self._disk) if mirrors else service

    def _transport_to(self, server_url: str, *, allow_http: bool, identity: Identity | None = None) -> Transport:
        policy = self.config().download
        limits = self._limits or Limits(
            min_rate_bytes_per_s=policy.min_rate_bytes_per_s,
            rate_window_s=policy.rate_window_s,
            download_deadline_s=policy.deadline_s,
        )
        return Transport(server_url, identity=identity, allow_http=allow_http, limits=limits, clock=self._clock)
