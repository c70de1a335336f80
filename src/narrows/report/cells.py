"""Rows as a page shows them: pictures for images, cells of text for scalars; `cards` draws what is wider.

Values pass through `Preparer.restore`, so a reader sees the data's own types and units. What it does not know: which
rows are worth showing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.report.gather import Seen
from narrows.report.pixels import as_image, data_uri
from narrows.schema import Column
from narrows.tasks.figures import figure, texts
from narrows.tasks.shares import as_shares
from narrows.tasks.values import as_floats

COLUMNS = 16  # table columns side by side: more are only scrolled past
LONG = 12  # cells beyond which an array is drawn, not printed

FULL = re.compile(r"(?<!u)int(8|16|32)")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One cell of a table: the value that was there, what the model made of it, and how strong to tint it (0..1)."""

    original: str
    model: str
    tint: float


@dataclass(frozen=True)
class Shown:
    """The same rows, original and given back.

    Args:
        pictures: image column -> ("original" | "model" | "PCA", image addresses).
        headings: of the table.
        table: rows of cells.
        left_out: table columns that are not shown.
    """

    pictures: list[tuple[str, list[tuple[str, list[str]]]]]
    headings: list[str]
    table: list[list[Cell]]
    left_out: int


Drawing = Literal["picture", "lines", "sound", "text", "bag", "cell"]
BY_KIND: dict[str, Drawing] = {"series": "lines", "audio": "sound", "tokens": "text", "bag": "bag"}


def drawing(column: Column) -> Drawing:
    """How values of a column are shown; `cell` is printed in a table."""
    if not column.cells or column.kind in BY_KIND:
        return BY_KIND.get(column.kind, "cell") if column.cells else "cell"
    if len(column.shape) > 1:
        return "picture"
    return "lines" if column.shape and column.cells > LONG else "cell"


class View:
    """Some rows, restored once and shown in several ways."""

    def __init__(self, model: Model, rows: Seen) -> None:
        self.schema, self.preparer, self.rows = model.schema, model.preparer, rows
        self.mask = rows.truth.mask().numpy()
        restore = model.preparer.restore
        numbers = rows.truth.numbers.clone()
        for column in self.schema:
            if column.kind == "bag":  # what is restored are shares
                numbers[:, self.schema.spans[column.name]] = as_shares(numbers[:, self.schema.spans[column.name]])
        self.restored = {
            "original": restore(numbers, rows.truth.codes),
            "model": restore(*rows.model),
            "pca": restore(*rows.pca),
        }

    def shown(self) -> Shown:
        """The columns that are pictures or cells of a table."""
        images, rest = (
            [column for column in self.schema if column.cells and drawing(column) == way] for way in ("picture", "cell")
        )
        kept = [printed for column in rest[:COLUMNS] for printed in self._printed(column)][:COLUMNS]
        return Shown(
            pictures=[(column.name, self._pictures(column)) for column in images],
            headings=[name for name, _ in kept],
            table=[list(row) for row in zip(*(cells for _, cells in kept), strict=True)],
            left_out=sum(column.cells if column.shape else 1 for column in rest) - len(kept),
        )

    def picture(self, column: Column, row: int, which: str = "original") -> str:
        """Address of one image: `original`, `model`, `pca`, or `cost`: bright where the model paid most."""
        span = self.schema.spans[column.name]
        if which == "cost":
            excess = self.rows.excess[row, span].clamp(min=0).double().numpy().reshape(column.shape)
            heat = excess if excess.ndim == 2 else np.asarray(excess.sum(_plane_axis(excess.shape)))
            share = heat / (heat.max() or 1.0)
            return data_uri(np.stack([share, 0.55 * share**1.5, 0.15 * share**3], axis=-1))
        source = {"original": self.rows.truth.numbers, "model": self.rows.model[0], "pca": self.rows.pca[0]}
        whole = self.rows.truth.numbers[:, span]
        return data_uri(pixels_of(column, source[which][row, span], whole))

    def value(self, column: Column, row: int, which: str = "original") -> str:
        """One value of a scalar or text column as text."""
        if which == "original" and not self.mask[row, self.schema.spans[column.name].start]:
            return "missing"
        return texts(self.restored[which][column.name].slice(row, 1))[0]

    def text(self, column: Column, row: int, which: str) -> str:
        """One whole text."""
        return str(self.restored[which][column.name][row].as_py() or "")

    def steps(self, column: Column, row: int, which: str) -> Floats:
        """(steps, channels) one value of an array column: no steps where it is missing."""
        return steps_of(column, self.restored[which][column.name].slice(row, 1))

    def full_scale(self, column: Column) -> float:
        """What a full wave is: the range of whole numbers, 1 for fractions, more where they go beyond."""
        found = FULL.search(column.type)
        if found:
            return float(2 ** (int(found[1]) - 1))
        peaks = [np.abs(np.nan_to_num(self.steps(column, row, "original"))) for row in range(len(self.rows.index))]
        return max(1.0, *(float(peak.max(initial=0.0)) for peak in peaks))

    def _pictures(self, column: Column) -> list[tuple[str, list[str]]]:
        kinds = (("original", "original"), ("model", "model"), ("PCA", "pca"))
        count = len(self.rows.index)
        return [(label, [self.picture(column, row, which) for row in range(count)]) for label, which in kinds]

    def _printed(self, column: Column) -> list[tuple[str, list[Cell]]]:
        """Headings and cells of a column: one of each, or one for every element of a short array."""
        span = self.schema.spans[column.name]
        tints = self._tints(column)
        if not column.shape:
            cells = [
                Cell(self.value(column, row), self.value(column, row, "model"), float(tints[row].max()))
                for row in range(len(tints))
            ]
            return [(column.name, cells)]
        originals, models = (as_floats(self.restored[which][column.name]) for which in ("original", "model"))
        return [
            (
                name,
                [
                    Cell(figure(a) if seen else "missing", figure(b), float(tint))
                    for a, b, tint, seen in zip(
                        originals[:, i], models[:, i], tints[:, i], self.mask[:, span.start + i], strict=True
                    )
                ],
            )
            for i, name in enumerate(column.cell_names())
        ]

    def _tints(self, column: Column) -> Floats:
        """(n, cells) 0..1: how far off each cell is; 1 is two standard deviations, or another category."""
        span, numbers = self.schema.spans[column.name], self.schema.numbers
        seen = self.mask[:, span]
        if column.categorical:
            codes = slice(span.start - numbers, span.stop - numbers)
            return np.asarray(((self.rows.truth.codes != self.rows.model[1])[:, codes].numpy() & seen) * 1.0)
        gap = (self.rows.truth.numbers - self.rows.model[0])[:, span].abs().double().numpy()
        return np.asarray(np.where(seen, gap / (0.6 if column.bounded else 2.0), 0.0).clip(0.0, 1.0))


def pixels_of(column: Column, cells: Tensor, whole: Tensor) -> Floats:
    """(h, w) or (h, w, 3) in [0, 1]: one image, on the scale of some where its values have no bounds.

    Args:
        column: of images.
        cells: (cells,) of the one.
        whole: (n, cells) of some.
    """
    pixels = cells.double().numpy()
    if not column.bounded:
        low, high = float(whole.min()), float(whole.max())
        pixels = (pixels - low) / ((high - low) or 1.0)
    return as_image(pixels.reshape(column.shape))


def steps_of(column: Column, one: pa.Array) -> Floats:
    """(steps, channels) the one restored value of an array column: no steps where it is missing."""
    if isinstance(one.type, pa.FixedShapeTensorType):
        values = as_floats(one).reshape(*column.shape[:1], -1)
    else:
        values = np.array(one[0].as_py() or [], dtype=np.float64)  # None inside becomes NaN
    steps: Floats = values.reshape(len(values), -1) if len(values) else np.zeros((0, column.grid[-1]))
    return steps


def _plane_axis(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of an image that are not its height and width."""
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    return (0,) if first else tuple(range(2, len(shape)))


def worst_cells(values: Tensor, count: int) -> list[int]:
    """Positions of the `count` largest values, largest first, those above 0."""
    top = torch.topk(values, min(count, len(values)))
    return [int(i) for value, i in zip(top.values, top.indices, strict=True) if value > 0]
