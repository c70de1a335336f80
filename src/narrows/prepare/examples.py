"""A sample of whole texts and series, bounded in rows and in bytes: what vocabularies and spectra are learnt from.

The rows whose ids hash lowest are kept, as in `moments.Sample`, up to the first that would go beyond the bytes: so the
sample is the same however the rows are cut, in whatever order they come, and for merged parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.prepare.arrow import Values
from narrows.prepare.arrow_types import Type, is_list
from narrows.prepare.ragged import channels_of
from narrows.sources.split import mix64

ROWS = 20_000
BYTES = 64 << 20


@dataclass
class Examples:
    """Sampled values of a column of texts or lists.

    Args:
        type: of the arrays.
        rows: most to keep.
        bytes: most to keep, but for a first row that is longer.
    """

    type: Type
    rows: int = ROWS
    bytes: int = BYTES
    _hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    _sizes: list[npt.NDArray[np.int64]] = field(default_factory=list)
    _parts: list[Values] = field(default_factory=list)
    _limit: int = 2**64 - 1

    def update(self, ids: npt.NDArray[np.int64], array: Values) -> None:
        """Offers the values of rows with these ids; missing ones are left out."""
        hashes = mix64(ids, 0)
        chosen = np.flatnonzero((hashes <= np.uint64(self._limit)) & np.asarray(array.is_valid()))
        if len(chosen):
            part = array.take(pa.array(chosen))
            self._add(hashes[chosen], _sizes(part), part)

    def merge(self, other: Examples) -> None:
        """Adds what another part of the rows held."""
        for hashes, sizes, part in zip(other._hashes, other._sizes, other._parts, strict=True):
            self._add(hashes, sizes, part)

    def _add(self, hashes: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64], part: Values) -> None:
        self._hashes.append(hashes)
        self._sizes.append(sizes)
        self._parts.append(part)
        if sum(map(len, self._hashes)) > 2 * self.rows or sum(int(s.sum()) for s in self._sizes) > 2 * self.bytes:
            self._trim()

    def _trim(self) -> None:
        hashes, sizes = np.concatenate(self._hashes), np.concatenate(self._sizes)
        order = np.argsort(hashes)
        fit = int(np.searchsorted(np.cumsum(sizes[order]), self.bytes, "right"))
        kept = order[: max(1, min(fit, self.rows))]
        if len(kept) < len(order):
            self._limit = int(hashes[order[len(kept)]]) - 1
        self._hashes, self._sizes = [hashes[kept]], [sizes[kept]]
        self._parts = [pa.concat_arrays(self._parts).take(pa.array(kept))]

    def values(self) -> Values:
        """The sampled values as one array, in the order of their hashes."""
        if not self._parts:
            return pa.array([], self.type)
        self._trim()
        return self._parts[0]


def _sizes(array: Values) -> npt.NDArray[np.int64]:
    """(k,) bytes of each value, about."""
    if is_list(array.type):
        return np.asarray(pc.list_value_length(array).to_numpy(), dtype=np.int64) * (8 * channels_of(array.type))
    return np.asarray(pc.binary_length(array).to_numpy(), dtype=np.int64)
