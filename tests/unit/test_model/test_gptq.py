import dataclasses
from pathlib import Path

import pytest
import torch

from model import LayeredTransformer, ModelConfig, QuantizationError, Tokenizer, load_checkpoint, save_checkpoint
from model.quantization import (
    QuantizationPlan,
    dense_state,
    dequantize,
    gptq,
    plan_of,
    quantize_int4,
    quantize_int8,
    quantize_model,
    quantized_layers,
    uniform_plan,
)
from model.quantization.calibrate import calibrate_model, calibration_windows
from model.quantization.convert import QuantizationOptions, quantize_checkpoint
from model.quantization.gptq import gptq_int4, gptq_int8
from model.quantization.sensitivity import Sensitivity, choose_kept, measure_sensitivity, without
from model.quantization.weights import from_stored, to_stored


def correlated_inputs(columns: int, rows: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns, columns, generator=generator) * torch.linspace(0.05, 2, columns)[:, None]
    return torch.randn(rows, columns, generator=generator) @ mixing


def windows(config: ModelConfig, count: int = 16, length: int = 32) -> torch.Tensor:
    return torch.randint(0, config.vocab_size, (count, length), generator=torch.Generator().manual_seed(0))


def sharpened(model: LayeredTransformer) -> LayeredTransformer:
    """Confident enough that rounding a weight is felt, and with inputs that hang together as those of a text do."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        rows, columns = model.embedding.weight.shape
        factors = torch.randn(rows, 5, generator=generator), torch.randn(5, columns, generator=generator)
        model.embedding.weight.copy_(factors[0] @ factors[1])
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


@torch.no_grad()
def divergence(model: LayeredTransformer, other: torch.Tensor, token_ids: torch.Tensor) -> float:
    found = model(token_ids).log_softmax(-1)
    return float(torch.nn.functional.kl_div(found, other, reduction="sum", log_target=True) / token_ids.numel())


def test_scales_in_8_bits_cost_little_where_values_make_it_good() -> None:
    weight = torch.randn(48, 160, generator=torch.Generator().manual_seed(1))
    inputs = correlated_inputs(160)
    few, many = (gptq_int4(weight, inputs.T @ inputs, 16, scale_bits=bits) for bits in (8, 16))
    errors = [float((inputs @ (dequantize(q) - weight).T).norm()) for q in (few, many)]
    assert errors[0] < 1.05 * errors[1]
    assert few.tops is not None
    assert few.stored_bytes == many.stored_bytes - 48 * 10 * 2 + 48 * 4
    again = from_stored(to_stored(few), bits=4, group_size=16)
    assert torch.equal(dequantize(again), dequantize(few))


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_last_pass_never_makes_it_worse(symmetric: bool) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    inputs = correlated_inputs(64)
    hessian = inputs.T @ inputs
    plain = quantize_int4(weight, 16, symmetric=symmetric)
    step, low = gptq._levels(plain.scales, plain.zeros, 16)
    moved = gptq._descended(plain.values, weight, step, low, hessian)
    errors = [values.float() * step + low - weight for values in (plain.values, moved)]
    # Each step is the best for the damped error of its row, so none of them can raise it.
    damped = hessian + torch.eye(64) * 0.01 * hessian.diagonal().mean()
    before, after = (((error @ damped) * error).sum(-1) for error in errors)
    assert (after <= before * 1.0001).all()
    assert after.sum() < 0.7 * before.sum()
    assert moved.dtype == torch.uint8


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("columns", [64, 160])
def test_outputs_change_less_than_by_nearest_levels(symmetric: bool, columns: int) -> None:
    weight = torch.randn(48, columns, generator=torch.Generator().manual_seed(1))
    inputs = correlated_inputs(columns)
    plain = quantize_int4(weight, 16, symmetric=symmetric)
    calibrated = gptq_int4(weight, inputs.T @ inputs, 16, symmetric=symmetric)
    errors = [float((inputs @ (dequantize(q) - weight).T).norm()) for q in (plain, calibrated)]
    assert errors[1] < 0.75 * errors[0]
    assert calibrated.values.dtype == torch.uint8
    assert int(calibrated.values.max()) <= 15
    assert (calibrated.zeros is None) == symmetric


def test_inputs_that_say_nothing_give_the_nearest_levels() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    deaf, nearest = gptq_int4(weight, torch.eye(32), 16), quantize_int4(weight, 16)
    assert (deaf.values.int() - nearest.values.int()).abs().max() <= 1  # its scales are refitted once more
    assert (dequantize(deaf) - weight).norm() <= 1.0001 * (dequantize(nearest) - weight).norm()
    silent = gptq_int4(weight, torch.zeros(32, 32), 16)
    torch.testing.assert_close(dequantize(silent), weight, atol=0.2, rtol=0)


def test_broken_activations_are_refused() -> None:
    with pytest.raises(QuantizationError, match="not finite"):
        gptq_int4(torch.ones(4, 16), torch.full((16, 16), torch.nan), 16)


@pytest.mark.parametrize("sharing", [{}, {"weights_of": (0, 0, 2), "kv_of": (0, 1, 1)}, {"tied_embeddings": False}])
def test_a_calibrated_model_is_closer_to_the_base(config: ModelConfig, sharing: dict[str, object]) -> None:
    config = dataclasses.replace(config, query_heads=(4, 4, 2), kv_heads=(2, 2, 2), ffn_dims=(32, 32, 16), **sharing)
    torch.manual_seed(0)
    base = sharpened(LayeredTransformer(config).eval())
    token_ids, unseen = windows(config, 40), torch.randint(0, 260, (8, 32), generator=torch.Generator().manual_seed(9))
    expected = base(unseen).log_softmax(-1).detach()
    plan = uniform_plan(config, bits=4, group_size=8, embedding_bits=8 if config.tied_embeddings else 4)
    found = []
    for calibrated in (False, True):
        model = LayeredTransformer(config).eval()
        model.load_state_dict(base.state_dict())
        if calibrated:
            done = []
            calibrate_model(model, plan, token_ids, on_layer=lambda *step, done=done: done.append(step))
            assert done == [(1, 3), (2, 3), (3, 3)]
        else:
            quantize_model(model, plan)
        assert plan_of(model) == plan
        found.append(divergence(model, expected, unseen))
    assert found[1] < found[0]


def test_calibration_of_a_mixed_plan_leaves_the_rest_alone(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    plan = without(
        uniform_plan(config, bits=4, group_size=8, embedding_bits=8),
        {"layers.0.attention.q_proj.weight", "layers.2.ffn.down_proj.weight"},
    )
    before = dense_state(tiny_model)
    calibrate_model(tiny_model, plan, windows(config))
    assert set(dict(quantized_layers(tiny_model))) == set(plan.tensors)
    after = dense_state(tiny_model)
    for name in set(before) - set(plan.tensors):
        assert torch.equal(before[name], after[name])
    with pytest.raises(QuantizationError, match="already"):
        calibrate_model(tiny_model, plan, windows(config))


def test_windows_are_spread_over_the_text() -> None:
    chosen = calibration_windows(range(10_000), window=100, max_tokens=1000)
    assert chosen.shape == (10, 100)
    assert chosen[0, 0] == 0
    assert chosen[-1, 0] == 9900
    assert calibration_windows(range(1000), window=100).shape == (10, 100)
    with pytest.raises(QuantizationError, match="700 tokens; give at least 800"):
        calibration_windows(range(700), window=100)


def test_sensitivity_is_the_divergence_of_quantising_one_weight(
    tiny_model: LayeredTransformer, config: ModelConfig
) -> None:
    base = {name: tensor.clone() for name, tensor in sharpened(tiny_model).state_dict().items()}
    token_ids = windows(config, 4)
    expected = tiny_model(token_ids).log_softmax(-1).detach()
    plan = uniform_plan(config, bits=4, group_size=8)
    found = measure_sensitivity(tiny_model, plan, token_ids)
    assert all(torch.equal(tensor, base[name]) for name, tensor in tiny_model.state_dict().items())
    assert list(found) == list(plan.tensors)
    for name in ("embedding.weight", "layers.0.attention.k_proj.weight", "layers.2.ffn.down_proj.weight"):
        model = LayeredTransformer(config).eval()
        model.load_state_dict(base)
        quantize_model(model, QuantizationPlan({name: plan.tensors[name]}))
        assert found[name].loss_rise == pytest.approx(divergence(model, expected, token_ids), rel=1e-3, abs=1e-6)
        assert found[name].loss_rise > 0


def test_sensitivity_of_shared_layers(config: ModelConfig) -> None:
    config = dataclasses.replace(
        config, query_heads=(4, 4, 2), kv_heads=(2, 2, 2), ffn_dims=(32, 32, 16), weights_of=(0, 0, 2), kv_of=(0, 1, 1)
    )
    torch.manual_seed(0)
    base = sharpened(LayeredTransformer(config).eval())
    token_ids = windows(config, 4)
    expected = base(token_ids).log_softmax(-1).detach()
    plan = uniform_plan(config, bits=4, group_size=8)
    found = measure_sensitivity(base, plan, token_ids)
    for name in ("layers.0.ffn.up_proj.weight", "layers.2.attention.q_proj.weight"):
        model = LayeredTransformer(config).eval()
        model.load_state_dict(base.state_dict())
        quantize_model(model, QuantizationPlan({name: plan.tensors[name]}))
        assert found[name].loss_rise == pytest.approx(divergence(model, expected, token_ids), rel=1e-3, abs=1e-6)


def test_what_costs_most_for_its_bytes_is_kept(config: ModelConfig) -> None:
    names = [f"layers.{layer}.attention.q_proj.weight" for layer in range(3)]  # 768, 384, 384 weights
    found = {
        names[0]: Sensitivity(0.3, 1000),
        names[1]: Sensitivity(0.2, 500),
        names[2]: Sensitivity(0.0, 500),
    }
    total = config.parameter_count
    assert choose_kept(found, config, share=0) == ()
    assert choose_kept(found, config, share=400 / total) == (names[1],)
    assert choose_kept(found, config, share=1200 / total) == (names[1], names[0])
    assert choose_kept(found, config, share=0.9) == (names[1], names[0])


@pytest.fixture
def base(tiny_model: LayeredTransformer, byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "base", tiny_model, byte_tokenizer)
    return tmp_path / "base"


TEXT = "A few hundred lines like those that the model will see, one after the other.\n" * 60


def test_a_checkpoint_becomes_a_smaller_one(base: Path, tmp_path: Path) -> None:
    steps = []
    options = QuantizationOptions(bits=4, group_size=8, keep_sensitive=0.1, sensitive_bits=16, calibration_tokens=512)
    report = quantize_checkpoint(
        base, tmp_path / "out", options, calibration_text=TEXT, on_progress=lambda *step: steps.append(step)
    )
    assert report.bytes_before == (base / "model.safetensors").stat().st_size
    assert report.bytes_after == (tmp_path / "out" / "model.safetensors").stat().st_size < report.bytes_before
    assert report.is_calibrated
    assert report.kept
    assert set(report.kept) < set(report.loss_rises)
    assert {step[0] for step in steps} == {"Measuring sensitivity", "Calibrating"}
    loaded = load_checkpoint(tmp_path / "out")
    assert not set(report.kept) & set(dict(quantized_layers(loaded)))
    assert plan_of(loaded).tensors["embedding.weight"].bits == 8


def test_with_a_text_the_most_sensitive_get_8_bits(base: Path, tmp_path: Path) -> None:
    options = QuantizationOptions(bits=4, group_size=8, calibration_tokens=512)
    report = quantize_checkpoint(base, tmp_path / "out", options, calibration_text=TEXT)
    plan = plan_of(load_checkpoint(tmp_path / "out"))
    assert report.kept
    assert {name for name, entry in plan.tensors.items() if entry.bits == 8} == {*report.kept, "embedding.weight"}
    assert "embedding.weight" not in report.loss_rises
    assert {entry.scale_bits for entry in plan.tensors.values() if entry.bits == 4} == {8}


@pytest.mark.parametrize("options", [{"bits": 8}, {"bits": 4, "symmetric": True}, {"bits": 4, "sensitive_bits": 16}])
def test_nobody_gets_more_bits_unasked(options: dict[str, int]) -> None:
    assert QuantizationOptions(**options).sensitive_share(has_text=True) == 0
    assert QuantizationOptions(bits=4).sensitive_share(has_text=False) == 0
    assert QuantizationOptions(bits=4).sensitive_share(has_text=True) == 0.08


@pytest.mark.parametrize("bits", [8, 4])
def test_without_a_text_weights_go_to_their_nearest_levels(base: Path, tmp_path: Path, bits: int) -> None:
    steps = []
    options = QuantizationOptions(bits=bits, embedding_bits=4)
    report = quantize_checkpoint(base, tmp_path / "out", options, on_progress=lambda *step: steps.append(step))
    assert not report.is_calibrated
    assert steps[-1] == ("Quantising", 22, 22)
    assert plan_of(load_checkpoint(tmp_path / "out")).tensors["embedding.weight"].bits == bits


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 3}, "bits must be 8 or 4"),
        ({"bits": 4, "embedding_bits": 5}, "embedding 4, 8 or 16"),
        ({"bits": 4, "keep_sensitive": 1.0}, r"in \[0, 1\)"),
        ({"bits": 4, "scale_bits": 4}, "must be 8 or 16; got 4 and 8"),
        ({"bits": 4, "sensitive_bits": 4}, "must be 8 or 16; got 8 and 4"),
        ({"bits": 8, "keep_sensitive": 0.1}, "give them 16"),
    ],
)
def test_impossible_options(options: dict[str, int], said: str) -> None:
    with pytest.raises(QuantizationError, match=said):
        QuantizationOptions(**options)


def test_what_is_missing_is_said(base: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="needs a text"):
        quantize_checkpoint(base, tmp_path / "out", QuantizationOptions(bits=4, keep_sensitive=0.1))
    with pytest.raises(QuantizationError, match="another folder"):
        quantize_checkpoint(base, base, QuantizationOptions(bits=4))
    with pytest.raises(QuantizationError, match="at least 512"):
        quantize_checkpoint(base, tmp_path / "out", QuantizationOptions(bits=4), calibration_text="short")


def test_int8_too() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    inputs = correlated_inputs(64)
    plain, calibrated = quantize_int8(weight), gptq_int8(weight, inputs.T @ inputs)
    errors = [float((inputs @ (dequantize(q) - weight).T).norm()) for q in (plain, calibrated)]
    assert errors[1] < 0.75 * errors[0]
    assert torch.equal(calibrated.scales, plain.scales)
    assert calibrated.values.dtype == torch.int8
    assert int(calibrated.values.min()) >= -127
