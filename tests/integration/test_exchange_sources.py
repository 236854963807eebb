"""Our exports under the other side's own source code, where it is at hand: docs/model.md says where to get it.

`LAMELLA_TEST_LLAMA_CPP` names a folder of llama.cpp's sources (`convert_hf_to_gguf.py` in it), `LAMELLA_TEST_OPENELM`
the file with Apple's `OpenELMForCausalLM`.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from simulators.exchange import byte_pair_tokenizer, make_tree, sentencepiece_tokenizer

from model import (
    LayeredTransformer,
    ModelConfig,
    Tokenizer,
    find_smollm2,
    import_gguf,
    import_huggingface,
    load_checkpoint,
    load_version,
    preset,
)
from model.export import export_hf

pytestmark = pytest.mark.slow

CLOSE = 1e-4
RISING = ModelConfig(
    vocab_size=400,
    model_dim=64,
    head_dim=32,
    query_heads=(4, 4, 8, 12),
    kv_heads=(1, 1, 2, 3),
    ffn_dims=(32, 64, 96, 160),
    max_context=64,
    qk_norm=True,
    norm_eps=1e-6,
)
UNIFORM = replace(
    RISING, query_heads=(4,) * 4, kv_heads=(2,) * 4, ffn_dims=(96,) * 4, qk_norm=False, tied_embeddings=False
)
TEXTS = ("hello", "The trains  leave", " the lazy fox\n12.", "naïve 日本")
TOKENS = torch.randint(3, 260, (1, 40), generator=torch.Generator().manual_seed(1))


def converted(folder: Path, out: Path) -> Path:
    """A Hugging Face folder as llama.cpp's own converter writes it, in float32."""
    sources = os.environ.get("LAMELLA_TEST_LLAMA_CPP")
    if not sources:
        pytest.skip("LAMELLA_TEST_LLAMA_CPP names no folder of llama.cpp's sources")
    script = Path(sources) / "convert_hf_to_gguf.py"
    subprocess.run(
        [sys.executable, str(script), str(folder), "--outtype", "f32", "--outfile", str(out)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return out


def assert_llama_cpp_agrees(gguf: Path, model: LayeredTransformer, tokenizer: Tokenizer) -> None:
    pytest.importorskip("xllamacpp")
    from simulators.llamacpp import LlamaCpp

    theirs = LlamaCpp(gguf, vocab_size=model.config.vocab_size)
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert theirs.prompt_length(text) == len(tokens), text
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1].double().numpy()
        np.testing.assert_allclose(theirs.centred_logits(text), logits - logits.mean(), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("plan", [RISING, UNIFORM])
def test_llama_cpps_converter_reads_plan_and_vocabulary(plan: ModelConfig, tmp_path: Path) -> None:
    """Rows of the embedding without a token included: the converter drops none and shifts none."""
    plan = replace(plan, vocab_size=410)
    model = make_tree(tmp_path, plan, sentencepiece_tokenizer())
    export_hf(tmp_path, tmp_path / "hf", dtype="float32")
    gguf = converted(tmp_path / "hf", tmp_path / "theirs.gguf")
    assert_llama_cpp_agrees(gguf, model, sentencepiece_tokenizer())


def test_llama_cpps_converter_reads_smollm2(tmp_path: Path) -> None:
    import_gguf(find_smollm2(), tmp_path / "base")
    export_hf(tmp_path, tmp_path / "hf", dtype="float32")
    gguf = converted(tmp_path / "hf", tmp_path / "theirs.gguf")
    loaded = load_version(tmp_path)
    assert_llama_cpp_agrees(gguf, loaded.model, loaded.tokenizer)


@pytest.fixture
def apple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Apple's classes, as a module of a package: they came with relative imports."""
    path = os.environ.get("LAMELLA_TEST_OPENELM")
    if not path:
        pytest.skip("LAMELLA_TEST_OPENELM names no file with Apple's OpenELMForCausalLM")
    package = tmp_path / "packages" / "apples"
    package.mkdir(parents=True)
    # What a copy in a larger project registers itself with.
    (package / "__init__.py").write_text("def register_llm(name):\n    return lambda made: made\n")
    # A name that configurations of transformers 5 call with arguments of their own.
    source = Path(path).read_text().replace("__post_init__", "_fill_in_layers")
    (package / "modeling.py").write_text(source)
    if (beside := Path(path).with_name("configuration_openelm.py")).is_file():
        text = beside.read_text().replace("__post_init__", "_fill_in_layers")
        (package / "configuration_openelm.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    yield importlib.import_module("apples.modeling")
    for name in [name for name in sys.modules if name.partition(".")[0] == "apples"]:
        del sys.modules[name]


APPLES = {
    "rising": replace(RISING, vocab_size=260),
    "untied": replace(RISING, vocab_size=260, tied_embeddings=False),
    "falling-without-norms": replace(
        RISING,
        vocab_size=260,
        query_heads=(8, 6, 4, 2),
        kv_heads=(4, 3, 2, 1),
        ffn_dims=(128, 96, 64, 32),
        qk_norm=False,
    ),
    "two-layers": replace(RISING, vocab_size=260, query_heads=(4, 12), kv_heads=(1, 3), ffn_dims=(96, 160)),
    "270m": replace(preset("openelm-270m"), vocab_size=260),
}


@pytest.mark.filterwarnings("ignore")  # transformers 5 on a class written for 4
@pytest.mark.parametrize("name", APPLES)
@torch.no_grad()
def test_apples_own_class_computes_the_same_and_comes_back(name: str, tmp_path: Path, apple: ModuleType) -> None:
    model = make_tree(tmp_path, APPLES[name], byte_pair_tokenizer())
    folder = tmp_path / "hf"
    assert export_hf(tmp_path, folder, dtype="float32") == "openelm"
    config = apple.OpenELMConfig(**json.loads((folder / "config.json").read_text()))
    theirs = apple.OpenELMForCausalLM(config).eval()
    state = safetensors.torch.load_file(folder / "model.safetensors")
    left_out = theirs.load_state_dict(state, strict=False)
    # The classifier is a second output that the class has and never computes with.
    assert set(left_out.missing_keys) <= {"transformer.classifier.weight"}
    assert not left_out.unexpected_keys
    ours = model(TOKENS)
    torch.testing.assert_close(theirs(TOKENS, use_cache=False, return_dict=True).logits, ours, atol=CLOSE, rtol=0)

    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text(config.to_json_string(use_diff=False))
    safetensors.torch.save_file(theirs.state_dict(), saved / "model.safetensors")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, saved / file)
    assert import_huggingface(saved, tmp_path / "back", dtype=torch.float32) == APPLES[name]
    assert torch.equal(load_checkpoint(tmp_path / "back")(TOKENS), ours)
