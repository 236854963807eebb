"""How the noise was made: who is trusted with what, the mechanism and its parameters, the sampling as executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report import statements as say
from privacy.report.blocks import Bullets, Figure, Paragraph, Section, Table, number, probability
from privacy.report.users import users_mechanism, users_sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport


def trust_section(report: AuditReport) -> Section:
    """Who is trusted with what, by who made the noise and who saw what before it."""
    users = report.users
    trust = [_device(report)]
    if report.speaks_of_examples:
        trust.append(say.SERVER_SEES_NOISE)
    if users is not None and users.trusts_server:
        trust.append(say.USERS_TRUST_THE_SERVER)
    if users is not None and users.shares:
        trust.append(say.USERS_TRUST_EACH_OTHER)
    if report.run.secure_sum:
        trust.append(say.SERVER_SEES_THE_SUM)
    trust.append(say.OTHERS_SEE_NOISY_UPDATES if report.speaks_of_examples else say.OTHERS_SEE_NOISY_SUMS)
    return Section("Who must be trusted with what", (Bullets((*trust, say.NETWORK)),))


def _device(report: AuditReport) -> say.Item:
    if report.speaks_of_examples:
        return say.DEVICE_ADDS_NOISE
    is_in_shares = report.users is not None and not report.users.trusts_server
    return say.DEVICE_ADDS_A_SHARE if is_in_shares else say.DEVICE_ADDS_NOTHING


def mechanism_section(report: AuditReport) -> Section:
    """The mechanisms, each with its parameters; then the recipe of the run."""
    blocks: list[Block] = []
    if report.speaks_of_examples:
        blocks += _per_example(report)
    if report.users is not None:
        blocks += users_mechanism(report.users, report.accountant)
    if report.run.settings:
        settings = tuple((name, str(value)) for name, value in sorted(report.run.settings.items()))
        blocks.append(Table(("setting", "value"), settings, caption="The recipe of the run.", is_text=True))
    return Section("Mechanism and parameters", tuple(blocks))


def _per_example(report: AuditReport) -> tuple[Block, ...]:
    rows = (
        ("privacy unit", "one training example of one device"),
        ("neighbouring relation", "one example added or removed"),
        ("mechanism", "DP-SGD on the device: Poisson sampling, clipping per example, Gaussian noise"),
        ("clipping norm", _span([device.largest_clipping_norm for device in report.devices])),
        ("noise multiplier (noise / clipping norm)", _span([d.smallest_noise_multiplier for d in report.devices])),
        ("sampling probability per step", _span([d.largest_sampling_probability for d in report.devices])),
        ("noisy steps per device", _span([float(device.steps) for device in report.devices], digits=0)),
        ("δ", probability(report.target_delta)),
        ("accountant", report.accountant),
    )
    return (
        Paragraph(
            "In every step a device draws a random subset of its examples, limits the influence of each one to the "
            "clipping norm, sums, and adds Gaussian noise to every trained weight. Only then does the optimizer step."
        ),
        Table(("parameter, per example", "value"), rows, is_text=True),
    )


def sampling_section(report: AuditReport) -> Section:
    """Which examples and devices were drawn, and what that is worth."""
    counts = report.participation_counts
    blocks: list[Block] = []
    if report.speaks_of_examples:
        blocks.append(
            Paragraph(
                "Each example entered each step independently with the stated probability (Poisson sampling, exact; "
                "steps that drew nothing added noise all the same). Server sampling gives no amplification: the "
                "server knows whom it asked, so against the server that choice hides nothing."
            )
        )
    if report.users is not None:
        blocks += users_sampling(report.users)
    return Section(
        "Sampling as executed",
        (
            *blocks,
            Figure("participation", "How often devices took part.", "Bar chart of participations per device."),
            Table(
                ("participations", "devices"),
                tuple((str(times), str(devices)) for times, devices in counts.items()),
                caption="Participation per device.",
            ),
        ),
    )


def _span(values: Sequence[float], digits: int = 3) -> str:
    if not values:
        return "n/a"
    low, high = number(min(values), digits), number(max(values), digits)
    return low if low == high else f"{low} to {high}"
