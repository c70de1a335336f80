"""An array larger than a model's grid, cut into overlapping tiles, and put together again without seams.

Tiles stand half a tile apart along each axis. Where they overlap they are averaged, each weighed by a window that is
highest in its middle and nearly 0 at its edge, where a network knows one side of things only. Half a tile costs four
times the work of tiles side by side in images, twice in series. What this file does not know: what is done to a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 22  # numbers of the tiles that are held at once
Array = NDArray[Any]


def in_tiles(array: Array, tile: Sequence[int], work: Callable[[Array], Array]) -> NDArray[np.float64]:
    """An array with something done to it tile by tile.

    Args:
        array: (*sides, ...): the first axes are cut, none of them of length 0. Where a side is shorter than a tile's,
            it goes on as in a mirror meanwhile.
        tile: sides of a tile, each at least 1.
        work: (n, *tile, ...) tiles -> their new values, in the same shape.

    Returns:
        The same shape; a value that is missing in one tile is left out where another one has it.
    """
    sides, axes = array.shape, len(tile)
    gaps = [(0, max(0, t - n)) for n, t in zip(sides, tile, strict=False)]
    wide = np.pad(array, [*gaps, *[(0, 0)] * (array.ndim - axes)], mode="symmetric")
    total, mass = np.zeros(wide.shape), np.zeros(wide.shape)
    weight = window(tile).reshape(*tile, *[1] * (array.ndim - axes))
    spans = (
        tuple(slice(at, at + t) for at, t in zip(corner, tile, strict=True))
        for corner in product(*(starts(n, t) for n, t in zip(wide.shape, tile, strict=False)))
    )
    step = max(1, AT_ONCE // wide[tuple(map(slice, tile))].size)
    while chosen := list(islice(spans, step)):
        for span, cells in zip(chosen, work(np.stack([wide[span] for span in chosen])), strict=True):
            there = ~np.isnan(cells)
            total[span] += np.where(there, cells, 0) * weight
            mass[span] += there * weight
    with np.errstate(invalid="ignore"):
        return (total / mass)[tuple(map(slice, sides))]


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side that is at least as long: half a tile apart, the last at its end."""
    last = length - tile
    return [*range(0, last, max(1, tile // 2)), last]


def window(tile: Sequence[int]) -> NDArray[np.float64]:
    """(*tile) weights above 0: along each axis a squared sine, of which two half a tile apart add up to 1."""
    sides = [np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2 for side in tile]
    return reduce(np.multiply.outer, sides)
