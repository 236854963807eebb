"""Bar charts of a benchmark's table: one panel a figure, ours in blue, peers in grey."""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FORMATS = (".svg", ".png")

_SOFT, _OURS, _PEER = "#5b6b7b", "#1f5f99", "#b4bec8"
_LONGEST = 6.0


@dataclass(frozen=True)
class Panel:
    """One figure of every contender.

    Attributes:
        title: what it is, with its unit and which way is better.
        values: by contender, in the order of the bars.
        number: how a value is written at its bar's end.
    """

    title: str
    values: Mapping[str, float]
    number: str = "{:.0f}"


def draw(panels: Sequence[Panel], *, title: str, ours: Sequence[str], path: Path) -> None:
    """Draw the panels side by side into an .svg or .png file, the same bytes for the same values."""
    import matplotlib as mpl  # noqa: PLC0415 - only who asks for a picture needs it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    from server.cli.plan_picture import STYLE  # noqa: PLC0415 - as above

    names = list(panels[0].values)
    with mpl.rc_context(
        STYLE | {"axes.grid.axis": "x", "svg.hashsalt": "benchmark", "ytick.color": STYLE["text.color"]}
    ):  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(figsize=(10.5, 1.1 + 0.34 * len(names)), layout="constrained", dpi=120, facecolor="white")
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
            # One very slow peer must not flatten the others: its bar is cut, its number is not.
            longest = _LONGEST * statistics.median(panel.values.values())
            bars = axes.barh(
                names,
                [min(panel.values[name], longest) for name in names],
                color=[_OURS if name in ours else _PEER for name in names],
                height=0.72,
            )
            numbers = [panel.number.format(value) + " »" * (value > longest) for value in panel.values.values()]
            axes.bar_label(bars, numbers, padding=3, color=_SOFT)
            axes.set_title(panel.title, loc="left", fontsize=10, color=_SOFT)
            axes.margins(x=0.26)
            axes.tick_params(length=0)
            axes.set_xticks([])
        axes.invert_yaxis()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None})


def picture_path(text: str) -> Path:
    """A path that can be drawn to; told before minutes of measuring, not after."""
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(FORMATS)}")
    return path
