"""How a round's updates become one: the mean, or a rule that outlives some hostile devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from server.federation.coordinates import coordinate_median, trimmed_mean
from server.federation.krum import krum_selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.federation.replies import Accepted
    from server.federation.rule import AggregationRule
    from server.federation.tensors import AdapterState

_WEIGHT = "num-examples"


@dataclass(frozen=True)
class Aggregate:
    """One round's update, and the devices that the rule set aside as a whole."""

    update: AdapterState
    set_aside: tuple[str, ...] = ()


def aggregate(accepted: Sequence[Accepted], rule: AggregationRule) -> Aggregate:
    """Make one update of a round's contributions.

    Raises:
        ValueError: The rule cannot work with so few updates (`AggregationRule.problem_with` says why).
    """
    problem = rule.problem_with(len(accepted))
    if problem is not None:
        raise ValueError(problem)
    updates = [item.update for item in accepted]
    match rule.name:
        case "mean":
            return Aggregate(weighted_mean(accepted))
        case "median":
            return Aggregate(coordinate_median(updates))
        case "trimmed-mean":
            return Aggregate(trimmed_mean(updates, trim_fraction=rule.trim_fraction))
        case "multi-krum":
            kept = set(krum_selection(updates, hostile=rule.assumed_hostile))
            update = trimmed_mean([updates[i] for i in sorted(kept)], trim_fraction=0.0)
            aside = tuple(item.contribution.device_id for i, item in enumerate(accepted) if i not in kept)
            return Aggregate(update, aside)


def weighted_mean(accepted: Sequence[Accepted]) -> AdapterState:
    """Average the updates with Flower's aggregation, weighted by what devices told of their (capped) example counts."""
    records = [
        RecordDict(
            {
                "update": ArrayRecord({name: Array(tensor) for name, tensor in item.update.items()}),
                "weight": MetricRecord({_WEIGHT: item.contribution.num_examples}),
            }
        )
        for item in accepted
    ]
    mean = aggregate_arrayrecords(records, weighting_metric_name=_WEIGHT)
    return {name: array.numpy().astype(np.float32, copy=False) for name, array in mean.items()}
