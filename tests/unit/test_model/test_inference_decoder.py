"""The lean decoder against the model it packs."""

from pathlib import Path

import pytest
import torch

from model import (
    AdapterError,
    ContextLengthError,
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    adapter_state_dict,
    add_lora,
    initial_adapter,
    preset,
    quantize_model,
    save_adapter,
    uniform_plan,
)
from model.inference import (
    Chunk,
    Engine,
    ModelSource,
    PackedAdapter,
    PackedDecoder,
    Sampling,
    SequenceCache,
    bytes_per_token,
    has_int8_products,
)
from model.inference.linears import PlainLinear, pack
from model.quantization import dequantize, quantize_int4, quantize_int8
from model.quantization.sensitivity import raised

PROMPT = [5, 9, 100, 7, 7, 300, 12, 5, 9, 100]
PLAIN = ModelConfig(
    vocab_size=512, model_dim=64, head_dim=16, query_heads=(4, 4, 4), kv_heads=(2, 2, 2), ffn_dims=(96, 96, 96),
    max_context=2048, tied_embeddings=False,
)  # fmt: skip
SHARED = ModelConfig(
    vocab_size=512, model_dim=64, head_dim=16, query_heads=(4,) * 4, kv_heads=(2,) * 4, ffn_dims=(96,) * 4,
    max_context=2048, qk_norm=True, weights_of=(0, 0, 2, 3), kv_of=(0, 1, 2, 2),
)  # fmt: skip
PYRAMID = preset("tiny-pyramid")


def make(config: ModelConfig, seed: int = 0) -> LayeredTransformer:
    torch.manual_seed(seed)
    model = LayeredTransformer(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2 if "norm" in name else 0.1)
    return model.eval()


@torch.inference_mode()
def logits_of(model: LayeredTransformer, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor([tokens]))[0]


def whole(decoder: PackedDecoder, tokens: list[int], cache: SequenceCache | None = None) -> torch.Tensor:
    return decoder.forward([Chunk(tokens, cache or SequenceCache(decoder.config), is_whole=True)])[0]


@pytest.mark.parametrize("config", [PLAIN, SHARED, PYRAMID], ids=["untied", "shared", "pyramid"])
def test_it_computes_what_the_model_computes(config: ModelConfig) -> None:
    model = make(config)
    decoder = PackedDecoder(ModelSource(model), precision="float32")
    expected = logits_of(model, PROMPT)
    assert torch.allclose(whole(decoder, PROMPT), expected, atol=1e-4)
    cache = SequenceCache(config)
    pieces = [decoder.forward([Chunk(part, cache)])[0] for part in (PROMPT[:4], PROMPT[4:5], PROMPT[5:])]
    assert torch.allclose(torch.cat(pieces), expected[[3, 4, 9]], atol=1e-4)
    assert cache.tokens == PROMPT


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8", "int4"])
def test_fewer_bits_stay_close(precision: str) -> None:
    model = make(PYRAMID)
    decoder = PackedDecoder(ModelSource(model), precision=precision)  # type: ignore[arg-type]
    expected = logits_of(model, PROMPT)
    error = (whole(decoder, PROMPT) - expected).norm() / expected.norm()
    assert error < {"float16": 0.01, "bfloat16": 0.05, "int8": 0.05, "int4": 0.4}[precision]
    assert decoder.num_bytes < PackedDecoder(ModelSource(model), precision="float32").num_bytes


def test_int8_loses_no_more_than_its_weights_do() -> None:
    """Two digits: outliers in the inputs cost nothing that one could see."""
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64), torch.randn(5, 64)
    x[:, 3] *= 300.0
    quantized = quantize_int8(weight)
    exact = x @ dequantize(quantized).t()
    got = pack([quantized], "int8")(x)
    assert (got - exact).norm() / exact.norm() < 1e-4 if has_int8_products() else 1e-2


@pytest.mark.skipif(not has_int8_products(), reason="needs FBGEMM")
def test_int8_rows_do_not_depend_on_their_company() -> None:
    torch.manual_seed(0)
    linear, x = pack([torch.randn(96, 64)], "int8"), torch.randn(5, 64)
    assert torch.equal(linear(x)[1:4], linear(x[1:4]))
    assert torch.equal(linear(torch.zeros(2, 64)), torch.zeros(2, 96))


def test_packing_int4_keeps_symmetric_and_asymmetric_levels() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(64, 128), torch.randn(3, 128)
    for symmetric in (True, False):
        quantized = quantize_int4(weight, 32, symmetric=symmetric)
        expected = x @ dequantize(quantized).t()
        assert (pack([quantized], "int4")(x) - expected).norm() / expected.norm() < 0.02
    assert isinstance(pack([weight], "float32"), PlainLinear)


@pytest.mark.parametrize("plan", [{"bits": 8}, {"bits": 4}, {"bits": 4, "scale_bits": 8}])
def test_a_quantised_model_is_packed_from_its_whole_numbers(plan: dict[str, int]) -> None:
    model = make(PYRAMID)
    quantize_model(model, uniform_plan(PYRAMID, **plan))
    decoder = PackedDecoder(ModelSource(model), precision="float32")
    assert torch.allclose(whole(decoder, PROMPT), logits_of(model, PROMPT), atol=1e-3)


def test_a_mixed_plan_keeps_its_eight_bits_among_four() -> None:
    model = make(PYRAMID)
    sensitive = {"layers.0.attention.k_proj.weight", "layers.0.ffn.gate_proj.weight", "layers.1.ffn.down_proj.weight"}
    plan = raised(uniform_plan(PYRAMID, bits=4, embedding_bits=8), sensitive)
    quantize_model(model, plan)
    expected = logits_of(model, PROMPT)
    mixed = PackedDecoder(ModelSource(model), precision="int4")
    # Whole numbers are kept: what is left is that int4's kernel reads bfloat16.
    assert (whole(mixed, PROMPT) - expected).norm() / expected.norm() < 0.05
    eight, four = quantize_int8(torch.randn(32, 64)), quantize_int4(torch.randn(32, 64))
    x = torch.randn(3, 64)
    stacked = pack([four, eight, four], "int4")
    assert stacked.out_features == 96
    assert torch.equal(stacked(x)[:, 32:64], pack([eight], "int8")(x))
    assert torch.equal(stacked(x)[:, :32], pack([four], "int4")(x))
    assert torch.equal(stacked(x)[:, 64:], stacked(x)[:, :32])


def test_sequences_of_one_pass_do_not_touch_each_other() -> None:
    decoder = PackedDecoder(ModelSource(make(PYRAMID)), precision="float32")
    prompts = [PROMPT, PROMPT[:3], [4, 4, 4, 4]]
    alone = [whole(decoder, prompt) for prompt in prompts]
    together = decoder.forward([Chunk(p, SequenceCache(PYRAMID), is_whole=True) for p in prompts])
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_int8_keys_and_values_take_less_and_stay_close() -> None:
    model = make(PYRAMID)
    decoder = PackedDecoder(ModelSource(model), precision="float32")
    expected = logits_of(model, PROMPT)
    for kind in ("int8", "bfloat16"):
        cache = SequenceCache(PYRAMID, dtype=kind)  # type: ignore[arg-type]
        got = torch.cat([decoder.forward([Chunk([token], cache)])[0] for token in PROMPT])
        assert (got - expected).norm() / expected.norm() < 0.05
    assert bytes_per_token(PYRAMID, "int8") < bytes_per_token(PYRAMID, "float32") / 3


def test_a_cache_goes_back_and_branches() -> None:
    decoder = PackedDecoder(ModelSource(make(PYRAMID)), precision="float32")
    cache = SequenceCache(PYRAMID)
    whole(decoder, PROMPT, cache)
    branch = cache.copy(6)
    cache.truncate(6)
    for again in (cache, branch):
        assert torch.allclose(whole(decoder, PROMPT[6:], again), whole(decoder, PROMPT)[6:], atol=1e-4)
    with pytest.raises(ValueError, match="cannot go back"):
        cache.truncate(99)


def test_the_context_is_a_limit_and_a_window_is_not() -> None:
    decoder = PackedDecoder(ModelSource(make(PYRAMID)), precision="float32")
    with pytest.raises(ContextLengthError, match="512"):
        whole(decoder, [5] * 513)
    cache = SequenceCache(PYRAMID, window=8)
    for _ in range(40):
        decoder.forward([Chunk(list(range(20)), cache)])
    assert cache.length == 800
    assert cache.room <= 256


def test_a_window_sees_only_what_is_in_it() -> None:
    """One layer: what lies outside the window cannot matter, and pieces compute what single steps compute."""
    config = ModelConfig(
        vocab_size=64, model_dim=32, head_dim=16, query_heads=(2,), kv_heads=(1,), ffn_dims=(32,), max_context=64
    )
    decoder = PackedDecoder(ModelSource(make(config)), precision="float32")
    tail = [3, 1, 4, 1, 5]

    def after(head: list[int], piece: int) -> torch.Tensor:
        cache = SequenceCache(config, window=5)
        tokens = head + tail
        for begin in range(0, len(tokens), piece):
            out = decoder.forward([Chunk(tokens[begin : begin + piece], cache)])[0]
        return out

    one = after([7] * 20, 1)
    assert torch.allclose(one, after([9] * 20, 1), atol=1e-5)
    assert torch.allclose(one, after([7] * 20, 5), atol=1e-4)
    assert not torch.allclose(one, after([7] * 20, 1)[:, :0].new_zeros(1, 64))


@pytest.mark.parametrize("config", [PLAIN, SHARED, PYRAMID], ids=["untied", "shared", "pyramid"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_adapter_beside_the_base_is_the_adapter_on_it(config: ModelConfig, precision: str, tmp_path: Path) -> None:
    model = make(config)
    lora = LoRAConfig(rank=3, alpha=6.0, targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"))
    state = {n: v + 0.1 * torch.randn(v.shape) for n, v in initial_adapter(config, lora, 0).items()}
    decoder = PackedDecoder(ModelSource(model), precision=precision)  # type: ignore[arg-type]
    plain = whole(decoder, PROMPT)
    adapter = PackedAdapter(config, state, lora)
    chunks = [Chunk(PROMPT, SequenceCache(config), chosen, is_whole=True) for chosen in (adapter, None)]
    adapted, beside = decoder.forward(chunks)
    add_lora(model, lora)
    for name, value in adapter_state_dict(model).items():
        value.copy_(state[name])
    expected = logits_of(model, PROMPT)
    assert (adapted - expected).norm() / expected.norm() < (1e-5 if precision == "float32" else 0.08)
    assert torch.allclose(beside, plain, atol=1e-4)
    assert torch.equal(whole(decoder, PROMPT), plain)


def test_adapters_are_refused_where_they_do_not_fit_or_do_nothing(tmp_path: Path) -> None:
    engine = Engine(PackedDecoder(ModelSource(make(PYRAMID)), precision="float32"))
    lora = LoRAConfig(rank=2, alpha=4.0)
    state = initial_adapter(PYRAMID, lora, 0)
    save_adapter(tmp_path / "nothing", state, lora)
    with pytest.raises(AdapterError, match="changes nothing"):
        engine.add_adapter("a", tmp_path / "nothing")
    save_adapter(tmp_path / "other", initial_adapter(PLAIN, lora, 0), lora)
    with pytest.raises(AdapterError, match="does not fit"):
        engine.add_adapter("a", tmp_path / "other")
    with pytest.raises(AdapterError, match="no adapter 'a'"):
        engine.start([1], Sampling(max_new_tokens=1), adapter="a")
