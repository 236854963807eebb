"""What a source of training data is: users with time-ordered examples, and users that no device trains on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Protocol

from model.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of one user, the newest ones: a bound on memory and time. What is trained on, the recipe's `max-examples` says.
MOST_EXAMPLES: Final = 8192


@dataclass(frozen=True)
class Example:
    """One thing to learn: after `prompt` comes `completion`.

    Attributes:
        prompt: What the model sees.
        completion: What it learns to answer; only this counts in the loss.
        timestamp: When it was written, seconds since 1970, or a counter where no time is known.
        group: A label of what it is about or who wrote it, by which held-out text is judged apart; None: it has none.
    """

    prompt: str
    completion: str
    timestamp: float
    group: str | None = None


class DataSource(Protocol):
    """Examples, user by user: each simulated device takes one user."""

    def users(self) -> tuple[str, ...]:
        """Users to train on, in a fixed order."""

    def held_out_users(self) -> tuple[str, ...]:
        """Users that no device trains on: what a release is judged by. May be empty."""

    def examples(self, user: str) -> tuple[Example, ...]:
        """All examples of one user or held-out user, oldest first.

        Raises:
            DataError: There is no such user, or its data is malformed.
        """


def split_by_time(
    examples: Sequence[Example], held_out_fraction: float
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """(train, held out): the newest `held_out_fraction` is held out, as a deployed model meets text written later.

    From two examples on, neither part is empty.

    Raises:
        DataError: The fraction is not in (0, 1).
    """
    if not 0.0 < held_out_fraction < 1.0:
        raise DataError(f"held_out_fraction must be in (0, 1), got {held_out_fraction}")
    ordered = tuple(sorted(examples, key=lambda example: example.timestamp))
    if len(ordered) < 2:  # noqa: PLR2004  (two parts)
        return ordered, ()
    held_out = min(len(ordered) - 1, max(1, round(len(ordered) * held_out_fraction)))
    return ordered[:-held_out], ordered[-held_out:]


def training_part(examples: Sequence[Example], *, max_examples: int) -> tuple[Example, ...]:
    """What of one user's examples is trained on: without the newest tenth, and of the rest the newest `max_examples`.

    A device trains on exactly these, and a membership audit counts exactly these as members.
    """
    training, _ = split_by_time(examples, 0.1)
    return newest(training, max_examples)


def held_out_examples(source: DataSource, *, limit: int) -> tuple[Example, ...]:
    """Up to `limit` examples of held-out users, taken in turn so that no single user decides; always the same ones."""
    return tuple(example for _, example in held_out_by_user(source, limit=limit))


def held_out_by_user(source: DataSource, *, limit: int) -> tuple[tuple[str, Example], ...]:
    """What `held_out_examples` takes, each with the user who wrote it."""
    per_user = ([(user, example) for example in source.examples(user)] for user in source.held_out_users())
    in_turn = (one for turn in zip_longest(*per_user) for one in turn if one is not None)
    return tuple(one for one, _ in zip(in_turn, range(limit), strict=False))


def newest(examples: Sequence[Example], max_examples: int) -> tuple[Example, ...]:
    """The newest `max_examples`, oldest first: no user outweighs the others by writing more."""
    return tuple(sorted(examples, key=lambda example: example.timestamp))[-max_examples:]
