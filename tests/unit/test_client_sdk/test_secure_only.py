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
    train_round(own, instructions(tree, privacy_unit="user", **MASKED, secure_share_variance=4.0), adapter(tree))


def test_noise_in_shares_alone_needs_the_owners_word_too(tree: Path, tmp_path: Path) -> None:
    asked = instructions(tree, privacy_unit="user", **MASKED, secure_share_variance=4.0)
    with pytest.raises(DeclinedError, match=r"invents devices .* --trust-server"):
        train_round(site(tree, tmp_path), asked, adapter(tree))


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
