"""ε against published figures, against two other accountants, and where it must refuse."""

from __future__ import annotations

import logging
import math
import time
import warnings
from datetime import UTC, datetime
from typing import Any

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from privacy import PrivacyEvent, UnknownEventError
from privacy.accountant import ACCOUNTANT, epsilon, epsilon_by_device, epsilon_curve, epsilon_of_steps

DELTA = 1e-5
# (sampling probability, noise multiplier, steps, PLD ε at 1e-5): see the facts that this room was built on.
KNOWN = [
    (0.01, 0.6, 100, 3.816),
    (0.01, 1.0, 500, 1.326),
    (0.01, 1.2, 100, 0.446),
    (0.05, 1.0, 500, 7.524),
    (0.1, 0.6, 2000, 128.5),
    (0.1, 1.0, 100, 7.047),
]


def make_event(device_id: str = "device-1", **changes: object) -> PrivacyEvent:
    values: dict[str, Any] = {
        "run_id": "run-1",
        "server_round": 1,
        "noise_multiplier": 1.0,
        "sampling_probability": 0.1,
        "steps": 100,
        "clipping_norm": 1.0,
        "target_delta": DELTA,
        "recorded_at": datetime(2026, 3, 1, tzinfo=UTC),
    }
    return PrivacyEvent.model_validate({**values, "device_id": device_id, **changes})


def rdp(groups: list[tuple[float, float, int]]) -> float:
    accountant = RdpAccountant()
    for q, sigma, steps in groups:
        event = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(event, steps)
    logging.getLogger("absl").setLevel(logging.ERROR)
    return float(accountant.get_epsilon(DELTA))


def prv(groups: list[tuple[float, float, int]]) -> float:
    accountant = PRVAccountant()
    accountant.history = [(sigma, q, steps) for q, sigma, steps in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(("q", "sigma", "steps", "known"), KNOWN)
def test_known_figures(q: float, sigma: float, steps: int, known: float) -> None:
    event = make_event(sampling_probability=q, noise_multiplier=sigma, steps=steps)
    assert epsilon([event], target_delta=DELTA) == pytest.approx(known, abs=2e-3, rel=5e-4)


@pytest.mark.parametrize(("q", "sigma", "steps", "known"), [row for row in KNOWN if row[3] < 50])
def test_rdp_is_above_and_prv_beside(q: float, sigma: float, steps: int, known: float) -> None:
    found = epsilon_of_steps(noise_multiplier=sigma, sampling_probability=q, steps=steps, target_delta=DELTA)
    assert found <= rdp([(q, sigma, steps)])
    assert abs(found - prv([(q, sigma, steps)])) < 0.02


def test_different_events_compose_like_the_other_accountants_say() -> None:
    groups = [(0.05, 1.0, 60), (0.1, 1.3, 40), (0.02, 0.8, 100)]
    events = [make_event(sampling_probability=q, noise_multiplier=s, steps=n) for q, s, n in groups]
    found = epsilon(events, target_delta=DELTA)
    assert found == epsilon(reversed(events), target_delta=DELTA)
    assert found <= rdp(groups)
    assert abs(found - prv(groups)) < 0.02
    assert found < sum(epsilon([event], target_delta=DELTA) for event in events)


def test_rounds_compose_to_one_long_round_and_quickly() -> None:
    many = [make_event(steps=1, server_round=n) for n in range(3000)]
    started = time.process_time()
    found = epsilon(many, target_delta=DELTA)
    assert time.process_time() - started < 5
    assert found == epsilon([make_event(steps=3000)], target_delta=DELTA)


def test_full_batches_are_plain_gaussians() -> None:
    # Balle, Wang 2018: δ(ε) of the Gaussian mechanism in closed form, solved by bisection.
    def delta_of(eps: float, mu: float) -> float:
        def phi(x: float) -> float:
            return math.erfc(-x / math.sqrt(2)) / 2

        return phi(mu / 2 - eps / mu) - math.exp(eps) * phi(-mu / 2 - eps / mu)

    mu = math.sqrt(10) / 2.0
    low, high = 0.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, mu) > DELTA else (low, middle)
    found = epsilon([make_event(sampling_probability=1.0, noise_multiplier=2.0, steps=10)], target_delta=DELTA)
    assert found == pytest.approx(high, abs=2e-3)
    assert found >= high - 1e-9


@settings(max_examples=8, deadline=None)
@given(
    st.floats(0.7, 8.0), st.floats(0.005, 1.0), st.integers(1, 100), st.floats(1.05, 2.0), st.sampled_from([1e-4, 1e-6])
)
@pytest.mark.slow
def test_more_noise_costs_less_and_more_steps_cost_more(
    sigma: float, q: float, steps: int, factor: float, delta: float
) -> None:
    def cost(noise_multiplier: float, count: int, target_delta: float) -> float:
        return epsilon_of_steps(
            noise_multiplier=noise_multiplier, sampling_probability=q, steps=count, target_delta=target_delta
        )

    base = cost(sigma, steps, delta)
    assert cost(sigma * factor, steps, delta) <= base + 2e-3
    assert cost(sigma, 2 * steps, delta) >= base - 2e-3
    assert cost(sigma, steps, delta / 10) >= base - 1e-9


def test_devices_are_never_added_up() -> None:
    events = [make_event("b"), make_event("a"), make_event("b", server_round=2)]
    found = epsilon_by_device(events, target_delta=DELTA)
    assert list(found) == ["a", "b"]
    assert found["a"] == epsilon([make_event()], target_delta=DELTA)
    assert found["b"] == epsilon([make_event(steps=200)], target_delta=DELTA)


def test_no_noise_is_infinite_and_no_event_is_free() -> None:
    assert epsilon([make_event(), make_event(noise_multiplier=0.0)], target_delta=DELTA) == math.inf
    assert epsilon([], target_delta=DELTA) == 0.0
    assert epsilon_by_device([], target_delta=DELTA) == {}


def test_the_curve_is_the_same_guarantee() -> None:
    events = [make_event()]
    curve = epsilon_curve(events, [1e-3, DELTA, 1e-8])
    assert curve[1] == epsilon(events, target_delta=DELTA)
    assert curve[0] < curve[1] < curve[2]


@pytest.mark.parametrize("field", ["mechanism", "privacy_unit"])
def test_unknown_events_are_refused(field: str) -> None:
    strange = make_event().model_copy(update={field: "something else"})
    with pytest.raises(UnknownEventError, match="something else"):
        epsilon([make_event(), strange], target_delta=DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_delta_must_be_a_probability(delta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        epsilon([make_event()], target_delta=delta)


@pytest.mark.parametrize(
    ("sigma", "q", "steps"), [(0.05, 0.5, 100), (1e-9, 0.3, 10**6), (0.011, 1.0, 1000), (0.3, 0.001, 10**5)]
)
def test_hostile_events_cost_much_but_are_counted_quickly(sigma: float, q: float, steps: int) -> None:
    started = time.process_time()
    found = epsilon([make_event(noise_multiplier=sigma, sampling_probability=q, steps=steps)], target_delta=DELTA)
    assert 100 < found < math.inf
    assert time.process_time() - started < 10


def test_the_accountant_names_itself() -> None:
    assert "PLD" in ACCOUNTANT
    assert "dp-accounting" in ACCOUNTANT
