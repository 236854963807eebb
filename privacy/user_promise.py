"""What a round promises to devices that make its noise together: told before they train, charged by them as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from privacy.event import Delta, Identifier, PrivacyEvent
from privacy.noise_shares import NoiseShares  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from datetime import datetime


class UserPromise(BaseModel):
    """One round's promise to whole users.

    Attributes:
        population: Whose budget is charged: all devices that train this model.
        target_epsilon, target_delta: That budget.
        shares: The noise that all devices make together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    population: Identifier
    target_epsilon: float = Field(gt=0, le=1000, allow_inf_nan=False)
    target_delta: Delta
    shares: NoiseShares

    def event(
        self, *, run_id: str, server_round: int, clipping_norm: float, device_id: str, recorded_at: datetime
    ) -> PrivacyEvent:
        """What the round costs this device, for its own ledger: who else takes part it does not know."""
        return PrivacyEvent(
            run_id=run_id,
            server_round=server_round,
            privacy_unit="user",
            population=self.population,
            devices=(device_id,),
            cohort_rule="fixed",
            mechanism="skellam_shares",
            noise_multiplier=self.shares.noise_multiplier,
            sampling_probability=1.0,
            steps=1,
            clipping_norm=clipping_norm,
            target_delta=self.target_delta,
            shares=self.shares,
            recorded_at=recorded_at,
        )
