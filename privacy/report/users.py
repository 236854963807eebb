"""The user level in a report: what the model's users were charged, and the section that says so."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from privacy.report.blocks import Paragraph, Table, number, probability
from privacy.report.schema import UserCost
from privacy.user_level import UserBills, user_epsilon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.budget import PrivacyBudget
    from privacy.event import PrivacyEvent
    from privacy.report.blocks import Block

_MECHANISMS = {
    "poisson_subsampled_gaussian": "noisy sum over a Poisson-sampled cohort",
    "gaussian_capped": "noisy sum over a fixed cohort, no credit for sampling",
    "banded_toeplitz_gaussian": "sums with noise correlated over rounds, no credit for sampling",
}


def user_cost(events: Sequence[PrivacyEvent], budget: PrivacyBudget | None) -> UserCost | None:
    """What the users of the one population in `events` were charged; None: nothing was per user.

    Raises:
        UnknownEventError: The events are of several populations, or cannot be accounted for.
    """
    own = tuple(event for event in events if event.privacy_unit == "user")
    if not own:
        return None
    bills = UserBills(own)
    delta = own[-1].target_delta if budget is None else budget.target_delta
    return UserCost(
        population=str(own[0].population),
        epsilon=bills.epsilon(target_delta=delta),
        epsilon_if_drawing_is_known=user_epsilon(own, target_delta=delta, is_drawing_secret=False),
        target_delta=delta,
        budget_epsilon=None if budget is None else budget.target_epsilon,
        rounds=len(own),
        mechanisms=tuple(sorted({event.mechanism for event in own})),
        noise_multipliers=(min(e.noise_multiplier for e in own), max(e.noise_multiplier for e in own)),
        clipping_norms=(min(e.clipping_norm for e in own), max(e.clipping_norm for e in own)),
        sampling_probabilities=(min(e.sampling_probability for e in own), max(e.sampling_probability for e in own)),
        contributions=(min(e.contributions for e in own), max(e.contributions for e in own)),
        participations=dict(sorted(Counter(bills.participations.values()).items())),
    )


def users_blocks(cost: UserCost) -> tuple[Block, ...]:
    """The user level in words and figures."""
    return (
        Paragraph(_claim(cost)),
        Paragraph(
            "The server is trusted with it: it sees each contribution, clips it, and adds the noise once to the "
            "sum. Missing contributions changed neither the noise nor the number that the sum was divided by. A "
            "user is a device: a person with several, or with a new home for the old one, counts several times."
        ),
        Table(
            ("what", "value"),
            (
                ("neighbouring relation", "all contributions of one user added or removed"),
                ("ε, for who sees releases only", number(cost.epsilon)),
                ("ε, for who knows who was drawn in each round", number(cost.epsilon_if_drawing_is_known)),
                ("δ", probability(cost.target_delta)),
                ("budget", "none set" if cost.budget_epsilon is None else number(cost.budget_epsilon)),
                ("mechanism", "; ".join(_MECHANISMS[name] for name in cost.mechanisms)),
                ("rounds charged", str(cost.rounds)),
                ("noise multiplier (noise in the sum / clipping norm)", _span(cost.noise_multipliers)),
                ("clipping norm of a contribution", _span(cost.clipping_norms)),
                ("sampling probability (1: no credit taken)", _span(cost.sampling_probabilities)),
                ("contributions in a round", _span(cost.contributions, digits=0)),
            ),
            is_text=True,
        ),
        Table(
            ("contributions of a user", "users"),
            tuple((str(times), str(users)) for times, users in cost.participations.items()),
            caption="How often users took part, in all runs.",
        ),
    )


def _claim(cost: UserCost) -> str:
    if math.isinf(cost.epsilon):
        return "Per user: no guarantee, at least one sum was released without noise."
    return (
        f"Per user: the releases of {cost.population} are ({number(cost.epsilon)}, {probability(cost.target_delta)})-"
        "differentially private for each user's whole contribution, over all runs so far. This is another unit than "
        "one example; the two are never added up."
    )


def _span(values: tuple[float, float], *, digits: int = 4) -> str:
    low, high = (number(value, digits) for value in values)
    return low if low == high else f"{low} to {high}"
