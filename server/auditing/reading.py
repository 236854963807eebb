"""Reading words out of updates: what a curious server could try on each device's contribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from model import EncodedExample
from privacy.audits.reconstruction import Attempt, attempt, reconstruction_finding
from privacy.calibration import noise_multiplier_for
from privacy.dp_sgd import DPSGDParameters
from privacy.mechanism import noisy_average, size_of
from privacy.randomness import SystemRandom
from server.auditing.trainer import without_dp
from server.errors import AuditingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from model import Example
    from privacy.audits import Finding
    from privacy.event import PrivacyEvent
    from server.auditing.trainer import LocalTraining
    from server.federation.recipe import Recipe
    from server.federation.replies import AdapterState

    ShortText = tuple[EncodedExample, tuple[int, ...]]

_FEWEST_WORDS = 3


def first_layer_factors(adapter: Mapping[str, Any]) -> tuple[str, ...]:
    """Factors A of the first layer that read the embeddings, by name; none where no target does."""
    names = [f".{target}." for target in ("q_proj", "k_proj", "v_proj")]
    return tuple(
        name
        for name in sorted(adapter)
        if "layers.0." in name and name.endswith("lora_a") and any(part in name for part in names)
    )


@dataclass(frozen=True)
class Reading:
    """The attack on devices that have one short text each, in a round that starts from `adapter`."""

    recipe: Recipe
    training: LocalTraining
    adapter: AdapterState
    events: Sequence[PrivacyEvent]

    def short_texts(self, examples: Sequence[Example], *, count: int, random: np.random.Generator) -> list[ShortText]:
        """Examples cut to fewer different words than the factors have rows: the attacker's best case.

        Raises:
            AuditingError: No example is long enough.
        """
        most = max(_FEWEST_WORDS, 3 * sum(len(self.adapter[name]) for name in self._factors) // 4)
        found: list[ShortText] = []
        for index in random.permutation(len(examples)):
            cut = [_first_words(encoded, most) for encoded in self.training.encode([examples[index]])]
            found += [(encoded, words) for encoded, words in cut if len(words) >= _FEWEST_WORDS]
            if len(found) >= count:
                return found
        if not found:
            raise AuditingError("No example is long enough to be read out of an update.")
        return found

    def finding(self, texts: Sequence[ShortText], on_step: Callable[[int, int], None]) -> Finding:
        """Attack each text's update as it would be sent, without DP, and all of these in one sum."""
        inputs, stated = self.training.first_inputs(), self._of_one_example()
        attempts: list[Attempt] = []
        control: list[Attempt] = []
        exact: list[AdapterState] = []
        for number, (encoded, words) in enumerate(texts):
            on_step(number, len(texts))
            sent = self._as_seen(self.training.update(self.adapter, [encoded], stated))
            exact.append(self.training.update(self.adapter, [encoded], without_dp(stated)))
            attempts.append(attempt(self._rows(sent), inputs, words))
            control.append(attempt(self._rows(exact[-1]), inputs, words))
        total = {name: np.sum([update[name] for update in exact], axis=0) for name in self.adapter}
        summed = [attempt(self._rows(total), inputs, [word for _, words in texts for word in words])]
        return reconstruction_finding(attempts, control, summed, vocabulary=len(inputs))

    @property
    def _factors(self) -> tuple[str, ...]:
        return first_layer_factors(self.adapter)

    def _rows(self, update: AdapterState) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.concatenate([update[name] for name in self._factors])

    def _of_one_example(self) -> DPSGDParameters:
        """What a device with one example does: it is in every step, and the noise is calibrated for that."""
        recipe, has_noise = self.recipe, self.recipe.has_example_level
        noise = 0.0
        if has_noise:
            noise = noise_multiplier_for(
                target_epsilon=recipe.target_epsilon,
                target_delta=recipe.target_delta,
                sampling_probability=1.0,
                steps=recipe.local_steps * recipe.participations,
            )
        return DPSGDParameters(
            noise_multiplier=noise,
            clipping_norm=recipe.clipping_norm,
            sampling_probability=1.0,
            steps=recipe.local_steps,
            expected_batch_size=1.0,
            is_noisy=has_noise,
        )

    def _as_seen(self, update: AdapterState) -> AdapterState:
        """Where devices add no noise, the server is trusted: the attacker sees the noisy sum of one."""
        if self.recipe.has_example_level:
            return update
        event = next(event for event in self.events if event.privacy_unit == "user")
        shapes = {name: tensor.shape for name, tensor in update.items()}
        found = noisy_average(
            [update],
            shapes=shapes,
            clipping_norm=event.clipping_norm,
            noise_multiplier=event.noise_multiplier,
            expected_contributions=1,
            unit_noise=SystemRandom().normals(size_of(shapes)),
        )
        return {name: tensor.astype(np.float32) for name, tensor in found.items()}


def _first_words(encoded: EncodedExample, most: int) -> ShortText:
    """The beginning of a completion with at most so many different words to read, and these."""
    tokens, words, end = encoded.token_ids[encoded.loss_start - 1 :], set[int](), 0
    while end + 1 < len(tokens) and len(words | {tokens[end]}) <= most:
        words.add(tokens[end])
        end += 1
    return EncodedExample(tokens[: max(end, 1) + 1], 1), tuple(sorted(words))
