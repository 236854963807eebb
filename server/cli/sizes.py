"""Numbers as people type and read them: 270M weights, 300MB of memory, 12GB a second."""

from __future__ import annotations

import re
from typing import Final

from server.errors import ConfigurationError

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtb]?)(?:b|b/s|flops?)?", flags=re.IGNORECASE)
_FACTORS: Final = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


def parse_amount(text: str, *, option: str) -> float:
    """A number with an ending such as 270M, 1.1B, 300MB or 12GB; K, M, G (or B) and T are powers of a thousand.

    Raises:
        ConfigurationError: It is no such number.
    """
    match = _SIZE.fullmatch(text.strip())
    amount = float(match[1]) * _FACTORS[match[2].lower()] if match else 0.0
    if not 0 < amount < float("inf"):
        raise ConfigurationError(f"{option} takes a number such as 270M, 1.1B, 300MB or 12GB; got {text!r}.")
    return amount


def short_amount(value: float) -> str:
    """Three digits and an ending: 271527168 is 272M."""
    for factor, ending in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{ending}"
    return f"{value:.3g}"
