"""What every back end does for the runtime: token ids in, pieces of text out. No torch, no llama.cpp in this file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

BackendName = Literal["torch", "llamacpp"]
BackendChoice = Literal["auto", "torch", "llamacpp"]
CacheDtype = Literal["auto", "float32", "float16", "int8"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"]
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How a device runs its models; the defaults suit a device that does other things as well.

    Attributes:
        backend: `auto` takes the fastest that is installed and can run the model.
        precision: of the weights; `auto` is int8, or float32 where the model fits into the processor's cache.
        cache_dtype: of keys and values; `auto` is float16 on llama.cpp and float32 on torch.
        context: most tokens of a conversation; None is what the model was made for.
        window: attend over this many tokens only, and let a text grow beyond the context; torch only.
        threads: None adapts to the load of the machine, and is decided anew between answers.
        max_batch: most answers that are made side by side.
        cache_bytes: most memory for keys and values, of running and remembered texts together.
        is_lookup_on: guess repeated text ahead (prompt lookup); changes the speed, not the answers' distribution.
    """

    backend: BackendChoice = "auto"
    precision: Precision = "auto"
    cache_dtype: CacheDtype = "auto"
    context: int | None = None
    window: int | None = None
    threads: int | None = None
    max_batch: int = 8
    cache_bytes: int = 512 * 1024 * 1024
    is_lookup_on: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer to make.

    Attributes:
        token_ids: the prompt; at least one.
        max_new_tokens: the answer ends here at the latest.
        temperature: 0 is greedy.
        top_p: nucleus of the sampling.
        seed: equal seeds give equal answers on the same back end; None draws a fresh one.
        stop: the answer ends before the first of these texts.
        stop_ids: the answer ends at any of these tokens.
        logprobs: report each token's log-probability and those of this many likeliest tokens; None reports nothing.
        adapter: name of an adapter that was added to the back end; None is the base alone.
        json_schema: the answer is JSON of this schema; `{}` is any JSON.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    adapter: str | None = None
    json_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One new token: its text alone, its natural log-probability before temperature, and its likeliest rivals."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer ended, and what it took."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    first_token_s: float
    decode_s: float
    guessed_tokens: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens a second after the first one."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else None


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is certain, the tokens it came with where they were asked for, and the ending in the last piece."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    ending: Ending | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Which engine runs, and how."""

    backend: BackendName
    precision: str
    cache_dtype: str
    threads: int
    context: int
    weight_bytes: int
    adapters: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class BackendModel:
    """What a back end is opened on.

    Attributes:
        base: folder of the checkpoint.
        base_hash: names its content; derived files are kept under it.
        derived: folder in the device's home for files made from the base; None where there is none.
        adapters: folders of adapters by name.
        stop_ids: the tokenizer's tokens that end an answer.
    """

    base: Path
    base_hash: str
    derived: Path | None
    adapters: Mapping[str, Path] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()


class Backend(Protocol):
    """An open engine with one base. Threads may share it."""

    def stream(self, request: GenerationRequest) -> Iterator[Piece]:
        """Make one answer; closing the iterator stops it.

        Raises:
            DeviceError: this request cannot be answered; the message says why.
        """
        ...

    def add_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter known; it must fit the base and change what it answers.

        Raises:
            DeviceError: it does not.
        """
        ...

    def renewed(self, adapters: Mapping[str, Path]) -> "Backend":
        """The same base with these adapters instead. This one answers on until it is closed.

        Raises:
            DeviceError: an adapter does not fit; nothing was changed.
            model.ModelError: as above, where it is damaged.
        """
        ...

    def facts(self) -> EngineFacts:
        """Which engine this is, as it runs now."""
        ...

    def close(self) -> None:
        """Give the memory back; running answers end."""
        ...
