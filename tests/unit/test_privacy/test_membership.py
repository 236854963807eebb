"""The membership audit against synthetic scores whose truth is known."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

from privacy import AuditError
from privacy.audits import Losses, MembershipResult, membership_audit
from privacy.audits.attack_figures import _auc_with_interval, _operating_point
from privacy.audits.finding import Verdict, clopper_pearson
from privacy.audits.membership import MEMBERS_NEEDED, membership_finding, power_to_pass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def audit(
    member_scores: Sequence[float] | NDArray[Any],
    other_scores: Sequence[float] | NDArray[Any],
    positive_control: MembershipResult | None = None,
    seed: int = 0,
) -> MembershipResult:
    """Losses whose share lost from base to release is exactly the given scores, hidden under differing difficulty."""
    random = np.random.default_rng(99)
    member_base = random.normal(3, 1, len(member_scores)).clip(0.2)
    other_base = random.normal(3, 1, len(other_scores)).clip(0.2)
    return membership_audit(
        Losses(list(member_base * (1 - np.asarray(member_scores))), list(member_base)),
        Losses(list(other_base * (1 - np.asarray(other_scores))), list(other_base)),
        positive_control=positive_control,
        seed=seed,
    )


@pytest.fixture(scope="module")
def caught_control() -> MembershipResult:
    random = np.random.default_rng(1)
    return audit(random.normal(3, 1, 300), random.normal(0, 1, 1000))


def spread(count: int) -> NDArray[np.float64]:
    return stats.norm.ppf((np.arange(count) + 0.5) / count)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("target_fpr", [0.001, 0.01])
def test_the_rate_interval_covers_the_truth_at_its_threshold(shift: float, target_fpr: float) -> None:
    random = np.random.default_rng(17)
    covered = 0
    for _ in range(400):
        point = _operating_point(random.normal(shift, 1, 500), random.normal(0, 1, 2000), target_fpr)
        truth = stats.norm.sf(point.threshold - shift)
        low, high = point.true_positive_interval
        covered += low <= truth <= high
    # Clopper-Pearson never covers less than 95%; 3.5 standard errors of 400 trials below.
    assert covered >= 400 * 0.95 - 3.5 * math.sqrt(400 * 0.95 * 0.05)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.slow
def test_the_auc_interval_covers_the_truth(shift: float) -> None:
    random = np.random.default_rng(5)
    truth = stats.norm.cdf(shift / math.sqrt(2))
    covered = 0
    for seed in range(40):
        _, (low, high) = _auc_with_interval(random.normal(shift, 1, 150), random.normal(0, 1, 200), seed)
        covered += low <= truth <= high
    assert covered >= 34


def test_clopper_pearson_against_the_closed_forms() -> None:
    assert clopper_pearson(0, 500)[0] == 0.0
    assert clopper_pearson(0, 500)[1] == pytest.approx(1 - 0.025 ** (1 / 500))
    assert clopper_pearson(500, 500)[1] == 1.0
    assert clopper_pearson(500, 500)[0] == pytest.approx(0.025 ** (1 / 500))
    # No hit among about 500 members still allows 0.74%.
    assert clopper_pearson(0, 497)[1] == pytest.approx(0.0074, abs=1e-4)


def test_how_many_members_a_proof_takes() -> None:
    assert MEMBERS_NEEDED == 998
    assert power_to_pass(members=997) == 0.0
    assert power_to_pass(members=998) == pytest.approx(0.999**998)
    assert power_to_pass(members=4000) == pytest.approx(0.89, abs=0.005)


def test_pass_needs_998_members_without_a_hit(caught_control: MembershipResult) -> None:
    others = spread(2000)
    assert caught_control.verdict is Verdict.FAIL
    just_enough = audit(np.full(998, -1.0), others, positive_control=caught_control)
    assert just_enough.verdict is Verdict.PASS
    assert just_enough.upper_bound < 0.003
    assert just_enough.is_control_caught
    one_short = audit(np.full(997, -1.0), others, positive_control=caught_control)
    assert one_short.verdict is Verdict.INCONCLUSIVE
    assert one_short.upper_bound >= 0.003


@pytest.mark.slow
def test_a_pass_needs_a_control_that_was_caught(caught_control: MembershipResult) -> None:
    random = np.random.default_rng(4)
    members, others = spread(4000), spread(20000)
    assert audit(members, others, positive_control=caught_control).verdict is Verdict.PASS
    alone = audit(members, others)
    assert alone.verdict is Verdict.INCONCLUSIVE
    assert "no positive control" in alone.reason
    blind = audit(random.normal(0, 1, 300), random.normal(0, 1, 1000))
    missed = audit(members, others, positive_control=blind)
    assert missed.verdict is Verdict.INCONCLUSIVE
    assert "missed the control" in missed.reason
    assert missed.control == blind.calibrated


def test_too_few_non_members_cannot_pass(caught_control: MembershipResult) -> None:
    found = audit(np.full(2000, -1.0), spread(999), positive_control=caught_control)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "999 non-members" in found.reason


def test_a_leak_fails_also_with_few_examples() -> None:
    random = np.random.default_rng(3)
    found = audit(random.normal(2.5, 1, 400), random.normal(0, 1, 400))
    assert found.verdict is Verdict.FAIL
    assert found.calibrated.auc > 0.9


def test_no_leak_is_hardly_ever_called_one() -> None:
    random = np.random.default_rng(8)
    fails = 0
    for _ in range(300):
        point = _operating_point(random.normal(0, 1, 3000), random.normal(0, 1, 300), 0.001)
        low = clopper_pearson(point.hits, 3000, confidence=0.9)[0]
        chance = clopper_pearson(point.false_positives, 300, confidence=0.9)[1]
        fails += low > max(0.003, chance)
    # With 300 non-members the threshold alone is worth about 0.3%: judged without `chance`, a third would fail.
    assert fails <= 15


def test_raw_loss_misses_what_calibration_finds() -> None:
    random = np.random.default_rng(2)
    found = audit(random.normal(0.4, 0.1, 1000), random.normal(0, 0.1, 2000))
    assert found.calibrated.points[0].true_positive_rate > 0.5
    assert found.raw_loss.points[0].true_positive_rate < 0.02
    assert found.verdict is Verdict.FAIL


def test_ties_are_split_in_nobodys_favour() -> None:
    everything_equal = audit([0.0] * 1200, [0.0] * 1500)
    assert everything_equal.calibrated.auc == 0.5
    for point in everything_equal.calibrated.points:
        assert (point.hits, point.false_positives) == (0, 0)
    point = _operating_point(np.array([1.0, 1.0, 2.0]), np.array([0.0] * 98 + [1.0, 1.0]), 0.01)
    # Accepting the tied scores would make two false positives where one is allowed.
    assert (point.threshold, point.hits, point.false_positives) == (1.0, 1, 0)


def test_the_auc_counts_pairs() -> None:
    random = np.random.default_rng(0)
    members, others = random.integers(0, 6, 40).astype(float), random.integers(0, 5, 30).astype(float)
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    assert _auc_with_interval(members, others, 0)[0] == pytest.approx(np.mean(pairs))


def test_perfect_separation_claims_no_certainty() -> None:
    auc, (low, high) = _auc_with_interval(np.arange(10.0) + 100, np.arange(20.0), 0)
    assert (auc, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 10))


def test_the_roc_rises_from_nothing_to_everything() -> None:
    random = np.random.default_rng(6)
    found = audit(random.normal(1, 1, 700), random.normal(0, 1, 900))
    assert found.roc[0] == (0.0, 0.0)
    assert found.roc[-1] == (1.0, 1.0)
    assert list(found.roc) == sorted(found.roc)
    assert len(found.roc) < 250
    assert sum(found.member_counts) == 700
    assert sum(found.non_member_counts) == 900


def test_results_repeat_and_survive_json() -> None:
    random = np.random.default_rng(6)
    members, others = random.normal(1, 1, 70), random.normal(0, 1, 90)
    found = audit(members, others)
    assert audit(members, others) == found
    assert MembershipResult.model_validate_json(found.model_dump_json()) == found
    assert audit(members, others, seed=1).calibrated.auc_interval != found.calibrated.auc_interval


@pytest.mark.parametrize(
    ("members", "others", "message"),
    [
        (Losses([1.0], [1.0, 2.0]), Losses([1.0], [1.0]), "member losses need"),
        (Losses([1.0], [1.0]), Losses([1.0, 2.0], []), "non-member losses need"),
        (Losses([], []), Losses([1.0], [1.0]), "member losses need"),
        (Losses([1.0, math.nan], [1.0, 2.0]), Losses([1.0], [1.0]), "not finite"),
        (Losses([1.0], [1.0]), Losses([1.0, 2.0], [1.0, math.inf]), "not finite"),
        (Losses([1.0, 2.0], [1.0, 2.0], tokens=[3]), Losses([1.0], [1.0]), "number of their tokens"),
        (Losses([1.0], [1.0]), Losses([1.0, 2.0], [1.0, 2.0], tokens=[3, 0]), "number of their tokens"),
    ],
)
def test_unusable_measurements_are_refused(members: Losses, others: Losses, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        membership_audit(members, others)


def test_short_texts_do_not_crowd_out_members() -> None:
    """Means over few tokens move far by chance: unweighted, they fill the top of the list and hide a leak."""
    random = np.random.default_rng(5)

    def falls(count: int, leak: float) -> tuple[NDArray[np.float64], list[int]]:
        tokens = random.integers(1, 60, count)
        return leak + random.normal(0, 1, count) / np.sqrt(tokens), tokens.tolist()

    (members, inside), (others, outside) = falls(1000, 0.4), falls(2000, 0.0)
    start = [3.0] * 2000
    blind = membership_audit(Losses((3 - members).tolist(), start[:1000]), Losses((3 - others).tolist(), start))
    seeing = membership_audit(
        Losses((3 - members).tolist(), start[:1000], tokens=inside),
        Losses((3 - others).tolist(), start, tokens=outside),
    )
    assert blind.verdict is not Verdict.FAIL
    assert seeing.verdict is Verdict.FAIL
    assert seeing.claimed_point.hits > 10 * blind.claimed_point.hits


def test_what_the_base_found_hardest_does_not_hide_a_leak() -> None:
    """A style that a model learns makes all texts of a person fall in proportion: that is no membership."""
    random = np.random.default_rng(4)

    def losses(count: int, leak: float) -> Losses:
        base = random.uniform(1, 9, count)
        return Losses((base * (1 - 0.3 - leak - random.normal(0, 0.05, count))).tolist(), base.tolist())

    members, others = losses(1000, 0.25), losses(2000, 0.0)
    fallen = [np.array(each.base) - np.array(each.release) for each in (members, others)]
    assert _operating_point(*fallen, 0.001).true_positive_rate < 0.5
    assert membership_audit(members, others).claimed_point.true_positive_rate > 0.9


def test_what_is_told_is_the_attack_that_was_judged() -> None:
    random = np.random.default_rng(6)
    base = random.uniform(2, 4, 2000)
    quiet = [Losses((base + random.normal(0, 0.1, 2000)).tolist(), base.tolist()) for _ in range(2)]
    loud = (random.normal(4, 1, 2000).tolist(), random.normal(0, 1, 2000).tolist())
    found = membership_audit(*quiet, likelihood_scores=loud)
    assert found.likelihood is not None
    assert found.claimed_point == found.likelihood.points[0]
    finding = membership_finding(found)
    assert finding.verdict is Verdict.FAIL
    assert finding.measured is not None
    assert finding.measured > 0.5
    assert f"{found.claimed_point.hits} of 2000" in finding.reason
