"""The tokenizer that a GGUF file describes in its metadata, rebuilt as a tokenizer.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from model.errors import ForeignModelError
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTROL: Final = 3
_USER_DEFINED: Final = 4
# Some models end an answer with another token than the one their metadata calls the end.
_OTHER_STOPS: Final = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")


def build_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """A byte-level BPE tokenizer from GGUF metadata.

    Raises:
        ForeignModelError: Another kind of vocabulary, a way to split text that is not known here, or malformed lists.
    """
    if (kind := fields.get("tokenizer.ggml.model")) != "gpt2":
        raise ForeignModelError(f"the GGUF file has a {kind!r} vocabulary; only byte-level BPE ('gpt2') is read")
    tokens, types, merges = (_strings_or_ints(fields, name) for name in ("tokens", "token_type", "merges"))
    if len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ForeignModelError(f"{len(tokens)} tokens ({len(set(tokens))} different) with {len(types)} token types")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    except Exception as error:  # the library raises a bare Exception
        raise ForeignModelError(f"the GGUF file's merges do not fit its tokens: {error}") from error
    tokenizer.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre"))
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in {_CONTROL, _USER_DEFINED}
    ]
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    return Tokenizer(tokenizer.to_str(), _settings(fields, tokens))


def _settings(fields: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """Content of tokenizer_config.json."""
    settings: dict[str, Any] = {"chat_template": fields.get("tokenizer.chat_template")}
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    for ours, theirs in names.items():
        token_id = fields.get(f"tokenizer.ggml.{theirs}")
        if token_id is not None:
            if not 0 <= token_id < len(tokens):
                raise ForeignModelError(f"{theirs} is {token_id}, the vocabulary has {len(tokens)} tokens")
            settings[ours] = tokens[token_id]
    settings["add_bos_token"] = bool(fields.get("tokenizer.ggml.add_bos_token", False))
    known = set(tokens)
    settings["stop_tokens"] = [token for token in _OTHER_STOPS if token in known]
    return settings


def _pre_tokenizer(name: object) -> pre_tokenizers.PreTokenizer:
    """How llama.cpp's name for a way to split text is said with the tokenizers library."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        # Every digit is a piece of its own. Without this, blanks before a number are split otherwise than in training.
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name == "gpt-2":
        return byte_level
    raise ForeignModelError(f"the GGUF file splits text the {name!r} way; 'smollm' and 'gpt-2' are known here")


def _strings_or_ints(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list):
        raise ForeignModelError(f"the GGUF file lacks tokenizer.ggml.{name}")
    return value
