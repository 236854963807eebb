"""Frozen linear layers with low-rank branches, several over one input, with a backward pass that keeps little.

For y = W z + s B A z with W frozen, the backward pass needs W, the small A z, and z. W and A z are at hand; z, which a
norm or a gate made of something that is kept anyway, is computed again. Layers that read the same z share each pass
over it. Products with a rank-sized side are written the way round in which BLAS is quick: A z^T, not z A^T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from model.lora.layers import LoRALinear
from model.quantization.layers import QuantizedLinear
from model.training.lean.precision import product, product_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.training.lean.stream import TokenStream
    from model.training.lean.transforms import Transform


@dataclass(frozen=True)
class Projection:
    """One frozen layer, and its branch where it has one.

    Attributes:
        base: Its frozen weight is `base.weight`, which a quantised layer makes anew each time.
        branch: A (rank, in) and B (out, rank), trainable; None without an adapter.
        scaling: Factor on the branch.
    """

    base: nn.Module
    branch: tuple[Tensor, Tensor] | None
    scaling: float

    @property
    def weight(self) -> Tensor:
        """(out, in)."""
        return cast("Tensor", self.base.weight).detach()


def projection_of(module: nn.Module | None) -> Projection | None:
    """How to compute a module leanly; None where only calling it is right."""
    if isinstance(module, LoRALinear):
        base = module if module.quantized is None else module.quantized
        if module.dropout.p > 0 or (isinstance(base, QuantizedLinear) and base.has_int8_inputs):
            return None
        if module.is_merged:
            return Projection(module, None, 0.0)
        return Projection(base, (module.lora_a.weight, module.lora_b.weight), module.config.scaling)
    if isinstance(module, QuantizedLinear):
        return None if module.has_int8_inputs else Projection(module, None, 0.0)
    if isinstance(module, nn.Linear) and module.bias is None and not module.weight.requires_grad:
        return Projection(module, None, 0.0)
    return None


@dataclass(frozen=True)
class _Plan:
    """What `_Project` computes, apart from tensors that gradients flow to."""

    transform: Transform
    projections: Sequence[Projection]
    num_inputs: int
    has_residual: bool
    per_example: TokenStream | None


def project(
    projections: Sequence[Projection],
    inputs: Sequence[Tensor],
    *,
    transform: Transform,
    residual: Tensor | None = None,
    per_example: TokenStream | None = None,
) -> tuple[Tensor, ...]:
    """Each projection of transform(*inputs): one (N, out) tensor for each.

    Args:
        projections: All with the same width of input.
        inputs: What `transform` takes, each of N rows.
        transform: Computed again in the backward pass.
        residual: Added to the only projection's result, which then has its dtype.
        per_example: Leaves each parameter's gradient of each example in `grad_sample`, as Opacus does.
    """
    plan = _Plan(transform, projections, len(inputs), residual is not None, per_example)
    tensors = [*inputs, *([] if residual is None else [residual])]
    for projection in projections:
        tensors += projection.branch or ()
    outputs = _Project.apply(plan, *tensors)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _Project(torch.autograd.Function):
    """`project` without keyword arguments."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:  # noqa: ANN401  (torch's)
        inputs = tensors[: plan.num_inputs]
        z, _ = plan.transform.forward(*inputs)
        is_adapted = any(p.branch is not None for p in plan.projections)
        reduced = _stacked(plan, z.dtype) @ z.t() if is_adapted else None  # A z^T of all: (sum of ranks, N)
        outputs, row = [], 0
        for projection in plan.projections:
            output = product(z, projection.weight)
            if projection.branch is not None and reduced is not None:
                b = projection.branch[1].to(z.dtype)
                output.addmm_(reduced[row : row + b.shape[1]].t(), b.t(), alpha=projection.scaling)
                row += b.shape[1]
            outputs.append(output)
        if plan.has_residual:
            outputs = [tensors[plan.num_inputs] + outputs[0]]
        ctx.plan, ctx.dtype = plan, z.dtype
        ctx.save_for_backward(*inputs, reduced)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  (as above)
        plan: _Plan = ctx.plan
        *inputs, reduced = ctx.saved_tensors
        wanted = [gradient.to(ctx.dtype) for gradient in gradients]
        z, on_the_way = plan.transform.forward(*inputs)
        back, for_branches = _branches_back(plan, wanted, reduced, z)
        for_inputs: tuple[Tensor | None, ...] = (None,) * plan.num_inputs
        if any(ctx.needs_input_grad[1 : 1 + plan.num_inputs]):
            total = product_back(wanted[0], plan.projections[0].weight)
            for gradient, projection in zip(wanted[1:], plan.projections[1:], strict=True):
                total += product_back(gradient, projection.weight)
            if back is not None:
                total.addmm_(back.t(), _stacked(plan, ctx.dtype))
            for_inputs = plan.transform.backward(total, on_the_way, *inputs)
        for_residual = (gradients[0],) if plan.has_residual else ()
        return (None, *for_inputs, *for_residual, *for_branches)


def _stacked(plan: _Plan, dtype: torch.dtype) -> Tensor:
    """All A on top of each other: (sum of ranks, in)."""
    return torch.cat([p.branch[0].to(dtype) for p in plan.projections if p.branch is not None])


def _branches_back(
    plan: _Plan, wanted: Sequence[Tensor], reduced: Tensor | None, z: Tensor
) -> tuple[Tensor | None, list[Tensor]]:
    """The gradient of A z^T of all branches (sum of ranks, N), and the gradients of each A and B in turn."""
    if reduced is None:
        return None, []
    adapted = [(p, gradient) for p, gradient in zip(plan.projections, wanted, strict=True) if p.branch is not None]
    parts = [_b(p).to(reduced.dtype).t() @ gradient.t() * p.scaling for p, gradient in adapted]
    back = torch.cat(parts)
    ranks = [part.shape[0] for part in parts]
    hidden = torch.split(reduced, ranks)
    if plan.per_example is not None:
        _keep_per_example(plan.per_example, adapted, hidden, parts, z)
    for_a = torch.split((back @ z).float(), ranks)
    for_b = [(rows @ gradient).t().float() * p.scaling for (p, gradient), rows in zip(adapted, hidden, strict=True)]
    return back, [gradient for pair in zip(for_a, for_b, strict=True) for gradient in pair]


def _keep_per_example(
    stream: TokenStream,
    adapted: Sequence[tuple[Projection, Tensor]],
    reduced: Sequence[Tensor],
    back: Sequence[Tensor],
    z: Tensor,
) -> None:
    """Add each example's own gradient of A and B to their `grad_sample`, (B, *shape)."""
    for (projection, gradient), rows, parts in zip(adapted, reduced, back, strict=True):
        a, b = cast("tuple[Tensor, Tensor]", projection.branch)
        for example, own in _by_example(stream, parts, z):
            _keep(a, example, own, size=len(stream.order))
        for example, own in _by_example(stream, rows, gradient):
            _keep(b, example, own.transpose(-2, -1), size=len(stream.order), scaling=projection.scaling)


def _by_example(stream: TokenStream, left: Tensor, right: Tensor) -> Iterator[tuple[int | slice, Tensor]]:
    """left[:, tokens] @ right[tokens] of each example; of all at once, which is faster, where they have one length."""
    lengths = {end - begin for _, begin, end in stream.spans}
    if len(lengths) == 1 and stream.order == tuple(range(len(stream.order))):
        shape = (len(stream.order), lengths.pop(), -1)
        yield slice(None), left.t().view(shape).transpose(1, 2) @ right.view(shape)
        return
    for example, begin, end in stream.spans:
        yield example, left[:, begin:end] @ right[begin:end]


def _keep(parameter: Any, example: int | slice, own: Tensor, *, size: int, scaling: float = 1.0) -> None:  # noqa: ANN401  (grad_sample is Opacus' own attribute)
    """Add to the gradients of examples in `grad_sample`, which a layer that runs twice has begun already."""
    if getattr(parameter, "grad_sample", None) is not None:
        parameter.grad_sample[example].add_(own, alpha=scaling)
    elif isinstance(example, slice):
        parameter.grad_sample = own.float().mul_(scaling).contiguous()
    else:
        parameter.grad_sample = torch.zeros((size, *parameter.shape), device=parameter.device)
        parameter.grad_sample[example].add_(own, alpha=scaling)


def _b(projection: Projection) -> Tensor:
    return cast("tuple[Tensor, Tensor]", projection.branch)[1]
