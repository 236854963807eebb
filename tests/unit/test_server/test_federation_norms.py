import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.federation.health import RoundHealth
from server.federation.norms import norm_report, repeated_outliers, robust_scores

ORDINARY = {f"d{n}": 1.0 + 0.01 * n for n in range(9)}


def test_a_huge_and_a_tiny_norm_stand_out_the_further_one_first():
    report = norm_report(ORDINARY | {"huge": 40.0, "tiny": 0.5})
    assert list(report.outliers) == ["huge", "tiny"]
    assert report.outliers["huge"] > 100
    assert report.outliers["tiny"] < -3.5
    assert (report.count, report.smallest, report.median, report.largest) == (11, 0.5, pytest.approx(1.04), 40.0)


def test_many_liars_do_not_hide_each_other():
    # By mean and standard deviation none of these four would be beyond 3.5.
    report = norm_report(ORDINARY | {f"liar{n}": 40.0 for n in range(4)})
    assert set(report.outliers) == {f"liar{n}" for n in range(4)}


def test_of_few_devices_or_equal_norms_nobody_stands_out():
    assert norm_report({}) is None
    assert norm_report({"a": 1.0, "b": 1.0, "c": 1.0, "d": 90.0}).outliers == {}
    assert norm_report(dict.fromkeys("abcdef", 3.0)).outliers == {}


def test_one_that_differs_among_equals_stands_out():
    assert set(norm_report(dict.fromkeys("abcdefgh", 1.0) | {"z": 2.0}).outliers) == {"z"}


def test_the_cut_is_that_of_iglewicz_and_hoaglin():
    # Median 3, MAD 1: z = 0.6745 (x - 3).
    norms = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0}
    assert robust_scores(norms)["e"] == pytest.approx(1.349)


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0, 1e6), max_size=30))
def test_what_is_recorded_can_be_read_again(norms):
    report = norm_report(norms)
    facts = {"norms": None if report is None else report.to_json()}
    health = RoundHealth.of(json.loads(json.dumps(facts)))
    assert (health.norms is None) == (not norms)
    if health.norms is not None:
        assert health.norms.count == len(norms)
        assert set(health.norms.outliers) <= set(norms)


def test_who_repeats_is_counted():
    assert repeated_outliers([["a", "b"], ["a"], [], ["a", "c", "b"]]) == {"a": 3, "b": 2}


def test_facts_of_another_release_are_left_out_not_an_error():
    assert RoundHealth.of({"seconds": 1.0}) == RoundHealth()
    assert RoundHealth.of({"norms": "many", "refused": 3}) == RoundHealth()
