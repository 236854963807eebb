"""Exposure: secrets that were learnt stand first, and chance is not taken for memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.audits import Verdict
from privacy.audits.exposure import exposure_finding, ranks_of, spread_over
from privacy.errors import AuditError

RANDOM = np.random.default_rng(0)
FORGETTING = RANDOM.random((8, 256))
LEARNT = np.column_stack([np.full(8, -1.0), FORGETTING[:, 1:]])


def test_a_secret_that_was_learnt_has_all_bits() -> None:
    finding = exposure_finding(LEARNT, LEARNT, repeats=4)
    assert finding.verdict is Verdict.FAIL
    assert finding.measured == math.log2(256)


def test_forgetting_passes_only_beside_a_control_that_remembers() -> None:
    assert exposure_finding(FORGETTING, LEARNT, repeats=4).verdict is Verdict.PASS
    alone = exposure_finding(FORGETTING, FORGETTING, repeats=4)
    assert alone.verdict is Verdict.INCONCLUSIVE
    assert alone.is_control_caught is False


@pytest.mark.slow
def test_chance_is_rarely_taken_for_memory() -> None:
    random, runs = np.random.default_rng(1), 2000
    accused = sum(
        exposure_finding(random.random((4, 64)), LEARNT, repeats=1).verdict is Verdict.FAIL for _ in range(runs)
    )
    assert accused <= 8


def test_a_tie_counts_against_the_secret() -> None:
    assert ranks_of(np.zeros((2, 10))).tolist() == [10, 10]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_ranks_are_those_of_sorting(row: list[float]) -> None:
    rank = int(ranks_of(np.array([row]))[0])
    assert 1 <= rank <= len(row)
    assert rank == 1 + sum(other <= row[0] for other in row[1:])


@pytest.mark.parametrize("losses", [np.zeros((2, 1)), np.zeros(3), np.full((1, 4), np.inf)])
def test_losses_that_make_no_sense_are_refused(losses: np.ndarray) -> None:
    with pytest.raises(AuditError):
        ranks_of(losses)


def test_secrets_are_dealt_in_turn() -> None:
    assert spread_over(["a", "b", "c"], 2) == (("a", "c"), ("b",))
