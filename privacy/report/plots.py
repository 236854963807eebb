"""The report's plots as SVG: light, readable in grey, deterministic (the only file that touches matplotlib)."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from privacy.errors import ReportError
from privacy.report.blocks import probability
from privacy.report.plot_style import BLUE, GREY, INK, ORANGE, PLOT_STYLE, RED, SOFT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.audits.membership import MembershipResult
    from privacy.report.schema import AuditReport
    from privacy.utility import GroupChange

# Letters as paths: the page must look the same where the font is not.
_STYLE = PLOT_STYLE | {"svg.fonttype": "path", "svg.hashsalt": "privacy-report", "font.family": "DejaVu Sans"}


def figures_of(report: AuditReport) -> dict[str, bytes]:
    """SVG files by the names that the document uses; a plot without anything to show is left out.

    Raises:
        ReportError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - heavy, and recomputing must not need it
    except ImportError as error:
        raise ReportError("the HTML report needs matplotlib; install lamella[server]") from error
    drawn: dict[str, bytes] = {}
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its keys are literals
        if report.participation_counts:
            drawn["participation"] = _participation(report)
        if report.devices and math.isfinite(report.epsilon_max):
            drawn["rounds"] = _rounds(report)
            drawn["curve"] = _curve(report)
        if report.membership is not None:
            drawn["membership"] = _membership(report.membership)
        if groups := next((figure.groups for figure in report.utility if figure.groups), ()):
            drawn["groups"] = _groups(groups)
    return drawn


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # noqa: PLC0415 - heavy, and recomputing must not need it

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def _svg(figure: Any) -> bytes:  # noqa: ANN401 - matplotlib is imported lazily and untyped here
    target = io.BytesIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()


def _participation(report: AuditReport) -> bytes:
    counts = report.participation_counts
    figure, axes = _figure(9, 2.4)
    bars = axes.bar(range(len(counts)), list(counts.values()), width=0.6, color=BLUE)
    axes.bar_label(bars, color=INK, padding=2)
    axes.set_xticks(range(len(counts)), [str(times) for times in counts])
    axes.set_xlim(-0.8, max(len(counts), 4) - 0.2)
    axes.set_ylim(0, max(counts.values()) * 1.2)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="rounds a device took part in", ylabel="devices")
    return _svg(figure)


def _rounds(report: AuditReport) -> bytes:
    figure, axes = _figure(9, 3.6)
    last = len(report.rounds) - 1
    for series in reversed(report.series):
        is_worst = series.device_id == report.worst_device
        xs = [*(position for position, _ in series.points), last + 0.6]
        ys = [*(value for _, value in series.points), series.points[-1][1]]
        axes.step(
            xs,
            ys,
            where="post",
            marker="o",
            markersize=5,
            markevery=range(len(series.points)),
            color=BLUE if is_worst else GREY,
            linewidth=2.4 if is_worst else 1.2,
            zorder=3 if is_worst else 2,
        )
    axes.plot([], [], color=BLUE, linewidth=2.4, label=f"costliest device: {report.worst_device}")
    if len(report.series) > 1:
        shown = (
            "other devices" if len(report.series) == len(report.devices) else f"next {len(report.series) - 1} devices"
        )
        axes.plot([], [], color=GREY, linewidth=1.2, label=shown)
    if report.budget_epsilon is not None and report.budget_delta == report.target_delta:
        axes.axhline(report.budget_epsilon, color=RED, linestyle=(0, (5, 3)), linewidth=1.6)
        axes.plot(
            [], [], color=RED, linestyle=(0, (5, 3)), linewidth=1.6, label=f"budget ε = {report.budget_epsilon:g}"
        )
    every = max(1, math.ceil(len(report.rounds) / 20))
    ticks = range(0, len(report.rounds), every)
    is_single = len({one.run_id for one in report.rounds}) == 1
    axes.set_xticks(list(ticks), [str(report.rounds[i].server_round if is_single else i + 1) for i in ticks])
    axes.set_xlim(-0.4, last + 0.6)
    axes.set_ylim(0, 1.1 * max(report.epsilon_max, report.budget_epsilon or 0.0))
    axes.set(
        xlabel="after round" if is_single else "after the round, counted over all runs",
        ylabel=f"ε at δ = {probability(report.target_delta)}",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)
    return _svg(figure)


def _curve(report: AuditReport) -> bytes:
    figure, axes = _figure(9, 2.8)
    points = [(delta, value) for delta, value in report.curve if math.isfinite(value)]
    axes.plot([d for d, _ in points], [v for _, v in points], color=BLUE, linewidth=2.2, marker="o", markersize=4)
    axes.plot([report.target_delta], [report.epsilon_max], "o", color=ORANGE, markersize=9, zorder=3)
    axes.annotate(
        f"reported: ε = {report.epsilon_max:.3g} at δ = {probability(report.target_delta)}",
        (report.target_delta, report.epsilon_max),
        xytext=(10, 10),
        textcoords="offset points",
    )
    axes.set_xscale("log")
    axes.set_ylim(0, max(value for _, value in points) * 1.25)
    axes.set(xlabel="δ, the probability that the promise does not hold", ylabel="ε")
    return _svg(figure)


def _groups(groups: Sequence[GroupChange]) -> bytes:
    figure, axes = _figure(9, 1.2 + 0.34 * len(groups))
    for place, group in enumerate(reversed(groups)):
        reach = [[0.0], [0.0]]
        if group.low is not None and group.high is not None:
            reach = [[group.change - group.low], [group.high - group.change]]
        colour = ORANGE if group.is_worse else BLUE
        axes.errorbar([group.change], [place], xerr=reach, fmt="s" if group.is_worse else "o", color=colour, capsize=4)
    axes.axvline(0, color=GREY, linestyle=(0, (5, 3)), linewidth=1.4)
    # A label is anybody's text: no dollar in it begins a formula.
    names = [f"{group.name} ({group.examples})".replace("$", r"\$") for group in reversed(groups)]
    axes.set_yticks(range(len(groups)), names)
    axes.set_ylim(-0.6, len(groups) - 0.4)
    axes.set(xlabel="change of the held-out loss, nats (95% interval)")
    return _svg(figure)


def _membership(result: MembershipResult) -> bytes:
    figure, (roc, scores) = _figure(9, 3.5, columns=2)
    floor = 0.5 / max(result.members, result.non_members)
    roc.plot([floor, 1], [floor, 1], color=SOFT, linestyle="--", linewidth=1.2, label="guessing")
    xs, ys = zip(*((max(x, floor), max(y, floor)) for x, y in result.roc), strict=True)
    roc.plot(xs, ys, color=BLUE, linewidth=2.2, label="calibrated attack", drawstyle="steps-post")
    for point, marker in zip(result.calibrated.points, ("o", "s"), strict=True):
        low, high = point.true_positive_interval
        middle = max(point.true_positive_rate, floor)
        bars = [[middle - max(low, floor)], [high - middle]]
        roc.errorbar([point.target_fpr], [middle], yerr=bars, fmt=marker, color=ORANGE, capsize=4, zorder=3)
    roc.set(
        xscale="log", yscale="log", xlabel="false alarms", ylabel="members found", xlim=(floor, 1), ylim=(floor, 1.1)
    )
    roc.legend(loc="lower right")
    edges = result.bin_edges
    for counts, total, colour, name, style in (
        (result.non_member_counts, result.non_members, ORANGE, "not trained on", "--"),
        (result.member_counts, result.members, BLUE, "trained on", "-"),
    ):
        heights = [count / total for count in counts]
        scores.stairs(heights, edges, color=colour, linewidth=1.8, linestyle=style, label=name)
        scores.stairs(heights, edges, color=colour, alpha=0.15, fill=True)
    scores.set_ylim(0, 1.3 * scores.get_ylim()[1])
    scores.set(xlabel="fall of the loss from base to release, times the root of the tokens", ylabel="share of examples")
    scores.legend(loc="upper right")
    return _svg(figure)
