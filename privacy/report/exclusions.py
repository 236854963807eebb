"""What the guarantee does not cover, and what else could weaken it: noise, rounding, dropouts, aborted rounds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from privacy.report import statements as say
from privacy.report.blocks import Bullets, Paragraph, Section, Table, probability

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport


def exclusions_section(report: AuditReport) -> Section:
    """What ε does not cover, and all that left the devices."""
    items = [say.ONE_EXAMPLE, say.REPEATED_TEXT] if report.speaks_of_examples else []
    if report.users is not None:
        items.append(say.ONE_DEVICE)
    if report.leaves_the_device:
        items.append(say.COUNT_IS_PUBLIC if _tells_counts(report) else say.COUNT_IS_WITHHELD)
    return Section(
        "What is not covered, and what left the devices",
        (Bullets((*items, say.NOT_COVERED)), *_deltas(report), *_left_the_device(report)),
    )


def _tells_counts(report: AuditReport) -> bool:
    """Whether devices of the run told how many examples they have; runs of before that could be said did."""
    return report.run.settings.get("example-counts", "told") == "told" and not report.run.secure_sum


def _deltas(report: AuditReport) -> tuple[Block, ...]:
    found = []
    if report.speaks_of_examples:
        found.append(
            f"δ = {probability(report.target_delta)} should be well below one over the number of examples on a "
            "device: a careless mechanism could publish one example in full with that probability."
        )
    if report.users is not None:
        found.append(
            f"Per user, δ = {probability(report.users.target_delta)} should be well below one over the number of "
            "users: a careless mechanism could publish one user's whole contribution with that probability."
        )
    return tuple(map(Paragraph, found))


def numerics_section(report: AuditReport) -> Section:
    """Random numbers, floating point, dropout and aborted rounds."""
    void = len(report.run.void_rounds)
    return Section(
        "Random numbers, floating point, dropout and aborted rounds",
        (
            Bullets(tuple(_numerics(report))),
            Paragraph(f"Rounds of this run that were void: {void}. What they cost is charged."),
        ),
    )


def _numerics(report: AuditReport) -> Iterator[say.Item]:
    users = report.users
    if report.speaks_of_examples:
        yield say.DROPOUT_PER_EXAMPLE
    if users is not None and users.trusts_server:
        yield say.DROPOUT_PER_USER
    if users is not None and users.shares:
        yield say.DROPOUT_IN_SHARES
    yield say.RANDOM_NUMBERS
    if report.speaks_of_examples or (users is not None and users.trusts_server):
        yield say.FLOATING_POINT
    if users is not None and users.shares:
        yield say.WHOLE_NUMBERS


def _what_was_sent(report: AuditReport) -> str:
    noisy = "adapter update, with its own noise," if report.speaks_of_examples else "adapter update, without own noise,"
    if not report.run.secure_sum:
        return noisy
    shares = " and its share of the noise" if report.users is not None and report.users.shares else ""
    return f"{noisy} rounded to whole numbers{shares}, under masks that only the sum of all is without,"


def _left_the_device(report: AuditReport) -> tuple[Block, ...]:
    tensors = report.run.update_tensors
    blocks: list[Block] = [
        Paragraph(
            f"In each round of this run a device sent the {_what_was_sent(report)} and these facts, and nothing else."
        ),
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
