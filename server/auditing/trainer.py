"""A device's training, done here: what its update would be, with its noise and clipping or without."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from model import (
    adapter_state_dict,
    add_lora,
    encode_examples,
    load_adapter_state,
    load_version,
    remove_lora,
    sequence_losses,
)
from model.training import StepCost, compute_dtype, is_lean, lean_sequence_losses
from privacy.canary_training import canary_run
from privacy.dp_sgd import DPSGDParameters, train_dp_sgd
from privacy.randomness import SystemRandom
from server.federation.adapter import lora_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from model import EncodedExample, Example, LayeredTransformer, LoadedModel
    from privacy.audits.canaries import CanaryRun
    from privacy.event import PrivacyEvent
    from server.federation.recipe import Recipe
    from server.federation.replies import AdapterState

_EXAMPLES_AT_ONCE = 8
# More fit in memory where no example's own gradient is kept.
_EXAMPLES_WITHOUT_GRADIENTS = 32
_NO_CLIPPING = 1e9


@dataclass(frozen=True)
class LocalTraining:
    """Trains one adapter after another on one base, as a device does in a round of `recipe`."""

    recipe: Recipe
    loaded: LoadedModel
    cost: StepCost

    @classmethod
    def open(cls, recipe: Recipe, tree: Path) -> LocalTraining:
        """Load the base in a version's tree, in the precision that devices use."""
        cost = StepCost(precision="bfloat16")
        is_direct = recipe.gradients == "direct"
        dtype = compute_dtype(cost.precision) if is_direct else torch.float32
        return cls(recipe, load_version(tree, dtype=dtype, with_adapter=False), cost)

    @property
    def is_direct(self) -> bool:
        """Whether gradients of single examples come from the adapter's own backward pass."""
        return self.recipe.gradients == "direct" and is_lean(self.loaded.model)

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Examples as the model reads them."""
        return encode_examples(self.loaded.tokenizer, examples, max_length=self.recipe.max_length)

    def update(
        self, adapter: AdapterState, examples: Sequence[EncodedExample], parameters: DPSGDParameters
    ) -> AdapterState:
        """What a device would send: trained minus received, float32."""
        with self._adapted(adapter) as model:
            optimizer = torch.optim.SGD(
                [p for p in model.parameters() if p.requires_grad], lr=self.recipe.learning_rate, momentum=0.9
            )
            if parameters.clipping_norm >= _NO_CLIPPING:
                self._train_without_dp(model, examples, optimizer, parameters)
            else:
                train_dp_sgd(
                    model,
                    examples,
                    loss_of=self._loss_of,
                    optimizer=optimizer,
                    parameters=parameters,
                    max_physical_batch=_EXAMPLES_AT_ONCE,
                    gradients="own" if self.is_direct else "hooks",
                )
            trained = {name: tensor.detach().numpy().copy() for name, tensor in adapter_state_dict(model).items()}
        return {name: trained[name] - adapter[name] for name in adapter}

    def canaries(
        self,
        adapter: AdapterState,
        examples: Sequence[EncodedExample],
        promised: Sequence[DPSGDParameters],
        *,
        canaries: int,
        random: np.random.Generator,
        is_faulty: bool,
        on_step: Callable[[int, int], None] | None = None,
    ) -> CanaryRun:
        """The device's rounds with canaries among its examples; `is_faulty`: without noise and clipping."""
        with self._adapted(adapter) as model:
            return canary_run(
                model,
                examples,
                loss_of=self._loss_of,
                promised=promised,
                done=[without_dp(stated) for stated in promised] if is_faulty else None,
                learning_rate=self.recipe.learning_rate,
                canaries=canaries,
                random=random,
                has_own_gradients=self.is_direct,
                on_step=on_step,
            )

    def first_inputs(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What each vocabulary entry becomes before the first layer's attention, shape (vocabulary, model dim)."""
        model = self.loaded.model
        norm: Any = model.layers[0].attention_norm
        with torch.no_grad():
            return np.asarray(norm(model.embedding.weight.float()).float().numpy())

    @property
    def _loss_of(self) -> Callable[..., Tensor]:
        if self.is_direct:
            return partial(lean_sequence_losses, cost=self.cost, per_example=True)
        return sequence_losses

    def _train_without_dp(
        self,
        model: LayeredTransformer,
        examples: Sequence[EncodedExample],
        optimizer: torch.optim.Optimizer,
        parameters: DPSGDParameters,
    ) -> None:
        """The steps of DP-SGD without what makes it private: no single example's gradient is needed, only their sum."""
        loss_of = partial(lean_sequence_losses, cost=self.cost) if self.is_direct else sequence_losses
        random = SystemRandom()
        for _ in range(parameters.steps):
            drawn = (random.uniforms(len(examples)) < parameters.sampling_probability).nonzero()[0].tolist()
            optimizer.zero_grad(set_to_none=False)  # a step without examples still coasts, as in DP-SGD
            for start in range(0, len(drawn), _EXAMPLES_WITHOUT_GRADIENTS):
                part = [examples[index] for index in drawn[start : start + _EXAMPLES_WITHOUT_GRADIENTS]]
                torch.autograd.backward(loss_of(model, part).sum() / parameters.expected_batch_size)
            optimizer.step()

    @contextmanager
    def _adapted(self, adapter: AdapterState) -> Iterator[LayeredTransformer]:
        model = self.loaded.model
        add_lora(model, lora_of(self.recipe), dtype=torch.float32)
        try:
            load_adapter_state(model, {name: torch.from_numpy(value.copy()) for name, value in adapter.items()})
            yield model
        finally:
            remove_lora(model)


def parameters_of(event: PrivacyEvent, *, told_examples: int) -> DPSGDParameters:
    """What a device that told of so many examples did in the round that an event tells of."""
    return DPSGDParameters(
        noise_multiplier=event.noise_multiplier,
        clipping_norm=event.clipping_norm,
        sampling_probability=event.sampling_probability,
        steps=event.steps,
        expected_batch_size=event.sampling_probability * told_examples,
        is_noisy=event.noise_multiplier > 0,
    )


def without_dp(parameters: DPSGDParameters) -> DPSGDParameters:
    """The same training without noise and clipping: the control of every audit."""
    return replace(parameters, noise_multiplier=0.0, clipping_norm=_NO_CLIPPING, is_noisy=False)
