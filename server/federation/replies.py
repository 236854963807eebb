"""What a device sent back, checked before it is believed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from privacy import Contribution, ContributionError, RoundInstructions
from server.federation.refusals import RefusalKind, Refused
from server.federation.tensors import AdapterState, TensorRefusedError, read_update

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from flwr.app import Message

__all__ = ["Accepted", "AdapterState", "Refused", "check_reply", "update_norm"]

log = logging.getLogger("lamella.federation")

_RECORDS: Final = {"contribution", "update"}
# Facts that a contribution repeats from the instructions, and what it is when they differ.
_REPEATED: Final = {
    "run_id": RefusalKind.WRONG_RUN,
    "server_round": RefusalKind.WRONG_ROUND,
    "base_hash": RefusalKind.WRONG_BASE,
    "clipping_norm": RefusalKind.WRONG_FACTS,
    "target_delta": RefusalKind.WRONG_FACTS,
    "steps": RefusalKind.WRONG_FACTS,
}
# Outside, the accountant overflows or divides by zero; no calibrated device is near either end.
_LEAST_NOISE, _MOST_NOISE = 1e-6, 1e6


@dataclass(frozen=True)
class Accepted:
    """A contribution that passed every check; `update` is trained minus sent adapter, float32."""

    node_id: int
    contribution: Contribution
    update: AdapterState


def check_reply(
    message: Message,
    *,
    instructions: RoundInstructions,
    adapter: Mapping[str, npt.NDArray[np.float32]],
    max_norm: float,
) -> Accepted | Refused:
    """Check one device's reply: error, records, facts, names, shapes, finiteness, norm. A device is never trusted.

    Whatever a device sends, nothing is raised: its bytes must not end the others' round.

    Args:
        message: The reply as Flower delivered it.
        instructions: What the device was asked to do.
        adapter: The adapter that was sent out; fixes names and shapes.
        max_norm: L2 bound on the whole update.
    """
    node_id = message.metadata.src_node_id
    try:
        return _checked(message, instructions=instructions, adapter=adapter, max_norm=max_norm)
    except Exception as error:
        # The checks below refuse what they know. The rest would be a fault of ours or of Flower's: logged in full.
        log.exception("the reply of node %d could not be checked", node_id)
        return Refused(node_id, RefusalKind.MALFORMED, f"malformed reply: {type(error).__name__} while checking it")


def _checked(
    message: Message,
    *,
    instructions: RoundInstructions,
    adapter: Mapping[str, npt.NDArray[np.float32]],
    max_norm: float,
) -> Accepted | Refused:
    node_id = message.metadata.src_node_id
    contribution = check_facts(message, instructions=instructions, records=_RECORDS)
    if isinstance(contribution, Refused):
        return contribution
    try:
        update = read_update(message.content.array_records["update"], adapter)
    except TensorRefusedError as error:
        return Refused(node_id, error.kind, str(error))
    norm = update_norm(update)
    # A NaN would pass `norm > max_norm`: test for what is allowed, not for what is not.
    if not norm <= max_norm:
        reason = f"update norm {norm:.3g} is not within {max_norm:.3g}"
        return Refused(node_id, RefusalKind.NORM_TOO_LARGE, reason)
    return Accepted(node_id, contribution, update)


def check_facts(
    message: Message, *, instructions: RoundInstructions, records: Collection[str]
) -> Contribution | Refused:
    """A reply's facts: no error, exactly these records, and a contribution that says what was asked."""
    node_id = message.metadata.src_node_id
    problem = refusal_in(message) or _wrong_records(message, records)
    if problem is not None:
        return Refused(node_id, *problem)
    try:
        contribution = Contribution.from_config(dict(message.content.config_records["contribution"]))
    except ContributionError as error:
        return Refused(node_id, RefusalKind.MALFORMED, f"malformed reply: {error}")
    problem = _disagreement(contribution, instructions)
    return contribution if problem is None else Refused(node_id, *problem)


def refusal_in(message: Message) -> tuple[RefusalKind, str] | None:
    """Why a device did not train, when it says so itself or Flower does."""
    if message.has_error():
        return RefusalKind.DEVICE_ERROR, f"device error: {message.error.reason or message.error.code}"
    if "declined" in message.content.config_records:
        reason = message.content.config_records["declined"].get("reason", "no reason given")
        return RefusalKind.DECLINED, f"declined: {reason if isinstance(reason, str) else 'no readable reason'}"
    return None


def _wrong_records(message: Message, records: Collection[str]) -> tuple[RefusalKind, str] | None:
    """Records that are missing or of another kind, or that nobody asked for; but for the facts all are arrays."""
    content = message.content
    if set(content) != set(records):
        return RefusalKind.MALFORMED, f"malformed reply: it must hold {' and '.join(sorted(records))}, and no more"
    arrays = set(records) - {"contribution"}
    if "contribution" not in content.config_records or not arrays <= set(content.array_records):
        return RefusalKind.MALFORMED, "malformed reply: a record is of the wrong kind"
    return None


def _disagreement(contribution: Contribution, instructions: RoundInstructions) -> tuple[RefusalKind, str] | None:
    """The first fact in which a contribution differs from what was asked, in words."""
    for fact, kind in _REPEATED.items():
        said, asked = getattr(contribution, fact), getattr(instructions, fact)
        if said != asked:
            return kind, f"reply says {fact} {said!r}, asked was {asked!r}"
    count, most = contribution.num_examples, instructions.max_examples
    if instructions.told_examples(count) != count:
        return RefusalKind.WRONG_FACTS, f"reply tells {count} examples; in this round every device says {most}"
    if count > most:
        return RefusalKind.WRONG_FACTS, f"reply claims {count} examples, the cap is {most}"
    probability = instructions.sampling_probability_for(count)
    if contribution.sampling_probability != probability:
        said = contribution.sampling_probability
        return (
            RefusalKind.WRONG_FACTS,
            f"reply says sampling_probability {said!r}, {count} examples make {probability!r}",
        )
    noise = contribution.noise_multiplier
    if noise and not _LEAST_NOISE <= noise <= _MOST_NOISE:
        return RefusalKind.WRONG_FACTS, f"reply says noise_multiplier {noise!r}, which nobody can account for"
    return None


def update_norm(update: Mapping[str, npt.NDArray[np.float32]]) -> float:
    """L2 norm over all tensors, in float64; NaN or infinity when any value is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(sum(float(np.sum(np.square(t.astype(np.float64)))) for t in update.values())))
