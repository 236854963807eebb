"""Weights in few bits: int8 per channel, int4 per group, mixed plans, and layers that compute with them."""

from model.quantization.apply import (
    dense_state,
    dequantize_model,
    plan_of,
    quantize_model,
    quantized_layers,
    set_int8_inputs,
)
from model.quantization.layers import QuantizedEmbedding, QuantizedLinear
from model.quantization.plan import QuantizationPlan, TensorPlan, uniform_plan
from model.quantization.weights import QuantizedWeight, dequantize, quantize_int4, quantize_int8

__all__ = [
    "QuantizationPlan",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedWeight",
    "TensorPlan",
    "dense_state",
    "dequantize",
    "dequantize_model",
    "plan_of",
    "quantize_int4",
    "quantize_int8",
    "quantize_model",
    "quantized_layers",
    "set_int8_inputs",
    "uniform_plan",
]
