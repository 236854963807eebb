"""People's own data: a folder of JSONL files, one a user.

A line is {"prompt": ..., "completion": ...} or {"messages": [{"role": ..., "content": ...}, ...]}, with an optional
"timestamp" in seconds since 1970 and an optional "group", a label of at most 64 characters. Files in the subfolder
`held_out` are users that no device trains on.
"""

from __future__ import annotations

import json
import re
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Final

from model.data.source import MOST_EXAMPLES, DataSource, Example, newest
from model.errors import CheckpointError, DataError
from model.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_MAX_LINE_BYTES: Final = 1024 * 1024
_MAX_LABEL: Final = 64
_HELD_OUT: Final = "held_out"
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class JsonlSource:
    """One JSONL file a user; each is read when its user is asked for."""

    def __init__(self, folder: Path, *, max_examples: int = MOST_EXAMPLES) -> None:
        """Choose a folder and the cap per user, the newest ones.

        Raises:
            DataError: There is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; give one with a JSONL file for each user")
        self._folder = folder
        self._max_examples = max_examples

    def users(self) -> tuple[str, ...]:
        """Names of the files, without `.jsonl`."""
        return _users_in(self._folder)

    def held_out_users(self) -> tuple[str, ...]:
        """Names of the files in `held_out`, without `.jsonl`; none without that subfolder."""
        return _users_in(self._folder / _HELD_OUT)

    def examples(self, user: str) -> tuple[Example, ...]:
        """One user's examples, oldest first; without timestamps in the order of the lines.

        Raises:
            DataError: There is no such user, or a line is malformed; names file and line number.
        """
        for folder in (self._folder, self._folder / _HELD_OUT):
            if user in _users_in(folder):
                return newest(tuple(_examples_in(folder / f"{user}.jsonl")), self._max_examples)
        raise DataError(f"{self._folder} has no file {user}.jsonl")


def export_users(
    source: DataSource, folder: Path, *, users: int | None = None, held_out_users: int = 50, at_least: int = 1
) -> None:
    """Write a source as a folder for `JsonlSource`, so that each device reads its own file and nothing else.

    Args:
        source: Where the examples come from.
        folder: Gets one file a user, and `held_out` with the held-out users.
        users: How many users, the first ones; None for all.
        held_out_users: How many held-out users, the first ones.
        at_least: Only users with as many examples.

    Raises:
        DataError: Too few users have so many examples, a user's name is no file name, or the disk does not take it.
    """
    fleet = (user for user in source.users() if at_least <= 1 or len(source.examples(user)) >= at_least)
    chosen = tuple(islice(fleet, users))
    if users is not None and at_least > 1 and len(chosen) < users:
        raise DataError(f"only {len(chosen)} of {users} users have {at_least} examples or more; ask for fewer")
    for target, names in (
        (folder, chosen),
        (folder / _HELD_OUT, source.held_out_users()[:held_out_users]),
    ):
        for user in names:
            if not _USER.fullmatch(user):
                raise DataError(f"user {user!r} cannot be a file name; use letters, digits, dots, dashes, underscores")
            lines = (json.dumps(_values_of(example), ensure_ascii=False) for example in source.examples(user))
            try:
                write_text(target / f"{user}.jsonl", "".join(f"{line}\n" for line in lines))
            except CheckpointError as error:
                raise DataError(str(error)) from error


def _users_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.jsonl") if _USER.fullmatch(path.stem)))


def _examples_in(path: Path) -> Iterator[Example]:
    has_time: bool | None = None
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Not the library's message: it may quote the text.
            raise DataError(f"{place}: no JSON object") from error
        if not isinstance(values, dict):
            raise DataError(f"{place}: no JSON object")
        moment = values.get("timestamp")
        if has_time is not None and has_time != (moment is not None):
            raise DataError(f"{place}: give every line of a file a timestamp, or none")
        has_time = moment is not None
        if has_time and (isinstance(moment, bool) or not isinstance(moment, (int, float))):
            raise DataError(f"{place}: timestamp must be a number, seconds since 1970")
        written_at, group = float(number if moment is None else moment), _label(values, place)
        for prompt, completion in _pairs(values, place):
            yield Example(prompt=prompt, completion=completion, timestamp=written_at, group=group)


def _values_of(example: Example) -> dict[str, object]:
    return {name: value for name, value in vars(example).items() if value is not None}


def _label(values: Mapping[str, Any], place: str) -> str | None:
    label = values.get("group")
    if label is None:
        return None
    if not isinstance(label, str) or not 0 < len(label) <= _MAX_LABEL or not label.isprintable():
        raise DataError(f"{place}: group must be a printable text of 1 to {_MAX_LABEL} characters")
    return label


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, each of bounded length."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > _MAX_LINE_BYTES:
                    raise DataError(f"{path}, line {number}: longer than {_MAX_LINE_BYTES} bytes; split it up")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _pairs(values: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """(prompt, completion) of a line: its own, or each answer of the assistant to the user's message before it."""
    if "messages" in values:
        messages = values["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DataError(f"{place}: messages must be a list of objects with role and content")
        for asked, answered in pairwise(messages):
            if (asked.get("role"), answered.get("role")) == ("user", "assistant"):
                yield _text(asked, "content", place), _text(answered, "content", place)
    else:
        yield _text(values, "prompt", place), _text(values, "completion", place)


def _text(values: Mapping[str, Any], key: str, place: str) -> str:
    text = values.get(key)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{place}: {key} must be a text that is not empty")
    return text
