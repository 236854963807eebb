"""A batch as one stream of tokens: no padding is computed, and only attention knows where a sequence ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from model.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from model.data.encoding import EncodedExample


@dataclass(frozen=True)
class Group:
    """Sequences that attention handles at once, each beginning at one of `starts`.

    Attributes:
        starts: Where in the stream each begins.
        lengths: How many tokens each has, at most `longest`.
        rows: (sequences, longest) places in the stream, those past a sequence's end being its last token's; None where
            all are equally long, and so lie in the stream as they are.
        is_real: (sequences, longest), False past a sequence's end; None as above.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    rows: Tensor | None
    is_real: Tensor | None

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)


@dataclass(frozen=True)
class TokenStream:
    """The tokens of B examples, one sequence after the other, the longest first.

    Attributes:
        token_ids: (N,) what is read.
        positions: (N,) each token's place in its own sequence.
        groups: The sequences, in order.
        order: (B,) which example each sequence is.
        counted: (M,) places in the stream whose next token counts in the loss.
        targets: (M,) those next tokens.
        owners: (M,) which example each belongs to.
    """

    token_ids: Tensor
    positions: Tensor
    groups: tuple[Group, ...]
    order: tuple[int, ...]
    counted: Tensor
    targets: Tensor
    owners: Tensor

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """Example, begin and end of each sequence."""
        places = ((s, s + n) for group in self.groups for s, n in zip(group.starts, group.lengths, strict=True))
        return [(example, *place) for example, place in zip(self.order, places, strict=True)]


def token_stream(batch: Sequence[EncodedExample]) -> TokenStream:
    """Lay a batch out as a stream.

    Raises:
        DataError: The batch is empty.
    """
    if not batch:
        raise DataError("an empty batch has no tokens; leave the step out")
    order = sorted(range(len(batch)), key=lambda i: -len(batch[i].token_ids))
    lengths = [len(batch[i].token_ids) - 1 for i in order]
    starts = [sum(lengths[:j]) for j in range(len(lengths))]
    sequences = [torch.tensor(batch[i].token_ids, dtype=torch.int64) for i in order]
    counted = [
        torch.arange(start + batch[i].loss_start - 1, start + length)
        for i, start, length in zip(order, starts, lengths, strict=True)
    ]
    return TokenStream(
        token_ids=torch.cat([ids[:-1] for ids in sequences]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        groups=tuple(_groups(starts, lengths)),
        order=tuple(order),
        counted=torch.cat(counted),
        targets=torch.cat([ids[batch[i].loss_start :] for i, ids in zip(order, sequences, strict=True)]),
        owners=torch.cat([torch.full((len(part),), i) for i, part in zip(order, counted, strict=True)]),
    )


def _groups(starts: list[int], lengths: list[int]) -> list[Group]:
    """Cut where a sequence is less than half as long as the group's first: attention pads within a group."""
    groups: list[Group] = []
    first = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or 2 * lengths[end] < lengths[first]:
            groups.append(_group(tuple(starts[first:end]), tuple(lengths[first:end])))
            first = end
    return groups


def _group(starts: tuple[int, ...], lengths: tuple[int, ...]) -> Group:
    longest = lengths[0]
    if lengths[-1] == longest:
        return Group(starts, lengths, None, None)
    places, ends = torch.arange(longest), torch.tensor(lengths).unsqueeze(1)
    rows = torch.tensor(starts).unsqueeze(1) + torch.minimum(places, ends - 1)
    return Group(starts, lengths, rows, places < ends)
