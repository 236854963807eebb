"""Who shares secrets with whom: a random graph in which every member has as many neighbours."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

from privacy.secure_aggregation.plan import MAX_MEMBERS

if TYPE_CHECKING:
    from collections.abc import Sequence

# The chance that chance alone breaks the promise, in a round.
_FAILURE: Final = 2.0**-40


def draw_graph(members: Sequence[int], *, neighbours: int) -> dict[int, tuple[int, ...]]:
    """A random circulant graph: on a ring in random order, each member knows those nearest to it on both sides.

    Args:
        members: Different numbers.
        neighbours: Of each; every other member where there are no more than that.

    Raises:
        ValueError: An odd number of neighbours for an odd number of members, or too few members.
    """
    ring = list(members)
    if len(ring) - 1 <= neighbours:
        return {member: tuple(sorted(set(ring) - {member})) for member in ring}
    if neighbours % 2:
        raise ValueError(f"{neighbours} neighbours: an even number is needed")
    secrets.SystemRandom().shuffle(ring)
    found: dict[int, tuple[int, ...]] = {}
    for place, member in enumerate(ring):
        near = {ring[(place + step) % len(ring)] for step in range(-neighbours // 2, neighbours // 2 + 1)}
        found[member] = tuple(sorted(near - {member}))
    return found


def neighbours_needed(members: int, *, dropouts: float, colluding: float) -> tuple[int, int]:
    """(neighbours, threshold) with which a round fails, or a member is exposed, once in 2^40 rounds at most.

    Each member's neighbours are a random sample. Too many of them silent, and its secrets cannot be restored: the sum
    is lost. Too many of them colluding, 2 * threshold - neighbours or more, and a lying server learns its vector. And
    where all neighbours to one side are gone, at two places of the ring, the server learns the sums of two parts.

    Args:
        members: In the cohort.
        dropouts: Largest share of the cohort that may fall silent.
        colluding: Largest share of the cohort that may work with the server.

    Raises:
        ValueError: No number of neighbours is enough for such shares.
    """
    if not (0 <= dropouts < 1 and 0 <= colluding < 1 and 3 <= members <= MAX_MEMBERS):  # noqa: PLR2004 - a sum of 2 is no secret
        raise ValueError(f"{members} members with {dropouts:.0%} silent and {colluding:.0%} colluding make no cohort")
    others = members - 1
    silent, bad = round(dropouts * members), round(colluding * members)
    allowed = _FAILURE / members
    for neighbours in (*range(2, others, 2), others):
        # The most neighbours that are silent, and that collude, except with the allowed probability.
        lost = _most_drawn(others, min(silent, others), neighbours, chance=allowed / 2)
        against = _most_drawn(others, min(bad, others), neighbours, chance=allowed / 2)
        threshold = neighbours - lost
        if threshold < 2 or 2 * threshold <= neighbours + against:  # noqa: PLR2004 - one share is no secret
            continue
        if neighbours == others or _chance_of_two_parts(members, silent + bad, neighbours) <= _FAILURE:
            return neighbours, threshold
    raise ValueError(
        f"no graph over {members} members stands {dropouts:.0%} silent and {colluding:.0%} colluding ones: "
        "ask more devices, or allow for fewer"
    )


def least_members(at_least: int, *, dropouts: float, colluding: float, most: int = MAX_MEMBERS) -> int | None:
    """The smallest cohort from `at_least` to `most` that `neighbours_needed` finds a graph for; None: there is none."""
    for members in range(at_least, most + 1):
        try:
            neighbours_needed(members, dropouts=dropouts, colluding=colluding)
        except ValueError:
            continue
        return members
    return None


def _chance_of_two_parts(members: int, gone: int, neighbours: int) -> float:
    """At most how likely the others fall into two parts whose sums would be learnt apart: the ring breaks twice."""
    return members**2 / 2 * (gone / members) ** neighbours


def _most_drawn(population: int, marked: int, drawn: int, *, chance: float) -> int:
    """How many marked ones a random draw holds at the most, except with probability `chance`."""
    exactly = stats.hypergeom.pmf(np.arange(drawn + 1), population, marked, drawn)
    at_least = np.cumsum(exactly[::-1])[::-1]  # from the small end, so that small tails keep their digits
    return int(np.count_nonzero(at_least > chance)) - 1
