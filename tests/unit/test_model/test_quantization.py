import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import LayeredTransformer, LoRAConfig, ModelConfig, QuantizationError, add_lora
from model.quantization import (
    QuantizationPlan,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedWeight,
    TensorPlan,
    dense_state,
    dequantize,
    dequantize_model,
    plan_of,
    quantize_int4,
    quantize_int8,
    quantize_model,
    quantized_layers,
    set_int8_inputs,
    uniform_plan,
)
from model.quantization.scales import decode_scales, encode_scales, nearest_coded
from model.quantization.weights import from_stored, pack_int4, to_stored, unpack_int4

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def matrix(rows: int = 24, columns: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def relative_error(quantized: QuantizedWeight, weight: torch.Tensor) -> float:
    return float((dequantize(quantized) - weight).norm() / weight.norm())


def test_int8_errs_by_at_most_half_a_step_of_its_row() -> None:
    weight = matrix()
    quantized = quantize_int8(weight)
    assert quantized.values.dtype == torch.int8
    assert quantized.shape == (24, 64)
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert ((dequantize(quantized) - weight).abs() <= steps * 0.5001).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_int4_is_better_than_levels_over_the_whole_range(symmetric: bool) -> None:
    weight = matrix()
    quantized = quantize_int4(weight, 32, symmetric=symmetric)
    groups = weight.view(24, 2, 32)
    if symmetric:
        scale = groups.abs().amax(-1, keepdim=True) / 7
        plain = (groups / scale).round() * scale
    else:
        low = groups.amin(-1, keepdim=True)
        scale = (groups.amax(-1, keepdim=True) - low) / 15
        plain = ((groups - low) / scale).round() * scale + low
    assert relative_error(quantized, weight) < float((plain - groups).norm() / groups.norm())
    assert relative_error(quantized, weight) < 0.12
    assert (quantized.zeros is None) == symmetric
    assert quantized.scales.shape == (24, 2)
    assert int(quantized.values.max()) <= 15


def test_int4_finds_weights_that_lie_on_16_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 16, (8, 4, 32), generator=generator)
    levels[..., 0], levels[..., 1] = 0, 15
    scale = torch.rand(8, 4, 1, generator=generator).half().float() + 0.5
    weight = (levels * scale - 3.0).view(8, 128)
    torch.testing.assert_close(dequantize(quantize_int4(weight, 32)), weight, atol=5e-3, rtol=0)


@given(
    rows=st.integers(1, 4),
    groups=st.integers(1, 6),
    size=st.floats(1e-3, 1e3),
    spread=st.floats(0, 2),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_scales_in_8_bits_mean_float16_numbers_and_survive_their_codes(
    rows: int, groups: int, size: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = (torch.randn(rows, groups, generator=generator) * spread).exp().mul_(size / 100).clamp_(1e-6, 6e4).half()
    zeros = (torch.randn(rows, groups, generator=generator) * size).clamp_(-6e4, 6e4).half()
    near_scales, near_zeros, tops = nearest_coded(scales, zeros)
    codes = encode_scales(near_scales, near_zeros, tops)
    assert (codes[0].dtype, codes[1].dtype) == (torch.uint8, torch.int8)
    assert all(torch.equal(a, b) for a, b in zip(decode_scales(*codes, tops), (near_scales, near_zeros), strict=True))
    assert (near_scales > 0).all()
    largest = tops.float()
    # Half a code, or a whole one where 0 would have been nearer than the smallest scale; and float16's rounding.
    assert ((near_scales.float() - scales.float()).abs() <= largest[:, :1] * (1 / 255 + 1e-3)).all()
    assert ((near_zeros.float() - zeros.float()).abs() <= largest[:, 1:] * (0.5 / 127 + 1e-3)).all()


def test_a_weight_with_scales_in_8_bits() -> None:
    weight = matrix(24, 128)
    few, many = quantize_int4(weight, 32, scale_bits=8), quantize_int4(weight, 32)
    assert relative_error(few, weight) < 1.02 * relative_error(many, weight)
    stored = to_stored(few)
    assert few.stored_bytes == sum(part.nbytes for part in stored.values()) == 24 * (64 + 4 + 4 + 4)
    assert torch.equal(dequantize(from_stored(stored, bits=4, group_size=32)), dequantize(few))
    assert quantize_int4(weight, 32, symmetric=True, scale_bits=8).tops is None


def test_codes_never_mean_a_scale_of_zero() -> None:
    for scales in ([[1.0, 1e-4]], [[1e-6, 6e-8]]):
        found, _, _ = nearest_coded(torch.tensor(scales).half(), torch.zeros(1, 2).half())
        assert (found > 0).all()


@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_a_group_without_spread_does_not_spoil_its_row(size: float) -> None:
    weight = matrix(8, 128) * size
    weight[:, 32:64] = 0.0
    few, many = quantize_int4(weight, 32, scale_bits=8), quantize_int4(weight, 32)
    assert relative_error(few, weight) < 1.05 * relative_error(many, weight)
    assert (dequantize(few)[:, 32:64] == 0).all()


def test_what_matters_more_errs_less() -> None:
    weight = matrix()
    importance = torch.ones(64)
    importance[::4] = 1000.0
    plain, weighted = quantize_int4(weight, 32), quantize_int4(weight, 32, importance=importance)

    def error(quantized: QuantizedWeight) -> float:
        return float(((dequantize(quantized) - weight).square() * importance).sum())

    assert error(weighted) < error(plain)


@pytest.mark.parametrize("value", [0.0, 1.5, -2e-9, 3e4])
def test_a_weight_without_spread(value: float) -> None:
    weight = torch.full((3, 32), value)
    for quantized in (quantize_int8(weight), quantize_int4(weight), quantize_int4(weight, symmetric=True)):
        torch.testing.assert_close(dequantize(quantized), weight, atol=1e-6, rtol=1e-3)


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    exponent=st.floats(-8, 4),
    seed=st.integers(0, 1000),
    symmetric=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_any_weight_survives_storage(rows: int, groups: int, exponent: float, seed: int, symmetric: bool) -> None:
    weight = matrix(rows, groups * 16, seed) * 10**exponent
    for quantized in (quantize_int8(weight), quantize_int4(weight, 16, symmetric=symmetric)):
        again = from_stored(to_stored(quantized), bits=quantized.bits, group_size=quantized.group_size)
        assert torch.equal(dequantize(again), dequantize(quantized))
        assert sum(part.nbytes for part in to_stored(quantized).values()) == quantized.stored_bytes
        assert torch.isfinite(dequantize(quantized)).all()


def test_packing() -> None:
    values = torch.randint(0, 16, (3, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert pack_int4(values).shape == (3, 5)
    assert torch.equal(unpack_int4(pack_int4(values)), values)
    assert int(pack_int4(torch.tensor([[3, 12]], dtype=torch.uint8))) == 3 + 16 * 12


@pytest.mark.parametrize(
    ("weight", "group_size", "said"),
    [
        (torch.ones(3), 32, "shape \\[3\\]"),
        (torch.full((2, 32), float("nan")), 32, "not finite"),
        (torch.ones(2, 32), 24, "groups of 24"),
        (torch.ones(2, 33), 3, "even divisor"),
    ],
)
def test_what_cannot_be_quantised_is_refused(weight: torch.Tensor, group_size: int, said: str) -> None:
    with pytest.raises(QuantizationError, match=said):
        quantize_int4(weight, group_size)


@pytest.mark.parametrize("quantize", [quantize_int8, quantize_int4])
def test_a_layer_computes_with_the_dense_weight_and_learns_through_it(quantize, monkeypatch) -> None:
    quantized = quantize(matrix())
    layer = QuantizedLinear.of(quantized)
    assert sum(buffer.nbytes for buffer in layer.buffers()) == quantized.stored_bytes
    x = matrix(5, 64, seed=1).requires_grad_()
    dense = dequantize(quantized)
    for numbers in (1 << 22, 64 * 7):  # all rows at once, seven rows at once
        monkeypatch.setattr("model.quantization.layers._DENSE_NUMBERS", numbers)
        x.grad = None
        layer(x).square().sum().backward()
        expected = torch.autograd.grad((x @ dense.T).square().sum(), x)[0]
        torch.testing.assert_close(layer(x), x @ dense.T)
        torch.testing.assert_close(x.grad, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(layer.weight, dense)
    assert str(layer).startswith("QuantizedLinear(64 -> 24, int")


def test_int8_inputs_are_what_an_integer_kernel_computes() -> None:
    layer = QuantizedLinear.of(quantize_int8(matrix()))
    x = matrix(5, 64, seed=1) * torch.tensor([[1.0], [10.0], [1e-3], [0.0], [100.0]])
    exact = layer(x)
    errors = []
    for group in (64, 16):
        layer.input_group = group
        groups = x.view(5, -1, group)
        scales = groups.abs().amax(-1).clamp_min(1e-8) / 127
        whole = (groups / scales[..., None]).round().to(torch.int32)
        sums = torch.einsum("bgi,ogi->bog", whole, layer.values.to(torch.int32).view(24, -1, group))
        by_integers = (sums.float() * scales[:, None, :]).sum(-1) * layer.scales
        torch.testing.assert_close(layer(x), by_integers, atol=1e-3, rtol=1e-5)
        errors.append(float((layer(x) - exact).norm() / exact.norm()))
    assert 0 < errors[1] < errors[0] < 0.02


def test_an_embedding_looks_rows_up_and_projects_onto_them() -> None:
    quantized = quantize_int4(matrix(40, 32), 16)
    layer = QuantizedEmbedding.of(quantized)
    dense = dequantize(quantized)
    assert torch.equal(layer(TOKENS), dense[TOKENS])
    torch.testing.assert_close(layer.linear(dense[:3]), dense[:3] @ dense.T)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_computes_what_its_dense_weights_compute(config: ModelConfig, tied: bool) -> None:
    config = dataclasses.replace(config, tied_embeddings=tied)
    model = LayeredTransformer(config).eval()
    before = model(TOKENS)
    names = []
    plan = uniform_plan(config, bits=4, group_size=8, embedding_bits=8, keep={"layers.1.ffn.up_proj.weight"})
    quantize_model(model, plan, on_tensor=names.append)
    assert names == list(plan.tensors)
    assert plan_of(model) == plan
    assert model.dtype == torch.float32
    quantised = model(TOKENS)
    assert not torch.equal(quantised, before)

    twin = LayeredTransformer(config).eval()
    twin.load_state_dict(dense_state(model), strict=True)
    torch.testing.assert_close(twin(TOKENS), quantised, atol=1e-4, rtol=1e-4)

    set_int8_inputs(model, enabled=True)
    assert not torch.equal(model(TOKENS), quantised)
    set_int8_inputs(model, enabled=False)
    assert torch.equal(model(TOKENS), quantised)

    dequantize_model(model)
    assert not list(quantized_layers(model))
    torch.testing.assert_close(model(TOKENS), quantised, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_shared_layers_are_quantised_once(config: ModelConfig) -> None:
    config = dataclasses.replace(
        config, query_heads=(4, 4, 2), kv_heads=(2, 2, 2), ffn_dims=(32, 32, 16), weights_of=(0, 0, 2), kv_of=(0, 1, 1)
    )
    model = LayeredTransformer(config).eval()
    plan = uniform_plan(config, bits=4, group_size=8)
    quantize_model(model, plan)
    assert set(dict(quantized_layers(model))) == set(plan.tensors)
    assert model.layers[0].ffn.up_proj is model.layers[1].ffn.up_proj
    assert torch.isfinite(model(TOKENS)).all()


def test_a_model_is_quantised_once_and_without_an_adapter(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    plan = uniform_plan(config, bits=8)
    add_lora(tiny_model, LoRAConfig(rank=2))
    with pytest.raises(QuantizationError, match="adapter"):
        quantize_model(tiny_model, plan)
    other = LayeredTransformer(config)
    quantize_model(other, plan)
    with pytest.raises(QuantizationError, match="already"):
        quantize_model(other, plan)


def test_a_weight_that_is_not_finite_is_named(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    with torch.no_grad():
        tiny_model.get_parameter("layers.1.ffn.up_proj.weight")[0, 0] = torch.inf
    with pytest.raises(QuantizationError, match=r"layers\.1\.ffn\.up_proj\.weight"):
        quantize_model(tiny_model, uniform_plan(config, bits=4, group_size=8))


def test_a_plan_survives_its_file(config: ModelConfig) -> None:
    plan = uniform_plan(config, bits=4, group_size=32, symmetric=True, embedding_bits=16)
    assert "embedding.weight" not in plan.tensors
    assert QuantizationPlan.from_json(plan.to_json()) == plan
    assert QuantizationPlan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert {entry.group_size for entry in plan.tensors.values()} == {8, 16, 32}
    assert "scale_bits" not in plan.to_json()  # plans from before there was a choice keep their bytes
    coded = uniform_plan(config, bits=4, scale_bits=8)
    assert QuantizationPlan.from_json(coded.to_json()) == coded != uniform_plan(config, bits=4)
    assert uniform_plan(config, bits=4, scale_bits=8, symmetric=True) == uniform_plan(config, bits=4, symmetric=True)


def test_rows_without_groups_are_stored_in_8_bits(config: ModelConfig) -> None:
    config = dataclasses.replace(config, model_dim=25, ffn_dims=(32, 25, 16))
    plan = uniform_plan(config, bits=4)
    assert plan.tensors["embedding.weight"] == TensorPlan(bits=8)
    assert plan.tensors["layers.0.ffn.down_proj.weight"].bits == 4


def test_the_size_is_known_from_the_plan(config: ModelConfig) -> None:
    matrices = [shape for shape in config.parameter_shapes().values() if len(shape) == 2]
    numbers = sum(rows * columns for rows, columns in matrices)
    vectors = 2 * (config.parameter_count - numbers)
    assert QuantizationPlan({}).stored_bytes(config) == 2 * config.parameter_count
    eight = uniform_plan(config, bits=8).stored_bytes(config)
    assert eight == numbers + 4 * sum(rows for rows, _ in matrices) + vectors
    four = uniform_plan(config, bits=4, group_size=8).stored_bytes(config)
    assert four == numbers // 2 + 2 * 2 * numbers // 8 + vectors
    coded = uniform_plan(config, bits=4, group_size=8, scale_bits=8).stored_bytes(config)
    assert coded == numbers // 2 + 2 * numbers // 8 + 4 * sum(rows for rows, _ in matrices) + vectors


GOOD = {"format": "lamella-quantization", "format_version": 1, "tensors": {"a": {"bits": 8}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "format"),
        ({"format_version": 2}, "format_version 2"),
        ({"extra": 1}, "keys"),
        ({"tensors": []}, "keys"),
        ({"tensors": {"a": 8}}, "a must be an object"),
        ({"tensors": {"a": {"bits": 8, "x": 1}}}, "a must be an object"),
        ({"tensors": {"a": {"bits": 3}}}, "a: bits must be 8 or 4"),
        ({"tensors": {"a": {"bits": 8, "group_size": 32}}}, "a: int8"),
        ({"tensors": {"a": {"bits": 4}}}, "a: int4 needs an even group_size"),
        ({"tensors": {"a": {"bits": 4, "group_size": 9}}}, "a: int4 needs an even group_size"),
        ({"tensors": {"a": {"bits": 4, "group_size": 8, "symmetric": 1}}}, "a: symmetric"),
        ({"tensors": {"a": {"bits": 4, "group_size": 8, "symmetric": False, "scale_bits": 6}}}, "a: scale_bits must"),
        ({"tensors": {"a": {"bits": 4, "group_size": 8, "symmetric": False, "scale_bits": 8.0}}}, "a: scale_bits must"),
        ({"tensors": {"a": {"bits": 4, "group_size": 8, "symmetric": True, "scale_bits": 8}}}, "a: scales of 8 bits"),
        ({"tensors": {"a": {"bits": 8, "scale_bits": 8}}}, "a: scales of 8 bits"),
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, object], said: str) -> None:
    assert QuantizationPlan.from_json(json.dumps(GOOD))
    with pytest.raises(QuantizationError, match=said):
        QuantizationPlan.from_json(json.dumps(GOOD | change))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, " " * (1 << 20) + "{}"])
def test_a_plan_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(QuantizationError, match=r"quantization\.json"):
        QuantizationPlan.from_json(text)


@pytest.mark.parametrize(
    ("name", "plan", "said"),
    [
        ("layers.9.ffn.up_proj.weight", TensorPlan(bits=8), "no matrix"),
        ("norm.weight", TensorPlan(bits=8), "norm.weight is no matrix"),
        ("embedding.weight", TensorPlan(bits=4, group_size=32), "embedding.weight: groups of 32"),
    ],
)
def test_a_plan_of_another_model_is_refused(config: ModelConfig, name: str, plan: TensorPlan, said: str) -> None:
    with pytest.raises(QuantizationError, match=said):
        QuantizationPlan({name: plan}).require_fit(config)
