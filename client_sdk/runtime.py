"""Inference from the active slot: keeps an engine open, and changes it when the slots were switched.

A new adapter on the same base is made ready beside the running engine and taken between two requests, so that nobody
waits for it. Another base is opened by the next request: two bases at once would double the memory.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack

from client_sdk.backends import (
    Backend,
    BackendModel,
    Ending,
    EngineFacts,
    EngineSettings,
    Piece,
    TokenLogprob,
    open_backend,
)
from client_sdk.backends.memory import return_freed_memory
from client_sdk.crash_guard import CrashGuard
from client_sdk.errors import DeviceError, MissingExtraError, NothingInstalledError
from client_sdk.generation import (
    VERSION_ADAPTER,
    GenerationOptions,
    Prompt,
    adapter_name,
    empty_answer,
    encode_prompt,
    parse_request,
)
from client_sdk.slots import ActiveVersion, SlotRecord, SlotStore

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

_LOAD_ATTEMPTS = 3
_SWAP_PATIENCE_S = 0.03
"""How long the request that finds a new adapter waits for it, before the old version answers it, and all others."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer, and what made it."""

    text: str
    ending: Ending
    version: int
    adapter: str | None
    engine: EngineFacts
    seconds: float
    logprobs: tuple[TokenLogprob, ...] = ()


class _Loaded(NamedTuple):
    record: SlotRecord
    backend: Backend
    tokenizer: "Tokenizer"
    has_adapter: bool
    why: str


class Runtime:
    """The engine of one device. Threads may share it: their answers are made side by side."""

    def __init__(
        self,
        slots: SlotStore,
        *,
        derived: Path | None = None,
        settings: EngineSettings | None = None,
        guard: CrashGuard | None = None,
    ) -> None:
        """Touches nothing yet.

        Args:
            slots: where versions are.
            derived: folder for files made from a version; without it only torch generates.
            settings: how to run; the defaults suit most devices.
            guard: counts starts, and leaves a version that crashes the application.
        """
        self._slots = slots
        self._guard = guard
        self._swap: threading.Thread | None = None
        self._given_up: SlotRecord | None = None
        self._derived = derived
        self._settings = settings or EngineSettings()
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._added: dict[str, tuple[Path, str]] = {}

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """Yield the answer's text piece by piece.

        Raises:
            NothingInstalledError: nothing (whole) is installed.
            DeviceError: the prompt cannot be answered by this model; the message says why.
        """
        for piece in self.pieces(prompt, **options):
            if piece.text:
                yield piece.text

    def answer(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Answer:
        """The whole answer, with log-probabilities if they are asked for, how it ended and what made it."""
        started = time.monotonic()
        with model_errors():
            loaded = self._current()
        pieces = list(self._pieces(loaded, prompt, options))
        ending = pieces[-1].ending
        if ending is None:  # pragma: no cover - every engine ends with one
            raise DeviceError("The engine stopped without an ending; try again.")
        return Answer(
            text="".join(piece.text for piece in pieces),
            ending=ending,
            version=loaded.record.version,
            adapter=adapter_name(options, has_adapter=loaded.has_adapter),
            engine=self._facts(loaded),
            seconds=time.monotonic() - started,
            logprobs=tuple(token for piece in pieces for token in piece.logprobs),
        )

    def pieces(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Iterator[Piece]:
        """As `stream`, with the tokens' log-probabilities, and how it ended in the last piece."""
        with model_errors():
            loaded = self._current()
        yield from self._pieces(loaded, prompt, options)

    def count_tokens(self, prompt: Prompt) -> int:
        """Tokens of a prompt as the active version reads it."""
        with model_errors():
            return len(encode_prompt(self._current().tokenizer, prompt))

    def add_adapter(self, name: str, folder: Path, *, base_hash: str) -> None:
        """Let requests ask for another adapter by name; the base stays loaded.

        Args:
            name: what `adapter` in the options says.
            folder: an adapter in PEFT's layout.
            base_hash: the base it was trained on; it must be the active version's.

        Raises:
            NothingInstalledError: nothing (whole) is installed.
            DeviceError: another base, a damaged adapter, or one that changes nothing.
        """
        if not name or name == VERSION_ADAPTER:
            raise DeviceError(f"{name!r} cannot be the name of an added adapter; choose another.")
        with model_errors():
            loaded = self._current()
            _require_base(name, base_hash, loaded.record.base_hash)
            loaded.backend.add_adapter(name, folder)
        self._added[name] = (folder, base_hash)

    def version(self) -> int | None:
        """The version whose model is loaded now, or None before the first answer."""
        return self._loaded.record.version if self._loaded else None

    def facts(self) -> EngineFacts | None:
        """The engine that is open now, or None before the first answer."""
        return self._facts(self._loaded) if self._loaded else None

    def load(self) -> EngineFacts:
        """Open the engine now rather than at the first answer.

        Raises:
            NothingInstalledError: nothing (whole) is installed.
            DeviceError: it cannot be opened; the message says why.
        """
        with model_errors():
            return self._facts(self._current())

    def _pieces(self, loaded: _Loaded, prompt: Prompt, options: GenerationOptions) -> Iterator[Piece]:
        with model_errors():
            request = parse_request(loaded.tokenizer, prompt, options, has_adapter=loaded.has_adapter)
            if request.max_new_tokens == 0:
                yield empty_answer(request)
                return
            for piece in loaded.backend.stream(request):
                if piece.ending and self._guard:
                    self._guard.answered(loaded.record)
                yield piece

    def refresh(self) -> None:
        """Take a version that was confirmed meanwhile now rather than at the next request, if a model is open at all.

        Requests are answered by the old version until the new one is ready.

        Raises:
            DeviceError: the new version cannot be opened; the message says why.
        """
        if self._loaded is None:
            return
        with model_errors():
            self._current()
            if swap := self._swap:
                swap.join()

    def _current(self) -> _Loaded:
        with self._lock:
            loaded, confirmed = self._loaded, self._slots.pointer().confirmed
            if loaded is None or confirmed is None or loaded.record.base_hash != confirmed.base_hash:
                return self._reload()
            if confirmed in {loaded.record, self._given_up}:
                return loaded
            if self._swap is not None:
                return loaded
            self._swap = swap = threading.Thread(target=self._renew, args=(loaded,), name="lamella-swap", daemon=True)
            swap.start()
        swap.join(_SWAP_PATIENCE_S)
        return self._loaded or loaded

    def _reload(self) -> _Loaded:
        """Open what serves from nothing."""
        self._loaded = None  # two models at once would double the memory
        if self._guard and (confirmed := self._slots.pointer().confirmed):
            self._guard.start(confirmed)
        for _ in range(_LOAD_ATTEMPTS):
            generation = self._slots.pointer().generation
            loaded = self._load()
            # A slot may be switched twice, and so refilled, while it is being read.
            if self._slots.pointer().generation == generation:
                self._loaded = loaded
                return loaded
        raise DeviceError("The slots were switched again and again while loading the model; try again.")

    def _renew(self, old: _Loaded) -> None:
        """Make the confirmed version ready beside the running one of the same base, and take its place."""
        pointer = self._slots.pointer()
        confirmed = pointer.confirmed
        try:
            if confirmed is None or confirmed.base_hash != old.record.base_hash:
                return
            if self._guard:
                self._guard.start(confirmed)
            active = self._slots.active()
            if active is None:
                return
            has_adapter = (active.tree / "adapter").is_dir()
            backend = old.backend.renewed(self._adapters(active, has_adapter=has_adapter))
            if self._slots.pointer().generation == pointer.generation:
                # The old engine goes with the last answer that it still makes.
                self._loaded = old._replace(record=confirmed, backend=backend, has_adapter=has_adapter)
        except Exception as error:  # noqa: BLE001 - whatever it is, the old version answers on
            self._given_up = confirmed
            _logger.warning("the new version cannot be opened (%s); the old one answers on", error)
        finally:
            self._swap = None

    def _load(self) -> _Loaded:
        from model.tokenizer import Tokenizer  # noqa: PLC0415 - no torch in it, but only those who generate need it

        record = self._slots.pointer().confirmed
        active = self._slots.active()
        if active is None or record is None:
            raise NothingInstalledError("No version is installed yet. Run `lamella-device update` first.")
        has_adapter = (active.tree / "adapter").is_dir()
        tokenizer = Tokenizer.from_folder(active.tree / "base")
        return_freed_memory()
        backend, why = open_backend(self._model(active, tokenizer, has_adapter=has_adapter), self._settings)
        return _Loaded(record, backend, tokenizer, has_adapter, why)

    def _adapters(self, active: ActiveVersion, *, has_adapter: bool) -> dict[str, Path]:
        # An adapter of an earlier base is left out; asking for it says so.
        base_hash = active.manifest.base_hash
        adapters = {name: folder for name, (folder, made_for) in self._added.items() if made_for == base_hash}
        if has_adapter:
            adapters[VERSION_ADAPTER] = active.tree / "adapter"
        return adapters

    def _model(self, active: ActiveVersion, tokenizer: "Tokenizer", *, has_adapter: bool) -> BackendModel:
        adapters = self._adapters(active, has_adapter=has_adapter)
        return BackendModel(
            active.tree / "base", active.manifest.base_hash, self._derived, adapters, tokenizer.stop_ids
        )

    @staticmethod
    def _facts(loaded: _Loaded) -> EngineFacts:
        return dataclasses.replace(loaded.backend.facts(), why=loaded.why)


@contextmanager
def model_errors() -> Iterator[None]:
    """Turn the model's own errors, and a missing part of the installation, into this package's."""
    try:
        from model.errors import ModelError  # noqa: PLC0415 - as above
    except ImportError as error:
        raise MissingExtraError(f"Running a model needs `pip install lamella[device]` ({error}).") from error
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(f"Running a model needs `pip install lamella[device]` ({error}).") from error
    except (ModelError, ValueError) as error:
        raise DeviceError(f"The model cannot do this: {error}") from error


def _require_base(name: str, made_for: str, installed: str) -> None:
    if made_for != installed:
        raise DeviceError(
            f"The adapter {name!r} was made for the base {made_for[:12]}, this device runs {installed[:12]}. Take the "
            "adapter that was made for it."
        )
