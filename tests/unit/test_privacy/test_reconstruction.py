"""The span check: it reads words out of exact updates, and nothing out of noise."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.audits import Verdict
from privacy.audits.finding import clopper_pearson
from privacy.audits.reconstruction import Attempt, attempt, distances_from_span, reconstruction_finding
from privacy.errors import AuditError

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.standard_normal((500, 64))


def rows_from(words: list[int], *, noise: float = 0.0, rank: int = 8) -> np.ndarray:
    """What a factor A of this rank gets from these words: a random mixture of their inputs in each row."""
    mixture = RANDOM.standard_normal((rank, len(words)))
    return mixture @ INPUTS[words] + noise * RANDOM.standard_normal((rank, INPUTS.shape[1]))


def test_words_lie_in_the_span_and_others_do_not() -> None:
    distances = distances_from_span(rows_from([3, 77, 400]), INPUTS)
    assert set(np.argsort(distances)[:3].tolist()) == {3, 77, 400}
    assert distances[[3, 77, 400]].max() < 1e-6
    assert np.delete(distances, [3, 77, 400]).min() > 0.3


def attempts(noise: float, *, size: int = 6) -> list:
    texts = [RANDOM.choice(500, size=size, replace=False).tolist() for _ in range(30)]
    return [attempt(rows_from(words, noise=noise), INPUTS, words) for words in texts]


def test_an_exact_update_fails_and_noise_passes() -> None:
    exact, noised, many = attempts(0.0), attempts(1e4), attempts(0.0, size=60)
    assert reconstruction_finding(exact, exact, many, vocabulary=500).verdict is Verdict.FAIL
    safe = reconstruction_finding(noised, exact, many, vocabulary=500)
    assert safe.verdict is Verdict.PASS
    assert safe.facts["control"] == 1.0
    assert safe.facts["summed_without_noise"] < 0.6


def test_silence_where_the_control_gives_nothing_away_is_inconclusive() -> None:
    noised = attempts(1e4)
    assert reconstruction_finding(noised, noised, noised, vocabulary=500).verdict is Verdict.INCONCLUSIVE


def test_updates_that_give_away_as_much_as_is_claimed_are_rarely_accused() -> None:
    """2,000 audits at the very edge of the claim: at 99.9% certainty few fail by chance."""
    random, runs = np.random.default_rng(0), 2000
    caught = [Attempt(words=6, found=6)] * 12
    alarms = 0
    for _ in range(runs):
        found = [Attempt(words=6, found=int(n)) for n in random.binomial(6, 0.1, size=12)]
        alarms += reconstruction_finding(found, caught, caught, vocabulary=500).verdict is Verdict.FAIL
    assert clopper_pearson(alarms, runs)[0] <= 0.001


@pytest.mark.parametrize("rows", [np.zeros((4, 64)), np.full((4, 64), np.nan)])
def test_updates_that_hold_nothing_are_refused(rows: np.ndarray) -> None:
    with pytest.raises(AuditError, match="nothing"):
        distances_from_span(rows, INPUTS)
