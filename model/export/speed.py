"""How fast this machine runs a model before and after conversion; what it cannot run is not measured."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

_PROMPT_TOKENS: Final = 128
_NEW_TOKENS: Final = 32
_REPEATS: Final = 3


@dataclass(frozen=True)
class Speed:
    """The best of a few runs on this machine.

    Attributes:
        engine: What ran it.
        threads: With how many threads.
        prefill_tokens_per_s: Reading a prompt of 128 tokens, or what the context holds.
        decode_tokens_per_s: Generating one token after the other.
    """

    engine: str
    threads: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


def measure_torch(tree: Path) -> Speed:
    """This package's own model in float32, as `generate` runs it.

    Raises:
        ModelError: The tree does not load.
    """
    import torch  # noqa: PLC0415  (exporting needs no torch, measuring does)

    from model.checkpoint import load_version  # noqa: PLC0415  (the same)
    from model.generation import generate  # noqa: PLC0415  (the same)

    model = load_version(tree).model
    prompt = _prompt(model.config.vocab_size, model.config.max_context)
    prefill, decode = 0.0, 0.0
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        times = [time.perf_counter() for _ in generate(model, prompt, max_new_tokens=_NEW_TOKENS, stop_ids=frozenset())]
        prefill = max(prefill, len(prompt) / (times[0] - begin))
        decode = max(decode, (len(times) - 1) / (times[-1] - times[0]))
    return Speed("torch float32", torch.get_num_threads(), prefill, decode)


def measure_llama_cpp(gguf: Path, *, vocab_size: int, max_context: int) -> Speed | None:
    """llama.cpp on the file, by its own clocks; None where its binding `xllamacpp` is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    xllamacpp: Any = importlib.import_module("xllamacpp")  # optional, and without types
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf)
    settings.n_ctx = min(max_context, 512)
    settings.n_parallel = 1
    settings.verbosity = 0
    settings.fit_params = False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(settings)
    prompt = _prompt(vocab_size, max_context)
    request = {"prompt": prompt, "n_predict": _NEW_TOKENS, "cache_prompt": False, "ignore_eos": True, "stream": False}
    timings = [_timings(server.handle_completions(request)) for _ in range(_REPEATS)]
    return Speed(
        "llama.cpp",
        threads,
        max(timing["prompt_per_second"] for timing in timings),
        max(timing["predicted_per_second"] for timing in timings),
    )


def _timings(answer: Any) -> dict[str, float]:  # noqa: ANN401  (xllamacpp has no types)
    content = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    timings: dict[str, float] = content["timings"]
    return timings


def _prompt(vocab_size: int, max_context: int) -> list[int]:
    """Always the same tokens, spread over the vocabulary."""
    count = max(1, min(_PROMPT_TOKENS, max_context - _NEW_TOKENS - 1))
    return [(7919 * index + 11) % vocab_size for index in range(count)]
