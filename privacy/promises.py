"""What a ledger lets be promised: a unit is protected as long as every run of the ledger added noise for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.event import PrivacyEvent, PrivacyUnit


def runs_without_noise(events: Sequence[PrivacyEvent], unit: PrivacyUnit) -> tuple[str, ...]:
    """The runs that charged nobody of a unit: what they released, and all that follows, is without noise for it."""
    charged = {event.run_id for event in events if event.privacy_unit == unit}
    return tuple(dict.fromkeys(event.run_id for event in events if event.run_id not in charged))


def promised(events: Sequence[PrivacyEvent], unit: PrivacyUnit) -> tuple[PrivacyEvent, ...]:
    """The events that a promise to a unit rests on.

    None, when any run of the ledger added no noise for it. Updates without the devices' own noise protect no example
    from the server, and sums without noise for whole users protect no user, whatever other runs cost.
    """
    if runs_without_noise(events, unit):
        return ()
    return tuple(event for event in events if event.privacy_unit == unit)
