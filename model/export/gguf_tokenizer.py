"""Our tokenizer as GGUF metadata. Without the tokenizers library: only the text of tokenizer.json is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from model.errors import ExportError
from model.export.gguf_sentencepiece import adds_space_prefix, is_sentencepiece, scores, token_types

if TYPE_CHECKING:
    from collections.abc import Mapping

_NORMAL: Final = 1
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNUSED: Final = 5
_OTHER_KINDS: Final = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")
_TOKEN_IDS: Final = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


@dataclass(frozen=True)
class GGUFTokenizer:
    """The lists and values of `tokenizer.ggml.*`.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece.
        pre: llama.cpp's name for the way text is split before merging.
        tokens: Text of every token, by id; as many as the embedding has rows.
        types: llama.cpp's type of every token.
        merges: Two pieces with a blank between, by rank; empty for SentencePiece.
        scores: One a token for SentencePiece, empty otherwise.
        token_ids: Such as `eos` to id.
        add_bos: Whether a text begins with the begin-of-text token.
        add_space_prefix: Whether a text begins with a blank.
        chat_template: Jinja text, None where there is none.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    token_ids: Mapping[str, int]
    add_bos: bool
    add_space_prefix: bool
    chat_template: str | None


def describe_tokenizer(tokenizer_json: str, settings: Mapping[str, Any], vocab_size: int) -> GGUFTokenizer:
    """What GGUF says of a byte-level BPE tokenizer, or of SentencePiece's BPE.

    Args:
        tokenizer_json: Text of tokenizer.json.
        settings: Content of tokenizer_config.json.
        vocab_size: Rows of the embedding; rows without a token get an unused one.

    Raises:
        ExportError: Another kind of vocabulary, a way to split text that llama.cpp has no name for, or malformed.
    """
    template = settings.get("chat_template")
    try:
        content = json.loads(tokenizer_json)
        model = content["model"]
        is_spm = is_sentencepiece(content)
        if not is_spm:
            _require_byte_level_bpe(content)
        tokens, types = _tokens(model["vocab"], content.get("added_tokens") or [], vocab_size)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return GGUFTokenizer(
            model="llama" if is_spm else "gpt2",
            pre="default" if is_spm else _pre_name(content),
            tokens=tokens,
            types=token_types(tokens, types, model.get("unk_token")) if is_spm else types,
            merges=[] if is_spm else merges,
            scores=scores(tokens, merges) if is_spm else [],
            token_ids=_token_ids(settings, tokens),
            add_bos=bool(settings.get("add_bos_token", False)),
            add_space_prefix=bool(is_spm and adds_space_prefix(content)),
            chat_template=template if isinstance(template, str) else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ExportError(f"tokenizer.json is malformed ({error!r}); fetch or import the model again") from error


def _require_byte_level_bpe(content: Mapping[str, Any]) -> None:
    model = content["model"]
    odd = [key for key in _OTHER_KINDS if model.get(key)]
    odd += ["a normalizer"] * bool(content.get("normalizer")) + ["no merges"] * (not model.get("merges"))
    if model.get("type", "BPE") != "BPE" or odd:
        raise ExportError(
            f"the tokenizer is {model.get('type')!r} with {', '.join(odd) or 'other settings'}; GGUF is written for "
            "byte-level BPE without a normalizer and for SentencePiece's BPE; export as hf or mlx, which keep "
            "tokenizer.json as it is"
        )


def _pre_name(content: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer."""
    pre = content.get("pre_tokenizer") or {}
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    found = tuple(_step(step) for step in steps)
    for name, known in _PRE_TOKENIZERS.items():
        if found == known:
            return name
    raise ExportError(
        f"the tokenizer splits text by {[step.get('type') for step in steps]} in a way that llama.cpp has no name for; "
        f"{', '.join(_PRE_TOKENIZERS)} are known here; export as hf or mlx"
    )


def _step(step: Mapping[str, Any]) -> tuple[Any, ...]:
    kind = step.get("type")
    if kind == "ByteLevel":
        return (kind, bool(step.get("add_prefix_space")), bool(step.get("use_regex", True)))
    if kind == "Digits":
        return (kind, bool(step.get("individual_digits")))
    if kind == "Split":
        return (kind, json.dumps(step.get("pattern")), step.get("behavior"), bool(step.get("invert")))
    return (kind,)


_PRE_TOKENIZERS: Final[Mapping[str, tuple[tuple[Any, ...], ...]]] = {
    "smollm": (("Digits", True), ("ByteLevel", False, True)),
    "gpt-2": (("ByteLevel", False, True),),
}


def _tokens(vocab: Mapping[str, int], added: list[Mapping[str, Any]], size: int) -> tuple[list[str], list[int]]:
    tokens: list[str | None] = [None] * size
    types = [_NORMAL] * size
    known = dict(vocab) | {entry["content"]: entry["id"] for entry in added}
    if too_large := [token for token, number in known.items() if not 0 <= number < size]:
        raise ExportError(
            f"token {too_large[0]!r} has an id outside the embedding's {size} rows; import the model again"
        )
    for token, number in known.items():
        tokens[number] = token
    for entry in added:
        types[entry["id"]] = _CONTROL if entry.get("special") else _USER_DEFINED
    for number, token in enumerate(tokens):
        if token is None:
            types[number] = _UNUSED
    return [f"[PAD{number}]" if token is None else token for number, token in enumerate(tokens)], types


def _token_ids(settings: Mapping[str, Any], tokens: list[str]) -> dict[str, int]:
    ids = {text: number for number, text in enumerate(tokens)}
    found: dict[str, int] = {}
    for key, name in _TOKEN_IDS.items():
        if (text := _content(settings.get(key))) in ids:
            found[name] = ids[text]
    # llama.cpp stops at the usual names by itself; any other end of a turn must be told.
    others = [ids[text] for stop in settings.get("stop_tokens") or () if (text := _content(stop)) in ids]
    for number in others:
        if number != found.get("eos"):
            found.setdefault("eot", number)
    return found


def _content(token: Any) -> str:  # noqa: ANN401  (a token is text, or an object with that text in `content`)
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""
