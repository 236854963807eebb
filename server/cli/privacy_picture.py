"""ε over the rounds of a planned run, as an SVG or PNG file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from server.cli.plan_picture import STYLE
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.planning import Plan

_KINDS: Final = (".svg", ".png")


def draw_epsilon(plan: Plan, *, target_epsilon: float | None, path: Path) -> None:
    """Draw what has been spent after each round, and the budget as a line.

    Raises:
        ConfigurationError: The file's ending is neither .svg nor .png, matplotlib is not installed, or ε is infinite.
    """
    if path.suffix not in _KINDS:
        raise ConfigurationError(f"--picture takes a file that ends in {' or '.join(_KINDS)}; got {path.name!r}.")
    if not math.isfinite(plan.epsilon):
        raise ConfigurationError("Without noise ε is infinite from the first round on: there is nothing to draw.")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ConfigurationError("Drawing needs matplotlib; install lamella[server].") from error
    rounds = range(1, plan.training.rounds + 1)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its keys are literals
        figure = Figure(figsize=(8, 4), layout="constrained", dpi=120, facecolor="white")
        axes = figure.subplots()
        axes.plot(rounds, plan.epsilon_after, color="#1f5f99", marker="o" if len(rounds) < 40 else None, markersize=3)  # noqa: PLR2004
        if target_epsilon is not None:
            axes.axhline(target_epsilon, color="#a3231f", linestyle="--", linewidth=1)
            axes.annotate(f"budget {target_epsilon:g}", (1, target_epsilon), xytext=(0, 4), textcoords="offset points")
        axes.set_xlabel("rounds that a device took part in")
        axes.set_ylabel(f"ε at δ = {plan.target_delta:g}")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(
            f"Noise multiplier {plan.noise_multiplier:g}, {plan.training.steps} steps a round, "
            f"one example in {1 / plan.training.sampling_probability:.3g}",
            loc="left",
            fontsize=10,
        )
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
