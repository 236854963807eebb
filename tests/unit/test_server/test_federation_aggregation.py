import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import Contribution
from server.errors import RecipeError
from server.federation import coordinates, krum
from server.federation.aggregation import aggregate
from server.federation.coordinates import coordinate_median, trimmed_mean
from server.federation.krum import krum_scores, krum_selection, squared_distances
from server.federation.recipe import Recipe
from server.federation.replies import Accepted
from server.federation.rule import AggregationRule, trimmed_of

MEAN = AggregationRule(name="mean")
MEDIAN = AggregationRule(name="median")
TRIMMED = AggregationRule(name="trimmed-mean", trim_fraction=0.3)
KRUM = AggregationRule(name="multi-krum", assumed_hostile=2)
ROBUST = [MEDIAN, TRIMMED, KRUM]


def names(rule):
    return rule.name


def accepted(values, *, num_examples=10):
    """One contribution a row; the row's halves are two tensors."""
    replies = []
    for number, row in enumerate(np.asarray(values, np.float32)):
        middle = len(row) // 2
        facts = Contribution(
            device_id=f"d{number}",
            run_id="run",
            server_round=1,
            base_hash="b" * 64,
            num_examples=num_examples,
            noise_multiplier=1.0,
            sampling_probability=0.5,
            steps=1,
            clipping_norm=1.0,
            target_delta=1e-5,
        )
        replies.append(Accepted(number, facts, {"a": row[:middle], "b": row[middle:].reshape(1, -1)}))
    return replies


def combined(values, rule):
    update = aggregate(accepted(values), rule).update
    return np.concatenate([update["a"], update["b"].ravel()])


def rows(count, *, width=6):
    return st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).standard_normal((count, width), np.float32)
    )


@pytest.mark.parametrize("rule", [MEAN, *ROBUST], ids=names)
@given(values=rows(9), order=st.permutations(range(9)))
def test_the_order_of_the_replies_does_not_matter(rule, values, order):
    np.testing.assert_allclose(combined(values[list(order)], rule), combined(values, rule), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ROBUST, ids=names)
@given(values=rows(1), count=st.integers(7, 12))
def test_when_all_agree_every_rule_is_the_mean(rule, values, count):
    same = np.repeat(values, count, axis=0)
    np.testing.assert_allclose(combined(same, rule), combined(same, MEAN), rtol=1e-6)


@pytest.mark.parametrize("rule", ROBUST, ids=names)
@given(values=rows(12))
def test_without_liars_every_rule_stays_among_the_honest_values(rule, values):
    result = combined(values, rule)
    assert np.all(result >= values.min(axis=0) - 1e-6)
    assert np.all(result <= values.max(axis=0) + 1e-6)


@given(values=rows(11), cut=st.integers(0, 5))
def test_the_trimmed_mean_goes_from_the_mean_to_the_median(values, cut):
    ordered = np.sort(values, axis=0)[cut : 11 - cut]
    result = combined(values, AggregationRule(name="trimmed-mean", trim_fraction=cut / 11))
    np.testing.assert_allclose(result, ordered.mean(axis=0), rtol=1e-4, atol=1e-6)
    if cut == 5:
        np.testing.assert_allclose(result, combined(values, MEDIAN), rtol=1e-6)


def lies(count, size, seed):
    """Hostile updates: all the same far point, or each its own, with both signs."""
    draw = np.random.default_rng(seed)
    far = np.float32(10.0) ** draw.integers(2, 20)
    if draw.integers(2):
        return np.full((count, size), far * draw.choice([-1, 1]), np.float32)
    return (far * draw.standard_normal((count, size))).astype(np.float32)


@pytest.mark.parametrize(
    ("rule", "most"),
    [(MEDIAN, 4), (AggregationRule(name="trimmed-mean", trim_fraction=0.44), 4), (KRUM, 2)],
    ids=["median", "trimmed-mean", "multi-krum"],
)
@given(values=rows(9), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_up_to_their_number_liars_cannot_pull_it_out_of_the_honest_range(rule, most, values, seed, data):
    hostile = data.draw(st.integers(1, most))
    values[:hostile] = lies(hostile, 6, seed)
    honest = values[hostile:]
    result = combined(values, rule)
    assert np.all(result >= honest.min(axis=0) - 1e-5)
    assert np.all(result <= honest.max(axis=0) + 1e-5)


@pytest.mark.parametrize(
    ("rule", "enough"), [(MEAN, 1), (MEDIAN, 5), (AggregationRule(name="trimmed-mean", trim_fraction=0.2), 3)], ids=str
)
def test_beyond_the_breakdown_point_liars_decide(rule, enough):
    values = np.zeros((9, 6), np.float32)
    values[: enough - 1] = 1e6
    before = combined(values, rule)
    values[enough - 1] = 1e6
    assert np.all(before <= 0)
    assert np.all(combined(values, rule) > 1e4)


def test_multi_krum_is_the_mean_of_the_honest_and_names_whom_it_set_aside():
    values = np.random.default_rng(3).standard_normal((9, 6)).astype(np.float32)
    values[[2, 5]] = 500.0
    result = aggregate(accepted(values), KRUM)
    assert result.set_aside == ("d2", "d5")
    honest = np.delete(values, [2, 5], axis=0).mean(axis=0)
    np.testing.assert_allclose(result.update["a"], honest[:3], rtol=1e-5)


def test_multi_krum_breaks_when_there_are_more_liars_than_it_was_told():
    values = np.random.default_rng(3).standard_normal((9, 6)).astype(np.float32)
    values[:6] = 500.0
    assert combined(values, KRUM).mean() > 100


@given(values=rows(8, width=20))
def test_distances_are_those_of_the_definition(values):
    updates = [item.update for item in accepted(values + np.float32(1000.0))]
    shifted = (values + np.float32(1000.0)).astype(np.float64)
    for i, j in itertools.combinations(range(8), 2):
        expected = np.sum((shifted[i] - shifted[j]) ** 2)
        assert squared_distances(updates)[i, j] == pytest.approx(expected, rel=1e-9)


def test_one_giant_does_not_blur_the_distances_of_the_others():
    values = np.random.default_rng(0).standard_normal((8, 20)).astype(np.float32)
    values[0] = 1e15  # the first by name, as a liar may choose to be
    updates = [item.update for item in accepted(values)]
    expected = np.sum((values[3].astype(np.float64) - values[4]) ** 2)
    assert squared_distances(updates)[3, 4] == pytest.approx(expected, rel=1e-6)


def test_scores_count_the_nearest_others_and_not_the_update_itself():
    places = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
    distances = (places[:, None] - places[None, :]) ** 2
    # n - f - 2 = 2 neighbours
    np.testing.assert_array_equal(krum_scores(distances, hostile=1)[:4], [1 + 4, 1 + 1, 1 + 1, 1 + 4])
    with pytest.raises(ValueError, match="take 7 updates, there are 5"):
        krum_scores(distances, hostile=2)


@settings(max_examples=20)
@given(values=rows(7, width=50), block=st.integers(1, 400))
def test_the_size_of_a_block_changes_nothing(values, block):
    updates = [item.update for item in accepted(values)]
    whole = coordinate_median(updates), trimmed_mean(updates, trim_fraction=0.2), krum_selection(updates, hostile=1)
    before = coordinates._VALUES_AT_ONCE, krum._VALUES_AT_ONCE
    coordinates._VALUES_AT_ONCE = krum._VALUES_AT_ONCE = block
    try:
        parts = coordinate_median(updates), trimmed_mean(updates, trim_fraction=0.2), krum_selection(updates, hostile=1)
    finally:
        coordinates._VALUES_AT_ONCE, krum._VALUES_AT_ONCE = before
    assert whole[2] == parts[2]
    for one, other in zip(whole[:2], parts[:2], strict=True):
        for name, tensor in one.items():
            np.testing.assert_array_equal(tensor, other[name])


def test_two_huge_middle_values_do_not_overflow():
    values = np.full((4, 2), 3e38, np.float32)
    np.testing.assert_array_equal(combined(values, MEDIAN), values[0])


def test_a_fraction_cuts_whole_devices_and_is_not_misled_by_its_last_digit():
    assert [trimmed_of(n, 0.2) for n in (3, 5, 6, 10)] == [1, 1, 2, 2]
    assert trimmed_of(30, 0.1) == 3
    assert trimmed_of(100, 0.29) == 29


def test_robust_rules_do_not_believe_example_counts():
    replies = accepted([[0.0, 0.0]] * 4) + accepted([[9.0, 9.0]], num_examples=10_000)
    assert aggregate(replies, MEDIAN).update["a"] == 0.0
    assert aggregate(replies, MEAN).update["a"] > 8.0


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"aggregation": "median", "quorum": 2}, "it takes 3"),
        ({"aggregation": "trimmed-mean", "quorum": 3, "trim_fraction": 0.4}, "leaves nothing of 3"),
        ({"aggregation": "multi-krum", "quorum": 6, "assumed_hostile": 2}, "takes 7 updates, not 6"),
        ({"aggregation": "krum"}, "aggregation"),
    ],
)
def test_a_recipe_whose_quorum_defends_nothing_is_refused_at_the_start(keys, said):
    config = {"model": "chat", "cohort": 10, "quorum": 7} | {k.replace("_", "-"): v for k, v in keys.items()}
    with pytest.raises(RecipeError, match=said):
        Recipe.from_run_config(config)


def test_a_recipe_that_defends_every_round_is_taken():
    recipe = Recipe(model="chat", cohort=10, quorum=7, aggregation="multi-krum", assumed_hostile=2)
    assert recipe.aggregation_rule == KRUM.__class__(name="multi-krum", assumed_hostile=2)
    with pytest.raises(ValueError, match="takes 7 updates"):
        aggregate(accepted(np.zeros((6, 2))), recipe.aggregation_rule)
