"""The base in a report: what the same people paid when other models on it are counted as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.blocks import Paragraph, Table, number

if TYPE_CHECKING:
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport, BaseCost

_NAMED = 5


def base_blocks(report: AuditReport) -> tuple[Block, ...]:
    """What other models on the base cost the same people; nothing where there are none."""
    base = report.base
    if base is None:
        return ()
    user_budget = None if report.users is None else report.users.budget_epsilon
    bills = (
        ("costliest device of this model", base.epsilon, report.budget_epsilon),
        ("costliest user of this model", base.user_epsilon, user_budget),
    )
    return (
        Paragraph(
            f"Other models were trained on the same base{_kin(base)}. A device is known again by its pseudonym and "
            "pays for its examples over all of them. A user is not, and may be one of theirs: so each is charged, "
            "besides its own bill, the costliest of every other model whose users may be the same people. The budget "
            "must cover that as well."
        ),
        Table(
            ("with the other models", "ε", "budget"),
            tuple(
                (what, number(spent), "none set" if budget is None else number(budget))
                for what, spent, budget in bills
                if spent is not None
            ),
            is_text=True,
        ),
        Table(
            ("model", "events", "head of its ledger", "runs on the base", "users"),
            tuple(
                (
                    other.model,
                    str(other.events),
                    other.ledger_head,
                    ", ".join(other.runs),
                    "may be the same people" if other.counts_users else "others, the operator vouches",
                )
                for other in base.others
            ),
            caption="The other ledgers; ledger-of-MODEL.jsonl beside this report.",
            is_text=True,
        ),
    )


def told_on_base(report: AuditReport) -> str:
    """The base's bill in half a sentence; empty where there is none."""
    base = report.base
    if base is None:
        return ""
    bills = ((base.epsilon, "per example"), (base.user_epsilon, "per user"))
    spent = [f"ε = {number(value)} {unit}" for value, unit in bills if value is not None]
    return f"{' and '.join(spent)} with what other models on its base ({names_of(base)}) cost" if spent else ""


def names_of(base: BaseCost) -> str:
    """The other models by name; of many the first few."""
    named = [other.model for other in base.others]
    return ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")


def _kin(base: BaseCost) -> str:
    return "" if len(base.bases) == 1 else ", or on one that it was made from or that was made from it"
