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
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr("os.urandom", lambda count, byte=byte: byte * count)
        assert np.isfinite(SystemRandom().normals(10)).all()
        assert np.abs(SystemRandom().normals(10)).max() < 9.6
        assert (SystemRandom().uniforms(10) < 1).all()


def test_only_the_seeded_source_repeats() -> None:
    assert np.array_equal(SeededRandom(1).normals(8), SeededRandom(1).normals(8))
    assert not np.array_equal(SystemRandom().normals(8), SystemRandom().normals(8))
