"""One Flower message: parse it, train, pack the reply; and where a node trains."""

from __future__ import annotations

import json
import math
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from pydantic import ValidationError

from client_sdk.errors import DeclinedError, DeviceError
from client_sdk.local_training import DEFAULT_MAX_EPSILON, TrainingSite, train_round
from client_sdk.secure_round import answer_secure, is_secure
from delta_updates import DeltaError
from model import ModelError
from privacy import PrivacyError, RoundInstructions


def answer(message: Message, context: Context) -> Message:
    """Answer one round's message: the update and its facts, or the reason why this device declines."""
    try:
        content = _answer(message.content, context)
    except (DeviceError, DeltaError, ModelError, PrivacyError, KeyError, ValidationError) as error:
        # Our own errors name settings and hashes, never a person's text; anything else stays on the device's log.
        content = RecordDict({"declined": ConfigRecord({"reason": str(error)[:300]})})
    return Message(content=content, reply_to=message)


def _answer(content: RecordDict, context: Context) -> RecordDict:
    site = site_of(context)
    if is_secure(content) and "instructions" not in content.config_records:
        return answer_secure(content, context, site, None, None)
    instructions = RoundInstructions.from_config(dict(content.config_records["instructions"]))
    adapter = {name: array.numpy() for name, array in content.array_records["adapter"].items()}
    if is_secure(content):
        return answer_secure(content, context, site, instructions, adapter)
    if instructions.secure_norm is not None:
        raise DeclinedError("the round promises a secure sum and asks for a plain update")
    contribution, update = train_round(site, instructions, adapter)
    return RecordDict(
        {
            "contribution": ConfigRecord({**contribution.to_config()}),
            "update": ArrayRecord({name: Array(tensor) for name, tensor in update.items()}),
        }
    )


def site_of(context: Context) -> TrainingSite:
    """Where this node trains.

    A real device says so in its node config: `home` (a `Device` home), `data` (a source of `model.open_source`), where
    that source has several users `user`, `max-epsilon`, `trust-server` (updates without noise of its own) and
    `require-secure-aggregation` (no round but secure sums; so does `device.toml`).
    A simulated one is number `partition-id` of the folder that `lamella fleet make` wrote (run config key `fleet`).

    Raises:
        DeclinedError: Neither is given.
    """
    home = context.node_config.get("home")
    if home:
        from client_sdk.device import Device  # noqa: PLC0415 - a simulated device needs no updater

        data = str(context.node_config.get("data") or f"jsonl:{home}/data")
        user = str(context.node_config.get("user") or "")
        limit = float(context.node_config.get("max-epsilon", DEFAULT_MAX_EPSILON))
        insists = context.node_config.get("require-secure-aggregation") is True
        device = Device(Path(str(home)), require_secure_aggregation=insists)
        return TrainingSite(
            home=Path(str(home)),
            tree=device.active().tree,
            data=data,
            user=user,
            max_epsilon=limit,
            trusts_server=context.node_config.get("trust-server") is True,
            requires_secure_aggregation=device.requires_secure_aggregation(),
        )
    fleet = str(context.run_config.get("fleet") or "")
    if not fleet:
        raise DeclinedError(
            "this node has neither `home` in its node config nor a simulated fleet; "
            "run `lamella fleet make` and pass --run-config 'fleet=\"FOLDER\"'"
        )
    return simulated_site(Path(fleet), int(context.node_config["partition-id"]))


def simulated_site(fleet: Path, number: int) -> TrainingSite:
    """Device `number` of a simulated fleet; raises DeclinedError when the fleet has fewer."""
    users: list[str] = json.loads((fleet / "fleet.json").read_text(encoding="utf-8"))["users"]
    if number >= len(users):
        raise DeclinedError(f"the fleet has {len(users)} devices, number {number} does not exist")
    return TrainingSite(
        home=fleet / "devices" / str(number),
        tree=fleet / "tree",
        data=f"jsonl:{fleet / 'data'}",
        user=users[number],
        max_epsilon=math.inf,  # a simulated person has no limit but the recipe's
        trusts_server=True,  # and runs on the server's own machine
    )
