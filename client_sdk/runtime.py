"""Inference from the active slot: keeps an engine open, and opens another when the slots were switched."""

import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from client_sdk.backends import (
    MAX_LOGPROBS,
    Backend,
    BackendModel,
    Ending,
    EngineFacts,
    EngineSettings,
    GenerationRequest,
    Piece,
    TokenLogprob,
    open_backend,
)
from client_sdk.backends.memory import return_freed_memory
from client_sdk.errors import DeviceError, MissingExtraError, NothingInstalledError
from client_sdk.slots import ActiveVersion, SlotStore

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, str]]
"""Plain text to go on from, or chat messages with `role` and `content`."""

VERSION_ADAPTER = "version"
"""Name of the adapter that the active version brings; what answers when no other is asked for."""

_LOAD_ATTEMPTS = 3
_MAX_STOP_TEXTS = 16


class GenerationOptions(TypedDict, total=False):
    """What may be said about an answer.

    Attributes:
        max_new_tokens: the answer ends here at the latest; 128 if not given.
        temperature: 0, which is the default, is greedy and deterministic.
        top_p: nucleus of the sampling; 1 if not given.
        seed: equal seeds give equal answers on the same back end.
        stop: a text, or several, before which the answer ends.
        logprobs: report each token's log-probability and this many rivals (0 to 20); see `Answer.logprobs`.
        adapter: name of an added adapter, None for the base alone; if not given, the version's own.
        json_schema: the answer is JSON of this schema, `{}` for any JSON; needs llama.cpp.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    adapter: str | None
    json_schema: Mapping[str, Any] | None


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
    generation: int
    version: int
    base_hash: str
    backend: Backend
    tokenizer: "Tokenizer"
    has_adapter: bool
    why: str


class Runtime:
    """The engine of one device. Threads may share it: their answers are made side by side."""

    def __init__(
        self, slots: SlotStore, *, derived: Path | None = None, settings: EngineSettings | None = None
    ) -> None:
        """Touches nothing yet.

        Args:
            slots: where versions are.
            derived: folder for files made from a version; without it only torch generates.
            settings: how to run; the defaults suit most devices.
        """
        self._slots = slots
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
            version=loaded.version,
            adapter=_adapter_name(loaded, options),
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
            return len(_encoded(self._current().tokenizer, prompt))

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
            _require_base(name, base_hash, loaded.base_hash)
            loaded.backend.add_adapter(name, folder)
        self._added[name] = (folder, base_hash)

    def version(self) -> int | None:
        """The version whose model is loaded now, or None before the first answer."""
        return self._loaded.version if self._loaded else None

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
            request = _request(loaded, prompt, options)
            if request.max_new_tokens == 0:
                yield _nothing(request)
                return
            yield from loaded.backend.stream(request)

    def _current(self) -> _Loaded:
        with self._lock:
            for _ in range(_LOAD_ATTEMPTS):
                pointer = self._slots.pointer()
                if self._loaded and pointer.confirmed and self._loaded.version == pointer.confirmed.version:
                    return self._loaded
                self._loaded = None  # two models at once would double the memory
                loaded = self._load(pointer.generation)
                # A slot may be switched twice, and so refilled, while it is being read.
                if self._slots.pointer().generation == pointer.generation:
                    self._loaded = loaded
                    return loaded
        raise DeviceError("The slots were switched again and again while loading the model; try again.")

    def _load(self, generation: int) -> _Loaded:
        from model.tokenizer import Tokenizer  # noqa: PLC0415 - no torch in it, but only those who generate need it

        active = self._slots.active()
        if active is None:
            raise NothingInstalledError("No version is installed yet. Run `lamella-device update` first.")
        has_adapter = (active.tree / "adapter").is_dir()
        tokenizer = Tokenizer.from_folder(active.tree / "base")
        return_freed_memory()
        backend, why = open_backend(self._model(active, tokenizer, has_adapter=has_adapter), self._settings)
        manifest = active.manifest
        return _Loaded(generation, manifest.version, manifest.base_hash, backend, tokenizer, has_adapter, why)

    def _model(self, active: ActiveVersion, tokenizer: "Tokenizer", *, has_adapter: bool) -> BackendModel:
        base_hash = active.manifest.base_hash
        # An adapter of an earlier base is left out; asking for it says so.
        adapters = {name: folder for name, (folder, made_for) in self._added.items() if made_for == base_hash}
        if has_adapter:
            adapters[VERSION_ADAPTER] = active.tree / "adapter"
        return BackendModel(active.tree / "base", base_hash, self._derived, adapters, tokenizer.stop_ids)

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


def _request(loaded: _Loaded, prompt: Prompt, options: GenerationOptions) -> GenerationRequest:
    """Parse what was asked for.

    Raises:
        ValueError: an option out of range.
    """
    known = GenerationOptions.__annotations__
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown options {unknown}; there are {', '.join(known)}")
    stop = options.get("stop", ())
    request = GenerationRequest(
        token_ids=tuple(_encoded(loaded.tokenizer, prompt)),
        max_new_tokens=options.get("max_new_tokens", 128),
        temperature=options.get("temperature", 0.0),
        top_p=options.get("top_p", 1.0),
        seed=options.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_ids=loaded.tokenizer.stop_ids,
        logprobs=options.get("logprobs"),
        adapter=_adapter_name(loaded, options),
        json_schema=options.get("json_schema"),
    )
    _check(request)
    return request


def _check(request: GenerationRequest) -> None:
    if not request.token_ids:
        raise ValueError("the prompt has no tokens; give at least one")
    if request.max_new_tokens < 0 or request.temperature < 0.0 or not 0.0 < request.top_p <= 1.0:
        raise ValueError(
            f"max_new_tokens={request.max_new_tokens} and temperature={request.temperature} must not be negative, "
            f"top_p={request.top_p} must be in (0, 1]"
        )
    if not all(request.stop) or len(request.stop) > _MAX_STOP_TEXTS:
        raise ValueError(f"stop takes at most {_MAX_STOP_TEXTS} texts, none of them empty")
    if request.logprobs is not None and not 0 <= request.logprobs <= MAX_LOGPROBS:
        raise ValueError(f"logprobs={request.logprobs} must be in 0..{MAX_LOGPROBS}")


def _adapter_name(loaded: _Loaded, options: GenerationOptions) -> str | None:
    if "adapter" in options:
        return options["adapter"]
    return VERSION_ADAPTER if loaded.has_adapter else None


def _require_base(name: str, made_for: str, installed: str) -> None:
    if made_for != installed:
        raise DeviceError(
            f"The adapter {name!r} was made for the base {made_for[:12]}, this device runs {installed[:12]}. Take the "
            "adapter that was made for it."
        )


def _encoded(tokenizer: "Tokenizer", prompt: Prompt) -> list[int]:
    text = prompt if isinstance(prompt, str) else tokenizer.apply_chat(prompt, add_generation_prompt=True)
    return tokenizer.encode(text)


def _nothing(request: GenerationRequest) -> Piece:
    prompt_tokens = len(request.token_ids)
    ending = Ending(
        reason="length", prompt_tokens=prompt_tokens, cached_tokens=0, new_tokens=0, first_token_s=0.0, decode_s=0.0
    )
    return Piece("", ending=ending)
