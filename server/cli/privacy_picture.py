"""ε over the rounds of a planned run, as an SVG or PNG file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from server.cli.plan_picture import STYLE
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_KINDS: Final = (".svg", ".png")


@dataclass(frozen=True, kw_only=True)
class EpsilonPicture:
    """What is drawn: ε after each round, at a δ, with the budget where there is one."""

    epsilon_after: Sequence[float]
    target_delta: float
    target_epsilon: float | None
    rounds: str
    title: str


def draw_epsilon(drawn: EpsilonPicture, path: Path) -> None:
    """Draw what has been spent after each round, and the budget as a line.

    Raises:
        ConfigurationError: The file's ending is neither .svg nor .png, matplotlib is not installed, or ε is infinite.
    """
    if path.suffix not in _KINDS:
        raise ConfigurationError(f"--picture takes a file that ends in {' or '.join(_KINDS)}; got {path.name!r}.")
    if not math.isfinite(drawn.epsilon_after[-1]):
        raise ConfigurationError("Without noise ε is infinite from the first round on: there is nothing to draw.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ConfigurationError("Drawing needs matplotlib; install lamella[server].") from error
    rounds, budget = range(1, len(drawn.epsilon_after) + 1), drawn.target_epsilon
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(figsize=(8, 4), layout="constrained", dpi=120, facecolor="white")
        axes = figure.subplots()
        axes.plot(rounds, drawn.epsilon_after, color="#1f5f99", marker="o" if len(rounds) < 40 else None, markersize=3)  # noqa: PLR2004
        if budget is not None:
            axes.axhline(budget, color="#a3231f", linestyle="--", linewidth=1)
            axes.annotate(f"budget {budget:g}", (1, budget), xytext=(0, 4), textcoords="offset points")
        axes.set_xlabel(drawn.rounds)
        axes.set_ylabel(f"ε at δ = {drawn.target_delta:g}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(drawn.title, loc="left", fontsize=10)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
