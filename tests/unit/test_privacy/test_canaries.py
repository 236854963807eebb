"""Canary audits: they pass what keeps its promises, and fail each planted fault."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from privacy.accountant import epsilon_of_steps
from privacy.audits import Finding, Verdict
from privacy.audits.canaries import CanaryRun, canary_findings, clipping_finding, epsilon_finding, noise_finding
from privacy.audits.finding import clopper_pearson
from privacy.audits.user_canaries import mechanism_of, user_canary_run
from privacy.canary_training import canary_run
from privacy.dp_sgd import DPSGDParameters, train_dp_sgd
from privacy.errors import AuditError
from privacy.event import PrivacyEvent
from privacy.mechanism import noisy_average
from privacy.noise_shares import ShareRule

DELTA = 1e-5
ROUND = DPSGDParameters(
    noise_multiplier=1.0, clipping_norm=0.5, sampling_probability=0.25, steps=4, expected_batch_size=10.0
)
WITHOUT_DP = DPSGDParameters(
    noise_multiplier=0.0,
    clipping_norm=1e9,
    sampling_probability=0.25,
    steps=4,
    expected_batch_size=10.0,
    is_noisy=False,
)
EXAMPLES = tuple(torch.randn(5, generator=torch.Generator().manual_seed(seed)) for seed in range(40))


def squared(module: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    data = torch.stack(batch)
    return ((module(data[:, :4]).squeeze(1) - data[:, 4]) ** 2).reshape(-1)


def of_example(*, done: DPSGDParameters = ROUND, rounds: int = 3, train=train_dp_sgd) -> CanaryRun:
    torch.manual_seed(0)
    return canary_run(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
        EXAMPLES,
        loss_of=squared,
        promised=[ROUND] * rounds,
        done=[done] * rounds,
        learning_rate=0.1,
        canaries=600,
        random=np.random.default_rng(7),
        has_own_gradients=False,
        train=train,
    )


def claimed(rounds: int) -> float:
    return epsilon_of_steps(noise_multiplier=1.0, sampling_probability=0.25, steps=4 * rounds, target_delta=DELTA)


def judged(run: CanaryRun, *, epsilon: float, unit: str = "example") -> dict[str, Finding]:
    control = of_example(done=WITHOUT_DP)
    found = canary_findings(run, control, unit=unit, claimed_epsilon=epsilon, target_delta=DELTA)
    return {finding.part: finding for finding in found}


@pytest.fixture(scope="module")
def honest() -> dict[str, Finding]:
    return judged(of_example(), epsilon=claimed(3))


def test_dp_sgd_keeps_its_promises(honest: dict[str, Finding]) -> None:
    assert {name: finding.verdict for name, finding in honest.items()} == {
        "noise-example": Verdict.PASS,
        "clipping-example": Verdict.PASS,
        # Honest, but so many canaries cannot refute a claim of more than 4: said, not passed over.
        "one-run-example": Verdict.INCONCLUSIVE if claimed(3) > 4 else Verdict.PASS,
    }


def test_every_finding_tells_its_sample_control_power_and_how_to_read_it(honest: dict[str, Finding]) -> None:
    for finding in honest.values():
        assert all((finding.sample, finding.control, finding.power, finding.reading, finding.reason))
        assert finding.interval[0] <= finding.measured <= finding.interval[1]


def test_noise_that_is_64_times_too_small_is_found() -> None:
    faulty = replace(ROUND, noise_multiplier=ROUND.noise_multiplier / 64)
    found = judged(of_example(done=faulty), epsilon=claimed(3))
    assert found["noise-example"].verdict is Verdict.FAIL
    assert found["noise-example"].measured == pytest.approx(1 / 64, rel=0.1)


def test_clipping_left_out_is_found() -> None:
    # The noise stays what it was: only the influence of one example has no bound any more.
    faulty = replace(ROUND, clipping_norm=1e6, noise_multiplier=ROUND.noise_multiplier * ROUND.clipping_norm / 1e6)
    found = judged(of_example(done=faulty), epsilon=claimed(3))
    assert found["noise-example"].verdict is not Verdict.FAIL
    assert found["clipping-example"].verdict is Verdict.FAIL
    assert found["clipping-example"].measured > 50


def test_doubled_weights_are_found() -> None:
    def doubled(module, items, *, loss_of, **rest) -> None:
        """Each example's gradient counts twice after clipping: the sum is doubled, the noise is not."""
        twice = replace(rest.pop("parameters"), clipping_norm=2 * ROUND.clipping_norm, noise_multiplier=0.5)
        train_dp_sgd(module, items, loss_of=loss_of, parameters=twice, **rest)

    found = judged(of_example(train=doubled), epsilon=claimed(3))
    assert found["noise-example"].verdict is Verdict.PASS
    assert found["clipping-example"].verdict is Verdict.FAIL
    assert found["clipping-example"].measured == pytest.approx(2, rel=0.1)


def test_accounting_for_one_round_only_is_found() -> None:
    events = user_events(rounds=40, noise=3.0)
    run = user_canary_run(events, canaries=1000, participations=40, random=np.random.default_rng(3))
    control = user_canary_run(events, canaries=1000, participations=40, random=np.random.default_rng(4), is_faulty=True)
    one = epsilon_of_steps(noise_multiplier=3.0, sampling_probability=1.0, steps=1, target_delta=DELTA)
    all_of_them = epsilon_of_steps(noise_multiplier=3.0, sampling_probability=1.0, steps=40, target_delta=DELTA)
    *_, wrong = canary_findings(run, control, unit="user", claimed_epsilon=one, target_delta=DELTA)
    *_, right = canary_findings(run, control, unit="user", claimed_epsilon=all_of_them, target_delta=DELTA)
    assert wrong.verdict is Verdict.FAIL
    assert right.verdict is not Verdict.FAIL
    assert one < right.measured < all_of_them


def user_events(
    *, rounds: int, noise: float, rule: str = "fixed", bands: int | None = None, shares: ShareRule | None = None
) -> list[PrivacyEvent]:
    mechanism = "poisson_subsampled_gaussian" if rule == "poisson" else "gaussian_capped"
    if shares is not None:
        mechanism = "skellam_shares"
    return [
        PrivacyEvent(
            run_id="run",
            server_round=number,
            privacy_unit="user",
            population="chat",
            devices=("a", "b"),
            cohort_rule=rule,
            mechanism="banded_toeplitz_gaussian" if bands else mechanism,
            noise_multiplier=noise,
            sampling_probability=0.3 if rule == "poisson" else 1.0,
            steps=1,
            bands=bands,
            shares=None if shares is None else shares.shares(noise),
            clipping_norm=0.2 + 0.01 * number,
            target_delta=DELTA,
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        for number in range(1, rounds + 1)
    ]


IN_SHARES = {"shares": ShareRule(cohort=3, dropouts=0.34, colluding=0.0, length=5000)}


@pytest.mark.parametrize("kind", [{"rule": "poisson"}, {"rule": "fixed"}, {"rule": "fixed", "bands": 4}, IN_SHARES])
def test_the_noisy_sum_over_users_keeps_its_promises(kind: dict) -> None:
    events = user_events(rounds=16, noise=2.0, **kind)
    run = user_canary_run(events, canaries=1000, participations=3, random=np.random.default_rng(1))
    control = user_canary_run(events, canaries=1000, participations=3, random=np.random.default_rng(2), is_faulty=True)
    noise, clipping, bound = canary_findings(run, control, unit="user", claimed_epsilon=4.0, target_delta=DELTA)
    assert (noise.verdict, clipping.verdict) == (Verdict.PASS, Verdict.PASS)
    assert clipping.measured == pytest.approx(1, abs=0.3)
    assert bound.verdict is not Verdict.FAIL


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ({"noise_multiplier": 2.0 / 64}, "noise-user"),
        ({"clipping_norm": 1e9, "noise_multiplier": 2.0 * 0.21 / 1e9}, "clipping-user"),
    ],
)
def test_planted_faults_of_the_noisy_sum_are_found(fault: dict, part: str) -> None:
    def faulty(updates, **stated):
        return noisy_average(updates, **(stated | fault))

    events = user_events(rounds=12, noise=2.0)
    make = partial(user_canary_run, events, canaries=400, participations=12)
    run = make(random=np.random.default_rng(1), average=faulty)
    control = make(random=np.random.default_rng(2), is_faulty=True)
    found = {
        finding.part: finding.verdict
        for finding in canary_findings(run, control, unit="user", claimed_epsilon=20.0, target_delta=DELTA)
    }
    assert found[part] is Verdict.FAIL


def test_shares_that_are_left_out_are_found() -> None:
    def without_one(updates, *, unit_noise, **stated):
        return honest(updates, unit_noise=unit_noise * np.sqrt(1 / 2), **stated)

    events = user_events(rounds=12, noise=2.0, **IN_SHARES)
    honest = mechanism_of(events[0])
    run = user_canary_run(events, canaries=400, participations=12, random=np.random.default_rng(1), average=without_one)
    control = user_canary_run(events, canaries=400, participations=12, random=np.random.default_rng(2), is_faulty=True)
    assert noise_finding(run, control, unit="user").verdict is Verdict.FAIL
    assert clipping_finding(run, control, unit="user").verdict is Verdict.PASS


def test_weights_of_users_are_found() -> None:
    def weighted(updates, **stated):
        clipped = noisy_average(updates, **(stated | {"noise_multiplier": 0.0}))
        noise = noisy_average([], **stated)
        return {name: 2 * clipped[name] + noise[name] for name in clipped}

    events = user_events(rounds=12, noise=2.0)
    run = user_canary_run(events, canaries=400, participations=12, random=np.random.default_rng(1), average=weighted)
    control = user_canary_run(events, canaries=400, participations=12, random=np.random.default_rng(2), is_faulty=True)
    assert noise_finding(run, control, unit="user").verdict is Verdict.PASS
    assert clipping_finding(run, control, unit="user").verdict is Verdict.FAIL


def test_an_audit_whose_control_goes_unnoticed_is_inconclusive() -> None:
    run = of_example()
    assert noise_finding(run, run, unit="example").verdict is Verdict.INCONCLUSIVE
    assert clipping_finding(run, run, unit="example").verdict is Verdict.INCONCLUSIVE


@pytest.mark.slow
def test_honest_mechanisms_are_rarely_accused() -> None:
    """2,000 honest runs: at 99.9% certainty a verdict of fail is chance, once in a thousand for each audit."""
    random, alarms, runs = np.random.default_rng(0), {"noise": 0, "clipping": 0}, 2000
    for _ in range(runs):
        run = _ideal_run(random, steps=6, canaries=60, noise=1.0)
        alarms["noise"] += noise_finding(run, run, unit="example").verdict is Verdict.FAIL
        alarms["clipping"] += clipping_finding(run, run, unit="example").verdict is Verdict.FAIL
    for hits in alarms.values():
        assert clopper_pearson(hits, runs)[0] <= 0.001
        assert hits <= 10


def test_honest_mechanisms_give_no_more_away_than_they_cost() -> None:
    """The bound on ε fails a release at 95%: it is so loose that of 200 honest runs none is accused."""
    random, alarms = np.random.default_rng(1), 0
    for number in range(200):
        noise = 1.0 if number % 2 else 3.0
        run = _ideal_run(random, steps=1, canaries=600, noise=noise)
        run = replace(run, took_part=run.is_in[None, :], released=run.is_in + noise * random.standard_normal((1, 600)))
        exact = epsilon_of_steps(noise_multiplier=noise, sampling_probability=1.0, steps=1, target_delta=DELTA)
        found = epsilon_finding(run, run, unit="example", claimed_epsilon=exact, target_delta=DELTA)
        alarms += found.verdict is Verdict.FAIL
    assert alarms == 0


def _ideal_run(random: np.random.Generator, *, steps: int, canaries: int, noise: float) -> CanaryRun:
    is_in = random.random(canaries) < 0.5
    took_part = (random.random((steps, canaries)) < 0.5) & is_in
    return CanaryRun(
        released=took_part + noise * random.standard_normal((steps, canaries)),
        took_part=took_part,
        is_in=is_in,
        clipping_norms=np.ones(steps),
        noise_stddevs=np.full(steps, noise),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"released": np.full((2, 3), np.nan)},
        {"released": np.zeros((3, 3))},
        {"took_part": np.ones((2, 3), dtype=np.bool_)},
    ],
)
def test_measurements_that_make_no_sense_are_refused(change: dict) -> None:
    good = {
        "released": np.zeros((2, 3)),
        "took_part": np.zeros((2, 3), dtype=np.bool_),
        "is_in": np.zeros(3, dtype=np.bool_),
        "clipping_norms": np.ones(2),
        "noise_stddevs": np.ones(2),
    }
    with pytest.raises(AuditError):
        CanaryRun(**(good | change))
