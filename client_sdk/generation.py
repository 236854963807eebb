"""What may be asked of a model: a prompt, and options that are checked before an engine sees them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from client_sdk.backends import MAX_LOGPROBS, Ending, GenerationRequest, Piece

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, str]]
"""Plain text to go on from, or chat messages with `role` and `content`."""

VERSION_ADAPTER = "version"
"""Name of the adapter that the active version brings; what answers when no other is asked for."""

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


def parse_request(
    tokenizer: "Tokenizer", prompt: Prompt, options: GenerationOptions, *, has_adapter: bool
) -> GenerationRequest:
    """Parse what was asked for of a version, which may bring an adapter.

    Raises:
        ValueError: an option out of range.
    """
    known = GenerationOptions.__annotations__
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown options {unknown}; there are {', '.join(known)}")
    stop = options.get("stop", ())
    request = GenerationRequest(
        token_ids=tuple(encode_prompt(tokenizer, prompt)),
        max_new_tokens=options.get("max_new_tokens", 128),
        temperature=options.get("temperature", 0.0),
        top_p=options.get("top_p", 1.0),
        seed=options.get("seed"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_ids=tokenizer.stop_ids,
        logprobs=options.get("logprobs"),
        adapter=adapter_name(options, has_adapter=has_adapter),
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


def adapter_name(options: GenerationOptions, *, has_adapter: bool) -> str | None:
    """The adapter that is asked for; the version's own, if it brings one, unless said otherwise."""
    if "adapter" in options:
        return options["adapter"]
    return VERSION_ADAPTER if has_adapter else None


def encode_prompt(tokenizer: "Tokenizer", prompt: Prompt) -> list[int]:
    """Token ids of a text, or of chat messages in the model's template."""
    text = prompt if isinstance(prompt, str) else tokenizer.apply_chat(prompt, add_generation_prompt=True)
    return tokenizer.encode(text)


def empty_answer(request: GenerationRequest) -> Piece:
    """The only piece of an answer that may have no token."""
    prompt_tokens = len(request.token_ids)
    ending = Ending(
        reason="length", prompt_tokens=prompt_tokens, cached_tokens=0, new_tokens=0, first_token_s=0.0, decode_s=0.0
    )
    return Piece("", ending=ending)
