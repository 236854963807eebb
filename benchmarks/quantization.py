"""Measure what fewer bits cost: size, perplexity and answers of one base in 16, 8 and 4 bits, and of peers' formats.

    python benchmarks/quantization.py --base FOLDER --text FILE [--choices FILE.jsonl] [--results FILE]

The reference is the base as stored, computed in float32. Its perplexity is taken on the first `--tokens` tokens of the
text, in windows of 512 without overlap; answers are computed in bfloat16. GPTQ's calibration text is the end of the
text, which is not scored, unless `--calibrate` gives another.

The body's weights may have been 4-bit numbers before (the first line of the output tells): then int4 with the same
groups is nearly exact and says little. `--off-grid` makes it a fair test: every input channel of every matrix is
multiplied by a factor of its own in 0.8..1.25, and what feeds it divided by the same, so that the reference computes
the same function with weights that lie on no grid.

Peers' formats are computed with this program's forward pass, so that only the weights differ: gguf-py's Q8_0, Q4_0 and
Q4_1 (bit for bit llama.cpp's own; embedding in Q8_0), and torchao's int8 and int4 where torchao is installed (it leaves
the embedding alone). Results are kept in `--results`; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from model import (
    LayeredTransformer,
    Tokenizer,
    choice_accuracy,
    load_checkpoint,
    perplexity,
    quantize_model,
    read_questions,
    uniform_plan,
)
from model.evaluation import PerplexityResult
from model.quantization import QuantizationPlan, dequantize_model, set_int8_inputs
from model.quantization.calibrate import calibrate_model, calibration_windows
from model.quantization.sensitivity import choose_kept, in_four_bits, measure_sensitivity, raised, without

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_GROUP = 32
_CALIBRATION_CHARACTERS = 380_000


@dataclass(frozen=True)
class Inputs:
    """What every variant is measured on."""

    base: Path
    token_ids: list[int]
    calibration: torch.Tensor
    sensitivity: torch.Tensor
    choices: tuple[Path, ...]
    questions: int
    off_grid: bool

    def load(self) -> LayeredTransformer:
        """The reference, float32."""
        model = load_checkpoint(self.base)
        if self.off_grid:
            off_grid_(model)
        return model


@dataclass(frozen=True)
class Row:
    """One variant; `losses` are those of each token, `chosen` the answers by their index."""

    variant: str
    megabytes: float
    quantise_s: float
    losses: list[float]
    answers: dict[str, list[bool]]
    chosen: dict[str, list[int]] = dataclasses.field(default_factory=dict)


@torch.no_grad()
def off_grid_(model: LayeredTransformer) -> None:
    """Rescale every input channel of the body's matrices; the function stays the same."""
    config = model.config
    if config.kv_of or config.weights_of:
        raise SystemExit("--off-grid knows no shared layers; take another base")
    generator = torch.Generator().manual_seed(1)

    def factors(count: int) -> torch.Tensor:
        return torch.empty(count).uniform_(-1, 1, generator=generator).mul_(math.log(1.25)).exp_()

    for layer, block in enumerate(model.layers):
        attention, ffn = block.attention, block.ffn
        readers = (attention.q_proj, attention.k_proj, attention.v_proj), (ffn.gate_proj, ffn.up_proj)
        for norm, linears in zip((block.attention_norm, block.ffn_norm), readers, strict=True):
            channels = factors(config.model_dim)
            norm.weight /= channels
            for linear in linears:
                linear.weight *= channels
        channels = factors(config.kv_heads[layer] * config.head_dim)
        attention.v_proj.weight /= channels[:, None]
        group = config.query_heads[layer] // config.kv_heads[layer]
        attention.o_proj.weight *= channels.view(-1, 1, config.head_dim).expand(-1, group, -1).flatten()
        channels = factors(config.ffn_dims[layer])
        ffn.up_proj.weight /= channels[:, None]
        ffn.down_proj.weight *= channels


@torch.no_grad()
def share_on_16_levels(model: LayeredTransformer) -> float:
    """The share of the body's groups of 32 whose weights are 16 even levels, as after a 4-bit format."""
    found, count = 0, 0
    for name, weight in model.named_parameters():
        if name.startswith("layers.") and weight.ndim == 2 and weight.shape[1] % _GROUP == 0:  # noqa: PLR2004
            groups = weight.view(-1, _GROUP)
            low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
            levels = (groups - low) / (high - low).clamp_min(1e-12) * 15
            found += int(((levels - levels.round()).abs().amax(-1) < 0.05).sum())  # noqa: PLR2004
            count += len(groups)
    return found / max(1, count)


def nearest(model: LayeredTransformer, _: Inputs, **plan: Any) -> float:  # noqa: ANN401  (options of the plan)
    """Round to the nearest levels."""
    chosen = uniform_plan(model.config, **plan)
    quantize_model(model, chosen)
    return chosen.stored_bytes(model.config)


def calibrated(model: LayeredTransformer, inputs: Inputs, **plan: Any) -> float:  # noqa: ANN401  (options of the plan)
    """GPTQ."""
    chosen = uniform_plan(model.config, **plan)
    calibrate_model(model, chosen, inputs.calibration)
    return chosen.stored_bytes(model.config)


def mixed(model: LayeredTransformer, inputs: Inputs, *, share: float, **plan: Any) -> float:  # noqa: ANN401  (options of the plan)
    """GPTQ, the most sensitive weights kept at 16 bits."""
    chosen = uniform_plan(model.config, **plan)
    found = measure_sensitivity(model, chosen, inputs.sensitivity)
    chosen = without(chosen, choose_kept(found, model.config, share=share))
    calibrate_model(model, chosen, inputs.calibration)
    return chosen.stored_bytes(model.config)


def raised_to_8(model: LayeredTransformer, inputs: Inputs, *, share: float, **plan: Any) -> float:  # noqa: ANN401  (options of the plan)
    """GPTQ, the weights that suffer most from 4 bits in 8."""
    chosen = uniform_plan(model.config, **plan)
    found = measure_sensitivity(model, in_four_bits(chosen), inputs.sensitivity)
    chosen = raised(chosen, choose_kept(found, model.config, share=share))
    calibrate_model(model, chosen, inputs.calibration)
    return chosen.stored_bytes(model.config)


def int8_inputs(model: LayeredTransformer, inputs: Inputs, *, group_size: int | None) -> float:
    """int8 weights and inputs."""
    size = nearest(model, inputs, bits=8)
    set_int8_inputs(model, enabled=True, group_size=group_size)
    return size


@torch.no_grad()
def gguf_format(model: LayeredTransformer, _: Inputs, *, body: str, table: str = "Q8_0") -> float:
    """Weights as a GGUF file of that format holds them."""
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  (a peer)

    size = 0
    for name, weight in model.named_parameters():
        if weight.ndim != 2:  # noqa: PLR2004  (GGUF keeps norms in float32)
            size += weight.numel() * 4
            continue
        kind = GGMLQuantizationType[body if name.startswith("layers.") else table]
        stored = quants.quantize(weight.numpy(), kind)
        weight.copy_(torch.from_numpy(quants.dequantize(stored, kind)))
        size += stored.nbytes
    return size


@torch.no_grad()
def torchao_format(model: LayeredTransformer, _: Inputs, *, bits: int) -> float:
    """Weights as torchao stores them; embeddings in 16 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_  # noqa: PLC0415
    from torchao.quantization.granularity import PerGroup  # noqa: PLC0415
    from torchao.quantization.quant_primitives import MappingType  # noqa: PLC0415

    int4 = IntxWeightOnlyConfig(
        weight_dtype=torch.int4, granularity=PerGroup(_GROUP), mapping_type=MappingType.ASYMMETRIC
    )
    quantize_(model, Int8WeightOnlyConfig() if bits == 8 else int4)  # noqa: PLR2004  (int8)
    plan = uniform_plan(model.config, bits=bits, embedding_bits=16)
    for name in plan.tensors:
        owner = model.get_submodule(name.removesuffix(".weight"))
        owner.weight = torch.nn.Parameter(owner.weight.dequantize().float(), requires_grad=False)
    return plan.stored_bytes(model.config)


# Each changes the model in place and returns its size in bytes.
VARIANTS: Mapping[str, Callable[[LayeredTransformer, Inputs], float]] = {
    "16 bits": lambda model, _: QuantizationPlan({}).stored_bytes(model.config),
    "int8": functools.partial(nearest, bits=8),
    "int8 GPTQ": functools.partial(calibrated, bits=8),
    "int8, int8 inputs": functools.partial(int8_inputs, group_size=None),
    "int8, int8 inputs g32": functools.partial(int8_inputs, group_size=32),
    "int4 g32 nearest": functools.partial(nearest, bits=4, embedding_bits=8),
    "int4 g32 symmetric nearest": functools.partial(nearest, bits=4, embedding_bits=8, symmetric=True),
    "int4 g32 GPTQ": functools.partial(calibrated, bits=4, embedding_bits=8),
    "int4 g32 symmetric GPTQ": functools.partial(calibrated, bits=4, embedding_bits=8, symmetric=True),
    "int4 g64 nearest": functools.partial(nearest, bits=4, embedding_bits=8, group_size=64),
    "int4 g64 GPTQ": functools.partial(calibrated, bits=4, embedding_bits=8, group_size=64),
    "int4 g32 GPTQ, 2 % at 16": functools.partial(mixed, bits=4, embedding_bits=8, share=0.02),
    "int4 g32 GPTQ, scales in 8": functools.partial(calibrated, bits=4, embedding_bits=8, scale_bits=8),
    "int4 g32 GPTQ, scales in 8, 8 % in 8": functools.partial(
        raised_to_8, bits=4, embedding_bits=8, scale_bits=8, share=0.08
    ),
    "int4 g32 GPTQ, scales in 8, 20 % in 8": functools.partial(
        raised_to_8, bits=4, embedding_bits=8, scale_bits=8, share=0.2
    ),
    "int4 g32 GPTQ, embedding too": functools.partial(calibrated, bits=4, embedding_bits=4),
    "llama.cpp Q8_0": functools.partial(gguf_format, body="Q8_0"),
    "llama.cpp Q4_1": functools.partial(gguf_format, body="Q4_1"),
    "llama.cpp Q4_0": functools.partial(gguf_format, body="Q4_0"),
    "torchao int8": functools.partial(torchao_format, bits=8),
    "torchao int4 g32": functools.partial(torchao_format, bits=4),
}


def measure(variant: str, inputs: Inputs) -> Row:
    """Make a variant from the base and measure it."""
    model = inputs.load()
    began = time.perf_counter()
    size = VARIANTS[variant](model, inputs)
    seconds = time.perf_counter() - began
    if "int8 inputs" not in variant:
        dequantize_model(model)  # the same numbers, quicker
    losses = perplexity(model, inputs.token_ids, context=512, stride=512, batch_size=4).losses.tolist()
    answers, chosen = {}, {}
    if inputs.questions and inputs.choices:
        tokenizer = Tokenizer.from_folder(inputs.base)
        model.bfloat16()
        for path in inputs.choices:
            result = choice_accuracy(model, tokenizer, read_questions(path, limit=inputs.questions))
            answers[path.stem], chosen[path.stem] = list(result.answered), list(result.chosen)
    return Row(variant, size / 1e6, seconds, losses, answers, chosen)


def accuracy(row: Row, reference: Row, name: str) -> str:
    """Answers that are right; the difference in points, with 95 % of its paired distribution; and the same choices."""
    right = row.answers[name]
    share = f"{sum(right) / len(right):.1%}"
    if row is reference:
        return share
    changes = [float(mine) - float(theirs) for mine, theirs in zip(right, reference.answers[name], strict=True)]
    mean = sum(changes) / len(changes)
    variance = sum((change - mean) ** 2 for change in changes) / max(1, len(changes) - 1)
    said = f"{100 * mean:+.2f} ± {196 * math.sqrt(variance / len(changes)):.2f}"
    if name in row.chosen and name in reference.chosen:
        same = sum(mine == theirs for mine, theirs in zip(row.chosen[name], reference.chosen[name], strict=True))
        said += f"; same choice {same / len(changes):.1%}"
    return f"{share} ({said})"


def table(rows: Mapping[str, Row]) -> str:
    """The results in Markdown, each beside the 16-bit reference."""
    reference = rows["16 bits"]
    names = list(reference.answers)
    lines = [
        "| weights | MB | smaller | perplexity | relative loss | "
        + "".join(f"{name} | " for name in names)
        + "made in |",
        "|---|---|---|---|---|" + "---|" * (len(names) + 1),
    ]
    base = PerplexityResult(torch.tensor(reference.losses))
    for row in rows.values():
        result = PerplexityResult(torch.tensor(row.losses))
        loss, margin = result.relative_loss(base)
        cells = [
            row.variant,
            f"{row.megabytes:.1f}",
            f"{1 - row.megabytes / reference.megabytes:.1%}",
            f"{result.perplexity:.3f}",
            "-" if row is reference else f"{loss:+.2%} ± {margin:.2%}",
            *(accuracy(row, reference, name) if name in row.answers else "-" for name in names),
            f"{row.quantise_s:.0f} s",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure the variants that are asked for and not known yet; print all that are known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="Folder of a base in 16 bits.")
    parser.add_argument("--text", type=Path, required=True, help="Text file, such as WikiText-2's validation part.")
    parser.add_argument("--calibrate", type=Path, help="Text file for GPTQ; without it: the end of --text.")
    parser.add_argument("--choices", type=Path, action="append", default=[], help="Questions; may be given again.")
    parser.add_argument("--questions", type=int, default=200, help="Questions of each file.")
    parser.add_argument("--tokens", type=int, default=12_288, help="Tokens of the text that are scored.")
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--off-grid", action="store_true", help="Move the weights off any 4-bit grid first.")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--results", type=Path, help="File that keeps what was measured.")
    arguments = parser.parse_args()

    known = json.loads(arguments.results.read_text()) if arguments.results and arguments.results.exists() else {}
    rows = {name: Row(**values) for name, values in known.items()}
    inputs = _inputs(arguments)
    for variant in ["16 bits", *arguments.variants]:
        if variant in rows:
            continue
        try:
            rows[variant] = measure(variant, inputs)
        except ImportError as error:
            print(f"{variant}: left out, {error}", file=sys.stderr)
            continue
        if arguments.results:
            arguments.results.write_text(json.dumps({name: dataclasses.asdict(row) for name, row in rows.items()}))
    ordered = {name: rows[name] for name in VARIANTS if name in rows}
    print(f"Groups of the body on 16 levels already: {share_on_16_levels(inputs.load()):.1%}\n\n{table(ordered)}")
    return 0


def _inputs(arguments: argparse.Namespace) -> Inputs:
    tokenizer = Tokenizer.from_folder(arguments.base)
    text = arguments.text.read_text(encoding="utf-8")
    calibration = arguments.calibrate.read_text(encoding="utf-8") if arguments.calibrate else text
    calibration_ids = tokenizer.encode(calibration[-_CALIBRATION_CHARACTERS:])
    return Inputs(
        base=arguments.base,
        token_ids=tokenizer.encode(text[: arguments.tokens * 12])[: arguments.tokens],
        calibration=calibration_windows(calibration_ids, max_tokens=arguments.calibration_tokens),
        sensitivity=calibration_windows(calibration_ids, max_tokens=256),
        choices=tuple(arguments.choices),
        questions=arguments.questions,
        off_grid=arguments.off_grid,
    )


if __name__ == "__main__":
    sys.exit(main())
