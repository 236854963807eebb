"""How the noise was made: who is trusted with what, the mechanism and its parameters, the sampling as executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Figure, Paragraph, Section, Table, number, probability
from privacy.report.statements import TRUST, USERS_TRUST_EACH_OTHER, USERS_TRUST_THE_SERVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.report.schema import AuditReport


def trust_section(report: AuditReport) -> Section:
    """Threats and trust; the user level trusts the server with more than the example level does."""
    trust = list(TRUST)
    if report.users is not None and report.users.trusts_server:
        trust.append(USERS_TRUST_THE_SERVER)
    if report.users is not None and report.users.shares:
        trust.append(USERS_TRUST_EACH_OTHER)
    return Section("Who must be trusted with what", (Bullets(tuple(trust)),))


def mechanism_section(report: AuditReport) -> Section:
    """The mechanism of the example level, with its parameters."""
    rows = [
        ("privacy unit", "one training example of one device"),
        ("neighbouring relation", "one example added or removed"),
        ("mechanism", "DP-SGD on the device: Poisson sampling, clipping per example, Gaussian noise"),
        ("clipping norm", _span([device.largest_clipping_norm for device in report.devices])),
        ("noise multiplier (noise / clipping norm)", _span([d.smallest_noise_multiplier for d in report.devices])),
        ("sampling probability per step", _span([d.largest_sampling_probability for d in report.devices])),
        ("noisy steps per device", _span([float(device.steps) for device in report.devices], digits=0)),
        ("δ", probability(report.target_delta)),
        ("accountant", report.accountant),
        *((name, str(value)) for name, value in sorted(report.run.settings.items())),
    ]
    return Section(
        "Mechanism and parameters",
        (
            Paragraph(
                "In every step a device draws a random subset of its examples, limits the influence of each one to the "
                "clipping norm, sums, and adds Gaussian noise to every trained weight. Only then does the optimizer "
                "step."
            ),
            Table(("parameter", "value"), tuple(rows), is_text=True),
        ),
    )


def sampling_section(report: AuditReport) -> Section:
    """Which examples and devices were drawn, and what that is worth."""
    counts = report.participation_counts
    return Section(
        "Sampling as executed",
        (
            Paragraph(
                "Each example entered each step independently with the stated probability (Poisson sampling, exact; "
                "steps that drew nothing added noise all the same). Server sampling gives no amplification: the "
                "server knows whom it asked, so against the server that choice hides nothing."
            ),
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
