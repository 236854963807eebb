"""How fast this machine generates with a checkpoint, at each precision, beside what its memory could give."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from model.inference.decoder import PackedDecoder
from model.inference.engine import Engine
from model.inference.sequence import Sampling

if TYPE_CHECKING:
    from pathlib import Path

    from model.inference.linears import Precision

_REPEATS: Final = 3
_BUFFER_BYTES: Final = 256 * 1024 * 1024  # larger than any processor's cache


@dataclass(frozen=True, kw_only=True)
class DecodingSpeed:
    """The best of three answers on this machine.

    Attributes:
        precision: What the weights were packed in.
        threads: With how many threads.
        weight_bytes: Bytes of the packed weights, which each new token reads once.
        first_token_s: From the prompt to the first token.
        prefill_tokens_per_s: Prompt tokens over that time.
        decode_tokens_per_s: New tokens a second after the first.
    """

    precision: str
    threads: int
    weight_bytes: int
    first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float

    def bandwidth_share(self, bytes_per_s: float) -> float:
        """Bytes of weights read a second while decoding, as a share of what memory gives."""
        return self.weight_bytes * self.decode_tokens_per_s / bytes_per_s


def measure_decoding(
    folder: Path, *, precision: Precision, prompt_tokens: int = 128, new_tokens: int = 32
) -> DecodingSpeed:
    """Greedy answers to a prompt of `prompt_tokens` (fewer where the context is short), without any reuse.

    Raises:
        ModelError: The checkpoint does not load.
    """
    decoder = PackedDecoder.from_folder(folder, precision=precision)
    config = decoder.config
    count = max(1, min(prompt_tokens, config.max_context - new_tokens - 1))
    best_first, best_step = float("inf"), float("inf")
    for repeat in range(_REPEATS):
        engine = Engine(decoder)  # a new one: it has no beginning of the prompt to reuse
        # Spread over the vocabulary, so that guessing ahead finds nothing.
        prompt = [(7919 * index + 11 + repeat) % config.vocab_size for index in range(count)]
        begin = time.perf_counter()
        sampling = Sampling(max_new_tokens=new_tokens, is_lookup_on=False)
        times = [time.perf_counter() for _ in engine.tokens(engine.start(prompt, sampling))]
        best_first = min(best_first, times[0] - begin)
        if len(times) > 1:
            best_step = min(best_step, (times[-1] - times[0]) / (len(times) - 1))
    return DecodingSpeed(
        precision=precision,
        threads=torch.get_num_threads(),
        weight_bytes=decoder.num_bytes,
        first_token_s=best_first,
        prefill_tokens_per_s=count / best_first,
        decode_tokens_per_s=1 / best_step,
    )


def read_bandwidth() -> float:
    """Bytes a second that this machine reads from memory, with torch's threads; the best of a few sweeps."""
    buffer = torch.ones(_BUFFER_BYTES // 8, dtype=torch.int64)
    best = float("inf")
    for _ in range(_REPEATS + 2):
        begin = time.perf_counter()
        buffer.sum()
        best = min(best, time.perf_counter() - begin)
    return _BUFFER_BYTES / best
