"""Quantise a model in place, and take its weights out again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from model.errors import QuantizationError
from model.quantization.layers import QuantizedEmbedding, QuantizedLinear, QuantizedModule
from model.quantization.plan import QuantizationPlan, TensorPlan
from model.quantization.weights import QuantizedWeight, quantize_int4, quantize_int8, to_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from model.transformer import LayeredTransformer


def quantize_weight(weight: Tensor, plan: TensorPlan, *, importance: Tensor | None = None) -> QuantizedWeight:
    """Round a matrix as a plan says.

    Raises:
        QuantizationError: The plan does not fit the matrix, or a value is not finite.
    """
    if plan.group_size is None:
        return quantize_int8(weight)
    return quantize_int4(
        weight, plan.group_size, symmetric=plan.symmetric, scale_bits=plan.scale_bits, importance=importance
    )


@torch.no_grad()
def quantize_model(
    model: LayeredTransformer, plan: QuantizationPlan, *, on_tensor: Callable[[str], None] | None = None
) -> None:
    """Round every weight of the plan to its nearest levels, and put layers in place that compute with them.

    Raises:
        QuantizationError: The plan does not fit the model, the model has an adapter, or is quantised already.
    """
    require_plain(model)
    plan.require_fit(model.config)
    for name, tensor_plan in plan.tensors.items():
        weight = cast("Tensor", model.get_submodule(name.removesuffix(".weight")).weight)
        try:
            quantized = quantize_weight(weight, tensor_plan)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
        install(model, name, to_stored(quantized), tensor_plan)
        if on_tensor is not None:
            on_tensor(name)


def install(model: LayeredTransformer, name: str, stored: Mapping[str, Tensor], plan: TensorPlan) -> None:
    """Put the quantised layer of one weight in the place of the dense one; other layers keep running the same block."""
    kind = QuantizedEmbedding if name == "embedding.weight" else QuantizedLinear
    layer = kind(stored, bits=plan.bits, group_size=plan.group_size, dtype=model.dtype)
    owner, _, attribute = name.removesuffix(".weight").rpartition(".")
    setattr(model.get_submodule(owner), attribute, layer)


def quantized_layers(model: LayeredTransformer) -> Iterator[tuple[str, QuantizedModule]]:
    """Every quantised weight by its name in `ModelConfig.parameter_shapes`, with or without an adapter on it."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedModule):
            yield f"{path.removesuffix('.quantized')}.weight", module


def plan_of(model: LayeredTransformer) -> QuantizationPlan:
    """How a model is quantised; without entries if it is not."""
    return QuantizationPlan(
        {
            name: TensorPlan(
                bits=layer.bits,
                group_size=layer.group_size,
                symmetric=layer.group_size is None or layer.zeros is None,
                scale_bits=16 if layer.tops is None else 8,
            )
            for name, layer in quantized_layers(model)
        }
    )


def set_int8_inputs(model: LayeredTransformer, *, enabled: bool, group_size: int | None = 32) -> None:
    """Whether the quantised layers of the body round their inputs to int8 too (dynamic activation quantisation).

    The output over the vocabulary never does: it decides the token.

    Args:
        model: A quantised model.
        enabled: False takes it back.
        group_size: Inputs that share a scale, as in llama.cpp's kernels; None: a whole vector shares one, as in
            torch's, which costs far more where a few inputs are large.
    """
    for name, layer in quantized_layers(model):
        group = layer.in_features if group_size is None else math.gcd(group_size, layer.in_features)
        is_output = name in {"embedding.weight", "output.weight"}
        layer.input_group = group if enabled and not is_output else None


def dense_state(model: LayeredTransformer) -> dict[str, Tensor]:
    """Every weight by its name in `ModelConfig.parameter_shapes`, quantised ones made dense; for export."""
    weights = {}
    for name in model.config.parameter_shapes():
        owner = model.get_submodule(name.removesuffix(".weight"))
        # An adapter's layer on a quantised base has a weight of its own only once it is merged.
        weight = owner.weight if owner.weight is not None else cast("QuantizedModule", owner.quantized).weight
        weights[name] = cast("Tensor", weight).detach()
    return weights


@torch.no_grad()
def dequantize_model(model: LayeredTransformer) -> None:
    """Make every quantised weight dense again: faster where memory allows, the same outputs.

    Raises:
        QuantizationError: The model has an adapter.
    """
    _require_no_adapter(model)
    for name, layer in list(quantized_layers(model)):
        dense: nn.Module
        weight = nn.Parameter(layer.weight, requires_grad=False)
        if isinstance(layer, QuantizedEmbedding):
            dense = nn.Embedding(layer.out_features, layer.in_features, _weight=weight, _freeze=True)
        else:
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            dense.weight = weight
        owner, _, attribute = name.removesuffix(".weight").rpartition(".")
        setattr(model.get_submodule(owner), attribute, dense)


def require_plain(model: LayeredTransformer) -> None:
    """Check that a model has neither an adapter nor quantised weights.

    Raises:
        QuantizationError: It has.
    """
    if any(True for _ in quantized_layers(model)):
        raise QuantizationError("the model is quantised already; start from the base in 16 or 32 bits")
    _require_no_adapter(model)


def _require_no_adapter(model: LayeredTransformer) -> None:
    if any(hasattr(module, "lora_a") for module in model.modules()):
        raise QuantizationError("the model has an adapter; merge it into the base on disk, or remove it first")
