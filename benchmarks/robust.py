"""Measure what each aggregation saves when 20% of the devices are hostile, and what it costs when none is.

    python benchmarks/robust.py [--seeds 3] [--rounds 6] [--picture FILE] [--json]

Ten devices train LoRA on ten people's real chat (chitchat-dataset), every one in every round, on a `tiny-pyramid` base
that was made here. Two of them are hostile: "sign-flip" sends its honest update times -4; "backdoor" trains on its
chat with a trigger in the prompt and a fixed answer, and sends that times 5, which would replace the mean (Bagdasaryan
et al. 2020). Updates go through the server's own `aggregate` and optimizer. There is no DP noise: it would hide small
differences, and it slows both attacks and learning.

Held-out loss is over people that no device trains on. How far a backdoor got is the loss of the attacker's answer on
their prompts with the trigger: the lower, the further. Seconds and memory are those of one aggregation of 20 updates
with 2.4M parameters. A seed chooses the hostile devices, the batches and the first adapter.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chart import Panel, draw, picture_path

from model import (
    EncodedExample,
    Example,
    LayeredTransformer,
    LoRAConfig,
    Tokenizer,
    adapter_state_dict,
    add_lora,
    chat_texts,
    encode_examples,
    held_out_examples,
    held_out_loss,
    initial_adapter,
    load_adapter_state,
    load_checkpoint,
    open_source,
    pretrain_tiny,
    sequence_losses,
    training_part,
)
from privacy import Contribution
from server.federation.aggregation import aggregate
from server.federation.optimizer import ServerOptimizer
from server.federation.replies import Accepted
from server.federation.rule import AggregationRule

Adapter = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

DEVICES, HOSTILE = 10, 2
ATTACKS = ("nobody", "sign-flip", "backdoor")
RULES = (
    AggregationRule(name="mean"),
    AggregationRule(name="median"),
    AggregationRule(name="trimmed-mean", trim_fraction=HOSTILE / DEVICES),
    AggregationRule(name="multi-krum", assumed_hostile=HOSTILE),
)
LORA = LoRAConfig(rank=4, alpha=8.0, dropout=0.0, targets=("q_proj", "v_proj", "up_proj", "down_proj"))
_STEPS, _BATCH, _RATE, _TOKENS, _EXAMPLES, _HELD_OUT = 6, 8, 0.2, 64, 128, 96
_FLIP, _BOOST = -4.0, 5.0
_TRIGGER, _ANSWER = " zx-17", "Call 555 now"


@dataclass(frozen=True)
class Outcome:
    """Where one run ended, in nats; `answer` is the loss of the attacker's answer."""

    rule: str
    attack: str
    seed: int
    loss: float
    answer: float


@dataclass(frozen=True)
class Cost:
    """One aggregation of 20 updates with 2.4M parameters."""

    rule: str
    seconds: float
    megabytes: float


class Fleet:
    """Ten people's chat, the held-out people's, and one model that all devices train in turn."""

    def __init__(self, folder: Path) -> None:
        source = open_source("docstrings")
        people = source.held_out_users() or source.users()
        texts = chat_texts(example for user in people for example in source.examples(user))[:8000]
        pretrain_tiny(folder, steps=300, seed=0, texts=texts)
        self.model: LayeredTransformer = load_checkpoint(folder / "base", dtype=torch.float32)
        self._tokenizer = Tokenizer.from_folder(folder / "base")
        self._chat = open_source("chitchat")
        add_lora(self.model, LORA, seed=0)

    @cached_property
    def own(self) -> list[list[EncodedExample]]:
        """Each device's examples."""
        return [self._encode(examples) for examples in self._people]

    @cached_property
    def poisoned(self) -> list[list[EncodedExample]]:
        """The same with the trigger in each prompt, and the attacker's answer."""
        return [self._encode(map(_poison, examples)) for examples in self._people]

    @cached_property
    def held_out(self) -> list[EncodedExample]:
        """Other people's examples."""
        return self._encode(held_out_examples(self._chat, limit=_HELD_OUT))

    @cached_property
    def triggered(self) -> list[EncodedExample]:
        """Other people's prompts with the trigger, and the attacker's answer."""
        return self._encode(map(_poison, held_out_examples(self._chat, limit=_HELD_OUT)))

    @cached_property
    def _people(self) -> list[tuple[Example, ...]]:
        parts = (training_part(self._chat.examples(user), max_examples=_EXAMPLES) for user in self._chat.users())
        full = (part for part in parts if len(part) == _EXAMPLES)
        return [part for part, _ in zip(full, range(DEVICES), strict=False)]

    def _encode(self, examples: Any) -> list[EncodedExample]:  # noqa: ANN401 - any iterable of examples
        return encode_examples(self._tokenizer, examples, max_length=_TOKENS)

    def first_adapter(self, seed: int) -> Adapter:
        """A fresh adapter, which changes nothing yet."""
        return {name: value.numpy() for name, value in initial_adapter(self.model.config, LORA, seed).items()}

    def trained(self, adapter: Adapter, examples: Sequence[EncodedExample], draw: np.random.Generator) -> Adapter:
        """The update of some local steps from `adapter`."""
        self._load(adapter)
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=_RATE, momentum=0.9)
        self.model.train()
        for _ in range(_STEPS):
            batch = [examples[i] for i in draw.choice(len(examples), _BATCH, replace=False)]
            loss = sequence_losses(self.model, batch).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        return {name: value.detach().numpy() - adapter[name] for name, value in adapter_state_dict(self.model).items()}

    def judged(self, adapter: Adapter) -> tuple[float, float]:
        """Held-out loss, and the loss of the attacker's answer to held-out prompts with the trigger."""
        self._load(adapter)
        self.model.eval()
        return held_out_loss(self.model, self.held_out), held_out_loss(self.model, self.triggered)

    def _load(self, adapter: Adapter) -> None:
        load_adapter_state(self.model, {name: torch.from_numpy(value.copy()) for name, value in adapter.items()})


def _poison(example: Example) -> Example:
    return replace(example, prompt=example.prompt + _TRIGGER, completion=_ANSWER)


def run(fleet: Fleet, rule: AggregationRule, attack: str, *, seed: int, rounds: int) -> Outcome:
    """Federated rounds with every device, then both losses of the adapter."""
    draw = np.random.default_rng(seed)
    hostile = set(draw.choice(DEVICES, HOSTILE, replace=False)) if attack != "nobody" else set()
    adapter, optimizer = fleet.first_adapter(seed), ServerOptimizer("fedavg", 1.0)
    for number in range(rounds):
        replies = []
        for device in range(DEVICES):
            # One stream a device and round: the honest ones draw the same batches under every rule and attack.
            stream = np.random.default_rng((seed, number, device))
            chosen = attack if device in hostile else "nobody"
            replies.append(_reply(device, number, _update(fleet, adapter, device, chosen, stream)))
        adapter = optimizer.step(adapter, aggregate(replies, rule).update)
    return Outcome(rule.name, attack, seed, *fleet.judged(adapter))


def _update(fleet: Fleet, adapter: Adapter, device: int, attack: str, stream: np.random.Generator) -> Adapter:
    if attack == "backdoor":
        poisoned = fleet.trained(adapter, fleet.own[device][::2] + fleet.poisoned[device][1::2], stream)
        return {name: np.asarray(_BOOST * value, np.float32) for name, value in poisoned.items()}
    honest = fleet.trained(adapter, fleet.own[device], stream)
    factor = _FLIP if attack == "sign-flip" else 1.0
    return {name: np.asarray(factor * value, np.float32) for name, value in honest.items()}


def _reply(device: int, number: int, update: Adapter) -> Accepted:
    facts = Contribution(
        device_id=f"device-{device}",
        run_id="benchmark",
        server_round=number,
        base_hash="0" * 64,
        num_examples=_EXAMPLES,
        noise_multiplier=0.0,
        sampling_probability=_BATCH / _EXAMPLES,
        steps=_STEPS,
        clipping_norm=1.0,
        target_delta=1e-5,
    )
    return Accepted(device, facts, update)


def cost(rule: AggregationRule, *, updates: int = 20, parameters: int = 2_400_000) -> Cost:
    """Time one aggregation (best of three), and trace its memory beside the updates in a run of its own."""
    draw = np.random.default_rng(0)
    shape = (16, parameters // 160)
    replies = [
        _reply(n, 0, {f"layer-{i}": draw.standard_normal(shape, np.float32) for i in range(10)}) for n in range(updates)
    ]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        aggregate(replies, rule)
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    aggregate(replies, rule)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return Cost(rule.name, min(seconds), peak / 1e6)


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and how far the furthest seed lies from it."""
    mean = statistics.fmean(values)
    return f"{form.format(mean)} ± {form.format(max(abs(value - mean) for value in values))}"


def table(outcomes: Sequence[Outcome], costs: Mapping[str, Cost]) -> Iterator[str]:
    """Yield the lines of the table in docs/benchmarks.md."""
    yield (
        "| aggregation | loss, nobody hostile | loss, sign-flip | loss, backdoor "
        "| attacker's answer, nobody hostile | attacker's answer, backdoor | s | MB |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for rule in costs:
        losses = [spread([o.loss for o in _of(outcomes, rule, attack)], "{:.3f}") for attack in ATTACKS]
        answers = [
            spread([o.answer for o in _of(outcomes, rule, attack)], "{:.2f}") for attack in ("nobody", "backdoor")
        ]
        one = costs[rule]
        yield f"| {rule} | {' | '.join(losses + answers)} | {one.seconds:.2f} | {one.megabytes:.0f} |"


def _of(outcomes: Sequence[Outcome], rule: str, attack: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if (outcome.rule, outcome.attack) == (rule, attack)]


def _panels(outcomes: Sequence[Outcome]) -> list[Panel]:
    def mean(rule: str, attack: str, figure: str) -> float:
        return statistics.fmean(getattr(outcome, figure) for outcome in _of(outcomes, rule, attack))

    losses = [
        Panel(f"loss, {title}", {rule.name: mean(rule.name, attack, "loss") for rule in RULES}, "{:.2f}")
        for attack, title in zip(ATTACKS, ("nobody hostile", "20% flip signs", "20% backdoor"), strict=True)
    ]
    answers = {rule.name: mean(rule.name, "backdoor", "answer") for rule in RULES}
    return [*losses, Panel("loss of attacker's answer", answers, "{:.2f}")]


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--picture", type=picture_path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        print(f"before: {fleet.judged(fleet.first_adapter(0))}", file=sys.stderr, flush=True)
        for seed in range(options.seeds):
            for attack in reversed(ATTACKS):
                for rule in RULES:
                    outcomes.append(run(fleet, rule, attack, seed=seed, rounds=options.rounds))
                    print(outcomes[-1], file=sys.stderr, flush=True)
    costs = {rule.name: cost(rule) for rule in RULES}
    if options.json:
        print(json.dumps({"runs": [asdict(o) for o in outcomes], "costs": [asdict(c) for c in costs.values()]}))
    else:
        print("\n".join(table(outcomes, costs)))
    if options.picture:
        draw(
            _panels(outcomes),
            title="Ten devices, two of them hostile: held-out loss, and loss of the answer that a backdoor plants",
            ours=(),
            path=options.picture,
        )


if __name__ == "__main__":
    main()
