"""Every export, run by the runtime it is for: the same logits as ours, to 1e-4."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from simulators.exchange import LORA, add_adapter, byte_pair_tokenizer, make_tree, sentencepiece_tokenizer

from model import (
    LayeredTransformer,
    LoRAConfig,
    ModelConfig,
    Tokenizer,
    find_smollm2,
    import_gguf,
    load_version,
    quantize_model,
    save_quantized,
    uniform_plan,
)
from model.export import export_gguf, export_gguf_adapter, export_hf, export_mlx
from model.quantization.sensitivity import raised

pytestmark = [
    pytest.mark.slow,
    # Raised inside transformers when peft asks it.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

CLOSE = 1e-4
FALLING = ModelConfig(
    vocab_size=260,
    model_dim=64,
    head_dim=32,
    query_heads=(8, 6, 4, 2),
    kv_heads=(4, 3, 2, 1),
    ffn_dims=(128, 96, 64, 32),
    max_context=64,
    qk_norm=True,
)
PLANS = {
    "falling": FALLING,
    "rising": replace(
        FALLING, query_heads=(4, 4, 8, 12), kv_heads=(1, 1, 2, 3), ffn_dims=(32, 64, 96, 160), norm_eps=1e-6
    ),
    "shared": replace(
        FALLING, query_heads=(8, 8, 4, 4), kv_heads=(4, 4, 2, 2), ffn_dims=(128, 128, 64, 64), weights_of=(0, 0, 2, 2)
    ),
    "falling-without-norms": replace(FALLING, qk_norm=False),
    "uniform": replace(FALLING, query_heads=(4,) * 4, kv_heads=(2,) * 4, ffn_dims=(96,) * 4, qk_norm=False),
    "untied": replace(
        FALLING, query_heads=(4,) * 4, kv_heads=(2,) * 4, ffn_dims=(96,) * 4, qk_norm=False, tied_embeddings=False
    ),
}
TOKENS = torch.randint(3, 260, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("smollm2")
    import_gguf(find_smollm2(), tree / "base")
    return tree


def sentence(tree: Path) -> torch.Tensor:
    text = "The train to Lisbon leaves at nine, and it takes three hours: time enough for a book and some bread."
    return torch.tensor([Tokenizer.from_folder(tree / "base").encode(text)])


@torch.no_grad()
def centred(model: LayeredTransformer, tokens: torch.Tensor) -> np.ndarray:
    logits = model(tokens)[0].double()
    return (logits - logits.mean(-1, keepdim=True)).numpy()


def assert_llama_cpp_agrees(gguf: Path, model: LayeredTransformer, tokens: torch.Tensor, **options: object) -> None:
    pytest.importorskip("xllamacpp")
    from simulators.llamacpp import LlamaCpp

    theirs = LlamaCpp(gguf, vocab_size=model.config.vocab_size, **options)
    expected = centred(model, tokens)
    for length in (1, 2, 7, tokens.shape[1]):
        got = theirs.centred_logits(tokens[0, :length].tolist())
        np.testing.assert_allclose(got, expected[length - 1], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", PLANS)
def test_llama_cpp_computes_every_plan(name: str, tmp_path: Path) -> None:
    model = make_tree(tmp_path, PLANS[name], byte_pair_tokenizer())
    export_gguf(tmp_path, tmp_path / "x.gguf", quantization="f32")
    assert_llama_cpp_agrees(tmp_path / "x.gguf", model, TOKENS)


@pytest.mark.parametrize("name", ["falling", "shared", "falling-without-norms", "uniform"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")])
def test_llama_cpp_puts_adapters_on(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    make_tree(tmp_path, PLANS[name], byte_pair_tokenizer())
    add_adapter(tmp_path, PLANS[name], LoRAConfig(rank=3, alpha=7.0, targets=targets), stddev=0.2)
    export_gguf(tmp_path / "base", tmp_path / "base.gguf", quantization="f32")
    export_gguf(tmp_path, tmp_path / "merged.gguf", quantization="f32")
    export_gguf_adapter(tmp_path / "adapter", tmp_path / "adapter.gguf", base=tmp_path / "base")
    adapted, base = load_version(tmp_path).model, load_version(tmp_path, with_adapter=False).model
    assert np.abs(centred(adapted, TOKENS) - centred(base, TOKENS)).max() > 0.5
    assert_llama_cpp_agrees(tmp_path / "base.gguf", base, TOKENS)
    assert_llama_cpp_agrees(tmp_path / "merged.gguf", adapted, TOKENS)
    assert_llama_cpp_agrees(tmp_path / "base.gguf", adapted, TOKENS, adapter=tmp_path / "adapter.gguf")


def test_llama_cpp_computes_smollm2(smollm2: Path, tmp_path: Path) -> None:
    export_gguf(smollm2, tmp_path / "x.gguf", quantization="f32")
    tokens = sentence(smollm2)
    assert_llama_cpp_agrees(tmp_path / "x.gguf", load_version(smollm2).model, tokens)


def test_llama_cpp_has_the_tokens_and_the_chat(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from simulators.llamacpp import LlamaCpp

    export_gguf(smollm2, tmp_path / "x.gguf", quantization="f16")
    theirs = LlamaCpp(tmp_path / "x.gguf", vocab_size=49_152, context=256)
    tokenizer = Tokenizer.from_folder(smollm2 / "base")
    for text in ("x  12", "naïve café", "3.14159", "a\n\nb", "😀 日本語", "<|im_start|>user\nhi<|im_end|>\n"):
        assert theirs.prompt_length(text) == len(tokenizer.encode(text)), text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert theirs.chat(question, count=20) == "The capital of France is Paris."


def test_llama_cpp_has_the_tokens_of_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from simulators.llamacpp import LlamaCpp

    tokenizer = sentencepiece_tokenizer()
    model = make_tree(tmp_path, replace(FALLING, vocab_size=400), tokenizer)
    export_gguf(tmp_path, tmp_path / "x.gguf", quantization="f32")
    theirs = LlamaCpp(tmp_path / "x.gguf", vocab_size=400)
    for text in ("hello", "The trains  leave", " the lazy fox\n12.", "naïve 日本", "how are you? <s>"):
        tokens = tokenizer.encode(text)
        assert theirs.prompt_length(text) == len(tokens), text
        expected = centred(model, torch.tensor([tokens]))[-1]
        np.testing.assert_allclose(theirs.centred_logits(text), expected, atol=CLOSE, rtol=0)


def assert_mlx_agrees(folder: Path, model: LayeredTransformer, tokens: torch.Tensor) -> None:
    mx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.utils")
    theirs, _ = utils.load_model(folder)
    logits = np.array(theirs(mx.array(tokens.numpy())).astype(mx.float32))[0].astype(np.float64)
    got = logits - logits.mean(-1, keepdims=True)
    np.testing.assert_allclose(got, centred(model, tokens), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("name", PLANS)
def test_mlx_computes_every_plan(name: str, tmp_path: Path) -> None:
    model = make_tree(tmp_path, PLANS[name], byte_pair_tokenizer())
    add_adapter(tmp_path, PLANS[name], LORA, stddev=0.1)
    model = load_version(tmp_path).model
    export_mlx(tmp_path, tmp_path / "mlx", dtype="float32")
    assert_mlx_agrees(tmp_path / "mlx", model, TOKENS)


@pytest.mark.parametrize("kv_of", [(0, 0, 2, 2), (0, 0, 0, 0), (0, 0, 0, 3)])
@pytest.mark.parametrize("bits", [None, 8])
def test_mlx_computes_shared_keys_and_values(kv_of: tuple[int, ...], bits: int | None, tmp_path: Path) -> None:
    """A prompt at once, and token by token on mlx-lm's cache."""
    plan = replace(PLANS["uniform"], head_dim=16, kv_of=kv_of)
    tokenizer = byte_pair_tokenizer()
    model = make_tree(tmp_path, plan, tokenizer)
    add_adapter(tmp_path, plan, LORA, stddev=0.1)
    model = load_version(tmp_path).model
    source = tmp_path
    if bits is not None:
        model = LayeredTransformer(plan)
        model.load_state_dict(load_version(tmp_path, with_adapter=False).model.state_dict())
        quantize_model(model, uniform_plan(plan, bits=bits))
        source = tmp_path / "few"
        save_quantized(source / "base", model, tokenizer)
        model = load_version(source).model
    assert export_mlx(source, tmp_path / "mlx", bits=bits, dtype="float32") == "hunyuan"
    assert_mlx_agrees(tmp_path / "mlx", model, TOKENS)
    mx = pytest.importorskip("mlx.core")
    cache_module, utils = pytest.importorskip("mlx_lm.models.cache"), pytest.importorskip("mlx_lm.utils")
    theirs, _ = utils.load_model(tmp_path / "mlx")
    cache = cache_module.make_prompt_cache(theirs)
    for token in TOKENS[0, :12].tolist():
        logits = np.array(theirs(mx.array([[token]]), cache=cache).astype(mx.float32))[0, 0].astype(np.float64)
    np.testing.assert_allclose(logits - logits.mean(), centred(model, TOKENS)[11], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_mlx_computes_a_quantised_base(bits: int, tmp_path: Path) -> None:
    """Whole numbers are kept, so that even few bits agree to the last digits."""
    tokenizer = byte_pair_tokenizer()
    model = make_tree(tmp_path, FALLING, tokenizer)
    quantize_model(model, uniform_plan(FALLING, bits=bits, embedding_bits=8))
    save_quantized(tmp_path / "few" / "base", model, tokenizer)
    export_mlx(tmp_path / "few", tmp_path / "mlx", bits=bits, dtype="float32")
    assert_mlx_agrees(tmp_path / "mlx", load_version(tmp_path / "few").model, TOKENS)


def test_mlx_computes_a_mixed_plan(tmp_path: Path) -> None:
    """Scales in 8 bits become float16 again, and a weight that got 8 bits keeps them."""
    tokenizer = byte_pair_tokenizer()
    model = make_tree(tmp_path, FALLING, tokenizer)
    sensitive = {"layers.0.attention.o_proj.weight", "layers.1.ffn.down_proj.weight"}
    quantize_model(model, raised(uniform_plan(FALLING, bits=4, scale_bits=8, embedding_bits=8), sensitive))
    save_quantized(tmp_path / "few" / "base", model, tokenizer)
    export_mlx(tmp_path / "few", tmp_path / "mlx", bits=4, dtype="float32")
    assert_mlx_agrees(tmp_path / "mlx", load_version(tmp_path / "few").model, TOKENS)


def test_mlx_computes_smollm2_and_chats(smollm2: Path, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    export_mlx(smollm2, tmp_path / "mlx", dtype="float32")
    tokens = sentence(smollm2)
    assert_mlx_agrees(tmp_path / "mlx", load_version(smollm2).model, tokens)
    _, tokenizer = mlx_lm.load(str(tmp_path / "mlx"), lazy=True)
    ours = Tokenizer.from_folder(smollm2 / "base")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert tokenizer.apply_chat_template(question, add_generation_prompt=True) == ours.encode(
        ours.apply_chat(question, add_generation_prompt=True)
    )
    assert tokenizer.eos_token_ids == set(ours.stop_ids)


@torch.no_grad()
def test_transformers_computes_smollm2(smollm2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export_hf(smollm2, tmp_path / "hf", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    tokens = sentence(smollm2)
    expected = load_version(smollm2).model(tokens)
    torch.testing.assert_close(theirs(tokens).logits, expected, atol=CLOSE, rtol=0)


@torch.no_grad()
def test_peft_puts_our_adapter_on_our_export(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    make_tree(tmp_path, PLANS["uniform"], byte_pair_tokenizer())
    add_adapter(tmp_path, PLANS["uniform"], LORA, stddev=0.2)
    export_hf(tmp_path / "base", tmp_path / "hf", dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = load_version(tmp_path).model
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), atol=CLOSE, rtol=0)


# ExecuTorch and what it imports warn of their own deprecations.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("quantization", "worst"), [("fp32", CLOSE), ("int8", 0.5)])
@torch.no_grad()
def test_executorch_computes_a_plan(quantization: str, worst: float, tmp_path: Path) -> None:
    """A prompt at once, then token by token on the cache inside the program."""
    runtime = pytest.importorskip("executorch.runtime")
    pytest.importorskip("executorch.exir")
    from model.export.executorch import export_executorch

    make_tree(tmp_path, PLANS["shared"], byte_pair_tokenizer())
    add_adapter(tmp_path, PLANS["shared"], LORA, stddev=0.1)
    export_executorch(tmp_path, tmp_path / "x.pte", quantization=quantization)
    forward = runtime.Runtime.get().load_program(str(tmp_path / "x.pte")).load_method("forward")
    expected = load_version(tmp_path).model(TOKENS)[0]
    got = forward.execute([TOKENS[:, :5], torch.tensor([0])])[0]
    torch.testing.assert_close(got[0], expected[4], atol=worst, rtol=0)
    for position in range(5, 12):
        got = forward.execute([TOKENS[:, position : position + 1], torch.tensor([position])])[0]
        torch.testing.assert_close(got[0], expected[position], atol=worst, rtol=0)
