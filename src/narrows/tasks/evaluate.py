"""How well a model gives rows back: the error of every column beside PCA of the same size and the mean.

    rows -> prepared cells -> [ model | PCA | mean ] -> cells -> errors per column and kind (see `sums`), streamed

The three guesses are treated alike: each gives prepared cells, which `Preparer.restore` turns into values of the
column's own type and units where it has any, rounding included. What is compared with is the row as preparing and
restoring leave it, so figures are as exact as float32 keeps a column: about a ten-millionth of its range.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataError, FitWarning
from narrows.fitted import Model
from narrows.prepare.groups import MISSING, labels_of, refuse_many
from narrows.schema import Batch, Schema, one_row
from narrows.sources.source import Source, naming
from narrows.tasks.baseline import Baseline
from narrows.tasks.evaluation import GUESSES, ColumnErrors, Errors, Evaluation, headline_of
from narrows.tasks.features import category_places, in_blocks
from narrows.tasks.grouped import ByGroup, Figures
from narrows.tasks.heldout import Beside
from narrows.tasks.history import balance_of
from narrows.tasks.shares import as_shares
from narrows.tasks.sums import Block, Cells, sums_of

BLOCK = 4_096  # rows compared at once, fewer where they are wide: what bounds the memory
CURVED = ("tokens", "bag", "count")  # kinds whose likelihoods bend what a linear network says


def evaluate(model: Model, data: Any, groups: str | None = None) -> Evaluation:
    """Compare rows with what the model, PCA and the mean make of them.

    PCA and the mean are those of the training rows, kept in the model's part `baseline`. A model without that part is
    compared with PCA and mean of the evaluated rows themselves, which favors those two.

    Args:
        model: a fitted model.
        data: anything `open_source` takes, with the columns of the training data; read twice if PCA must be learnt.
        groups: a column of the data, modeled or not, for each of whose values errors are told apart; by default the one
            that training balanced, where the data has it.

    Raises:
        DataError: for no rows, or rows that do not fit the model; for groups by a column that is not there or has more
            than 1,000 values.

    Warns:
        FitWarning: when the model is no better than PCA of the same size, or than the mean.
    """
    source = model.source(data)
    evaluation = measure(model, source, Baseline.of(model, source), groups)
    if evaluation.warning:
        warnings.warn(evaluation.warning, FitWarning, stacklevel=2)
    return evaluation


def measure(model: Model, source: Source, baseline: Baseline, groups: str | None = None) -> Evaluation:
    """`evaluate`, against a given baseline and without a warning.

    Raises:
        DataError: as `evaluate`.
    """
    tally = _Tally(model, baseline)
    prepared = _Prepared(model, source, groups)
    for rows in in_blocks(prepared, model.schema, BLOCK):
        tally.add(rows, prepared.groups_of(len(rows)))
    if not tally.rows:
        raise DataError(f"no rows in {source.name}", "at least one row to evaluate")
    return replace(tally.result(), groups=tally.by_group(prepared.column))


class _Prepared:
    """The rows of a source, prepared, and beside them the groups that they belong to.

    Args:
        model: prepares them.
        source: of the rows.
        groups: column of the groups; None for the one that training balanced, where the source has it.
    """

    def __init__(self, model: Model, source: Source, groups: str | None) -> None:
        balanced = balance_of(model)
        self.model, self.source = model, source
        self.column = balanced if groups is None and balanced in source.schema.names else groups
        self.labels: dict[str, int] = {}
        self._waiting: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Batch]:
        for first, raw in self.source.batches():
            with naming(self.source):
                if self.column is not None:
                    self._waiting.append(self._groups(raw, self.column))
                    if self.column not in self.model.schema.names:  # it is not ignored, as a warning would say
                        raw = raw.drop_columns([self.column])
                batch = self.model.preparer.prepare(raw, first)
            yield batch

    def _groups(self, raw: pa.RecordBatch, column: str) -> np.ndarray:
        names, codes = labels_of(raw, column)
        shown = [MISSING if name is None else name for name in names]
        places = np.array([self.labels.setdefault(name, len(self.labels)) for name in shown], dtype=np.int64)
        refuse_many(len(self.labels), column)
        found: np.ndarray = places[codes] if len(codes) else codes
        return found

    def groups_of(self, rows: int) -> dict[str, Tensor]:
        """Group -> which of the next rows belong to it, of those that have been prepared; nothing without groups."""
        if self.column is None:
            return {}
        waiting = np.concatenate(self._waiting)
        here, self._waiting = waiting[:rows], [waiting[rows:]]
        names = list(self.labels)
        return {names[place]: torch.from_numpy(np.flatnonzero(here == place)) for place in np.unique(here)}


class _Errors:
    """Sums of errors over some rows, for every column and each of the three guesses."""

    def __init__(self, model: Model, baseline: Baseline) -> None:
        self.model, self.rows = model, 0
        self.totals = dict.fromkeys(GUESSES, 0.0)
        self.columns = {c.name: sums_of(model, c, baseline) for c in model.schema if c.cells}
        self.squares = any(column.cells for column in model.schema if column.kind != "tokens")

    def add(self, block: Block) -> None:
        """Count in some rows."""
        self.rows += len(block.batch)
        for name, cells in block.guesses.items():
            self.totals[name] += squared_error(self.model.schema, block.batch, cells)
        for sums in self.columns.values():
            sums.add(block)

    def results(self) -> tuple[ColumnErrors, ...]:
        """Errors of all columns."""
        return tuple(
            self.columns[column.name].result() if column.cells else ColumnErrors(column.name, column.kind)
            for column in self.model.schema
        )

    @property
    def total(self) -> Errors:
        """Squared error a row; NaN where all columns are texts."""
        return Errors(*(self.totals[name] / self.rows for name in GUESSES)) if self.squares else Errors()

    def figures(self) -> Figures:
        """The headline's error of the model, and that of every column."""
        columns = self.results()
        told = {column.name: column.errors.model for column in columns}
        return Figures(self.rows, headline_of(columns, self.total).errors.model, told)


class _Tally:
    """Sums over the rows seen so far, and over those of each group."""

    def __init__(self, model: Model, baseline: Baseline) -> None:
        self.model, self.baseline = model, baseline
        self.rows = self.seen = 0
        self.losses: dict[str, float] = {}
        self.held = Beside(model, codes=bool(terms(model)))
        self.errors = _Errors(model, baseline)
        self.groups: dict[str, _Errors] = {}

    def add(self, rows: Batch, groups: dict[str, Tensor]) -> None:
        """Count in some rows, few enough to write their bags out.

        Args:
            rows: prepared.
            groups: name -> places of the rows that belong to it.
        """
        batch = rows.dense()
        mask = batch.mask()
        self.rows += len(batch)
        # of a bag, what it holds was there
        self.seen += int(rows.mask().sum()) + (0 if rows.sparse is None else len(rows.sparse.cells))
        costs = self._costs(batch, mask)
        guesses = {"model": self.model.cells(self.model.codes(batch)), "pca": self.baseline.cells(batch)}
        guesses["mean"] = self.baseline.typical()
        block = Block(batch, mask, guesses, costs, None, {})
        if any(sums.restores for sums in self.errors.columns.values()):
            restore = self.model.preparer.restore
            restored = {name: restore(*cells) for name, cells in guesses.items()}
            block = Block(batch, mask, guesses, costs, restore(batch.numbers, batch.codes), restored)
        self.errors.add(block)
        for name, places in groups.items():
            self.groups.setdefault(name, _Errors(self.model, self.baseline)).add(block.of(places))

    def by_group(self, column: str | None) -> ByGroup | None:
        """Errors by group of a column."""
        if column is None:
            return None
        whole = self.errors
        words = headline_of(whole.results(), whole.total).words
        return ByGroup.of(column, words, whole.figures(), {name: part.figures() for name, part in self.groups.items()})

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
        straight = not any(column.kind in CURVED for column in schema)
        return Evaluation(
            rows=self.rows,
            seen=self.seen,
            unseen_levels={name: sums.unseen for name, sums in self.errors.columns.items() if sums.unseen},
            code=self.model.code_size,
            components=self.baseline.size,
            lossless=self.baseline.lossless,
            linear=straight and self.model.network is not None and self.model.recipe.slots().linear,
            baseline=self.baseline.origin,
            columns=self.errors.results(),
            total=self.errors.total,
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
