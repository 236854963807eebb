"""Pure decision: does a statement promise at least as much as somebody wants?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from privacy.attestation.statement import MAX_DELTA

if TYPE_CHECKING:
    from privacy.attestation.statement import BaseBill, PrivacyStatement

_NAMED: Final = 5


def excess_over(max_epsilon: float, statement: PrivacyStatement) -> str | None:
    """Why a statement exceeds a limit, in words; None: it does not.

    Every unit that the statement names is held to the limit by itself: a weak promise per example is not made good by
    a strong one per user. So is what it says with other models on its base, which may know the same people. Where no
    event was charged, nothing of a device is in the release.
    """
    base = statement.predicate.base
    with_base = "" if base is None else f" with what other models on its base ({names_of(base)}) cost"
    found = [(guarantee, "") for guarantee in statement.predicate.guarantees]
    found += [] if base is None else [(guarantee, with_base) for guarantee in base.guarantees]
    for guarantee, whose in found:
        unit = f"per {guarantee.privacy_unit}{whose}"
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


def overspent_on_base(statement: PrivacyStatement) -> str | None:
    """Why a release's budget does not cover what was spent on its base, in words; None: it does, as far as it says."""
    base = statement.predicate.base
    if base is None:
        return None
    over = [
        f"{one.epsilon:.4g} per {one.privacy_unit} (δ = {one.delta:g}), above its budget of {one.budget_epsilon:g}"
        for one in base.guarantees
        if one.budget_epsilon is not None and one.epsilon > one.budget_epsilon
    ]
    return f"with what other models on its base ({names_of(base)}) cost, ε is {' and '.join(over)}" if over else None


def names_of(base: BaseBill) -> str:
    """The other models on a base, by name; of many the first few."""
    named = [other.model for other in base.others]
    return ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
