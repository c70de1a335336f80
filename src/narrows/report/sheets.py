"""Rows in lines of a few, as a page shows them: pictures side by side, curves over each other, or tables.

    line by line (G), step by step (S): numbers (G * S, N), codes (G * S, M) -> a sheet for each way of drawing

Whatever moves along a line (a number of the code, the epochs of a training, the way between two rows) is shown alike.
What it does not know: what the lines and steps are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from markupsafe import Markup
from torch import Tensor

from narrows.fitted import Model
from narrows.prepare.bags import Items
from narrows.prepare.series import Series
from narrows.report.cells import drawing, pixels_of, steps_of
from narrows.report.charts import overlay
from narrows.report.pixels import data_uri
from narrows.schema import Column, Schema
from narrows.tasks.figures import texts
from narrows.tasks.shares import as_shares

SIDE = 48  # pixels of an image's longer side: there are many of them
CHANGING = 8  # columns of a table: those that differ most along the lines
CHANNELS = 2  # of a series, a chart each
ITEMS = 4  # of a bag
TINTS = 5

Way = Literal["picture", "lines", "table"]
WAYS: dict[str, Way] = {"picture": "picture", "lines": "lines", "cell": "table", "text": "table", "bag": "table"}


@dataclass(frozen=True)
class Lines:
    """G lines of S rows each.

    Args:
        labels: (G) of the lines.
        headings: (S) of the steps.
        numbers: (G * S, N) number cells, line after line.
        codes: (G * S, M) codes.
        seen: (G * S, C) which cells were there; None for all.
    """

    labels: list[str]
    headings: list[str]
    numbers: Tensor
    codes: Tensor
    seen: Tensor | None = None


@dataclass(frozen=True)
class Pictures:
    """Images side by side: a label, and the address of each step's image."""

    name: str
    headings: list[str]
    lines: list[tuple[str, list[str]]]
    way: Way = "picture"


@dataclass(frozen=True)
class Curves:
    """A chart for each line and channel: a label, and all steps in one chart; the tint of each heading."""

    name: str
    headings: list[tuple[str, str]]
    lines: list[tuple[str, Markup]]
    way: Way = "lines"


@dataclass(frozen=True)
class Table:
    """Values: for each line a label, and for each step its heading and the value of each column."""

    columns: list[str]
    lines: list[tuple[str, list[tuple[str, list[str]]]]]
    way: Way = "table"


Sheet = Pictures | Curves | Table


def way_of(schema: Schema) -> Way | None:
    """How rows are best shown: as pictures where there are any, else curves, else tables; None for sounds alone."""
    ways = {WAYS.get(drawing(column)) for column in schema if column.cells}
    found: Way | None = next((way for way in WAYS.values() if way in ways), None)
    return found


def sheets(model: Model, lines: Lines) -> list[Sheet]:
    """A sheet for each column of pictures or curves, and one for all others."""
    drawn = _Drawn(model, lines)
    columns = [(WAYS.get(drawing(column)), column) for column in model.schema if column.cells]
    found: list[Sheet] = [drawn.pictures(column) for way, column in columns if way == "picture"]
    found += [drawn.curves(column) for way, column in columns if way == "lines"]
    rest = drawn.changing([column for way, column in columns if way == "table"])
    return [*found, drawn.table(rest)] if rest else found


class _Drawn:
    """Lines of rows, restored once."""

    def __init__(self, model: Model, lines: Lines) -> None:
        self.model, self.schema, self.lines = model, model.schema, lines
        numbers = lines.numbers.clone()
        for column in self.schema:
            if column.kind == "bag":  # what is restored are shares
                numbers[:, self.schema.spans[column.name]] = as_shares(numbers[:, self.schema.spans[column.name]])
        self.numbers, self.restored = numbers, model.preparer.restore(numbers, lines.codes)

    def _rows(self) -> list[tuple[str, range]]:
        """Each line's label and rows."""
        steps = len(self.lines.headings)
        return [(label, range(i * steps, (i + 1) * steps)) for i, label in enumerate(self.lines.labels)]

    def pictures(self, column: Column) -> Pictures:
        """Images side by side."""
        cells = self.numbers[:, self.schema.spans[column.name]]
        images = [data_uri(pixels_of(column, image, cells), SIDE) for image in cells]
        found = [(label, [images[i] for i in rows]) for label, rows in self._rows()]
        return Pictures(column.name, self.lines.headings, found)

    def curves(self, column: Column) -> Curves:
        """The steps of a line in one chart, later ones in stronger tints."""
        values, headings = self.restored[column.name], self.lines.headings
        tints = [f"tint{round(i * (TINTS - 1) / max(len(headings) - 1, 1))}" for i in range(len(headings))]
        found = []
        for label, rows in self._rows():
            drawn = [steps_of(column, values.slice(i, 1)) for i in rows]
            for at in range(min(CHANNELS, drawn[0].shape[1])):
                series = [(tint, steps[:, at]) for tint, steps in zip(tints, drawn, strict=True)]
                said = ", ".join(word for word in (label, self._channel(column, at)) if word)
                found.append((said, overlay(series, f"{column.name}, {said}")))
        return Curves(column.name, list(zip(tints, headings, strict=True)), found)

    def _channel(self, column: Column, at: int) -> str:
        """The name of a series' channel; empty for a lone one."""
        layout = self.model.preparer.layouts.get(column.name)
        names = layout.names if isinstance(layout, Series) else ()
        several = (len(column.shape) > 1 and column.shape[-1] > 1) or len(names) > 1
        return (names[at] if at < len(names) else f"channel {at + 1}") if several else ""

    def changing(self, columns: list[Column]) -> list[Column]:
        """Those of the columns that differ most along the lines, in the order of the table."""
        if len(columns) <= CHANGING:
            return columns
        moved = torch.tensor([self._movement(column) for column in columns])
        return [columns[i] for i in sorted(moved.topk(CHANGING).indices.tolist())]

    def _movement(self, column: Column) -> float:
        """How far the column's cells move along a line, in prepared units; a changed level counts 1."""
        span, steps = self.schema.spans[column.name], len(self.lines.headings)
        if column.categorical:
            codes = self.lines.codes[:, span.start - self.schema.numbers : span.stop - self.schema.numbers]
            codes = codes.view(-1, steps, codes.shape[1])
            return float((codes != codes[:, :1]).double().mean())
        return float(self.numbers[:, span].view(-1, steps, column.cells).double().std(1, correction=0).mean())

    def table(self, columns: list[Column]) -> Table:
        """Values of the columns, a row for each step."""
        shown = [self._texts(column) for column in columns]
        headings, found = self.lines.headings, []
        for label, rows in self._rows():
            cells = [(heading, [said[i] for said in shown]) for heading, i in zip(headings, rows, strict=True)]
            found.append((label, cells))
        return Table([column.name for column in columns], found)

    def _texts(self, column: Column) -> list[str]:
        """Each row's value as short text."""
        span = self.schema.spans[column.name]
        if column.kind == "bag":
            said = [self._items(column, row) for row in self.numbers[:, span]]
        else:
            said = [_joined(self.restored[column.name].slice(i, 1)) for i in range(len(self.numbers))]
        if self.lines.seen is None:
            return said
        there = self.lines.seen[:, span.start].tolist()
        return [text if seen else "missing" for text, seen in zip(said, there, strict=True)]

    def _items(self, column: Column, shares: Tensor) -> str:
        layout = self.model.preparer.layouts.get(column.name)
        names = layout.names if isinstance(layout, Items) else ()
        top = shares.topk(min(ITEMS, len(shares))).indices.tolist()
        return ", ".join(str(names[i]) if names else str(i) for i in top if shares[i] > 0)


def _joined(one: pa.Array) -> str:
    """One value as text; of a short array, its elements."""
    if isinstance(one.type, pa.FixedShapeTensorType):
        values = np.asarray(one.to_numpy_ndarray()).reshape(-1)
        return " ".join(texts(pa.array(values)))
    return texts(one)[0]
