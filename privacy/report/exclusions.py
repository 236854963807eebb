"""What the guarantee does not cover, and what else could weaken it: noise, rounding, dropouts, aborted rounds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from privacy.report.blocks import Bullets, Paragraph, Section, Table, probability
from privacy.report.statements import EXCLUSIONS, NUMERICS

if TYPE_CHECKING:
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport


def exclusions_section(report: AuditReport) -> Section:
    """What ε does not cover, and all that left the devices."""
    return Section(
        "What is not covered, and what left the devices",
        (
            Bullets(EXCLUSIONS),
            Paragraph(
                f"δ = {probability(report.target_delta)} should be well below one over the number of examples on a "
                "device: a careless mechanism could publish one example in full with that probability."
            ),
            *_left_the_device(report),
        ),
    )


def numerics_section(report: AuditReport) -> Section:
    """Random numbers, floating point, dropout and aborted rounds."""
    void = len(report.run.void_rounds)
    return Section(
        "Random numbers, floating point, dropout and aborted rounds",
        (Bullets(NUMERICS), Paragraph(f"Rounds of this run that were void: {void}. What they cost is charged.")),
    )


def _left_the_device(report: AuditReport) -> tuple[Block, ...]:
    tensors = report.run.update_tensors
    blocks: list[Block] = [
        Paragraph("In each round a device sent the noisy adapter update and these facts, and nothing else."),
        Table(("field", "why it leaves"), report.leaves_the_device, is_text=True),
    ]
    if not tensors:
        return (*blocks, Paragraph("The shapes of the adapter update were not given to this report."))
    # Layers differ only by their number: one line stands for all of them.
    groups: dict[tuple[str, str, str], list[int]] = {}
    for tensor in tensors:
        shape = " x ".join(map(str, tensor.shape))
        groups.setdefault((_without_number(tensor.name), shape, tensor.dtype), []).append(tensor.num_bytes)
    blocks.append(
        Table(
            ("tensors of the update", "shape", "type", "how many", "bytes"),
            tuple(
                (name, shape, dtype, str(len(sizes)), f"{sum(sizes):,}")
                for (name, shape, dtype), sizes in groups.items()
            ),
            caption=f"The adapter update: {len(tensors)} tensors, {sum(t.num_bytes for t in tensors):,} bytes a reply.",
        )
    )
    return tuple(blocks)


def _without_number(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
