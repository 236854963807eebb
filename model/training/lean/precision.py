"""What a training step computes in, and the products with frozen weights."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, cast

import torch
from torch.nn import functional as F  # noqa: N812  (its usual name)

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float32", "bfloat16"]
# Instruction sets that multiply bfloat16; without one it is emulated, and slower than float32.
_BFLOAT16_INSTRUCTIONS: Final = ("avx512_bf16", "amx_bf16", "bf16")


@lru_cache(maxsize=1)
def has_fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BFLOAT16_INSTRUCTIONS)


def compute_dtype(precision: Precision) -> torch.dtype:
    """The dtype of the products: bfloat16 only where the processor has it, whatever was asked for."""
    if precision == "float32" or not has_fast_bfloat16():
        return torch.float32
    return torch.bfloat16


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Compute x W^T in the dtype of x: (N, in), (out, in) -> (N, out)."""
    weight = weight.to(x.dtype)
    return _onednn(x, weight) if _has_onednn(x) else F.linear(x, weight)


def product_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `product` with respect to x: (N, out), (out, in) -> (N, in)."""
    weight = weight.to(gradient.dtype)
    return _onednn(gradient, weight.t()) if _has_onednn(gradient) else gradient @ weight


def _has_onednn(x: Tensor) -> bool:
    """Whether to ask oneDNN for a float32 product, which torch leaves to a library that favours one maker's chips."""
    return x.dtype == torch.float32 and x.device.type == "cpu" and _mkldnn_is_available()


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return cast("Tensor", torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], ""))  # noqa: SLF001  (only so)


@lru_cache(maxsize=1)
def _mkldnn_is_available() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
