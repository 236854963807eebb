"""A plan as an SVG or PNG file: heads and weights of every layer, readable in grey, deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from model.plans import plan_cost
from privacy.report.plot_style import BLUE, ORANGE, PLOT_STYLE
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model import ModelConfig
    from model.plans import LayerCost

_PALE: Final = "#a9c8e6"
STYLE: Final[dict[str, Any]] = PLOT_STYLE | {
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "plan",
    "font.family": "sans-serif",
    "axes.grid.axis": "y",
    "hatch.linewidth": 0.6,
}
_KINDS: Final = (".svg", ".png")


def draw_plan(config: ModelConfig, *, title: str, path: Path, kv_bytes_per_element: int = 2) -> None:
    """Draw a plan's heads above, its weights below, one bar a layer.

    Raises:
        ConfigurationError: The file's ending is neither .svg nor .png, or matplotlib is not installed.
    """
    if path.suffix not in _KINDS:
        raise ConfigurationError(f"--picture takes a file that ends in {' or '.join(_KINDS)}; got {path.name!r}.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError("Drawing needs matplotlib; install lamella[server].") from error
    cost = plan_cost(config, kv_bytes_per_element=kv_bytes_per_element)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=120, facecolor="white")
        heads, weights = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
        figure.suptitle(
            f"{title}: {cost.parameters / 1e6:,.1f} million weights, {cost.kv_cache_bytes:,} bytes of KV cache a token",
            x=0.01,
            ha="left",
            fontsize=12,
        )
        _draw_heads(heads, cost.layers)
        _draw_weights(weights, config, cost.layers)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata)


def _draw_heads(axes: Any, layers: tuple[LayerCost, ...]) -> None:  # noqa: ANN401  (matplotlib is untyped)
    lent = [layer.kv_of != number for number, layer in enumerate(layers)]
    _bars(axes, [layer.query_heads for layer in layers], colour=_PALE, label="query heads")
    _bars(axes, [layer.kv_heads for layer in layers], colour=BLUE, label="kv heads", lent=lent)
    axes.set_ylabel("heads")
    axes.set_ylim(0, 1.05 * max(layer.query_heads for layer in layers))
    _legend(axes)


def _draw_weights(axes: Any, config: ModelConfig, layers: tuple[LayerCost, ...]) -> None:  # noqa: ANN401  (untyped)
    lent = [layer.weights_of != number for number, layer in enumerate(layers)]
    ffn = [3 * config.model_dim * layer.ffn_dim / 1e6 for layer in layers]
    attention = [layer.weights_run / 1e6 - wide for layer, wide in zip(layers, ffn, strict=True)]
    _bars(axes, attention, colour=BLUE, label="attention", lent=lent)
    _bars(axes, ffn, below=attention, colour=ORANGE, label="feed-forward", lent=lent)
    axes.set_ylabel("weights, millions")
    axes.set_xlabel("layer")
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.05 * max(sum(pair) for pair in zip(attention, ffn, strict=True)))
    _legend(axes)


def _bars(
    axes: Any,  # noqa: ANN401  (matplotlib is untyped)
    values: Sequence[float],
    *,
    colour: str,
    label: str,
    below: Sequence[float] | None = None,
    lent: Sequence[bool] | None = None,
) -> None:
    """One bar a layer; what a layer only borrows is hatched."""
    floors = below or [0.0] * len(values)
    borrowed = lent or [False] * len(values)
    boxes = list(zip(range(len(values)), floors, values, borrowed, strict=True))
    own = [(layer, floor, value) for layer, floor, value, is_lent in boxes if not is_lent]
    others = [(layer, floor, value) for layer, floor, value, is_lent in boxes if is_lent]
    _patch(axes, own, facecolor=colour, edgecolor="none", label=label)
    if others:
        _patch(axes, others, facecolor="none", edgecolor=colour, hatch="////", label=f"{label}, lent")


def _patch(axes: Any, boxes: Sequence[tuple[int, float, float]], **style: Any) -> None:  # noqa: ANN401  (untyped)
    """All boxes as one path: a tenth of the bytes that a rectangle each takes in an SVG."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    corners = [
        corner
        for layer, floor, value in boxes
        for corner in (
            (layer - 0.4, floor),
            (layer + 0.4, floor),
            (layer + 0.4, floor + value),
            (layer - 0.4, floor + value),
            (layer - 0.4, floor),
        )
    ]
    codes = [Outline.MOVETO, Outline.LINETO, Outline.LINETO, Outline.LINETO, Outline.CLOSEPOLY] * len(boxes)
    axes.add_patch(PathPatch(Outline(corners, codes), **style))


def _legend(axes: Any) -> None:  # noqa: ANN401  (matplotlib is untyped)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, fontsize=9, borderaxespad=0.2)
