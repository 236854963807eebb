"""The tokenizer's two files as they travel along, and the ids that foreign configs repeat from them. Without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.errors import CheckpointError
from model.files import write_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model.export.source import ExportSource


@dataclass(frozen=True)
class SpecialIds:
    """Ids of special tokens; None where the model has none.

    Attributes:
        stops: Any of these ends an answer; the end-of-text token first.
    """

    bos: int | None
    pad: int | None
    unk: int | None
    stops: tuple[int, ...]


def special_ids(tokenizer_json: str, settings: Mapping[str, Any]) -> SpecialIds:
    """Look the special tokens of tokenizer_config.json up in tokenizer.json.

    Raises:
        CheckpointError: A file is malformed, or names no end-of-text token that the vocabulary has.
    """
    ids = _ids(tokenizer_json)
    eos = ids.get(token_text(settings.get("eos_token")))
    if eos is None:
        raise CheckpointError("tokenizer_config.json names no eos_token of tokenizer.json; import the model again")
    others = [ids.get(token_text(token)) for token in settings.get("stop_tokens") or ()]
    return SpecialIds(
        bos=ids.get(token_text(settings.get("bos_token"))),
        pad=ids.get(token_text(settings.get("pad_token"))),
        unk=ids.get(token_text(settings.get("unk_token"))),
        stops=(eos, *(number for number in others if number not in {None, eos} and number is not None)),
    )


def token_text(token: Any) -> str:  # noqa: ANN401  (parsed JSON, checked here)
    """A token is written as text, or as an object with that text in `content`; anything else is no token."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def write_tokenizer(source: ExportSource, out_folder: Path, *, defaults: Mapping[str, Any]) -> None:
    """Write tokenizer.json and tokenizer_config.json, the chat template in it, as transformers and mlx-lm read them.

    `defaults` are settings for tokenizer_config.json that the source may have set otherwise.

    Raises:
        CheckpointError: This disk does not take them.
    """
    write_text(out_folder / "tokenizer.json", source.tokenizer_json)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **defaults, **source.tokenizer_settings}
    text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    write_text(out_folder / "tokenizer_config.json", text)


def _ids(tokenizer_json: str) -> dict[str, int]:
    try:
        content = json.loads(tokenizer_json)
        vocab = content["model"]["vocab"]
        # Unigram vocabularies are lists of a token and its score.
        ids = dict(vocab) if isinstance(vocab, dict) else {entry[0]: number for number, entry in enumerate(vocab)}
        return ids | {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"tokenizer.json is malformed ({error!r}); fetch or import the model again") from error
