"""The preparer: raw Arrow rows to prepared batches and back, once it has learnt how from statistics.

Two halves meet here: the Arrow half (`arrow`, `dates`, `categories`) makes raw float64 cells and codes, the tensor
half (`scaling`) makes prepared ones. What comes back from a round trip: categories, flags, dates without a time, and
integers whose column spans less than 2**19, exactly; floats within 1/100,000 of their column's range; times of day
to 10 ms. Wider integers keep about the 24 bits of float32. A code that stands for no one level comes back as null.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property, partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataWarning
from narrows.prepare.abreast import abreast, spans
from narrows.prepare.alignment import align, refuse_other_signals
from narrows.prepare.arrow import (
    Cells,
    Values,
    column_type,
    missing_tensors,
    refuse_infinite,
    refuse_uncountable,
    write_numbers,
    write_tensors,
)
from narrows.prepare.arrow_types import Type, nature, parse_type
from narrows.prepare.bags import Items, side_by_side
from narrows.prepare.categories import MOST_LEVELS, Levels, decode, encode
from narrows.prepare.dates import write_dates
from narrows.prepare.learning import Layout, Wishes, learn_columns
from narrows.prepare.outliers import Outliers
from narrows.prepare.series import Series, SeriesBlock
from narrows.prepare.statistics import Statistics, read_block
from narrows.prepare.stored import from_stored, to_stored
from narrows.prepare.tokens import Vocabulary
from narrows.prepare.transforms import Scaling
from narrows.schema import Batch, Column, Kind, Schema, Sparse
from narrows.sources.reading import field

# Cells scaled at once: float64 blocks that fit a core's cache, and one less than makes torch share an operation among
# threads, whose waiting for each other cost up to 100 times the work on a busy machine.
CHUNK_CELLS = (1 << 15) - 1
L = TypeVar("L")
Missing = list[tuple[slice, npt.NDArray[np.bool_]]]  # which cells of these rows are
FEWEST_ROWS = 64  # rows written at once at least: each column of each chunk costs some microseconds


class Preparer:
    """Turns raw rows into batches and back.

    Args:
        schema: the columns, as learnt.
        layouts: how the values of a column lie in cells, where its type does not say it: the known levels of a
            category, the length of a series, the vocabulary of a text.
        scaling: the tensor half, as wide as the dense numbers.
    """

    def __init__(self, schema: Schema, layouts: Mapping[str, Layout], scaling: Scaling) -> None:
        self.schema, self.layouts, self.scaling = schema, dict(layouts), scaling
        self._types: list[Type] = [parse_type(column.type) for column in schema]
        self._type = dict(zip(schema.names, self._types, strict=True))
        pairs = zip(schema, self._types, strict=True)
        self._natures = {c.name: nature(column_type(arrow, c.shape), c.name) for c, arrow in pairs}
        self._warned: set[str | None] = set()
        self._levels, self._series = _only(Levels, layouts), _only(Series, layouts)
        self._texts, self._bags = _only(Vocabulary, layouts), _only(Items, layouts)
        self._outliers = Outliers(schema, scaling)
        self._numbers = [column for column in schema if column.width and column.kind != "bag"]

    @classmethod
    def learn(
        cls,
        statistics: Statistics,
        *,
        kinds: Mapping[str, Kind] | None = None,
        transforms: Mapping[str, str] | None = None,
        max_levels: int = MOST_LEVELS,
    ) -> Preparer:
        """A preparer for rows like those of the statistics.

        Args:
            statistics: one pass over the training rows.
            kinds: column name to kind, where the default is not meant.
            transforms: column name to a word of `words.FITTING`, likewise; some words imply the kind.
            max_levels: levels of a category that get a code of their own; the rarer ones share one, or of a category
                with more than 256 some.

        Raises:
            DataError: where there were no rows.
            SettingError: for unknown names, and wishes that the data contradict.
        """
        learnt = learn_columns(statistics, Wishes(kinds or {}, transforms or {}, max_levels))
        schema = Schema(tuple(column.column for column in learnt))
        layouts = {column.column.name: column.layout for column in learnt if column.layout is not None}
        return cls(schema, layouts, Scaling.of([column.plan for column in learnt if column.plan is not None]))

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """Names and Arrow types of the original table, with what `reading.field` says of series, sounds and the like.

        `restore` gives rows of it.
        """
        return pa.schema([self._field(column, arrow) for column, arrow in zip(self.schema, self._types, strict=True)])

    def _field(self, column: Column, arrow: Type) -> pa.Field:
        names = self._series[column.name].names if column.name in self._series else ()
        kind = column.kind if column.kind in ("image", "series", "audio", "tokens", "bag") else ""
        return field(column.name, column_type(arrow, column.shape), kind=kind, rate=column.rate, channels=names)

    @property
    def texts(self) -> frozenset[str]:
        """Names of the columns whose values are texts, or can be: the words of a text are a bag."""
        worded = {name for name, items in self._bags.items() if items.names and isinstance(items.names[0], str)}
        return frozenset(name for name, kind in self._natures.items() if kind == "text") | worded

    @property
    def entries(self) -> float:
        """Items in the bags of a row, on average."""
        return sum(items.entries for items in self._bags.values())

    def to_file(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors that say all there is to know."""
        return to_stored(self.schema, self.layouts, self.scaling)

    @classmethod
    def from_file(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Preparer:
        """The preparer that `to_file` wrote.

        Raises:
            ModelFileError: where the two are not a preparer, or do not fit each other.
        """
        return cls(*from_stored(facts, tensors))

    def prepare(self, rows: pa.RecordBatch, first_row: int = 0) -> Batch:
        """Raw rows to a batch.

        Columns may come in another order, with others among them (ignored), as other types that can be read as the
        trained ones; a matrix stands for a table of numbers and the other way round. Levels not seen in training,
        values further outside the training range than that is wide, and columns that are ignored are warned of once.

        Args:
            rows: as they came.
            first_row: id of the first of them, for messages.

        Raises:
            DataError: where columns are missing, or values cannot be read; names the column and, where it can, the row.
        """
        arrays = self.aligned(rows, first_row)
        blocks = [self._block(column, arrays[column.name], first_row) for column in self._numbers]
        numbers, present = self._scaled(blocks, len(rows))
        for name, message in self._outliers.found(numbers):
            self._warn(name, message)
        coded = [self._encoded(c, arrays[c.name], first_row) for c in self.schema if c.categorical]
        codes = torch.cat([torch.zeros(len(rows), 0, dtype=torch.int64), *(found for found, _ in coded)], dim=1)
        bags = [self._bag(c, arrays[c.name], first_row) for c in self.schema if c.name in self._bags]
        seen = _joined(numbers, present, coded)
        return Batch(numbers, codes, seen, sparse=side_by_side(bags) if bags else None)

    def aligned(self, rows: pa.RecordBatch, first_row: int = 0) -> dict[str, Values]:
        """Raw rows by the columns of training: a matrix as a table of numbers and the other way round; see `align`."""
        refuse_other_signals(rows.schema, self.arrow_schema)
        arrays, extra = align(rows, self.schema, self._types, first_row)
        if extra:
            self._warn(None, f"columns not seen in training are ignored: {', '.join(map(repr, extra))}")
        return dict(zip(self.schema.names, arrays, strict=True))

    def _block(self, column: Column, array: Values, first_row: int) -> Cells | SeriesBlock:
        """(B, width) raw cells of a number column, NaN where missing."""
        if series := self._series.get(column.name):
            block = series.read(array, column.name, first_row)
            if block.cut:
                text = f"{block.cut} of {len(array)} series are longer than the {series.steps} steps of training: cut"
                self._warn(column.name, f"column {column.name!r}: {text}")
            return block
        cells = read_block(array, self._natures[column.name], self._type[column.name], column.name, first_row)
        refuse_infinite(cells, column.name, first_row)
        if column.kind == "count":
            refuse_uncountable(cells, column.name, first_row)
        return cells[:, : column.width]

    def _encoded(self, column: Column, array: Values, first_row: int) -> tuple[Tensor, Tensor | None]:
        """(B, cells) codes of a category or text, and (B, cells) which are there, or None where all are."""
        if vocabulary := self._texts.get(column.name):
            return self._tokens(column, vocabulary, array, first_row)
        codes, seen, unknown = encode(array, self._levels[column.name], column.name, first_row)
        if unknown is not None:
            share = "they share one code" if column.strange == 1 else f"they share {column.strange} codes"
            text = f"has levels not kept in training, such as {unknown!r}: {share}"
            self._warn(column.name, f"column {column.name!r} {text}")
        return torch.from_numpy(codes)[:, None], None if seen is None else torch.from_numpy(seen)[:, None]

    def _tokens(self, column: Column, known: Vocabulary, array: Values, first_row: int) -> tuple[Tensor, Tensor | None]:
        """(B, T) codes of a text, and which are there."""
        laid = known.encode(array, column.name, first_row)
        if laid.cut:
            text = (
                f"{laid.cut / len(array):.1%} of its texts are longer than {known.length} tokens ({known.method}): cut"
            )
            self._warn(column.name, f"column {column.name!r}: {text}")
        if laid.unknown is not None:
            text = f"has tokens not kept in training, such as {laid.unknown!r}: they share one code"
            self._warn(f"{column.name} unknown", f"column {column.name!r} {text}")
        return torch.from_numpy(laid.codes), None if laid.seen.all() else torch.from_numpy(laid.seen)

    def _bag(self, column: Column, array: Values, first_row: int) -> Sparse:
        """The cells of a bag."""
        bag, dropped = self._bags[column.name].read(array, self._type[column.name], column.name, first_row)
        if dropped:
            text = f"{dropped:,} entries of items not kept in training: dropped"
            self._warn(column.name, f"column {column.name!r} has {text}")
        return bag

    def _scaled(self, blocks: list[Cells | SeriesBlock], rows: int) -> tuple[Tensor, Tensor | None]:
        """Raw blocks to prepared numbers and to which are there (None: all), some rows at a time."""
        width = sum(block.shape[1] for block in blocks)
        numbers = torch.empty(rows, width)
        step = max(1, CHUNK_CELLS // max(1, width))
        holes = list(abreast(partial(self._write, blocks, numbers.numpy(), step), spans(rows, step) if width else []))
        if not any(holes):
            return numbers, None
        seen = torch.ones(rows, width, dtype=torch.bool)
        for here, missing in chain.from_iterable(holes):
            seen[here] = torch.from_numpy(~missing)
        return numbers, seen

    def _write(self, blocks: list[Cells | SeriesBlock], numbers: Cells, step: int, span: slice) -> Missing:
        """Write the prepared cells of a span of rows, `step` at a time; where some were missing, and which."""
        raw = np.empty((min(step, span.stop - span.start), numbers.shape[1]))
        holes: Missing = []
        for start in range(span.start, span.stop, step):
            here = slice(start, min(start + step, span.stop))
            part = raw[: here.stop - here.start]
            at = 0
            for block in blocks:
                part[:, at : at + block.shape[1]] = block[here]
                at += block.shape[1]
            missing = self.scaling.write(part, numbers[here])
            if missing is not None:
                holes.append((here, missing))
        return holes

    def _warn(self, key: str | None, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, DataWarning, stacklevel=4)

    def restore(self, numbers: Tensor, codes: Tensor) -> pa.RecordBatch:
        """Prepared rows to raw ones, with the names and types of the original table.

        Integers are rounded and kept within their type's range, dates take the time of day that their angles say,
        categories become the value of their code: null where that is `levels`, as are columns that were all missing.

        Args:
            numbers: (B, N) in prepared units; of bags the shares of their items, which sum to 1 (see `Items.write`).
            codes: (B, M).
        """
        numbers, codes = numbers.detach().cpu(), codes.detach().cpu()
        step = max(FEWEST_ROWS, CHUNK_CELLS // max(1, numbers.shape[1]))
        starts = range(0, max(1, len(numbers)), step)
        parts = [self._restored(numbers[start : start + step], codes[start : start + step]) for start in starts]
        return parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    def _restored(self, numbers: Tensor, codes: Tensor) -> pa.RecordBatch:
        dense = self.schema.dense
        raw, chosen = self.scaling.inverse(numbers[:, :dense]).numpy(), codes.numpy()
        shares = numbers[:, dense:].double().numpy()
        arrays = []
        for column, arrow in zip(self.schema, self._types, strict=True):
            span = self.schema.spans[column.name]
            if vocabulary := self._texts.get(column.name):
                at = span.start - self.schema.numbers
                arrays.append(vocabulary.write(chosen[:, at : at + column.cells], arrow))
            elif items := self._bags.get(column.name):
                arrays.append(items.write(shares[:, span.start - dense : span.stop - dense], arrow))
            elif column.categorical:
                at = span.start - self.schema.numbers
                arrays.append(decode(chosen[:, at], self._levels[column.name].values, arrow))
            else:
                arrays.append(self._written(raw[:, span], column, arrow))
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow_schema)

    def _written(self, cells: Any, column: Column, arrow: Type) -> Values:
        """Raw cells of one column as Arrow values."""
        if not column.width:
            return missing_tensors(len(cells), arrow, column.shape) if column.shape else pa.nulls(len(cells), arrow)
        if series := self._series.get(column.name):
            return series.write(cells, arrow, column.shape)
        if column.kind == "date":
            return write_dates(cells, arrow)
        if column.kind == "count":
            cells = np.rint(np.maximum(cells, 0))
        return write_tensors(cells, arrow, column.shape) if column.shape else write_numbers(cells[:, 0], arrow)


def _only(sort: type[L], layouts: Mapping[str, Layout]) -> dict[str, L]:
    """The layouts of one sort."""
    return {name: layout for name, layout in layouts.items() if isinstance(layout, sort)}


def _joined(numbers: Tensor, present: Tensor | None, coded: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    """(B, C) which cells are there, the numbers' first; None where all are."""
    masks = [(numbers, present), *coded]
    if all(mask is None for _, mask in masks):
        return None
    return torch.cat([torch.ones_like(cells, dtype=torch.bool) if m is None else m for cells, m in masks], dim=1)
