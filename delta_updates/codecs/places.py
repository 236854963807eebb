"""Where a condition holds: what most loops over a chunk begin with."""

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.intp]

# NumPy jumps from one true value to the next where fewer than a tenth are, and looks at every value otherwise. Jumps
# are guessed wrong so often that the second is faster from so few on.
_FEWEST_SHARE = 1 / 28
_MOST_SHARE = 1 / 10
_FILL_SHARE = 8
_FEWEST_VALUES = 1 << 14


def places_of(condition: NDArray[np.bool_]) -> Places:
    """Return the indices at which a condition, shape (n,), is true: `np.flatnonzero`, in up to half of its time."""
    count = len(condition)
    if count < _FEWEST_VALUES or not _FEWEST_SHARE < np.count_nonzero(condition) / count <= _MOST_SHARE:
        return np.flatnonzero(condition)
    filled = np.empty(count + count // _FILL_SHARE, dtype=np.bool_)
    filled[:count], filled[count:] = condition, True
    return np.flatnonzero(filled)[: count - len(filled)]
