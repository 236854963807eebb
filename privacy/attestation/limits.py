"""Pure decision: does a statement promise at least as much as somebody wants?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.attestation.statement import MAX_DELTA

if TYPE_CHECKING:
    from privacy.attestation.statement import PrivacyStatement


def excess_over(max_epsilon: float, statement: PrivacyStatement) -> str | None:
    """Why a statement exceeds a limit, in words; None: it does not.

    Every unit that the statement names is held to the limit by itself: a weak promise per example is not made good by
    a strong one per user. Where no event was charged, nothing of a device is in the release.
    """
    for guarantee in statement.predicate.guarantees:
        unit = f"per {guarantee.privacy_unit}"
        if math.isinf(guarantee.epsilon):
            return f"it has no privacy guarantee {unit} (ε = ∞)"
        if guarantee.delta > MAX_DELTA:
            return f"its δ = {guarantee.delta:g} {unit} is above {MAX_DELTA:g}, which protects nobody"
        if guarantee.epsilon > max_epsilon:
            return f"it states ε = {guarantee.epsilon:.4g} {unit} (δ = {guarantee.delta:g}), above {max_epsilon:g}"
    if failed := [audit.part for audit in statement.predicate.audits if audit.verdict == "fail"]:
        return f"its audit failed ({', '.join(failed)})"
    if statement.predicate.evidence.events and not statement.predicate.guarantees:
        return "it names events but promises nothing"
    return None
