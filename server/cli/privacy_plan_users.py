"""`lamella privacy plan-users`: what whole users cost where the server adds the noise, before anything runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.console import console, show_json
from server.cli.privacy_plan import print_rounds
from server.cli.rollout_options import AsJson
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from privacy.user_budget import UserPlan


def plan_users(
    rounds: Annotated[int, typer.Option(help="Rounds in all (`num-server-rounds`).", min=1, max=10_000)],
    cohort: Annotated[int, typer.Option(help="Devices in a round, as expected (`cohort`).", min=1)],
    participations: Annotated[
        int, typer.Option(help="Contributions of one device at most (`max-participations`); 0: every round.", min=0)
    ] = 0,
    min_separation: Annotated[
        int, typer.Option(help="Rounds from one of them to the next, at least (`min-separation`).", min=1)
    ] = 1,
    sampling_probability: Annotated[
        float, typer.Option(help="Of `cohort-sampling poisson`; 0: cohorts of fixed size.", min=0, max=1)
    ] = 0.0,
    target_epsilon: Annotated[
        float | None, typer.Option(help="The users' budget (`user-target-epsilon`).", min=0, show_default=False)
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise in the sum over the clipping norm.", min=0, show_default=False)
    ] = None,
    target_delta: Annotated[float, typer.Option(help="Its δ (`user-target-delta`).")] = 1e-6,
    picture: Annotated[Path | None, typer.Option(help="Draw ε over the rounds: a file .svg or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a run's privacy per user: the noise for a budget, or the cost of a noise, and what to change.

    For whoever sees releases; where cohorts are Poisson-sampled, for whoever does not learn who was drawn. Noise
    that is correlated over rounds (`noise-bands`) costs what independent noise does, and leaves less in the model.
    """
    from privacy.errors import PrivacyError
    from privacy.user_budget import UserPlan, epsilon_by_round

    if target_epsilon is None and noise_multiplier is None:
        raise ConfigurationError("Give --target-epsilon, --noise-multiplier or both.")
    plan = UserPlan(
        rounds=rounds,
        sampling_probability=sampling_probability or None,
        max_participations=participations or rounds,
        min_separation=min_separation,
    )
    try:
        noise = _least_noise(plan, target_epsilon, target_delta) if noise_multiplier is None else noise_multiplier
        after = epsilon_by_round(plan, noise_multiplier=noise, target_delta=target_delta)
        is_over = target_epsilon is not None and after[-1] > target_epsilon
        changes = _alternatives(plan, noise, target_epsilon or 0.0, target_delta) if is_over else None
    except (PrivacyError, ValueError) as error:
        raise ConfigurationError(f"There is no such plan: {error}.") from None
    if picture is not None:
        _draw(picture, after, noise=noise, target_epsilon=target_epsilon, target_delta=target_delta, plan=plan)
    if as_json:
        show_json(
            {
                "noise_multiplier": noise,
                "target_delta": target_delta,
                "target_epsilon": target_epsilon,
                "epsilon": _json(after[-1]),
                "epsilon_after": [_json(value) for value in after],
                "fits": None if target_epsilon is None else not is_over,
                "noise_in_mean": noise / cohort,
                "alternatives": changes,
            }
        )
        return
    console.print(f"Noise multiplier [bold]{noise:g}[/], {_drawn(plan)}, δ = {target_delta:g}")
    print_rounds(after, target_epsilon)
    console.print(f"Noise in each value of the mean of {cohort} contributions: {noise / cohort:.4g} clipping norms")
    if changes is not None:
        _print_changes(changes, plan, noise)
    if picture is not None:
        console.print(f"Picture: {picture}", soft_wrap=True)


def _drawn(plan: UserPlan) -> str:
    if plan.sampling_probability is not None:
        return f"each device drawn with probability {plan.sampling_probability:g}"
    times = plan.participations_after(0)
    return f"cohorts of fixed size, {times} contribution{'s' if times > 1 else ''} of a device at most"


def _least_noise(plan: UserPlan, target_epsilon: float | None, target_delta: float) -> float:
    from privacy.budget import PrivacyBudget
    from privacy.user_budget import user_noise_for
    from privacy.user_level import UserBills

    budget = PrivacyBudget(target_epsilon=target_epsilon or 0.0, target_delta=target_delta)
    return user_noise_for(budget, plan, UserBills())


def _alternatives(
    plan: UserPlan, noise: float, target_epsilon: float, target_delta: float
) -> dict[str, float | int | None]:
    """Single changes with which the plan fits; None where that change alone cannot do it, or changes nothing."""
    from privacy.errors import CalibrationError
    from privacy.user_budget import epsilon_by_round

    try:
        enough = _least_noise(plan, target_epsilon, target_delta)
    except CalibrationError:
        enough = None
    most = replace(plan, max_participations=plan.rounds, min_separation=1)
    after = epsilon_by_round(most, noise_multiplier=noise, target_delta=target_delta)
    fitting = sum(value <= target_epsilon for value in after)
    is_poisson = plan.sampling_probability is not None
    return {
        "noise_multiplier": enough,
        "rounds": (fitting if is_poisson else min(fitting * plan.min_separation, plan.rounds)) or None,
        "participations": None if is_poisson else fitting or None,
    }


def _print_changes(changes: dict[str, float | int | None], plan: UserPlan, noise: float) -> None:
    console.print("Any one of these alone makes it fit:")
    said = (
        (changes["noise_multiplier"], f"more noise: {changes['noise_multiplier']}, not {noise:g}"),
        (changes["rounds"], f"fewer rounds: {changes['rounds']}, not {plan.rounds}"),
        (
            changes["participations"],
            f"fewer contributions of a device: {changes['participations']}, not {plan.participations_after(0)}",
        ),
    )
    for value, text in said:
        if value is not None:
            console.print(f"  - {text}")
    if all(value is None for value, _ in said):
        console.print("  (none: the budget is too small for any of them alone)")


def _draw(picture: Path, after: tuple[float, ...], *, plan: UserPlan, noise: float, **budget: Any) -> None:  # noqa: ANN401 - the picture's own
    from server.cli.privacy_picture import EpsilonPicture, draw_epsilon

    title = f"Per user: noise multiplier {noise:g}, {_drawn(plan)}"
    draw_epsilon(EpsilonPicture(epsilon_after=after, rounds="rounds", title=title, **budget), picture)


def _json(value: float) -> float | str:
    """A number, or what JSON has no number for."""
    return value if math.isfinite(value) else "infinity"
