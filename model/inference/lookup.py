"""Prompt lookup: guess the next tokens from where the last ones occurred before (Yang et al. 2023, arXiv:2304.04487).

A guess is checked by the model in the same pass that computes the next token. Each position draws its token from the
model's own distribution, and a guess counts only where it equals that draw; so what comes out is what would have come
out without guesses, greedy or sampled.
"""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 4
_SHORTEST: Final = 2
_FEWEST_GUESSES: Final = 2
_MOST_GUESSES: Final = 12


class PromptLookup:
    """An index of a text's short runs of tokens, and how far its guesses may be trusted.

    Attributes:
        guesses: How many tokens the next proposal may have; it grows with success and falls with failure.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self.guesses = _FEWEST_GUESSES * 2
        self._pause = 0
        self._failures = 0
        self.extend(tokens)

    def extend(self, tokens: list[int]) -> None:
        """Take in tokens that are certain."""
        for token in tokens:
            # The run that ends the text is entered only when a token follows it: else it would find itself.
            for length in range(_SHORTEST, _LONGEST + 1):
                if len(self._tokens) >= length:
                    self._ends[tuple(self._tokens[-length:])] = len(self._tokens)
            self._tokens.append(token)

    def propose(self) -> list[int]:
        """The tokens that followed the latest earlier occurrence of the longest run that ends the text; often none."""
        if self._pause > 0:
            self._pause -= 1
            return []
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            if len(self._tokens) >= length:
                at = self._ends.get(tuple(self._tokens[-length:]))
                if at is not None:
                    return self._tokens[at : at + self.guesses]
        return []

    def learn(self, proposed: int, accepted: int) -> None:
        """Adapt to how many of the proposed tokens were right."""
        if accepted == proposed:
            self.guesses = min(_MOST_GUESSES, self.guesses * 2)
            self._failures = 0
        elif accepted == 0:
            self.guesses = _FEWEST_GUESSES
            # A text that does not repeat itself should not pay for guesses.
            self._failures = min(self._failures + 1, 5)
            self._pause = (1 << self._failures) - 1
        else:
            self.guesses = max(_FEWEST_GUESSES, accepted)
            self._failures = 0
