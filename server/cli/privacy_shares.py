"""`lamella privacy shares`: what whole users cost where the devices of a secure sum make the noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.console import console, show_json
from server.cli.rollout_options import AsJson
from server.errors import ConfigurationError

if TYPE_CHECKING:
    from privacy.noise_shares import NoiseShares, ShareRule


def shares(
    cohort: Annotated[int, typer.Option(help="Devices asked in a round (`cohort`).", min=3)],
    participations: Annotated[int, typer.Option(help="Rounds of one device (`max-participations`).", min=1)],
    target_epsilon: Annotated[
        float | None, typer.Option(help="The users' budget (`user-target-epsilon`).", min=0, show_default=False)
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise over the clipping norm, instead.", min=0, show_default=False)
    ] = None,
    target_delta: Annotated[float, typer.Option(help="Its δ (`user-target-delta`).")] = 1e-6,
    dropouts: Annotated[float, typer.Option(help="`secure-dropouts`.", min=0, max=0.49)] = 0.2,
    colluding: Annotated[float, typer.Option(help="`secure-colluding`.", min=0, max=0.49)] = 0.0,
    parameters: Annotated[int, typer.Option(help="Values of the adapter.", min=1)] = 2_400_000,
    as_json: AsJson = False,
) -> None:
    """Plan noise that devices make in shares: how much a budget buys, in what levels, and what a device must add.

    ε is by RDP, which is what reports state for such sums; beside it stands what the server's own Gaussian noise of the
    same size would cost, by PLD.
    """
    from privacy.accountant import epsilon_of_steps
    from privacy.errors import PrivacyError
    from privacy.noise_shares import ShareRule

    if (target_epsilon is None) == (noise_multiplier is None):
        raise ConfigurationError("Give --target-epsilon or --noise-multiplier: one of the two.")
    rule = ShareRule(cohort=cohort, dropouts=dropouts, colluding=colluding, length=parameters)
    try:
        if noise_multiplier is None:
            noise_multiplier = _noise_for(rule, participations, target_epsilon or 0.0, target_delta)
        made = rule.shares(noise_multiplier)
        found = {
            "noise_multiplier": noise_multiplier,
            "epsilon": _epsilon(made, participations, target_delta),
            "epsilon_of_gaussian": epsilon_of_steps(
                noise_multiplier=noise_multiplier,
                sampling_probability=1.0,
                steps=participations,
                target_delta=target_delta,
            ),
            "noise_in_mean": noise_multiplier * math.sqrt(cohort / made.counted) / cohort,
            "fewest": made.fewest,
            "share_variance": made.share_variance,
            "shares": made.model_dump(),
        }
    except (PrivacyError, ValueError) as error:
        raise ConfigurationError(f"There is no such plan: {error}.") from None
    if as_json:
        show_json(found)
        return
    _print(found, made, target_delta=target_delta, participations=participations)


def _noise_for(rule: ShareRule, participations: int, target_epsilon: float, target_delta: float) -> float:
    from privacy.budget import PrivacyBudget
    from privacy.user_budget import UserPlan, user_noise_for
    from privacy.user_level import UserBills

    plan = UserPlan(
        rounds=participations,
        sampling_probability=None,
        max_participations=participations,
        min_separation=1,
        share_rule=rule,
    )
    return user_noise_for(PrivacyBudget(target_epsilon=target_epsilon, target_delta=target_delta), plan, UserBills())


def _epsilon(made: NoiseShares, participations: int, target_delta: float) -> float:
    from privacy.renyi import SkellamSums, epsilon_of_charges

    sums = SkellamSums(made.l2, made.l1, made.variance, participations)
    return epsilon_of_charges([sums], target_delta=target_delta)


def _print(found: dict[str, Any], made: NoiseShares, *, target_delta: float, participations: int) -> None:
    times = f"after {participations} participations"
    console.print(f"ε ≤ [bold]{found['epsilon']:.4f}[/] per user at δ = {target_delta:g} {times} (RDP)")
    console.print(
        f"  {found['epsilon_of_gaussian']:.4f} with Gaussian noise of the same size by a trusted server (PLD)"
    )
    console.print(
        f"Noise multiplier [bold]{found['noise_multiplier']:g}[/]: {made.counted} shares of {made.cohort} are counted "
        f"on; a sum of fewer than {made.fewest} stays masked and the round is void"
    )
    console.print(
        f"{made.levels} levels a clipping norm; a device adds variance {made.share_variance:.4g} to each of "
        f"{made.length} values"
    )
    console.print(f"Noise in each value of the mean, everybody there: {found['noise_in_mean']:.4g} clipping norms")
