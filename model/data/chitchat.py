"""Real chat of real people: the package `chitchat-dataset` (MIT), 1,315 users with sender ids and timestamps.

A partner's turn is the prompt, this user's reply the completion. Users with many messages are the fleet; the others
judge a release, and only by conversations in which no user of the fleet took part, so that no word of them was ever
seen in training, not even as a prompt.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter, defaultdict
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.data.filters import is_clean
from model.data.source import MOST_EXAMPLES, Example, newest
from model.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


class ChitchatSource:
    """Users of the chitchat dataset.

    Reading it takes about a second and 200 MB; a fleet of device processes should read `export_users` files instead.
    """

    def __init__(self, *, min_messages: int = 100, max_examples: int = MOST_EXAMPLES) -> None:
        """Choose whom to take.

        Args:
            min_messages: Users with at least as many messages are trained on, the others held out.
            max_examples: Cap per user, the newest ones; the longest history has 25,272 messages.
        """
        self._min_messages = min_messages
        self._max_examples = max_examples

    def users(self) -> tuple[str, ...]:
        """Ids of the users with enough messages and at least one usable example."""
        return tuple(sorted(self._fleet & set(self._by_user)))

    def held_out_users(self) -> tuple[str, ...]:
        """Ids of the users below the threshold who talked to others below it."""
        return tuple(sorted(set(self._by_user) - self._fleet))

    def examples(self, user: str) -> tuple[Example, ...]:
        """One user's replies, oldest first, profanity and e-mail addresses left out.

        Raises:
            DataError: There is no such user.
        """
        if user not in self._by_user:
            raise DataError(f"the chitchat dataset has no user {user!r} with usable messages")
        return newest(self._by_user[user], self._max_examples)

    @cached_property
    def _conversations(self) -> list[list[list[dict[str, str]]]]:
        """Per conversation its turns, per turn its messages (`text`, `timestamp`, `sender`)."""
        # Found, not imported: the file is all that is needed.
        spec = importlib.util.find_spec("chitchat_dataset")
        if spec is None or spec.origin is None:
            raise DataError(
                "the package chitchat-dataset is not installed; run `pip install chitchat-dataset==0.9.0`, or choose "
                "the source 'docstrings' or 'jsonl:FOLDER'"
            )
        path = Path(spec.origin).with_name("dataset.json")
        try:
            content: dict[str, Any] = json.loads(path.read_bytes())
            return [[turn for turn in entry["messages"] if turn] for entry in content.values()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not the dataset of chitchat-dataset 0.9.0: {error!r}") from error

    @cached_property
    def _fleet(self) -> frozenset[str]:
        counts = Counter(m["sender"] for turns in self._conversations for turn in turns for m in turn)
        return frozenset(user for user, count in counts.items() if count >= self._min_messages)

    @cached_property
    def _by_user(self) -> dict[str, list[Example]]:
        examples: dict[str, list[Example]] = defaultdict(list)
        for turns in self._conversations:
            has_fleet = any(turn[0]["sender"] in self._fleet for turn in turns)
            for user, example in _replies(turns):
                if has_fleet <= (user in self._fleet):
                    examples[user].append(example)
        return examples


def _replies(turns: list[list[dict[str, str]]]) -> Iterator[tuple[str, Example]]:
    """Every turn that answers another person's turn, by its writer."""
    texts = ["\n".join(message["text"].strip() for message in turn).strip() for turn in turns]
    usable = [bool(text) and is_clean(text) for text in texts]
    for heard, said in pairwise(range(len(turns))):
        if usable[heard] and usable[said] and turns[heard][0]["sender"] != turns[said][0]["sender"]:
            moment = datetime.fromisoformat(turns[said][0]["timestamp"]).timestamp()
            yield turns[said][0]["sender"], Example(texts[heard], texts[said], moment)
