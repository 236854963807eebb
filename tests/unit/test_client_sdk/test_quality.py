import math
import statistics

import pytest

from client_sdk.device_config import DeviceConfig, ReportPolicy
from client_sdk.health import HealthFacts
from client_sdk.quality import noised_increase, quality_of
from delta_updates import Quality

MEASURED = HealthFacts(tokens_per_second=12.5, probe_loss=2.5, serving_probe_loss=2.4, peak_memory_bytes=400_000_000)


def test_nothing_is_told_unless_the_owner_agreed() -> None:
    assert quality_of(MEASURED, DeviceConfig().reports) is None
    assert quality_of(None, ReportPolicy(share_speed=True, share_loss=True)) is None


def test_what_is_agreed_to_is_told_and_no_more() -> None:
    speed = quality_of(MEASURED, ReportPolicy(share_speed=True))
    assert speed == Quality(tokens_per_second=12.5, memory_bytes=400_000_000)
    loss = quality_of(MEASURED, ReportPolicy(share_loss=True))
    assert loss is not None
    assert (loss.tokens_per_second, loss.memory_bytes) == (None, None)
    assert loss.loss_increase is not None


def test_what_was_not_measured_is_not_told() -> None:
    both = ReportPolicy(share_speed=True, share_loss=True)
    assert quality_of(HealthFacts(probe_loss=2.5), both) is None
    assert quality_of(HealthFacts(), both) is None


def test_the_mean_of_many_is_right_and_one_says_little() -> None:
    told = [noised_increase(0.1, epsilon=1.0) for _ in range(20_000)]
    # A Laplace distribution of scale (2 · 0.25) / ε has the standard deviation √2 · 0.5.
    assert statistics.fmean(told) == pytest.approx(0.1, abs=0.03)
    assert statistics.pstdev(told) == pytest.approx(math.sqrt(2) * 0.5, rel=0.05)
    assert min(told) < -1 < 1 < max(told)


def test_no_two_inputs_are_told_apart_by_more_than_epsilon() -> None:
    """Each answer is at most e^ε as likely from one end of the range as from the other (with room for chance)."""
    low = [noised_increase(-9.0, epsilon=1.0) for _ in range(40_000)]
    high = [noised_increase(math.inf, epsilon=1.0) for _ in range(40_000)]
    for cut in (-1.0, -0.5, 0.0, 0.5, 1.0):
        ours, theirs = sum(value <= cut for value in low), sum(value <= cut for value in high)
        assert ours <= math.e * theirs * 1.2


def test_answers_lie_on_a_grid_whatever_was_measured() -> None:
    for value in (0.1, math.pi / 100, -1e-9, math.nan):
        told = noised_increase(value, epsilon=0.5) * 1024
        assert told == round(told)
