"""`lamella privacy ledger` and `budget`: the chain of events, what was spent, and what users may be charged."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.auditing import audited
from server.cli.console import Service, console, open_service, show_table
from server.cli.rollout_options import print_json
from server.errors import DatabaseError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.budget import PrivacyBudget
    from server.spending import Spent


class Unit(StrEnum):
    """Who a budget protects."""

    USER = "user"
    EXAMPLE = "example"


def ledger(
    model: Annotated[str, typer.Argument(help="The model; its runs share one ledger.")],
    out: Annotated[Path | None, typer.Option(help="Write the ledger there, as JSON lines.")] = None,
    head: Annotated[
        str, typer.Option(help="A head from before (a report's ledger_head): it must be in the chain.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Verify the chain of a model's privacy events, show what was spent and what is left, and export the events.

    Exits with 1 when anything was changed. ε is shown for the model's devices and users, and for each base that the
    model was trained on, over all models on it: fine-tuning one base under ten names is not free.
    """
    from privacy.chain import FIRST_HEAD, chained_lines
    from privacy.event import UNITS
    from privacy.promises import runs_without_noise
    from server.spending import spent_on

    service = open_service()
    events = service.registry.privacy_events(model=model)
    heads = (FIRST_HEAD, *service.registry.verify_privacy_chain(model))
    if head and head not in heads:
        raise DatabaseError(
            f"The ledger of {model!r} never had the head {head[:12]}...: events were cut off, or all of it was made "
            "anew. Release nothing; compare it with the ledger that came with the head."
        )
    if out is not None:
        out.write_bytes(chained_lines(events)[0])
    since = len(heads) - 1 - heads.index(head) if head else None
    spent = spent_on(service.registry, model)
    unprotected = {unit: runs_without_noise(events, unit) for unit in UNITS}
    if as_json:
        facts = {"model": model, "events": len(heads) - 1, "head": heads[-1], "events_since_head": since}
        print_json({**facts, "spent": spent, "runs_without_noise": unprotected})
        return
    told = f", {since} of them since the given head" if head else ""
    console.print(f"{len(heads) - 1} events{told}; the chain holds. Head: {heads[-1]}", soft_wrap=True)
    if spent:
        _show_spent(spent)
    for unit, runs in unprotected.items():
        if runs:
            console.print(f"Nothing is promised per {unit}: no noise for it in {', '.join(runs)}.", soft_wrap=True)


def budget(
    model: Annotated[str, typer.Argument(help="The model whose devices are meant.")],
    per: Annotated[Unit, typer.Option(help="Whose budget: whole users', or each example's.")] = Unit.USER,
    epsilon: Annotated[
        float | None, typer.Option(help="Set it: what all runs together may charge one of them.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Set it: δ, far below one over the number of users, or of a device's examples.")
    ] = None,
    apart: Annotated[
        bool | None,
        typer.Option(
            "--apart/--shared",
            help="Vouch that none of them is a user of another model on the same base; or take that back.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what a model's users, or each example, may be charged and have been, or set it; else the first run sets it.

    A run may ask for less, never for more. What the users of another model on the same base were charged counts too, as
    they may be the same people: nobody can tell from their pseudonyms.
    """
    service = open_service()
    if per is Unit.EXAMPLE:
        _example_budget(service, model, epsilon, delta, is_apart=apart, as_json=as_json)
        return
    limit = service.registry.user_budget(model)
    if epsilon is not None or delta is not None or apart is not None:
        limit = _changed(limit, epsilon, delta)
        told = f"{model}: {limit.target_epsilon:g} at {limit.target_delta:g}"
        if apart is not None:
            told += ", apart from other models" if apart else ", shared with other models"
        with audited(service.registry, "privacy.budget", told):
            service.registry.set_user_budget(model, limit, is_apart=apart)
    facts = _facts(service, model, limit)
    if as_json:
        console.print_json(json.dumps(facts))
    elif limit is None:
        console.print(f"No budget per user is set for {model}; the first run with privacy-mode user or both sets it.")
    else:
        console.print(
            f"Users of {model}: ε {facts['epsilon']:.3f} of {limit.target_epsilon:g} spent "
            f"at δ = {limit.target_delta:g}, in {facts['rounds']} rounds "
            f"(for who knows who was drawn: {facts['epsilon_if_drawing_is_known']:.3f}).",
            soft_wrap=True,
        )
        counted = (
            "do not count: its users are kept apart" if facts["is_apart"] else "count too: `lamella privacy ledger`"
        )
        console.print(f"Other models on its base {counted}.", soft_wrap=True)


def _example_budget(
    service: Service, model: str, epsilon: float | None, delta: float | None, *, is_apart: bool | None, as_json: bool
) -> None:
    from privacy.accountant import epsilon_by_device
    from privacy.promises import promised

    if is_apart is not None:
        raise RecipeError("--apart and --shared are about users: a device is known again by its pseudonym.")
    limit = service.registry.example_budget(model)
    if epsilon is not None or delta is not None:
        limit = _changed(limit, epsilon, delta)
        told = f"{model}, per example: {limit.target_epsilon:g} at {limit.target_delta:g}"
        with audited(service.registry, "privacy.budget", told):
            service.registry.set_example_budget(model, limit)
    events = promised(service.registry.privacy_events(model=model), "example")
    spent = {} if limit is None else epsilon_by_device(events, target_delta=limit.target_delta)
    facts = {
        "model": model,
        "budget_epsilon": None if limit is None else limit.target_epsilon,
        "delta": None if limit is None else limit.target_delta,
        "devices": len(spent),
        "epsilon": None if limit is None else max(spent.values(), default=0.0),
    }
    if as_json:
        print_json(facts)
    elif limit is None:
        console.print(f"No budget per example is set for {model}; its next run sets it.")
    else:
        console.print(
            f"Each example of the devices of {model}: ε {facts['epsilon']:.3f} of {limit.target_epsilon:g} spent at "
            f"δ = {limit.target_delta:g}, by the costliest of {len(spent)} devices.",
            soft_wrap=True,
        )


def _show_spent(spent: Sequence[Spent]) -> None:
    show_table(
        "What was spent, of the costliest",
        ("per", "whose", "devices", "rounds", "ε spent", "of", "left", "at δ"),
        [
            (
                one.privacy_unit,
                one.whose,
                one.devices,
                one.rounds,
                f"{one.epsilon:.3f}",
                f"{one.budget_epsilon:g}",
                f"{one.left:.3f}",
                f"{one.target_delta:g}",
            )
            for one in spent
        ],
    )


def _changed(limit: PrivacyBudget | None, epsilon: float | None, delta: float | None) -> PrivacyBudget:
    from privacy.budget import PrivacyBudget

    epsilon = epsilon if epsilon is not None or limit is None else limit.target_epsilon
    delta = delta if delta is not None or limit is None else limit.target_delta
    if epsilon is None or delta is None:
        raise RecipeError("There is no budget yet: give both --epsilon and --delta.")
    try:
        return PrivacyBudget(target_epsilon=epsilon, target_delta=delta)
    except ValueError as error:
        raise RecipeError(f"{error}.") from None


def _facts(service: Service, model: str, limit: PrivacyBudget | None) -> dict[str, float | str | bool | None]:
    from privacy.user_level import user_epsilon

    events = service.registry.privacy_events(model=model, privacy_unit="user")
    delta = None if limit is None else limit.target_delta
    return {
        "model": model,
        "budget_epsilon": None if limit is None else limit.target_epsilon,
        "delta": delta,
        "is_apart": service.registry.is_kept_apart(model),
        "rounds": len(events),
        "epsilon": None if delta is None else user_epsilon(events, target_delta=delta),
        "epsilon_if_drawing_is_known": None
        if delta is None
        else user_epsilon(events, target_delta=delta, is_drawing_secret=False),
    }
