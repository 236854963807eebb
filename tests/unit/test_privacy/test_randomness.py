"""Random numbers: the right distributions, and no seed to guess."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from privacy.randomness import RandomSource, SeededRandom, SystemRandom


@pytest.mark.parametrize("source", [SystemRandom(), SeededRandom(5)])
def test_distributions(source: RandomSource) -> None:
    # p < 1e-7 in about one run of ten million: a fault shows as p = 0.
    normals = source.normals(200_001)
    assert normals.shape == (200_001,)
    assert stats.kstest(normals, "norm").pvalue > 1e-7
    assert abs(stats.kurtosis(normals)) < 0.1
    uniforms = source.uniforms(200_000)
    assert stats.kstest(uniforms, "uniform").pvalue > 1e-7
    assert uniforms.min() >= 0
    assert uniforms.max() < 1


@pytest.mark.parametrize("source", [SystemRandom(), SeededRandom(5)])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_small_counts(source: RandomSource, count: int) -> None:
    assert source.normals(count).shape == source.uniforms(count).shape == (count,)


def test_chunks_do_not_repeat_or_correlate() -> None:
    normals = SystemRandom().normals((1 << 20) + (1 << 19))
    halves = normals[: 1 << 19], normals[1 << 19 : 1 << 20]
    assert abs(np.corrcoef(*halves)[0, 1]) < 0.01
    assert np.unique(normals).size > normals.size - 10


def test_extreme_words_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, 2**64 - 1):
        monkeypatch.setattr(SystemRandom, "words", lambda _, count, word=word: np.full(count, word, dtype=np.uint64))
        assert np.isfinite(SystemRandom().normals(10)).all()
        assert np.abs(SystemRandom().normals(10)).max() < 9.6
        assert (SystemRandom().uniforms(10) < 1).all()


def test_only_the_seeded_source_repeats() -> None:
    assert np.array_equal(SeededRandom(1).normals(8), SeededRandom(1).normals(8))
    assert not np.array_equal(SystemRandom().normals(8), SystemRandom().normals(8))


def test_every_call_draws_a_key_of_its_own_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counting(count: int) -> bytes:
        drawn.append(count)
        return bytes([len(drawn)]) * count

    monkeypatch.setattr("os.urandom", counting)
    first, second = SystemRandom().words(4), SystemRandom().words(4)
    assert drawn == [32, 32]
    assert not np.array_equal(first, second)
