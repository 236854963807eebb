"""Importing, converting and quantising under a limit on memory that no copy of the model fits into."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from simulators.exchange import byte_pair_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's RLIMIT_DATA"),
]

DIM, FFN, LAYERS, VOCAB = 1024, 4096, 4, 32_000
# What a step may take beside the libraries. Reading a small text takes 64 MiB for a moment: its bound.
MORE = 96 << 20
LARGEST = 2 * VOCAB * DIM
LIMITED = """
import resource, sys
from pathlib import Path
import gguf
from model import import_gguf, import_huggingface
from model.quantization.convert import QuantizationOptions, quantize_checkpoint
from model.export import export_gguf
from model.export.convert import Conversion, convert_model
from model.probe import probe_logits
from model.stored_model import stored_version
import model.export.writers, model.quantization.stream
what, source, out, more = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
status = Path("/proc/self/status").read_text()
used = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + more, used + more))
if what == "huggingface":
    import_huggingface(source, out)
elif what == "gguf":
    import_gguf(source, out)
elif what == "quantize":
    quantize_checkpoint(source, out, QuantizationOptions(bits=4))
elif what == "convert":
    asked = {"form": "gguf", "device": "laptop", "quantization": "int4", "measures_speed": False}
    convert_model(Conversion(source=source, out=out, **asked))
elif what == "probe":
    with stored_version(source) as loaded:
        probe_logits(loaded)
elif what == "whole":
    import torch
    torch.empty(40, 1 << 20, dtype=torch.float32).zero_()
"""


def run(what: str, source: Path, out: Path, more: int = MORE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, what, str(source), str(out), str(more)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 100 million weights in three float32 shards of nothing but zeros, which take no room on the disk."""
    folder = tmp_path_factory.mktemp("large") / "hf"
    folder.mkdir()
    shapes = {"model.embed_tokens.weight": (VOCAB, DIM), "model.norm.weight": (DIM,)}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        shapes |= {f"{path}.self_attn.{name}_proj.weight": (DIM, DIM) for name in "qkvo"}
        shapes |= {f"{path}.mlp.{name}_proj.weight": (FFN, DIM) for name in ("gate", "up")}
        shapes |= {f"{path}.mlp.down_proj.weight": (DIM, FFN)}
        shapes |= {f"{path}.{name}_layernorm.weight": (DIM,) for name in ("input", "post_attention")}
    weight_map: dict[str, str] = {}
    for number in range(3):
        header, end = {}, 0
        for name in sorted(shapes)[number::3]:
            begin, end = end, end + 4 * math.prod(shapes[name])
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begin, end]}
            weight_map[name] = f"model-{number}.safetensors"
        raw = json.dumps(header).encode()
        with (folder / f"model-{number}.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": DIM, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 16,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    byte_pair_tokenizer().save(folder)
    return folder


def test_the_limit_is_one_that_holds(large: Path, tmp_path: Path) -> None:
    assert "allocate" in run("whole", large, tmp_path).stderr


def test_no_step_holds_the_model(large: Path, tmp_path: Path) -> None:
    """The largest tensor, the embedding, has 131 MB in float32 and 66 in float16; the model 400 and 200."""
    base, small, converted = tmp_path / "base", tmp_path / "int4", tmp_path / "gguf"
    for what, source, out, more in (
        ("huggingface", large, base, MORE),
        ("quantize", base, small, MORE),
        # Exports read one tensor as it is stored.
        ("convert", large, converted, MORE + LARGEST),
        ("gguf", converted / "model-int4.gguf", tmp_path / "back", MORE),
        # As stored, and in float32.
        ("probe", tmp_path, tmp_path, MORE + 3 * LARGEST),
    ):
        done = run(what, source, out, more)
        assert done.returncode == 0, (what, done.stderr[-2000:])
    assert (base / "model.safetensors").stat().st_size > 199e6
    assert (tmp_path / "back" / "config.json").read_text() == (base / "config.json").read_text()
