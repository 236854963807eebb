"""A device whose owner lets its update be seen in sums alone: it declines every round that would show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from simulators.in_process_grid import InProcessGrid
from simulators.models import write_base_version

from client_sdk import Device
from client_sdk.errors import DeclinedError
from client_sdk.flower_round import answer, site_of
from client_sdk.local_training import TrainingSite, train_round
from delta_updates import base_hash, scan_tree
from model import LoRAConfig, ModelConfig, initial_adapter
from privacy import RoundInstructions
from privacy.noise_shares import ShareRule
from privacy.user_level import user_epsilon
from privacy.user_promise import UserPromise

if TYPE_CHECKING:
    from pathlib import Path

OpenDevice = Callable[..., Device]
MASKED = {"secure_norm": 1.0, "secure_levels": 1000}
FLAG = {"require-secure-aggregation": True}
FILE = "[training]\nrequire_secure_aggregation = true\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_version(tmp_path_factory.mktemp("base"))


def instructions(tree: Path, **changes: object) -> RoundInstructions:
    values: dict[str, object] = {
        "run_id": "run",
        "server_round": 1,
        "base_hash": base_hash(scan_tree(tree)),
        "privacy_unit": "example",
        "clipping_norm": 1.0,
        "target_epsilon": 8.0,
        "target_delta": 1e-5,
        "budget_rounds": 2,
        "steps": 1,
        "batch_size": 4,
        "learning_rate": 0.1,
        "max_length": 32,
        "max_examples": 30,
        "rank": 2,
        "alpha": 4.0,
        "targets": ("q_proj",),
        "gradients": "direct",
    }
    return RoundInstructions.from_config({**values, **changes})


def promised(*, noise: float = 4.0, epsilon: float = 5.0, delta: float = 1e-6) -> dict[str, object]:
    """Of a secure sum whose devices make the noise."""
    shares = ShareRule(cohort=10, dropouts=0.2, colluding=0.1, length=100).shares(noise)
    promise = UserPromise(population="chat", target_epsilon=epsilon, target_delta=delta, shares=shares)
    return {"secure_norm": 1.0, "secure_levels": shares.levels, "user_promise": promise.model_dump_json()}


def site(tree: Path, tmp_path: Path, *, insists: bool = False, trusts: bool = False) -> TrainingSite:
    data = tmp_path / "data"
    data.mkdir()
    lines = [f'{{"prompt": "question {n}", "completion": "answer {n}"}}\n' for n in range(20)]
    (data / "me.jsonl").write_text("".join(lines), encoding="utf-8")
    return TrainingSite(
        home=tmp_path / "home",
        tree=tree,
        data=f"jsonl:{data}",
        requires_secure_aggregation=insists,
        trusts_server=trusts,
    )


def adapter(tree: Path) -> dict:
    config = ModelConfig.from_json((tree / "base" / "config.json").read_bytes())
    lora = LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj",))
    return {name: tensor.numpy() for name, tensor in initial_adapter(config, lora, seed=0).items()}


def test_it_trains_for_secure_sums_and_for_nothing_else(tree: Path, tmp_path: Path) -> None:
    own = site(tree, tmp_path, insists=True)
    with pytest.raises(DeclinedError, match="show this device's update alone"):
        train_round(own, instructions(tree), adapter(tree))
    assert own.ledger.events() == ()
    train_round(own, instructions(tree, **MASKED), adapter(tree))
    assert len(own.ledger.events()) == 1


def test_trusting_the_server_does_not_open_plain_rounds_to_it(tree: Path, tmp_path: Path) -> None:
    own = site(tree, tmp_path, insists=True, trusts=True)
    with pytest.raises(DeclinedError, match="show this device's update alone"):
        train_round(own, instructions(tree, privacy_unit="user"), adapter(tree))
    train_round(own, instructions(tree, privacy_unit="user", **promised()), adapter(tree))


def test_noise_in_shares_alone_needs_the_owners_word_too(tree: Path, tmp_path: Path) -> None:
    asked = instructions(tree, privacy_unit="user", **promised())
    with pytest.raises(DeclinedError, match=r"invents devices .* --trust-server"):
        train_round(site(tree, tmp_path), asked, adapter(tree))


def test_it_charges_itself_as_a_user_and_declines_before_it_would_overspend(tree: Path, tmp_path: Path) -> None:
    own, asked = site(tree, tmp_path), instructions(tree, budget_rounds=9, **promised(epsilon=2.0))
    train_round(own, asked, adapter(tree))
    spent = [event for event in own.ledger.events() if event.privacy_unit == "user"]
    assert [(event.population, event.devices) for event in spent] == [("chat", (own.device_id,))]
    most = max(rounds for rounds in range(1, 9) if user_epsilon(spent * rounds, target_delta=1e-6) <= 2.0)
    for server_round in range(2, most + 1):
        train_round(own, asked.model_copy(update={"server_round": server_round}), adapter(tree))
    with pytest.raises(DeclinedError, match=r"as a user to 2\.\d+, and 2 is allowed"):
        train_round(own, asked.model_copy(update={"server_round": most + 1}), adapter(tree))
    assert len(own.ledger.events()) == 2 * most
    # Rounds for each example alone go on: the two units are never added up.
    train_round(own, instructions(tree, budget_rounds=9, server_round=most + 2), adapter(tree))


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (promised(noise=0.4, epsilon=900.0), "and 10 is allowed"),
        (promised(delta=0.01), "no protection"),
    ],
    ids=["above-its-own-limit", "delta"],
)
def test_the_owners_limit_holds_for_the_user_as_well(tree: Path, tmp_path: Path, told: dict, why: str) -> None:
    own = site(tree, tmp_path)
    with pytest.raises(DeclinedError, match=why):
        train_round(own, instructions(tree, **told), adapter(tree))
    assert own.ledger.events() == ()


def context(home: Path, **config: str | bool) -> Context:
    return Context(run_id=1, node_id=1, node_config={"home": str(home), **config}, state=RecordDict(), run_config={})


@pytest.mark.parametrize(("config", "file"), [(FLAG, ""), ({}, FILE), (FLAG, FILE)])
@pytest.mark.usefixtures("v1")
def test_its_flag_and_its_file_both_hold(open_device: OpenDevice, tree: Path, config: dict, file: str) -> None:
    device = open_device()
    device.update()
    assert not site_of(context(device.home)).requires_secure_aggregation
    (device.home / "device.toml").write_text(file)
    assert site_of(context(device.home, **config)).requires_secure_aggregation

    plain = instructions(tree, base_hash=base_hash(scan_tree(device.active().tree)))
    asked = RecordDict({"instructions": ConfigRecord({**plain.to_config()}), "adapter": ArrayRecord({})})
    InProcessGrid({})  # a message knows which task it belongs to
    reply = answer(Message(content=asked, message_type="train", dst_node_id=1), context(device.home, **config))
    assert set(reply.content) == {"declined"}
    assert "show this device's update alone" in reply.content.config_records["declined"]["reason"]


def test_an_application_is_not_given_the_update_either(tree: Path, tmp_path: Path) -> None:
    device = Device(tmp_path, require_secure_aggregation=True)
    with pytest.raises(DeclinedError, match="lamella-device train"):
        device.train(instructions(tree), adapter(tree))
    with pytest.raises(DeclinedError, match="lamella-device train"):
        device.train(instructions(tree, **MASKED), adapter(tree))
    (tmp_path / "device.toml").write_text(FILE)
    assert Device(tmp_path).requires_secure_aggregation()
