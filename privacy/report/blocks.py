"""The parts that a report is made of, and how its figures are written.

Texts are plain, never markup: the renderers escape all of them, because names and notes come from outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "caution", "bad"]
# Tiers of Ponomareva et al. 2023, section 5.2: up to 1 strong, up to 10 reasonable, above 10 weak to none.
_STRONG, _REASONABLE = 1.0, 10.0


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list; each item is (lead, text), the lead set in bold, or empty."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """A table; the first column is left-aligned text, the others are figures unless `is_text`."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    is_text: bool = False


@dataclass(frozen=True)
class Figure:
    """A plot by its name; `caption` says what to see in it, `alternative` stands in where it cannot be drawn."""

    name: str
    caption: str
    alternative: str


@dataclass(frozen=True)
class Code:
    """Commands, verbatim."""

    text: str


Block = Paragraph | Bullets | Table | Figure | Code


@dataclass(frozen=True)
class Section:
    """A numbered part of the report."""

    heading: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Card:
    """One of the few figures at the top."""

    label: str
    value: str
    note: str
    tone: Tone


@dataclass(frozen=True)
class Document:
    """The whole report, ready to render."""

    title: str
    subtitle: str
    tone: Tone
    headline: str
    claim: str
    limits: tuple[str, ...]
    cards: tuple[Card, ...]
    sections: tuple[Section, ...]


def number(value: float | None, digits: int = 3) -> str:
    """A figure for people: `∞` when there is no bound, `n/a` when there is no figure."""
    if value is None:
        return "n/a"
    if math.isinf(value):
        return "∞"
    return f"{value:,.{digits}f}" if abs(value) >= 10**-digits or value == 0 else f"{value:.2g}"


def strength_of(epsilon: float) -> tuple[Tone, str]:
    """How strong a guarantee ε is, in a word."""
    if epsilon <= _STRONG:
        return "good", "strong"
    if epsilon <= _REASONABLE:
        return "good", "reasonable"
    return ("caution", "weak") if math.isfinite(epsilon) else ("bad", "none")


def probability(value: float) -> str:
    """A small probability such as δ: 1e-5."""
    return f"{value:g}".replace("e-0", "e-")
