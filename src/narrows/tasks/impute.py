"""Rows with holes to whole rows: the expected cells, or draws of them with what the draws say about estimates.

    rows -> prepared, with what is missing -> Holes or Latent -> guesses or draws -> the rows as they came, holes filled

What was observed stays as it was, bit for bit. Numbers of whole types are rounded, categories are known levels, and
numbers lie between the least and the greatest of training. What this file does not know: how a cell is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from narrows.errors import DataError, SettingError
from narrows.fitted import Model
from narrows.prepare.arrow import read_tensors, tensors, to_dtype
from narrows.schema import Batch, Column
from narrows.sources.reading import asides
from narrows.sources.source import Source, naming
from narrows.tasks.holes import Guess, Holes, fills
from narrows.tasks.importance import Latent

INDICATOR, LOW, HIGH, DRAW = "_missing", "_low", "_high", "draw"
MOST_DRAWS = 1_000
DIGITS = 300  # of a power of ten that double precision holds
FINE = 1e-5  # of a column's scale: what single precision loses on the way back must not leave a lump outside


class Filler(Protocol):
    """What tells cells that are missing."""

    def guess(self, batch: Batch, share: float = 0.9) -> Guess:
        """What is expected of rows, and an interval that holds so large a share."""
        ...

    def draw(self, batch: Batch, seed: int, first: int = 0) -> Batch:
        """The rows with every hole filled by a draw."""
        ...


def filler_of(model: Model) -> Filler:
    """What tells a model's missing cells: itself where it was trained to, else the draws of its normal codes.

    Raises:
        SettingError: for a model that is neither `conditional` nor variational with densities.
    """
    return Holes(model) if fills(model) else Latent(model)


def impute(
    model: Model,
    rows: Any,
    *,
    draws: int | None = None,
    seed: int = 0,
    interval: float | None = None,
    add_indicator: bool = False,
) -> pa.Table:
    """Rows with every hole filled.

    Args:
        model: of `fit --for impute`, of the recipe `conditional`, or a variational one (`vae`, `iwae`).
        rows: anything `open_source` takes, with the columns of training.
        draws: give so many completed tables one under the other, with a column `draw` that numbers them (multiple
            imputation, Rubin 1987: see `narrows.tasks.pooling`); None gives the expected cells, which are nearest on
            average but too much alike.
        seed: of the draws.
        interval: add the columns `NAME_low` and `NAME_high` between which a missing number lies with this chance, such
            as 0.9; empty where it is not missing.
        add_indicator: add a column `NAME_missing` for each column that had holes in training.

    Raises:
        SettingError: for settings out of range, or a model that cannot tell what is missing.
        DataError: for rows that do not fit.
    """
    work = Imputation(model, draws=draws, seed=seed, interval=interval, add_indicator=add_indicator)
    source = model.source(rows)
    parts = list(work.of(source))
    schema = work.schema(source)
    if draws:  # table after table, each with all rows
        parts = [part for number in range(draws) for part in (_of_draw(rows, number) for rows in parts)]
    return pa.Table.from_batches(parts, schema)


def _of_draw(rows: pa.RecordBatch, number: int) -> pa.RecordBatch:
    return rows.filter(pc.equal(rows.column(DRAW), pa.scalar(number, pa.int32())))


class Imputation:
    """Rows filled as they stream by; arguments as those of `impute`.

    Attributes:
        filled: name of a column -> values that were missing, of the rows so far.
        rows: so far.
    """

    def __init__(
        self,
        model: Model,
        *,
        draws: int | None = None,
        seed: int = 0,
        interval: float | None = None,
        add_indicator: bool = False,
    ) -> None:
        if draws is not None and not (_whole(draws) and 1 <= draws <= MOST_DRAWS):
            raise SettingError(f"draws={draws!r}", f"from 1 to {MOST_DRAWS:,}, or None for the expected cells")
        if interval is not None and not (isinstance(interval, Real) and 0 < float(interval) < 1):
            raise SettingError(f"interval={interval!r}", "a chance between 0 and 1, such as 0.9")
        if interval is not None and draws:
            raise SettingError("interval with draws", "one of them: draws show by themselves how far they spread")
        if not (_whole(seed) and abs(seed) < 2**63):
            raise SettingError(f"seed={seed!r}", "a whole number of 64 bits")
        self.model, self.draws, self.seed, self.interval = model, draws, int(seed), interval
        self.indicator, self.filler = add_indicator, filler_of(model)
        self.columns = [column for column in model.schema if column.cells]
        self.filled = dict.fromkeys((column.name for column in self.columns), 0)
        self.rows = 0

    @property
    def alone(self) -> list[Column]:
        """The columns of single numbers."""
        kinds = ("number", "count")
        return [column for column in self.columns if column.kind in kinds and not column.shape and not column.grid]

    @property
    def between(self) -> list[Column]:
        """The columns that get an interval."""
        return self.alone if self.interval is not None else []

    @property
    def indicated(self) -> list[Column]:
        """The columns that get an indicator: those with holes in training, as scikit-learn's imputers have it."""
        return [column for column in self.columns if column.holes] if self.indicator else []

    def schema(self, source: Source) -> pa.Schema:
        """Of the rows that `of` gives."""
        entries = [*asides(source.schema), *([pa.field(DRAW, pa.int32())] if self.draws else [])]
        entries += self.model.preparer.arrow_schema
        entries += [pa.field(name + INDICATOR, pa.bool_()) for c in self.indicated for name in marked(c)]
        entries += [pa.field(c.name + end, pa.float64()) for c in self.between for end in (LOW, HIGH)]
        return pa.schema(entries)

    def of(self, source: Source) -> Iterator[pa.RecordBatch]:
        """Completed rows, in order; with draws, so many of each stretch of rows."""
        schema = self.schema(source)
        for first, raw in source.batches():
            with naming(source):
                batch = self.model.preparer.prepare(raw, first).dense()
            for column in self.columns:
                self.filled[column.name] += int(self._missing(batch, column).sum())
            yield from self._completed(raw, batch, first, schema)
            self.rows += len(batch)

    def _completed(self, raw: pa.RecordBatch, batch: Batch, first: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        known = [raw.column(entry.name) for entry in asides(raw.schema)]
        marks = [pa.array(mark) for column in self.indicated for mark in self._marks(batch, column)]
        if not self.draws:
            guess = self.filler.guess(batch, self.interval or 0.9)
            whole = self._whole_rows(raw, batch, replace(batch, numbers=guess.numbers, codes=guess.codes))
            ends = self._ends(batch, guess) if self.between else []
            yield pa.RecordBatch.from_arrays([*known, *whole, *marks, *ends], schema=schema)
            return
        for number in range(self.draws):
            drawn = self.filler.draw(batch, self.seed + number * DRAWS_APART, first)
            whole = self._whole_rows(raw, batch, drawn)
            numbered = pa.repeat(pa.scalar(number, pa.int32()), len(batch))
            yield pa.RecordBatch.from_arrays([*known, numbered, *whole, *marks], schema=schema)

    def _marks(self, batch: Batch, column: Column) -> list[np.ndarray]:
        """(B,) which rows lack each of what a column has an indicator for."""
        if len(marked(column)) == 1:
            return [self._missing(batch, column)]
        return list((~batch.mask()[:, self.model.schema.spans[column.name]]).numpy().T)

    def _missing(self, batch: Batch, column: Column) -> np.ndarray:
        """(B,) which rows lack something of a column; of a text, all of it, as cells behind its end always are."""
        seen = batch.mask()[:, self.model.schema.spans[column.name]]
        lacking: np.ndarray = (~(seen.any(1) if column.categorical and column.grid else seen.all(1))).numpy()
        return lacking

    def _whole_rows(self, raw: pa.RecordBatch, batch: Batch, answer: Batch) -> list[pa.Array]:
        """The columns as they came, with what was missing from an answer."""
        seen, count = batch.mask(), batch.numbers.shape[1]
        numbers = torch.where(seen[:, :count], batch.numbers, answer.numbers)
        codes = torch.where(seen[:, count:], batch.codes, answer.codes)
        told, came = self.model.preparer.restore(numbers, codes), self.model.preparer.aligned(raw)
        columns = []
        for column, entry in zip(self.model.schema, told.schema, strict=True):
            if not column.cells:  # all missing in training: nobody knows what it would hold
                columns.append(told.column(entry.name))
                continue
            values, missing = _as_trained(came[entry.name], entry), self._missing(batch, column)
            columns.append(_filled(values, told.column(entry.name), missing) if missing.any() else values)
        return columns

    def _ends(self, batch: Batch, guess: Guess) -> list[pa.Array]:
        """Both ends of each interval, in raw units, moved apart to the next decimal of `FINE`."""
        ends = [self.model.preparer.restore(ends, guess.codes) for ends in (guess.low, guess.high)]
        arrays = []
        for column in self.between:
            there = self._missing(batch, column)
            size = float(self.model.preparer.scaling.scale[self.model.schema.spans[column.name].start])
            digits = min(max(math.floor(math.log10(FINE * size)), -DIGITS), DIGITS)
            many, few = 10.0 ** max(-digits, 0), 10.0 ** max(digits, 0)  # both whole, so that decimals come out as such
            for rows, outward in zip(ends, (np.floor, np.ceil), strict=True):
                values = rows.column(column.name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
                arrays.append(pa.array(outward(values * many / few) * few / many, mask=~there))
        return arrays


def marked(column: Column) -> list[str]:
    """Names of what a column has an indicator for: itself, or each of the numbers of an array's row."""
    return column.cell_names() if column.shape and not column.grid else [column.name]


DRAWS_APART = 1_000_003  # of the seeds of two draws


def _as_trained(values: pa.Array, entry: pa.Field) -> pa.Array:
    """A column of raw rows, as the type it had in training where it came as another one.

    Raises:
        DataError: where that would change a value.
    """
    if pa.types.is_dictionary(values.type) and values.type != entry.type:
        values = values.dictionary_decode()
    try:
        return values if values.type == entry.type else values.cast(entry.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        got = f"column {entry.name!r} of type {values.type}, which cannot be written as in training: {error}"
        raise DataError(got, f"values of {entry.type}") from None


def _filled(values: pa.Array, told: pa.Array, missing: np.ndarray) -> pa.Array:
    """Values where they are, what was told elsewhere; of arrays cell by cell."""
    if isinstance(values.type, pa.FixedShapeTensorType):
        shape, known, whole = tuple(values.type.shape), read_tensors(values), read_tensors(told)
        cells = np.where(np.isnan(known), whole, known).reshape(-1)
        kind = np.dtype(values.type.value_type.to_pandas_dtype())
        return tensors(pa.array(to_dtype(cells, kind)), values.type.value_type, shape)
    if pa.types.is_dictionary(values.type):
        filled = _filled(values.dictionary_decode(), told.dictionary_decode(), missing)
        return filled.dictionary_encode().cast(values.type)
    plain = pa.large_string() if pa.types.is_string_view(values.type) else values.type  # which if_else does not know
    return pc.if_else(pa.array(missing), told.cast(plain), values.cast(plain)).cast(values.type)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
