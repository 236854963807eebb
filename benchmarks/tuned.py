"""Make the versions that `deltas.py` compares: SmolLM2-135M after real training steps on this repository's text.

    python benchmarks/tuned.py BASE OUT adamw|sgd|lora [--steps 1 2 5]

BASE is a checkpoint folder of ours. Writes float16 and bfloat16 safetensors into OUT: `adamw-20.F16`, ...; `lora`
writes the merged model, and the adapter's factors in float32.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Steps after which a version is kept; of LoRA the merged model at the first ones, the adapter at all.
KEPT = {"adamw": (5, 20, 40), "sgd": (10,), "lora": (10, 40, 45, 65)}
MERGED = (10, 40)
_LEARNING_RATE = {"adamw": 1e-5, "sgd": 3e-2, "lora": 3e-4}
_BATCH, _TOKENS, _RANK, _ALPHA, _SEED = 2, 128, 8, 16, 0


def batches(base: Path) -> Iterator[list[Any]]:
    """Yield batches of consecutive pieces of the repository's documentation, over and over."""
    from model import EncodedExample, Tokenizer  # noqa: PLC0415 - heavy, and only needed here

    tokenizer = Tokenizer.from_folder(base)
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.md")))
    ids = tokenizer.encode(text)
    width = _TOKENS + 1
    while True:
        for start in range(0, len(ids) - _BATCH * width, _BATCH * width):
            rows = (ids[start + row * width : start + (row + 1) * width] for row in range(_BATCH))
            yield [EncodedExample(tuple(row), 1) for row in rows]


def train(base: Path, out: Path, method: str, kept: Sequence[int], merged: Sequence[int]) -> None:
    """Train with `method` and save every step of `kept`; of LoRA the merged model after those of `merged`."""
    import torch  # noqa: PLC0415 - heavy, and only needed here
    from safetensors.torch import save_file  # noqa: PLC0415 - as above

    from model import (  # noqa: PLC0415 - as above
        PROJECTIONS,
        LoRAConfig,
        adapter_state_dict,
        add_lora,
        load_checkpoint,
        sequence_losses,
    )

    torch.manual_seed(_SEED)
    model = load_checkpoint(base, dtype=torch.float32)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    _save(start, start, out, "base")
    if method == "lora":
        add_lora(model, LoRAConfig(rank=_RANK, alpha=_ALPHA, targets=PROJECTIONS), seed=_SEED)
    else:
        model.requires_grad_(requires_grad=True)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate = _LEARNING_RATE[method]
    optimizer: Any = (
        torch.optim.SGD(trainable, lr=rate) if method == "sgd" else torch.optim.AdamW(trainable, lr=rate, fused=True)
    )
    source = batches(base)
    for step in range(1, max(kept) + 1):
        loss = sequence_losses(model, next(source)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        print(f"{method} step {step}: loss {loss.item():.3f}", flush=True)
        if step in kept and method != "lora":
            _save(model.state_dict(), start, out, f"{method}-{step}")
        elif step in kept:
            save_file(dict(adapter_state_dict(model)), out / f"adapter-{step}.F32")
        if step in merged and method == "lora":
            _save(_merged(start, adapter_state_dict(model)), start, out, f"merged-{step}")


def _merged(start: dict[str, Any], adapter: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(start)
    for name in {name.rpartition(".")[0] for name in adapter}:
        change = adapter[f"{name}.lora_b"] @ adapter[f"{name}.lora_a"] * (_ALPHA / _RANK)
        merged[f"{name}.weight"] = start[f"{name}.weight"] + change
    return merged


def _save(trained: dict[str, Any], start: dict[str, Any], out: Path, name: str) -> None:
    """Save what a model of each dtype would have become.

    A bfloat16 model starts from bfloat16 weights: rounding the trained float16 ones would move every weight that lay
    exactly between two.
    """
    import torch  # noqa: PLC0415 - heavy, and only needed here
    from safetensors.torch import save_file  # noqa: PLC0415 - as above

    for label, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        moved = {key: (start[key].to(dtype).float() + (trained[key] - start[key])).to(dtype) for key in start}
        save_file(moved, out / f"{name}.{label}")


def main() -> None:
    """Train one method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("method", choices=sorted(KEPT))
    parser.add_argument("--steps", type=int, nargs="+", help="keep the version after each of these instead")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, merged = (options.steps, options.steps) if options.steps else (KEPT[options.method], MERGED)
    train(options.base, options.out, options.method, kept, merged)


if __name__ == "__main__":
    main()
