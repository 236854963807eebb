"""Quantise a model layer by layer on the activations of a text."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn

from model.errors import QuantizationError
from model.quantization.apply import install, quantize_weight, require_plain
from model.quantization.gptq import gptq_int4, gptq_int8
from model.quantization.weights import to_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from model.quantization.plan import QuantizationPlan
    from model.transformer import Block, LayeredTransformer

_BATCH_TOKENS: Final = 4096
# Without instructions for it, bfloat16 is slower than float32.
_HAS_BFLOAT16: Final = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  (there is no public question)


class _Run:
    """The activations of all batches between two layers."""

    def __init__(self, model: LayeredTransformer, token_ids: Tensor) -> None:
        self.model = model
        self.states = list(torch.split(model.embedding(token_ids), max(1, _BATCH_TOKENS // token_ids.shape[1])))
        self.cos, self.sin = model.rotary(0, token_ids.shape[1])
        self.attended: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in self.states]

    def through(self, layer: int, *, advance: bool) -> None:
        """Run every batch through a layer; `advance` makes its outputs the new activations."""
        config = self.model.config
        block = cast("Block", self.model.layers[layer])
        for batch, attended in enumerate(self.attended):
            shared = attended.get(config.kv_layer(layer))
            # bfloat16 errs by a fortieth of what 4 bits do; the residual stream stays float32.
            with torch.autocast("cpu", torch.bfloat16, enabled=_HAS_BFLOAT16):
                output, keys_values = block(self.states[batch], self.cos, self.sin, layer=layer, shared=shared)
            if advance:
                self.states[batch] = output
                if layer in config.kv_of[layer + 1 :]:
                    attended[layer] = keys_values


@torch.no_grad()  # not inference_mode: an adapter trains on these tensors later
def calibrate_model(
    model: LayeredTransformer,
    plan: QuantizationPlan,
    token_ids: Tensor,
    *,
    on_layer: Callable[[int, int], None] | None = None,
) -> None:
    """Quantise in place, by GPTQ on what the layers before a weight, quantised, make of a text.

    A table that is only looked up is rounded to its nearest levels; a tied embedding counts as the output, which it
    serves as too. A layer that is run several times is calibrated where it is run first. Takes about
    three passes over the text; its activations stay in memory.

    Args:
        model: In evaluation mode, float32.
        plan: What to quantise and how.
        token_ids: Windows of a text like those the model will see: (windows, tokens), a few thousand tokens in all.
        on_layer: Called with the layers done and their number.

    Raises:
        QuantizationError: The plan does not fit the model, which has an adapter or is quantised already, or a weight
            is not finite.
    """
    require_plain(model)
    plan.require_fit(model.config)
    if "embedding.weight" in plan.tensors and not model.config.tied_embeddings:
        _quantize(model, plan, "embedding.weight", hessian=None)
    run = _Run(model, token_ids)
    for layer in range(model.config.num_layers):
        if model.config.weight_layer(layer) == layer:
            names = [f"{path}.weight" for path in _paths(model, layer) if f"{path}.weight" in plan.tensors]
            with _hessians(model, names) as hessians:
                if names:
                    run.through(layer, advance=False)
            for name in names:
                _quantize(model, plan, name, hessian=hessians.get(name))
        run.through(layer, advance=True)
        if on_layer is not None:
            on_layer(layer + 1, model.config.num_layers)
    name = "embedding.weight" if model.config.tied_embeddings else "output.weight"
    if name in plan.tensors:
        finals = [model.norm(states).flatten(0, 1).float() for states in run.states]
        _quantize(model, plan, name, hessian=cast("Tensor", sum(final.T @ final for final in finals)))


def calibration_windows(token_ids: Sequence[int], *, window: int = 128, max_tokens: int = 32_768) -> Tensor:
    """Cut a text into windows (windows, tokens), spread evenly over it.

    Raises:
        QuantizationError: The text is shorter than eight windows.
    """
    available = len(token_ids) // window
    if available < 8:  # noqa: PLR2004  (fewer say little about a layer's inputs)
        raise QuantizationError(f"the calibration text has {len(token_ids)} tokens; give at least {8 * window}")
    whole = torch.tensor(token_ids[: available * window], dtype=torch.int64).view(available, window)
    wanted = min(available, max(1, max_tokens // window))
    return whole[torch.linspace(0, available - 1, wanted).long()]


def _paths(model: LayeredTransformer, layer: int) -> list[str]:
    config = model.config
    return [config.projection_path(layer, projection) for projection in config.projections_of(layer)]


@contextmanager
def _hessians(model: LayeredTransformer, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """X^T X of the inputs that these layers see meanwhile; layers that see the same input share the matrix."""
    totals: dict[str, Tensor] = {}
    seen: list[tuple[Tensor, Tensor]] = []  # the last input and its product, kept so that its identity means something

    def gather(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            if not seen or seen[0][0] is not inputs[0]:
                flat = inputs[0].flatten(0, -2).float()
                with torch.autocast("cpu", enabled=False):  # rounded sums would not be positive definite
                    seen[:] = [(inputs[0], flat.T @ flat)]
            totals[name] = totals[name] + seen[0][1] if name in totals else seen[0][1]

        return hook

    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(gather(name)) for name in names
    ]
    try:
        yield totals
    finally:
        for handle in handles:
            handle.remove()


def _quantize(model: LayeredTransformer, plan: QuantizationPlan, name: str, *, hessian: Tensor | None) -> None:
    weight = cast("Tensor", model.get_submodule(name.removesuffix(".weight")).weight)
    tensor_plan = plan.tensors[name]
    try:
        if hessian is None:
            quantized = quantize_weight(weight, tensor_plan)
        elif tensor_plan.group_size is None:
            quantized = gptq_int8(weight, hessian)
        else:
            quantized = gptq_int4(
                weight,
                hessian,
                tensor_plan.group_size,
                symmetric=tensor_plan.symmetric,
                scale_bits=tensor_plan.scale_bits,
            )
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}") from error
    install(model, name, to_stored(quantized), tensor_plan)
