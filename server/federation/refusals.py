"""Why a reply is left out: a stable kind for counting, and words for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_LONGEST_REASON: Final = 300


class RefusalKind(StrEnum):
    """What was wrong with a reply; recorded by these values, which are never renamed."""

    NO_REPLY = "no-reply"  # nothing by the deadline, or it could not be asked
    DECLINED = "declined"  # the device said no
    DEVICE_ERROR = "device-error"  # the device, or the way to it, failed
    MALFORMED = "malformed"  # records that nobody can read
    OVERSIZED = "oversized"  # more bytes than the update that was asked for
    WRONG_RUN = "wrong-run"
    WRONG_ROUND = "wrong-round"  # late, or replayed from another round
    WRONG_BASE = "wrong-base"
    WRONG_FACTS = "wrong-facts"  # another mechanism than was asked for
    WRONG_NAMES = "wrong-names"
    WRONG_SHAPE = "wrong-shape"
    NOT_FINITE = "not-finite"
    NORM_TOO_LARGE = "norm-too-large"
    DUPLICATE_NODE = "duplicate-node"  # a node that had answered already, or was not asked
    DUPLICATE_DEVICE = "duplicate-device"  # one device through two nodes
    REPLAYED = "replayed"  # a privacy event that is in the ledger already
    OVER_BUDGET = "over-budget"
    WRONG_SHARES = "wrong-shares"  # a secure sum could not be unmasked because of it


@dataclass(frozen=True)
class Refused:
    """A reply that is left out of the aggregate, and why."""

    node_id: int
    kind: RefusalKind
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", plain(self.reason))


def plain(text: str) -> str:
    """A device's words, safe to keep and to show: one short line of printable characters.

    They end in a terminal, in a web page and in a database: an escape sequence, a line break or half of a surrogate
    pair is an attack on one of them.
    """
    cut = text[:_LONGEST_REASON]
    return "".join(character if character.isprintable() else "?" for character in cut)


def reasons_by_node(refused: Iterable[Refused]) -> dict[str, str]:
    """The reasons of one round as the registry keeps them; of a node that was refused twice, both."""
    reasons: dict[str, str] = {}
    for one in refused:
        key = str(one.node_id)
        reasons[key] = f"{reasons[key]}; {one.reason}" if key in reasons else one.reason
    return reasons


def count_kinds(refused: Iterable[Refused]) -> dict[str, int]:
    """How many replies were refused, by kind, in alphabetical order."""
    return dict(sorted(Counter(one.kind.value for one in refused).items()))


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several rounds' counts, the most frequent kind first."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
