"""The errors of one column, added up block by block: what is compared, and in which unit, depends on its kind.

numbers, counts, dates, images, series of one length, waves   restored values          RMSE in their own units
ragged series, series scaled row by row, spectra              prepared cells           RMSE in training deviations
categories                                                    codes                    share that is wrong
texts                                                         likelihood of tokens     bits a token; also wrong ones
bags                                                          shares of items          perplexity an item
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.metrics import Mask, Spread, bits, explained, perplexity, root_mean, squared_errors, wrong
from narrows.prepare.series import Series
from narrows.prepare.tokens import Vocabulary
from narrows.schema import Batch, Column
from narrows.tasks.baseline import Baseline
from narrows.tasks.evaluation import GUESSES, ColumnErrors, Errors
from narrows.tasks.shares import as_shares
from narrows.tasks.values import as_floats, unit_of

Cells = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Block:
    """Some rows and what is made of them.

    Args:
        batch: the rows, bags written out.
        mask: (B, C) which cells are there.
        guesses: name -> numbers (B, N) or (1, N), and codes (B, M) or (1, M).
        costs: (B, C + terms) what each cell cost the model, in nats for likelihoods.
        truth: the rows restored; None where no column asks for it.
        restored: name -> the guesses restored.
    """

    batch: Batch
    mask: Tensor
    guesses: dict[str, Cells]
    costs: Tensor
    truth: pa.RecordBatch | None
    restored: dict[str, pa.RecordBatch]

    def of(self, rows: Tensor) -> Block:
        """Some of the rows, by (b,) int64 places; a guess of one row is one for all."""
        count, places = len(self.batch), pa.array(rows.numpy())

        def some(cells: Tensor) -> Tensor:
            return cells[rows] if len(cells) == count else cells

        guesses = {name: (some(numbers), some(codes)) for name, (numbers, codes) in self.guesses.items()}
        restored = {name: r.take(places) if r.num_rows == count else r for name, r in self.restored.items()}
        truth = None if self.truth is None else self.truth.take(places)
        return Block(self.batch[rows], self.mask[rows], guesses, self.costs[rows], truth, restored)


class Sums(ABC):
    """Sums of one column's errors.

    Args:
        model: it belongs to.
        column: of its schema, with cells.
    """

    restores = False
    """Whether restored values are compared."""

    def __init__(self, model: Model, column: Column) -> None:
        self.column, self.span = column, model.schema.spans[column.name]
        start = self.span.start - model.schema.numbers
        self.codes = slice(start, start + column.cells)
        self.unseen = 0

    @abstractmethod
    def add(self, block: Block) -> None:
        """Count in some rows."""

    @abstractmethod
    def result(self) -> ColumnErrors:
        """The errors, in units a reader knows."""


class Categories(Sums):
    """Codes that are wrong."""

    def __init__(self, model: Model, column: Column) -> None:
        super().__init__(model, column)
        self.seen, self.missed = 0, dict.fromkeys(GUESSES, 0)

    def add(self, block: Block) -> None:
        """Count in codes (B, cells)."""
        truth, seen = block.batch.codes[:, self.codes].numpy(), block.mask[:, self.span].numpy()
        self.seen += int(seen.sum())
        self.unseen += int(((truth >= self.column.levels) & seen).sum())
        for name, (_, codes) in block.guesses.items():
            self.missed[name] += int(wrong(truth, codes[:, self.codes].numpy(), seen).sum())

    def shares(self) -> Errors:
        """Share of wrong codes of each guess."""
        return Errors(*(self.missed[name] / self.seen if self.seen else float("nan") for name in GUESSES))

    def result(self) -> ColumnErrors:
        """Wrong ones among those seen."""
        return ColumnErrors(self.column.name, self.column.kind, "wrong", "", self.seen, self.shares())


class Texts(Categories):
    """What each token costs the model that knows those before it, beside what the unigram makes it pay."""

    def __init__(self, model: Model, column: Column, baseline: Baseline) -> None:
        super().__init__(model, column)
        self.unigram = -baseline.shares[column.name].double().log()
        self.nats = dict.fromkeys(("model", "mean"), 0.0)
        layout = model.preparer.layouts.get(column.name)
        words = {"chars": "character", "bytes": "byte", "words": "word"}
        self.unit = words.get(layout.method, "token") if isinstance(layout, Vocabulary) else "token"

    def add(self, block: Block) -> None:
        """Count in the tokens of some texts."""
        super().add(block)
        seen = block.mask[:, self.span]
        self.nats["model"] += float(block.costs[:, self.span].sum(dtype=torch.float64))
        self.nats["mean"] += float(self.unigram[block.batch.codes[:, self.codes][seen]].sum())

    def result(self) -> ColumnErrors:
        """Bits a token, and how many come back as others from the code alone; PCA has no say."""
        each = Errors(bits(self.nats["model"], self.seen), float("nan"), bits(self.nats["mean"], self.seen))
        shares = self.shares()
        missed = Errors(shares.model, float("nan"), shares.mean)
        return ColumnErrors(self.column.name, self.column.kind, "bits", self.unit, self.seen, each, wrong=missed)


class Bags(Sums):
    """How surprising items are, given the shares that a guess gives each of them."""

    def __init__(self, model: Model, column: Column) -> None:
        super().__init__(model, column)
        self.items, self.entries, self.nats = 0.0, 0, dict.fromkeys(GUESSES, 0.0)

    def add(self, block: Block) -> None:
        """Count in the items of some bags."""
        counts = block.batch.numbers[:, self.span]
        self.items += float(counts.sum(dtype=torch.float64))
        self.entries += int((counts > 0).sum())
        for name, (numbers, _) in block.guesses.items():
            costs = as_shares(numbers[:, self.span]).log_().mul(counts)
            self.nats[name] -= float(costs.sum(dtype=torch.float64))

    def result(self) -> ColumnErrors:
        """Perplexity an item."""
        each = Errors(*(perplexity(self.nats[name], self.items) for name in GUESSES))
        return ColumnErrors(self.column.name, self.column.kind, "perplexity", "item", self.entries, each)


class Prepared(Sums):
    """Squared errors of the cells of a grid as the network sees them."""

    def __init__(self, model: Model, column: Column) -> None:
        super().__init__(model, column)
        self.width = prod(column.grid)
        self.errors = {name: np.zeros(self.width) for name in GUESSES}
        self.spread = Spread(*np.zeros((3, self.width)))

    def add(self, block: Block) -> None:
        """Count in the cells that are there."""
        here = slice(self.span.start, self.span.start + self.width)
        values, seen = block.batch.numbers[:, here].double().numpy(), block.mask[:, here].numpy()
        self.spread += Spread.of(values, seen)
        for name, (numbers, _) in block.guesses.items():
            self.errors[name] += squared_errors(values, numbers[:, here].double().numpy(), seen)

    def result(self) -> ColumnErrors:
        """RMSE in training deviations, or in ranges where values were mapped to [0, 1]."""
        roots = Errors(*(root_mean(self.errors[name], self.spread.count) for name in GUESSES))
        seen, r2 = int(self.spread.count.sum()), explained(self.errors["model"], self.spread)
        unit = "range" if self.column.bounded else "std"
        return ColumnErrors(self.column.name, self.column.kind, "rmse", unit, seen, roots, r2)


class Values(Sums):
    """Squared errors of restored values, in units of `magnitude`, which keeps squares of extremes in range."""

    restores = True

    def __init__(self, model: Model, column: Column) -> None:
        super().__init__(model, column)
        self.magnitude = _magnitude(model, column)
        self.width = prod(column.shape)
        self.errors = {name: np.zeros(self.width) for name in GUESSES}
        self.spread = Spread(*np.zeros((3, self.width)))

    def add(self, block: Block) -> None:
        """Count in restored values."""
        if block.truth is None:
            return
        seen: Mask = block.mask[:, self.span].numpy()[:, : self.width]  # the cells of a date are seen together
        values = as_floats(block.truth[self.column.name]) / self.magnitude
        self.spread += Spread.of(values, seen)
        for name, rows in block.restored.items():
            self.errors[name] += squared_errors(values, as_floats(rows[self.column.name]) / self.magnitude, seen)

    def result(self) -> ColumnErrors:
        """RMSE in the column's own units; of array columns also that of each cell."""
        column, count = self.column, self.spread.count
        roots = [self.magnitude * root_mean(self.errors[name], count) for name in GUESSES]
        unit, size = unit_of(column, roots[-1])
        cells: dict[str, list[float]] = {}
        if column.shape:
            means = {name: np.sqrt(self.errors[name] / np.where(count > 0, count, np.nan)) for name in GUESSES}
            cells = {name: (self.magnitude * mean).tolist() for name, mean in means.items()}
        errors = Errors(*(root / size for root in roots))
        r2 = explained(self.errors["model"], self.spread)
        return ColumnErrors(column.name, column.kind, "rmse", unit, int(count.sum()), errors, r2, column.shape, cells)


def sums_of(model: Model, column: Column, baseline: Baseline) -> Sums:
    """The sums that suit a column."""
    if column.kind == "tokens":
        return Texts(model, column, baseline)
    if column.kind == "bag":
        return Bags(model, column)
    if column.categorical:
        return Categories(model, column)
    layout = model.preparer.layouts.get(column.name)
    # cells that are not values of the column, or values each row has on a scale of its own, have no common unit
    unlike = isinstance(layout, Series) and (layout.ragged or layout.transform in ("own", "spectra"))
    return Prepared(model, column) if unlike else Values(model, column)


def _magnitude(model: Model, column: Column) -> float:
    """What to divide a column's values by so that their squares neither overflow nor vanish: 1, but for extremes."""
    largest = float(model.preparer.scaling.scale[model.schema.spans[column.name]].max())
    return 1.0 if 1e-100 < largest < 1e100 else largest
