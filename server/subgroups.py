"""Held-out loss by group: is a release that is better for most worse for some?"""

from __future__ import annotations

from collections import Counter
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Final

from scipy import stats

from privacy.utility import MAX_GROUPS, GroupChange

if TYPE_CHECKING:
    from collections.abc import Sequence

# Fewer say little, and would be almost a person's own figure.
FEWEST: Final = 10
SMALL: Final = "(smaller groups)"
UNLABELLED: Final = "(no label)"
NO_LABELS: Final = (
    "No held-out text says which group it is of (`group` in a line of a JSONL file), so nothing is known by group."
)


def compare_groups(
    labels: Sequence[str | None], *, before: Sequence[float], after: Sequence[float]
) -> tuple[GroupChange, ...]:
    """Each group's change of loss, the largest group first; none where no example has a label.

    Groups of fewer than `FEWEST` examples, and those beyond the 30 largest, are taken together. The interval is
    Student's, of the paired differences; each is for its group alone, so that of twenty one is beyond by chance.

    Args:
        labels: The group of each example.
        before: The loss of each example on the version before, in the same order.
        after: The same on the new version.
    """
    if not any(labels):
        return ()
    counts = Counter(label or UNLABELLED for label in labels)
    own = {name for name, count in counts.most_common(MAX_GROUPS - 2) if count >= FEWEST}
    members: dict[str, list[tuple[float, float]]] = {}
    for label, old, new in zip(labels, before, after, strict=True):
        name = label or UNLABELLED
        members.setdefault(name if name in own else SMALL, []).append((old, new))
    found = sorted(members.items(), key=lambda item: (item[0] == SMALL, -len(item[1]), item[0]))
    return tuple(_change(name, pairs) for name, pairs in found)


def _change(name: str, pairs: Sequence[tuple[float, float]]) -> GroupChange:
    changes = [new - old for old, new in pairs]
    low = high = None
    if len(changes) >= FEWEST:
        mean = fmean(changes)
        reach = float(stats.t.ppf(0.975, len(changes) - 1)) * stdev(changes) / len(changes) ** 0.5
        low, high = mean - reach, mean + reach
    return GroupChange(
        name=name,
        examples=len(pairs),
        before=fmean(old for old, _ in pairs),
        after=fmean(new for _, new in pairs),
        low=low,
        high=high,
    )
