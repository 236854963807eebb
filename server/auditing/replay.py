"""A run again, in one process: the same rounds of the same people, with DP or without, and with secrets in the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from privacy import Contribution
from privacy.dp_sgd import DPSGDParameters
from privacy.mechanism import noisy_average, size_of
from privacy.randomness import SystemRandom
from privacy.skellam_sum import average_in_levels, noise_of_shares
from server.auditing.trainer import parameters_of, without_dp
from server.federation.aggregation import aggregate
from server.federation.optimizer import ServerOptimizer
from server.federation.replies import Accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from model import Example
    from privacy.event import PrivacyEvent
    from server.auditing.people import People
    from server.auditing.trainer import LocalTraining
    from server.federation.recipe import Recipe
    from server.federation.replies import AdapterState


@dataclass(frozen=True)
class Replay:
    """Trains a run's adapter again.

    Attributes:
        recipe: The run's.
        events: The run's, in order: who took part in which round, and with how much noise.
        people: Whose text.
        training: The base, loaded.
        start: The adapter that the run began with.
        secrets: More examples for some devices, by pseudonym.
    """

    recipe: Recipe
    events: Sequence[PrivacyEvent]
    people: People
    training: LocalTraining
    start: AdapterState
    secrets: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)

    def run(self, *, has_dp: bool, on_step: Callable[[int, int], None]) -> AdapterState:
        """The adapter after the last round; `on_step` is told (devices done, devices in all)."""
        adapter, optimizer = self.start, ServerOptimizer(self.recipe.strategy, self.recipe.server_learning_rate)
        rounds = self._rounds()
        total, done = sum(len(devices) for devices, _ in rounds), 0
        for devices, of_users in rounds:
            accepted = []
            for device, event in devices.items():
                accepted.append(self._contribution(adapter, device, event, has_dp=has_dp))
                done += 1
                on_step(done, total)
            if accepted:
                adapter = optimizer.step(adapter, self._combined(accepted, of_users if has_dp else None))
        return adapter

    def _rounds(self) -> list[tuple[dict[str, PrivacyEvent | None], PrivacyEvent | None]]:
        """Each round's devices with their own events, and the event of the sum over users."""
        found: dict[int, tuple[dict[str, PrivacyEvent | None], PrivacyEvent | None]] = {}
        for event in self.events:
            devices, of_users = found.get(event.server_round, ({}, None))
            for name in (event.device_id, *(event.devices or ())):
                if name is not None and name in self.people.examples:
                    devices[name] = event if event.device_id is not None else devices.get(name)
            found[event.server_round] = (devices, event if event.devices is not None else of_users)
        return [found[number] for number in sorted(found)]

    def _contribution(
        self, adapter: AdapterState, device: str, event: PrivacyEvent | None, *, has_dp: bool
    ) -> Accepted:
        examples = self.training.encode([*self.people.examples[device], *self.secrets.get(device, ())])
        parameters = self._without_own_noise(len(examples))
        if event is not None:
            told = self.recipe.told_examples(len(self.people.examples[device]))
            parameters = parameters_of(event, told_examples=told)
        update = self.training.update(adapter, examples, parameters if has_dp else without_dp(parameters))
        contribution = Contribution(
            device_id=device,
            run_id=self.events[0].run_id,
            server_round=self.events[0].server_round,
            base_hash="0" * 64,
            num_examples=self.recipe.told_examples(len(examples)),
            noise_multiplier=parameters.noise_multiplier,
            sampling_probability=parameters.sampling_probability,
            steps=parameters.steps,
            clipping_norm=parameters.clipping_norm,
            target_delta=self.recipe.target_delta,
        )
        return Accepted(node_id=0, contribution=contribution, update=update)

    def _without_own_noise(self, count: int) -> DPSGDParameters:
        """What a device does where the server alone adds noise."""
        told = self.recipe.told_examples(count)
        probability = min(1.0, self.recipe.batch_size / told)
        return DPSGDParameters(
            noise_multiplier=0.0,
            clipping_norm=self.recipe.clipping_norm,
            sampling_probability=probability,
            steps=self.recipe.local_steps,
            expected_batch_size=probability * told,
            is_noisy=False,
        )

    def _combined(self, accepted: Sequence[Accepted], event: PrivacyEvent | None) -> AdapterState:
        if event is None:
            return aggregate(accepted, self.recipe.aggregation_rule).update
        shapes = {name: tensor.shape for name, tensor in self.start.items()}
        if event.shares is not None:
            return self._in_shares(accepted, event, shapes)
        average = noisy_average(
            (item.update for item in accepted),
            shapes=shapes,
            clipping_norm=event.clipping_norm,
            noise_multiplier=event.noise_multiplier,
            expected_contributions=self.recipe.cohort,
            unit_noise=SystemRandom().normals(size_of(shapes)),
        )
        return {name: tensor.astype(np.float32) for name, tensor in average.items()}

    def _in_shares(
        self, accepted: Sequence[Accepted], event: PrivacyEvent, shapes: Mapping[str, tuple[int, ...]]
    ) -> AdapterState:
        """A secure sum's mean: rounded updates, and a share of the noise of each device that was in it."""
        shares, random = event.shares, SystemRandom()
        if shares is None:
            raise ValueError(f"event {event.event_id} has no shares")
        average = average_in_levels(
            (item.update for item in accepted),
            shapes=shapes,
            clipping_norm=event.clipping_norm,
            levels=shares.levels,
            noise=noise_of_shares(size_of(shapes), shares=shares, devices=event.contributions, random=random),
            expected_contributions=self.recipe.cohort,
            random=random,
        )
        return {name: tensor.astype(np.float32) for name, tensor in average.items()}
