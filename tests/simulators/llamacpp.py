"""llama.cpp itself, run in this process on a GGUF file: the other side that our exports are held to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

_PLAIN_TOKEN = 20  # a letter or a sign in every vocabulary here


class LlamaCpp:
    """A model that llama.cpp loaded, with a float32 KV cache and one thread."""

    def __init__(self, gguf: Path, *, vocab_size: int, adapter: Path | None = None, context: int = 64) -> None:
        settings = xllamacpp.CommonParams()
        settings.model.path = str(gguf)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.cpuparams.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.use_jinja = True
        settings.warmup = settings.fit_params = False
        settings.verbosity = 0
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
        self._server = xllamacpp.Server(settings)
        self._vocab_size = vocab_size

    def centred_logits(self, tokens: str | Sequence[int]) -> np.ndarray:
        """Logits of the token after these, less their mean: (vocab_size,).

        llama.cpp tells logarithms of probabilities, whose common divisor it adds up in float32: over 49,152 tokens that
        moves all of them by the same 2e-4, which says nothing about the logits.
        """
        # The probabilities are told before sampling, and only for a token that ends a character: take one that does.
        request = {"n_predict": 1, "n_probs": self._vocab_size, "logit_bias": [[_PLAIN_TOKEN, 1000.0]], "top_k": 1}
        answer = self._ask(prompt=tokens, **request)
        result = np.full(self._vocab_size, np.nan)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        return result - result.mean()

    def complete(self, prompt: str | Sequence[int], *, count: int) -> str:
        """The likeliest text after a prompt."""
        return self._ask(prompt=prompt, n_predict=count, temperature=0.0, top_k=1)["choices"][0]["text"]

    def chat(self, messages: Sequence[dict[str, str]], *, count: int) -> str:
        """The likeliest answer, asked through the chat template in the file."""
        answer = self._server.handle_chat_completions(
            {"stream": False, "messages": list(messages), "max_tokens": count, "temperature": 0.0, "top_k": 1}
        )
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        return answer["choices"][0]["message"]["content"]

    def prompt_length(self, prompt: str) -> int:
        """Number of tokens that llama.cpp makes of a text."""
        return self._ask(prompt=prompt, n_predict=1)["usage"]["prompt_tokens"]

    def _ask(self, **request: Any) -> Any:
        answer = self._server.handle_completions({"stream": False, "cache_prompt": False, **request})
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        assert "choices" in answer, answer
        return answer
