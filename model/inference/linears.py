"""Matrix products of generation: weights packed once, in the precision that the processor reads fastest.

Every class takes float32 rows (N, in) and returns float32 rows (N, out). A row's result does not depend on which rows
are beside it as far as the kernels allow: exactly so for int8, whose sums are whole numbers.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Final, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (its usual name)

from model.quantization import QuantizedWeight, dequantize, quantize_int4, quantize_int8

if TYPE_CHECKING:
    from collections.abc import Sequence

Precision = Literal["float32", "bfloat16", "float16", "int8", "int4"]
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "bfloat16", "float16", "int8", "int4")

_INT8: Final = 8
_LARGEST: Final = 127.0
SCALED_RANGE: Final = _LARGEST
_ZERO_POINT: Final = 128
# Steps of the second digit in one of the first: rounding leaves at most half a step, and 127 steps fit in it.
_SECOND: Final = 254.0
_SECOND_STEPS: Final = torch.tensor(_SECOND)
_ONE_STEP: Final = torch.tensor(1.0 / _LARGEST)
_SUM_OF_DIGITS: Final = torch.tensor([[1.0, 1.0 / _SECOND]])
_INFINITY: Final = float("inf")
# Rows whose largest value is this small are all zero for every purpose; dividing by it stays finite.
_SMALLEST: Final = torch.tensor(1e-20)
# From here on the products cost more than unpacking int4 once.
_MANY_ROWS: Final = 16


class Linear(Protocol):
    """A packed weight."""

    out_features: int
    num_bytes: int

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) float32 -> (N, out) float32."""
        ...


class PlainLinear:
    """A weight as torch keeps it, float32 or bfloat16."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.out_features = weight.shape[0]
        self.num_bytes = self.weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return F.linear(x.to(self.weight.dtype), self.weight).float()


class HalfLinear:
    """float16 weights, float32 activations and sums: two to three times as fast as bfloat16 for a single row."""

    def __init__(self, weight: Tensor) -> None:
        self.out_features = weight.shape[0]
        self.num_bytes = weight.numel() * 2
        with _fbgemm():
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        out: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return out


class Int8Linear:
    """int8 weights per output channel, activations in two int8 digits, summed in whole numbers.

    One int8 digit for each activation loses what a few outlier channels leave no room for (Dettmers et al. 2022,
    arXiv:2208.07339). The remainder of the first digit is a second row of the same product, so the weights are read
    once and activations keep about 15 bits: the error is that of the weights alone. Sums are exact, so a row's result
    does not depend on the rows beside it.
    """

    def __init__(self, quantized: QuantizedWeight, *, input_range: float | None = None) -> None:
        """Pack.

        Args:
            quantized: int8 (out, in).
            input_range: Largest magnitude of an input, where that is known; the caller then gives inputs that were
                multiplied by 127 / input_range, and nothing is measured. None measures each row.
        """
        rows, _ = quantized.shape
        self.out_features = rows
        self.num_bytes = quantized.values.nbytes + quantized.scales.nbytes
        self._is_scaled = input_range is not None
        scales = quantized.scales.double() * ((input_range or 1.0) / _LARGEST if self._is_scaled else 1.0)
        with _fbgemm(), warnings.catch_warnings():
            # torch announces that these tensors will go one day; `has_int8_products` is how that day is noticed.
            warnings.simplefilter("ignore", UserWarning)
            weight = torch._make_per_channel_quantized_tensor(  # noqa: SLF001  (the only one from whole numbers)
                quantized.values, scales, torch.zeros(rows, dtype=torch.int64), 0
            )
            self._packed = torch.ops.quantized.linear_prepack(weight, None)
        op = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        # What it calls in the end: before that, its __call__ looks through all arguments, for 5 microseconds each time.
        self._op = getattr(op, "_op", op)
        # Where a single row's digits go: making and joining them anew costs more than computing them.
        self._digits = torch.empty(2, quantized.shape[1])
        self._first, self._second = self._digits[:1], self._digits[1:]

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        if self._is_scaled:
            return self._product(x)
        # Tensors instead of numbers: torch wraps a number in a tensor and converts it, which takes as long again.
        largest = torch.linalg.vector_norm(x, _INFINITY, dim=1, keepdim=True)
        scales = torch.addcmul(_SMALLEST, largest, _ONE_STEP)
        return self._product(x / scales).mul_(scales)

    def _product(self, scaled: Tensor) -> Tensor:
        """The product of inputs in -127..127 with the weights."""
        out: Tensor
        count = scaled.shape[0]
        if count == 1:
            torch.round(scaled, out=self._first)
            torch.sub(scaled, self._first, out=self._second).mul_(_SECOND_STEPS)
            return torch.mm(_SUM_OF_DIGITS, self._op(self._digits, 1.0, _ZERO_POINT, self._packed))
        first = scaled.round()
        both = torch.cat((first, (scaled - first).mul_(_SECOND_STEPS)))
        out = self._op(both, 1.0, _ZERO_POINT, self._packed)
        return torch.add(out[:count], out[count:], alpha=1.0 / _SECOND)


class Int8WeightLinear:
    """int8 weights, bfloat16 activations: for processors without the kernels of `Int8Linear`."""

    def __init__(self, quantized: QuantizedWeight) -> None:
        self.out_features = quantized.shape[0]
        self._values, self._scales = quantized.values, quantized.scales.bfloat16()
        self.num_bytes = self._values.nbytes + self._scales.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        out: Tensor = torch._weight_int8pack_mm(x.bfloat16(), self._values, self._scales)  # noqa: SLF001  (public op)
        return out.float()


class Int4Linear:
    """int4 weights per group, bfloat16 activations; many rows at once are computed from the unpacked weight."""

    def __init__(self, quantized: QuantizedWeight) -> None:
        self.out_features = quantized.shape[0]
        self._quantized = quantized
        group = quantized.group_size
        if group is None:
            raise ValueError("int4 needs groups")
        self._group = group
        scales = quantized.scales.float()
        # The kernel computes (value - 8) * scale + zero.
        zeros = torch.zeros_like(scales) if quantized.zeros is None else quantized.zeros.float() + 8.0 * scales
        self._scales_zeros = torch.stack((scales.t(), zeros.t()), dim=-1).bfloat16().contiguous()
        self._packed = torch._convert_weight_to_int4pack_for_cpu(quantized.values.int(), 1)  # noqa: SLF001  (as above)
        self.num_bytes = self._packed.nbytes + self._scales_zeros.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        out: Tensor = torch._weight_int4pack_mm_for_cpu(  # noqa: SLF001  (as above)
            x.bfloat16(), self._packed, self._group, self._scales_zeros
        )
        return out.float()


class StackedLinear:
    """Several packed weights that read the same input, their outputs one after the other."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = tuple(parts)
        self.out_features = sum(part.out_features for part in parts)
        self.num_bytes = sum(part.num_bytes for part in parts)

    def __call__(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        return torch.cat([part(x) for part in self._parts], dim=1)


def takes_scaled_inputs(precision: Precision) -> bool:
    """Whether layers of this precision want inputs of a known range multiplied by `SCALED_RANGE` / range."""
    return precision == "int8" and has_int8_products()


def has_int8_products() -> bool:
    """Whether this build of torch multiplies int8 with int8 on this processor (x86 with FBGEMM)."""
    return (
        "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch, "_make_per_channel_quantized_tensor")
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    )


def pack(
    weights: Sequence[Tensor | QuantizedWeight],
    precision: Precision,
    *,
    input_range: float | None = None,
) -> Linear:
    """One linear layer from matrices stacked along their outputs.

    A weight that is quantised already keeps its whole numbers where the precision is the same, and in a mixed plan,
    where int4 is asked for and a sensitive weight has 8 bits; otherwise it is rounded anew.

    Args:
        weights: (out, in) each.
        precision: What the products are computed from.
        input_range: As for `Int8Linear`; only where `takes_scaled_inputs` says so.
    """
    if precision == "int8":
        parts = [_as_int8(weight) for weight in weights]
        stacked = QuantizedWeight(
            torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]), None, 8, None
        )
        if has_int8_products():
            return Int8Linear(stacked, input_range=input_range)
        return Int8WeightLinear(stacked)
    if precision == "int4":
        return _pack_by_bits(weights)
    dense = torch.cat([_as_dense(weight) for weight in weights])
    if precision == "float16" and has_int8_products():
        return HalfLinear(dense)
    return PlainLinear(dense, torch.float32 if precision == "float32" else torch.bfloat16)


def _pack_by_bits(weights: Sequence[Tensor | QuantizedWeight]) -> Linear:
    """Neighbours of 8 bits as int8, all others as int4."""
    runs = [list(run) for _, run in itertools.groupby(weights, key=_is_int8)]
    packed = [pack(run, "int8") if _is_int8(run[0]) else _pack_int4(run) for run in runs]
    return packed[0] if len(packed) == 1 else StackedLinear(packed)


def _is_int8(weight: Tensor | QuantizedWeight) -> bool:
    return isinstance(weight, QuantizedWeight) and weight.bits == _INT8


def _pack_int4(weights: Sequence[Tensor | QuantizedWeight]) -> Linear:
    parts = [weight if isinstance(weight, QuantizedWeight) else quantize_int4(weight.float()) for weight in weights]
    zeros = [p.scales.float() * -8.0 if p.zeros is None else p.zeros.float() for p in parts]
    return Int4Linear(
        QuantizedWeight(
            torch.cat([p.values for p in parts]),
            torch.cat([p.scales.float() for p in parts]),
            torch.cat(zeros),
            4,
            parts[0].group_size,
        )
    )


def _as_int8(weight: Tensor | QuantizedWeight) -> QuantizedWeight:
    if isinstance(weight, QuantizedWeight):
        return weight if weight.bits == _INT8 else quantize_int8(dequantize(weight))
    return quantize_int8(weight)


def _as_dense(weight: Tensor | QuantizedWeight) -> Tensor:
    return dequantize(weight) if isinstance(weight, QuantizedWeight) else weight.float()


class _fbgemm:  # noqa: N801  (used like a function)
    """Choose the kernels that packing is for, and restore the choice."""

    def __enter__(self) -> None:
        self._before = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"

    def __exit__(self, *_: object) -> None:
        torch.backends.quantized.engine = self._before
