"""How well a model gives rows back: the error of every column beside PCA of the same size and the mean.

    rows -> prepared cells -> [ model | PCA | mean ] -> cells -> errors per column and kind (see `sums`), streamed

The three guesses are treated alike: each gives prepared cells, which `Preparer.restore` turns into values of the
column's own type and units where it has any, rounding included. What is compared with is the row as preparing and
restoring leave it, so figures are as exact as float32 keeps a column: about a ten-millionth of its range.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from narrows.errors import DataError, FitWarning
from narrows.fitted import Model
from narrows.schema import Batch, Schema, one_row
from narrows.sources.source import Source
from narrows.tasks.baseline import Baseline
from narrows.tasks.evaluation import GUESSES, ColumnErrors, Errors, Evaluation
from narrows.tasks.features import category_places, in_blocks
from narrows.tasks.heldout import Beside
from narrows.tasks.shares import as_shares
from narrows.tasks.sums import Block, Cells, sums_of

BLOCK = 4_096  # rows compared at once, fewer where they are wide: what bounds the memory
CURVED = ("tokens", "bag", "count")  # kinds whose likelihoods bend what a linear network says


def evaluate(model: Model, data: Any) -> Evaluation:
    """Compare rows with what the model, PCA and the mean make of them.

    PCA and the mean are those of the training rows, kept in the model's part `baseline`. A model without that part is
    compared with PCA and mean of the evaluated rows themselves, which favors those two.

    Args:
        model: a fitted model.
        data: anything `open_source` takes, with the columns of the training data; read twice if PCA must be learnt.

    Raises:
        DataError: for no rows, or rows that do not fit the model.

    Warns:
        FitWarning: when the model is no better than PCA of the same size, or than the mean.
    """
    source = model.source(data)
    evaluation = measure(model, source, Baseline.of(model, source))
    if evaluation.warning:
        warnings.warn(evaluation.warning, FitWarning, stacklevel=2)
    return evaluation


def measure(model: Model, source: Source, baseline: Baseline) -> Evaluation:
    """`evaluate`, against a given baseline and without a warning.

    Raises:
        DataError: as `evaluate`.
    """
    tally = _Tally(model, baseline)
    for rows in in_blocks((batch for _, batch in model.batches(source)), model.schema, BLOCK):
        tally.add(rows)
    if not tally.rows:
        raise DataError(f"no rows in {source.name}", "at least one row to evaluate")
    return tally.result()


class _Tally:
    """Sums over the rows seen so far, for every column and each of the three guesses."""

    def __init__(self, model: Model, baseline: Baseline) -> None:
        self.model, self.baseline = model, baseline
        self.rows = self.seen = 0
        self.totals = dict.fromkeys(GUESSES, 0.0)
        self.losses: dict[str, float] = {}
        self.held = Beside(model, codes=bool(terms(model)))
        self.columns = {c.name: sums_of(model, c, baseline) for c in model.schema if c.cells}

    def add(self, rows: Batch) -> None:
        """Count in some rows, few enough to write their bags out."""
        batch = rows.dense()
        mask = batch.mask()
        self.rows += len(batch)
        # of a bag, what it holds was there
        self.seen += int(rows.mask().sum()) + (0 if rows.sparse is None else len(rows.sparse.cells))
        costs = self._costs(batch, mask)
        guesses = {"model": self.model.cells(self.model.codes(batch)), "pca": self.baseline.cells(batch)}
        guesses["mean"] = self.baseline.typical()
        for name, cells in guesses.items():
            self.totals[name] += squared_error(self.model.schema, batch, cells)
        block = Block(batch, mask, guesses, costs, None, {})
        if any(sums.restores for sums in self.columns.values()):
            restore = self.model.preparer.restore
            restored = {name: restore(*cells) for name, cells in guesses.items()}
            block = Block(batch, mask, guesses, costs, restore(batch.numbers, batch.codes), restored)
        for sums in self.columns.values():
            sums.add(block)

    def _costs(self, batch: Batch, mask: Tensor) -> Tensor:
        """(B, C + terms) the model's own costs, counted in."""
        rows = self.model.costs(batch)
        self.held.add(batch, mask, rows)
        costs = rows.sum(0, dtype=torch.float64).tolist()
        cells = self.model.schema.cells
        parts = {"reconstruction": sum(costs[:cells])} | dict(zip(terms(self.model), costs[cells:], strict=True))
        for name, cost in parts.items():
            self.losses[name] = self.losses.get(name, 0.0) + cost
        return rows

    def result(self) -> Evaluation:
        """The figures."""
        schema = self.model.schema
        columns = [
            self.columns[column.name].result() if column.cells else ColumnErrors(column.name, column.kind)
            for column in schema
        ]
        told = any(column.cells for column in schema if column.kind != "tokens")
        straight = not any(column.kind in CURVED for column in schema)
        return Evaluation(
            rows=self.rows,
            seen=self.seen,
            unseen_levels={name: sums.unseen for name, sums in self.columns.items() if sums.unseen},
            code=self.model.code_size,
            components=self.baseline.size,
            lossless=self.baseline.lossless,
            linear=straight and self.model.network is not None and self.model.recipe.slots().linear,
            baseline=self.baseline.origin,
            columns=tuple(columns),
            total=Errors(*(self.totals[name] / self.rows for name in GUESSES)) if told else Errors(),
            loss={name: cost / self.rows for name, cost in self.losses.items()},
            held=self.held.result(self.rows),
        )


def squared_error(schema: Schema, batch: Batch, guess: Cells) -> float:
    """Squared error in prepared units, summed over seen cells; of bags that of shares times the row's total.

    Args:
        schema: of the rows.
        batch: rows whose bags are written out.
        guess: numbers (B, N) and codes (B, M), of which a wrong category counts 2; or one row for all.
    """
    (numbers, codes), mask = guess, batch.mask()
    missed = ((codes != batch.codes) & mask[:, schema.numbers :])[:, category_places(schema)]
    gaps = (numbers - batch.numbers)[:, : schema.dense].masked_fill_(~mask[:, : schema.dense], 0.0)
    squares = float(gaps.square_().sum(dtype=torch.float64))
    for span in (schema.spans[column.name] for column in schema if column.kind == "bag"):
        counts = batch.numbers[:, span]
        gaps = as_shares(numbers[:, span]) * counts.sum(1, keepdim=True) - counts
        squares += float(gaps.square_().sum(dtype=torch.float64))
    return squares + 2.0 * int(missed.sum())


def terms(model: Model) -> list[str]:
    """Names of what the latent adds to a row's cost, in the order of `Model.costs`."""
    with torch.inference_mode():
        return list(model.module.encode(one_row(model.schema).to(model.module.device)).terms)
