"""Several small symbols as one byte, so that a code of whole bits spends a fraction of one on each.

zstd codes bytes with Huffman codes, which need at least one bit; the values of a chunk often carry less. A *head* packs
the symbols of k neighbours as k digits of a small radix; what does not fit in a digit follows as a *tail*. Splitting a
symbol in two loses nothing: the tail is conditioned on its head.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from delta_updates.codecs.places import Places, places_of
from delta_updates.errors import PackageFormatError

Symbols = NDArray[np.uint8]

WHOLE = 0
# Digits in a byte by radix; WHOLE: the byte is the symbol.
DIGITS = {WHOLE: 1, 2: 8, 3: 5, 4: 4, 6: 3, 16: 2}


def head_count(count: int, radix: int) -> int:
    """Return how many heads `count` symbols have."""
    return -(-count // DIGITS[radix])


def split(symbols: Symbols, radix: int) -> tuple[Symbols, Symbols]:
    """Return heads and tails of symbols, shape (n,)."""
    if radix == WHOLE:
        return symbols, symbols[:0]
    escape = np.uint8(radix - 1)
    heads = np.zeros(head_count(len(symbols), radix), dtype=np.uint8)
    for place in reversed(range(DIGITS[radix])):
        # Digits that are missing in the last head are zero.
        digits = np.minimum(symbols[place :: DIGITS[radix]], escape)
        heads *= np.uint8(radix)
        heads[: len(digits)] += digits
    large = places_of(symbols >= escape)
    return heads, symbols.take(large) - escape


def digits_of(heads: Symbols, count: int, radix: int) -> Symbols:
    """Return the `count` digits of heads; those of `radix - 1` still miss their tails.

    Raises:
        PackageFormatError: A head has no such digits.
    """
    if radix == WHOLE:
        return heads
    if int(heads.max(initial=0)) >= radix ** DIGITS[radix]:
        raise PackageFormatError(f"head {int(heads.max())} has no {DIGITS[radix]} digits of radix {radix}")
    return _table(radix).take(heads, axis=0).reshape(-1)[:count]


def escapes(digits: Symbols, radix: int) -> Places:
    """Return the places of digits that have a tail."""
    return places_of(digits == radix - 1) if radix != WHOLE else np.zeros(0, dtype=np.intp)


def add_tails(digits: Symbols, places: Places, tails: Symbols) -> None:
    """Add tails to the digits at their places.

    Raises:
        PackageFormatError: A sum is no byte.
    """
    escape = digits.take(places)
    if int(tails.max(initial=0)) + int(escape.max(initial=0)) > np.iinfo(np.uint8).max:
        raise PackageFormatError(f"tail {int(tails.max())} makes a symbol above 255")
    digits[places] = escape + tails


@cache
def _table(radix: int) -> Symbols:
    """Return the digits of every head, shape (radix ** k, k), lowest first."""
    numbers = np.arange(radix ** DIGITS[radix])
    return np.stack([numbers // radix**place % radix for place in range(DIGITS[radix])], axis=1).astype(np.uint8)
