"""Whose text an audit works on: a simulated fleet's own, or for a real fleet people who stand in for it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from model import open_source, training_part
from server.federation.fleet import users_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

    from model import Example
    from server.federation.recipe import Recipe

    # By a device's pseudonym.
    Texts = dict[str, tuple[Example, ...]]


# So many others set a threshold for one false alarm in a thousand.
_ENOUGH = 1000


@dataclass(frozen=True)
class People:
    """The examples of each device of a run, by the pseudonym that it trained under.

    Attributes:
        is_real: The very text that the devices trained on; only a simulated fleet has it here.
        examples: By pseudonym, as the device chose them.
        of_device: By pseudonym, what the same people wrote and their devices kept back.
        strangers: Examples of people whom no device trains on, the same kind of text.
    """

    is_real: bool
    examples: dict[str, tuple[Example, ...]]
    of_device: dict[str, tuple[Example, ...]]
    strangers: tuple[Example, ...]

    @property
    def kept_back(self) -> tuple[Example, ...]:
        """What the people of this run wrote and no device trained on, in turn over the devices."""
        parts = [self.of_device[device] for device in sorted(self.of_device)]
        return tuple(example for turn in zip_longest(*parts) for example in turn if example is not None)

    def others(self, *, members: int) -> tuple[tuple[Example, ...], str]:
        """Whom to tell members from, and who they are in words.

        The same people's, where there is enough: strangers write differently, which an attack could take for
        membership, or which could hide it.
        """
        if len(self.kept_back) >= min(members, _ENOUGH):
            return self.kept_back, "what the same people wrote and their devices kept back"
        told = "what the same people's devices kept back, and other people's text"
        return (*self.kept_back, *self.strangers)[: max(members, _ENOUGH)], told

    def halved(
        self, random: np.random.Generator
    ) -> tuple[dict[str, tuple[Example, ...]], dict[str, tuple[Example, ...]]]:
        """Each device's text, trained on or kept back, cut by chance into two halves."""
        first: Texts = {}
        second: Texts = {}
        for device, own in self.examples.items():
            pool = (*own, *self.of_device.get(device, ()))
            order = random.permutation(len(pool))
            first[device] = tuple(pool[index] for index in order[: len(pool) // 2])
            second[device] = tuple(pool[index] for index in order[len(pool) // 2 :])
        return first, second

    def in_turn(self, devices: Iterable[str], *, limit: int) -> tuple[Example, ...]:
        """Up to `limit` examples, in turn over the devices."""
        parts = [self.examples[device] for device in sorted(devices) if device in self.examples]
        return tuple(islice((e for turn in zip_longest(*parts) for e in turn if e is not None), limit))


def people_of(recipe: Recipe, devices: Iterable[str]) -> People:
    """The people behind a run's devices.

    Raises:
        DataError: The source of held-out text cannot be read.
    """
    source = open_source(recipe.data)
    held_out = tuple(e for user in source.held_out_users() for e in source.examples(user))
    fleet = Path(recipe.fleet)
    if recipe.fleet and users_of(fleet):
        own, of_device = _of_fleet(fleet, set(devices), max_examples=recipe.max_examples)
        return People(is_real=True, examples=own, of_device=of_device, strangers=held_out)
    # A real fleet's text is where it belongs. The mechanism is the same whatever it works on.
    chunks = [held_out[start::4] for start in range(4)]
    stand_ins = {
        device: tuple(chunks[number % 4][: recipe.max_examples]) for number, device in enumerate(sorted(set(devices)))
    }
    return People(is_real=False, examples=stand_ins, of_device={}, strangers=held_out)


def _of_fleet(fleet: Path, devices: set[str], *, max_examples: int) -> tuple[Texts, Texts]:
    """What each device trained on, and what it kept back.

    Not kept back is what says the same as something that was trained on, whoever wrote it and in answer to what: a
    release that knows it by heart knows it rightly, and an attacker who names it is not wrong.
    """
    source = open_source(f"jsonl:{fleet / 'data'}")
    found: Texts = {}
    everything: Texts = {}
    users = json.loads((fleet / "fleet.json").read_text(encoding="utf-8"))["users"]
    for number, user in enumerate(users):
        pseudonym = fleet / "devices" / str(number) / "training_id"
        if pseudonym.exists() and (name := pseudonym.read_text(encoding="ascii").strip()) in devices:
            everything[name] = tuple(source.examples(user))
            found[name] = tuple(training_part(everything[name], max_examples=max_examples))
    trained = {example.completion for own in found.values() for example in own}
    return found, {name: tuple(e for e in own if e.completion not in trained) for name, own in everything.items()}
