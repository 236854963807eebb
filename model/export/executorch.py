"""Our checkpoint as an ExecuTorch program (`.pte`): one method that reads tokens and keeps its own KV cache.

`forward(tokens (1, T) int64, input_pos (1,) int64) -> (1, vocab_size)`: logits of the token after the last one, where T
is any length up to the context and `input_pos` says how many tokens came before; a new answer begins at 0. That is the
signature of ExecuTorch's own text runner. Needs the package `executorch`, which brings XNNPACK's kernels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

import torch
from torch import Tensor, nn

from model.errors import ExportError
from model.export.dense import load_dense
from model.export.layout import require_own_keys_and_values
from model.files import replace_durably
from model.quantization import quantize_int8
from model.transformer import rotate

if TYPE_CHECKING:
    from pathlib import Path

    from model.transformer import Block, LayeredTransformer

Precision = Literal["fp32", "fp16", "int8", "int4"]
_INT4_GROUP: Final = 32
_MISSING: Final = (
    "writing .pte files needs the package executorch; run `pip install 'lamella[executorch]'` (it brings torchao, "
    "pandas, scikit-learn and coremltools with it)"
)


def export_executorch(source: Path, out_file: Path, *, quantization: Precision = "fp32", context: int = 2048) -> str:
    """Write a checkpoint folder, or a version's tree with its adapter merged, as a program for XNNPACK.

    Lowering takes minutes for a model of 100M weights and more, and several times its float32 weights in memory.

    Args:
        source: Folder of a checkpoint, or of a version (`base/`, `adapter/`).
        out_file: Replaced atomically. The tokenizer's files are written beside it.
        quantization: int8 and int4 round the weights (per channel, in groups of 32) and, while running, the
            activations of linear layers; the embedding is int8 then, and the output projection as well.
        context: Tokens that the cache in the program holds, or the model's context if shorter.

    Returns:
        `xnnpack`.

    Raises:
        ExportError: The package `executorch` is missing, or the model has layers that it cannot express.
        CheckpointError: The source is damaged, or the disk does not take the file.
        AdapterError: The adapter does not fit the base.
    """
    if quantization not in get_args(Precision):
        raise ExportError(f"no precision {quantization!r} for ExecuTorch; choose {', '.join(get_args(Precision))}")
    exir = _package("executorch.exir")
    partitioner = _package("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    model, tokenizer = load_dense(source)
    require_own_keys_and_values(model.config, form="this ExecuTorch program")
    length = min(context, model.config.max_context)
    step = CachedStep(model, length, dtype=torch.float16 if quantization == "fp16" else torch.float32)
    if quantization in {"int8", "int4"}:
        _round_linears(step, quantization)
    example = (torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    shapes = ({1: torch.export.Dim("tokens", min=1, max=length - 1)}, None)
    program = torch.export.export(step.eval(), example, dynamic_shapes=shapes, strict=False)
    facts = {
        "get_max_seq_len": length,
        "get_max_context_len": length,
        "get_vocab_size": model.config.vocab_size,
        "get_bos_id": tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id,
        "get_eos_ids": sorted(tokenizer.stop_ids),
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    lowered = exir.to_edge_transform_and_lower(
        program, partitioner=[partitioner.XnnpackPartitioner()], constant_methods=facts
    ).to_executorch()
    tokenizer.save(out_file.parent)
    replace_durably(out_file, lambda temporary: cast("None", temporary.write_bytes(lowered.buffer)))
    return "xnnpack"


class CachedStep(nn.Module):
    """The decoder with its cache inside, in operations that a graph of fixed shapes can hold."""

    cos: Tensor
    sin: Tensor
    slots: Tensor

    def __init__(self, model: LayeredTransformer, length: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        config = model.config
        self.config = config
        self.model = model.to(dtype)
        # A linear layer of its own: the graph stores a tied embedding twice either way, and this one can be rounded.
        self.head = nn.Linear(config.model_dim, config.vocab_size, bias=False, device="meta")
        self.head.weight = model.embedding.weight if model.output is None else model.output.weight
        self.embedding: nn.Module = model.embedding
        self.register_buffer("cos", model.rotary.cos[:length].float().clone())
        self.register_buffer("sin", model.rotary.sin[:length].float().clone())
        self.register_buffer("slots", torch.arange(length))
        for layer, heads in enumerate(config.kv_heads):
            for name in ("keys", "values"):
                self.register_buffer(f"{name}_{layer}", torch.zeros(1, heads, length, config.head_dim, dtype=dtype))

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        """(1, T) and (1,) -> (1, vocab_size), float32."""
        positions = input_pos + torch.arange(tokens.shape[1])
        turns = self.cos[positions], self.sin[positions]
        mask = torch.where(self.slots[None, :] <= positions[:, None], 0.0, float("-inf"))
        x = self.embedding(tokens)
        for layer in range(self.config.num_layers):
            block = cast("Block", self.model.layers[self.config.weight_layer(layer)])
            x = x + self._attention(block, layer, x, turns, mask, positions)
            x = x + block.ffn(block.ffn_norm(x))
        return cast("Tensor", self.head(self.model.norm(x)[:, -1])).float()

    def _attention(
        self, block: Block, layer: int, x: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor, positions: Tensor
    ) -> Tensor:
        """(1, T, model_dim) -> the same; this layer's keys and values are put at their positions in the cache."""
        attention, count, width = block.attention, x.shape[1], self.config.head_dim
        normed = block.attention_norm(x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        queries, keys, values = (
            cast("nn.Module", p)(normed).view(1, count, -1, width).transpose(1, 2) for p in projections
        )
        if attention.q_norm is not None and attention.k_norm is not None:
            queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        queries, keys = rotate(queries, *turns), rotate(keys, *turns)
        all_keys, all_values = self.get_buffer(f"keys_{layer}"), self.get_buffer(f"values_{layer}")
        all_keys.index_copy_(2, positions, keys)
        all_values.index_copy_(2, positions, values)
        group = queries.shape[1] // all_keys.shape[1]
        scores = queries @ all_keys.repeat_interleave(group, 1).transpose(2, 3) * width**-0.5
        shares = torch.softmax(scores.float() + mask, -1).to(x.dtype)
        mixed = shares @ all_values.repeat_interleave(group, 1)
        return cast("Tensor", attention.o_proj(mixed.transpose(1, 2).flatten(2)))


class _RoundedEmbedding(nn.Module):
    """A table of int8 rows with a scale each."""

    values: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rounded = quantize_int8(weight)
        self.register_buffer("values", rounded.values)
        self.register_buffer("scales", rounded.scales)

    def forward(self, tokens: Tensor) -> Tensor:
        """(1, T) -> (1, T, model_dim)."""
        return self.values[tokens].float() * self.scales[tokens].unsqueeze(-1)


def _round_linears(step: CachedStep, quantization: str) -> None:
    """Replace linear weights by what XNNPACK's kernels for rounded weights and activations take."""
    api = _package("torchao.quantization")
    step.embedding = _RoundedEmbedding(step.model.embedding.weight.detach())
    step.head.weight = nn.Parameter(step.head.weight.detach().clone(), requires_grad=False)
    for name, linear in [(name, m) for name, m in step.named_modules() if isinstance(m, nn.Linear)]:
        is_four_bits = quantization == "int4" and name != "head" and linear.in_features % _INT4_GROUP == 0
        config = api.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=getattr(torch, "int4" if is_four_bits else "int8"),
            weight_granularity=api.PerGroup(_INT4_GROUP) if is_four_bits else api.PerAxis(0),
        )
        api.quantize_(linear, config)


def _package(name: str) -> Any:  # noqa: ANN401  (packages without types)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(f"{_MISSING}: {error}") from error
