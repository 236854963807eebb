"""Whole users protected by noise that devices make in shares, with devices that really train: from round to report."""

import math

import numpy as np
import pytest
from simulators.text_fleet import device, open_text_registry, text_run, write_text_fleet

from client_sdk import secure_round
from client_sdk.flower_round import simulated_site
from client_sdk.secure_round import SECURE
from privacy import BudgetExceededError, PrivacyEvent
from privacy.user_level import user_epsilon
from server.errors import FederationError

pytestmark = pytest.mark.slow

DEVICES = 6
NOISE = 3.0
# Of six shares one may be missing, and one may be known to the server: four are counted on.
RECIPE = {
    "privacy_mode": "user",
    "secure_aggregation": True,
    "cohort": DEVICES,
    "quorum": 3,
    "num_server_rounds": 1,
    "max_void_rounds": 0,
    "secure_dropouts": 0.17,
    "secure_colluding": 0.15,
    "user_clipping_norm": 0.5,
    "user_noise_multiplier": NOISE,
    "user_target_epsilon": 50.0,
    "local_steps": 1,
    "rank": 8,
}
COUNTED, FEWEST = 4, 5


@pytest.fixture
def fleet(tmp_path):
    return write_text_fleet(tmp_path / "fleet", devices=DEVICES)


@pytest.fixture
def registry(fleet, tmp_path):
    opened = open_text_registry(fleet, tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def updates(monkeypatch):
    """What each device trained, clipped as it is when it is summed."""
    seen = []

    def kept(*arguments):
        contribution, update = train_round(*arguments)
        flat = np.concatenate([update[name].ravel() for name in sorted(update)])
        # A device whose batch was empty has trained nothing.
        seen.append(flat * min(1.0, RECIPE["user_clipping_norm"] / max(np.linalg.norm(flat), 1e-9)))
        return contribution, update

    train_round = secure_round.train_round
    monkeypatch.setattr(secure_round, "train_round", kept)
    return seen


def silent_from(behave, step):
    """A device that says nothing from a step on."""
    gone = False

    def some(message):
        nonlocal gone
        gone = gone or message.content.config_records[SECURE]["step"] == step
        return None if gone else behave(message)

    return some


def watched(behave, asked):
    """A device that notes down which steps it was asked for."""

    def answer(message):
        asked.append(message.content.config_records[SECURE]["step"])
        return behave(message)

    return answer


def run_with(fleet, registry, tmp_path, nodes=None, **recipe):
    behaviours = {n: device(fleet, n) for n in range(DEVICES)} | (nodes or {})
    return text_run(behaviours, fleet, registry, tmp_path / "artifacts", **(RECIPE | recipe))


def noise_of(run, updates):
    """The noise in the released sum, over what one device may move it by."""
    before = {name: tensor.copy() for name, tensor in run.adapter.items()}
    after = run.execute()
    total = np.concatenate([(after[name] - before[name]).ravel() for name in sorted(before)]) * DEVICES
    return (total - np.sum(updates, axis=0)) / RECIPE["user_clipping_norm"]


def is_variance(noise, promised):
    """Whether the noise may have this variance: at 99.99%, by the normal limit of a sample's variance."""
    return abs(np.mean(noise**2) / promised - 1) < 3.9 * math.sqrt(2 / noise.size)


def test_the_sum_has_all_shares_of_the_noise_when_everybody_answers(fleet, registry, tmp_path, updates):
    noise = noise_of(run_with(fleet, registry, tmp_path), updates)
    assert is_variance(noise, NOISE**2 * DEVICES / COUNTED)
    assert not is_variance(noise, NOISE**2)
    (event,) = registry.privacy_events(run_id="run")
    assert (event.mechanism, event.privacy_unit, len(event.devices)) == ("skellam_shares", "user", DEVICES)
    assert (event.shares.cohort, event.shares.counted, event.shares.colluding) == (DEVICES, COUNTED, 1)
    assert event.shares.length == noise.size


@pytest.mark.parametrize("step", ["share", "mask", "reveal"])
def test_the_sum_has_what_was_promised_when_as_many_fall_silent_as_may(fleet, registry, tmp_path, updates, step):
    nodes = {2: silent_from(device(fleet, 2), step)}
    noise = noise_of(run_with(fleet, registry, tmp_path, nodes), updates)
    present = DEVICES if step == "reveal" else FEWEST  # silent in the last step alone, its share was in already
    assert is_variance(noise, NOISE**2 * present / COUNTED)


def test_a_device_that_adds_the_wrong_share_shows_in_the_variance(fleet, registry, tmp_path, updates, monkeypatch):
    def halved(count, *, variance, random):
        return honest(count, variance=variance / 2, random=random)

    honest = secure_round.skellam_noise
    monkeypatch.setattr(secure_round, "skellam_noise", halved)
    noise = noise_of(run_with(fleet, registry, tmp_path), updates)
    assert not is_variance(noise, NOISE**2 * DEVICES / COUNTED)


def test_with_fewer_shares_than_promised_nothing_is_unmasked_or_charged(fleet, registry, tmp_path, updates):
    asked = []
    nodes = {n: watched(device(fleet, n), asked) for n in range(4)} | {
        n: silent_from(device(fleet, n), "mask") for n in (4, 5)
    }
    with pytest.raises(FederationError, match="void"):
        run_with(fleet, registry, tmp_path, nodes).execute()
    assert len(updates) == 4
    assert "reveal" not in asked
    assert registry.privacy_events(run_id="run") == ()
    assert registry.rounds("run")[0].status == "void"
    assert run_with(fleet, registry, tmp_path, run_id="again").execute()


def test_noise_is_calibrated_to_the_budget_and_both_units_are_charged(fleet, registry, tmp_path):
    run = run_with(fleet, registry, tmp_path, privacy_mode="both", num_server_rounds=2, user_noise_multiplier=0.0)
    run.execute()
    recipe, events = run.recipe, registry.privacy_events(run_id="run")
    assert [event.privacy_unit for event in events] == (["example"] * DEVICES + ["user"]) * 2
    assert len(registry.verify_privacy_chain("chat")) == 2 * (DEVICES + 1)
    users = [event for event in events if event.privacy_unit == "user"]
    spent = user_epsilon(users, target_delta=recipe.user_target_delta)
    assert 0.98 * recipe.user_target_epsilon < spent <= recipe.user_target_epsilon


def test_a_run_does_not_start_and_a_device_sits_out_when_the_users_budget_is_spent(fleet, registry, tmp_path):
    with pytest.raises(BudgetExceededError, match="would fit"):
        run_with(fleet, registry, tmp_path, user_noise_multiplier=0.5, user_target_epsilon=2.0)


def test_devices_keep_to_their_cap_before_they_are_in_the_sum(fleet, registry, tmp_path):
    run_with(fleet, registry, tmp_path, max_participations=1).execute()
    asked = []
    nodes = {n: watched(device(fleet, n), asked) for n in range(DEVICES)}
    with pytest.raises(FederationError, match="void"):
        run_with(fleet, registry, tmp_path, nodes, run_id="later", max_participations=1).execute()
    assert "mask" in asked
    assert "reveal" not in asked
    (row,) = registry.rounds("later")
    assert all("max-participations" in reason for reason in row.failures.values())
    assert registry.privacy_events(run_id="later") == ()


def test_without_noise_for_each_example_a_devices_own_ledger_says_so(fleet, registry, tmp_path):
    run_with(fleet, registry, tmp_path).execute()
    own: tuple[PrivacyEvent, ...] = simulated_site(fleet, 0).ledger.events()
    assert [(event.privacy_unit, event.noise_multiplier) for event in own] == [("example", 0.0), ("user", NOISE)]
    (said,) = registry.privacy_events(run_id="run")
    assert own[1].shares == said.shares
    assert user_epsilon(own[1:], target_delta=1e-6) == user_epsilon([said], target_delta=1e-6)
