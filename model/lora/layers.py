"""Adapters on a model: put on, trained, merged, taken off."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.errors import AdapterError
from model.lora.state import AdapterState, adapter_shapes, check_adapter_state, initial_adapter
from model.quantization.layers import QuantizedLinear

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from model.config import LoRAConfig
    from model.transformer import LayeredTransformer


class LoRALinear(nn.Module):
    """A frozen linear layer with a low-rank branch: W x + scaling * B A dropout(x).

    A and B are `nn.Linear` modules of their own without anything beside them, so that hooks can take per-example
    gradients. The base weight keeps its name and its storage; a quantised base stays a module of its own, for the same
    reason, and is made dense only by merging.
    """

    def __init__(
        self, base: nn.Linear | QuantizedLinear, config: LoRAConfig, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.quantized: QuantizedLinear | None = None
        self.weight: nn.Parameter | None
        if isinstance(base, QuantizedLinear):
            self.quantized = base
            self.register_parameter("weight", None)
            dtype, device = dtype or base.dtype, base.scales.device
        else:
            self.weight = cast("nn.Parameter", base.weight)
            dtype, device = dtype or base.weight.dtype, base.weight.device
        self.lora_a = nn.Linear(base.in_features, config.rank, bias=False, dtype=dtype, device=device)
        self.lora_b = nn.Linear(config.rank, base.out_features, bias=False, dtype=dtype, device=device)
        self.dropout = nn.Dropout(config.dropout)
        self.config = config
        self.is_merged = False
        self.unmerged: nn.Parameter | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        base = self.base(x)
        if self.is_merged:
            return base
        branch = cast("Tensor", self.lora_b(self.lora_a(self.dropout(x.to(self.lora_a.weight.dtype)))))
        return base + (branch * self.config.scaling).to(base.dtype)

    def base(self, x: Tensor) -> Tensor:
        """What the layer computes without its branch, or with the branch merged in: (..., in) -> (..., out)."""
        if self.weight is not None:
            return F.linear(x, self.weight)
        return cast("QuantizedLinear", self.quantized).linear(x)

    def merge(self) -> None:
        """Add the branch into the weight; the old weight is kept, so that `unmerge` restores it exactly."""
        if not self.is_merged:
            weight = cast("QuantizedLinear", self.quantized).weight if self.weight is None else self.weight
            delta = self.lora_b.weight.float() @ self.lora_a.weight.float() * self.config.scaling
            merged = (weight.float() + delta).to(weight.dtype)
            # Not registered as a parameter: it is neither trained nor saved.
            object.__setattr__(self, "unmerged", self.weight)
            self.weight = nn.Parameter(merged, requires_grad=False)
            self.is_merged = True

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""
        if self.is_merged:
            self.weight = self.unmerged
            object.__setattr__(self, "unmerged", None)
            self.is_merged = False

    def without_lora(self) -> nn.Linear | QuantizedLinear:
        """The plain layer this was made from, with the same weight storage."""
        self.unmerge()
        if self.weight is None:
            return cast("QuantizedLinear", self.quantized)
        rows, columns = self.weight.shape
        plain = nn.Linear(columns, rows, bias=False, device="meta")
        plain.weight = self.weight
        return plain


def add_lora(model: LayeredTransformer, config: LoRAConfig, *, seed: int = 0, dtype: torch.dtype | None = None) -> None:
    """Freeze the model and give it a new adapter that changes no logit yet; only the adapter is trainable.

    Args:
        model: Without an adapter.
        config: Where the adapter sits, and its size.
        seed: Of its first values.
        dtype: Of the adapter; the base's unless said otherwise. Train in float32, also on a bfloat16 base: steps
            smaller than a bfloat16's last bit would be lost.

    Raises:
        AdapterError: The model already has an adapter, or no such layer.
    """
    if any(True for _ in _lora_layers(model)):
        raise AdapterError("the model already has an adapter; call remove_lora first")
    state = initial_adapter(model.config, config, seed)
    model.requires_grad_(requires_grad=False)
    for layer, projection in model.config.stored_projections():
        if config.adapts(layer, projection):
            owner_path, _, attribute = model.config.projection_path(layer, projection).rpartition(".")
            owner = model.get_submodule(owner_path)
            setattr(owner, attribute, LoRALinear(getattr(owner, attribute), config, dtype=dtype))
    load_adapter_state(model, state)


def adapter_state_dict(model: LayeredTransformer) -> AdapterState:
    """The adapter's tensors by the names of `adapter_shapes`; they share memory with the model.

    Raises:
        AdapterError: The model has no adapter.
    """
    _config_of(model)
    state: AdapterState = {}
    for path, layer in _lora_layers(model):
        state[f"{path}.lora_a"] = layer.lora_a.weight.detach()
        state[f"{path}.lora_b"] = layer.lora_b.weight.detach()
    return state


@torch.no_grad()
def load_adapter_state(model: LayeredTransformer, state: Mapping[str, Tensor]) -> None:
    """Copy an adapter's tensors into the model's adapter.

    Raises:
        AdapterError: Names or shapes differ, or a value is not finite; the model is as it was.
    """
    check_adapter_state(state, adapter_shapes(model.config, _config_of(model)))
    for path, layer in _lora_layers(model):
        if layer.is_merged:
            raise AdapterError("the adapter is merged; call unmerge_lora before loading another")
        layer.lora_a.weight.copy_(state[f"{path}.lora_a"])
        layer.lora_b.weight.copy_(state[f"{path}.lora_b"])


@torch.no_grad()
def merge_lora(model: LayeredTransformer) -> None:
    """Add the adapter into the weights: as fast as without one. Keeps a copy of the targeted weights.

    Raises:
        AdapterError: The model has no adapter.
    """
    _config_of(model)
    for _, layer in _lora_layers(model):
        layer.merge()


def unmerge_lora(model: LayeredTransformer) -> None:
    """Undo `merge_lora`, bit for bit.

    Raises:
        AdapterError: The model has no adapter.
    """
    _config_of(model)
    for _, layer in _lora_layers(model):
        layer.unmerge()


def remove_lora(model: LayeredTransformer) -> None:
    """Take the adapter off; the base is bit for bit what it was, and stays frozen. Without an adapter: nothing."""
    for path, layer in list(_lora_layers(model)):
        owner_path, _, attribute = path.rpartition(".")
        setattr(model.get_submodule(owner_path), attribute, layer.without_lora())


def _lora_layers(model: LayeredTransformer) -> Iterator[tuple[str, LoRALinear]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoRALinear))


def _config_of(model: LayeredTransformer) -> LoRAConfig:
    for _, layer in _lora_layers(model):
        return layer.config
    raise AdapterError("the model has no adapter; call add_lora first")
