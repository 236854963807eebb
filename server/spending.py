"""What a model's training has cost so far, and what is left: by devices, by users, and by the base it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from privacy.accountant import epsilon_by_device
from privacy.budget import PrivacyBudget
from privacy.user_level import bills_with_others

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.event import PrivacyEvent
    from server.federation.recipe import Recipe
    from server.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The bill of the costliest device or user of one model, or of one base.

    Attributes:
        privacy_unit: One example of a device, or all of one user.
        whose: Which devices or users, in words.
        base_hash: The base, over all models on it; None: the model's own, over all its bases.
        devices: How many of them were charged.
        rounds: How many rounds of how many runs did, added up.
        epsilon, target_delta: What it comes to.
        budget_epsilon: What may be spent in all.
        left: What of it is left, at least 0.
    """

    privacy_unit: Literal["example", "user"]
    whose: str
    base_hash: str | None
    devices: int
    rounds: int
    epsilon: float
    target_delta: float
    budget_epsilon: float
    left: float


def spent_on(registry: Registry, model: str) -> tuple[Spent, ...]:
    """What was spent on a model: its devices, its users, then both for each base that it was trained on.

    A base's users are charged as the next run on it would find them: with those of the other models there, unless they
    are kept apart. Bases that were made from one another are one.

    Raises:
        RecipeError: The newest run's recipe does not parse.
        UnknownEventError: An event cannot be accounted for.
    """
    runs, events = registry.runs(model), registry.privacy_events(model=model)
    if not runs or not events:
        return ()
    from server.federation.recipe import Recipe  # noqa: PLC0415 - Flower, which no base needs

    recipe, users = Recipe.from_run_config(runs[0].recipe), registry.user_budget(model)
    examples = example_budget_of(registry, model, recipe)
    found = [
        _of_devices(events, examples, whose=f"devices of {model}"),
        _of_users([event for event in events if event.privacy_unit == "user"], users, model, f"users of {model}"),
    ]
    told: set[str] = set()
    for base_hash in dict.fromkeys(run.base_hash for run in runs):
        if base_hash in told:
            continue
        told |= (kin := set(registry.base_family(base_hash)))
        on_it, charged = (
            registry.privacy_events(base_hash=base_hash),
            registry.user_events_for(model, base_hash=base_hash),
        )
        others = sorted({str(event.population) for event in charged} - {model})
        base = f"base {base_hash[:8]}" + (f" and {len(kin) - 1} of its kin" if len(kin) > 1 else "")
        found += [
            _of_devices(on_it, examples, whose=f"{base}, all models", base_hash=base_hash),
            _of_users(charged, users, model, f"{base}: {', '.join([model, *others])}", base_hash=base_hash),
        ]
    return tuple(one for one in found if one is not None)


def example_budget_of(registry: Registry, model: str, recipe: Recipe) -> PrivacyBudget:
    """What each example of a model's devices may be charged in all: as set, or what a run of before that asks for."""
    asked = PrivacyBudget(target_epsilon=recipe.target_epsilon, target_delta=recipe.target_delta)
    return registry.example_budget(model) or asked


def _of_devices(
    events: Sequence[PrivacyEvent], budget: PrivacyBudget, *, whose: str, base_hash: str | None = None
) -> Spent | None:
    bills = epsilon_by_device(events, target_delta=budget.target_delta)
    if not bills:
        return None
    own = [event for event in events if event.device_id is not None]
    return _spent("example", whose, base_hash, devices=len(bills), events=own, epsilon=max(bills.values()), of=budget)


def _of_users(
    events: Sequence[PrivacyEvent],
    budget: PrivacyBudget | None,
    model: str,
    whose: str,
    *,
    base_hash: str | None = None,
) -> Spent | None:
    if not events or budget is None:
        return None
    bills = bills_with_others(events, population=model, target_delta=budget.target_delta)
    devices = {device for event in events for device in event.devices or ()}
    epsilon = bills.epsilon(target_delta=budget.target_delta)
    return _spent("user", whose, base_hash, devices=len(devices), events=events, epsilon=epsilon, of=budget)


def _spent(
    unit: Literal["example", "user"],
    whose: str,
    base_hash: str | None,
    *,
    devices: int,
    events: Sequence[PrivacyEvent],
    epsilon: float,
    of: PrivacyBudget,
) -> Spent:
    return Spent(
        privacy_unit=unit,
        whose=whose,
        base_hash=base_hash,
        devices=devices,
        rounds=len({(event.run_id, event.server_round) for event in events}),
        epsilon=epsilon,
        target_delta=of.target_delta,
        budget_epsilon=of.target_epsilon,
        left=max(0.0, of.target_epsilon - epsilon),
    )
