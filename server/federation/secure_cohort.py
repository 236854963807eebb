"""How many devices a secure sum needs: said when a recipe is read, not when its first round fails."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

# Beyond it, chance errs less and less, while the search for a graph takes seconds.
_LARGE: Final = 1000
_FURTHER: Final = 64


@lru_cache(maxsize=256)
def problem_with_cohort(cohort: int, *, dropouts: float, colluding: float) -> str | None:
    """Why a cohort cannot sum securely, and which number to change; None: it can."""
    from privacy.secure_aggregation.graph import least_members  # noqa: PLC0415 - scipy, which most recipes need not
    from privacy.secure_aggregation.plan import MAX_MEMBERS  # noqa: PLC0415 - the same

    if cohort > MAX_MEMBERS:
        return f"sums at most {MAX_MEMBERS} devices: lower cohort from {cohort}"
    judged = min(cohort, _LARGE)
    if least_members(judged, dropouts=dropouts, colluding=colluding, most=judged) is not None:
        return None
    enough = least_members(judged + 1, dropouts=dropouts, colluding=colluding, most=judged + _FURTHER)
    way_out = "lower" if enough is None else f"raise cohort to {enough} or more, or lower"
    return (
        f"cannot hide one of {cohort} devices where {dropouts:.0%} may fall silent and {colluding:.0%} work with the "
        f"server: {way_out} secure-dropouts or secure-colluding"
    )


@lru_cache(maxsize=256)
def fewest_asked(fewest: int, *, cohort: int, dropouts: float, colluding: float) -> int:
    """How many devices a round waits for: as many as must be in its sum, and enough to hide each other."""
    from privacy.secure_aggregation.graph import least_members  # noqa: PLC0415 - see above

    return least_members(fewest, dropouts=dropouts, colluding=colluding, most=cohort) or cohort
