"""A plan at the terminal: a table of its layers with a small picture beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from model.plans import loss_proxy, plan_cost
from server.cli.sizes import short_amount

if TYPE_CHECKING:
    from model import ModelConfig
    from model.plans import LayerCost, PlanCost

_BAR_CELLS, _SHORT_BAR_CELLS = 18, 8  # that fit into 80 columns, without and with a column of sharing
_ATTENTION, _FFN = "█", "░"


def plan_table(config: ModelConfig, *, title: str, kv_bytes_per_element: int) -> Table:
    """One row a layer; the bar is as long as its weights, attention before feed-forward.

    In the column `shares`, `W 4` runs the weights of layer 4 and `KV 4` attends over its keys and values.
    """
    cost = plan_cost(config, kv_bytes_per_element=kv_bytes_per_element)
    is_shared = bool(config.weights_of or config.kv_of)
    table = Table(
        title=f"{title}: {cost.parameters:,} weights",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption=f"KV bytes and FLOPs of one token; weights of {_ATTENTION} attention {_FFN} feed-forward",
        caption_justify="left",
    )
    for column in ("layer", "heads", "kv", "ffn", "weights", "KV B", "FLOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    if is_shared:
        table.add_column("shares", no_wrap=True)
    table.add_column("", no_wrap=True)
    cells_in_bar = _SHORT_BAR_CELLS if is_shared else _BAR_CELLS
    widest = max(layer.weights_run for layer in cost.layers)
    for number, layer in enumerate(cost.layers):
        cells = [
            str(number),
            str(layer.query_heads),
            str(layer.kv_heads),
            str(layer.ffn_dim),
            short_amount(layer.parameters) if layer.parameters else "-",
            f"{layer.kv_cache_bytes:,}" if layer.kv_cache_bytes else "-",
            short_amount(layer.flops),
        ]
        table.add_row(
            *cells, *([_shares(number, layer)] if is_shared else []), _bar(config, layer, cells_in_bar / widest)
        )
    return table


def plan_summary(config: ModelConfig, *, kv_bytes_per_element: int) -> Text:
    """What is outside of the layers, and the sums."""
    cost: PlanCost = plan_cost(config, kv_bytes_per_element=kv_bytes_per_element)
    cache = cost.kv_cache_bytes * cost.context
    embedding = f"{config.vocab_size:,} x {config.model_dim:,}" + (", tied" if config.tied_embeddings else ", untied")
    return Text(
        f"width {config.model_dim:,}, heads of {config.head_dim}, embedding {short_amount(cost.embedding_parameters)} "
        f"({embedding})\n"
        f"KV cache {cost.kv_cache_bytes:,} bytes a token at {8 * kv_bytes_per_element} bits, {cache / 1e6:,.1f} MB for "
        f"{cost.context:,} tokens\n"
        f"{short_amount(cost.flops)} FLOPs for a token at full context\n"
        f"loss proxy {loss_proxy(cost):.3f}: it ranks plans, it is no forecast"
    )


def _shares(number: int, layer: LayerCost) -> str:
    if layer.weights_of == layer.kv_of != number:
        return f"W+KV {layer.kv_of}"
    weights = f"W {layer.weights_of}" if layer.weights_of != number else ""
    keys_values = f"KV {layer.kv_of}" if layer.kv_of != number else ""
    return " ".join(filter(None, (weights, keys_values)))


def _bar(config: ModelConfig, layer: LayerCost, cells_per_weight: float) -> Text:
    ffn_share = 3 * config.model_dim * layer.ffn_dim / layer.weights_run
    cells = max(1, round(layer.weights_run * cells_per_weight))
    ffn_cells = round(cells * ffn_share)
    return Text.assemble((_ATTENTION * (cells - ffn_cells), "blue"), (_FFN * ffn_cells, "yellow"))
