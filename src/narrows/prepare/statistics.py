"""What one streamed pass over the raw rows learns of every column, in bounded memory; passes over parts merge.

Nothing is chosen here: kinds, transforms and levels are picked from these figures when a preparer is learnt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from narrows.errors import DataError
from narrows.prepare.arrow import Cells, Values, plain, read_numbers, read_tensors, refuse_infinite, value_type
from narrows.prepare.arrow_types import Nature, Type, nature
from narrows.prepare.categories import Counts, levels_to_json
from narrows.prepare.dates import PARTS, read_dates
from narrows.prepare.moments import Moments, Sample

Mask = npt.NDArray[np.bool_]

SAMPLE_ROWS = 10_000
SAMPLE_CELLS = 1 << 24


@dataclass
class ColumnStatistics:
    """What is known of one column.

    Args:
        type: Arrow type of one number of it.
        shape: of one value, `()` for a scalar.
        nature: how its values are read.
        moments: of its cells; a date has seven (its parts), text has none.
        counts: of its values; None for tensors.
        missing: rows without a value, or for tensors cells.
        order: the categories of an ordered dictionary, in that order.
    """

    type: Type
    shape: tuple[int, ...]
    nature: Nature
    moments: Moments
    counts: Counts | None
    missing: int = 0
    order: Values | None = None

    @classmethod
    def of(cls, name: str, arrow: Type) -> ColumnStatistics:
        """Of no rows.

        Raises:
            DataError: where the type cannot be modeled.
        """
        kind = nature(arrow, name)
        value, shape = value_type(arrow)
        cells = {"text": 0, "empty": 0, "date": PARTS, "tensor": int(np.prod(shape))}.get(kind, 1)
        counts = Counts(arrow) if kind not in ("tensor", "empty") else None
        return cls(value, shape, kind, Moments.empty(cells), counts)

    @property
    def sampled(self) -> bool:
        """Whether rows are kept for quantiles: numbers and unnamed matrices need them, images do not."""
        return self.nature not in ("text", "empty", "date") and len(self.shape) < 2

    def update(self, array: Values, name: str, first_row: int, keep: Mask | None) -> Cells | None:
        """Adds the rows to keep of an array; returns their cells (b, c), or None for a column without numbers."""
        if self.order is None and pa.types.is_dictionary(self.type) and self.type.ordered:
            self.order = array.dictionary
        array = plain(array) if self.counts is not None else array
        kept = array if keep is None else array.filter(pa.array(keep))
        if self.counts is not None:
            self.counts.add(kept)
        if self.nature in ("text", "empty"):
            self.missing += kept.null_count
            return None
        block = read_block(array, self.nature, self.type, name, first_row)
        refuse_infinite(block, name, first_row)
        block = block if keep is None else block[keep]
        before = int(self.moments.count.sum())
        self.moments.update(block)
        there = int(self.moments.count.sum()) - before
        self.missing += (block.size - there) // (PARTS if self.nature == "date" else 1)
        return block

    def merge(self, other: ColumnStatistics) -> None:
        """Adds what another part of the rows held."""
        self.missing += other.missing
        self.order = self.order if self.order is not None else other.order
        self.moments.merge(other.moments)
        if self.counts is not None and other.counts is not None:
            self.counts.merge(other.counts)


def read_block(array: Values, kind: Nature, trained: Type, name: str, first_row: int = 0) -> Cells:
    """A column as raw cells (B, c), NaN where missing.

    Raises:
        DataError: where values are not of the nature they had in training.
    """
    if kind == "tensor":
        return read_tensors(array)
    if kind == "date":
        return read_dates(array, trained, name, first_row)
    return read_numbers(array, trained, name, first_row)[:, None]


class Statistics:
    """One pass over raw rows.

    Args:
        schema: Arrow schema of the rows.

    Raises:
        DataError: where a column cannot be modeled (lists, structs, bytes) or a name stands twice.
    """

    def __init__(self, schema: pa.Schema) -> None:
        twice = sorted(name for name, count in Counter(schema.names).items() if count > 1)
        if twice or not schema.names:
            raise DataError(f"columns {', '.join(twice)} stand twice" if twice else "a table without columns")
        self.rows = 0
        self.columns = {entry.name: ColumnStatistics.of(entry.name, entry.type) for entry in schema}
        sampled = {name: len(column.moments.count) for name, column in self.columns.items() if column.sampled}
        cells = max(1, sum(sampled.values()))
        self.sample = Sample(max(1, min(SAMPLE_ROWS, SAMPLE_CELLS // cells)), list(sampled))

    def update(self, rows: pa.RecordBatch, first_row: int, keep: Mask | None = None) -> None:
        """Adds a batch of rows.

        Args:
            rows: of the schema given.
            first_row: id of its first row; the others follow on. Ids decide which rows are sampled.
            keep: (B,) bool, the rows to learn from; the others are only checked. None for all.

        Raises:
            DataError: where a value is infinite, naming column and row.
        """
        blocks = {}
        for name, column in self.columns.items():
            block = column.update(rows.column(name), name, first_row, keep)
            if block is not None and column.sampled:
                blocks[name] = block
        ids = np.arange(first_row, first_row + len(rows))
        ids = ids if keep is None else ids[keep]
        self.sample.update(ids, blocks)
        self.rows += len(ids)

    def fingerprint(self) -> str:
        """16 hex digits that tell other rows from these: extremes, holes, frequent values and the sampled rows.

        Unlike means, all of these are the same on every machine.
        """
        digest = hashlib.blake2b(digest_size=8)
        for name, column in self.columns.items():
            digest.update(f"{name}|{column.type}|{column.shape}|{column.missing}".encode())
            for figures in (column.moments.count, column.moments.low, column.moments.high):
                digest.update(figures.tobytes())
            if column.sampled:
                digest.update(self.sample.cells(name).tobytes())
            if column.counts is not None:
                values, often = column.counts.ranked()
                digest.update(f"{levels_to_json(values[:64])}{often[:64].tolist()}".encode())
        return digest.hexdigest()

    def merge(self, other: Statistics) -> None:
        """Adds the pass over another part of the rows."""
        self.rows += other.rows
        for name, column in self.columns.items():
            column.merge(other.columns[name])
        self.sample.merge(other.sample)
