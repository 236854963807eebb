"""Three accountants: published figures, and that they bracket each other."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.second_opinions import PRV_ERROR, Opinions, opinions_of

DELTA = 1e-5
# (sampling probability, noise multiplier, steps): RDP, PRV, PLD; the facts that this room was built on.
KNOWN = [
    (0.01, 0.6, 100, 4.831, 3.826, 3.816),
    (0.01, 1.0, 500, 1.653, 1.336, 1.326),
    (0.01, 1.2, 100, 0.784, 0.457, 0.446),
    (0.05, 1.0, 500, 8.297, 7.534, 7.524),
    (0.1, 1.0, 100, 7.899, 7.057, 7.047),
]


@pytest.mark.parametrize(("probability", "noise", "steps", "rdp", "prv", "pld"), KNOWN)
def test_the_figures_are_those_known(
    probability: float, noise: float, steps: int, rdp: float, prv: float, pld: float
) -> None:
    found = opinions_of(noise_multiplier=noise, sampling_probability=probability, steps=steps, target_delta=DELTA)
    # Which orders are tried decides the last digits of RDP.
    assert (found.rdp, found.prv, found.pld) == (
        pytest.approx(rdp, abs=1e-2),
        pytest.approx(prv, abs=2e-3),
        pytest.approx(pld, abs=2e-3),
    )
    assert found.agree


@settings(max_examples=12, deadline=None)
@given(
    probability=st.floats(0.002, 1),
    noise=st.floats(0.6, 4),
    steps=st.integers(1, 300),
    delta=st.sampled_from([1e-4, 1e-5, 1e-6]),
)
@pytest.mark.slow
def test_they_bracket_each_other(probability: float, noise: float, steps: int, delta: float) -> None:
    assert opinions_of(noise_multiplier=noise, sampling_probability=probability, steps=steps, target_delta=delta).agree


def test_without_noise_there_is_no_bound() -> None:
    found = opinions_of(noise_multiplier=0, sampling_probability=0.5, steps=1, target_delta=DELTA)
    assert math.isinf(found.pld)
    assert found.agree


def test_so_little_noise_that_one_of_them_gives_up_leaves_the_others() -> None:
    found = opinions_of(noise_multiplier=0.2, sampling_probability=0.5, steps=500, target_delta=DELTA)
    assert found.prv is None
    assert 50 < found.pld <= found.rdp


@pytest.mark.parametrize(
    "opinions",
    [
        Opinions(pld=2.0, rdp=1.9, prv=2.0),
        Opinions(pld=2.0, rdp=2.5, prv=2.0 + 3 * PRV_ERROR),
        Opinions(pld=math.inf, rdp=3.0, prv=None),
    ],
)
def test_a_contradiction_is_seen(opinions: Opinions) -> None:
    assert not opinions.agree


@pytest.mark.parametrize(
    ("noise", "probability", "steps", "delta"),
    [(-1, 0.1, 1, DELTA), (1, 0, 1, DELTA), (1, 1.5, 1, DELTA), (1, 0.1, 0, DELTA), (1, 0.1, 1, 1)],
)
def test_nonsense_is_refused(noise: float, probability: float, steps: int, delta: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        opinions_of(noise_multiplier=noise, sampling_probability=probability, steps=steps, target_delta=delta)
