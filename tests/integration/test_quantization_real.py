"""The real SmolLM2-135M in 8 and 4 bits: how small, how good, and what loading it costs."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import (
    DocstringSource,
    LayeredTransformer,
    Tokenizer,
    chat_texts,
    find_smollm2,
    generate,
    import_gguf,
    load_checkpoint,
    perplexity,
    quantize_model,
    save_checkpoint,
    uniform_plan,
)
from model.evaluation import PerplexityResult
from model.quantization import QuantizationPlan, dequantize_model
from model.quantization.convert import QuantizationOptions, quantize_checkpoint

pytestmark = pytest.mark.slow

TOKENS = 2048


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    import_gguf(find_smollm2(), folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def text() -> str:
    source = DocstringSource()
    return "\n".join(chat_texts(example for user in source.users()[:40] for example in source.examples(user)))


@pytest.fixture(scope="module")
def token_ids(base: Path, text: str) -> list[int]:
    return Tokenizer.from_folder(base).encode(text)[:TOKENS]


@pytest.fixture(scope="module")
def reference(base: Path, token_ids: list[int]) -> PerplexityResult:
    return perplexity(load_checkpoint(base), token_ids, context=512, stride=512)


# The body was 4-bit numbers in groups of 32 before it was packaged: int4 with such groups loses next to nothing.
@pytest.mark.parametrize(("bits", "most", "size"), [(8, 0.01, 0.51), (4, 0.01, 0.36)])
def test_perplexity_and_size(
    base: Path, token_ids: list[int], reference: PerplexityResult, bits: int, most: float, size: float
) -> None:
    model = load_checkpoint(base)
    plan = uniform_plan(model.config, bits=bits, embedding_bits=8)
    quantize_model(model, plan)
    dequantize_model(model)
    loss, margin = perplexity(model, token_ids, context=512, stride=512).relative_loss(reference)
    assert loss < most + margin
    assert math.isfinite(loss)
    assert plan.stored_bytes(model.config) < size * QuantizationPlan({}).stored_bytes(model.config)


@torch.no_grad()
def test_calibration_pays(base: Path, text: str, token_ids: list[int], tmp_path: Path) -> None:
    # The first layers alone: the solver's time grows with the layers, and what calibration is for shows in six.
    whole, tokenizer = load_checkpoint(base), Tokenizer.from_folder(base)
    shape = whole.config
    config = dataclasses.replace(
        shape, query_heads=shape.query_heads[:6], kv_heads=shape.kv_heads[:6], ffn_dims=shape.ffn_dims[:6]
    )
    model = LayeredTransformer(config)
    model.load_state_dict(whole.state_dict(), strict=False)
    save_checkpoint(tmp_path / "six", model, tokenizer)
    ids = torch.tensor(token_ids[:1024]).view(2, 512)
    logits = load_checkpoint(tmp_path / "six")(ids)

    found = {}
    for name, given in (("nearest", None), ("calibrated", text[len(text) // 2 :])):
        options = QuantizationOptions(bits=4, group_size=64, calibration_tokens=4096)
        quantize_checkpoint(tmp_path / "six", tmp_path / name, options, calibration_text=given)
        quantized = load_checkpoint(tmp_path / name)
        dequantize_model(quantized)
        found[name] = torch.nn.functional.mse_loss(quantized(ids), logits).item()
    assert found["calibrated"] < 0.5 * found["nearest"], found


@torch.no_grad()
def test_it_still_answers_and_loads_small(base: Path) -> None:
    out = base.parent / "small"
    quantize_checkpoint(base, out, QuantizationOptions(bits=4))
    tokenizer = Tokenizer.from_folder(out)
    prompt = tokenizer.apply_chat(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    stream = generate(load_checkpoint(out), tokenizer.encode(prompt), max_new_tokens=12, stop_ids=tokenizer.stop_ids)
    assert "Paris" in tokenizer.decode(list(stream))

    script = """
import sys
from pathlib import Path
import torch
from delta_updates.memory import peak_memory_bytes
from model import load_checkpoint
before = peak_memory_bytes()
load_checkpoint(Path(sys.argv[1]))
print(peak_memory_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True)
    # 95 MB of weights, and one stored tensor besides; the modules' own tables take the rest.
    assert int(done.stdout) < 180e6
