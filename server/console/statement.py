"""What a version's signed manifest says about privacy, beside the limits of the run that it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.registry import Registry, VersionRecord


@dataclass(frozen=True, kw_only=True)
class PrivacySpent:
    """What a release's training cost, against its limit; ``epsilon`` was recomputed from the ledger at the release.

    Attributes:
        unit: What one unit of privacy is: `example` or `user`.
        epsilon: The largest loss of any of them.
        target_delta: The δ at which.
        limit: ε that the run's recipe allows; None where it names none.
    """

    unit: str
    epsilon: float
    target_delta: float | None
    limit: float | None

    @property
    def share(self) -> float | None:
        """The part of the limit that is spent, 0 to 1."""
        if not self.limit or not math.isfinite(self.epsilon):
            return None
        return min(1.0, self.epsilon / self.limit)


def privacy_spent(registry: Registry, version: VersionRecord) -> PrivacySpent | None:
    """The statement that lists show: per example where that is one of the units, else per user; None: there is none."""
    return next(iter(privacy_statements(registry, version)), None)


def privacy_statements(registry: Registry, version: VersionRecord) -> tuple[PrivacySpent, ...]:
    """One statement for each unit that the manifest speaks of; a base and an adapter of no run have none."""
    facts, recipe = version.manifest.facts, _recipe(registry, version)
    is_example_level = facts.get("privacy_unit", "example") == "example"
    found = []
    if is_example_level and (epsilon := number(facts.get("epsilon"))) is not None:
        found.append(_spent("example", epsilon, facts.get("target_delta"), recipe.get("target-epsilon")))
    if (epsilon := number(facts.get("user_epsilon"))) is not None:
        found.append(_spent("user", epsilon, facts.get("user_target_delta"), recipe.get("user-target-epsilon")))
    return tuple(found)


def number(value: object) -> float | None:
    """A number among facts that may be anything."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _spent(unit: str, epsilon: float, delta: object, limit: object) -> PrivacySpent:
    return PrivacySpent(unit=unit, epsilon=epsilon, target_delta=number(delta), limit=number(limit))


def _recipe(registry: Registry, version: VersionRecord) -> Mapping[str, object]:
    try:
        return registry.run(version.run_id).recipe if version.run_id else {}
    except NotFoundError:
        return {}
