import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from simulators.in_process_grid import InProcessGrid
from simulators.models import write_base_version

from client_sdk import local_training
from client_sdk.client_app import train
from client_sdk.errors import DeclinedError
from client_sdk.flower_round import simulated_site, site_of
from client_sdk.local_training import TrainingSite, train_round
from delta_updates import base_hash, scan_tree
from model import LoRAConfig, ModelConfig, initial_adapter
from model.training import StepCost
from privacy import RoundInstructions
from privacy.accountant import epsilon
from privacy.randomness import SeededRandom


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_base_version(tmp_path_factory.mktemp("base"))


@pytest.fixture
def site(tree, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    lines = [{"prompt": f"question {n}", "completion": f"answer {n} of many"} for n in range(40)]
    (data / "me.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return TrainingSite(home=tmp_path / "home", tree=tree, data=f"jsonl:{data}")


def instructions(tree, **changes):
    values = {
        "run_id": "run",
        "server_round": 1,
        "base_hash": base_hash(scan_tree(tree)),
        "privacy_unit": "example",
        "clipping_norm": 1.0,
        "target_epsilon": 8.0,
        "target_delta": 1e-5,
        "budget_rounds": 2,
        "steps": 2,
        "batch_size": 8,
        "learning_rate": 0.1,
        "max_length": 32,
        "max_examples": 30,
        "rank": 2,
        "alpha": 4.0,
        "targets": ("q_proj", "v_proj"),
        "gradients": "direct",
    }
    return RoundInstructions(**(values | changes))


def adapter(tree):
    config = ModelConfig.from_json((tree / "base" / "config.json").read_bytes())
    state = initial_adapter(config, LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj", "v_proj")), seed=0)
    return {name: tensor.numpy() for name, tensor in state.items()}


def test_a_round_gives_an_update_and_charges_the_ledger(site, tree):
    sent = adapter(tree)
    contribution, update = train_round(site, instructions(tree), sent)
    assert set(update) == set(sent)
    assert all(np.isfinite(tensor).all() for tensor in update.values())
    assert any(np.abs(tensor).max() > 0 for tensor in update.values())
    assert contribution.num_examples == 30  # of 40: the newest tenth is held out, the rest is capped
    (event,) = site.ledger.events()
    assert event.event_id == contribution.event_id
    assert event.device_id == site.device_id


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_direct_gradients_the_loop_and_the_hooks_train_the_same_update(site, tree, monkeypatch, precision):
    monkeypatch.setattr(local_training, "_COST", StepCost(precision=precision))
    monkeypatch.setattr("privacy.dp_sgd.SystemRandom", lambda: SeededRandom(7))
    updates = [
        train_round(site, instructions(tree, gradients=way, budget_rounds=4, server_round=n), adapter(tree))[1]
        for n, way in enumerate(("hooks", "direct", "loop"))
    ]
    tolerance = 1e-5 if precision == "float32" else 1e-2
    for name, hooked in updates[0].items():
        largest = max(np.abs(hooked).max(), 1e-3)
        for other in updates[1:]:
            assert np.abs(other[name] - hooked).max() <= tolerance * largest


def test_a_base_that_computes_on_rounded_inputs_is_trained_with_hooks_only(site, tree, monkeypatch):
    monkeypatch.setattr(local_training, "is_lean", lambda _: False)
    with pytest.raises(DeclinedError, match="gradients = hooks"):
        train_round(site, instructions(tree), adapter(tree))
    assert site.ledger.events() == ()
    train_round(site, instructions(tree, gradients="hooks"), adapter(tree))


def test_an_update_without_noise_leaves_only_where_the_owner_trusts_the_server(site, tree):
    asked = instructions(tree, privacy_unit="user")
    with pytest.raises(DeclinedError, match="--trust-server"):
        train_round(site, asked, adapter(tree))
    assert site.ledger.events() == ()
    trusting = replace(site, trusts_server=True)
    contribution, update = train_round(trusting, asked, adapter(tree))
    assert contribution.noise_multiplier == 0
    assert all(np.isfinite(tensor).all() for tensor in update.values())
    assert epsilon(site.ledger.events(), target_delta=1e-5) == math.inf
    # Towards the server nothing is left to protect, and the ledger does not forget it.
    with pytest.raises(DeclinedError, match="privacy budget"):
        train_round(trusting, instructions(tree, server_round=2), adapter(tree))


def test_epsilon_adds_up_over_rounds_and_the_budget_ends_it(site, tree):
    spent = []
    for server_round in (1, 2):
        train_round(site, instructions(tree, server_round=server_round), adapter(tree))
        spent.append(epsilon(site.ledger.events(), target_delta=1e-5))
    assert 0 < spent[0] < spent[1] <= 8.0
    with pytest.raises(DeclinedError, match="privacy budget"):
        train_round(site, instructions(tree, server_round=3), adapter(tree))
    assert len(site.ledger.events()) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_hash": "0" * 64}, "runs base"),
        ({"target_epsilon": 11.0}, "this device allows 10"),
        ({"target_delta": 0.1}, "no protection"),
    ],
)
def test_what_a_device_declines_costs_nothing(site, tree, changes, said):
    with pytest.raises(DeclinedError, match=said):
        train_round(site, instructions(tree, **changes), adapter(tree))
    assert site.ledger.events() == ()


def test_why_it_declines_tells_nothing_of_how_much_it_has(site, tree):
    """A server that tries one δ after the other would find the number by who declines."""
    for cap, declines in ((9, False), (10, True), (400, True)):
        changed = instructions(tree, target_delta=0.1, max_examples=cap)
        try:
            train_round(site, changed, adapter(tree))
        except DeclinedError as error:
            said = str(error)
        else:
            said = ""
        assert ("no protection for" in said) == declines, (cap, said)
        assert not declines or f"the {cap} examples" in said


def test_a_device_without_examples_declines(tree, tmp_path):
    (tmp_path / "data").mkdir()
    site = TrainingSite(home=tmp_path / "home", tree=tree, data=f"jsonl:{tmp_path / 'data'}")
    with pytest.raises(DeclinedError, match="no examples"):
        train_round(site, instructions(tree), adapter(tree))


def test_the_base_is_the_same_after_a_round_that_failed(site, tree):
    with pytest.raises(DeclinedError):
        train_round(site, instructions(tree, target_delta=0.1), adapter(tree))
    contribution, _ = train_round(site, instructions(tree), adapter(tree))
    assert contribution.server_round == 1


def message(tree, **changes):
    InProcessGrid({})
    content = RecordDict(
        {
            "instructions": ConfigRecord({**instructions(tree, **changes).to_config()}),
            "adapter": ArrayRecord({name: Array(value) for name, value in adapter(tree).items()}),
        }
    )
    return Message(content=content, message_type="train", dst_node_id=1)


def fleet_context(tree, site, tmp_path):
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    (fleet / "fleet.json").write_text(json.dumps({"users": ["me"], "data": "x"}), encoding="utf-8")
    shutil.copytree(tree, fleet / "tree")
    (fleet / "data").symlink_to(site.data.removeprefix("jsonl:"))
    return Context(
        run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={"fleet": str(fleet)}
    )


def test_the_client_app_answers_with_an_update_or_a_reason_and_never_a_traceback(site, tree, tmp_path):
    context = fleet_context(tree, site, tmp_path)
    reply = train(message(tree), context)
    assert set(reply.content) == {"contribution", "update"}
    declined = train(message(tree, base_hash="0" * 64), context)
    assert "runs base" in declined.content["declined"]["reason"]
    malformed = train(Message(content=RecordDict(), message_type="train", dst_node_id=1), context)
    assert malformed.content["declined"]["reason"]


def test_a_node_without_a_home_or_a_fleet_says_what_to_do(tree, site, tmp_path):
    nowhere = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(DeclinedError, match="lamella fleet make"):
        site_of(nowhere)
    fleet_context(tree, site, tmp_path)
    with pytest.raises(DeclinedError, match="number 7 does not exist"):
        simulated_site(tmp_path / "fleet", 7)
    assert simulated_site(tmp_path / "fleet", 0).max_epsilon == math.inf


@pytest.mark.parametrize("counts", ["withheld", "told"])
def test_training_is_given_what_the_ledger_says(site, tree, monkeypatch, counts):
    """An audit does DP-SGD again with the ledger's numbers: they must be those that the device trained with."""
    given = []
    monkeypatch.setattr(local_training, "train_dp_sgd", lambda *_args, parameters, **_rest: given.append(parameters))
    asked = instructions(tree, example_counts=counts, max_examples=35)
    contribution, _ = train_round(site, asked, adapter(tree))
    (parameters,), (event,) = given, site.ledger.events()
    assert contribution.num_examples == (35 if counts == "withheld" else min(35, 36))
    assert (parameters.noise_multiplier, parameters.clipping_norm) == (event.noise_multiplier, event.clipping_norm)
    assert (parameters.sampling_probability, parameters.steps) == (event.sampling_probability, event.steps)
    assert parameters.is_noisy
    assert parameters.expected_batch_size == event.sampling_probability * contribution.num_examples
