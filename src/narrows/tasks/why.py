"""Why rows scored as they did: the cells to blame, the values expected instead, and the nearest ordinary row.

    rows -> blame of each column + a remainder = score    shares of arrays as heat: maps of images, steps of series
         -> the cells that add most, in words             income 450,000 in place of 52,100 (+3.1)
         -> what the network expects, and what the nearest ordinary row holds

Blame says which cells are odd given the others, not what caused it; of two cells that contradict each other both may
be named. What this file does not know: how a score is shared among cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.prepare.arrow import plain
from narrows.prepare.bags import Items
from narrows.schema import Batch, Column
from narrows.tasks.denoise import with_holes
from narrows.tasks.detect import Blame, Detector
from narrows.tasks.figures import texts
from narrows.tasks.heat import heat, heat_type, hottest
from narrows.tasks.shares import with_shares

NAMED = 3  # suspects in words
WHOLE = "the row as a whole"  # what the remainder is called
LEAST, SHARE = 0.05, 0.1  # that a suspect must add to be named, and of what the first one adds


@dataclass(frozen=True)
class Suspect:
    """What is named in words: a column, or a cell of an array or bag that has no grid.

    Args:
        name: as it is said.
        column: that it belongs to.
        cells: of a row.
        element: place of the cell in an array; None for all else.
    """

    name: str
    column: Column
    cells: slice
    element: int | None = None


class Why:
    """What explains the scores of rows.

    Args:
        detector: that gave them.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector, self.model = detector, detector.model
        self._columns = [column for column in self.model.schema if column.cells]
        self._heated = [column for column in self._columns if heat_type(column) is not None]
        self._suspects = [*suspects_of(self.model)]
        self._owner = torch.zeros(self.model.schema.cells, dtype=torch.long)
        for place, suspect in enumerate(self._suspects):
            self._owner[suspect.cells] = place

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns.

        `why`: what adds most, in words; empty for a score of 0 or less, which is that of an ordinary row.
        `blame.COLUMN`, the sum over the cells of each, and `remainder`: they add up to the score.
        `heat.COLUMN`: the blame of each element of an array, pixel of an image, step of a series, token of a text.
        `expected.COLUMN`: what the network tells of each cell from the others, or of what has a grid from its code.
        `normal.COLUMN`: the nearest of the ordinary rows that the detector remembers, where rows are compared.
        """
        typed = {entry.name: entry for entry in self.model.preparer.arrow_schema}
        told = ["expected"] if self.detector.known is None else ["expected", "normal"]
        blamed = [*(f"blame.{column.name}" for column in self._columns), "remainder"]
        return pa.schema(
            [
                pa.field("why", pa.string()),
                *(pa.field(name, pa.float64()) for name in blamed),
                *(pa.field(f"heat.{column.name}", heat_type(column)) for column in self._heated),
                *(typed[column.name].with_name(f"{word}.{column.name}") for word in told for column in self._columns),
            ]
        )

    def columns(self, raw: pa.RecordBatch, batch: Batch, blame: Blame) -> list[pa.Array]:
        """The values of `schema` for some rows.

        Args:
            raw: rows as they came.
            batch: the same, prepared.
            blame: of the same.
        """
        case = self._case(raw, batch, blame)
        spans, cells, normal = self.model.schema.spans, blame.cells, self.detector.normal(batch)
        told = [case.expected]
        if normal is not None:
            told.append(with_holes(self.model, restored(self.model, normal), normal))
        return [
            pa.array(self._words(case), pa.string()),
            *(pa.array(cells[:, spans[column.name]].sum(1).numpy()) for column in self._columns),
            pa.array(blame.remainder.numpy()),
            *(heat(column, cells[:, spans[column.name]], batch, self.model.schema) for column in self._heated),
            *(rows.column(column.name) for rows in told for column in self._columns),
        ]

    def words(self, raw: pa.RecordBatch, batch: Batch) -> list[str]:
        """The column `why` alone."""
        return self._words(self._case(raw, batch, self.detector.blame(batch)))

    def _case(self, raw: pa.RecordBatch, batch: Batch, blame: Blame) -> _Case:
        rows, restore = batch.dense(), self.model.preparer.restore
        return _Case(raw, rows, restored(self.model, rows), restore(*self.detector.expected(batch)), blame)

    def _words(self, case: _Case) -> list[str]:
        blame = case.blame
        added = torch.zeros(len(blame.scores), len(self._suspects), dtype=torch.float64)
        added.index_add_(1, self._owner, blame.cells)
        most, places = torch.cat([added, blame.remainder[:, None]], dim=1).topk(min(NAMED, added.shape[1] + 1))
        named = (most >= LEAST) & (most >= SHARE * most[:, :1]) & (blame.scores > 0)[:, None]
        said: list[list[str]] = [[] for _ in range(len(blame.scores))]
        for rank in range(most.shape[1]):
            for place in sorted(set(places[named[:, rank], rank].tolist())):
                rows = (named[:, rank] & (places[:, rank] == place)).nonzero().flatten()
                phrases = [WHOLE] * len(rows) if place == added.shape[1] else case.phrases(self._suspects[place], rows)
                for row, phrase, adds in zip(rows.tolist(), phrases, most[rows, rank].tolist(), strict=True):
                    said[row].append(f"{phrase} (+{adds:.1f})")
        return ["; ".join(phrases) for phrases in said]


@dataclass(frozen=True)
class _Case:
    """All that is known of some rows.

    Args:
        raw: as they came.
        rows: prepared, bags written out.
        given: the same restored.
        expected: what was expected in their place.
        blame: why they scored as they did.
    """

    raw: pa.RecordBatch
    rows: Batch
    given: pa.RecordBatch
    expected: pa.RecordBatch
    blame: Blame

    def phrases(self, suspect: Suspect, rows: Tensor) -> list[str]:
        """What some rows (n,) hold in a suspect, and what was expected there."""
        column = suspect.column
        if column.grid:
            return [f"{suspect.name} {place}" for place in hottest(column, self.blame.cells[rows][:, suspect.cells])]
        if column.kind == "bag":
            there = (self.rows.numbers[rows, suspect.cells.start] > 0).tolist()
            return [f"{column.name} {'with' if held else 'without'} {suspect.name}" for held in there]
        # what came says more than what the model made of it: a level that it does not know has a name there
        own = self.raw if not column.shape and column.name in self.raw.schema.names else self.given
        chosen = pa.array(rows.numpy())
        values, others = (values_of(table.column(column.name), chosen, suspect) for table in (own, self.expected))
        pairs = zip(values, others, strict=True)
        return [suspect.name + (f" {v} in place of {other}" if v != other else f" {v}") for v, other in pairs]


def suspects_of(model: Model) -> Iterator[Suspect]:
    """Everything that can be named, in the order of columns and cells."""
    for column in model.schema:
        span, items = model.schema.spans[column.name], model.preparer.layouts.get(column.name)
        if column.cells and (column.grid or not (column.shape or column.kind == "bag")):
            yield Suspect(column.name, column, span)
        elif column.cells:
            known = isinstance(items, Items) and items.names
            names = [str(item) for item in known] if known else column.cell_names()
            for place, name in enumerate(names):
                yield Suspect(name, column, slice(span.start + place, span.start + place + 1), place)


def values_of(values: pa.Array, rows: pa.Array, suspect: Suspect) -> list[str]:
    """Values of a column at some rows in words, of an array those of one element."""
    if suspect.element is None:
        return texts(plain(values).take(rows))
    cells = np.asarray(values.to_numpy_ndarray()).reshape(len(values), -1)
    return texts(pa.array(cells[rows.to_numpy(), suspect.element]))


def restored(model: Model, rows: Batch) -> pa.RecordBatch:
    """Prepared rows, whose bags are written out, as raw ones; what was not seen holds the mean of training."""
    return model.preparer.restore(with_shares(model.schema, rows.numbers), rows.codes)
