"""The real SmolLM2-135M against transformers: same logits, same tokens, same chat; and what loading it costs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import LoadedModel, Tokenizer, find_smollm2, generate, import_gguf, load_checkpoint, load_version, preset

pytestmark = pytest.mark.slow

STRINGS = [
    "Hello world", " leading", "trailing ", "two  blanks", "three   blanks", "\n", "\n\n", "a\n\nb", "tab\there",
    "\r\n",
    "it's we'll I'd they've I'm you're", "IT'S", "don\u2019t", "12345", "a1b2", "x 12", "2021-03-04 05:06", "3.14159",
    "1,000,000", "naïve café", "Zürich Straße", "日本語のテキスト", "한국어", "العربية", "עברית",
    "😀 👩‍👩‍👧 🏳️‍🌈", "e\u0301", "\u00a0nbsp", "zero\u200bwidth", "<html><b>x</b></html>",
    "def f(x):\n    return x + 1\n", "a_b-c/d\\e", "!!! ???", "...", "$%^&*()", "http://a.b/c?d=e&f=1", "\x00\x01",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|>", "<|im_start|", "mixed<|im_end|>12 3", "A" * 200, " " * 20, "",
]  # fmt: skip

# transformers 5.23 rebuilds this tokenizer without splitting digits off, and so cuts blanks before them another way
# than the model was trained with. These ids are llama.cpp's.
BLANKS_BEFORE_DIGITS = {
    "  12": [256, 33, 34],
    "x  12": [104, 256, 33, 34],
    "x   12": [104, 333, 33, 34],
    "x ²": [104, 216, 19133],
    "½ ² ٣ ४ Ⅷ": [16738, 216, 19133, 216, 164, 113, 216, 9310, 120, 216, 173, 223, 117],
}

CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The import as `lamella base import` makes it: float16."""
    tree = tmp_path_factory.mktemp("smollm2")
    import_gguf(find_smollm2(), tree / "base")
    return tree


@pytest.fixture(scope="module")
def ours(stored: Path) -> LoadedModel:
    return load_version(stored)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    from transformers import LlamaForCausalLM

    path = find_smollm2()
    return LlamaForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def their_tokenizer() -> object:
    from transformers import AutoTokenizer

    path = find_smollm2()
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def token_ids() -> torch.Tensor:
    return torch.randint(0, 49_152, (2, 64), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_equal_transformers(theirs: torch.nn.Module, tmp_path: Path) -> None:
    config = import_gguf(find_smollm2(), tmp_path / "base", dtype=torch.float32)
    assert config == preset("smollm2-135m")
    single = load_checkpoint(tmp_path / "base")
    torch.testing.assert_close(single(token_ids()), theirs(token_ids()).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_half_precision_storage_changes_little(ours: LoadedModel, theirs: torch.nn.Module) -> None:
    expected, got = theirs(token_ids()).logits, ours.model(token_ids())
    assert (got - expected).abs().max() < 0.1
    assert (got.argmax(-1) == expected.argmax(-1)).float().mean() > 0.98


def test_tokens_equal_transformers(ours: LoadedModel, their_tokenizer: object) -> None:
    for text in STRINGS:
        expected = their_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ours.tokenizer.encode(text) == expected, repr(text)
        assert ours.tokenizer.decode(expected) == their_tokenizer.decode(expected, skip_special_tokens=True)


def test_blanks_before_digits(ours: LoadedModel) -> None:
    for text, expected in BLANKS_BEFORE_DIGITS.items():
        assert ours.tokenizer.encode(text) == expected, repr(text)


def test_chat_equals_transformers(ours: LoadedModel, their_tokenizer: object) -> None:
    expected = their_tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert ours.tokenizer.apply_chat(CHAT, add_generation_prompt=True) == expected


def test_special_tokens(ours: LoadedModel) -> None:
    tokenizer: Tokenizer = ours.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    assert tokenizer.stop_ids == {0, 2}
    assert tokenizer.vocab_size == 49_152


def test_it_knows_the_capital_of_france(ours: LoadedModel) -> None:
    prompt = ours.tokenizer.apply_chat(CHAT[:1], add_generation_prompt=True)
    stream = generate(ours.model, ours.tokenizer.encode(prompt), max_new_tokens=20, stop_ids=ours.tokenizer.stop_ids)
    assert ours.tokenizer.decode(list(stream)) == "The capital of France is Paris."


MEMORY_PROBE = """
import sys
from pathlib import Path
import torch
from delta_updates.memory import peak_memory_bytes
from model import load_checkpoint
torch.set_num_threads(1)
before = peak_memory_bytes()
load_checkpoint(Path(sys.argv[1]))
print((peak_memory_bytes() - before) / (1 << 20))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_loading_takes_one_copy_of_the_weights(stored: Path) -> None:
    """538 MB of float32 weights, and beside them one tensor as stored, the embedding at most (57 MB)."""
    command = [sys.executable, "-c", MEMORY_PROBE, str(stored / "base")]
    probe = subprocess.run(command, capture_output=True, text=True, check=True)
    # 100 MB for what the libraries take on first use; a second copy would be 269 or 538 MB more.
    assert 538e6 / 2**20 < float(probe.stdout) < (538e6 + 57e6 + 100e6) / 2**20
