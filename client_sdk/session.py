"""A conversation: remembers its messages, and forgets the oldest when the model's context is full."""

from collections.abc import Iterator
from typing import Unpack

from client_sdk.backends import Piece
from client_sdk.generation import GenerationOptions
from client_sdk.runtime import Runtime

_DEFAULT_NEW_TOKENS = 256
_SHARE_AFTER_TRIMMING = 0.75
"""Trimming leaves some room: the engine then reads the conversation anew, which should not happen at every turn."""


class ChatSession:
    """One conversation with the active version. The engine keeps what it read, so each turn reads only what is new.

    When messages and the answer's room exceed the context, the oldest turns are dropped, the system message never.

    Attributes:
        messages: `role` and `content` of each, the system message first if there is one.
        dropped: messages that were dropped so far.
    """

    def __init__(self, runtime: Runtime, *, system: str | None = None) -> None:
        self._runtime = runtime
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, str]] = list(self._system)
        self.dropped = 0

    def ask(self, text: str, **options: Unpack[GenerationOptions]) -> Iterator[Piece]:
        """Say something and yield the answer piece by piece; the last piece tells how it ended.

        Both are remembered when the answer ended, or was closed after some text; a turn that failed is not.

        Raises:
            NothingInstalledError: nothing (whole) is installed.
            DeviceError: this cannot be answered; the message says why.
        """
        options.setdefault("max_new_tokens", _DEFAULT_NEW_TOKENS)
        asked = [*self.messages, {"role": "user", "content": text}]
        turn, dropped = self._fitting(asked, options["max_new_tokens"])
        said: list[str] = []
        try:
            for piece in self._runtime.pieces(turn, **options):
                said.append(piece.text)
                yield piece
        finally:
            if any(said):
                self.messages = [*turn, {"role": "assistant", "content": "".join(said)}]
                self.dropped += dropped

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._system)
        self.dropped = 0

    def _fitting(self, messages: list[dict[str, str]], new_tokens: int) -> tuple[list[dict[str, str]], int]:
        """The messages, without the oldest turns where they and the answer would not fit; and how many are missing."""
        context = self._runtime.load().context
        if self._runtime.count_tokens(messages) + new_tokens <= context:
            return messages, 0
        room = max(1, int(_SHARE_AFTER_TRIMMING * context) - new_tokens)
        kept, first = messages[len(self._system) :], 0
        # The newest message stays: if it alone is too long, the engine says so.
        while first < len(kept) - 1 and self._runtime.count_tokens([*self._system, *kept[first:]]) > room:
            first += 1
            while first < len(kept) - 1 and kept[first]["role"] != "user":
                first += 1
        return [*self._system, *kept[first:]], first
