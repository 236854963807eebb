"""The ledgers of other models on one base: plain values, light. What they come to is in `privacy.base_bill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privacy.event import PrivacyEvent


@dataclass(frozen=True, kw_only=True)
class OtherModel:
    """Another model that was trained on the same base, or on one that was made from it.

    Attributes:
        model: Its name.
        events: All of its ledger.
        runs: Those of its runs that trained this base or its kin; only their events count.
        counts_users: Whether its users may be the same people; False where the operator vouches that they are not.
    """

    model: str
    events: tuple[PrivacyEvent, ...]
    runs: tuple[str, ...]
    counts_users: bool

    @property
    def counted(self) -> tuple[PrivacyEvent, ...]:
        """The events that count."""
        runs = set(self.runs)
        return tuple(
            event
            for event in self.events
            if event.run_id in runs and (event.privacy_unit == "example" or self.counts_users)
        )


@dataclass(frozen=True, kw_only=True)
class BaseLedgers:
    """A base with its kin (those that it was made from, or that were made from it), and the other models on them."""

    bases: tuple[str, ...]
    others: tuple[OtherModel, ...]
