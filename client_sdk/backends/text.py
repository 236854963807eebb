"""From tokens to text that is certain: whole characters, and nothing of a stop text."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Decodes new tokens as they come, and holds back what may still change or may begin a stop text.

    Attributes:
        is_stopped: whether a stop text was met; what follows it is never shown.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        """Begin an answer.

        Args:
            decode: token ids of the whole answer to text.
            stop: texts that end the answer; none is empty.
        """
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._anchor = 0  # tokens before it are shown and need not be decoded again
        self._prefix = ""  # the decoded text of tokens since the anchor that is already in `_seen`
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Take in one token; returns the text that became certain, often empty."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._anchor :])
        # A character may need several tokens, and a space may depend on what precedes it.
        if text.endswith(_REPLACEMENT) or not text.startswith(self._prefix):
            return ""
        return self._show(self._advance(text))

    def finish(self) -> str:
        """The rest of the text, when no token follows."""
        if self.is_stopped:
            return ""
        text = self._decode(self._ids[self._anchor :])
        shown = self._show(text[len(self._prefix) :] if text.startswith(self._prefix) else "")
        rest, self._held = self._held, ""
        return shown if self.is_stopped else shown + rest

    def _advance(self, text: str) -> str:
        """What is new in the text since the anchor; the anchor follows one token behind, so that work stays bounded."""
        new = text[len(self._prefix) :]
        self._prefix = text
        if len(self._ids) - self._anchor > _ANCHOR_DISTANCE:
            tail = self._ids[-_ANCHOR_TOKENS:]
            decoded = self._decode(tail)
            if decoded and text.endswith(decoded):
                self._anchor, self._prefix = len(self._ids) - _ANCHOR_TOKENS, decoded
        return new

    def _show(self, new: str) -> str:
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


# A long answer is not decoded from its start for every token; the tail must be long enough for spaces to settle.
_ANCHOR_DISTANCE = 64
_ANCHOR_TOKENS = 16


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
