import io
from datetime import UTC, datetime

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from simulators.in_process_grid import InProcessGrid, failed, replied

from privacy import Contribution, RoundInstructions
from server.federation.refusals import plain
from server.federation.replies import Accepted, Refused, check_reply, update_norm

BASE = "b" * 64
NAME = "layers.0.attention.q_proj.lora_b"
ADAPTER = {NAME: np.zeros((2, 3), np.float32)}
KINDS = {"run_id": "wrong-run", "server_round": "wrong-round", "base_hash": "wrong-base"}
INSTRUCTIONS = RoundInstructions(
    run_id="run",
    server_round=1,
    base_hash=BASE,
    privacy_unit="example",
    clipping_norm=1.0,
    target_epsilon=8.0,
    target_delta=1e-5,
    budget_rounds=3,
    steps=2,
    batch_size=8,
    learning_rate=0.1,
    max_length=32,
    max_examples=50,
    example_counts="told",
    rank=2,
    alpha=4.0,
    targets=("q_proj",),
    gradients="direct",
)


def facts(**changes):
    values = {
        "device_id": "d1",
        "run_id": "run",
        "server_round": 1,
        "base_hash": BASE,
        "num_examples": 40,
        "noise_multiplier": 1.5,
        "sampling_probability": 8 / 40,
        "steps": 2,
        "clipping_norm": 1.0,
        "target_delta": 1e-5,
    }
    return Contribution(**(values | changes)).to_config()


def request():
    InProcessGrid({})
    return Message(content=RecordDict(), message_type="train", dst_node_id=7)


def reply(*, contribution=None, update=None, **records):
    update = {name: np.ones_like(value) for name, value in ADAPTER.items()} if update is None else update
    content = RecordDict(
        {
            "contribution": ConfigRecord(contribution if contribution is not None else facts()),
            "update": ArrayRecord({k: v if isinstance(v, Array) else Array(v) for k, v in update.items()}),
        }
    )
    return replied(request(), content)


def check(message, max_norm=10.0):
    return check_reply(message, instructions=INSTRUCTIONS, adapter=ADAPTER, max_norm=max_norm)


def test_an_honest_reply_is_accepted_with_its_update():
    result = check(reply())
    assert isinstance(result, Accepted)
    assert result.contribution.event(datetime.now(UTC)).device_id == "d1"
    np.testing.assert_array_equal(result.update[NAME], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_id": "other"}, "run_id"),
        ({"server_round": 0}, "server_round"),
        ({"server_round": 2}, "server_round"),
        ({"base_hash": "c" * 64}, "base_hash"),
        ({"steps": 1}, "steps"),
        ({"clipping_norm": 2.0}, "clipping_norm"),
        ({"num_examples": 51}, "cap is 50"),
        ({"sampling_probability": 1e-9}, "sampling_probability"),
        ({"noise_multiplier": 1e-300}, "noise_multiplier"),
        ({"noise_multiplier": 1e300}, "noise_multiplier"),
    ],
)
def test_facts_that_differ_from_what_was_asked_are_refused(change, said):
    result = check(reply(contribution=facts(**change)))
    assert isinstance(result, Refused)
    assert said in result.reason
    (fact,) = change
    assert result.kind == KINDS.get(fact, "wrong-facts")


@pytest.mark.parametrize(
    ("update", "kind"),
    [
        ({}, "wrong-names"),
        ({"other": np.zeros((2, 3), np.float32)}, "wrong-names"),
        ({**ADAPTER, "extra": np.zeros(1, np.float32)}, "wrong-names"),
        ({NAME: np.zeros((3, 2), np.float32)}, "wrong-shape"),
        ({NAME: np.zeros(6, np.float32)}, "wrong-shape"),
        ({NAME: np.zeros((2, 3), np.float64)}, "wrong-shape"),
        ({NAME: np.zeros((2, 3), ">f4")}, "wrong-shape"),
        ({NAME: np.zeros((400, 3), np.float32)}, "oversized"),
        ({NAME: np.full((2, 3), np.nan, np.float32)}, "not-finite"),
        ({NAME: np.full((2, 3), -np.inf, np.float32)}, "not-finite"),
        ({NAME: np.full((2, 3), 3e38, np.float32)}, "norm-too-large"),
        ({NAME: np.full((2, 3), 100, np.float32)}, "norm-too-large"),
    ],
)
def test_an_update_of_other_names_shapes_types_or_size_is_refused(update, kind):
    result = check(reply(update=update))
    assert isinstance(result, Refused)
    assert result.kind == kind


def test_a_tensor_in_fortran_order_is_the_same_tensor():
    values = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(check(reply(update={NAME: values})).update[NAME], values)


def test_a_header_that_lies_about_the_bytes_is_refused_before_memory_is_taken():
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    lying = Array("float32", (2, 3), "numpy.ndarray", raw.getvalue())
    result = check(reply(update={NAME: lying}))
    assert isinstance(result, Refused)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_as_a_tensor_are_refused_or_exact(raw):
    result = check(reply(update={NAME: Array("float32", (2, 3), "numpy.ndarray", raw)}))
    assert isinstance(result, Refused)


def honest_bytes():
    return bytes(Array(np.ones((2, 3), np.float32)).data)


@given(at=st.integers(0, 151), value=st.integers(0, 255), keep=st.integers(0, 200), extra=st.binary(max_size=20))
def test_a_mutated_tensor_is_refused_or_holds_finite_values_of_the_right_shape(at, value, keep, extra):
    raw = bytearray(honest_bytes())
    assert len(raw) == 152
    raw[at] = value
    mutated = bytes(raw[:keep]) + extra
    result = check(reply(update={NAME: Array("float32", (2, 3), "numpy.ndarray", mutated)}))
    if isinstance(result, Refused):
        assert "while checking it" not in result.reason  # foreseen, not caught at the last moment
    else:
        assert result.update[NAME].shape == (2, 3)
        assert np.isfinite(result.update[NAME]).all()


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=30),
    st.binary(max_size=30),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
)


@given(
    st.dictionaries(st.sampled_from([*facts(), "extra", "loss"]), VALUES, max_size=3),
    st.sets(st.sampled_from([*facts()])),
)
def test_mutated_facts_are_refused_or_agree_with_what_was_asked(changes, dropped):
    mutated = {key: value for key, value in (facts() | changes).items() if key not in dropped - {"event_id"}}
    result = check(reply(contribution=mutated))
    if isinstance(result, Refused):
        assert "while checking it" not in result.reason
        assert result.reason.isprintable()
        assert len(result.reason) <= 300
        return
    said = result.contribution
    assert (said.run_id, said.server_round, said.base_hash, said.steps) == ("run", 1, BASE, 2)
    assert said.num_examples <= 50
    assert said.noise_multiplier == 0 or 1e-6 <= said.noise_multiplier <= 1e6


@given(
    st.dictionaries(
        st.sampled_from(["contribution", "update", "declined", "more"]),
        st.one_of(
            st.just(ConfigRecord(facts())),
            st.just(ArrayRecord({NAME: Array(np.ones((2, 3), np.float32))})),
            st.just(MetricRecord({"loss": 0.5})),
            st.just(ConfigRecord({"reason": ["no", "words"]})),
        ),
    )
)
def test_records_that_are_missing_more_or_of_another_kind_are_refused(records):
    result = check(replied(request(), RecordDict(records)))
    is_whole = set(records) == {"contribution", "update"}
    if isinstance(result, Accepted):
        assert is_whole
    else:
        assert result.kind in {"malformed", "declined"}
        assert "while checking it" not in result.reason


@given(st.text(max_size=400))
def test_a_devices_words_are_one_short_printable_line(words):
    result = check(failed(request(), words))
    assert result.kind == "device-error"
    assert result.reason.isprintable()
    assert len(result.reason) <= 300


def test_escape_sequences_and_half_characters_do_not_reach_the_log():
    assert plain("\x1b[2Jgone\n\x00\ud800") == "?[2Jgone???"


def test_whatever_goes_wrong_in_checking_one_reply_is_not_the_rounds_end(caplog):
    class Broken:
        metadata = request().metadata

        def has_error(self):
            raise RuntimeError("a fault of ours")

    result = check(Broken())
    assert result.kind == "malformed"
    assert "a fault of ours" in caplog.text


def test_errors_and_declines_are_refused_with_their_reason():
    assert "went wrong" in check(failed(request(), "went wrong")).reason
    declined = RecordDict({"declined": ConfigRecord({"reason": "another base"})})
    assert "another base" in check(replied(request(), declined)).reason
    assert isinstance(check(replied(request(), RecordDict())), Refused)


def test_the_norm_of_huge_values_does_not_overflow_into_acceptance():
    assert update_norm({"a": np.full(4, 1e38, np.float32)}) == pytest.approx(2e38, rel=1e-5)
    assert np.isnan(update_norm({"a": np.array([np.nan], np.float32)}))
