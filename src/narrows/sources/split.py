"""Which rows are validation: decided row by row from a hash, so that it is the same however the rows are read.

A random split is right only on average (a fraction of 0.1 of 100 rows may hold out 7 or 13): exact counts would need
the number of rows in advance. Knows nothing of what the columns mean beyond the one it is told to group or order by.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def mix64(ids: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """Uniform 64-bit hashes of integers: splitmix64 (Steele, Lea and Flood, 2014) started from `seed`.

    Args:
        ids: (n,) integers of any width; negative ones wrap.
        seed: any integer; different seeds give unrelated hashes.

    Returns:
        (n,) uint64, the same on every platform and for ever: splits, samples and shuffles rest on it.
    """
    key = _finish_int((seed + 1) * _GAMMA & _MASK)
    mixed = np.array(ids).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed *= np.uint64(_GAMMA)
        mixed += np.uint64(key)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _finish_int(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
