"""Prepared rows gathered from a stream: all of them in memory taken once, or an even share of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from narrows.schema import Batch, Schema, Sparse


class Filling:
    """A batch of a known number of rows, allocated once and filled in order, so that memory never doubles.

    But for bags, whose entries are not known in advance: they are gathered and joined at the end.
    """

    def __init__(self, schema: Schema, rows: int, weighted: bool) -> None:
        holes = any(column.holes and column.cells for column in schema)
        codes = len(schema.levels)
        self._batch = Batch(
            torch.zeros(rows, schema.dense),
            torch.zeros(rows, codes, dtype=torch.long),
            torch.ones(rows, schema.dense + codes, dtype=torch.bool) if holes else None,
            torch.ones(rows) if weighted else None,
        )
        self._bags: list[Sparse] = []
        self.filled = 0

    @property
    def batch(self) -> Batch:
        """All rows."""
        return replace(self._batch, sparse=Sparse.concat(self._bags)) if self._bags else self._batch

    def add(self, rows: Batch) -> None:
        """Put rows behind those that are there."""
        here = slice(self.filled, self.filled + len(rows))
        if rows.seen is not None and self._batch.seen is None:  # holes where the schema knows of none
            self._batch = replace(self._batch, seen=torch.ones_like(self._batch.mask()))
        pairs: list[tuple[Tensor | None, Tensor | None]] = [
            (self._batch.numbers, rows.numbers),
            (self._batch.codes, rows.codes),
            (self._batch.seen, rows.seen),
            (self._batch.weight, rows.weight),
        ]
        for whole, part in pairs:
            if whole is not None and part is not None:
                whole[here] = part
        if rows.sparse is not None:
            self._bags.append(rows.sparse)
        self.filled += len(rows)


class Thinned:
    """At most so many rows of a stream: once there are too many, every second one is dropped, now and from then on."""

    def __init__(self, limit: int) -> None:
        self.limit, self.stride, self.met = limit, 1, 0
        self.kept: list[Batch] = []

    def add(self, rows: Batch) -> None:
        """Take the rows whose turn it is."""
        offset = -self.met % self.stride
        self.met += len(rows)
        if offset < len(rows):
            # copies: a slice would keep all the rows that it leaves out in memory
            self.kept.append(rows[torch.arange(offset, len(rows), self.stride)])
        while sum(map(len, self.kept)) > self.limit:
            whole = Batch.concat(self.kept)
            self.kept = [whole[torch.arange(0, len(whole), 2)]]
            self.stride *= 2

    def batch(self) -> Batch | None:
        """The rows kept, or None."""
        kept = [batch for batch in self.kept if len(batch)]
        return Batch.concat(kept) if kept else None
