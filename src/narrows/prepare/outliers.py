"""Prepared numbers far outside the range of training: which columns have them, and what to say of them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from narrows.prepare.transforms import LIMIT, Scaling
from narrows.schema import Column, Schema

FOLD = 64


class Outliers:
    """Watches the number cells of a schema: a value is far out where it is further outside the range than that is wide.

    Args:
        schema: the columns.
        scaling: the tensor half, which knows the ranges of training.
    """

    def __init__(self, schema: Schema, scaling: Scaling) -> None:
        self.schema, self.scaling = schema, scaling
        self.columns = [column for column in schema if column.width and column.kind != "bag"]
        low, high = self._raw_range()
        floor, ceiling = scaling(torch.stack([low - (high - low), high + (high - low)]))
        self._floor = floor - 1e-6 * (1 + floor.abs())
        self._ceiling = ceiling + 1e-6 * (1 + ceiling.abs())

    def _raw_range(self) -> Tensor:
        """(2, N) least and greatest raw value of each number cell in training; those of a grid or array share theirs.

        A pixel that was always black in training may well be gray.
        """
        ends = torch.stack([self.scaling.low, self.scaling.high])
        for column in self.columns:
            span = self.schema.spans[column.name]
            inside = slice(span.start, span.stop - (column.side if column.grid else 0))
            if column.shape or column.grid:
                ends[0, inside], ends[1, inside] = ends[0, inside].min(), ends[1, inside].max()
        return self.scaling.inverse(ends)

    def found(self, numbers: Tensor) -> Iterator[tuple[str, str]]:
        """Columns of prepared numbers (B, N) with values far out, each with what to say of it."""
        if not numbers.numel():
            return
        least, most = _extremes(numbers)
        far = (least < self._floor) | (most > self._ceiling)
        for column in self.columns if bool(far.any()) else ():
            span = self.schema.spans[column.name]
            if bool(far[span].any()):
                cell = span.start + int(far[span].nonzero()[0])
                value = least[cell] if least[cell] < self._floor[cell] else most[cell]
                yield column.name, f"column {column.name!r} {self._words(column, cell, float(value))}"

    def _words(self, column: Column, cell: int, value: float) -> str:
        """What to say of a prepared value of a cell that is out of range."""
        if column.kind == "date":
            return "has dates far outside those of training: kept, not clipped"
        if column.kind in ("series", "audio") and column.width != prod(column.shape or (0,)):  # no plain values
            return "has rows far outside those of training in level, spread or length: kept, not clipped"
        row = torch.zeros(1, len(self._floor))
        row[0, cell] = value
        raw, (low, high) = float(self.scaling.inverse(row)[0, cell]), self._raw_range()[:, cell].tolist()
        outside = f"far outside its training range of {low:.6g} to {high:.6g}"
        if abs(value) >= LIMIT:
            return f"has values so {outside} that they are taken for {raw:.6g}"
        return f"has values {outside}, such as {raw:.6g}: kept, not clipped"


def _extremes(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each column of (B, N).

    Rows are first taken 64 at a time, as one long row: neither NumPy nor torch is quick with columns of short rows.
    """
    rows, width = numbers.shape
    whole = rows - rows % FOLD
    parts = [numbers[whole:].numpy()] if whole < rows else []
    if whole:
        folded = numbers[:whole].reshape(-1, FOLD * width).numpy()
        parts += [folded.min(axis=0).reshape(FOLD, width), folded.max(axis=0).reshape(FOLD, width)]
    ends = np.concatenate(parts)
    return torch.from_numpy(ends.min(axis=0)), torch.from_numpy(ends.max(axis=0))
