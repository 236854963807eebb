"""What a run's rounds say about its devices: refusals by kind, norms, who was set aside; read from recorded facts."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, Self

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


SecurePhase = Literal["ask", "advertise", "share", "mask", "reveal"]
_PHASES: Final[Mapping[SecurePhase, str]] = {
    "ask": "asking devices",
    "advertise": "exchanging keys",
    "share": "sharing secrets",
    "mask": "training and sending masked updates",
    "reveal": "taking the masks off",
}


class MaskedSum(BaseModel):
    """Why a round's secure sum stayed masked: nothing was learnt from it, and nothing is released."""

    model_config = ConfigDict(frozen=True)

    phase: SecurePhase = Field(description="In which exchange it ended: advertise, share, mask or reveal; ask: before.")
    asked: int = Field(description="Devices that the round asked.")
    answered: int = Field(description="Of them, those whose answer to that exchange could be used.")
    reason: str = Field(description="What was missing, in words.")

    @property
    def told(self) -> str:
        """In words, with what may help."""
        who = f"{self.answered} of {self.asked} devices answered"
        return (
            f"the secure sum stayed masked while {_PHASES[self.phase]}: {who}. "
            f"{self.reason[:1].upper()}{self.reason[1:]}. Where devices are slow raise deadline-s; where they fall "
            "silent raise cohort or secure-dropouts"
        )


class RoundHealth(BaseModel):
    """One round; rounds of an earlier release say nothing, and have the defaults."""

    model_config = ConfigDict(frozen=True)

    aggregation: str = "mean"
    refused: dict[str, int] = Field(default={}, description="Refused replies by kind.")
    set_aside: tuple[str, ...] = Field(default=(), description="Devices that the aggregation left out.")
    norms: RoundNorms | None = Field(default=None, description="None: no update, or secure aggregation hides them.")
    masked: MaskedSum | None = Field(default=None, description="Why the secure sum stayed masked; None: it did not.")

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
    masked: dict[str, int] = Field(
        default={}, description="Rounds whose secure sum stayed masked, by the exchange in which it ended."
    )

    @classmethod
    def of(cls, rounds: Sequence[RoundRecord]) -> Self:
        """Add up the rounds of a run."""
        healths = [RoundHealth.of(one.facts) for one in rounds]
        return cls(
            refused=add_counts(health.refused for health in healths),
            repeated_outliers=repeated_outliers(h.norms.outliers for h in healths if h.norms is not None),
            set_aside=repeated_outliers(health.set_aside for health in healths),
            masked=Counter(health.masked.phase for health in healths if health.masked is not None),
        )
