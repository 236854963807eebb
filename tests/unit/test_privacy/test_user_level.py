"""ε per user: from events alone, by what each kind of cohort really promises."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from simulators.share_events import event_in_shares

from privacy import BudgetExceededError, CalibrationError, PrivacyEvent, UnknownEventError
from privacy.accountant import epsilon_by_device, epsilon_of_steps
from privacy.budget import PrivacyBudget
from privacy.user_budget import UserPlan, can_afford, epsilon_after, require_users_affordable, user_noise_for
from privacy.user_level import UserBills, bills_with_others, epsilon_by_population, user_epsilon

DELTA = 1e-5
BUDGET = PrivacyBudget(target_epsilon=4.0, target_delta=DELTA)


def event(server_round: int = 1, devices: tuple[str, ...] = ("a",), **changes: Any) -> PrivacyEvent:
    values: dict[str, Any] = {
        "run_id": "run",
        "server_round": server_round,
        "privacy_unit": "user",
        "population": "chat",
        "devices": devices,
        "cohort_rule": "fixed",
        "mechanism": "gaussian_capped",
        "noise_multiplier": 2.0,
        "sampling_probability": 1.0,
        "steps": 1,
        "clipping_norm": 1.0,
        "target_delta": DELTA,
        "recorded_at": datetime(2026, 3, 1, tzinfo=UTC),
    }
    return PrivacyEvent.model_validate(values | changes)


def poisson(server_round: int, devices: tuple[str, ...] = (), q: float = 0.01, **changes: Any) -> PrivacyEvent:
    rule = {"cohort_rule": "poisson", "mechanism": "poisson_subsampled_gaussian", "sampling_probability": q}
    return event(server_round, devices, **(rule | changes))


def banded(server_round: int, devices: tuple[str, ...] = ("a",), **changes: Any) -> PrivacyEvent:
    return event(server_round, devices, **({"mechanism": "banded_toeplitz_gaussian", "bands": 4} | changes))


def plain(noise_multiplier: float, steps: float, q: float = 1.0) -> float:
    return epsilon_of_steps(
        noise_multiplier=noise_multiplier, sampling_probability=q, steps=int(steps), target_delta=DELTA
    )


def test_another_models_users_may_be_the_same_people() -> None:
    """Each user pays on top what the costliest user of every other model on the base paid, and is one of its users."""
    own = [event(1, ("a", "b")), event(2, ("a",))]
    others = [event(1, ("x",), population="two"), event(2, ("x", "y"), population="two"), poisson(3, population="3")]
    bills = bills_with_others([*own, *others], population="chat", target_delta=DELTA)
    as_one = [*own, event(3, ("a",)), event(4, ("a",)), poisson(5)]
    assert bills.epsilon(target_delta=DELTA) == pytest.approx(user_epsilon(as_one, target_delta=DELTA), rel=1e-5)
    assert bills.epsilon(target_delta=DELTA) > user_epsilon(own, target_delta=DELTA)
    assert bills.participations == {"a": 2, "b": 1}  # a cap is a model's own
    alone = bills_with_others(own, population="chat", target_delta=DELTA)
    assert alone.epsilon(target_delta=DELTA) == user_epsilon(own, target_delta=DELTA)
    # A model that nobody was charged for yet starts from what the others have spent.
    fresh = bills_with_others(own, population="new", target_delta=DELTA)
    assert fresh.epsilon(target_delta=DELTA) == user_epsilon(own, target_delta=DELTA)
    with pytest.raises(CalibrationError, match="with what other models on its base cost"):
        user_noise_for(
            PrivacyBudget(target_epsilon=0.1, target_delta=DELTA),
            UserPlan(rounds=1, sampling_probability=None, max_participations=1, min_separation=1),
            fresh,
        )


def test_sums_in_shares_of_other_models_are_charged_as_the_most_that_anybody_paid() -> None:
    """Gaussian and Skellam sums have no order: of each the most, so that no user of the others paid more of either."""
    sums = [event_in_shares(number, population="two") for number in (1, 2)]
    others = [*sums, *(event(number, ("other",), population="two") for number in (3, 4))]
    spent = bills_with_others([event(), *others], population="chat", target_delta=DELTA).epsilon(target_delta=DELTA)
    for paid in (sums, others[2:]):
        own = bills_with_others([event(), *paid], population="chat", target_delta=DELTA)
        assert own.epsilon(target_delta=DELTA) < spent < math.inf


def test_a_poisson_cohort_costs_everybody_the_same_whoever_was_drawn() -> None:
    drawn = [poisson(number, ("a",)) for number in range(500)]
    assert user_epsilon(drawn, target_delta=DELTA) == pytest.approx(0.433, abs=0.01)
    nobody = [poisson(number) for number in range(500)]
    assert user_epsilon(nobody, target_delta=DELTA) == user_epsilon(drawn, target_delta=DELTA)


def test_who_knows_who_was_drawn_gets_no_amplification() -> None:
    drawn = [poisson(number, ("a",) if number < 5 else ("b",)) for number in range(12)]
    assert user_epsilon(drawn, target_delta=DELTA, is_drawing_secret=False) == plain(2.0, 7)


def test_a_fixed_cohort_costs_who_took_part_for_each_time() -> None:
    events = [event(number, ("a", "b") if number <= 5 else ("b", "c")) for number in range(1, 6)]
    assert user_epsilon(events, target_delta=DELTA) == pytest.approx(plain(2.0, 5))
    assert user_epsilon([*events, event(9, ("b",))], target_delta=DELTA) == pytest.approx(plain(2.0, 6))
    assert user_epsilon([*events, event(9, ("c",))], target_delta=DELTA) == pytest.approx(plain(2.0, 5))
    assert UserBills(events).participations == {"a": 5, "b": 5}


def test_published_figures() -> None:
    """At most 5 participations at noise 2: 4.98; 10 at noise 1: 17.9 (in the project's notes, by other programs)."""
    assert user_epsilon([event(n) for n in range(5)], target_delta=DELTA) == pytest.approx(4.98, abs=0.02)
    assert user_epsilon([event(n, noise_multiplier=1.0) for n in range(10)], target_delta=DELTA) == pytest.approx(
        17.9, abs=0.1
    )


def test_banded_noise_costs_as_separate_rounds_where_they_are_apart_and_more_where_bands_overlap() -> None:
    apart = [banded(1), banded(5), banded(9)]
    assert user_epsilon(apart, target_delta=DELTA) == pytest.approx(plain(2.0, 3), abs=2e-3)
    assert user_epsilon([banded(1), banded(2)], target_delta=DELTA) > plain(2.0, 2) * 1.1
    other_runs = [banded(1), banded(2, run_id="other")]
    assert user_epsilon(other_runs, target_delta=DELTA) == pytest.approx(plain(2.0, 2), abs=2e-3)


def test_runs_of_different_kinds_add_up_for_the_same_user() -> None:
    mixed = [event(1), poisson(2), poisson(3)]
    both = user_epsilon(mixed, target_delta=DELTA)
    assert both > max(user_epsilon(mixed[:1], target_delta=DELTA), user_epsilon(mixed[1:], target_delta=DELTA))


def test_no_noise_is_no_guarantee_and_no_event_costs_nothing() -> None:
    assert user_epsilon([event(noise_multiplier=0.0)], target_delta=DELTA) == math.inf
    assert user_epsilon([poisson(1, noise_multiplier=0.0)], target_delta=DELTA) == math.inf
    assert user_epsilon([], target_delta=DELTA) == 0.0


def test_units_and_populations_are_never_added_up() -> None:
    example = PrivacyEvent(
        run_id="run",
        server_round=1,
        device_id="a",
        noise_multiplier=0.1,
        sampling_probability=1.0,
        steps=1,
        clipping_norm=1.0,
        target_delta=DELTA,
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )
    other = event(population="other", noise_multiplier=1.0)
    events = [event(), example, other]
    assert epsilon_by_device(events, target_delta=DELTA) == epsilon_by_device([example], target_delta=DELTA)
    assert epsilon_by_population(events, target_delta=DELTA) == {
        "chat": user_epsilon([event()], target_delta=DELTA),
        "other": user_epsilon([other], target_delta=DELTA),
    }
    for wrong in (example, other):
        with pytest.raises(UnknownEventError, match="cannot be charged"):
            user_epsilon([event(), wrong], target_delta=DELTA)


def test_banded_noise_that_changed_within_a_run_is_an_error() -> None:
    with pytest.raises(UnknownEventError, match="changed within run"):
        user_epsilon([banded(1), banded(5, ("b",), noise_multiplier=1.0)], target_delta=DELTA)


def plan(**changes: Any) -> UserPlan:
    values: dict[str, Any] = {"rounds": 20, "sampling_probability": None, "max_participations": 4, "min_separation": 1}
    return UserPlan(**(values | changes))


def test_the_noise_for_a_plan_is_the_least_that_fits() -> None:
    for asked in (plan(), plan(sampling_probability=0.05), plan(min_separation=10)):
        noise = user_noise_for(BUDGET, asked, UserBills())
        assert epsilon_after(asked, UserBills(), noise_multiplier=noise, target_delta=DELTA) <= 4.0
        assert epsilon_after(asked, UserBills(), noise_multiplier=noise - 0.001, target_delta=DELTA) > 4.0
    assert user_noise_for(BUDGET, plan(min_separation=10), UserBills()) < user_noise_for(BUDGET, plan(), UserBills())


def test_what_was_spent_before_asks_for_more_noise_until_nothing_is_left() -> None:
    spent = UserBills([event(1, noise_multiplier=1.8)])
    assert user_noise_for(BUDGET, plan(), spent) > user_noise_for(BUDGET, plan(), UserBills())
    with pytest.raises(CalibrationError, match="too little is left"):
        user_noise_for(BUDGET, plan(), UserBills([event(n, noise_multiplier=1.0) for n in range(3)]))


def test_a_plan_that_would_overspend_is_refused_with_what_would_fit() -> None:
    require_users_affordable(BUDGET, plan(), UserBills(), noise_multiplier=10.0)
    with pytest.raises(BudgetExceededError, match=r"user-noise-multiplier \d+\.\d+ would fit"):
        require_users_affordable(BUDGET, plan(), UserBills(), noise_multiplier=1.0)


def test_a_device_at_its_cap_costs_nothing_more() -> None:
    tired = UserBills(event(n, ("a",), noise_multiplier=4.0) for n in range(4))
    fresh = epsilon_after(plan(max_participations=4), UserBills(), noise_multiplier=4.0, target_delta=DELTA)
    assert epsilon_after(plan(max_participations=4), tired, noise_multiplier=4.0, target_delta=DELTA) == fresh


def test_each_device_is_asked_for_what_it_can_still_afford() -> None:
    spent = UserBills([event(n, ("a",)) for n in range(3)])
    more = event(9, noise_multiplier=1.5)
    assert can_afford(BUDGET, spent, None, more)
    assert can_afford(BUDGET, spent, "b", more)
    assert not can_afford(BUDGET, spent, "a", more)
    # Overlapping bands are dearer than bands that are apart.
    close = UserBills([banded(1), banded(5)])
    assert not can_afford(BUDGET, close, "a", banded(6))
    assert can_afford(BUDGET, close, "a", banded(9))
