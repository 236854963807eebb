"""The user level in a report: what the model's users were charged, and the section that says so."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from privacy.promises import promised
from privacy.renyi import RENYI_ACCOUNTANT, SkellamSums
from privacy.report.blocks import Paragraph, Table, number, probability
from privacy.report.schema import UserCost
from privacy.user_level import UserBills, user_epsilon

if TYPE_CHECKING:
    from collections.abc import Sequence

    from privacy.accountant import Group
    from privacy.budget import PrivacyBudget
    from privacy.event import PrivacyEvent
    from privacy.noise_shares import NoiseShares
    from privacy.report.blocks import Block

_UNIT = "one user's whole contribution, in all rounds and runs; a user is a device, by its pseudonym"
_MECHANISMS = {
    "poisson_subsampled_gaussian": "noisy sum over a Poisson-sampled cohort",
    "gaussian_capped": "noisy sum over a fixed cohort, no credit for sampling",
    "banded_toeplitz_gaussian": "sums with noise correlated over rounds, no credit for sampling",
    "skellam_shares": "secure sum over a fixed cohort that adds Skellam noise in shares, no credit for sampling",
}
_SERVER_IS_TRUSTED = (
    "The server is trusted with it: it sees each contribution, clips it, and adds the noise once to the "
    "sum. Missing contributions changed neither the noise nor the number that the sum was divided by."
)
_SERVER_SEES_SUMS = (
    "The server is not shown any contribution. Each device clips its own, rounds it to whole numbers, adds its share "
    "of the noise and a mask; the server sees their sum, and takes the masks off only where enough shares are in it. "
    "It is trusted to do so, and to bring together real devices; the devices, to clip and to add their shares."
)
_BOTH_KINDS = (
    "Some sums had the server's noise: there it saw each contribution. In the others devices made the noise in shares, "
    "and it saw sums alone."
)
_SAMPLING = {
    "poisson_subsampled_gaussian": "In a round each device of the population was drawn independently with the stated "
    "probability (Poisson sampling), which counts only towards who does not learn who was drawn: not the server, nor a "
    "reader of its ledger.",
    "gaussian_capped": "Cohorts had a fixed size. No credit is taken for chance, and who took part is public: each "
    "device pays for its own participations.",
    "banded_toeplitz_gaussian": "Cohorts had a fixed size, and the noise of nearby rounds belongs together. No credit "
    "is taken for chance, and who took part is public: each device pays for its own participations.",
    "skellam_shares": "Cohorts had a fixed size, and how many were in a sum shows in its noise. No credit is taken for "
    "chance, and who took part is public: each device pays for its own participations.",
}
_ADDED_OR_REMOVED = "all contributions of one user added or removed"
_REPLACED = "all contributions of one user replaced by zeros; who took part is public"


def user_cost(events: Sequence[PrivacyEvent], budget: PrivacyBudget | None) -> UserCost | None:
    """What the users of the one population in `events` were charged; None: nothing is promised to users.

    Raises:
        UnknownEventError: The events are of several populations, or cannot be accounted for.
    """
    own = promised(events, "user")
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
        rounds=sum(bool(event.devices) or event.cohort_rule == "poisson" for event in own),
        mechanisms=tuple(sorted({event.mechanism for event in own})),
        noise_multipliers=(min(e.noise_multiplier for e in own), max(e.noise_multiplier for e in own)),
        clipping_norms=(min(e.clipping_norm for e in own), max(e.clipping_norm for e in own)),
        sampling_probabilities=(min(e.sampling_probability for e in own), max(e.sampling_probability for e in own)),
        contributions=(min(e.contributions for e in own), max(e.contributions for e in own)),
        participations=dict(sorted(Counter(bills.participations.values()).items())),
        shares=_different_shares(own),
        accountant=RENYI_ACCOUNTANT if any(event.shares is not None for event in own) else None,
    )


def gaussian_bill(events: Sequence[PrivacyEvent], *, target_delta: float) -> tuple[Group, ...]:
    """What the costliest user pays for, where every sum had Gaussian noise."""
    bill = UserBills(event for event in events if event.privacy_unit == "user").costliest_bill(
        target_delta=target_delta
    )
    return tuple(charge for charge in bill if not isinstance(charge, SkellamSums))


def users_blocks(cost: UserCost) -> tuple[Block, ...]:
    """What users were charged."""
    return (
        Paragraph(_claim(cost)),
        Table(
            ("per user", "value"),
            (
                ("ε, for who sees releases only", number(cost.epsilon)),
                ("ε, for who knows who was drawn in each round", number(cost.epsilon_if_drawing_is_known)),
                ("δ", probability(cost.target_delta)),
                ("budget", "none set" if cost.budget_epsilon is None else number(cost.budget_epsilon)),
                ("rounds charged", str(cost.rounds)),
            ),
            is_text=True,
        ),
        Table(
            ("contributions of a user", "users"),
            tuple((str(times), str(users)) for times, users in cost.participations.items()),
            caption="How often users took part, in all runs.",
        ),
    )


def users_mechanism(cost: UserCost, accountant: str) -> tuple[Block, ...]:
    """How the noise for users was made, with its parameters."""
    return (
        Paragraph(_who_is_trusted(cost)),
        Table(
            ("parameter, per user", "value"),
            (
                ("privacy unit", _UNIT),
                ("neighbouring relation", _neighbours(cost)),
                ("mechanism", "; ".join(_MECHANISMS[name] for name in cost.mechanisms)),
                ("noise multiplier (noise in the sum / clipping norm)", _span(cost.noise_multipliers)),
                ("clipping norm of a contribution", _span(cost.clipping_norms)),
                ("sampling probability (1: no credit taken)", _span(cost.sampling_probabilities)),
                ("contributions in a round", _span(cost.contributions, digits=0)),
                *(("noise in shares", _made_by(shares)) for shares in cost.shares),
                ("δ", probability(cost.target_delta)),
                ("accountant", cost.accountant or accountant),
            ),
            is_text=True,
        ),
    )


def users_sampling(cost: UserCost) -> tuple[Block, ...]:
    """Who was drawn, and what credit that takes."""
    return tuple(Paragraph(_SAMPLING[name]) for name in cost.mechanisms)


def _different_shares(events: Sequence[PrivacyEvent]) -> tuple[NoiseShares, ...]:
    """Each way once, in the order of the ledger."""
    found: dict[str, NoiseShares] = {}
    for event in events:
        if event.shares is not None:
            found.setdefault(event.shares.model_dump_json(), event.shares)
    return tuple(found.values())


def _who_is_trusted(cost: UserCost) -> str:
    if not cost.shares:
        return _SERVER_IS_TRUSTED
    return f"{_SERVER_SEES_SUMS} {_BOTH_KINDS}" if cost.trusts_server else _SERVER_SEES_SUMS


def _neighbours(cost: UserCost) -> str:
    """In a cohort of fixed size somebody else would have been drawn instead: only zeros change one term alone."""
    is_poisson = "poisson_subsampled_gaussian" in cost.mechanisms
    if not is_poisson:
        return _REPLACED
    return (
        _ADDED_OR_REMOVED if len(cost.mechanisms) == 1 else f"{_ADDED_OR_REMOVED}; in cohorts of fixed size {_REPLACED}"
    )


def _made_by(shares: NoiseShares) -> str:
    return (
        f"{shares.counted} shares are counted on, of {shares.cohort} devices; {shares.colluding} more may be known to "
        f"the server, and a sum of fewer than {shares.fewest} stays masked. In levels ({shares.levels} make a clipping "
        f"norm): variance {shares.variance:.4g}, L2 {shares.l2:.6g}, L1 {shares.l1:.6g}, {shares.length} values"
    )


def _claim(cost: UserCost) -> str:
    if math.isinf(cost.epsilon):
        return "Per user: no guarantee, at least one sum was released without noise."
    return (
        f"Per user: the releases of {cost.population} are ({number(cost.epsilon)}, {probability(cost.target_delta)})-"
        f"differentially private for each user's whole contribution (neighbouring: {_neighbours(cost)}), over all runs "
        "so far. This is another unit than one example; the two are never added up."
    )


def _span(values: tuple[float, float], *, digits: int = 4) -> str:
    low, high = (number(value, digits) for value in values)
    return low if low == high else f"{low} to {high}"
