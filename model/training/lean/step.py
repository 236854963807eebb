"""Per-sequence losses at a fraction of the usual memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.errors import ContextLengthError
from model.training.lean.attention import Turns, attend
from model.training.lean.losses import token_losses
from model.training.lean.precision import Precision, compute_dtype
from model.training.lean.projections import Projection, project, projection_of
from model.training.lean.stream import TokenStream, token_stream
from model.training.lean.transforms import Gated, Identity, Normalized, transformed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model.data.encoding import EncodedExample
    from model.training.lean.transforms import Transform
    from model.transformer import Attention, Block, FeedForward, LayeredTransformer, RMSNorm

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a training step may cost.

    Attributes:
        precision: Of the products: `float32`, or `bfloat16` where the processor multiplies it natively. Weights,
            adapter, residual stream, norms and sums are float32 either way.
        checkpointing: `blocks` keeps only each layer's input and computes the layer again for its backward pass:
            a fraction of the memory for a third more time.
    """

    precision: Precision = "float32"
    checkpointing: Literal["none", "blocks"] = "none"


def is_lean(model: LayeredTransformer) -> bool:
    """Whether `lean_sequence_losses` can compute this model: everything but its adapter frozen, no dropout."""
    projections = list(_projections(model))
    adapters = {id(weight) for projection in projections if projection for weight in projection.branch or ()}
    return None not in projections and all(
        id(parameter) in adapters for parameter in model.parameters() if parameter.requires_grad
    )


def lean_sequence_losses(
    model: LayeredTransformer,
    batch: Sequence[EncodedExample],
    *,
    cost: StepCost | None = None,
    per_example: bool = False,
) -> Tensor:
    """What `sequence_losses` gives, (B,), with a backward pass for the adapter alone.

    Args:
        model: One for which `is_lean` holds.
        batch: At least one example.
        cost: float32 without checkpointing unless said otherwise.
        per_example: Backward also leaves each example's own gradient in every parameter's `grad_sample`, (B, *shape).

    Raises:
        ContextLengthError: An example is longer than the model's context.
        DataError: The batch is empty.
    """
    cost = cost or StepCost()
    stream = token_stream(batch)
    if (longest := max(group.longest for group in stream.groups)) > model.config.max_context:
        raise ContextLengthError(
            f"an example of {longest} tokens, the model's context holds {model.config.max_context}; cut it"
        )
    walk = _Walk(model, stream, compute_dtype(cost.precision), has_gradients_per_example=per_example)
    hidden = walk.hidden_states(checkpointing=cost.checkpointing)
    head = model.embedding.weight if model.output is None else model.output.weight
    losses = token_losses(hidden, head.detach(), stream.targets, dtype=walk.dtype)
    counts = torch.bincount(stream.owners, minlength=len(batch))
    return torch.zeros(len(batch), device=losses.device).index_add(0, stream.owners, losses) / counts


class _Walk:
    """One pass of a batch through the model."""

    def __init__(
        self, model: LayeredTransformer, stream: TokenStream, dtype: torch.dtype, *, has_gradients_per_example: bool
    ) -> None:
        self.model = model
        self.stream = stream
        self.dtype = dtype
        self.per_example = stream if has_gradients_per_example else None
        cos, sin = model.rotary(0, max(group.longest for group in stream.groups))
        self.turns = Turns(cos[stream.positions].unsqueeze(1), sin[stream.positions].unsqueeze(1))

    def hidden_states(self, *, checkpointing: str) -> Tensor:
        """Normalised hidden states where the loss counts: (M, model_dim)."""
        config = self.model.config
        x = self.model.embedding(self.stream.token_ids).float()
        attended: dict[int, KeysValues] = {}
        lenders = {source for layer, source in enumerate(config.kv_of) if source != layer}
        for layer, module in enumerate(self.model.layers):
            block, shared = cast("Block", module), attended.get(config.kv_layer(layer))
            if checkpointing == "blocks" and (x.requires_grad or _is_adapted(block)):
                x, keys_values = checkpoint(
                    self._block, block, x, shared, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, keys_values = self._block(block, x, shared)
            if layer in lenders:
                attended[layer] = keys_values
        norm = self.model.norm
        return transformed(Normalized(torch.float32, norm.weight, norm.eps), x[self.stream.counted])

    def _block(self, block: Block, x: Tensor, shared: KeysValues | None) -> tuple[Tensor, KeysValues]:
        x, keys_values = self._attention(block.attention, block.attention_norm, x, shared)
        return self._feed_forward(block.ffn, block.ffn_norm, x), keys_values

    def _attention(
        self, attention: Attention, norm: RMSNorm, x: Tensor, shared: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        modules = [attention.q_proj] if shared else [attention.q_proj, attention.k_proj, attention.v_proj]
        results = self._project(modules, [x], Normalized(self.dtype, norm.weight, norm.eps))
        heads = [result.view(len(result), -1, attention.head_dim) for result in results]
        queries = self._heads_norm(heads[0], attention.q_norm)
        keys, values = shared or (self._heads_norm(heads[1], attention.k_norm), heads[2])
        mixed = attend(queries, keys, values, stream=self.stream, turns=self.turns)
        (result,) = self._project([attention.o_proj], [mixed], Identity(self.dtype), residual=x)
        return result, (keys, values)

    def _feed_forward(self, ffn: FeedForward, norm: RMSNorm, x: Tensor) -> Tensor:
        inner = self._project([ffn.gate_proj, ffn.up_proj], [x], Normalized(self.dtype, norm.weight, norm.eps))
        (result,) = self._project([ffn.down_proj], inner, Gated(self.dtype), residual=x)
        return result

    def _project(
        self,
        modules: Sequence[nn.Module | None],
        inputs: Sequence[Tensor],
        transform: Transform,
        residual: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        projections = [projection for module in modules if (projection := projection_of(module)) is not None]
        return project(projections, inputs, transform=transform, residual=residual, per_example=self.per_example)

    def _heads_norm(self, x: Tensor, norm: RMSNorm | None) -> Tensor:
        return x if norm is None else transformed(Normalized(self.dtype, norm.weight, norm.eps), x)


def _projections(model: LayeredTransformer) -> Iterator[Projection | None]:
    for name, module in model.layers.named_modules():
        if name.endswith("_proj"):
            yield projection_of(module)


def _is_adapted(block: Block) -> bool:
    return any(parameter.requires_grad for parameter in block.parameters())
