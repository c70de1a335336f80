"""How often each token and each item came in training, whatever the row: the least that a model of texts or bags knows.

A text's unigram says how likely each token is, a bag's which share each item has of all that bags hold. Every count is
raised by half of a usual one (tokens: by 1/2), so that what training never met costs much, but not everything.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from narrows.schema import Batch, Column, Schema

LEAST = 1e-30  # share that a guess gives an item at least: 69 nats a time


def told_by_shares(column: Column) -> bool:
    """Whether a column is measured by how likely its tokens or items are: texts and bags."""
    return column.kind in ("tokens", "bag") and column.cells > 0


def outcomes(column: Column) -> int:
    """What a share belongs to: the known tokens and one for every other, or the items."""
    return column.levels + 1 if column.kind == "tokens" else column.width


def unigram_size(schema: Schema) -> int:
    """U, the shares of all texts and bags."""
    return sum(outcomes(column) for column in schema if told_by_shares(column))


def by_column(schema: Schema, shares: Tensor) -> dict[str, Tensor]:
    """Shares (U,) of all texts and bags, by column."""
    columns = [column for column in schema if told_by_shares(column)]
    parts = torch.split(shares, [outcomes(column) for column in columns])
    return {column.name: part for column, part in zip(columns, parts, strict=True)}


def as_shares(cells: Tensor) -> Tensor:
    """(B, items) any guess of a bag as shares above 0 that sum to 1."""
    positive = cells.clamp_min(LEAST)
    return positive / positive.sum(1, keepdim=True)


def with_shares(schema: Schema, numbers: Tensor) -> Tensor:
    """Numbers (B, N) whose bags are read as shares, as those that are told of them."""
    numbers = numbers.clone()
    for column in schema:
        if column.kind == "bag":
            span = schema.spans[column.name]
            numbers[:, span] = as_shares(numbers[:, span])
    return numbers


class Unigram:
    """Counts tokens and items of rows, in any number of batches.

    Args:
        schema: of the prepared data.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.columns = [column for column in schema if told_by_shares(column)]
        self.counts = {c.name: torch.zeros(outcomes(c), dtype=torch.float64) for c in self.columns}
        self.entries = dict.fromkeys(self.counts, 0)

    def add(self, batch: Batch) -> None:
        """Count in some rows, whose bags may be sparse or not."""
        for column in self.columns:
            count = self._tokens if column.kind == "tokens" else self._items
            counts, entries = count(batch, column)
            self.counts[column.name] += counts
            self.entries[column.name] += entries

    def _tokens(self, batch: Batch, column: Column) -> tuple[Tensor, int]:
        span = self.schema.spans[column.name]
        codes = batch.codes[:, span.start - self.schema.numbers : span.stop - self.schema.numbers]
        if batch.seen is not None:
            start = span.start - self.schema.numbers + batch.numbers.shape[1]
            codes = codes[batch.seen[:, start : start + column.cells]]
        return torch.bincount(codes.flatten(), minlength=outcomes(column)).double(), codes.numel()

    def _items(self, batch: Batch, column: Column) -> tuple[Tensor, int]:
        span = self.schema.spans[column.name]
        if batch.sparse is None:
            counts = batch.numbers[:, span]
            return counts.sum(0, dtype=torch.float64), int((counts > 0).sum())
        start = span.start - self.schema.dense
        here = (batch.sparse.cells >= start) & (batch.sparse.cells < start + column.width)
        cells, values = batch.sparse.cells[here] - start, batch.sparse.values[here].double()
        return torch.zeros(column.width, dtype=torch.float64).index_add_(0, cells, values), len(cells)

    def shares(self) -> Tensor:
        """(U,) float32 smoothed shares, column by column."""
        parts: Iterable[Tensor] = (self._smoothed(column) for column in self.columns)
        return torch.cat([torch.zeros(0), *parts])

    def _smoothed(self, column: Column) -> Tensor:
        counts = self.counts[column.name]
        usual = float(counts.sum()) / max(1, self.entries[column.name]) or 1.0
        raised = counts + 0.5 * usual
        return (raised / raised.sum()).float()
