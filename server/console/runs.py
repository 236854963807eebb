"""Federated runs: how the loss fell, and what it cost in privacy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path, Query, Response

from server.api.services import ServicesDep  # noqa: TC001 - FastAPI reads annotations
from server.console.charts import round_chart
from server.console.responses import ConsoleRoute, render
from server.console.statement import number
from server.console.visits import VisitDep  # noqa: TC001 - the same
from server.federation.health import RoundHealth, RunHealth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.event import PrivacyEvent
    from server.registry import Registry, RunRecord

router = APIRouter(route_class=ConsoleRoute)
_PAGE: Final = 50
_IDENTIFIER: Final = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"
# One point takes a tenth of a second the first time it is asked for.
_MAX_POINTS: Final = 24


@router.get("/runs")
def runs(
    services: ServicesDep, visit: VisitDep, after: Annotated[str | None, Query(pattern=_IDENTIFIER)] = None
) -> Response:
    """Runs, the newest first."""
    found = services.registry.runs(after=after, limit=_PAGE + 1)
    shown = found[:_PAGE]
    return render("runs.html", visit=visit, runs=shown, next=shown[-1].run_id if len(found) > _PAGE else None)


@router.get("/runs/{run_id}")
def run(services: ServicesDep, visit: VisitDep, run_id: Annotated[str, Path(pattern=_IDENTIFIER)]) -> Response:
    """One run, round by round."""
    registry = services.registry
    record, rounds = registry.run(run_id), registry.rounds(run_id)
    losses = [(r.server_round, r.held_out_loss) for r in rounds if r.held_out_loss is not None]
    limit = number(record.recipe.get("target-epsilon"))
    delta = number(record.recipe.get("target-delta"))
    events = registry.privacy_events(run_id=run_id)
    spent = epsilon_by_round(events, target_delta=delta) if delta else []
    users, charged = registry.user_budget(record.model), user_spending(registry, record)
    by_users = user_epsilon_by_round(events, target_delta=users.target_delta) if users else []
    return render(
        "run.html",
        visit=visit,
        run=record,
        rounds=[(one, RoundHealth.of(one.facts)) for one in rounds[::-1]],
        health=RunHealth.of(rounds),
        recipe=sorted(record.recipe.items()),
        loss_chart=round_chart("Held-out loss after each round", losses, name="loss (nats)", from_zero=False),
        epsilon_chart=round_chart("ε spent after each round", spent, name="ε", from_zero=True, limit=limit),
        epsilon=spent[-1][1] if spent else None,
        limit=limit,
        user_chart=round_chart(
            "ε per user spent after each round",
            by_users,
            name="ε per user",
            from_zero=True,
            limit=users.target_epsilon if users else None,
        ),
        user_epsilon=by_users[-1][1] if by_users else None,
        user_budget=users,
        user_charged=charged,
        versions=[v for v in registry.versions(record.model) if v.run_id == run_id],
        findings=registry.audit_findings(run_id),
    )


def epsilon_by_round(events: Sequence[PrivacyEvent], *, target_delta: float) -> list[tuple[int, float]]:
    """ε of the device that was asked for most, after each round (of many rounds: some, and the last).

    Which device that is, is decided by steps times the square of sampling over noise, as exact numbers for a whole
    fleet take minutes; `lamella privacy report` has them.
    """
    from privacy.accountant import epsilon  # noqa: PLC0415 - takes a second to load

    events = [event for event in events if event.privacy_unit == "example"]
    rounds, chosen = _points(events)
    by_device: dict[str | None, list[PrivacyEvent]] = {}
    weights: dict[str | None, float] = {}
    curve = []
    for server_round in rounds:
        for event in (e for e in events if e.server_round == server_round):
            by_device.setdefault(event.device_id, []).append(event)
            weights[event.device_id] = weights.get(event.device_id, 0.0) + _weight(event)
        if server_round in chosen:
            heaviest = max(weights, key=lambda device: (weights[device], device or ""))
            curve.append((server_round, epsilon(by_device[heaviest], target_delta=target_delta)))
    return curve


def user_epsilon_by_round(events: Sequence[PrivacyEvent], *, target_delta: float) -> list[tuple[int, float]]:
    """ε of the costliest user of a run alone, after each round (of many rounds: some, and the last)."""
    from privacy.user_level import UserBills  # noqa: PLC0415 - takes a second to load

    events = sorted((e for e in events if e.privacy_unit == "user"), key=lambda event: event.server_round)
    _, chosen = _points(events)
    bills, curve = UserBills(), []
    for event in events:
        bills.add(event)
        if event.server_round in chosen:
            curve.append((event.server_round, bills.epsilon(target_delta=target_delta)))
    return curve


def user_spending(registry: Registry, run: RunRecord) -> float | None:
    """ε that the model's users were charged by now, with what other models on the run's base cost them."""
    from privacy.user_level import bills_with_others  # noqa: PLC0415 - the same

    budget, events = registry.user_budget(run.model), registry.user_events_for(run.model, base_hash=run.base_hash)
    if budget is None or not events:
        return None
    bills = bills_with_others(events, population=run.model, target_delta=budget.target_delta)
    return bills.epsilon(target_delta=budget.target_delta)


def _points(events: Sequence[PrivacyEvent]) -> tuple[list[int], set[int]]:
    """The rounds that were charged, and those of them that are drawn."""
    rounds = sorted({event.server_round for event in events})
    every = max(1, -(-len(rounds) // _MAX_POINTS))
    return rounds, set(rounds[::-1][::every])


def _weight(event: PrivacyEvent) -> float:
    if event.noise_multiplier <= 0:
        return float("inf")
    return event.steps * (event.sampling_probability / event.noise_multiplier) ** 2
