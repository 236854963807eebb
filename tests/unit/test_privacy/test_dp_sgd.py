"""DP-SGD against an exact loop over examples, its noise, its empty batches and what it leaves behind."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.dp_sgd import DPSGDParameters, Gradients, train_dp_sgd
from privacy.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Sample = tuple[Tensor, Tensor]
# So little noise that float32 cannot tell the result from the exact clipped sum; zero itself is refused.
NEXT_TO_NO_NOISE = 1e-12


class LowRank(nn.Module):
    """A frozen embedding and linear layer with a low-rank branch beside it, like one adapted projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.base = nn.Linear(6, 5)
        self.requires_grad_(requires_grad=False)
        self.lora_a = nn.Linear(6, 2, bias=False)
        self.lora_b = nn.Linear(2, 5, bias=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        hidden = self.embedding(token_ids)
        output: Tensor = self.base(hidden) + self.lora_b(self.lora_a(hidden))
        return output


def sequence_losses(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
    logits = module(torch.stack([tokens for tokens, _ in batch]))
    targets = torch.stack([target for _, target in batch])
    per_token = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return per_token.view(targets.shape).mean(dim=1)


def make_module() -> LowRank:
    torch.manual_seed(7)
    return LowRank()


def make_examples(count: int) -> list[Sample]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randint(11, (4,), generator=generator), torch.randint(5, (4,), generator=generator))
        for _ in range(count)
    ]


def parameters(**changes: float) -> DPSGDParameters:
    values: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "clipping_norm": 0.05,
        "sampling_probability": 0.5,
        "steps": 1,
        "expected_batch_size": 4.0,
    }
    return DPSGDParameters(**{**values, **changes})


def run(
    module: nn.Module,
    examples: Sequence[Sample],
    wanted: DPSGDParameters,
    *,
    seed: int | None = 0,
    learning_rate: float = 1.0,
    loss_of: Callable[[nn.Module, Sequence[Sample]], Tensor] = sequence_losses,
    max_physical_batch: int = 16,
    on_step: Callable[[int, int], None] | None = None,
    gradients: Gradients = "hooks",
) -> list[Tensor]:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, lr=learning_rate)
    train_dp_sgd(
        module,
        examples,
        loss_of=loss_of,
        optimizer=optimizer,
        parameters=wanted,
        seed=seed,
        on_step=on_step,
        max_physical_batch=max_physical_batch,
        gradients=gradients,
    )
    return [weight.detach() - old for weight, old in zip(weights, before, strict=True)]


def clipped_sum_by_hand(module: LowRank, examples: Sequence[Sample], clipping_norm: float) -> list[Tensor]:
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    total = [torch.zeros_like(weight) for weight in weights]
    for example in examples:
        gradients = torch.autograd.grad(sequence_losses(module, [example]).sum(), weights)
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        for one, gradient in zip(total, gradients, strict=True):
            one.add_(gradient * min(1.0, clipping_norm / norm))
    return total


@pytest.mark.parametrize("clipping_norm", [0.01, 0.3, 100.0])
@pytest.mark.parametrize("max_physical_batch", [1, 4, 64])
def test_a_step_is_the_exact_clipped_sum_over_the_expected_batch_size(
    clipping_norm: float, max_physical_batch: int
) -> None:
    module, examples = make_module(), make_examples(9)
    expected = clipped_sum_by_hand(module, examples, clipping_norm)
    wanted = parameters(
        noise_multiplier=NEXT_TO_NO_NOISE,
        clipping_norm=clipping_norm,
        sampling_probability=1.0,
        expected_batch_size=9.0,
    )
    moved = run(module, examples, wanted, max_physical_batch=max_physical_batch)
    for change, total in zip(moved, expected, strict=True):
        torch.testing.assert_close(change, -total / 9.0, rtol=1e-3, atol=1e-6)


def test_several_steps_equal_the_same_loop_by_hand() -> None:
    module, reference, examples = make_module(), make_module(), make_examples(9)
    weights = [weight for weight in reference.parameters() if weight.requires_grad]
    for _ in range(4):
        total = clipped_sum_by_hand(reference, examples, 0.2)
        with torch.no_grad():
            for weight, one in zip(weights, total, strict=True):
                weight.sub_(0.5 * one / 9.0)
    wanted = parameters(
        noise_multiplier=NEXT_TO_NO_NOISE,
        clipping_norm=0.2,
        sampling_probability=1.0,
        steps=4,
        expected_batch_size=9.0,
    )
    run(module, examples, wanted, learning_rate=0.5, max_physical_batch=2)
    for found, weight in zip((w for w in module.parameters() if w.requires_grad), weights, strict=True):
        torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-5)


def test_one_example_moves_the_sum_by_at_most_the_clipping_norm() -> None:
    examples = make_examples(9)
    wanted = parameters(
        noise_multiplier=NEXT_TO_NO_NOISE, clipping_norm=0.01, sampling_probability=1.0, expected_batch_size=1.0
    )
    with_it = run(make_module(), examples, wanted)
    without = run(make_module(), examples[:-1], wanted)
    distance = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(with_it, without, strict=True)))
    assert distance <= 0.01 * (1 + 1e-4)


@pytest.mark.parametrize("seed", [0, None])
def test_noise_has_the_promised_variance_in_every_trainable_weight(seed: int | None) -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(50, 40)
            self.unused = nn.Linear(50, 40, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            output: Tensor = self.used(inputs)
            return output

    wanted = parameters(noise_multiplier=2.0, clipping_norm=0.1, sampling_probability=0.5, expected_batch_size=5.0)
    inputs = [(torch.zeros(50), torch.zeros(40))] * 10

    def no_gradient(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        return module(torch.stack([value for value, _ in batch])).sum(dim=1) * 0.0

    promised = 2.0 * 0.1 / 5.0
    for moved in run(Wide(), inputs, wanted, seed=seed, loss_of=no_gradient):
        if moved.numel() < 1000:
            continue
        # Six standard errors: a false alarm about once in 1e9 runs where the seed is not fixed.
        assert float(moved.std()) == pytest.approx(promised, rel=6 / math.sqrt(2 * moved.numel()))
        assert abs(float(moved.mean())) < 6 * promised / math.sqrt(moved.numel())


def test_noise_of_different_steps_is_independent_and_adds_up_in_variance() -> None:
    wanted = parameters(clipping_norm=1.0, steps=25, expected_batch_size=1.0)
    moved = torch.cat([change.flatten() for change in run(make_module(), [], wanted)])
    runs = [torch.cat([c.flatten() for c in run(make_module(), [], wanted, seed=seed)]) for seed in range(40)]
    spread = float(torch.stack(runs).std())
    assert moved.abs().sum() > 0
    assert spread == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize("examples", [[], make_examples(3)], ids=["no examples", "none drawn"])
def test_empty_batches_are_steps_of_noise(examples: list[Sample]) -> None:
    steps: list[tuple[int, int]] = []
    wanted = parameters(sampling_probability=1e-12, steps=5)
    moved = run(make_module(), examples, wanted, on_step=lambda done, planned: steps.append((done, planned)))
    assert steps == [(n, 5) for n in range(1, 6)]
    assert all(bool((change != 0).all()) for change in moved)


def test_some_batches_empty_and_some_not() -> None:
    sizes: list[int] = []

    def counting(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        sizes.append(len(batch))
        return sequence_losses(module, batch)

    run(make_module(), make_examples(2), parameters(sampling_probability=0.4, steps=40), loss_of=counting)
    assert 0 < len(sizes) < 40


def test_examples_are_drawn_independently_with_exactly_the_probability() -> None:
    sizes: list[int] = []

    def counting(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        sizes.append(len(batch))
        return sequence_losses(module, batch)

    # 30 examples at q = 0.3: the size is binomial, neither fixed nor of probability 1/ceil(N/B).
    run(
        make_module(),
        make_examples(30),
        parameters(sampling_probability=0.3, steps=300),
        loss_of=counting,
        max_physical_batch=64,
    )
    drawn = np.array(sizes)
    assert drawn.mean() == pytest.approx(9.0, abs=4 * math.sqrt(30 * 0.3 * 0.7 / 300))
    assert drawn.var() == pytest.approx(30 * 0.3 * 0.7, rel=0.35)


def test_large_batches_are_processed_in_parts() -> None:
    sizes: list[int] = []

    def counting(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        sizes.append(len(batch))
        return sequence_losses(module, batch)

    run(make_module(), make_examples(23), parameters(sampling_probability=1.0), loss_of=counting, max_physical_batch=8)
    assert sizes == [8, 8, 7]


def test_the_module_is_as_before_afterwards_and_trains_again() -> None:
    module, examples = make_module(), make_examples(6)
    module.train()
    module.base.eval()
    state = set(vars(module)), {name: set(vars(part)) for name, part in module.named_modules()}
    for _ in range(3):
        run(module, examples, parameters())
        assert (set(vars(module)), {name: set(vars(part)) for name, part in module.named_modules()}) == state
        assert module.training
        assert not module.base.training
        for part in module.modules():
            assert not part._forward_hooks
            assert not part._backward_hooks
        for weight in module.parameters():
            assert not set(vars(weight)) & {"grad_sample", "summed_grad", "_forward_counter"}
            assert weight.grad is None
    sequence_losses(module, examples).sum().backward()  # type: ignore[no-untyped-call]


def test_hooks_go_also_after_an_error_between_forward_and_backward() -> None:
    module, examples = make_module(), make_examples(6)

    def interrupted(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        sequence_losses(module, batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(module, examples, parameters(sampling_probability=1.0), loss_of=interrupted)
    assert not any(hasattr(part, "activations") or part._forward_hooks for part in module.modules())
    wanted = parameters(
        noise_multiplier=NEXT_TO_NO_NOISE, clipping_norm=0.3, sampling_probability=1.0, expected_batch_size=6.0
    )
    expected = clipped_sum_by_hand(module, examples, 0.3)
    for change, total in zip(run(module, examples, wanted), expected, strict=True):
        torch.testing.assert_close(change, -total / 6.0, rtol=1e-3, atol=1e-6)


def test_the_module_trains_in_train_mode() -> None:
    module = make_module().eval()

    def checking(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        assert module.training
        return sequence_losses(module, batch)

    run(module, make_examples(6), parameters(sampling_probability=1.0), loss_of=checking)
    assert not module.training


def test_without_a_seed_two_runs_differ_whatever_torch_was_seeded_with() -> None:
    found = []
    for _ in range(2):
        module = make_module()
        torch.manual_seed(0)
        found.append(torch.cat([change.flatten() for change in run(module, [], parameters(), seed=None)]))
    assert not torch.equal(*found)


def test_an_example_without_finite_gradient_counts_as_zero(caplog: pytest.LogCaptureFixture) -> None:
    module, examples = make_module(), make_examples(6)

    def poisoned(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        losses = sequence_losses(module, batch)
        is_last = torch.tensor([tokens is examples[-1][0] for tokens, _ in batch])
        return losses * torch.where(is_last, math.nan, 1.0)

    wanted = parameters(
        noise_multiplier=NEXT_TO_NO_NOISE, clipping_norm=0.3, sampling_probability=1.0, expected_batch_size=6.0
    )
    expected = clipped_sum_by_hand(module, examples[:-1], 0.3)
    for change, total in zip(run(module, examples, wanted, loss_of=poisoned), expected, strict=True):
        torch.testing.assert_close(change, -total / 6.0, rtol=1e-3, atol=1e-6)
    assert "1 of 6" in caplog.text


def test_nothing_finite_at_all_is_noise_and_a_line_in_the_devices_own_log(caplog: pytest.LogCaptureFixture) -> None:
    """An error would reach the server, and tell it something about the examples that nobody charged."""

    def broken(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        return sequence_losses(module, batch) * math.inf

    changes = run(make_module(), make_examples(6), parameters(sampling_probability=1.0), loss_of=broken)
    assert all(change.isfinite().all() and change.abs().sum() > 0 for change in changes)
    assert "privacy cost is spent" in caplog.text


class FunctionalUse(LowRank):
    """Uses lora_a's weight a second time where no hook sees it."""

    def forward(self, token_ids: Tensor) -> Tensor:
        hidden = self.embedding(token_ids)
        return super().forward(token_ids) * (1 + nn.functional.linear(hidden, self.lora_a.weight).mean())


class Flattened(LowRank):
    """Folds the batch into the tokens before the adapted layers."""

    def forward(self, token_ids: Tensor) -> Tensor:
        hidden = self.embedding(token_ids).flatten(0, 1)
        output: Tensor = self.lora_b(self.lora_a(hidden)).view(*token_ids.shape, -1)
        return output


@pytest.mark.parametrize(("kind", "message"), [(FunctionalUse, "do not add up"), (Flattened, "first dimension")])
def test_modules_with_wrong_gradients_are_caught(kind: type[LowRank], message: str) -> None:
    torch.manual_seed(0)
    module = kind()
    nn.init.normal_(module.lora_b.weight)
    with pytest.raises(UnsupportedModuleError, match=message):
        run(module, make_examples(6), parameters(sampling_probability=1.0))
    assert not any(part._forward_hooks for part in module.modules())


def test_modules_that_cannot_work_are_refused_before_training() -> None:
    embedding = make_module()
    embedding.embedding.requires_grad_(requires_grad=True)
    half = make_module()
    half.lora_a.half()
    tied = make_module()
    tied.again = nn.Linear(6, 2, bias=False)  # type: ignore[assignment]
    tied.again.weight = tied.lora_a.weight  # type: ignore[union-attr]
    frozen = make_module().requires_grad_(requires_grad=False)
    for module, message in (
        (embedding, "trainable in a Embedding"),
        (half, "float32"),
        (tied, "shares its weight"),
    ):
        with pytest.raises(UnsupportedModuleError, match=message):
            run(module, make_examples(3), parameters())
    with pytest.raises(UnsupportedModuleError, match="no trainable"):
        train_dp_sgd(
            frozen,
            make_examples(3),
            loss_of=sequence_losses,
            optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))]),
            parameters=parameters(),
        )


def test_the_optimizer_must_hold_every_trainable_weight() -> None:
    module = make_module()
    with pytest.raises(UnsupportedModuleError, match=r"lora_b\.weight"):
        train_dp_sgd(
            module,
            make_examples(3),
            loss_of=sequence_losses,
            optimizer=torch.optim.SGD([module.lora_a.weight]),
            parameters=parameters(),
        )


def test_a_loss_over_the_whole_batch_is_refused() -> None:
    def mean_loss(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        return sequence_losses(module, batch).mean()

    with pytest.raises(UnsupportedModuleError, match="one loss an example"):
        run(make_module(), make_examples(6), parameters(sampling_probability=1.0), loss_of=mean_loss)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": 1.0, "is_noisy": False},
        {"noise_multiplier": -1.0, "is_noisy": False},
        {"noise_multiplier": math.nan},
        {"clipping_norm": -1.0},
        {"clipping_norm": math.inf},
        {"sampling_probability": 0.0},
        {"sampling_probability": 1.1},
        {"steps": 0},
        {"expected_batch_size": 0.0},
    ],
)
def test_parameters_without_a_guarantee_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        parameters(**changes)


def test_adamw_works_as_well() -> None:
    module = make_module()
    optimizer = torch.optim.AdamW([weight for weight in module.parameters() if weight.requires_grad], lr=1e-3)
    train_dp_sgd(
        module,
        make_examples(8),
        loss_of=sequence_losses,
        optimizer=optimizer,
        parameters=parameters(steps=6),
        seed=1,
    )
    assert all(bool(weight.isfinite().all()) for weight in module.parameters())
    with pytest.raises(ValueError, match="max_physical_batch"):
        train_dp_sgd(
            module,
            [],
            loss_of=sequence_losses,
            optimizer=optimizer,
            parameters=parameters(),
            max_physical_batch=0,
        )


def losses_with_own_gradients(module: nn.Module, batch: Sequence[Sample], *, factor: float = 1.0) -> Tensor:
    """Losses that leave per-example gradients: here by one backward pass an example, in advance."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    found = [torch.autograd.grad(sequence_losses(module, [example]).sum(), weights) for example in batch]
    for index, weight in enumerate(weights):
        weight.grad_sample = torch.stack([gradients[index] for gradients in found]) * factor
    return sequence_losses(module, batch)


@pytest.mark.parametrize("max_physical_batch", [2, 64])
def test_a_loss_may_bring_its_own_gradients(max_physical_batch: int) -> None:
    moved = {}
    for own in (False, True):
        module, examples = make_module(), make_examples(9)
        moved[own] = run(
            module,
            examples,
            parameters(steps=3, clipping_norm=0.3),
            loss_of=losses_with_own_gradients if own else sequence_losses,
            max_physical_batch=max_physical_batch,
            gradients="own" if own else "hooks",
        )
        assert not any("grad_sample" in vars(weight) for weight in module.parameters())
        assert not any(part._forward_hooks for part in module.modules())
    for with_hooks, without in zip(moved[False], moved[True], strict=True):
        torch.testing.assert_close(with_hooks, without, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clipping_norm", [0.05, 0.3, 100.0])
def test_hooks_own_gradients_and_the_loop_move_the_weights_alike(clipping_norm: float) -> None:
    ways: dict[Gradients, Any] = {"hooks": sequence_losses, "own": losses_with_own_gradients, "loop": sequence_losses}
    moved = {
        way: run(
            make_module(),
            make_examples(9),
            parameters(steps=3, clipping_norm=clipping_norm),
            loss_of=loss_of,
            gradients=way,
        )
        for way, loss_of in ways.items()
    }
    for way in ("own", "loop"):
        for expected, found in zip(moved["hooks"], moved[way], strict=True):
            assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_loop_has_one_example_in_memory_and_leaves_no_trace() -> None:
    sizes = []

    def counting(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        sizes.append(len(batch))
        assert not any(part._forward_hooks for part in module.modules())
        return sequence_losses(module, batch)

    module = make_module()
    wanted = parameters(sampling_probability=1.0)
    run(module, make_examples(7), wanted, loss_of=counting, max_physical_batch=64, gradients="loop")
    assert set(sizes) == {1}
    assert len(sizes) == 7 * wanted.steps
    assert not any("grad_sample" in vars(weight) for weight in module.parameters())


def test_the_loop_drops_an_example_without_a_finite_gradient_too() -> None:
    def poisoned(module: nn.Module, batch: Sequence[Sample]) -> Tensor:
        losses = sequence_losses(module, batch)
        return losses * math.nan if batch[0] is examples[0] else losses

    examples = make_examples(6)
    wanted = parameters(sampling_probability=1.0, steps=2)
    moved = run(make_module(), examples, wanted, loss_of=poisoned, gradients="loop")
    assert all(bool(weight.isfinite().all()) for weight in moved)


def test_own_gradients_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(UnsupportedModuleError, match="do not add up"):
        run(
            make_module(),
            make_examples(9),
            parameters(sampling_probability=1.0),
            loss_of=partial(losses_with_own_gradients, factor=0.5),
            gradients="own",
        )
