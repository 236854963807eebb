"""Codecs: how one chunk of a target file is made, one file a codec.

`same` copies from the source, `full` needs no source, `difference` moves the source's floats by a few ulps, `low_rank`
moves a matrix by a product of thin ones first, `patch` edits a small file that holds no tensors. `CODECS` maps the
number in a package to the codec.
"""

from delta_updates.codecs.codec import (
    MAX_CHUNK_BYTES,
    MAX_CHUNK_ELEMENTS,
    MAX_DIFFERENCE_ELEMENTS,
    MAX_PLAIN_BYTES,
    Codec,
    CodecName,
    Encoded,
)
from delta_updates.codecs.difference import Difference, Section
from delta_updates.codecs.elements import ElementKind
from delta_updates.codecs.full import Full
from delta_updates.codecs.low_rank import LowRank
from delta_updates.codecs.patch import Patch
from delta_updates.codecs.same import Same

CODECS: dict[CodecName, Codec] = {
    CodecName.SAME: Same(),
    CodecName.FULL: Full(),
    CodecName.DIFFERENCE: Difference(),
    CodecName.PATCH: Patch(),
    CodecName.LOW_RANK: LowRank(),
}

__all__ = [
    "CODECS",
    "MAX_CHUNK_BYTES",
    "MAX_CHUNK_ELEMENTS",
    "MAX_DIFFERENCE_ELEMENTS",
    "MAX_PLAIN_BYTES",
    "Codec",
    "CodecName",
    "Difference",
    "ElementKind",
    "Encoded",
    "Full",
    "LowRank",
    "Patch",
    "Same",
    "Section",
]
