"""A device's side of a secure sum over Flower messages: what it keeps between two of them, and what it sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client_sdk.errors import DeclinedError
from client_sdk.local_training import train_round
from privacy.randomness import SystemRandom
from privacy.secure_aggregation import Member, Neighbours, RoundPlan, Survivors
from privacy.secure_aggregation.messages import Delivered
from privacy.secure_aggregation.quantization import Quantization, wrapped
from privacy.skellam import skellam_noise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from flwr.app import Context

    from client_sdk.local_training import TrainingSite
    from privacy import RoundInstructions
    from privacy.secure_aggregation.messages import Advertisement, Envelopes, Shares

SECURE: Final = "secure-sum"
_KEPT: Final = "secure-sum-member"
_LARGEST_TOLD: Final = 16 << 20


def is_secure(content: RecordDict) -> bool:
    """Whether a message is a step of a secure sum."""
    return SECURE in content.config_records


def answer_secure(
    content: RecordDict,
    context: Context,
    site: TrainingSite,
    instructions: RoundInstructions | None,
    adapter: Mapping[str, npt.NDArray[np.float32]] | None,
) -> RecordDict:
    """Take the step that a message asks for.

    What must be kept between steps is in `context.state`, on this device, and gone after the last step or a refusal.

    Args:
        content: The message's.
        context: Flower's, of this run on this device.
        site: Where this device trains.
        instructions: What to train; only the step `mask` has them.
        adapter: What to train from; as above.

    Raises:
        DeclinedError: The step does not follow the last one, or cannot be read.
        SecureSumError: The server does not keep to the protocol.
    """
    asked = dict(content.config_records[SECURE])
    kept = context.state.config_records.pop(_KEPT, None)
    step = asked.get("step")
    if step == "advertise":
        member = Member(RoundPlan.model_validate_json(_raw(asked, "plan")), int(str(asked.get("number"))))
        return _kept(context, member, _told(member.advertise()))
    if kept is None:
        raise DeclinedError("this device knows nothing of the secure sum that it should go on with")
    member = Member.from_bytes(bytes(kept["member"]))  # type: ignore[arg-type]
    raw = _raw(asked, "told")
    if step == "share":
        return _kept(context, member, _told(member.share(Neighbours.model_validate_json(raw))))
    if step == "mask" and instructions is not None and adapter is not None:
        return _kept(context, member, _masked(member, Delivered.model_validate_json(raw), site, instructions, adapter))
    if step == "reveal":
        return _told(member.reveal(Survivors.model_validate_json(raw)))
    raise DeclinedError("the server asked for a step that a secure sum does not have")


def _masked(
    member: Member,
    delivered: Delivered,
    site: TrainingSite,
    instructions: RoundInstructions,
    adapter: Mapping[str, npt.NDArray[np.float32]],
) -> RecordDict:
    """Train, and put the update under its masks; beside it go the facts that every contribution has."""
    plan = member.plan
    names = sorted(adapter)
    length = sum(adapter[name].size for name in names)
    if (plan.run_id, plan.server_round, plan.length) != (instructions.run_id, instructions.server_round, length):
        raise DeclinedError("the secure sum was agreed on for another round, or another adapter")
    bound = instructions.secure_norm
    if bound is None or instructions.secure_levels is None:
        raise DeclinedError("the round is summed securely, but its instructions say no bound for it")
    promise = instructions.user_promise
    if promise is not None and promise.shares.length != length:
        raise DeclinedError("the noise for whole users was agreed on for another adapter")
    member.open(delivered)  # before anything is spent: too few neighbours may be left
    form = Quantization(clipping_norm=bound, levels=instructions.secure_levels, length=length)
    contribution, update = train_round(site, instructions, adapter)
    flat = np.concatenate([update[name].ravel() for name in names])
    masked = member.mask(wrapped(_noised(form.quantized(flat, SystemRandom()), instructions)))
    return RecordDict(
        {
            "contribution": ConfigRecord({**contribution.to_config()}),
            "masked": ArrayRecord({"masked": Array(masked.values)}),
        }
    )


def _noised(whole: npt.NDArray[np.int64], instructions: RoundInstructions) -> npt.NDArray[np.int64]:
    """The rounded update with this device's share of the noise, where the round promises some to whole users."""
    if instructions.user_promise is None:
        return whole
    variance = instructions.user_promise.shares.share_variance
    return whole + skellam_noise(whole.size, variance=variance, random=SystemRandom())


def _kept(context: Context, member: Member, reply: RecordDict) -> RecordDict:
    context.state[_KEPT] = ConfigRecord({"member": member.to_bytes()})
    return reply


def _told(message: Advertisement | Envelopes | Shares) -> RecordDict:
    return RecordDict({SECURE: ConfigRecord({"told": message.model_dump_json().encode()})})


def _raw(asked: Mapping[str, object], key: str) -> bytes:
    raw = asked.get(key)
    if not isinstance(raw, bytes) or len(raw) > _LARGEST_TOLD:
        raise DeclinedError(f"the server's message has no usable {key!r}")
    return raw
