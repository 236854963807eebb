import random
from collections import Counter

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.federated_run import SHAPE, honest, run_maker
from simulators.in_process_grid import InProcessGrid, failed, replied

from privacy import Contribution
from privacy.budget import PrivacyBudget
from server.errors import FederationError, NotEnoughDevicesError, RecipeError
from server.federation.cohort import draw_cohort, wait_for_nodes
from server.federation.health import RoundHealth, RunHealth


def changed(device_id, change, value=1.0):
    """An honest reply that `change` spoils; it gets the facts and the tensors, and returns what is sent."""

    def behave(message):
        reply = honest(device_id, value)(message)
        facts = dict(reply.content.config_records["contribution"])
        tensors = {k: v.numpy() for k, v in reply.content.array_records["update"].items()}
        facts, tensors = change(facts, tensors)
        update = ArrayRecord({k: Array(v) for k, v in tensors.items()})
        return replied(message, RecordDict({"contribution": ConfigRecord(facts), "update": update}))

    return behave


def saying(device_id, /, **said):
    return changed(device_id, lambda facts, tensors: (facts | said, tensors))


def sending(device_id, make):
    return changed(device_id, lambda facts, tensors: (facts, {k: make(v) for k, v in tensors.items()}))


# Ten of at most ten, twenty of at most twenty.
TOLD = {"example_counts": "told"}


def silent(message):
    return None


def crashing(message):
    return failed(message, "out of memory")


@pytest.fixture
def make_run(tmp_path):
    yield from run_maker(tmp_path)


def only(adapter):
    (tensor,) = adapter.values()
    return tensor


def test_the_adapter_moves_by_the_weighted_mean(make_run):
    run = make_run(
        {1: honest("a", 1.0, 10), 2: honest("b", 4.0, 20), 3: honest("c", 1.0, 10)}, num_server_rounds=1, **TOLD
    )
    np.testing.assert_allclose(only(run.execute()), np.full(SHAPE, 2.5))
    (row,) = make_run.registry.rounds("run")
    assert (row.status, row.replies, row.held_out_loss) == ("released", 3, 2.0)
    assert {e.device_id for e in make_run.registry.privacy_events(run_id="run")} == {"a", "b", "c"}


def test_silent_and_crashing_devices_cost_a_deadline_not_the_run(make_run):
    run = make_run(
        {1: honest("a"), 2: honest("b"), 3: silent, 4: crashing}, cohort=4, num_server_rounds=1, deadline_s=30.0
    )
    run.execute()
    (row,) = make_run.registry.rounds("run")
    assert row.replies == 2
    assert row.failures["3"] == "no reply within 30 s"
    assert "out of memory" in row.failures["4"]
    assert run.grid.time >= 30


def test_below_quorum_the_round_is_void_but_its_privacy_is_charged(make_run):
    run = make_run({1: honest("a"), 2: crashing, 3: crashing}, max_void_rounds=5, num_server_rounds=1)
    with pytest.raises(FederationError, match="no new adapter"):
        run.execute()
    (row,) = make_run.registry.rounds("run")
    assert (row.status, row.held_out_loss, dict(row.artifacts)) == ("void", None, {})
    assert len(make_run.registry.privacy_events(run_id="run")) == 1
    np.testing.assert_array_equal(only(run.adapter), np.zeros(SHAPE))


def test_a_secure_round_that_too_few_can_be_asked_for_says_so_and_asks_nobody(make_run):
    asked = []

    def watched(message):
        asked.append(message)

    recipe = {"secure_aggregation": True, "cohort": 5, "quorum": 3, "max_void_rounds": 0, "num_server_rounds": 1}
    run = make_run(dict.fromkeys(range(4), watched), **recipe)
    # Three hide each other only where none may fall silent; so it waits for four, and then some have no budget left.
    assert run._fewest_asked == 4
    run._draw = lambda nodes, _server_round: tuple(nodes)[:3]
    with pytest.raises(FederationError):
        run.execute()
    (row,) = make_run.registry.rounds("run")
    masked = RoundHealth.of(row.facts).masked
    assert masked is not None
    assert (masked.phase, masked.asked) == ("ask", 3)
    assert "3 devices can be asked and 4 are needed" in masked.told
    assert asked == []


def test_when_every_device_fails_the_run_fails_and_says_where_to_look(make_run):
    run = make_run(dict.fromkeys(range(3), crashing), max_void_rounds=1, num_server_rounds=10)
    with pytest.raises(FederationError, match=r"2 rounds in a row were void.*lamella runs show run"):
        run.execute()
    assert len(make_run.registry.rounds("run")) == 2


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(make_run):
    nodes = {n: honest(str(n), 0.5) for n in range(3)}
    whole = make_run(nodes, run_id="whole", strategy="fedadam", server_learning_rate=0.1, num_server_rounds=3)
    expected = only(whole.execute())
    nodes = {n: honest(f"again-{n}", 0.5) for n in range(3)}
    make_run(nodes, run_id="cut", strategy="fedadam", server_learning_rate=0.1, num_server_rounds=1).execute()
    rest = make_run(nodes, run_id="cut", strategy="fedadam", server_learning_rate=0.1, num_server_rounds=3)
    rest.resume()
    assert rest.next_round == 2
    np.testing.assert_array_equal(only(rest.execute()), expected)


def test_a_device_that_would_overspend_is_left_out(make_run):
    run = make_run(
        {1: honest("a"), 2: honest("b"), 3: honest("c", noise_multiplier=0.2)}, num_server_rounds=1, target_epsilon=8.0
    )
    run.execute()
    (row,) = make_run.registry.rounds("run")
    assert row.replies == 2
    assert "privacy budget" in row.failures["3"]


def test_one_device_cannot_vote_twice(make_run):
    run = make_run({1: honest("a"), 2: honest("a", 10.0), 3: honest("b")}, num_server_rounds=1)
    run.execute()
    (row,) = make_run.registry.rounds("run")
    assert row.replies == 2
    ((node, reason),) = row.failures.items()  # whichever of the two came second
    assert node in {"1", "2"}
    assert "second contribution" in reason


HOSTILE = {
    10: (sending("nan", lambda v: np.full_like(v, np.nan)), "not-finite"),
    11: (sending("inf", lambda v: np.full_like(v, -np.inf)), "not-finite"),
    12: (sending("large", lambda v: np.full_like(v, 1e30)), "norm-too-large"),
    13: (sending("shape", lambda v: np.ones((1, 4), np.float32)), "wrong-shape"),
    14: (sending("bulk", lambda v: np.ones((500, 500), np.float32)), "oversized"),
    15: (changed("names", lambda facts, tensors: (facts, {"other": np.ones(SHAPE, np.float32)})), "wrong-names"),
    16: (saying("base", base_hash="c" * 64), "wrong-base"),
    17: (saying("late", server_round=0), "wrong-round"),
    18: (saying("run", run_id="another"), "wrong-run"),
    19: (saying("cheap", sampling_probability=1e-9), "wrong-facts"),
    20: (saying("weight", num_examples=10_000_000), "wrong-facts"),
    21: (saying("no-noise", noise_multiplier=0.0), "over-budget"),
    22: (saying("underflow", noise_multiplier=1e-300), "wrong-facts"),
    24: (saying("id", device_id="../../etc\n"), "malformed"),
    25: (lambda message: replied(message, RecordDict({})), "malformed"),
    27: (crashing, "device-error"),
    28: (silent, "no-reply"),
}


def test_every_kind_of_hostile_device_is_refused_counted_and_named_and_the_round_goes_on(make_run):
    nodes = {1: honest("a", 1.0), 2: honest("b", 3.0)}
    nodes |= {node: behave for node, (behave, _) in HOSTILE.items()}
    run = make_run(nodes, cohort=30, num_server_rounds=1, deadline_s=30.0, max_update_norm=10.0)
    np.testing.assert_allclose(only(run.execute()), np.full(SHAPE, (1.0 + 3.0) / 2))
    (row,) = make_run.registry.rounds("run")
    assert row.replies == 2
    assert set(row.failures) == {str(node) for node in HOSTILE}
    expected = Counter(kind for _, kind in HOSTILE.values())
    assert RoundHealth.of(row.facts).refused == dict(expected)
    assert {e.device_id for e in make_run.registry.privacy_events(run_id="run")} == {"a", "b"}


def test_an_event_of_an_earlier_round_is_not_charged_twice_and_ends_no_round(make_run):
    nodes = {1: honest("a"), 2: honest("b"), 3: saying("c", event_id="0" * 32)}
    make_run(nodes).execute()
    first, second = make_run.registry.rounds("run")
    assert (first.replies, second.replies) == (3, 2)
    assert "recorded already" in second.failures["3"]
    assert RunHealth.of((first, second)).refused == {"replayed": 1}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_one_device_sends_the_others_round_is_what_it_was(make_run, data):
    raw = bytearray(Array(np.ones(SHAPE, np.float32)).data)
    facts = data.draw(
        st.dictionaries(
            st.sampled_from([*Contribution.model_fields, "extra"]),
            st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=9), st.binary(max_size=9)),
            min_size=1,
        )
    )
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[at] = value

    def spoiled(message):
        reply = honest("z")(message)
        tensor = Array("float32", SHAPE, "numpy.ndarray", bytes(raw))
        said = dict(reply.content.config_records["contribution"]) | facts
        update = ArrayRecord({"layers.0.attention.q_proj.lora_b": tensor})
        return replied(message, RecordDict({"contribution": ConfigRecord(said), "update": update}))

    run_id = f"run-{len(make_run.registry.runs())}"
    nodes = {1: honest(f"a-{run_id}"), 2: honest(f"b-{run_id}"), 3: spoiled}
    result = only(make_run(nodes, run_id=run_id, num_server_rounds=1, max_update_norm=10.0).execute())
    (row,) = make_run.registry.rounds(run_id)
    assert row.replies + len(row.failures) == 3
    assert np.isfinite(result).all()
    if row.replies == 2:
        np.testing.assert_array_equal(result, np.ones(SHAPE))
        assert "while checking it" not in row.failures["3"]


def test_a_reply_that_flower_cannot_read_costs_its_sender_alone(make_run):
    run = make_run({1: honest("a"), 2: honest("b"), 3: honest("c")}, num_server_rounds=1)
    pull = run.grid.pull_messages
    poisoned = []

    def pull_or_choke(message_ids):
        if not poisoned:
            poisoned.append(min(message_ids))
        if poisoned[0] in message_ids:
            raise ValueError("Invalid object")
        return pull(message_ids)

    run.grid.pull_messages = pull_or_choke
    run.execute()
    (row,) = make_run.registry.rounds("run")
    assert row.replies == 2
    assert RoundHealth.of(row.facts).refused == {"malformed": 1}


def test_a_node_that_flower_could_not_ask_is_named(make_run):
    run = make_run({1: honest("a"), 2: honest("b"), 3: honest("c")}, num_server_rounds=1)
    push = run.grid.push_messages
    run.grid.push_messages = lambda messages: [None, *list(push(messages))[1:]]
    run.execute()
    (row,) = make_run.registry.rounds("run")
    assert row.replies == 2
    assert list(row.failures.values()) == ["could not be asked"]


@pytest.mark.parametrize(
    ("rule", "moved"),
    [("mean", -1.0), ("median", 1.0), ("trimmed-mean", 1.0), ("multi-krum", 1.0)],
)
def test_a_run_aggregates_as_its_recipe_says(make_run, rule, moved):
    nodes = {n: honest(f"d{n}", 1.0) for n in range(4)} | {4: honest("liar", -9.0)}
    run = make_run(nodes, cohort=5, quorum=5, num_server_rounds=2, aggregation=rule)
    run.execute()
    np.testing.assert_allclose(only(run.adapter), np.full(SHAPE, 2 * moved))
    rounds = make_run.registry.rounds("run")
    health = RunHealth.of(rounds)
    assert health.repeated_outliers == {"liar": 2}
    assert health.set_aside == ({"liar": 2} if rule == "multi-krum" else {})
    assert RoundHealth.of(rounds[0].facts).aggregation == rule
    assert RoundHealth.of(rounds[0].facts).norms.largest == pytest.approx(18.0)


def test_a_loss_that_is_not_finite_releases_nothing(make_run):
    run = make_run({n: honest(str(n)) for n in range(3)}, evaluate=lambda adapter: float("nan"), num_server_rounds=1)
    with pytest.raises(Exception, match="not finite"):
        run.execute()
    assert make_run.registry.rounds("run") == ()


def test_waiting_for_devices_ends():
    grid = InProcessGrid({1: silent})
    with pytest.raises(NotEnoughDevicesError, match="1 devices are connected and 2 are needed"):
        wait_for_nodes(grid, minimum=2, timeout_s=10, now=grid.now, sleep=grid.sleep)


def test_a_cohort_is_distinct_and_within_the_fleet():
    rng = random.Random(1)
    nodes = tuple(range(100))
    drawn = draw_cohort(nodes, size=10, rng=rng)
    assert len(set(drawn)) == 10
    assert set(drawn) <= set(nodes)
    assert draw_cohort((1, 2), size=10, rng=rng) == (1, 2)


def test_a_later_run_may_ask_for_less_than_was_promised_and_not_for_more(make_run):
    make_run({1: honest("a"), 2: honest("b")}, run_id="first", target_epsilon=8.0)
    assert make_run.registry.example_budget("chat") == PrivacyBudget(target_epsilon=8.0, target_delta=1e-5)
    make_run({1: honest("a"), 2: honest("b")}, run_id="less", target_epsilon=4.0)
    for more in ({"target_epsilon": 9.0}, {"target_epsilon": 8.0, "target_delta": 1e-4}):
        with pytest.raises(RecipeError, match="privacy budget chat --per example"):
            make_run({1: honest("a"), 2: honest("b")}, run_id=f"more{len(more)}", **more)
    make_run({1: honest("a")}, run_id="users", privacy_mode="user", target_epsilon=9.0)  # promises nothing per example
    make_run.registry.set_example_budget("chat", PrivacyBudget(target_epsilon=9.0, target_delta=1e-5))
    make_run({1: honest("a"), 2: honest("b")}, run_id="raised", target_epsilon=9.0)
