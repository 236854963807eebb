"""What was spent: per device, per round, over δ, and by the model's users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.base import base_blocks
from privacy.report.blocks import Figure, Paragraph, Section, Table, number, probability
from privacy.report.users import users_blocks
from privacy.second_opinions import PRV_ERROR

if TYPE_CHECKING:
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport

_SHOWN_DEVICES = 60


def spending_section(report: AuditReport) -> Section:
    """ε by device, by round and over δ; then what users were charged."""
    return Section(
        "Privacy spent",
        (
            *(_per_example(report) if report.speaks_of_examples else (_recomputed(report),)),
            *(() if report.users is None else users_blocks(report.users)),
            *_opinions(report),
            *base_blocks(report),
        ),
    )


_WHOSE = {"example": "costliest device, per example", "user": "costliest user"}


def _opinions(report: AuditReport) -> tuple[Block, ...]:
    if not report.opinions:
        return ()
    return (
        Table(
            ("the same by other accountants", "reported (PLD)", "Rényi DP", "PRV"),
            tuple(
                (_WHOSE[one.privacy_unit], number(one.pld), number(one.rdp), number(one.prv)) for one in report.opinions
            ),
            caption="Rényi DP bounds the reported figure from above by another proof; PRV is another program, and may "
            f"differ by {2 * PRV_ERROR:g}. n/a: it cannot tell at such an ε.",
        ),
    )


def _recomputed(report: AuditReport) -> Paragraph:
    return Paragraph(f"Every figure is recomputed from the {report.event_count} ledger events.")


def _per_example(report: AuditReport) -> tuple[Block, ...]:
    shown = sorted(report.devices, key=lambda device: -device.epsilon)[:_SHOWN_DEVICES]
    left_out = len(report.devices) - len(shown)
    return (
        Paragraph(
            "Each device pays for itself: its rounds add up, different devices do not, because they hold different "
            f"examples. The costliest device is {report.worst_device or 'none'} with "
            f"ε = {number(report.epsilon_max)}. Every figure is recomputed from the {report.event_count} ledger "
            f"events, by {report.accountant}."
        ),
        Figure(
            "rounds",
            "ε of each device after each round. Flat where a device sat a round out. Only the total counts.",
            "Line chart of ε over rounds, a line per device.",
        ),
        Table(
            ("device", "ε in total", "rounds", "steps", "noise multiplier", "sampling probability"),
            tuple(
                (
                    device.device_id,
                    number(device.epsilon),
                    str(device.participations),
                    str(device.steps),
                    number(device.smallest_noise_multiplier),
                    number(device.largest_sampling_probability, 4),
                )
                for device in shown
            ),
            caption="Per device, costliest first"
            + (f" ({left_out} cheaper ones in report.json)." if left_out else "."),
        ),
        Table(
            ("round", "devices", "ε of this round alone (largest)", "ε so far (largest)"),
            tuple(
                (
                    _round_name(report, index),
                    str(one.participants),
                    number(one.epsilon_alone),
                    number(one.epsilon_so_far),
                )
                for index, one in enumerate(report.rounds)
            ),
            caption="Per round. Rounds do not simply add: composing them together is tighter.",
        ),
        Figure(
            "curve",
            "The same guarantee at other choices of δ, for the costliest device.",
            "Line chart of ε over δ on a logarithmic axis.",
        ),
        Table(
            ("δ", "ε"),
            tuple((probability(delta), number(value)) for delta, value in report.curve),
            caption="ε(δ) of the costliest device.",
        ),
    )


def _round_name(report: AuditReport, index: int) -> str:
    one = report.rounds[index]
    is_single = len({other.run_id for other in report.rounds}) == 1
    void = " (void)" if one.run_id == report.run.run_id and one.server_round in report.run.void_rounds else ""
    return (f"{one.server_round}" if is_single else f"{one.run_id} / {one.server_round}") + void
