"""Bags in memory: compressed sparse rows of scipy, or of a log once it is grouped, as one column of Arrow maps.

Rows stay sparse: a batch is cut out of the three arrays without a loop over rows. Zeros are dropped and repeated items
summed when opened, which copies what is not yet in that form. Never imports scipy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.arrays import PIECE_ROWS, flat
from narrows.sources.reading import field
from narrows.sources.source import BATCH_BYTES, BATCH_ROWS, Source, numbered

_ENTRY = 12  # bytes of an item, as a key of up to 8 and a value of 4


@dataclass(frozen=True)
class Rows:
    """Compressed sparse rows: items `items[offsets[i]:offsets[i + 1]]` are those of row i.

    Args:
        offsets: (n + 1,) int64.
        items: (E,) int32, rising within a row.
        values: (E,) float32, above 0.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    values: NDArray[np.float32]

    @classmethod
    def of_entries(cls, rows: NDArray[Any], items: NDArray[Any], values: NDArray[Any], count: int) -> Rows:
        """The rows of entries in any order; those of the same row and item are summed in double precision.

        Args:
            rows: (E,) row of each entry, below `count`.
            items: (E,) whole numbers below 2^31.
            values: (E,) from 0 up; what sums to 0 is dropped.
            count: of rows.
        """
        places = rows.astype(np.int64) << 31 | items.astype(np.int64)  # one key sorts in an eighth of the time of two
        order = np.argsort(places)
        places, rows, items, values = places[order], rows[order], items[order], values[order]
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        sums = np.add.reduceat(values.astype(np.float64), starts) if len(starts) else np.empty(0)
        kept = starts[sums > 0]
        offsets = np.append(0, np.cumsum(np.bincount(rows[kept], minlength=count)))
        return cls(offsets, items[kept].astype(np.int32), sums[sums > 0].astype(np.float32))

    def __len__(self) -> int:
        return len(self.offsets) - 1


class BagSource(Source):
    """Sparse rows as one column of bags, with what stands aside.

    Args:
        rows: the bags.
        name: for messages.
        column: its name.
        keys: (I,) the items that the numbers stand for; None: the numbers themselves, which are below `items`.
        items: how many there are, where they are numbers.
        aside: columns of one value a row.
    """

    def __init__(
        self,
        rows: Rows,
        name: str,
        *,
        column: str = "x",
        keys: pa.Array | None = None,
        items: int = 0,
        aside: dict[str, pa.Array] | None = None,
    ) -> None:
        self._rows, self._keys, self._aside = rows, keys, aside or {}
        self._type = pa.map_(pa.int32() if keys is None else keys.type, pa.float32())
        asides = [field(key, values.type, aside=True) for key, values in self._aside.items()]
        self.name = name
        self.schema = pa.schema([field(column, self._type, kind="bag", items=items), *asides])
        self.pieces = tuple(range(-(-len(rows) // PIECE_ROWS)))

    def rows_of(self, piece: int) -> int:
        """Rows in a piece."""
        return min(PIECE_ROWS, len(self._rows) - piece * PIECE_ROWS)

    def read(self, piece: int, skip: int = 0) -> Iterator[tuple[int, pa.RecordBatch]]:
        """See `Source.read`."""
        return numbered(piece, skip, self._batches(piece * PIECE_ROWS + skip, piece * PIECE_ROWS + self.rows_of(piece)))

    def _batches(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        while start < stop:
            most = int(self._rows.offsets[start]) + BATCH_BYTES // _ENTRY
            full = int(np.searchsorted(self._rows.offsets, most, "right")) - 1
            end = max(start + 1, min(full, stop, start + BATCH_ROWS))
            asides = [values.slice(start, end - start) for values in self._aside.values()]
            yield pa.RecordBatch.from_arrays([self._bags(start, end), *asides], schema=self.schema)
            start = end

    def _bags(self, start: int, stop: int) -> pa.Array:
        offsets = self._rows.offsets[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        keys = flat(self._rows.items[entries])
        keys = keys if self._keys is None else self._keys.take(keys)
        counts = flat((offsets - offsets[0]).astype(np.int32))
        return pa.MapArray.from_arrays(counts, keys, flat(self._rows.values[entries]))


def open_sparse(matrix: Any) -> Source:
    """A source of the rows of a scipy matrix or array (n, I), of whatever sparse format; see `open_csr`."""
    if len(matrix.shape) != 2:
        raise DataError(f"a sparse array of shape {matrix.shape}", "rows and items (n, I)")
    rows = matrix.tocsr()
    return open_csr(rows.indptr, rows.indices, rows.data, matrix.shape, f"sparse matrix {matrix.shape}")


def open_csr(
    indptr: NDArray[Any], indices: NDArray[Any], data: NDArray[Any], shape: tuple[int, int], name: str
) -> Source:
    """A source of compressed sparse rows: one column `x` of bags whose items are numbered 0 to I - 1.

    Args:
        indptr: (n + 1,) where each row begins among the entries.
        indices: (E,) items.
        data: (E,) counts or weights, 0 or more; repeated items of a row are summed, zeros dropped.
        shape: (n, I).
        name: for messages.

    Raises:
        DataError: the arrays do not fit each other, or a value is negative or missing; names the row.
    """
    _check_shape(indptr, indices, data, shape, name)
    offsets = indptr.astype(np.int64)
    values = data.astype(np.float64) if data.dtype.kind in "biu" else data
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values <= np.finfo(np.float32).max))
    if wrong.any():
        at = int(wrong.argmax())
        row = int(np.searchsorted(offsets, at, "right")) - 1
        got = f"{name} row {row + 1}, item {indices[at]}: {data[at]}"
        raise DataError(got, "counts or weights from 0 up", "shifting the values, or dense rows")
    rows = np.repeat(np.arange(shape[0], dtype=np.int32), np.diff(offsets))
    rising = (np.diff(indices.astype(np.int64)) > 0) | (np.diff(rows) > 0)
    if rising.all() and (values > 0).all():
        bags = Rows(offsets, indices.astype(np.int32, copy=False), values.astype(np.float32, copy=False))
    else:
        bags = Rows.of_entries(rows, indices, values, shape[0])
    return BagSource(bags, name, items=int(shape[1]))


def _check_shape(
    indptr: NDArray[Any], indices: NDArray[Any], data: NDArray[Any], shape: tuple[int, int], name: str
) -> None:
    """Refuse arrays that are no compressed sparse rows of that shape; a damaged file may hold anything."""
    if min(shape) < 1 or shape[1] >= 1 << 31:
        raise DataError(f"{name} has shape {shape}", "at least one row, and 1 to 2^31 - 1 items")
    if data.dtype.kind not in "biuf" or indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise DataError(f"{name} holds {data.dtype} at {indices.dtype}", "numbers at whole numbers")
    if indptr.shape != (shape[0] + 1,) or indices.shape != data.shape or indices.ndim != 1:
        got = f"{name} of shape {shape} has {indptr.shape} offsets, {indices.shape} items, {data.shape} values"
        raise DataError(got, "n + 1 offsets, and a value for each item")
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices) or (np.diff(indptr.astype(np.int64)) < 0).any():
        raise DataError(f"{name}: offsets of rows do not rise from 0 to {len(indices)}", "compressed sparse rows")
    beyond = (indices < 0) | (indices >= shape[1])
    if beyond.any():
        at = int(beyond.argmax())
        row = int(np.searchsorted(indptr, at, "right"))
        raise DataError(f"{name} row {row}: item {indices[at]}", f"items from 0 to {shape[1] - 1}")
