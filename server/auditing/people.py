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

    from model import Example
    from server.federation.recipe import Recipe


@dataclass(frozen=True)
class People:
    """The examples of each device of a run, by the pseudonym that it trained under.

    Attributes:
        is_real: The very text that the devices trained on; only a simulated fleet has it here.
        examples: By pseudonym, as the device chose them.
        others: Examples of people whom no device trains on, the same kind of text.
    """

    is_real: bool
    examples: dict[str, tuple[Example, ...]]
    others: tuple[Example, ...]

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
        own = _of_fleet(fleet, set(devices), max_examples=recipe.max_examples)
        return People(is_real=True, examples=own, others=held_out)
    # A real fleet's text is where it belongs. The mechanism is the same whatever it works on.
    chunks = [held_out[start::4] for start in range(4)]
    stand_ins = {
        device: tuple(chunks[number % 4][: recipe.max_examples]) for number, device in enumerate(sorted(set(devices)))
    }
    return People(is_real=False, examples=stand_ins, others=held_out)


def _of_fleet(fleet: Path, devices: set[str], *, max_examples: int) -> dict[str, tuple[Example, ...]]:
    source, found = open_source(f"jsonl:{fleet / 'data'}"), {}
    users = json.loads((fleet / "fleet.json").read_text(encoding="utf-8"))["users"]
    for number, user in enumerate(users):
        pseudonym = fleet / "devices" / str(number) / "training_id"
        if pseudonym.exists() and (name := pseudonym.read_text(encoding="ascii").strip()) in devices:
            found[name] = tuple(training_part(source.examples(user), max_examples=max_examples))
    return found
