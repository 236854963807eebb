"""Inference from the active slot: keeps the model loaded, and loads again when the slots were switched."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from client_sdk.errors import DeviceError, MissingExtraError, NothingInstalledError
from client_sdk.slots import SlotStore

if TYPE_CHECKING:
    from model import LoadedModel

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LOAD_ATTEMPTS = 3


class _Loaded(NamedTuple):
    generation: int
    version: int
    model: "LoadedModel"


class Runtime:
    """The loaded model of one device. Threads may share it; answers are made one at a time."""

    def __init__(self, slots: SlotStore) -> None:
        self._slots = slots
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int | None,
    ) -> Iterator[str]:
        """Yield the answer's text piece by piece.

        Args:
            prompt: plain text to go on from, or chat messages (`role`, `content`).
            max_new_tokens: the answer ends here at the latest.
            temperature: 0 is greedy and deterministic.
            top_p: nucleus of the sampling.
            seed: equal seeds give equal answers.

        Raises:
            NothingInstalledError: nothing (whole) is installed.
            DeviceError: the prompt cannot be answered by this model; the message says why.
        """
        with self._lock, model_errors():
            from model import generate  # noqa: PLC0415 - torch is only paid for by those who generate

            loaded = self._current().model
            tokenizer = loaded.tokenizer
            text = prompt if isinstance(prompt, str) else tokenizer.apply_chat(prompt, add_generation_prompt=True)
            tokens = generate(
                loaded.model,
                tokenizer.encode(text),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                stop_ids=tokenizer.stop_ids,
                seed=seed,
            )
            yield from _pieces(tokens, loaded)

    def version(self) -> int | None:
        """The version whose model is loaded now, or None before the first answer."""
        return self._loaded.version if self._loaded else None

    def _current(self) -> _Loaded:
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
        from model import load_version  # noqa: PLC0415 - as above

        active = self._slots.active()
        if active is None:
            raise NothingInstalledError("No version is installed yet. Run `lamella-device update` first.")
        return _Loaded(generation, active.manifest.version, load_version(active.tree))


@contextmanager
def model_errors() -> Iterator[None]:
    """Turn the model's own errors, and a missing torch, into this package's."""
    try:
        import model  # noqa: PLC0415 - as above
    except ImportError as error:
        raise MissingExtraError(f"Running a model needs `pip install lamella[device]` ({error}).") from error
    try:
        yield
    except (model.ModelError, ValueError) as error:
        raise DeviceError(f"The model cannot do this: {error}") from error


def _pieces(tokens: Iterator[int], loaded: "LoadedModel") -> Iterator[str]:
    """Text as it becomes certain: a character may need several tokens, and a space may depend on what precedes it."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = loaded.tokenizer.decode(ids)
        if not text.endswith(_REPLACEMENT) and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    rest = loaded.tokenizer.decode(ids)
    if len(rest) > len(shown):
        yield rest[len(shown) :]
