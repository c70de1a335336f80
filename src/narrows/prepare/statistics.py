"""What one streamed pass over the raw rows learns of every column, in bounded memory; passes over parts merge.

Nothing is chosen here: kinds, transforms and levels are picked from these figures when a preparer is learnt.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import DataError
from narrows.prepare.arrow import Cells, Values, plain, read_numbers, read_tensors, refuse_infinite, value_type
from narrows.prepare.arrow_types import Nature, Type, is_text, level_type, nature
from narrows.prepare.bags import read_entries
from narrows.prepare.categories import Counts, levels_to_json
from narrows.prepare.dates import PARTS, read_dates
from narrows.prepare.examples import Examples
from narrows.prepare.moments import Moments, Sample
from narrows.prepare.ragged import Ragged, channels_of, read_lists, refuse_ragged
from narrows.sources.reading import CHANNELS, ITEMS, KIND, RATE, fact, modeled

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
        moments: of its cells; a date has seven (its parts), text none, a ragged series one a channel, a bag one in all.
        counts: of its values; of a bag's items; None for tensors and series.
        hints: what the source knows of it (see `reading.field`).
        missing: rows without a value, or for tensors cells.
        order: the categories of an ordered dictionary, in that order.
        lengths: moments of those of ragged series.
        longest: most characters and most bytes of a text.
        examples: some of the values, of texts and ragged series.
    """

    type: Type
    shape: tuple[int, ...]
    nature: Nature
    moments: Moments
    counts: Counts | None
    hints: Hints
    missing: int = 0
    order: Values | None = None
    lengths: Moments = field(default_factory=lambda: Moments.empty(1))
    longest: tuple[int, int] = (0, 0)
    examples: Examples | None = None

    @classmethod
    def of(cls, entry: pa.Field, keeping: bool = False) -> ColumnStatistics:
        """Of no rows; `keeping` counts values however many there are (see `Counts`).

        Raises:
            DataError: where the type cannot be modeled.
        """
        arrow = entry.type
        kind = nature(arrow, entry.name)
        value, shape = value_type(arrow)
        cells = {"text": 0, "empty": 0, "date": PARTS, "tensor": int(np.prod(shape))}.get(kind, 1)
        cells = channels_of(arrow) if kind == "ragged" else cells
        counts = Counts(arrow, keeping=keeping) if kind not in ("tensor", "empty", "ragged") else None
        if kind == "map":
            counts = Counts(arrow.key_type, keeping=True)
        column = cls(value, shape, kind, Moments.empty(cells), counts, Hints.of(entry))
        if kind == "ragged" or (kind == "text" and is_text(level_type(arrow))):
            column.examples = Examples(level_type(arrow) if kind == "text" else arrow)
        return column

    @property
    def sampled(self) -> bool:
        """Whether rows are kept for quantiles and for what whole series show: images and volumes need none."""
        return self.nature in ("number", "flag") or (self.nature == "tensor" and len(self.shape) < 3)

    def update(self, array: Values, name: str, first_row: int, keep: Mask | None) -> Cells | None:
        """Adds the rows to keep of an array; returns their cells (b, c), or None for a column without such."""
        if self.order is None and pa.types.is_dictionary(self.type) and self.type.ordered:
            self.order = array.dictionary
        if self.nature == "map":
            self._weigh(array, name, first_row, keep)
            return None
        array = plain(array) if self.counts is not None else array
        kept = array if keep is None else array.filter(pa.array(keep))
        distinct = None if self.counts is None else self.counts.add(kept)
        if self.examples is not None:
            ids = np.arange(first_row, first_row + len(array))
            self.examples.update(ids if keep is None else ids[keep], kept)
        if self.nature in ("text", "empty", "ragged"):
            self.missing += kept.null_count
            if self.nature == "ragged":
                self._follow(read_lists(array), name, first_row, keep)
            elif self.examples is not None:
                self._measure(distinct)
            return None
        block = read_block(array, self.nature, self.type, name, first_row)
        refuse_infinite(block, name, first_row)
        block = block if keep is None else block[keep]
        before = int(self.moments.count.sum())
        self.moments.update(block)
        there = int(self.moments.count.sum()) - before
        self.missing += (block.size - there) // (PARTS if self.nature == "date" else 1)
        return block

    def _measure(self, texts: Values) -> None:
        """Adds the lengths of texts."""
        most = [pc.max(measure(texts)).as_py() or 0 for measure in (pc.utf8_length, pc.binary_length)]
        self.longest = (max(self.longest[0], most[0]), max(self.longest[1], most[1]))

    def _follow(self, series: Ragged, name: str, first_row: int, keep: Mask | None) -> None:
        """Adds the steps and lengths of series."""
        refuse_ragged(series, name, first_row)
        there = np.ones(len(series), np.bool_) if keep is None else keep
        there = there if series.missing is None else there & ~series.missing
        kept = series if there.all() else series[np.flatnonzero(there)]
        self.moments.update(kept.values)
        self.lengths.update(kept.lengths[:, None])

    def _weigh(self, bags: Values, name: str, first_row: int, keep: Mask | None) -> None:
        """Adds the items of bags, of which each has an item once."""
        entries = read_entries(bags, self.type, name, first_row, self.hints.items)
        there = np.ones(len(entries.rows), np.bool_) if keep is None else keep[entries.rows]
        self.moments.update(entries.values[there][:, None])
        if self.counts is not None:
            self.counts.add(entries.keys.filter(pa.array(there)))

    def merge(self, other: ColumnStatistics) -> None:
        """Adds what another part of the rows held."""
        self.missing += other.missing
        self.lengths.merge(other.lengths)
        self.longest = (max(self.longest[0], other.longest[0]), max(self.longest[1], other.longest[1]))
        if self.examples is not None and other.examples is not None:
            self.examples.merge(other.examples)
        self.order = self.order if self.order is not None else other.order
        self.moments.merge(other.moments)
        if self.counts is not None and other.counts is not None:
            self.counts.merge(other.counts)


@dataclass(frozen=True)
class Hints:
    """What a source knows of a column beyond its type; empty where nothing.

    Args:
        kind: it should be, unless the user says otherwise.
        rate: samples per second of a sound.
        items: of a bag of item numbers: how many there are.
        names: of a series' channels.
    """

    kind: str = ""
    rate: int = 0
    items: int = 0
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, entry: pa.Field) -> Hints:
        """Those in a field's metadata."""
        names = json.loads(fact(entry, CHANNELS) or "[]")
        return cls(fact(entry, KIND), int(fact(entry, RATE) or 0), int(fact(entry, ITEMS) or 0), tuple(names))


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
        categories: columns that are to be categories, whatever they look like: their values are all counted.

    Raises:
        DataError: where a column cannot be modeled (lists, structs, bytes) or a name stands twice.
    """

    def __init__(self, schema: pa.Schema, categories: Collection[str] = ()) -> None:
        entries = modeled(schema)
        twice = sorted(name for name, count in Counter(entry.name for entry in entries).items() if count > 1)
        if twice or not entries:
            raise DataError(f"columns {', '.join(twice)} stand twice" if twice else "a table without columns")
        self.rows = 0
        self.columns = {entry.name: ColumnStatistics.of(entry, entry.name in categories) for entry in entries}
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
        for name, column in self.columns.items():  # columns that stand aside are not looked at
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
