"""The membership attack as it was measured, in words and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.audits.attack_figures import CLAIMED_AT_FPR
from privacy.audits.membership import CLAIMED_RATE, MEMBERS_NEEDED
from privacy.report.blocks import Figure, Paragraph, Table, number

if TYPE_CHECKING:
    from privacy.audits.attack_figures import AttackFigures
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport


def membership_blocks(report: AuditReport) -> tuple[Block, ...]:
    """The attack with its sample, power, control and intervals; or that there was none."""
    result = report.membership
    if result is None:
        return (Paragraph("Membership inference was not measured: the guarantee rests on the proof alone."),)
    control = "No control was run: a run without noise that the attack must catch. A pass needs one."
    if result.control is not None:
        caught = "caught it" if result.is_control_caught else "missed it, so its silence here proves nothing"
        control = (
            f"Control, the same run without noise: the attack {caught} "
            f"({result.control.points[0].true_positive_rate:.2%} found, AUC {number(result.control.auc)})."
        )
    likelihood = () if result.likelihood is None else _attack_rows("likelihood ratio (LiRA)", result.likelihood)
    rows = (*_attack_rows("calibrated", result.calibrated), *likelihood, *_attack_rows("raw loss", result.raw_loss))
    return (
        Paragraph(f"Membership inference. Verdict: {result.verdict}. {result.reason}."),
        Paragraph(
            "The attack scores an example by how much its loss fell from the base to the release, times the root of "
            "its tokens (a mean over few tokens moves far by chance), and calls the highest scores members. "
            f"It saw {result.members:,} examples that were trained on and {result.non_members:,} that were not. "
            f"The claim “fewer than {CLAIMED_RATE:.1%} can be traced” "
            f"means: at {CLAIMED_AT_FPR:.1%} false alarms, the 95% upper bound of the share found is below "
            f"{CLAIMED_RATE:.1%}. Here that bound is {result.upper_bound:.2%}."
        ),
        Paragraph(
            f"Power: with {result.members:,} members the claim can be proved in {result.power:.0%} of cases when "
            f"the attack truly does no better than guessing. At least {MEMBERS_NEEDED} members are needed to "
            f"prove it at all. {control}"
        ),
        Table(
            ("attack", "measure", "value", "95% interval", "false alarms seen (95% interval)"),
            rows,
            caption="Plain loss is shown for comparison: it looks harmless even where models leak.",
        ),
        Figure(
            "membership",
            "Left: the attack's hits over its false alarms; on the dashed line it is guessing. "
            "Right: scores of members and non-members; the further apart, the easier the attack; the outermost "
            "bins hold all beyond.",
            "Receiver operating characteristic and score histogram.",
        ),
    )


def _attack_rows(name: str, figures: AttackFigures) -> tuple[tuple[str, ...], ...]:
    low, high = figures.auc_interval
    rows = [(name, "AUC (0.5 is guessing)", number(figures.auc), f"{number(low)} to {number(high)}", "n/a")]
    for point in figures.points:
        low, high = point.true_positive_interval
        false_low, false_high = point.false_positive_interval
        rows.append(
            (
                name,
                f"found at {point.target_fpr:.1%} false alarms",
                f"{point.true_positive_rate:.2%} ({point.hits})",
                f"{low:.2%} to {high:.2%}",
                f"{point.false_positives} ({false_low:.2%} to {false_high:.2%})",
            )
        )
    return tuple(rows)
