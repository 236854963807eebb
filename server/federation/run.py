"""The strategy loop: rounds with a deadline and a quorum, each written down before the next begins."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from safetensors.numpy import load, save

from privacy import PrivacyError, PrivacyEvent
from privacy.budget import PrivacyBudget, require_affordable
from privacy.mechanism import size_of
from privacy.randomness import RandomSource, SystemRandom
from server.errors import FederationError
from server.federation.adapter import ADAPTER, OPTIMIZER
from server.federation.aggregation import Aggregate, aggregate
from server.federation.cohort import draw_cohort, draw_poisson, wait_for_nodes
from server.federation.example_budget import require_example_budget
from server.federation.exchange import Exchange, exchange
from server.federation.health import MaskedSum
from server.federation.instructions import instructions_of
from server.federation.optimizer import ServerOptimizer
from server.federation.refusals import RefusalKind, Refused, reasons_by_node
from server.federation.round_facts import facts_of
from server.federation.secure_cohort import fewest_asked
from server.federation.secure_round import SecureResult, SecureRound, plan_of
from server.federation.user_start import open_user_level

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flwr.serverapp import Grid

    from privacy import RoundInstructions
    from server.artifacts import ArtifactStore
    from server.federation.recipe import Recipe
    from server.federation.replies import Accepted, AdapterState
    from server.registry import Registry


@dataclass
class FederatedRun:
    """One run of federated fine-tuning over a Flower Grid.

    Every round ends in one registry transaction that holds its privacy events and its adapter, so a crash loses at most
    the round in progress and nothing is ever released uncharged.
    """

    run_id: str
    recipe: Recipe
    base_hash: str
    adapter: AdapterState
    grid: Grid
    registry: Registry
    artifacts: ArtifactStore
    evaluate: Callable[[AdapterState], float]
    rng: random.Random = field(default_factory=random.SystemRandom)
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    noise: RandomSource = field(default_factory=SystemRandom)
    next_round: int = 1

    def __post_init__(self) -> None:
        require_example_budget(self.recipe, self.registry)
        self._users = open_user_level(
            self.recipe,
            run_id=self.run_id,
            registry=self.registry,
            random=self.noise,
            length=size_of({name: tensor.shape for name, tensor in self.adapter.items()}),
        )
        shares = None if self._users is None else self._users.shares
        # With fewer, a sum of shares would have less noise than was promised.
        self._fewest = max(self.recipe.quorum, 0 if shares is None else shares.fewest)
        self._fewest_asked = self._fewest
        if self.recipe.is_poisson:
            # Sampling hides each user only as long as nothing that is released tells how many were drawn.
            self._fewest = 0
        if self.recipe.secure_aggregation:
            self._fewest_asked = fewest_asked(
                self._fewest,
                cohort=self.recipe.cohort,
                dropouts=self.recipe.secure_dropouts,
                colluding=self.recipe.secure_colluding,
            )
        # Whose shares voided a secure sum: with them the next would be void as well.
        self._culprits: set[int] = set()
        self._optimizer = ServerOptimizer(self.recipe.strategy, self.recipe.server_learning_rate)

    def resume(self) -> None:
        """Go on after the last round in the registry, from its adapter and optimizer state."""
        rounds = self.registry.rounds(self.run_id)
        released = [r for r in rounds if r.status == "released"]
        if released:
            self.adapter = load(self.artifacts.read_bytes(released[-1].artifacts[ADAPTER]))
            self._optimizer.load_state(load(self.artifacts.read_bytes(released[-1].artifacts[OPTIMIZER])))
        self.next_round = max((r.server_round for r in rounds), default=0) + 1

    def execute(self) -> AdapterState:
        """Run the remaining rounds and return the final adapter.

        Raises:
            FederationError: No round of this run brought a usable result, or too many in a row were void.
            BudgetExceededError: The next round could charge the model's users more than they have left.
        """
        void_in_a_row = 0
        for server_round in range(self.next_round, self.recipe.num_server_rounds + 1):
            if self._run_round(server_round):
                void_in_a_row = 0
                continue
            void_in_a_row += 1
            if void_in_a_row > self.recipe.max_void_rounds:
                raise FederationError(
                    f"{void_in_a_row} rounds in a row were void (fewer than {self._fewest} usable replies). "
                    f"The reasons are in `lamella runs show {self.run_id}`."
                )
        if not any(r.status == "released" for r in self.registry.rounds(self.run_id)):
            raise FederationError(
                f"Every round of {self.run_id} was void, so there is no new adapter. "
                f"The reasons are in `lamella runs show {self.run_id}`."
            )
        return self.adapter

    def _run_round(self, server_round: int) -> bool:
        """Run one round and write it down; False when it was void."""
        started = self.now()
        if self._users is not None:
            self._users.require_affordable(server_round)
        nodes = wait_for_nodes(
            self.grid,
            minimum=self._fewest_asked,
            timeout_s=self.recipe.wait_for_devices_s,
            now=self.now,
            sleep=self.sleep,
        )
        asked = self._draw(nodes, server_round)
        if self.recipe.secure_aggregation:
            result, mean, masked, culprits = self._summed(asked, server_round)
            self._culprits |= set(culprits)
        else:
            result = self._within_budget(self._without_replays(self._asked(asked, server_round)))
            mean, masked = None, None
        summed = None if mean is None else Aggregate(mean)
        recorded_at = datetime.now(UTC)
        # A void round's devices have spent their budget all the same: their events are kept. So are those of devices
        # that the user level leaves out: the server has seen their updates.
        examples = [a.contribution.event(recorded_at) for a in result.accepted if self.recipe.has_example_level]
        result = self._admitted(result, server_round)
        is_void = len(result.accepted) < self._fewest or (self.recipe.secure_aggregation and summed is None)
        combined = None if is_void else summed or self._aggregate(result.accepted, server_round)
        loss = None if combined is None else self._advance(combined)
        facts = {"seconds": round(self.now() - started, 3)} | facts_of(result, combined, masked, self.recipe)
        self._record(server_round, result, is_void=is_void, loss=loss, examples=examples, facts=facts)
        return not is_void

    def _asked(self, nodes: Sequence[int], server_round: int) -> Exchange:
        """Each asked device's update, checked."""
        return exchange(
            self.grid,
            nodes,
            instructions=self._instructions(server_round),
            adapter=self.adapter,
            max_norm=self.recipe.max_update_norm,
            deadline_s=self.recipe.deadline_s,
            now=self.now,
            sleep=self.sleep,
        )

    def _summed(self, nodes: Sequence[int], server_round: int) -> SecureResult:
        """The asked devices' mean without any single update, or why it could not be unmasked."""

        def admit(item: Accepted) -> Refused | None:
            found = self._within_budget(self._without_replays(Exchange((item,), ())))
            found = self._admitted(found, server_round)
            return found.refused[0] if found.refused else None

        if len(nodes) < self._fewest_asked:  # nobody spends anything on a sum that could not be unmasked
            why = (
                f"{len(nodes)} devices can be asked and {self._fewest_asked} are needed, as others have no budget left"
            )
            return SecureResult(
                Exchange((), ()), None, MaskedSum(phase="ask", asked=len(nodes), answered=0, reason=why)
            )
        length = sum(tensor.size for tensor in self.adapter.values())
        return SecureRound(
            grid=self.grid,
            plan=plan_of(self.recipe, run_id=self.run_id, server_round=server_round, asked=len(nodes), length=length),
            instructions=self._instructions(server_round),
            adapter=self.adapter,
            admit=admit,
            fewest=self._fewest,
            divisor=None if self._users is None else self.recipe.cohort,
            deadline_s=self.recipe.deadline_s,
            now=self.now,
            sleep=self.sleep,
        ).run(nodes)

    def _draw(self, nodes: Sequence[int], server_round: int) -> tuple[int, ...]:
        """Who is asked in this round."""
        nodes = [node for node in nodes if node not in self._culprits]
        if self._users is not None:
            nodes = self._users.eligible(nodes, server_round)
        if self.recipe.is_poisson:
            return draw_poisson(nodes, probability=self.recipe.sampling_probability, rng=self.rng)
        return draw_cohort(nodes, size=self.recipe.cohort, rng=self.rng)

    def _admitted(self, result: Exchange, server_round: int) -> Exchange:
        """Leave out contributions of devices that have taken part as often, or as lately, as the user level allows."""
        if self._users is None:
            return result
        refused = {}
        for item in result.accepted:
            reason = self._users.refusal(item.contribution.device_id, server_round)
            if reason is not None:
                refused[item.node_id] = Refused(item.node_id, RefusalKind.OVER_BUDGET, reason)
        accepted = tuple(item for item in result.accepted if item.node_id not in refused)
        return Exchange(accepted, (*result.refused, *refused.values()))

    def _aggregate(self, accepted: Sequence[Accepted], server_round: int) -> Aggregate:
        """The round's update; with a user level the noisy one, which alone may leave this round."""
        if self._users is None:
            return aggregate(accepted, self.recipe.aggregation_rule)
        return Aggregate(self._users.average([item.update for item in accepted], self.adapter, server_round))

    def _without_replays(self, result: Exchange) -> Exchange:
        """Leave out contributions whose privacy event is in the ledger: each event is charged once."""
        known = self.registry.known_events([item.contribution.event_id for item in result.accepted])
        fresh = tuple(item for item in result.accepted if item.contribution.event_id not in known)
        replayed = tuple(
            Refused(item.node_id, RefusalKind.REPLAYED, "its privacy event is recorded already, for another round")
            for item in result.accepted
            if item.contribution.event_id in known
        )
        return Exchange(fresh, result.refused + replayed)

    def _within_budget(self, result: Exchange) -> Exchange:
        """Leave out contributions that their device could not afford: each device checks too, but is not believed."""
        if not self.recipe.has_example_level:
            return result
        budget = PrivacyBudget(target_epsilon=self.recipe.target_epsilon, target_delta=self.recipe.target_delta)
        now = datetime.now(UTC)
        affordable: list[Accepted] = []
        refused = list(result.refused)
        for item in result.accepted:
            device = item.contribution.device_id
            try:
                require_affordable(budget, self.registry.privacy_events(device_id=device), item.contribution.event(now))
            # Arithmetic too: a device says how much noise it added, and no number of its may end the round.
            except (PrivacyError, ArithmeticError) as error:
                refused.append(Refused(item.node_id, RefusalKind.OVER_BUDGET, f"privacy budget: {error}"))
            else:
                affordable.append(item)
        return Exchange(tuple(affordable), tuple(refused))

    def _advance(self, combined: Aggregate) -> float:
        """Move the adapter by the round's update and return its held-out loss."""
        self.adapter = self._optimizer.step(self.adapter, combined.update)
        return self.evaluate(self.adapter)

    def _record(
        self,
        server_round: int,
        result: Exchange,
        *,
        is_void: bool,
        loss: float | None,
        examples: Sequence[PrivacyEvent],
        facts: dict[str, object],
    ) -> None:
        users = self._users
        event = None if users is None else users.event(result.accepted, server_round, also=examples)
        artifacts = {}
        if not is_void:
            # Artifacts first: a row never points at bytes that are not there.
            artifacts = {
                ADAPTER: self.artifacts.put_bytes(save(self.adapter)),
                OPTIMIZER: self.artifacts.put_bytes(save(self._optimizer.state())),
            }
        self.registry.record_round(
            self.run_id,
            server_round,
            status="void" if is_void else "released",
            replies=len(result.accepted),
            failures=reasons_by_node(result.refused),
            held_out_loss=loss,
            events=[*examples, *([] if event is None else [event])],
            artifacts=artifacts,
            facts=facts | ({} if users is None else users.facts()),
            known_user_events=None if users is None else users.known_events,
        )
        if users is not None:
            users.recorded(event, result.accepted, server_round)

    def _instructions(self, server_round: int) -> RoundInstructions:
        return instructions_of(
            self.recipe,
            run_id=self.run_id,
            server_round=server_round,
            base_hash=self.base_hash,
            promise=None if self._users is None else self._users.promise,
        )
