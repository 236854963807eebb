"""A SentencePiece vocabulary, as LLaMA and OpenELM have it: BPE over characters, and bytes as a last resort.

llama.cpp joins the neighbours whose token has the highest score; tokenizer.json ranks the pairs instead. The negative
rank of the first pair that makes a token is such a score.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BLANK: Final = "\u2581"
_UNKNOWN: Final = 2
_BYTE: Final = 6
_BYTE_TOKEN: Final = re.compile(r"<0x[0-9A-F]{2}>")


def is_sentencepiece(content: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json is of this kind: byte fallback, and blanks written as a low line of their own."""
    return bool(content["model"].get("byte_fallback")) and adds_space_prefix(content) is not None


def adds_space_prefix(content: Mapping[str, Any]) -> bool | None:
    """Whether a text gets a blank in front; None where blanks are treated another way than SentencePiece does."""
    pre, normalizer = content.get("pre_tokenizer"), content.get("normalizer")
    if pre:
        is_metaspace = pre.get("type") == "Metaspace" and pre.get("replacement") == _BLANK and not normalizer
        return pre.get("prepend_scheme", "always") != "never" if is_metaspace and pre.get("split") is not True else None
    if not normalizer:
        return None
    steps = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    kinds = [step.get("type") for step in steps]
    replaces = steps[-1].get("content") == _BLANK and steps[-1].get("pattern") == {"String": " "}
    if kinds == ["Prepend", "Replace"] and replaces and steps[0].get("prepend") == _BLANK:
        return True
    return False if kinds == ["Replace"] and replaces else None


def scores(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """A score for every token; those that no pair makes come last, in their order."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges) + number)) for number, token in enumerate(tokens)]


def token_types(tokens: Sequence[str], types: Sequence[int], unknown: str | None) -> list[int]:
    """llama.cpp's types, with those for bytes and the unknown token."""
    return [
        _UNKNOWN if token == unknown else _BYTE if _BYTE_TOKEN.fullmatch(token) else kind
        for token, kind in zip(tokens, types, strict=True)
    ]
