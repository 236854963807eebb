"""One round whose updates only their sum leaves the devices in: four exchanges, each with its own silence."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ValidationError

from privacy import SecureSumError
from privacy.secure_aggregation import Advertisement, Coordinator, Envelopes, MaskedVector, RoundPlan, Shares
from privacy.secure_aggregation.graph import neighbours_needed
from privacy.secure_aggregation.quantization import Quantization
from server.errors import FederationError
from server.federation.exchange import Exchange
from server.federation.health import MaskedSum
from server.federation.inbox import Inbox, replies_of
from server.federation.refusals import RefusalKind, Refused
from server.federation.replies import Accepted, check_facts, refusal_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    from flwr.app import Message
    from flwr.serverapp import Grid

    from privacy import RoundInstructions
    from server.federation.health import SecurePhase
    from server.federation.recipe import Recipe
    from server.federation.tensors import AdapterState

log = logging.getLogger("lamella.federation")

M = TypeVar("M", bound=BaseModel)
SECURE: Final = "secure-sum"
# Between steps devices compute for seconds at most; training has the recipe's deadline.
_STEP_DEADLINE_S: Final = 60.0
_BYTES_A_NEIGHBOUR: Final = 1024


def plan_of(recipe: Recipe, *, run_id: str, server_round: int, asked: int, length: int) -> RoundPlan:
    """The secure sum that a recipe asks for, among so many devices.

    Raises:
        FederationError: So few devices cannot keep the recipe's promise.
    """
    try:
        neighbours, threshold = neighbours_needed(
            asked, dropouts=recipe.secure_dropouts, colluding=recipe.secure_colluding
        )
        return RoundPlan(
            run_id=run_id, server_round=server_round, length=length, neighbours=neighbours, threshold=threshold
        )
    except ValueError as error:
        raise FederationError(f"No secure sum among {asked} devices: {error}.") from None


def levels_for(cohort: int) -> int:
    """In how many whole numbers a bound is cut: as fine as a sum of `cohort` vectors allows."""
    return 1 << ((1 << 30) // cohort).bit_length() - 1


class SecureResult(NamedTuple):
    """Whose contributions are in the sum and who is left out; then the mean, or why it stays masked, and who did it.

    `culprits` are nodes whose shares no secret can be restored from: with one of them no sum would come about.
    """

    exchange: Exchange
    mean: AdapterState | None
    masked: MaskedSum | None
    culprits: tuple[int, ...] = ()


@dataclass
class SecureRound:
    """The server's side of one round.

    Attributes:
        grid: How devices are reached.
        plan: The secure sum.
        instructions: What devices are asked to train.
        adapter: What they train from.
        admit: May still refuse a contribution by its facts, before it is in the sum.
        fewest: Updates that the sum must hold; with fewer it stays masked, as too few hide each other, and too few
            shares of noise hide nobody.
        divisor: Of the sum; None: how many updates are in it.
        deadline_s: For training.
        now: A clock.
        sleep: Waits.
    """

    grid: Grid
    plan: RoundPlan
    instructions: RoundInstructions
    adapter: AdapterState
    admit: Callable[[Accepted], Refused | None]
    fewest: int
    divisor: int | None
    deadline_s: float
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _refused: dict[int, Refused] = field(default_factory=dict)
    _accepted: dict[int, Accepted] = field(default_factory=dict)
    _phase: SecurePhase = "advertise"
    _answered: int = 0

    def run(self, nodes: Sequence[int]) -> SecureResult:
        """Ask `nodes`, step by step, as long as enough of them answer.

        Members are numbered in the order of `nodes`, from 1: the numbers say nothing about a device.
        """
        coordinator = Coordinator(self.plan)
        member_of = {node: number for number, node in enumerate(nodes, start=1)}
        node_of = {number: node for node, number in member_of.items()}
        try:
            told = {
                node: _step("advertise", plan=self.plan.model_dump_json().encode(), number=number)
                for node, number in member_of.items()
            }
            introduced = coordinator.introduce(self._heard(told, Advertisement, member_of))
            self._leave_out(coordinator.left_out, node_of)
            self._phase = "share"
            told = {node_of[number]: _step("share", told=_json(one)) for number, one in introduced.items()}
            delivered = coordinator.deliver(self._heard(told, Envelopes, member_of))
            self._leave_out(coordinator.left_out, node_of)
            self._phase = "mask"
            self._train({node_of[number]: _json(one) for number, one in delivered.items()}, coordinator, member_of)
            self._answered = len(coordinator.alive)
            self._require_enough(len(coordinator.alive))
            told = {node_of[number]: _step("reveal", told=_json(one)) for number, one in coordinator.ask().items()}
            self._phase = "reveal"
            for shares in self._heard(told, Shares, member_of, is_late=True):
                coordinator.hear(shares)
            total = coordinator.total()
        except SecureSumError as error:
            log.warning("the secure sum of round %d failed: %s", self.plan.server_round, error)
            why = MaskedSum(phase=self._phase, asked=len(nodes), answered=self._answered, reason=str(error))
            culprits = tuple(sorted(node_of[number] for number in coordinator.culprits))
            for node in culprits:
                reason = "no secret can be restored from the shares that it gave out or gave back; it is asked no more"
                self._refused[node] = Refused(node, RefusalKind.WRONG_SHARES, reason)
            return SecureResult(self._exchange(), None, why, culprits)
        for dealer, holders in coordinator.wrong_shares.items():
            log.info("no true share of member %d's secret came from %s; the sum did without", dealer, sorted(holders))
        return SecureResult(self._exchange(), self._restored(total), None)

    def _leave_out(self, members: Mapping[int, str], node_of: Mapping[int, int]) -> None:
        for number, why in members.items():
            refused = Refused(node_of[number], RefusalKind.MALFORMED, f"malformed step of the secure sum: {why}")
            self._refused.setdefault(refused.node_id, refused)

    def _require_enough(self, updates: int) -> None:
        """Before anybody is asked to take masks off."""
        if updates < self.fewest:
            raise SecureSumError(f"{updates} updates are in it, {self.fewest} are needed; it stays masked")

    def _train(self, delivered: Mapping[int, bytes], coordinator: Coordinator, member_of: Mapping[int, int]) -> None:
        adapter = ArrayRecord({name: Array(tensor) for name, tensor in self.adapter.items()})
        instructions = ConfigRecord({**self.instructions.to_config()})

        def take(inbox: Inbox, reply: Message) -> None:
            node = reply.metadata.src_node_id
            found = self._checked(reply)
            if isinstance(found, Refused):
                inbox.refused.append(found)
                return
            accepted, values = found
            if not coordinator.add(MaskedVector(member_of[node], values)):
                inbox.refuse(node, RefusalKind.WRONG_SHAPE, "a masked vector of another length")
                return
            self._accepted[node] = accepted

        contents = {
            node: RecordDict({"adapter": adapter, "instructions": instructions, SECURE: _asked("mask", told=raw)})
            for node, raw in delivered.items()
        }
        self._note(
            replies_of(self.grid, contents, deadline_s=self.deadline_s, take=take, now=self.now, sleep=self.sleep)
        )

    def _checked(self, reply: Message) -> tuple[Accepted, npt.NDArray[np.uint32]] | Refused:
        """Facts and masked vector of one reply, or why it is left out: a device is never trusted."""
        node = reply.metadata.src_node_id
        try:
            facts = check_facts(reply, instructions=self.instructions, records={"contribution", "masked"})
            if isinstance(facts, Refused):
                return facts
            accepted = Accepted(node, facts, {})
            known = {one.contribution.device_id for one in self._accepted.values()}
            if facts.device_id in known:
                return Refused(node, RefusalKind.DUPLICATE_DEVICE, "a second contribution under the same device id")
            refusal = self.admit(accepted)
            if refusal is not None:
                return refusal
            array = reply.content.array_records["masked"]["masked"]
            if array.dtype != "uint32" or tuple(array.shape) != (self.plan.length,):
                return Refused(node, RefusalKind.WRONG_SHAPE, f"a masked vector of {array.dtype} {array.shape}")
            return accepted, array.numpy()
        except Exception as error:
            log.exception("the masked reply of node %d could not be checked", node)
            return Refused(node, RefusalKind.MALFORMED, f"malformed reply: {type(error).__name__} while checking it")

    def _heard(
        self,
        told: Mapping[int, RecordDict],
        kind: type[M],
        member_of: Mapping[int, int],
        *,
        is_late: bool = False,
    ) -> list[M]:
        """What the nodes answered to a step, each in its own name."""
        found: list[M] = []
        largest = 4096 + _BYTES_A_NEIGHBOUR * self.plan.neighbours

        def take(inbox: Inbox, reply: Message) -> None:
            node = reply.metadata.src_node_id
            problem = refusal_in(reply)
            if problem is not None:
                inbox.refuse(node, *problem)
                return
            try:
                found.append(_read(reply, kind, member=member_of[node], largest=largest))
            except (KeyError, ValueError) as error:
                reason = "not what the step asks for" if isinstance(error, ValidationError) else str(error)
                inbox.refuse(node, RefusalKind.MALFORMED, f"malformed step of the secure sum: {reason}")

        inbox = replies_of(
            self.grid,
            told,
            deadline_s=min(_STEP_DEADLINE_S, self.deadline_s),
            take=take,
            now=self.now,
            sleep=self.sleep,
        )
        self._answered = len(found)
        if not is_late:  # in the last step the contributions are in the sum already
            self._note(inbox)
        return found

    def _note(self, inbox: Inbox) -> None:
        for refused in inbox.refused:
            self._refused.setdefault(refused.node_id, refused)

    def _exchange(self) -> Exchange:
        accepted = sorted(self._accepted.values(), key=lambda one: one.contribution.device_id)
        return Exchange(tuple(accepted), tuple(self._refused.values()))

    def _restored(self, total: npt.NDArray[np.uint32]) -> AdapterState:
        """The sum of the updates, every one as heavy, over the divisor."""
        norm, levels = self.instructions.secure_norm, self.instructions.secure_levels
        if norm is None or levels is None:
            raise FederationError("a secure sum needs instructions that say its bound")
        form = Quantization(clipping_norm=norm, levels=levels, length=self.plan.length)
        flat, start, found = form.restored(total) / (self.divisor or len(self._accepted)), 0, {}
        for name in sorted(self.adapter):
            tensor = self.adapter[name]
            found[name] = flat[start : start + tensor.size].reshape(tensor.shape).astype(np.float32)
            start += tensor.size
        return found


def _step(step: str, **told: bytes | int) -> RecordDict:
    return RecordDict({SECURE: _asked(step, **told)})


def _asked(step: str, **told: bytes | int) -> ConfigRecord:
    return ConfigRecord({"step": step, **told})


def _read(reply: Message, kind: type[M], *, member: int, largest: int) -> M:
    """One step's message.

    Raises:
        KeyError, ValueError: It is not there, too long, not what the step asks for, or in another's name.
    """
    raw = reply.content.config_records[SECURE]["told"]
    if not isinstance(raw, bytes) or len(raw) > largest:
        raise ValueError("its size or type")
    message = kind.model_validate_json(raw)
    if getattr(message, "member", None) != member:
        raise ValueError("it speaks for another member")
    return message


def _json(message: BaseModel) -> bytes:
    return message.model_dump_json().encode()
