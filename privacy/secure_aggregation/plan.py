"""What all sides of one secure sum agree on before it begins."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_MEMBERS = 10_000
MAX_LENGTH = 1 << 28


class RoundPlan(BaseModel):
    """The fixed facts of one secure sum; every key and every share is bound to them.

    Each member shares its secrets with `neighbours` others, `threshold` of whom can restore them. A member tells each
    neighbour's secret of one kind only, so `threshold` above half of the neighbours keeps a server that lies about who
    dropped out from ever restoring both kinds for one member, as long as fewer than 2 * threshold - neighbours of its
    neighbours work with the server.

    Attributes:
        run_id: With `server_round`, what this sum is for; a share of another sum is refused.
        server_round: The round.
        length: Values in each vector, whole numbers modulo 2^32.
        neighbours: Of each member.
        threshold: Of them, to restore a secret; also the fewest that a member goes on with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")
    server_round: int = Field(ge=0, le=1_000_000)
    length: int = Field(ge=1, le=MAX_LENGTH)
    neighbours: int = Field(ge=2, lt=MAX_MEMBERS)
    threshold: int = Field(ge=2)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not self.neighbours < 2 * self.threshold <= 2 * self.neighbours:
            raise ValueError(
                f"threshold {self.threshold} must lie above half of the {self.neighbours} neighbours, and not above all"
            )
        return self

    @property
    def context(self) -> bytes:
        """What keys and shares are bound to."""
        return self.model_dump_json().encode()
