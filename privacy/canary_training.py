"""DP-SGD as it is, with canaries among the examples: what the noisy gradients show of each.

The module gets one more linear layer without meaning, whose weights nothing else moves. A canary is an example of the
device with a direction in that layer of its own, many clipping norms long; so it goes the way of every example: drawn,
clipped together with its text's gradient, added up, noised. Gradient canaries: Nasr et al., "Adversary Instantiation",
IEEE S&P 2021; Steinke, Nasr, Jagielski, NeurIPS 2023, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from privacy.audits.canaries import CanaryRun
from privacy.dp_sgd import train_dp_sgd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from privacy.dp_sgd import DPSGDParameters

T = TypeVar("T")
# In clipping norms: without clipping one canary would move the sum that far.
_LENGTH: Final = 100.0


@dataclass(frozen=True)
class _Item(Generic[T]):
    example: T
    canary: int | None = None


def canary_run(  # noqa: PLR0913 - each is one part of what is audited
    module: nn.Module,
    examples: Sequence[T],
    *,
    loss_of: Callable[[nn.Module, Sequence[T]], Tensor],
    promised: Sequence[DPSGDParameters],
    done: Sequence[DPSGDParameters] | None = None,
    learning_rate: float,
    canaries: int,
    random: np.random.Generator,
    has_own_gradients: bool,
    on_step: Callable[[int, int], None] | None = None,
    train: Callable[..., None] = train_dp_sgd,
) -> CanaryRun:
    """Train `module` as one device did, with `canaries` among its examples, and return what was seen along them.

    Args:
        module: With a trainable adapter; it is trained, and is otherwise left as it was.
        examples: The device's own.
        loss_of: As for `train_dp_sgd`.
        promised: The parameters of each of the device's rounds, as the ledger has them.
        done: What is really done instead, for a control; the same by default.
        learning_rate: Of the device's optimizer.
        canaries: How many; each is put in by a fair coin.
        random: For the coins and which text a canary has; the noise is the mechanism's own.
        has_own_gradients: As for `train_dp_sgd`.
        on_step: Called after every step with (steps done, steps in all).
        train: The mechanism under audit.

    Raises:
        AuditError: The mechanism released something that cannot be measured.
    """
    is_in = random.random(canaries) < 0.5  # noqa: PLR2004 - a fair coin
    texts = random.integers(len(examples), size=canaries)
    items = [_Item(example) for example in examples]
    items += [_Item(examples[texts[index]], int(index)) for index in is_in.nonzero()[0]]
    listener = _Listener(module, canaries, loss_of, learning_rate=learning_rate, has_own_gradients=has_own_gradients)
    total, before = sum(parameters.steps for parameters in promised), 0
    for stated, parameters in zip(promised, done or promised, strict=True):
        listener.begin(parameters, length=_LENGTH * stated.clipping_norm)
        train(
            listener,
            items,
            loss_of=listener.losses,
            optimizer=listener.optimizer,
            parameters=parameters,
            on_step=None if on_step is None else lambda step, _all, start=before: on_step(start + step, total),
            gradients="own" if has_own_gradients else "hooks",
        )
        before += stated.steps
    steps = [stated for stated in promised for _ in range(stated.steps)]
    return CanaryRun(
        released=np.stack(listener.released),
        took_part=np.stack(listener.took_part),
        is_in=is_in,
        clipping_norms=np.array([stated.clipping_norm for stated in steps]),
        noise_stddevs=np.array([stated.clipping_norm * stated.noise_multiplier for stated in steps]),
    )


class _Listener(nn.Module):
    """The module with a layer for canaries, and a record of what each step released along it."""

    def __init__(
        self,
        module: nn.Module,
        canaries: int,
        loss_of: Callable[[nn.Module, Sequence[Any]], Tensor],
        *,
        learning_rate: float,
        has_own_gradients: bool,
    ) -> None:
        super().__init__()
        self.inner = module
        self.canaries = nn.Linear(canaries, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)
        self._loss_of = loss_of
        self._has_own_gradients = has_own_gradients
        self._length = 0.0
        self._drawn: NDArray[np.bool_] = np.zeros(canaries, dtype=np.bool_)
        self.released: list[NDArray[np.float64]] = []
        self.took_part: list[NDArray[np.bool_]] = []
        self.optimizer = _Recorder(self, learning_rate=learning_rate)

    def begin(self, parameters: DPSGDParameters, *, length: float) -> None:
        """Before each round: how long canaries are, and by what the mechanism divides its sum."""
        self._length = length
        self.optimizer.divisor = parameters.expected_batch_size

    def losses(self, _module: nn.Module, items: Sequence[_Item[Any]]) -> Tensor:
        """Each example's loss, plus its own direction's weight for a canary."""
        losses = self._loss_of(self.inner, [item.example for item in items])
        directions = torch.zeros(len(items), self._drawn.size)
        for row, item in enumerate(items):
            if item.canary is not None:
                directions[row, item.canary] = self._length
                self._drawn[item.canary] = True
        if self._has_own_gradients:
            return losses + _along(self.canaries.weight, directions)
        return losses + cast("Tensor", self.canaries(directions)).squeeze(1)

    def record(self, gradient: Tensor) -> None:
        """Keep what a step released along the canaries, and who was in it."""
        self.released.append(gradient.detach().double().numpy().reshape(-1).copy())
        self.took_part.append(self._drawn.copy())
        self._drawn[:] = False


class _Recorder(torch.optim.SGD):
    """The device's optimizer; tells the listener each noisy gradient along the canaries, which it leaves at zero."""

    def __init__(self, listener: _Listener, *, learning_rate: float) -> None:
        of_canaries: dict[str, Any] = {"params": [listener.canaries.weight], "lr": 0.0}
        inner = [parameter for parameter in listener.inner.parameters() if parameter.requires_grad]
        super().__init__([of_canaries, {"params": inner}], lr=learning_rate, momentum=0.9)
        self._listener = listener
        self.divisor = 1.0

    def step(self, closure: Any = None) -> Any:  # noqa: ANN401 - torch's own signature
        """One step, after its gradient was noted."""
        gradient = self._listener.canaries.weight.grad
        if gradient is not None:
            self._listener.record(gradient * self.divisor)
        return super().step(closure)


class _Along(torch.autograd.Function):
    """`directions @ weight`, whose backward pass leaves each example's gradient, as the direct way does."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, directions: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        """Values, (B,), of a weight (1, canaries) along directions (B, canaries)."""
        ctx.weight = weight
        ctx.save_for_backward(directions)
        return directions @ weight.detach().squeeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's own context
        """The sum over the examples, and each one's own in `grad_sample`."""
        (directions,) = ctx.saved_tensors
        each = gradients[0].unsqueeze(1) * directions
        ctx.weight.grad_sample = each.unsqueeze(1)
        return each.sum(dim=0, keepdim=True), None


def _along(weight: Tensor, directions: Tensor) -> Tensor:
    return cast("Tensor", _Along.apply(weight, directions))  # type: ignore[no-untyped-call]
