"""The user level in the server's loop: what is added, who may take part, what is charged, and when a run stops."""

import random

import numpy as np
import pytest
from simulators.federated_run import SHAPE, honest, run_maker

from privacy import BudgetExceededError, RoundInstructions
from privacy.banded_noise import BandedNoise
from privacy.budget import PrivacyBudget
from privacy.promises import promised
from privacy.randomness import SeededRandom
from privacy.user_level import user_epsilon
from server.errors import ConflictError, DatabaseError, FederationError, RecipeError
from server.federation.cohort import draw_poisson
from server.federation.recipe import Recipe

BOTH = {"privacy_mode": "both", "user_noise_multiplier": 4.0, "user_target_epsilon": 50.0, "user_clipping_norm": 1.0}
POISSON = {"cohort_sampling": "poisson", "sampling_probability": 0.5}


@pytest.fixture
def make_run(tmp_path):
    yield from run_maker(tmp_path)


def only(adapter):
    (tensor,) = adapter.values()
    return tensor


def users_of(registry, run_id="run"):
    return [e for e in registry.privacy_events(run_id=run_id) if e.privacy_unit == "user"]


def fleet(count, value=0.1):
    return {n: honest(f"d{n}", value) for n in range(count)}


def silent(message):
    return None


def test_an_unweighted_sum_clipped_again_with_noise_once_over_the_expected_cohort(make_run):
    """0.1 everywhere has norm 0.2 and stays; 5.0 is clipped to norm 1, that is 0.5 everywhere; counts do not matter."""
    nodes = {1: honest("a", 0.1, 256), 2: honest("b", 5.0, 1), 3: silent, 4: silent}
    run = make_run(nodes, num_server_rounds=1, cohort=4, noise=SeededRandom(3), **BOTH)
    expected = (0.1 + 0.5 + 4.0 * SeededRandom(3).normals(4).reshape(SHAPE)) / 4
    np.testing.assert_allclose(only(run.execute()), expected, rtol=1e-5)


def test_missing_replies_leave_the_noise_as_it_was_promised(make_run):
    found = {}
    for name, nodes in {"whole": fleet(4, 0.0), "half": fleet(2, 0.0) | {8: silent, 9: silent}}.items():
        options = {"num_server_rounds": 1, "cohort": 4, "max_participations": 2} | BOTH
        found[name] = only(make_run(nodes, run_id=name, noise=SeededRandom(1), **options).execute())
    np.testing.assert_array_equal(found["whole"], found["half"])
    assert len(users_of(make_run.registry, "whole")[0].devices) == 4
    assert len(users_of(make_run.registry, "half")[0].devices) == 2


def test_noise_is_not_what_numpy_is_seeded_with(make_run):
    results = []
    for name in ("one", "two"):
        np.random.seed(0)  # noqa: NPY002 - Flower's own mechanisms draw from this generator
        random.seed(0)
        run = make_run(fleet(3), run_id=name, num_server_rounds=1, max_participations=2, **BOTH)
        results.append(only(run.execute()))
    assert np.abs(results[0] - results[1]).max() > 0.01


def test_both_units_are_charged_in_one_transaction_and_chained(make_run):
    run = make_run(fleet(3), num_server_rounds=2, **BOTH)
    run.execute()
    events = make_run.registry.privacy_events(run_id="run")
    assert [e.privacy_unit for e in events] == ["example"] * 3 + ["user"] + ["example"] * 3 + ["user"]
    user = events[3]
    assert (user.population, user.cohort_rule, user.mechanism) == ("chat", "fixed", "gaussian_capped")
    assert (user.devices, user.noise_multiplier, user.clipping_norm) == (("d0", "d1", "d2"), 4.0, 1.0)
    assert len(make_run.registry.verify_privacy_chain("chat")) == 8
    assert make_run.registry.privacy_events(model="chat", privacy_unit="user") == (events[3], events[7])


def test_a_void_round_is_charged_if_anything_was_seen(make_run):
    for name, first in {"seen": honest("d0"), "nothing": silent}.items():
        run = make_run({0: first, 1: silent, 2: silent}, run_id=name, num_server_rounds=1, **BOTH)
        with pytest.raises(FederationError, match="void"):
            run.execute()
    assert [e.devices for e in users_of(make_run.registry, "seen")] == [("d0",)]
    assert users_of(make_run.registry, "nothing") == []
    assert make_run.registry.rounds("seen")[0].artifacts == {}


def test_a_device_at_its_cap_sits_out_across_runs_but_its_examples_are_charged(make_run):
    make_run(fleet(3), run_id="first", num_server_rounds=2, max_participations=2, **BOTH).execute()
    nodes = fleet(3) | {7: honest("new-1"), 8: honest("new-2")}
    later = make_run(nodes, run_id="later", num_server_rounds=1, cohort=5, max_participations=2, **BOTH)
    later.execute()
    (user,) = users_of(make_run.registry, "later")
    assert user.devices == ("new-1", "new-2")
    (row,) = make_run.registry.rounds("later")
    assert all("max-participations" in row.failures[str(n)] for n in range(3))
    examples = [e for e in make_run.registry.privacy_events(run_id="later") if e.privacy_unit == "example"]
    assert {e.device_id for e in examples} == {"d0", "d1", "d2", "new-1", "new-2"}


def test_devices_keep_their_distance_and_are_not_even_asked_once_they_are_known(make_run):
    run = make_run(fleet(6), num_server_rounds=3, cohort=2, quorum=1, min_separation=3, **BOTH)
    run.execute()
    rounds = [e.devices for e in users_of(make_run.registry)]
    assert sorted(d for devices in rounds for d in devices) == [f"d{n}" for n in range(6)]
    asked = [m.metadata.dst_node_id for m in run.grid.sent]
    assert len(asked) == len(set(asked)) == 6


def test_a_run_that_would_overspend_does_not_start(make_run):
    with pytest.raises(BudgetExceededError, match=r"user-noise-multiplier \d+\.\d+ would fit"):
        make_run(fleet(3), **(BOTH | {"user_noise_multiplier": 0.5, "user_target_epsilon": 2.0}))
    assert make_run.registry.rounds("run") == ()


def test_noise_is_calibrated_to_the_budget_and_the_budget_lasts_over_runs(make_run):
    options = BOTH | {"user_noise_multiplier": 0.0, "user_target_epsilon": 2.0}
    make_run(fleet(3), run_id="first", num_server_rounds=2, **options).execute()
    spent = user_epsilon(users_of(make_run.registry, "first"), target_delta=1e-6)
    assert 1.9 < spent <= 2.0
    (first, _) = users_of(make_run.registry, "first")
    again = make_run(fleet(3), run_id="again", num_server_rounds=2, max_participations=9, **options)
    assert again._users.noise_multiplier > 5 * first.noise_multiplier
    assert make_run.registry.user_budget("chat") == PrivacyBudget(target_epsilon=2.0, target_delta=1e-6)
    with pytest.raises(RecipeError, match="have a budget of epsilon 2"):
        make_run(fleet(3), run_id="more", **(options | {"user_target_epsilon": 9.0}))


def test_a_fork_of_a_base_starts_from_what_was_spent_on_it(make_run):
    """Fine-tuning one base under two names: the second run needs more noise, or more budget."""
    options = BOTH | {"user_noise_multiplier": 0.0, "user_target_epsilon": 2.0, "num_server_rounds": 2}
    first = make_run(fleet(3), run_id="first", **options)
    first.execute()
    fork = make_run(fleet(3), run_id="fork", model="fork", **options)
    assert fork._users.noise_multiplier > 5 * first._users.noise_multiplier
    budget = make_run.registry.user_budget("fork")
    make_run.registry.set_user_budget("fork", budget, is_apart=True)
    apart = make_run(fleet(3), run_id="apart", model="fork", **options)
    assert apart._users.noise_multiplier == first._users.noise_multiplier
    make_run.registry.set_user_budget("fork", budget, is_apart=False)
    # Of two at a time on one base, one is told.
    slow = make_run(fleet(3), run_id="slow", model="fork", **(options | {"user_target_epsilon": 2.0}))
    make_run(fleet(3), run_id="quick", max_participations=9, **options).execute()
    with pytest.raises(ConflictError, match="or of another model on its base"):
        slow.execute()


def test_a_run_stops_before_the_round_that_another_run_has_left_no_budget_for(make_run):
    options = BOTH | {"user_target_epsilon": 3.0, "max_participations": 9}
    slow = make_run(fleet(3), run_id="slow", num_server_rounds=4, **options)
    make_run(fleet(3), run_id="quick", num_server_rounds=4, **options).execute()
    with pytest.raises(ConflictError, match="Another run charged the users"):
        slow.execute()
    assert users_of(make_run.registry, "slow") == []
    with pytest.raises(BudgetExceededError, match="above their budget"):
        make_run(fleet(3), run_id="slow", num_server_rounds=4, **options)


def test_poisson_asks_each_device_independently_and_nobody_in_a_silent_ones_place(make_run):
    rng = random.Random(5)
    counts = [len(draw_poisson(range(100), probability=0.3, rng=rng)) for _ in range(400)]
    assert np.mean(counts) == pytest.approx(30, abs=1)
    assert np.var(counts) == pytest.approx(21, rel=0.25)  # of a fixed size it would be none
    assert draw_poisson(range(3), probability=1e-9, rng=rng) == ()
    nodes = fleet(6) | dict.fromkeys(range(6, 12), silent)
    run = make_run(nodes, num_server_rounds=4, cohort=6, quorum=1, max_void_rounds=4, **(BOTH | POISSON))
    run.execute()
    for event in users_of(make_run.registry):
        asked = {m.metadata.dst_node_id for m in run.grid.sent if round_of(m) == event.server_round}
        assert event.devices == tuple(f"d{n}" for n in sorted(asked) if n < 6)
        assert (event.sampling_probability, event.mechanism) == (0.5, "poisson_subsampled_gaussian")


@pytest.mark.parametrize("mode", ["user", "both"])
def test_no_poisson_round_tells_by_being_void_how_many_were_drawn(make_run, mode):
    """A round that drew nobody is released, with its noise, and charged like any other."""
    noise = 0.0 if mode == "user" else 8.0
    nodes = {n: honest(f"d{n}", 0.0, noise_multiplier=noise) for n in range(3)}
    options = BOTH | {"cohort_sampling": "poisson", "sampling_probability": 0.01, "privacy_mode": mode}
    run = make_run(nodes, num_server_rounds=4, max_void_rounds=0, **options)
    before = only(run.adapter).copy()
    run.execute()
    rows, events = make_run.registry.rounds("run"), users_of(make_run.registry)
    assert {row.status for row in rows} == {"released"}
    assert [e.server_round for e in events] == [1, 2, 3, 4]
    assert min(row.replies for row in rows) == 0
    assert () in {e.devices for e in events}
    assert np.all(only(run.adapter) != before)
    of_rounds = user_epsilon(events, target_delta=1e-6)
    assert of_rounds == user_epsilon([e.model_copy(update={"devices": ()}) for e in events], target_delta=1e-6)


def round_of(message):
    return RoundInstructions.from_config(dict(message.content.config_records["instructions"])).server_round


def test_banded_noise_goes_on_after_a_crash_and_its_key_can_be_forgotten(make_run):
    options = {"noise_bands": 3, "min_separation": 3, "cohort": 2, "quorum": 1, "max_participations": 2} | BOTH
    for last in (2, 5):  # a new object each time, as after a crash
        run = make_run(fleet(9, 0.0), num_server_rounds=5, **options)
        run.resume()
        for server_round in range(run.next_round, last + 1):
            run._run_round(server_round)
    key = make_run.registry.noise_key("run", fresh=b"y" * 32)
    noise = BandedNoise(key, bands=3)
    released = [row.server_round for row in make_run.registry.rounds("run") if row.status == "released"]
    assert {1, 2} < set(released)
    expected = sum(noise.at(server_round, count=4) for server_round in released) * 4.0 / 2
    np.testing.assert_allclose(only(run.adapter).ravel(), expected, rtol=1e-4)
    assert {e.mechanism for e in users_of(make_run.registry)} == {"banded_toeplitz_gaussian"}
    make_run.registry.forget_noise_key("run")
    assert make_run.registry.noise_key("run", fresh=b"y" * 32) == b"y" * 32 != key


def test_the_bound_follows_the_norms_and_goes_on_after_a_crash(make_run):
    options = BOTH | {"clipping_quantile": 0.5, "clipping_bit_noise": 3.0, "clipping_step": 0.5}
    for rounds in (2, 4):
        run = make_run(fleet(3, 0.05), num_server_rounds=4, cohort=3, noise=SeededRandom(rounds), **options)
        run.resume()
        for server_round in range(run.next_round, rounds + 1):
            run._run_round(server_round)
    rows, events = make_run.registry.rounds("run"), users_of(make_run.registry)
    bounds = [row.facts["user_clipping_norm"] for row in rows]
    assert bounds == [e.clipping_norm for e in events]
    assert bounds[0] == 1.0
    assert [row.facts["next_user_clipping_norm"] for row in rows][:-1] == bounds[1:]
    assert len(set(bounds)) == 4
    assert {e.noise_multiplier for e in events} == {4.0}  # of sum and count together


def test_a_count_of_norms_with_too_little_noise_is_refused(make_run):
    with pytest.raises(RecipeError, match="clipping-bit-noise does not fit"):
        make_run(fleet(3), **(BOTH | {"clipping_quantile": 0.5, "clipping_bit_noise": 1.0}))


def test_with_the_user_level_alone_devices_add_no_noise_and_only_users_are_charged(make_run):
    nodes = {n: honest(f"d{n}", 0.1, noise_multiplier=0.0) for n in range(3)}
    run = make_run(nodes, num_server_rounds=1, **(BOTH | {"privacy_mode": "user"}))
    run.execute()
    assert [e.privacy_unit for e in make_run.registry.privacy_events(run_id="run")] == ["user"]
    (message, *_) = run.grid.sent
    asked = RoundInstructions.from_config(dict(message.content.config_records["instructions"]))
    assert asked.privacy_unit == "user"


def test_a_change_in_the_registrys_chain_is_found(make_run):
    make_run(fleet(3), num_server_rounds=2, **BOTH).execute()
    registry = make_run.registry
    heads = registry.verify_privacy_chain("chat")
    for statement in (
        "UPDATE privacy_events SET event = replace(event, '\"steps\":1', '\"steps\":2') WHERE position = 2",
        "UPDATE privacy_chain SET head = '" + "0" * 64 + "' WHERE position = 3",
        "UPDATE privacy_chain SET sequence = 99 WHERE position = 4",
        "DELETE FROM privacy_chain WHERE position = 8",
    ):
        with registry.engine.connect() as connection:
            connection.exec_driver_sql(statement)
            with pytest.raises(DatabaseError, match="was changed at or before event"):
                _verify_within(registry, connection)
            connection.rollback()
    assert registry.verify_privacy_chain("chat") == heads


def _verify_within(registry, connection):
    engine, registry._engine = registry._engine, connection
    try:
        return registry.verify_privacy_chain("chat")
    finally:
        registry._engine = engine


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cohort_sampling": "poisson"}, "sampling-probability above 0"),
        ({"sampling_probability": 0.1}, "sampling-probability above 0"),
        (POISSON | {"noise_bands": 2, "min_separation": 2}, "banded noise takes no credit"),
        ({"noise_bands": 4, "min_separation": 3}, "min-separation 4 or more"),
        ({"noise_bands": 4, "min_separation": 4, "clipping_quantile": 0.5}, "need a bound that stays"),
        ({"aggregation": "median", "cohort": 9, "quorum": 5}, "Use aggregation mean"),
    ],
)
def test_keys_that_contradict_each_other_are_named(changes, said):
    config = {key.replace("_", "-"): value for key, value in (BOTH | changes).items()}
    with pytest.raises(RecipeError, match=said):
        Recipe.from_run_config({"model": "chat"} | config)


def test_a_model_whose_runs_had_no_noise_for_users_can_promise_them_nothing(make_run):
    make_run(fleet(3), run_id="examples", num_server_rounds=1).execute()
    with pytest.raises(BudgetExceededError, match="what examples released had no noise for whole users"):
        make_run(fleet(3), run_id="both", **BOTH)
    make_run(fleet(3), run_id="more", num_server_rounds=1).execute()


def test_a_run_per_user_in_which_nobody_was_let_in_ends_no_promise(make_run):
    make_run(fleet(3), run_id="first", num_server_rounds=2, max_participations=2, **BOTH).execute()
    with pytest.raises(FederationError, match="void"):
        make_run(
            fleet(3), run_id="late", num_server_rounds=1, max_void_rounds=0, max_participations=2, **BOTH
        ).execute()
    events = make_run.registry.privacy_events(model="chat")
    assert {e.privacy_unit for e in events if e.run_id == "late"} == {"example", "user"}
    assert [e.devices for e in users_of(make_run.registry, "late")] == [()]
    of_first = user_epsilon(users_of(make_run.registry, "first"), target_delta=1e-6)
    assert user_epsilon(promised(events, "user"), target_delta=1e-6) == of_first
    make_run(fleet(3), run_id="next", num_server_rounds=1, max_participations=9, **BOTH).execute()


def test_devices_keep_their_distance_from_the_run_before_as_well(make_run):
    options = {"cohort": 2, "quorum": 1, "min_separation": 2, "max_participations": 9} | BOTH
    make_run(fleet(4), run_id="first", num_server_rounds=2, **options).execute()
    last = users_of(make_run.registry, "first")[-1].devices
    make_run(fleet(4), run_id="second", num_server_rounds=1, **(options | {"cohort": 4})).execute()
    (event,) = users_of(make_run.registry, "second")
    assert set(event.devices) == {f"d{n}" for n in range(4)} - set(last)
