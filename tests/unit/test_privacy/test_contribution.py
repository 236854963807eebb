"""Instructions and contributions: what crosses the border, and what is refused there."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import LEAVES_THE_DEVICE, Contribution, ContributionError, InstructionsError, RoundInstructions
from privacy.noise_shares import ShareRule
from privacy.user_promise import UserPromise

INSTRUCTIONS: dict[str, Any] = {
    "run_id": "run-1",
    "server_round": 2,
    "base_hash": "ab" * 32,
    "privacy_unit": "example",
    "clipping_norm": 1.0,
    "target_epsilon": 8.0,
    "target_delta": 1e-5,
    "budget_rounds": 3,
    "steps": 10,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "max_length": 128,
    "max_examples": 400,
    "example_counts": "withheld",
    "gradients": "direct",
    "rank": 8,
    "alpha": 16.0,
    "targets": ["q_proj", "v_proj"],
}
CONTRIBUTION: dict[str, Any] = {
    "device_id": "device-1",
    "run_id": "run-1",
    "server_round": 2,
    "base_hash": "ab" * 32,
    "num_examples": 120,
    "event_id": "0" * 32,
    "noise_multiplier": 1.1,
    "sampling_probability": 8 / 120,
    "steps": 10,
    "clipping_norm": 1.0,
    "target_delta": 1e-5,
}


def test_both_survive_the_wire_unchanged() -> None:
    instructions = RoundInstructions.from_config(INSTRUCTIONS)
    assert instructions.to_config() == INSTRUCTIONS
    assert RoundInstructions.from_config(instructions.to_config()) == instructions
    contribution = Contribution.from_config(CONTRIBUTION)
    assert contribution.to_config() == CONTRIBUTION
    assert Contribution.from_config(contribution.to_config()) == contribution


def test_a_promise_to_users_travels_flat_and_must_fit_its_sum() -> None:
    shares = ShareRule(cohort=10, dropouts=0.2, colluding=0.1, length=100).shares(2.0)
    promise = UserPromise(population="chat", target_epsilon=5.0, target_delta=1e-6, shares=shares)
    told = INSTRUCTIONS | {
        "secure_norm": 1.0,
        "secure_levels": shares.levels,
        "user_promise": promise.model_dump_json(),
    }
    instructions = RoundInstructions.from_config(told)
    assert instructions.user_promise == promise
    assert instructions.to_config() == told
    for wrong in (
        {"secure_levels": 7},
        {"user_promise": "{"},
        {"user_promise": promise.model_dump_json().replace('"counted":7', '"counted":77')},
    ):
        with pytest.raises(InstructionsError, match="not usable"):
            RoundInstructions.from_config(told | wrong)
    with pytest.raises(InstructionsError, match="secure sum"):
        RoundInstructions.from_config(INSTRUCTIONS | {"user_promise": promise.model_dump_json()})


def test_configs_are_flat_and_of_plain_types() -> None:
    for config in (
        RoundInstructions.from_config(INSTRUCTIONS).to_config(),
        Contribution.from_config(CONTRIBUTION).to_config(),
    ):
        for value in config.values():
            assert type(value) in (int, float, str, list)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", ""),
        ("run_id", "a b"),
        ("run_id", "x" * 129),
        ("run_id", "<script>"),
        ("base_hash", "AB" * 32),
        ("privacy_unit", "group"),
        ("clipping_norm", 0.0),
        ("clipping_norm", math.nan),
        ("target_epsilon", math.inf),
        ("target_epsilon", "8"),
        ("target_delta", 0.0),
        ("target_delta", 1.0),
        ("steps", 0),
        ("steps", 10**9),
        ("steps", 1.5),
        ("steps", True),
        ("learning_rate", -1.0),
        ("targets", []),
        ("targets", ["q_proj", "q_proj"]),
        ("targets", ["../x"]),
        ("targets", "q_proj"),
        ("unknown", 1),
    ],
)
def test_bad_instructions_are_refused_with_the_name_of_the_field(field: str, value: object) -> None:
    with pytest.raises(InstructionsError, match=field):
        RoundInstructions.from_config({**INSTRUCTIONS, field: value})


def test_counts_are_withheld_unless_a_round_asks_for_them() -> None:
    withheld = RoundInstructions.from_config(
        {name: value for name, value in INSTRUCTIONS.items() if name != "example_counts"}
    )
    told = RoundInstructions.from_config(INSTRUCTIONS | {"example_counts": "told"})
    assert [withheld.told_examples(n) for n in (3, 400)] == [400, 400]
    assert [told.told_examples(n) for n in (3, 400)] == [3, 400]
    with pytest.raises(InstructionsError, match="secure sum hides"):
        RoundInstructions.from_config(INSTRUCTIONS | {"example_counts": "told", "secure_norm": 1.0})


@pytest.mark.parametrize("field", sorted(set(INSTRUCTIONS) - {"example_counts"}))
def test_missing_instructions_are_refused(field: str) -> None:
    with pytest.raises(InstructionsError, match=field):
        RoundInstructions.from_config({name: value for name, value in INSTRUCTIONS.items() if name != field})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device_id", "a\nb"),
        ("num_examples", 0),
        ("event_id", "x"),
        ("noise_multiplier", -1.0),
        ("noise_multiplier", math.nan),
        ("sampling_probability", 1.5),
        ("steps", 10**9),
        ("loss", 0.1),
    ],
)
def test_bad_contributions_are_refused(field: str, value: object) -> None:
    with pytest.raises(ContributionError, match=field):
        Contribution.from_config({**CONTRIBUTION, field: value})


junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.text(max_size=3))
)


@given(st.dictionaries(st.sampled_from([*INSTRUCTIONS, "other"]), junk))
def test_whatever_arrives_only_the_named_errors_leave(changes: dict[str, object]) -> None:
    for parse, valid in ((RoundInstructions.from_config, INSTRUCTIONS), (Contribution.from_config, CONTRIBUTION)):
        try:
            parsed = parse({**valid, **changes})
        except (InstructionsError, ContributionError):
            continue
        assert parsed.to_config()


def test_the_sampling_probability_follows_from_the_batch_size() -> None:
    instructions = RoundInstructions.from_config(INSTRUCTIONS)
    assert instructions.sampling_probability_for(120) == 8 / 120
    assert instructions.sampling_probability_for(5) == 1.0
    with pytest.raises(InstructionsError, match="0 examples"):
        instructions.sampling_probability_for(0)


def test_a_contribution_becomes_its_ledger_event() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    event = Contribution.from_config(CONTRIBUTION).event(now)
    assert event.recorded_at == now
    for name in set(CONTRIBUTION) - {"base_hash", "num_examples"}:
        assert getattr(event, name) == CONTRIBUTION[name]


def test_the_list_of_what_leaves_is_the_class_itself() -> None:
    assert [name for name, _ in LEAVES_THE_DEVICE] == list(Contribution.model_fields)
    assert all(why for _, why in LEAVES_THE_DEVICE)
    assert set(Contribution.from_config(CONTRIBUTION).to_config()) == {name for name, _ in LEAVES_THE_DEVICE}
