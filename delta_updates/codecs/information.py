"""How many bits counts of symbols are worth, in whole numbers: what decides a package's bytes must not round.

Source: Shannon, "A Mathematical Theory of Communication" (1948), section 6.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

# Results count in units of 2 ** -UNIT_BITS bits.
UNIT_BITS = 24
_TABLE_BITS = 11
_FRACTION_BITS = 31
_BETWEEN_BITS = _FRACTION_BITS - _TABLE_BITS
# Logarithms from 1 to 2. No entry lies so near a half that the error of a platform's log2 could turn it.
LOG2_TABLE: Counts = np.rint(
    np.log2(1 + np.arange((1 << _TABLE_BITS) + 1) / (1 << _TABLE_BITS)) * (1 << UNIT_BITS)
).astype(np.int64)


def log2(numbers: Counts) -> Counts:
    """Return the binary logarithm of numbers from 1 to 2^31 - 1 in units; zero becomes zero."""
    found: Counts = np.asarray(_SMALL.take(numbers, mode="clip"))
    is_large = np.asarray(numbers >= len(_SMALL))
    if is_large.any():
        found[is_large] = _computed_log2(np.asarray(numbers)[is_large])
    return found


def _computed_log2(numbers: Counts) -> Counts:
    whole = np.maximum(np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1, 0)
    fraction = (np.maximum(numbers, 1) << (_FRACTION_BITS - whole)) & ((1 << _FRACTION_BITS) - 1)
    entry, between = fraction >> _BETWEEN_BITS, fraction & ((1 << _BETWEEN_BITS) - 1)
    low, high = LOG2_TABLE[entry], LOG2_TABLE[entry + 1]
    result: Counts = (whole << UNIT_BITS) + low + ((high - low) * between >> _BETWEEN_BITS)
    return result


def information(counts: Counts) -> Counts:
    """Return what symbols that appear `counts` times, shape (..., symbols), carry together, shape (...), in units.

    That is the sum of n log2(N / n) over the counts n of a row with sum N.
    """
    total = counts.sum(axis=-1)
    result: Counts = total * log2(total) - (counts * log2(counts)).sum(axis=-1)
    return result


# Most counts are small, and looked up.
_SMALL: Counts = _computed_log2(np.arange(1 << 14))
