"""A SentencePiece vocabulary as `tokenizer.model`, for converters that read nothing else. Without torch.

llama.cpp's converter takes an OpenELM's words from this file only; without one it writes Llama 2's in silence.

Fields: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any, Final

from model.errors import ExportError
from model.export.gguf_sentencepiece import is_sentencepiece
from model.export.gguf_tokenizer import describe_tokenizer
from model.export.tokenizer_files import token_text

if TYPE_CHECKING:
    from collections.abc import Mapping

# ModelProto
_PIECES: Final = 1
_TRAINER: Final = 2
_NORMALIZER: Final = 3
# ModelProto.SentencePiece
_PIECE: Final = 1
_SCORE: Final = 2
_TYPE: Final = 3
# TrainerSpec
_MODEL_TYPE: Final = 3
_VOCAB_SIZE: Final = 4
_BYTE_FALLBACK: Final = 35
_PIECES_OF: Final = {"unk_token": 45, "bos_token": 46, "eos_token": 47, "pad_token": 48}
# NormalizerSpec
_NAME: Final = 1
_ADD_DUMMY_PREFIX: Final = 3
_REMOVE_EXTRA_BLANKS: Final = 4

_BPE: Final = 2
_UNKNOWN: Final = 2
_BYTE: Final = 6
_BYTES: Final = 256


def sentencepiece_model(tokenizer_json: str, settings: Mapping[str, Any], vocab_size: int) -> bytes | None:
    """The content of tokenizer.model.

    Args:
        tokenizer_json: Text of tokenizer.json.
        settings: Content of tokenizer_config.json.
        vocab_size: Rows of the embedding; rows without a token get an unused one.

    Returns:
        The file's bytes; None where the library could not read such a vocabulary: another kind, no unknown token, or
        not every byte.

    Raises:
        ExportError: tokenizer.json is malformed.
    """
    try:
        if not is_sentencepiece(json.loads(tokenizer_json)):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ExportError(f"tokenizer.json is malformed ({error!r}); fetch or import the model again") from error
    found = describe_tokenizer(tokenizer_json, settings, vocab_size)
    if found.types.count(_UNKNOWN) != 1 or found.types.count(_BYTE) != _BYTES:
        return None
    unknown = found.tokens[found.types.index(_UNKNOWN)]
    trainer = _number(_MODEL_TYPE, _BPE) + _number(_VOCAB_SIZE, vocab_size) + _number(_BYTE_FALLBACK, 1)
    for key, field in _PIECES_OF.items():
        if text := unknown if key == "unk_token" else token_text(settings.get(key)):
            trainer += _bytes(field, text.encode())
    normalizer = _bytes(_NAME, b"identity")
    normalizer += _number(_ADD_DUMMY_PREFIX, int(found.add_space_prefix)) + _number(_REMOVE_EXTRA_BLANKS, 0)
    pieces = (
        _bytes(_PIECES, _bytes(_PIECE, token.encode()) + _float(_SCORE, score) + _number(_TYPE, kind))
        for token, score, kind in zip(found.tokens, found.scores, found.types, strict=True)
    )
    return b"".join(pieces) + _bytes(_TRAINER, trainer) + _bytes(_NORMALIZER, normalizer)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit says that more follow."""
    parts = bytearray()
    while value > 0x7F:  # noqa: PLR2004  (what seven bits hold)
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
