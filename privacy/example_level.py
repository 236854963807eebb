"""What a ledger lets be promised for single examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.event import PrivacyEvent


def runs_without_example_noise(events: Sequence[PrivacyEvent]) -> tuple[str, ...]:
    """The runs that took whole users' updates without noise of the devices' own: they charged nobody per example."""
    charged = {event.run_id for event in events if event.privacy_unit == "example"}
    return tuple(dict.fromkeys(event.run_id for event in events if event.run_id not in charged))


def promised_per_example(events: Sequence[PrivacyEvent]) -> tuple[PrivacyEvent, ...]:
    """The events that a promise per example rests on.

    None, when any run of the ledger took updates without noise of the devices' own: what those devices sent protects no
    example from the server, whatever other runs cost.
    """
    if runs_without_example_noise(events):
        return ()
    return tuple(event for event in events if event.privacy_unit == "example")
