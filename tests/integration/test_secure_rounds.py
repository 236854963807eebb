"""Secure sums over Flower messages, with devices that really train: exact, private, and void rather than wrong."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from simulators.in_process_grid import replied
from simulators.text_fleet import device, open_text_registry, text_run, write_text_fleet

from client_sdk.flower_round import simulated_site
from client_sdk.local_training import train_round
from client_sdk.secure_round import SECURE
from privacy import RoundInstructions
from privacy.secure_aggregation import Advertisement, Envelopes, Shares
from server.errors import FederationError
from server.federation.health import RoundHealth
from server.federation.recipe import Recipe

pytestmark = pytest.mark.slow

DEVICES = 5
RECIPE = {
    "secure_aggregation": True,
    "cohort": DEVICES,
    "quorum": 3,
    "num_server_rounds": 1,
    "max_void_rounds": 0,
    "secure_clipping_norm": 5.0,
    "secure_dropouts": 0.2,
}
STEPS = ("advertise", "share", "mask", "reveal")


@pytest.fixture
def fleet(tmp_path):
    return write_text_fleet(tmp_path / "fleet", devices=DEVICES)


@pytest.fixture
def registry(fleet, tmp_path):
    opened = open_text_registry(fleet, tmp_path / "home")
    yield opened
    opened.close()


def silent_from(behave, step):
    """A device that says nothing from a step on."""
    gone = False

    def some(message):
        nonlocal gone
        gone = gone or message.content.config_records[SECURE]["step"] == step
        return None if gone else behave(message)

    return some


def changed(behave, step, change):
    """A device whose reply to a step is changed."""

    def lying(message):
        reply = behave(message)
        return change(message, reply) if message.content.config_records[SECURE]["step"] == step else reply

    return lying


def run_with(fleet, registry, tmp_path, nodes=None, **recipe):
    behaviours = {n: device(fleet, n) for n in range(DEVICES)} | (nodes or {})
    return text_run(behaviours, fleet, registry, tmp_path / "artifacts", **(RECIPE | recipe))


def moved(run):
    before = {name: tensor.copy() for name, tensor in run.adapter.items()}
    after = run.execute()
    return {name: after[name] - before[name] for name in before}


def test_the_server_gets_the_mean_of_the_updates_and_no_update(fleet, registry, tmp_path, monkeypatch):
    updates = []

    def kept(*arguments):
        contribution, update = train_round(*arguments)
        updates.append(update)
        return contribution, update

    monkeypatch.setattr("client_sdk.secure_round.train_round", kept)
    run = run_with(fleet, registry, tmp_path)
    found = moved(run)
    assert len(updates) == DEVICES
    for name, tensor in found.items():
        mean = np.mean([update[name] for update in updates], axis=0)
        assert np.abs(tensor - mean).max() < 1e-5  # what rounding to whole numbers leaves
    # Nothing that came in was an update, or near one.
    (round_,) = registry.rounds("run")
    assert (round_.status, round_.replies) == ("released", DEVICES)
    assert round_.facts["norms"] is None


def test_nobody_tells_how_many_examples_it_has(fleet, registry, tmp_path):
    run = run_with(fleet, registry, tmp_path, max_examples=25, batch_size=5)
    run.execute()
    events = registry.privacy_events(run_id="run")
    assert {event.sampling_probability for event in events} == {5 / 25}
    assert len({event.noise_multiplier for event in events}) == 1
    own = [simulated_site(fleet, n).ledger.events() for n in range(DEVICES)]
    assert {e.event_id for e in events} == {e.event_id for of in own for e in of}


@pytest.mark.parametrize("step", STEPS)
def test_one_device_may_fall_silent_at_any_step(fleet, registry, tmp_path, step):
    found = moved(run_with(fleet, registry, tmp_path, {2: silent_from(device(fleet, 2), step)}))
    assert any(tensor.any() for tensor in found.values())
    (round_,) = registry.rounds("run")
    # Silent in the last step alone, its update was in the sum already.
    assert round_.replies == (DEVICES if step == "reveal" else DEVICES - 1)
    assert max(np.abs(tensor).max() for tensor in found.values()) < 10  # masks that stayed on would be huge


def test_too_many_silent_devices_void_the_round_and_what_they_spent_is_charged(fleet, registry, tmp_path):
    nodes = {n: silent_from(device(fleet, n), "reveal") for n in (0, 1, 2)}
    run = run_with(fleet, registry, tmp_path, nodes)
    with pytest.raises(FederationError):
        run.execute()
    (round_,) = registry.rounds("run")
    assert round_.status == "void"
    assert len(registry.privacy_events(run_id="run")) == DEVICES
    masked = RoundHealth.of(round_.facts).masked
    assert masked is not None
    assert (masked.phase, masked.answered) == ("reveal", 2)
    assert "while taking the masks off: 2 of 5 devices answered" in masked.told


def test_a_sum_of_fewer_than_the_quorum_stays_masked(fleet, registry, tmp_path):
    asked = []

    def watched(behave):
        def some(message):
            asked.append(message.content.config_records[SECURE]["step"])
            return behave(message)

        return some

    nodes = {0: silent_from(device(fleet, 0), "mask"), 1: watched(device(fleet, 1))}
    with pytest.raises(FederationError, match="void"):
        run_with(fleet, registry, tmp_path, nodes, quorum=5).execute()
    assert asked == ["advertise", "share", "mask"]
    (round_,) = registry.rounds("run")
    masked = RoundHealth.of(round_.facts).masked
    assert masked is not None
    assert (masked.phase, masked.asked, masked.answered) == ("mask", 5, 4)
    assert "4 updates are in it, 5 are needed" in masked.told


def wrong_mask(message, reply):
    return replied(
        message,
        RecordDict(
            {
                "contribution": reply.content.config_records["contribution"],
                "masked": ArrayRecord({"masked": Array(np.zeros(3, np.uint32))}),
            }
        ),
    )


def no_facts(message, reply):
    return replied(message, RecordDict({"masked": reply.content.array_records["masked"]}))


def other_count(message, reply):
    facts = ConfigRecord(dict(reply.content.config_records["contribution"]) | {"num_examples": 3})
    return replied(message, RecordDict({"contribution": facts, "masked": reply.content.array_records["masked"]}))


def nonsense(message, _reply):
    return replied(message, RecordDict({SECURE: ConfigRecord({"told": b"{not json"})}))


def another_name(message, reply):
    told = bytes(reply.content.config_records[SECURE]["told"]).replace(b'"member":3', b'"member":4')
    return replied(message, RecordDict({SECURE: ConfigRecord({"told": told})}))


@pytest.mark.parametrize(
    ("step", "change", "said"),
    [
        ("mask", wrong_mask, "masked vector"),
        ("mask", no_facts, "malformed"),
        ("mask", other_count, "every device says"),
        ("advertise", nonsense, "not what the step asks for"),
        ("share", another_name, "another member"),
    ],
)
def test_what_a_hostile_device_says_is_left_out_and_the_sum_is_kept(fleet, registry, tmp_path, step, change, said):
    run = run_with(fleet, registry, tmp_path, {2: changed(device(fleet, 2), step, change)})
    found = moved(run)
    (round_,) = registry.rounds("run")
    assert round_.replies == DEVICES - 1
    assert said in str(round_.failures)
    assert max(np.abs(tensor).max() for tensor in found.values()) < 10


def same_keys(message, reply):
    told = Advertisement.model_validate_json(bytes(reply.content.config_records[SECURE]["told"]))
    return said(message, told.model_copy(update={"mask_key": told.envelope_key}))


def empty_envelopes(message, reply):
    told = Envelopes.model_validate_json(bytes(reply.content.config_records[SECURE]["told"]))
    spoilt = {other: bytes(len(sealed)) for other, sealed in told.envelopes.items()}
    return said(message, told.model_copy(update={"envelopes": spoilt}))


def wrong_shares(message, reply):
    told = Shares.model_validate_json(bytes(reply.content.config_records[SECURE]["told"]))
    return said(message, told.model_copy(update={"seeds": dict.fromkeys(told.seeds, bytes(16))}))


def said(message, told):
    return replied(message, RecordDict({SECURE: ConfigRecord({"told": told.model_dump_json().encode()})}))


@pytest.mark.parametrize(
    ("step", "change", "replies"), [("advertise", same_keys, DEVICES - 1), ("reveal", wrong_shares, DEVICES)]
)
def test_keys_and_shares_that_are_wrong_void_no_round(fleet, registry, tmp_path, step, change, replies):
    found = moved(run_with(fleet, registry, tmp_path, {2: changed(device(fleet, 2), step, change)}))
    (round_,) = registry.rounds("run")
    assert (round_.status, round_.replies) == ("released", replies)
    assert max(np.abs(tensor).max() for tensor in found.values()) < 10


def test_a_device_whose_secret_nobody_can_restore_voids_one_round_and_is_asked_no_more(fleet, registry, tmp_path):
    nodes = {2: changed(device(fleet, 2), "share", empty_envelopes)}
    run = run_with(fleet, registry, tmp_path, nodes, num_server_rounds=3, max_void_rounds=1, budget_rounds=3)
    found = moved(run)
    first, *later = registry.rounds("run")
    assert first.status == "void"
    assert list(first.failures) == ["2"]
    assert "asked no more" in first.failures["2"]
    assert [(row.status, row.replies, row.failures) for row in later] == [("released", DEVICES - 1, {})] * 2
    assert max(np.abs(tensor).max() for tensor in found.values()) < 10


def test_a_device_refuses_a_plain_round_that_was_promised_as_a_secure_one(fleet):
    recipe = Recipe(model="chat", secure_aggregation=True, cohort=5, quorum=3)
    instructions = RoundInstructions(
        run_id="run",
        server_round=1,
        base_hash="a" * 64,
        privacy_unit="example",
        clipping_norm=1.0,
        target_epsilon=8.0,
        target_delta=1e-5,
        budget_rounds=1,
        steps=1,
        batch_size=2,
        learning_rate=0.1,
        max_length=16,
        max_examples=10,
        rank=2,
        alpha=4.0,
        targets=recipe.target_names,
        gradients="direct",
        secure_norm=1.0,
        secure_levels=1000,
    )

    asked = RecordDict({"instructions": ConfigRecord({**instructions.to_config()}), "adapter": ArrayRecord({})})
    message = Message(content=asked, message_type="train", dst_node_id=1)
    message.metadata._message_id = "one"  # Flower gives ids when it sends
    reply = device(fleet, 0)(message)
    assert "plain update" in reply.content.config_records["declined"]["reason"]
    stray = Message(
        content=RecordDict({SECURE: ConfigRecord({"step": "reveal", "told": b"{}"})}),
        message_type="train",
        dst_node_id=1,
    )
    stray.metadata._message_id = "two"
    assert "knows nothing" in device(fleet, 0)(stray).content.config_records["declined"]["reason"]
