"""DP-SGD on one device (the only file that touches Opacus).

Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, algorithm 1, with Poisson sampling as the
accounting assumes it: each example enters each step independently with the stated probability, and an empty batch is a
step of pure noise, not a step left out.
"""

from __future__ import annotations

import logging
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from privacy.errors import UnsupportedModuleError
from privacy.randomness import RandomSource, SeededRandom, SystemRandom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
Gradients = Literal["hooks", "own", "loop"]
"""How each example's gradient is made: by Opacus' hooks, by `loss_of` itself, or by autograd, one example at a time."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DPSGDParameters:
    """What the accountant must know of one round of training, and the divisor of the noisy sum.

    `noise_multiplier` is the noise's standard deviation over `clipping_norm`. It is 0 only with `is_noisy` False,
    said on purpose: then there is no guarantee here, and somebody else has to add noise. `expected_batch_size` is
    sampling_probability times the number of examples: a fixed number, because the size actually drawn is private.
    """

    noise_multiplier: float
    clipping_norm: float
    sampling_probability: float
    steps: int
    expected_batch_size: float
    is_noisy: bool = True

    def __post_init__(self) -> None:
        positive = (self.clipping_norm, self.expected_batch_size)
        if not all(0 < value < math.inf for value in positive):
            raise ValueError(f"clipping_norm and expected_batch_size must be positive: {positive}")
        if not 0 <= self.noise_multiplier < math.inf or (self.noise_multiplier > 0) != self.is_noisy:
            raise ValueError(f"noise_multiplier must be positive, or 0 and is_noisy False: {self.noise_multiplier}")
        if not 0 < self.sampling_probability <= 1 or self.steps < 1:
            raise ValueError(
                "sampling_probability must lie in (0, 1] and steps be positive: "
                f"{self.sampling_probability}, {self.steps}"
            )


def train_dp_sgd(  # noqa: PLR0913 - each is one part of the mechanism
    module: nn.Module,
    examples: Sequence[T],
    *,
    loss_of: Callable[[nn.Module, Sequence[T]], Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: DPSGDParameters,
    seed: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
    max_physical_batch: int = 16,
    gradients: Gradients = "hooks",
) -> None:
    """Train `module`'s trainable weights in place with `parameters.steps` clipped and noised steps.

    Only weights and biases of `nn.Linear` may be trainable (lora_a and lora_b are), all in float32, all in `optimizer`.
    The module's hooks are gone and its mode is restored afterwards, also after an exception.

    Args:
        module: trained in train mode; batch dimension first.
        examples: the device's examples; each is drawn independently in every step.
        loss_of: per-example losses, shape (B,), each a function of its own example alone (a mean over the
            sequence, not over the batch's tokens).
        optimizer: over exactly the trainable parameters.
        parameters: clipping, noise, sampling.
        seed: for tests only; None draws sampling and noise from the operating system's cryptographic generator.
        on_step: called after every step with (steps done, steps in all).
        max_physical_batch: examples in memory at once; larger Poisson batches are clipped and summed in parts, exactly.
        gradients: `hooks`; `own`: backward through `loss_of` leaves each example's gradient in every parameter's
            `grad_sample`, (B, *shape), held against autograd's own sum as those of the hooks are; or `loop`: one
            example in memory at once, whose gradient autograd has anyway. The three give the same.

    Raises:
        UnsupportedModuleError: per-example gradients would be missing or wrong.
    """
    if max_physical_batch < 1:
        raise ValueError(f"max_physical_batch must be positive, not {max_physical_batch}")
    random: RandomSource = SystemRandom() if seed is None else SeededRandom(seed)
    trainable = _require_supported(module, optimizer)
    if gradients == "loop":
        max_physical_batch = 1
    with _per_example_gradients(module, trainable, has_hooks=gradients == "hooks"):
        private = _PrivateOptimizer(optimizer, parameters=parameters, random=random)
        batches = _Batches(module, trainable, loss_of, private, is_loop=gradients == "loop")
        for step in range(1, parameters.steps + 1):
            drawn = random.uniforms(len(examples)) < parameters.sampling_probability
            batch = [examples[index] for index in drawn.nonzero()[0].tolist()]
            parts = [batch[start : start + max_physical_batch] for start in range(0, len(batch), max_physical_batch)]
            for part in parts[:-1]:
                private.signal_skip_step(do_skip=True)
                batches.add(part)
            private.signal_skip_step(do_skip=False)
            batches.add(parts[-1] if parts else [])
            if on_step is not None:
                on_step(step, parameters.steps)
    batches.tell_dropped()


class _PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimizer with noise from `RandomSource` instead of torch's generator, which has 32 bits of seed."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, parameters: DPSGDParameters, random: RandomSource) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=parameters.noise_multiplier,
            max_grad_norm=parameters.clipping_norm,
            expected_batch_size=parameters.expected_batch_size,
        )
        self._random = random

    def add_noise(self) -> None:
        """Set each gradient to its clipped sum plus noise, over the batch size; in double precision, then rounded."""
        stddev = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(self._random.normals(parameter.numel())).view_as(parameter)
            total = noise.to(parameter.device).mul_(stddev).add_(parameter.summed_grad)
            parameter.grad = total.div_(self.expected_batch_size).to(parameter.dtype)

    def scale_grad(self) -> None:
        """Nothing more: `add_noise` has divided already, before it rounded."""


class _Batches(Generic[T]):
    """Turns physical batches into per-example gradients and hands them to the optimizer."""

    def __init__(
        self,
        module: nn.Module,
        trainable: list[Any],  # parameters; Any because Opacus hangs grad_sample on them
        loss_of: Callable[[nn.Module, Sequence[T]], Tensor],
        private: _PrivateOptimizer,
        *,
        is_loop: bool = False,
    ) -> None:
        self._module = module
        self._trainable = trainable
        self._loss_of = loss_of
        self._private = private
        # With one example at a time there is nothing to compare: its gradient is autograd's.
        self._is_loop = self._is_checked = is_loop
        self._seen = 0
        self._dropped = 0

    def add(self, batch: Sequence[T]) -> None:
        """Clip and sum the gradients of `batch`; the optimizer steps when the last part of a Poisson batch is in."""
        self._private.zero_grad(set_to_none=True)
        if batch:
            losses = self._loss_of(self._module, batch)
            if losses.shape != (len(batch),):
                raise UnsupportedModuleError(
                    f"loss_of gave shape {tuple(losses.shape)} for {len(batch)} examples; give one loss an example"
                )
            losses.sum().backward()  # type: ignore[no-untyped-call]
        self._complete(len(batch))
        if batch:
            self._require_consistent()
            self._drop_non_finite(len(batch))
        self._private.step()

    def _complete(self, size: int) -> None:
        """Give every parameter per-example gradients: one that took no part this time still gets its noise."""
        for parameter in self._trainable:
            gradients = parameter.grad[None] if self._takes_autograds(parameter, size) else parameter.grad_sample
            if gradients is None or size == 0:
                parameter.grad_sample = torch.zeros((size, *parameter.shape), device=parameter.device)
            elif gradients.shape[0] != size:
                raise UnsupportedModuleError(
                    f"{gradients.shape[0]} per-example gradients for {size} examples: "
                    "every layer must keep the batch as its first dimension"
                )
            else:
                parameter.grad_sample = gradients

    def _takes_autograds(self, parameter: nn.Parameter, size: int) -> bool:
        return self._is_loop and size == 1 and parameter.grad is not None

    def _require_consistent(self) -> None:
        """Once: the per-example gradients must add up to autograd's own, or some use of a weight escaped the hooks."""
        if self._is_checked:
            return
        for parameter in self._trainable:
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found = parameter.grad_sample.sum(dim=0)
            if not (expected.isfinite().all() and found.isfinite().all()):
                return
            scale = float(parameter.grad_sample.reshape(len(parameter.grad_sample), -1).norm(dim=1).sum())
            if (expected - found).norm() > 1e-2 * scale + 1e-9:
                raise UnsupportedModuleError(
                    f"per-example gradients of a weight of shape {tuple(parameter.shape)} do not add up to its "
                    f"gradient ({float(found.norm()):.3g} against {float(expected.norm()):.3g}): "
                    "it is used outside its nn.Linear"
                )
        self._is_checked = True

    def _drop_non_finite(self, size: int) -> None:
        """Zero an example whose gradient is not finite: NaN passes clipping and knows no bound on its influence."""
        is_finite = torch.ones(size, dtype=torch.bool)
        for parameter in self._trainable:
            is_finite &= parameter.grad_sample.reshape(size, -1).sum(dim=1).isfinite().cpu()
        self._seen += size
        if not is_finite.all():
            self._dropped += int((~is_finite).sum())
            for parameter in self._trainable:
                parameter.grad_sample[~is_finite] = 0

    def tell_dropped(self) -> None:
        """Speak up, in this device's log alone, about examples that were dropped: what is sent must not show it."""
        if self._dropped:
            _log.warning(
                "%d of %d drawn examples gave no finite gradient and counted as zero", self._dropped, self._seen
            )
        if self._seen and self._dropped == self._seen:
            _log.error(
                "none of the drawn examples gave a finite gradient, so the update is noise only; "
                "check the base and the learning rate (the privacy cost is spent)"
            )


def _require_supported(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The trainable parameters, if per-example gradients of all of them will be right."""
    trainable: dict[nn.Parameter, str] = {}
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(path, recurse=False):
            if not parameter.requires_grad:
                continue
            if type(part) is not nn.Linear:
                raise UnsupportedModuleError(
                    f"{name} is trainable in a {type(part).__name__}; freeze it or use nn.Linear"
                )
            if parameter.dtype != torch.float32:
                raise UnsupportedModuleError(f"{name} is {parameter.dtype}; trainable weights must be torch.float32")
            if parameter in trainable:
                raise UnsupportedModuleError(
                    f"{name} shares its weight with {trainable[parameter]}; untie or freeze it"
                )
            trainable[parameter] = name
    if not trainable:
        raise UnsupportedModuleError("the module has no trainable parameter")
    optimized = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if optimized != set(trainable):
        missing = sorted(name for parameter, name in trainable.items() if parameter not in optimized)
        raise UnsupportedModuleError(
            f"the optimizer must hold exactly the {len(trainable)} trainable parameters; it holds {len(optimized)}, "
            f"without {missing[:3]}"
        )
    return list(trainable)


@contextmanager
def _per_example_gradients(module: nn.Module, trainable: list[nn.Parameter], *, has_hooks: bool) -> Iterator[None]:
    """Put the module into train mode with Opacus' hooks on, and leave no trace of either."""
    was_training = {part: part.training for part in module.modules()}
    module.train()
    hooks = GradSampleHooks(module, loss_reduction="sum") if has_hooks else None
    try:
        with warnings.catch_warnings():
            # True and harmless: the first adapted layer's input comes from the frozen embedding.
            warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
            yield
    finally:
        if hooks is not None:
            hooks.cleanup()
        for part, training in was_training.items():
            part.training = training
            # An exception between forward and backward leaves activations behind, which would be read next time.
            for attribute in ("activations", "max_batch_len"):
                part.__dict__.pop(attribute, None)
        for parameter in trainable:
            for attribute in ("grad_sample", "summed_grad"):
                parameter.__dict__.pop(attribute, None)
            parameter.grad = None
