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
from narrows.prepare.bags import Items
from narrows.schema import Batch, Column
from narrows.tasks.denoise import with_holes
from narrows.tasks.detect import Blame, Detector
from narrows.tasks.figures import texts
from narrows.tasks.heat import heat, heat_type, hottest
from narrows.tasks.shares import as_shares

NAMED = 3  # suspects in words
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
        self._suspects = [*_suspects(self.model)]
        self._owner = torch.zeros(self.model.schema.cells, dtype=torch.long)
        for place, suspect in enumerate(self._suspects):
            self._owner[suspect.cells] = place

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns.

        `why`: the cells that add most, in words; empty where nothing makes the row odder than the middle.
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
        spans, cells = self.model.schema.spans, blame.cells
        expected = self.model.preparer.restore(*self.detector.expected(batch))
        normal = self.detector.normal(batch)
        rows = (
            [expected] if normal is None else [expected, with_holes(self.model, restored(self.model, normal), normal)]
        )
        return [
            pa.array(self._words(raw, batch, blame, expected), pa.string()),
            *(pa.array(cells[:, spans[column.name]].sum(1).numpy()) for column in self._columns),
            pa.array(blame.remainder.numpy()),
            *(heat(column, cells[:, spans[column.name]], batch, self.model.schema) for column in self._heated),
            *(told.column(column.name) for told in rows for column in self._columns),
        ]

    def words(self, raw: pa.RecordBatch, batch: Batch) -> list[str]:
        """The column `why` alone, of few rows."""
        expected = self.model.preparer.restore(*self.detector.expected(batch))
        return self._words(raw, batch, self.detector.blame(batch), expected)

    def _words(self, raw: pa.RecordBatch, batch: Batch, blame: Blame, expected: pa.RecordBatch) -> list[str]:
        added = torch.zeros(len(batch), len(self._suspects), dtype=torch.float64)
        added.index_add_(1, self._owner, blame.cells)
        most, places = added.topk(min(NAMED, len(self._suspects)))
        named = (most >= LEAST) & (most >= SHARE * most[:, :1]) & (blame.scores > 0)[:, None]
        given = restored(self.model, batch.dense())
        said: list[list[str]] = [[] for _ in range(len(batch))]
        for rank in range(most.shape[1]):
            for place in sorted(set(places[named[:, rank], rank].tolist())):
                rows = (named[:, rank] & (places[:, rank] == place)).nonzero().flatten()
                phrases = self._phrases(self._suspects[place], rows, raw, given, expected, blame)
                for row, phrase, adds in zip(rows.tolist(), phrases, most[rows, rank].tolist(), strict=True):
                    said[row].append(f"{phrase} (+{adds:.1f})")
        return ["; ".join(phrases) for phrases in said]

    def _phrases(
        self,
        suspect: Suspect,
        rows: Tensor,
        raw: pa.RecordBatch,
        given: pa.RecordBatch,
        expected: pa.RecordBatch,
        blame: Blame,
    ) -> list[str]:
        """What some rows hold in a suspect, and what was expected there."""
        column = suspect.column
        if column.grid:
            return [f"{suspect.name} {place}" for place in hottest(column, blame.cells[rows][:, suspect.cells])]
        if column.kind == "bag":
            return [suspect.name] * len(rows)
        # what came says more than what the model made of it: a level that it does not know has a name there
        own = raw if not column.shape and column.name in raw.schema.names else given
        pairs = [_values(table.column(column.name).take(pa.array(rows.numpy())), suspect) for table in (own, expected)]
        return [
            f"{suspect.name} {value}" + (f" in place of {other}" if other != value else "")
            for value, other in zip(*pairs, strict=True)
        ]


def _suspects(model: Model) -> Iterator[Suspect]:
    """Everything that can be named, in the order of columns and cells."""
    for column in model.schema:
        span, items = model.schema.spans[column.name], model.preparer.layouts.get(column.name)
        if column.cells and (column.grid or not (column.shape or column.kind == "bag")):
            yield Suspect(column.name, column, span)
        elif column.cells:
            known = isinstance(items, Items) and items.names
            names = [f"{column.name} {item}" for item in known] if known else column.cell_names()
            for place, name in enumerate(names):
                yield Suspect(name, column, slice(span.start + place, span.start + place + 1), place)


def _values(values: pa.Array, suspect: Suspect) -> list[str]:
    """Values of a column in words, of an array those of one element."""
    if suspect.element is None:
        return texts(values)
    cells = np.asarray(values.to_numpy_ndarray()).reshape(len(values), -1)
    return texts(pa.array(cells[:, suspect.element]))


def restored(model: Model, rows: Batch) -> pa.RecordBatch:
    """Prepared rows, whose bags are written out, as raw ones; what was not seen holds the mean of training."""
    numbers = rows.numbers.clone()
    for column in model.schema:
        if column.kind == "bag":  # what is restored are shares
            span = model.schema.spans[column.name]
            numbers[:, span] = as_shares(numbers[:, span])
    return model.preparer.restore(numbers, rows.codes)
