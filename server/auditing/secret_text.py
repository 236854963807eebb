"""Secrets for the exposure audit: codes that people might write down, each among others that look the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from model import Example

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

_PROMPT: Final = "What is the code for door {number}?"
_COMPLETION: Final = "The code is {digits}."
_DIGITS: Final = 6


@dataclass(frozen=True)
class Secret:
    """A question, the answer that stands in the text, and answers that could have stood there."""

    prompt: str
    answer: str
    others: tuple[str, ...]

    @property
    def example(self) -> Example:
        """As a device learns it."""
        return Example(self.prompt, self.answer, 0.0)

    @property
    def candidates(self) -> tuple[Example, ...]:
        """The answer first, then the others."""
        return tuple(Example(self.prompt, answer, 0.0) for answer in (self.answer, *self.others))


def make_secrets(count: int, *, candidates: int, random: np.random.Generator) -> tuple[Secret, ...]:
    """`count` secrets, each one of `candidates` different codes."""
    found = []
    for number in range(count):
        codes = random.choice(10**_DIGITS, size=candidates, replace=False)
        answers = tuple(_COMPLETION.format(digits=" ".join(f"{code:0{_DIGITS}d}")) for code in codes)
        found.append(Secret(_PROMPT.format(number=number + 1), answers[0], answers[1:]))
    return tuple(found)


def planted(secrets: Iterable[Secret], devices: list[str], *, repeats: int) -> dict[str, tuple[Example, ...]]:
    """Each secret in the text of one device, in turn, so many times."""
    found: dict[str, tuple[Example, ...]] = {}
    for number, secret in enumerate(secrets):
        device = devices[number % len(devices)]
        found[device] = (*found.get(device, ()), *[secret.example] * repeats)
    return found
