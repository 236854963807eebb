"""What a round leaves behind for the operator, beside its adapter and its events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.federation.norms import norm_report
from server.federation.refusals import count_kinds
from server.federation.replies import update_norm

if TYPE_CHECKING:
    from server.federation.aggregation import Aggregate
    from server.federation.exchange import Exchange
    from server.federation.health import MaskedSum
    from server.federation.recipe import Recipe


def facts_of(
    result: Exchange, combined: Aggregate | None, masked: MaskedSum | None, recipe: Recipe
) -> dict[str, object]:
    """What `server.federation.health` reads: refusals by kind, norms, whom the aggregation set aside, a masked sum."""
    seen = [item for item in result.accepted if item.update]  # none of them under a secure sum
    norms = norm_report({item.contribution.device_id: update_norm(item.update) for item in seen})
    return {
        "aggregation": recipe.aggregation,
        "refused": count_kinds(result.refused),
        "set_aside": [] if combined is None else list(combined.set_aside),
        "norms": None if norms is None else norms.to_json(),
        **({} if masked is None else {"masked": masked.model_dump()}),
    }
