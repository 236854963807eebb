"""How plots look, here and in the operator's pictures: light, readable in grey."""

from __future__ import annotations

from typing import Any, Final

INK, SOFT, LINE = "#1c2733", "#5b6b7b", "#d5dce3"
BLUE, ORANGE, RED, GREY = "#1f5f99", "#d98324", "#a3231f", "#b3bec9"
# Settings of matplotlib; whoever draws adds how text is written into SVG.
PLOT_STYLE: Final[dict[str, Any]] = {
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef1f4",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "legend.frameon": False,
}
