"""The real SmolLM2-135M in 8 and 4 bits: how small, how good, and what loading it costs."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import (
    DocstringSource,
    Tokenizer,
    chat_texts,
    find_smollm2,
    generate,
    import_gguf,
    load_checkpoint,
    perplexity,
    quantize_model,
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


def test_calibration_pays(base: Path, text: str, token_ids: list[int], reference: PerplexityResult) -> None:
    found = {}
    calibration = text[len(text) // 2 :]
    for name, given in (("nearest", None), ("calibrated", calibration)):
        out = base.parent / name
        options = QuantizationOptions(bits=4, group_size=64, calibration_tokens=4096)
        quantize_checkpoint(base, out, options, calibration_text=given)
        model = load_checkpoint(out)
        dequantize_model(model)
        found[name], _ = perplexity(model, token_ids, context=512, stride=512).relative_loss(reference)
    assert found["calibrated"] < 0.5 * found["nearest"]


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
import resource, sys
from pathlib import Path
import torch
from model import load_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_checkpoint(Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(out)], capture_output=True, text=True, check=True)
    # 95 MB of weights, and one stored tensor besides; the modules' own tables take the rest.
    assert int(done.stdout) * 1024 < 180e6
