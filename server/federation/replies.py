"""What a device sent back, checked before it is believed."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from privacy import Contribution, ContributionError, RoundInstructions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import ArrayRecord, Message

AdapterState = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Accepted:
    """A contribution that passed every check; `update` is trained minus sent adapter, float32."""

    node_id: int
    contribution: Contribution
    update: AdapterState


@dataclass(frozen=True)
class Refused:
    """A reply that is left out of the average, and why."""

    node_id: int
    reason: str


def check_reply(
    message: Message,
    *,
    instructions: RoundInstructions,
    adapter: Mapping[str, npt.NDArray[np.float32]],
    max_norm: float,
) -> Accepted | Refused:
    """Check one device's reply: error, facts, names, shapes, finiteness, norm. A device is never trusted.

    Args:
        message: The reply as Flower delivered it.
        instructions: What the device was asked to do.
        adapter: The adapter that was sent out; fixes names and shapes.
        max_norm: L2 bound on the whole update.
    """
    node_id = message.metadata.src_node_id
    problem = _said_no(message)
    if problem is not None:
        return Refused(node_id, problem)
    try:
        contribution = Contribution.from_config(dict(message.content.config_records["contribution"]))
        arrays = message.content.array_records["update"]
    except (KeyError, ContributionError) as error:
        return Refused(node_id, f"malformed reply: {error}"[:300])
    problem = _disagreement(contribution, instructions)
    if problem is not None:
        return Refused(node_id, problem)
    update = _read_update(arrays, adapter)
    if isinstance(update, str):
        return Refused(node_id, update)
    norm = update_norm(update)
    # A NaN would pass `norm > max_norm`: test for what is allowed, not for what is not.
    if not norm <= max_norm:
        return Refused(node_id, f"update norm {norm:.3g} is not within {max_norm:.3g}")
    return Accepted(node_id, contribution, update)


def _said_no(message: Message) -> str | None:
    """Why a device did not train, when it says so itself or Flower does."""
    if message.has_error():
        return f"device error: {message.error.reason or message.error.code}"[:300]
    if "declined" in message.content.config_records:
        reason = message.content.config_records["declined"].get("reason", "no reason given")
        return f"declined: {str(reason)[:300]}"
    return None


def _read_update(arrays: ArrayRecord, adapter: Mapping[str, npt.NDArray[np.float32]]) -> AdapterState | str:
    """The update's tensors, or in words what is wrong with them."""
    if set(arrays) != set(adapter):
        return f"update has {len(arrays)} tensors, the adapter has {len(adapter)}, or names differ"
    update: AdapterState = {}
    for name, expected in adapter.items():
        try:
            update[name] = _read_tensor(arrays[name].data, expected.shape)
        except ValueError as error:
            return f"tensor {name} cannot be read: {error}"[:300]
    return update


def _read_tensor(raw: bytes, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Read a float32 tensor from npy bytes; the header is compared before anything of its size is allocated.

    Raises:
        ValueError: The bytes are not exactly one float32 tensor of this shape.
    """
    stream = io.BytesIO(raw)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not an npy 1.0 array")
    declared, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if declared != shape or dtype != np.float32:
        raise ValueError(f"bytes hold {dtype}{list(declared)}, expected float32{list(shape)}")
    values = np.frombuffer(raw, dtype=np.float32, offset=stream.tell())  # raises on a ragged length
    return values.reshape(shape, order="F" if fortran_order else "C").copy()


def _disagreement(contribution: Contribution, instructions: RoundInstructions) -> str | None:
    """The first fact in which a contribution differs from what was asked, in words."""
    for fact in ("run_id", "server_round", "base_hash", "clipping_norm", "target_delta", "steps"):
        said, asked = getattr(contribution, fact), getattr(instructions, fact)
        if said != asked:
            return f"reply says {fact} {said!r}, asked was {asked!r}"
    if contribution.num_examples > instructions.max_examples:
        return f"reply claims {contribution.num_examples} examples, the cap is {instructions.max_examples}"
    return None


def update_norm(update: Mapping[str, npt.NDArray[np.float32]]) -> float:
    """L2 norm over all tensors, in float64; NaN or infinity when any value is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(sum(float(np.sum(np.square(t.astype(np.float64)))) for t in update.values())))
