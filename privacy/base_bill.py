"""What the people of a model paid with what other models on its base cost them: from several ledgers, one bill a unit.

A device is known again by its pseudonym, whatever the model is called: only its own events on the base are added. A
user is not: each pays the costliest bill of every other model besides (`privacy.user_level`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.accountant import epsilon_by_device
from privacy.promises import promised
from privacy.user_level import bills_with_others

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.base_ledgers import OtherModel
    from privacy.event import PrivacyEvent


def example_epsilon_on_base(
    events: Sequence[PrivacyEvent], others: Sequence[OtherModel], *, target_delta: float
) -> float | None:
    """ε of the costliest device of a model's ledger, with what other models charged it; None: no device was charged.

    Raises:
        UnknownEventError: An event cannot be accounted for.
    """
    own = promised(events, "example")
    if not own:
        return None
    devices = {event.device_id for event in own}
    besides = [event for other in others for event in other.counted if event.device_id in devices]
    return max(epsilon_by_device([*own, *besides], target_delta=target_delta).values())


def user_epsilon_on_base(
    events: Sequence[PrivacyEvent], others: Sequence[OtherModel], *, target_delta: float
) -> float | None:
    """ε of the costliest user of a model's ledger, with the costliest of each other model; None: no user was charged.

    Raises:
        UnknownEventError: An event cannot be accounted for.
    """
    own = promised(events, "user")
    if not own:
        return None
    besides = [event for other in others for event in other.counted if event.privacy_unit == "user"]
    bills = bills_with_others([*own, *besides], population=str(own[0].population), target_delta=target_delta)
    return bills.epsilon(target_delta=target_delta)
