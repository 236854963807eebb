"""A device's own say in what it spends as a whole user, where devices make the noise of a sum together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from client_sdk.errors import DeclinedError
from privacy.attestation import MAX_DELTA
from privacy.user_level import UserBills

if TYPE_CHECKING:
    from client_sdk.local_training import TrainingSite
    from privacy import PrivacyEvent, RoundInstructions


def user_event(site: TrainingSite, instructions: RoundInstructions) -> PrivacyEvent | None:
    """What a round costs this device as a user, to be charged to its own ledger; None: devices make no noise in it.

    The server keeps the budget of all users. This holds its promise against what this device has taken part in and
    against its owner's limit: that as many shares come together as were promised remains the server's word.

    Raises:
        DeclinedError: It would spend more than the budget or this device's limit, or δ promises nothing.
    """
    promise, bound = instructions.user_promise, instructions.secure_norm
    if promise is None or bound is None:
        return None
    if promise.target_delta > MAX_DELTA:
        raise DeclinedError(f"δ = {promise.target_delta:g} for whole users is no protection (at most {MAX_DELTA:g})")
    event = promise.event(
        run_id=instructions.run_id,
        server_round=instructions.server_round,
        clipping_norm=bound,
        device_id=site.device_id,
        recorded_at=datetime.now(UTC),
    )
    own = [known for known in site.ledger.events() if known.population == promise.population]
    spent = UserBills([*own, event]).epsilon(target_delta=promise.target_delta)
    limit = min(promise.target_epsilon, site.max_epsilon)
    if spent > limit:
        raise DeclinedError(
            f"privacy budget: the round would bring this device's ε as a user to {spent:.3f}, and {limit:g} is allowed"
        )
    return event
