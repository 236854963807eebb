"""A hundred thousand devices: a good version reaches them all, a bad one stops itself early."""

import pytest
from simulators.rollout_fleet import Version, simulate

from server.rollouts import AT_ONCE, Launch, parse_plan

STAGED = Launch(plan=parse_plan(phases=(1, 10, 50, 100), soak_hours=2.0, min_reports=200), state="running")


def test_a_good_version_reaches_everybody_phase_by_phase() -> None:
    result = simulate(Version(), STAGED, days=1)
    assert result.rollout.state == "finished"
    assert result.confirmed > 88_000  # the tenth that asks once in three days is on its way
    assert (result.reverted, result.offered >= result.confirmed) == (0, True)
    shares = result.share_by_hour
    assert list(shares) == sorted(shares)
    assert shares[2] <= 0.01 < shares[4] <= 0.1 < shares[6] <= 0.5 < shares[8]


@pytest.mark.parametrize("reverts", [1.0, 0.2, 0.125])
def test_a_bad_version_stops_itself_within_its_first_phase(reverts: float) -> None:
    result = simulate(Version(reverts=reverts), STAGED, days=1)
    assert (result.rollout.state, result.rollout.phase) == ("halted", 0)
    assert result.offered < 1_000


def test_without_a_rollout_the_same_version_reaches_nearly_all() -> None:
    assert simulate(Version(reverts=1.0), AT_ONCE, days=1).reverted > 88_000


@pytest.mark.slow
def test_between_the_thresholds_it_waits_for_people() -> None:
    result = simulate(Version(reverts=0.07), STAGED, days=1)
    assert (result.rollout.state, result.rollout.phase) == ("running", 0)
