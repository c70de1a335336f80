"""How well a model gives rows back: the error of every column beside PCA of the same size and the mean.

    rows -> prepared cells -> [ model | PCA | mean ] -> cells -> restored values -> errors per column, streamed

The three guesses are treated alike: each gives prepared cells, which `Preparer.restore` turns into values of the
column's own type and units, rounding included. What is compared with is the row as preparing and restoring leave it,
so figures are as exact as float32 keeps a column: about a ten-millionth of its range.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataError, FitWarning
from narrows.fitted import Model
from narrows.metrics import Floats, Mask, Spread, explained, root_mean, squared_errors, wrong
from narrows.schema import Batch, Column
from narrows.sources.source import Source
from narrows.tasks.baseline import Baseline
from narrows.tasks.evaluation import GUESSES, ColumnErrors, Errors, Evaluation
from narrows.tasks.heldout import Beside

BLOCK = 4_096  # rows compared at once: what bounds the memory
Cells = tuple[Tensor, Tensor]


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
    for _, batch in model.batches(source):
        for start in range(0, len(batch), BLOCK):
            tally.add(batch[start : start + BLOCK])
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
        self.held = Beside(model, drawn=bool(terms(model)))
        self.columns = {c.name: _Sums(c, _magnitude(model, c)) for c in model.schema if c.cells}

    def add(self, batch: Batch) -> None:
        """Count in the rows of a batch."""
        mask = batch.mask()
        self.rows += len(batch)
        self.seen += int(mask.sum())
        self._add_losses(batch, mask)
        guesses = {"model": self.model.cells(self.model.codes(batch)), "pca": self.baseline.cells(batch)}
        guesses["mean"] = self.baseline.typical()
        for name, cells in guesses.items():
            self.totals[name] += self._distance(batch, mask, cells)
        restore = self.model.preparer.restore
        truth = restore(batch.numbers, batch.codes)
        restored = {name: restore(*cells) for name, cells in guesses.items()}
        numbers = self.model.schema.numbers
        for name, sums in self.columns.items():
            span = self.model.schema.spans[name]
            seen = mask[:, span].numpy()
            if sums.column.categorical:
                index = slice(span.start - numbers, span.stop - numbers)
                sums.add_codes(
                    batch.codes[:, index], {key: codes[:, index] for key, (_, codes) in guesses.items()}, seen
                )
            else:
                sums.add_values(truth[name], {key: rows[name] for key, rows in restored.items()}, seen)

    def _distance(self, batch: Batch, mask: Tensor, guess: Cells) -> float:
        """Squared error in prepared units, summed over seen cells."""
        numbers, codes = guess
        split = self.model.schema.numbers
        missed = int(((codes != batch.codes) & mask[:, split:]).sum())
        gaps = (numbers - batch.numbers).masked_fill_(~mask[:, :split], 0.0)
        return float(gaps.square_().sum(dtype=torch.float64)) + 2.0 * missed

    def _add_losses(self, batch: Batch, mask: Tensor) -> None:
        rows = self.model.costs(batch)
        self.held.add(batch, mask, rows)
        costs = rows.sum(0, dtype=torch.float64).tolist()
        cells = self.model.schema.cells
        parts = {"reconstruction": sum(costs[:cells])} | dict(zip(terms(self.model), costs[cells:], strict=True))
        for name, cost in parts.items():
            self.losses[name] = self.losses.get(name, 0.0) + cost

    def result(self) -> Evaluation:
        """The figures."""
        columns = [
            self.columns[column.name].result() if column.cells else ColumnErrors(column.name, column.kind)
            for column in self.model.schema
        ]
        return Evaluation(
            rows=self.rows,
            seen=self.seen,
            unseen_levels={name: sums.unseen for name, sums in self.columns.items() if sums.unseen},
            code=self.model.code_size,
            components=self.baseline.size,
            lossless=self.baseline.lossless,
            linear=self.model.network is not None and self.model.recipe.slots().linear,
            baseline=self.baseline.origin,
            columns=tuple(columns),
            total=Errors(*(self.totals[name] / self.rows for name in GUESSES)),
            loss={name: cost / self.rows for name, cost in self.losses.items()},
            held=self.held.result(self.rows),
        )


def _magnitude(model: Model, column: Column) -> float:
    """What to divide a column's values by so that their squares neither overflow nor vanish: 1, but for extremes."""
    if column.categorical:
        return 1.0
    largest = float(model.preparer.scaling.scale[model.schema.spans[column.name]].max())
    return 1.0 if 1e-100 < largest < 1e100 else largest


class _Sums:
    """Sums of one column's errors, in units of `magnitude`."""

    def __init__(self, column: Column, magnitude: float) -> None:
        self.column, self.magnitude = column, magnitude
        self.width = int(np.prod(column.shape)) if column.shape else 1
        self.errors = {name: np.zeros(self.width) for name in GUESSES}
        self.spread = Spread(*np.zeros((3, self.width)))
        self.unseen = 0

    def add_codes(self, truth: Tensor, guesses: dict[str, Tensor], seen: Mask) -> None:
        """Count in (B, 1) category codes."""
        self.spread += Spread.of(np.zeros(seen.shape), seen)
        self.unseen += int(((truth.numpy() == self.column.levels) & seen).sum())
        for name, codes in guesses.items():
            self.errors[name] += wrong(truth.numpy(), codes.numpy(), seen)

    def add_values(self, truth: pa.Array, guesses: dict[str, pa.Array], seen: Mask) -> None:
        """Count in restored values; `seen` (B, cells)."""
        seen = seen[:, : self.width]  # the cells of a date are seen together
        values = as_floats(truth) / self.magnitude
        self.spread += Spread.of(values, seen)
        for name, guess in guesses.items():
            self.errors[name] += squared_errors(values, as_floats(guess) / self.magnitude, seen)

    def result(self) -> ColumnErrors:
        """The errors, in units a reader knows."""
        column, count = self.column, self.spread.count
        seen = int(count.sum())
        if column.categorical:
            shares = (float(self.errors[name].sum()) / seen if seen else float("nan") for name in GUESSES)
            return ColumnErrors(column.name, column.kind, "wrong", "", seen, Errors(*shares))
        roots = [self.magnitude * root_mean(self.errors[name], count) for name in GUESSES]
        unit, size = _unit(column, roots[-1])
        cells: dict[str, list[float]] = {}
        if column.shape:
            means = {name: np.sqrt(self.errors[name] / np.where(count > 0, count, np.nan)) for name in GUESSES}
            cells = {name: (self.magnitude * mean).tolist() for name, mean in means.items()}
        errors = Errors(*(root / size for root in roots))
        r2 = explained(self.errors["model"], self.spread)
        return ColumnErrors(column.name, column.kind, "rmse", unit, seen, errors, r2, column.shape, cells)


def terms(model: Model) -> list[str]:
    """Names of what the latent adds to a row's cost, in the order of `Model.costs`."""
    schema = model.schema
    row = Batch(torch.zeros(1, schema.numbers), torch.zeros(1, len(schema.levels), dtype=torch.long))
    with torch.inference_mode():
        return list(model.module.encode(row.to(model.module.device)).terms)


_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def as_floats(array: pa.Array) -> Floats:
    """(B, D) float64 values of a restored number, date or array column; points and spans of time in seconds."""
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType):
        flat: npt.NDArray[Any] = array.storage.flatten().to_numpy(zero_copy_only=False)
        return flat.astype(np.float64).reshape(len(array), -1)
    factor = 1.0
    if pa.types.is_date(kind):
        array, factor = array.cast(pa.date32()).cast(pa.int32()), 86_400.0
    elif pa.types.is_temporal(kind):
        width = pa.int32() if pa.types.is_time32(kind) else pa.int64()
        array, factor = array.cast(width), _SECONDS[kind.unit]
    elif pa.types.is_decimal(kind):
        return np.array([[np.nan if value is None else float(value)] for value in array.to_pylist()]).reshape(-1, 1)
    floats: Floats = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return (floats * factor).reshape(-1, 1)


def _unit(column: Column, typical: float) -> tuple[str, float]:
    """Name and size of the unit for a column's errors: time in days, hours or seconds, by what the mean misses."""
    if column.kind == "date":
        by_day = column.type.startswith("date") or typical > 2 * 86_400
        return ("days", 86_400.0) if by_day else ("hours", 3_600.0)
    return ("seconds", 1.0) if column.type.startswith(("time", "duration")) else ("", 1.0)
