"""The preparer: raw Arrow rows to prepared batches and back, once it has learnt how from statistics.

Two halves meet here: the Arrow half (`arrow`, `dates`, `categories`) makes raw float64 cells and codes, the tensor
half (`scaling`) makes prepared ones. What comes back from a round trip: categories, flags, dates without a time, and
integers whose column spans less than 2**19, exactly; floats within 1/100,000 of their column's range; times of day
to 10 ms. Wider integers keep about the 24 bits of float32. A code that stands for no one level comes back as null.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataWarning
from narrows.prepare.alignment import align
from narrows.prepare.arrow import (
    Cells,
    Values,
    column_type,
    missing_tensors,
    refuse_infinite,
    write_numbers,
    write_tensors,
)
from narrows.prepare.arrow_types import Type, nature, parse_type
from narrows.prepare.categories import Codes, Levels, decode, encode
from narrows.prepare.dates import write_dates
from narrows.prepare.learning import Wishes, learn_columns
from narrows.prepare.statistics import Statistics, read_block
from narrows.prepare.stored import from_stored, to_stored
from narrows.prepare.transforms import LIMIT, Scaling
from narrows.schema import Batch, Column, Kind, Schema

# Cells scaled at once: float64 blocks that fit a core's cache, and one less than makes torch share an operation among
# threads, whose waiting for each other cost up to 100 times the work on a busy machine.
CHUNK_CELLS = (1 << 15) - 1
FEWEST_ROWS = 64  # rows written at once at least: each column of each chunk costs some microseconds


class Preparer:
    """Turns raw rows into batches and back.

    Args:
        schema: the columns, as learnt.
        levels: the known levels of each category column, by code.
        scaling: the tensor half, N cells wide.
    """

    def __init__(self, schema: Schema, levels: Mapping[str, Levels], scaling: Scaling) -> None:
        self.schema, self.levels, self.scaling = schema, dict(levels), scaling
        self._types: list[Type] = [parse_type(column.type) for column in schema]
        pairs = zip(schema, self._types, strict=True)
        self._natures = {c.name: nature(column_type(arrow, c.shape), c.name) for c, arrow in pairs}
        self._warned: set[str | None] = set()
        self._floor, self._ceiling = self._outer_range()

    @classmethod
    def learn(
        cls,
        statistics: Statistics,
        *,
        kinds: Mapping[str, Kind] | None = None,
        transforms: Mapping[str, str] | None = None,
        max_levels: int = 256,
    ) -> Preparer:
        """A preparer for rows like those of the statistics.

        Args:
            statistics: one pass over the training rows.
            kinds: column name to kind, where the default is not meant.
            transforms: column name to `standardize`, `minmax`, `quantile` or `none`, likewise.
            max_levels: levels of a category that get a code of their own; the rarer ones share one.

        Raises:
            DataError: where there were no rows.
            SettingError: for unknown names, and wishes that the data contradict.
        """
        learnt = learn_columns(statistics, Wishes(kinds or {}, transforms or {}, max_levels))
        schema = Schema(tuple(column.column for column in learnt))
        levels = {column.column.name: column.levels for column in learnt if column.levels is not None}
        return cls(schema, levels, Scaling.of([column.plan for column in learnt if column.plan is not None]))

    @property
    def arrow_schema(self) -> pa.Schema:
        """Names and Arrow types of the original table; `restore` gives rows of it."""
        pairs = zip(self.schema, self._types, strict=True)
        return pa.schema([(column.name, column_type(arrow, column.shape)) for column, arrow in pairs])

    @property
    def texts(self) -> frozenset[str]:
        """Names of the columns whose values are texts."""
        return frozenset(name for name, kind in self._natures.items() if kind == "text")

    def to_file(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """JSON values and tensors that say all there is to know."""
        return to_stored(self.schema, self.levels, self.scaling)

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
        arrays = self._aligned(rows)
        blocks = {c.name: self._block(c, arrays[c.name], first_row) for c in self.schema if c.width}
        numbers = self._scaled(list(blocks.values()), len(rows))
        self._warn_of_outliers(numbers)
        present = {name: _present(block) for name, block in blocks.items()}
        codes = torch.zeros(len(rows), len(self.schema.levels), dtype=torch.int64)
        for i, column in enumerate(column for column in self.schema if column.categorical):
            found, present[column.name] = self._encoded(column, arrays[column.name], first_row)
            codes[:, i] = torch.from_numpy(found)
        return Batch(numbers, codes, self._seen(present, len(rows)))

    def _aligned(self, rows: pa.RecordBatch) -> dict[str, Values]:
        arrays, extra = align(rows, self.schema, self._types)
        if extra:
            self._warn(None, f"columns not seen in training are ignored: {', '.join(map(repr, extra))}")
        return dict(zip(self.schema.names, arrays, strict=True))

    def _block(self, column: Column, array: Values, first_row: int) -> Cells:
        """(B, width) raw cells of a number column, NaN where missing."""
        block = read_block(array, self._natures[column.name], parse_type(column.type), column.name, first_row)
        refuse_infinite(block, column.name, first_row)
        return block[:, : column.width]

    def _encoded(self, column: Column, array: Values, first_row: int) -> tuple[Codes, Cells | None]:
        """(B,) codes of a category column, and (B, 1) which are there, or None where all are."""
        codes, seen, unknown = encode(array, self.levels[column.name], column.name, first_row)
        if unknown is not None:
            text = f"has levels not kept in training, such as {unknown!r}: they share one code"
            self._warn(column.name, f"column {column.name!r} {text}")
        return codes, None if seen is None else seen[:, None]

    def _scaled(self, blocks: list[Cells], rows: int) -> Tensor:
        """Raw blocks to prepared numbers, some rows at a time."""
        width = sum(block.shape[1] for block in blocks)
        numbers = torch.empty(rows, width)
        step = max(1, CHUNK_CELLS // max(1, width))
        raw = np.empty((min(step, rows), width))
        for start in range(0, rows, step) if width else ():
            part = raw[: min(step, rows - start)]
            at = 0
            for block in blocks:
                part[:, at : at + block.shape[1]] = block[start : start + len(part)]
                at += block.shape[1]
            numbers[start : start + len(part)] = self.scaling(torch.from_numpy(part))
        return numbers

    def _seen(self, present: Mapping[str, Cells | None], rows: int) -> Tensor | None:
        if all(there is None for there in present.values()):
            return None
        seen = torch.ones(rows, self.schema.cells, dtype=torch.bool)
        for name, there in present.items():
            if there is not None:
                seen[:, self.schema.spans[name]] = torch.from_numpy(there)
        return seen

    def _warn_of_outliers(self, numbers: Tensor) -> None:
        if not numbers.numel():
            return
        least, most = torch.aminmax(numbers, dim=0)
        far = (least < self._floor) | (most > self._ceiling)
        for column in self.schema if bool(far.any()) else ():
            span = self.schema.spans[column.name]
            if not column.categorical and bool(far[span].any()):
                cell = span.start + int(far[span].nonzero()[0])
                value = least[cell] if least[cell] < self._floor[cell] else most[cell]
                self._warn(column.name, f"column {column.name!r} {self._outlier(column, cell, float(value))}")

    def _outlier(self, column: Column, cell: int, value: float) -> str:
        """What to say of a prepared value of a cell that is out of range."""
        if column.kind == "date":
            return "has dates far outside those of training: kept, not clipped"
        row = torch.zeros(1, self.schema.numbers)
        row[0, cell] = value
        raw, (low, high) = float(self.scaling.inverse(row)[0, cell]), self._raw_range()[:, cell].tolist()
        outside = f"far outside its training range of {low:.6g} to {high:.6g}"
        if abs(value) >= LIMIT:
            return f"has values so {outside} that they are taken for {raw:.6g}"
        return f"has values {outside}, such as {raw:.6g}: kept, not clipped"

    def _raw_range(self) -> Tensor:
        """(2, N) least and greatest raw value of each number cell in training; the cells of an array share theirs."""
        ends = torch.stack([self.scaling.low, self.scaling.high])
        for column in self.schema:
            if column.shape and column.width:  # a pixel that was always black in training may well be gray
                span = self.schema.spans[column.name]
                ends[0, span], ends[1, span] = ends[0, span].min(), ends[1, span].max()
        return self.scaling.inverse(ends)

    def _outer_range(self) -> tuple[Tensor, Tensor]:
        """Prepared values of a number cell beyond which it is worth a warning: its range's width outside its range."""
        low, high = self._raw_range()
        floor, ceiling = self.scaling(torch.stack([low - (high - low), high + (high - low)]))
        return floor - 1e-6 * (1 + floor.abs()), ceiling + 1e-6 * (1 + ceiling.abs())

    def _warn(self, key: str | None, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, DataWarning, stacklevel=4)

    def restore(self, numbers: Tensor, codes: Tensor) -> pa.RecordBatch:
        """Prepared rows to raw ones, with the names and types of the original table.

        Integers are rounded and kept within their type's range, dates take the time of day that their angles say,
        categories become the value of their code: null where that is `levels`, as are columns that were all missing.

        Args:
            numbers: (B, N) in prepared units.
            codes: (B, M).
        """
        numbers, codes = numbers.detach().cpu(), codes.detach().cpu()
        step = max(FEWEST_ROWS, CHUNK_CELLS // max(1, numbers.shape[1]))
        starts = range(0, max(1, len(numbers)), step)
        parts = [self._restored(numbers[start : start + step], codes[start : start + step]) for start in starts]
        return parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    def _restored(self, numbers: Tensor, codes: Tensor) -> pa.RecordBatch:
        raw, chosen = self.scaling.inverse(numbers).numpy(), codes.numpy()
        arrays = []
        for column, arrow in zip(self.schema, self._types, strict=True):
            span = self.schema.spans[column.name]
            if column.categorical:
                arrays.append(
                    decode(chosen[:, span.start - self.schema.numbers], self.levels[column.name].values, arrow)
                )
            else:
                arrays.append(_written(raw[:, span], column, arrow))
        return pa.RecordBatch.from_arrays(arrays, schema=self.arrow_schema)


def _present(block: Cells) -> Cells | None:
    """Which cells are there, or None where all are."""
    if block.dtype.kind != "f":
        return None
    there = ~np.isnan(block)
    return None if there.all() else there


def _written(cells: Any, column: Column, arrow: Type) -> Values:
    """Raw cells of one column as Arrow values."""
    if not column.width:
        return missing_tensors(len(cells), arrow, column.shape) if column.shape else pa.nulls(len(cells), arrow)
    if column.kind == "date":
        return write_dates(cells, arrow)
    return write_tensors(cells, arrow, column.shape) if column.shape else write_numbers(cells[:, 0], arrow)
