"""Held-out loss by group: is a release that is better for most worse for some?"""

from __future__ import annotations

from collections import Counter
from math import sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Final, NamedTuple

from scipy import stats

from privacy.utility import MAX_GROUPS, GroupChange

if TYPE_CHECKING:
    from collections.abc import Sequence

# Fewer say little, and would be almost a person's own figure.
FEWEST: Final = 10
# Of fewer people nobody can say what others of the group would show.
FEWEST_PEOPLE: Final = 5
SMALL: Final = "(smaller groups)"
UNLABELLED: Final = "(no label)"
NO_LABELS: Final = (
    "No held-out text says which group it is of (`group` in a line of a JSONL file), so nothing is known by group."
)


def compare_groups(
    labels: Sequence[str | None],
    *,
    before: Sequence[float],
    after: Sequence[float],
    people: Sequence[str] | None = None,
) -> tuple[GroupChange, ...]:
    """Each group's change of loss, the largest group first; none where no example has a label.

    Groups of fewer than `FEWEST` examples, and those beyond the 30 largest, are taken together. The interval is of the
    paired differences and robust to clusters: what one person wrote is not independent, so people are what is counted,
    and `FEWEST_PEOPLE` are needed. Each is for its group alone, so that of twenty one is beyond by chance. Source:
    Liang and Zeger 1986; with Student's t of one less than the people (Cameron and Miller 2015, section VI).

    Args:
        labels: The group of each example.
        before: The loss of each example on the version before, in the same order.
        after: The same on the new version.
        people: Who wrote each example; None takes each as another person's.
    """
    if not any(labels):
        return ()
    counts = Counter(label or UNLABELLED for label in labels)
    own = {name for name, count in counts.most_common(MAX_GROUPS - 2) if count >= FEWEST}
    members: dict[str, list[_Judged]] = {}
    authors = people or [str(number) for number in range(len(labels))]
    for label, author, old, new in zip(labels, authors, before, after, strict=True):
        name = label or UNLABELLED
        members.setdefault(name if name in own else SMALL, []).append(_Judged(author, old, new))
    found = sorted(members.items(), key=lambda item: (item[0] == SMALL, -len(item[1]), item[0]))
    return tuple(_change(name, judged, has_people=people is not None) for name, judged in found)


class _Judged(NamedTuple):
    """One example: who wrote it, and its losses."""

    author: str
    before: float
    after: float


def _change(name: str, judged: Sequence[_Judged], *, has_people: bool) -> GroupChange:
    low, high = _interval(judged)
    return GroupChange(
        name=name,
        examples=len(judged),
        people=len({one.author for one in judged}) if has_people else None,
        before=fmean(one.before for one in judged),
        after=fmean(one.after for one in judged),
        low=low,
        high=high,
    )


def _interval(judged: Sequence[_Judged]) -> tuple[float | None, float | None]:
    """Between what the mean change lies; where everybody wrote one example, Student's interval."""
    # As `GroupChange.change` is computed, so that no rounding puts it outside its own interval.
    mean = fmean(one.after for one in judged) - fmean(one.before for one in judged)
    residuals: dict[str, float] = {}
    for one in judged:
        residuals[one.author] = residuals.get(one.author, 0.0) + (one.after - one.before - mean)
    if len(judged) < FEWEST or len(residuals) < FEWEST_PEOPLE:
        return None, None
    free = len(residuals) - 1
    error = sqrt(len(residuals) / free * sum(total * total for total in residuals.values())) / len(judged)
    reach = float(stats.t.ppf(0.975, free)) * error
    return mean - reach, mean + reach
