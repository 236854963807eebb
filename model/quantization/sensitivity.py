"""Which weights suffer most from few bits, measured one at a time, and which of them get more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.quantization.apply import quantize_weight, require_plain
from model.quantization.plan import QuantizationPlan, TensorPlan
from model.quantization.weights import dequantize

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from model.config import ModelConfig
    from model.transformer import LayeredTransformer

_LOGIT_POSITIONS: Final = 256


@dataclass(frozen=True)
class Sensitivity:
    """What quantising one weight alone costs.

    Attributes:
        loss_rise: Rise of the loss a token, in nats, expected by the base itself: the divergence of the quantised
            model's next-token distribution from the base's, averaged over a text's positions. Never negative and far
            less noisy than the difference of two losses on the same few tokens.
        saved_bytes: Bytes that quantising it saves against 16 bits.
    """

    loss_rise: float
    saved_bytes: int


@torch.inference_mode()
def measure_sensitivity(
    model: LayeredTransformer,
    plan: QuantizationPlan,
    token_ids: Tensor,
    *,
    on_tensor: Callable[[int, int], None] | None = None,
) -> dict[str, Sensitivity]:
    """Quantise each weight of a plan alone, to its nearest levels, and measure what that costs.

    Layers below the weight are computed once only, so the whole costs half a pass over the text for each weight. The
    model is left as it was.

    Args:
        model: In evaluation mode, float32.
        plan: What would be quantised, and how.
        token_ids: Windows of a text: (windows, tokens); a few hundred tokens are enough.
        on_tensor: Called with the weights done and their number.

    Raises:
        QuantizationError: The plan does not fit the model, which has an adapter or is quantised already.
    """
    require_plain(model)
    plan.require_fit(model.config)
    runner = _Runner(model, token_ids)
    found: dict[str, Sensitivity] = {}
    for name, tensor_plan in plan.tensors.items():
        owner = model.get_submodule(name.removesuffix(".weight"))
        weight = cast("nn.Parameter", owner.weight)
        owner.weight = nn.Parameter(dequantize(quantize_weight(weight, tensor_plan)), requires_grad=False)
        try:
            rise = runner.divergence(first_layer=_layer_of(name))
        finally:
            owner.weight = weight
        kept = QuantizationPlan({other: p for other, p in plan.tensors.items() if other != name})
        saved = kept.stored_bytes(model.config) - plan.stored_bytes(model.config)
        found[name] = Sensitivity(loss_rise=rise, saved_bytes=saved)
        if on_tensor is not None:
            on_tensor(len(found), len(plan.tensors))
    return found


def choose_kept(sensitivities: Mapping[str, Sensitivity], config: ModelConfig, *, share: float) -> tuple[str, ...]:
    """The weights to give more bits: those that cost most for the bytes they save, while their share lasts.

    Args:
        sensitivities: From `measure_sensitivity`.
        config: The model's shape.
        share: Of all the model's weights, by count.
    """
    shapes = config.parameter_shapes()
    left = share * config.parameter_count
    kept = []
    for name in _most_sensitive_first(sensitivities):
        count = math.prod(shapes[name])
        if count <= left and sensitivities[name].loss_rise > 0:
            kept.append(name)
            left -= count
    return tuple(kept)


def raised(plan: QuantizationPlan, kept: Collection[str]) -> QuantizationPlan:
    """The plan with these weights in 8 bits: half of the bytes of 16, and next to nothing of the loss that 4 cost."""
    return QuantizationPlan({name: TensorPlan(bits=8) if name in kept else e for name, e in plan.tensors.items()})


def in_four_bits(plan: QuantizationPlan) -> QuantizationPlan:
    """The plan's int4 weights only: those that 8 bits can help."""
    return QuantizationPlan({name: entry for name, entry in plan.tensors.items() if entry.bits == 4})  # noqa: PLR2004


def without(plan: QuantizationPlan, kept: Collection[str]) -> QuantizationPlan:
    """The plan with these weights left at 16 bits."""
    return QuantizationPlan({name: entry for name, entry in plan.tensors.items() if name not in kept})


def _most_sensitive_first(sensitivities: Mapping[str, Sensitivity]) -> list[str]:
    return sorted(sensitivities, key=lambda name: -sensitivities[name].loss_rise / sensitivities[name].saved_bytes)


def _layer_of(name: str) -> int:
    """The first layer that a weight has a part in; past the last one for the output."""
    if name.startswith("layers."):
        return int(name.split(".")[1])
    return -1 if name == "embedding.weight" else 1 << 30


class _Runner:
    """A text's activations before every layer of the base, and its next-token distributions."""

    def __init__(self, model: LayeredTransformer, token_ids: Tensor) -> None:
        self.model = model
        self.token_ids = token_ids
        self.cos, self.sin = model.rotary(0, token_ids.shape[1])
        self.before: list[Tensor] = []
        self.attended: dict[int, tuple[Tensor, Tensor]] = {}
        final = self._run(model.embedding(token_ids), 0, self.attended, record=True)
        self.expected = [F.log_softmax(model.logits(part).float(), -1) for part in torch.split(final, _LOGIT_POSITIONS)]

    def divergence(self, *, first_layer: int) -> float:
        """KL(base || the model as it is now) a position, the layers before `first_layer` being as in the base."""
        layer = min(max(first_layer, 0), len(self.before) - 1)
        start = self.model.embedding(self.token_ids) if first_layer < 0 else self.before[layer]
        attended = {source: kv for source, kv in self.attended.items() if source < layer}
        final = self._run(start, layer, attended, record=False)
        total = 0.0
        for part, expected in zip(torch.split(final, _LOGIT_POSITIONS), self.expected, strict=True):
            found = F.log_softmax(self.model.logits(part).float(), -1)
            total += float(F.kl_div(found, expected, reduction="sum", log_target=True))
        return max(0.0, total / len(final))

    def _run(self, x: Tensor, first: int, attended: dict[int, tuple[Tensor, Tensor]], *, record: bool) -> Tensor:
        """Final hidden states (positions, model_dim) from the activations before a layer."""
        config = self.model.config
        for layer in range(first, config.num_layers):
            if record:
                self.before.append(x)
            shared = attended.get(config.kv_layer(layer))
            x, keys_values = self.model.layers[layer](x, self.cos, self.sin, layer=layer, shared=shared)
            if layer in config.kv_of[layer + 1 :]:
                attended[layer] = keys_values
        return cast("Tensor", self.model.norm(x)).flatten(0, 1)
