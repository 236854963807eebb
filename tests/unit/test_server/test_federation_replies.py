import io
from datetime import UTC, datetime

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from simulators.in_process_grid import InProcessGrid, failed, replied

from privacy import Contribution, RoundInstructions
from server.federation.replies import Accepted, Refused, check_reply, update_norm

BASE = "b" * 64
ADAPTER = {"layers.0.attention.q_proj.lora_b": np.zeros((2, 3), np.float32)}
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
        "sampling_probability": 0.2,
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
    np.testing.assert_array_equal(result.update["layers.0.attention.q_proj.lora_b"], np.ones((2, 3)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_id": "other"}, "run_id"),
        ({"server_round": 2}, "server_round"),
        ({"base_hash": "c" * 64}, "base_hash"),
        ({"steps": 1}, "steps"),
        ({"clipping_norm": 2.0}, "clipping_norm"),
        ({"num_examples": 51}, "cap is 50"),
    ],
)
def test_facts_that_differ_from_what_was_asked_are_refused(change, said):
    result = check(reply(contribution=facts(**change)))
    assert isinstance(result, Refused)
    assert said in result.reason


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"other": np.zeros((2, 3), np.float32)},
        {**ADAPTER, "extra": np.zeros(1, np.float32)},
        {"layers.0.attention.q_proj.lora_b": np.zeros((3, 2), np.float32)},
        {"layers.0.attention.q_proj.lora_b": np.zeros((2, 3), np.float64)},
        {"layers.0.attention.q_proj.lora_b": np.full((2, 3), np.nan, np.float32)},
        {"layers.0.attention.q_proj.lora_b": np.full((2, 3), np.inf, np.float32)},
        {"layers.0.attention.q_proj.lora_b": np.full((2, 3), 3e38, np.float32)},
        {"layers.0.attention.q_proj.lora_b": np.full((2, 3), 100, np.float32)},
    ],
)
def test_an_update_of_other_names_shapes_types_or_size_is_refused(update):
    assert isinstance(check(reply(update=update)), Refused)


def test_a_header_that_lies_about_the_bytes_is_refused_before_memory_is_taken():
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    lying = Array("float32", (2, 3), "numpy.ndarray", raw.getvalue())
    result = check(reply(update={"layers.0.attention.q_proj.lora_b": lying}))
    assert isinstance(result, Refused)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_as_a_tensor_are_refused_or_exact(raw):
    result = check(reply(update={"layers.0.attention.q_proj.lora_b": Array("float32", (2, 3), "numpy.ndarray", raw)}))
    assert isinstance(result, Refused)


def test_errors_and_declines_are_refused_with_their_reason():
    assert "went wrong" in check(failed(request(), "went wrong")).reason
    declined = RecordDict({"declined": ConfigRecord({"reason": "another base"})})
    assert "another base" in check(replied(request(), declined)).reason
    assert isinstance(check(replied(request(), RecordDict())), Refused)


def test_the_norm_of_huge_values_does_not_overflow_into_acceptance():
    assert update_norm({"a": np.full(4, 1e38, np.float32)}) == pytest.approx(2e38, rel=1e-5)
    assert np.isnan(update_norm({"a": np.array([np.nan], np.float32)}))
