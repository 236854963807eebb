"""One round of training on this device: budget, DP-SGD on its own data, and what may leave."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from client_sdk.errors import DeclinedError
from client_sdk.user_share import user_event
from delta_updates import base_hash, scan_tree
from model import (
    EncodedExample,
    LoadedModel,
    LoRAConfig,
    adapter_state_dict,
    add_lora,
    encode_examples,
    load_adapter_state,
    load_version,
    open_source,
    remove_lora,
    sequence_losses,
    training_part,
)
from model.training import StepCost, compute_dtype, is_lean, lean_sequence_losses
from privacy import (
    BudgetExceededError,
    Contribution,
    JsonlLedger,
    RoundInstructions,
)
from privacy.budget import PrivacyBudget, require_affordable
from privacy.calibration import noise_multiplier_for
from privacy.dp_sgd import DPSGDParameters, Gradients, train_dp_sgd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

AdapterArrays = dict[str, npt.NDArray[np.float32]]

# Example level, over the device's life. A server may ask for less; it cannot ask for more.
DEFAULT_MAX_EPSILON = 10.0

# Of a batch, however large: a device has little memory. Sixteen took 0.3 GB more and were no faster on two cores.
_EXAMPLES_AT_ONCE = 8
_WAYS: Final[dict[str, Gradients]] = {"direct": "own", "hooks": "hooks", "loop": "loop"}
# Of the direct way: bfloat16 where the processor has it. Its rounding is far below the noise that is added on purpose.
_COST = StepCost(precision="bfloat16")


@dataclass(frozen=True)
class TrainingSite:
    """Where a device trains: its private home, the tree it runs, and its own examples.

    Attributes:
        home: Keeps the privacy ledger and the device id; never leaves the device.
        tree: The installed version; its `base/` is what is trained on.
        data: A source specification of `model.open_source`.
        user: Whose examples of that source; empty: the only one there is.
        max_epsilon: The most that this device lets anyone spend in all, whatever the server asks for.
        trusts_server: Whether this device sends updates without noise for each example: the server adds noise, or
            brings together devices that add it.
        requires_secure_aggregation: Whether this device takes part only where its update is seen in a sum alone.
    """

    home: Path
    tree: Path
    data: str
    user: str = ""
    max_epsilon: float = DEFAULT_MAX_EPSILON
    trusts_server: bool = False
    requires_secure_aggregation: bool = False

    @property
    def device_id(self) -> str:
        """This device's pseudonym towards the server; random, made once."""
        path = self.home / "training_id"
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            temporary = path.with_name(f"training_id.{os.getpid()}")
            temporary.write_text(secrets.token_hex(16), encoding="ascii")
            try:
                # link, unlike replace, does not overwrite: two processes agree on the first one's id.
                os.link(temporary, path)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
            return path.read_text(encoding="ascii").strip()

    @property
    def ledger(self) -> JsonlLedger:
        """Every privacy event of this device, over all runs."""
        return JsonlLedger(self.home / "ledger.jsonl")


def train_round(
    site: TrainingSite, instructions: RoundInstructions, adapter: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[Contribution, AdapterArrays]:
    """Train the adapter on this device's examples and return what may leave: facts and the update.

    Args:
        site: Where this device keeps its base, data and ledger.
        instructions: What the server asks for, already parsed.
        adapter: The adapter of this round, float32, by the names of `model.adapter_state_dict`.

    Raises:
        DeclinedError: Another base, no examples, a way to train that the base does not allow, the budget, or an update
            that would be seen alone where the owner forbids it; nothing was spent.
        AdapterError: The received adapter does not fit the base.
    """
    if site.requires_secure_aggregation and instructions.secure_norm is None:
        raise DeclinedError(
            "the round would show this device's update alone; its owner allows secure sums only "
            "(`require_secure_aggregation`)"
        )
    actual = _base_hash(site.tree)
    if actual != instructions.base_hash:
        raise DeclinedError(f"this device runs base {actual[:12]}, the round is for base {instructions.base_hash[:12]}")
    is_ours = instructions.gradients != "hooks"
    loaded = _load_base(site.tree, compute_dtype(_COST.precision) if is_ours else torch.float32)
    lora = LoRAConfig(rank=instructions.rank, alpha=instructions.alpha, dropout=0.0, targets=instructions.targets)
    add_lora(loaded.model, lora, dtype=torch.float32)
    try:
        if is_ours and not is_lean(loaded.model):
            raise DeclinedError(
                "this base computes on rounded inputs; only `gradients = hooks` can train an adapter on it"
            )
        load_adapter_state(loaded.model, {name: torch.from_numpy(value.copy()) for name, value in adapter.items()})
        examples = _examples(site, loaded, instructions)
        contribution, parameters = _charge(site, instructions, num_examples=len(examples))
        _fit(loaded, examples, instructions, parameters)
        trained = adapter_state_dict(loaded.model)
        update = {name: (trained[name].detach().numpy() - adapter[name]).astype(np.float32) for name in adapter}
    finally:
        remove_lora(loaded.model)
    return contribution, update


def _charge(
    site: TrainingSite, instructions: RoundInstructions, *, num_examples: int
) -> tuple[Contribution, DPSGDParameters]:
    """Check the budget and write the event down, before any example is touched.

    A crash after this point has cost budget and released nothing, which is the safe side.
    """
    _require_sane(site, instructions)
    site.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    told = instructions.told_examples(num_examples)
    probability = instructions.sampling_probability_for(told)
    is_noisy = instructions.privacy_unit == "example"
    multiplier = _noise_multiplier(site.home, instructions, probability) if is_noisy else 0.0
    contribution = Contribution(
        device_id=site.device_id,
        run_id=instructions.run_id,
        server_round=instructions.server_round,
        base_hash=instructions.base_hash,
        num_examples=told,
        noise_multiplier=multiplier,
        sampling_probability=probability,
        steps=instructions.steps,
        clipping_norm=instructions.clipping_norm,
        target_delta=instructions.target_delta,
    )
    ledger = site.ledger
    event, of_user = contribution.event(datetime.now(UTC)), user_event(site, instructions)
    budget = PrivacyBudget(target_epsilon=instructions.target_epsilon, target_delta=instructions.target_delta)
    try:
        if is_noisy:
            require_affordable(budget, [one for one in ledger.events() if one.privacy_unit == "example"], event)
    except BudgetExceededError as error:
        raise DeclinedError(f"privacy budget: {error}") from error
    # Without noise too: towards the server these examples have no guarantee from now on, and the ledger says so.
    ledger.append(event)
    if of_user is not None:
        ledger.append(of_user)
    return contribution, DPSGDParameters(
        noise_multiplier=multiplier,
        clipping_norm=instructions.clipping_norm,
        sampling_probability=probability,
        steps=instructions.steps,
        expected_batch_size=probability * told,
        is_noisy=is_noisy,
    )


def _require_sane(site: TrainingSite, instructions: RoundInstructions) -> None:
    """Hold the server's wishes against this device's own limits: a server may be hostile, or badly set up."""
    if instructions.privacy_unit == "user":
        if not site.trusts_server and instructions.user_promise is not None:
            raise DeclinedError(
                "the round wants an update whose noise all devices make together, and a server that invents devices "
                "would see it with this device's share alone; its owner has not allowed that "
                "(`lamella-device train --trust-server`)"
            )
        if not site.trusts_server:
            raise DeclinedError(
                "the round wants an update without noise of this device's own; its owner has not allowed that "
                "(`lamella-device train --trust-server`)"
            )
        return
    if instructions.target_epsilon > site.max_epsilon:
        raise DeclinedError(
            f"the round may spend ε up to {instructions.target_epsilon:g}, this device allows {site.max_epsilon:g}"
        )
    # With δ of one over the number of examples, publishing one whole example at random would count as private.
    # The round's cap, not this device's number: whether it declines would tell that number.
    if instructions.target_delta * instructions.max_examples >= 1:
        raise DeclinedError(
            f"δ = {instructions.target_delta:g} is no protection for the {instructions.max_examples} examples that a "
            "device may use"
        )


def _noise_multiplier(home: Path, instructions: RoundInstructions, probability: float) -> float:
    """The calibrated noise multiplier; kept beside the ledger, since calibrating takes a second."""
    question = {
        "target_epsilon": instructions.target_epsilon,
        "target_delta": instructions.target_delta,
        "sampling_probability": probability,
        "steps": instructions.steps * instructions.budget_rounds,
    }
    path = home / "calibration.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["question"] == question:
            return float(kept["noise_multiplier"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # Absent or torn: only a cache, so calibrate again. `require_affordable` checks the result anyway.
    multiplier = noise_multiplier_for(
        target_epsilon=instructions.target_epsilon,
        target_delta=instructions.target_delta,
        sampling_probability=probability,
        steps=instructions.steps * instructions.budget_rounds,
    )
    path.write_text(json.dumps({"question": question, "noise_multiplier": multiplier}), encoding="utf-8")
    return multiplier


def _examples(site: TrainingSite, loaded: LoadedModel, instructions: RoundInstructions) -> Sequence[EncodedExample]:
    source = open_source(site.data)
    users = source.users()
    user = site.user or (users[0] if len(users) == 1 else "")
    if user not in users:
        raise DeclinedError("this device has no examples of its own to train on")
    chosen = training_part(source.examples(user), max_examples=instructions.max_examples)
    encoded = encode_examples(loaded.tokenizer, chosen, max_length=instructions.max_length)
    if not encoded:
        raise DeclinedError("this device has no examples of its own to train on")
    return encoded


def _fit(
    loaded: LoadedModel,
    examples: Sequence[EncodedExample],
    instructions: RoundInstructions,
    parameters: DPSGDParameters,
) -> None:
    trainable = [p for p in loaded.model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=instructions.learning_rate, momentum=0.9)
    way = _WAYS[instructions.gradients]
    lean = partial(lean_sequence_losses, cost=_COST, per_example=way == "own")
    train_dp_sgd(
        loaded.model,
        examples,
        loss_of=sequence_losses if way == "hooks" else lean,
        optimizer=optimizer,
        parameters=parameters,
        max_physical_batch=_EXAMPLES_AT_ONCE,
        gradients=way,
    )


@lru_cache(maxsize=1)
def _load_base(tree: Path, dtype: torch.dtype) -> LoadedModel:
    """The base alone; kept, since a simulation's process serves many devices in turn."""
    return load_version(tree, dtype=dtype, with_adapter=False)


@lru_cache(maxsize=1)
def _base_hash(tree: Path) -> str:
    """Hash of the base's bytes as they are on disk, not as anything claims them to be."""
    return base_hash(scan_tree(tree))
