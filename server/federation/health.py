"""What a run's rounds say about its devices: refusals by kind, norms, who was set aside; read from recorded facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.federation.norms import repeated_outliers
from server.federation.refusals import add_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.registry import RoundRecord


class RoundNorms(BaseModel):
    """L2 norms of the updates that one round accepted, and the devices that stand out (robust z)."""

    model_config = ConfigDict(frozen=True)

    count: int
    smallest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    largest: float
    outliers: dict[str, float]


class RoundHealth(BaseModel):
    """One round; rounds of an earlier release say nothing, and have the defaults."""

    model_config = ConfigDict(frozen=True)

    aggregation: str = "mean"
    refused: dict[str, int] = Field(default={}, description="Refused replies by kind.")
    set_aside: tuple[str, ...] = Field(default=(), description="Devices that the aggregation left out.")
    norms: RoundNorms | None = Field(default=None, description="None: no update, or secure aggregation hides them.")

    @classmethod
    def of(cls, facts: Mapping[str, object]) -> Self:
        """Read a round's facts; what another release wrote, and this one cannot read, is left out."""
        try:
            return cls.model_validate(dict(facts))
        except ValidationError:
            return cls()


class RunHealth(BaseModel):
    """A whole run: refused replies by kind, and the devices that stood out in several rounds."""

    model_config = ConfigDict(frozen=True)

    refused: dict[str, int] = Field(description="Refused replies of all rounds, by kind.")
    repeated_outliers: dict[str, int] = Field(
        description="Devices whose update's norm stood out in more than one round, with in how many."
    )
    set_aside: dict[str, int] = Field(
        description="Devices that the aggregation left out in more than one round, with in how many."
    )

    @classmethod
    def of(cls, rounds: Sequence[RoundRecord]) -> Self:
        """Add up the rounds of a run."""
        healths = [RoundHealth.of(one.facts) for one in rounds]
        return cls(
            refused=add_counts(health.refused for health in healths),
            repeated_outliers=repeated_outliers(h.norms.outliers for h in healths if h.norms is not None),
            set_aside=repeated_outliers(health.set_aside for health in healths),
        )
