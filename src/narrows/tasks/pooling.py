"""Estimates from completed tables, pooled: what is known of a figure when some of its cells were drawn.

    draws -> an estimate and its variance for each completed table -> one estimate, and an interval that is wider
             where more was missing

Rubin (1987), with the degrees of freedom of Barnard & Rubin (1999), which few rows do not overstate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table
from scipy import stats

from narrows.errors import SettingError
from narrows.tasks.impute import DRAW


@dataclass(frozen=True)
class Pooled:
    """An estimate from several completed tables.

    Args:
        estimate: the mean of the tables' own.
        error: its standard error.
        low: of the interval.
        high: of the interval.
        freedom: degrees of freedom of the interval's t distribution; infinite where draws agree and rows are many.
        unknown: share of the variance that is due to what was missing.
    """

    estimate: float
    error: float
    low: float
    high: float
    freedom: float
    unknown: float

    @classmethod
    def of(cls, estimates: list[float], variances: list[float], share: float = 0.95, complete: float = inf) -> Pooled:
        """Pool the estimates of some tables.

        Args:
            estimates: one for each table, at least two.
            variances: squared standard error of each.
            share: of the interval.
            complete: degrees of freedom that the estimate would have without holes: rows less parameters.

        Raises:
            SettingError: for fewer than two tables, or not as many variances.
        """
        count = len(estimates)
        if count < 2 or len(variances) != count:
            raise SettingError(f"{count} estimates with {len(variances)} variances", "two or more, as many of each")
        center, within = float(np.mean(estimates)), float(np.mean(variances))
        between = float(np.var(estimates, ddof=1))
        total = within + (1 + 1 / count) * between
        unknown = (1 + 1 / count) * between / total if total > 0 else 0.0
        freedom = (count - 1) / unknown**2 if unknown > 0 else inf
        if complete < inf:
            observed = (complete + 1) / (complete + 3) * complete * (1 - unknown)
            freedom = 1 / (1 / freedom + 1 / max(observed, 1e-9))
        reach = float(stats.t.ppf((1 + share) / 2, max(freedom, 1e-3))) if total > 0 else 0.0
        error = sqrt(total)
        return cls(center, error, center - reach * error, center + reach * error, freedom, unknown)


def pooled_means(table: pa.Table, share: float = 0.95) -> dict[str, Pooled]:
    """The mean of every column of numbers, pooled over draws.

    Args:
        table: as `impute(..., draws=5)` gives it, with at least two draws.
        share: of the intervals.

    Raises:
        SettingError: for a table without a column `draw`, or of fewer than two draws.
    """
    if DRAW not in table.column_names:
        raise SettingError("a table without a column `draw`", "what impute(model, rows, draws=5) gives")
    numbers = [f.name for f in table.schema if f.name != DRAW and _is_number(f.type)]
    parts = [table.filter(pc.equal(table.column(DRAW), number)) for number in table.column(DRAW).unique().to_pylist()]
    means = Means(numbers)
    for number, part in enumerate(parts):
        for batch in part.to_batches():
            means.add(number, batch)
    return means.pooled(share)


class Means:
    """Sums of the columns of numbers of completed tables, as they stream by.

    Args:
        columns: whose means are wanted.
    """

    def __init__(self, columns: list[str]) -> None:
        self.columns = columns
        self._sums: dict[int, np.ndarray] = {}

    def add(self, number: int, rows: pa.RecordBatch) -> None:
        """Some rows of a table."""
        cells = [rows.column(name).to_numpy(zero_copy_only=False).astype(np.float64) for name in self.columns]
        block = np.stack(cells, axis=1) if cells else np.zeros((len(rows), 0))
        found = np.stack([np.full(block.shape[1], float(len(block))), block.sum(0), (block**2).sum(0)])
        self._sums[number] = self._sums.get(number, 0.0) + found

    def pooled(self, share: float = 0.95) -> dict[str, Pooled]:
        """Of each column.

        Raises:
            SettingError: for fewer than two tables.
        """
        answers = {}
        for place, name in enumerate(self.columns):
            counts, sums, squares = (np.array([s[row, place] for s in self._sums.values()]) for row in range(3))
            means = sums / counts
            spread = np.maximum(squares / counts - means**2, 0) * counts / np.maximum(counts - 1, 1)
            answers[name] = Pooled.of(list(means), list(spread / counts), share, float(counts[0]) - 1)
        return answers


def means_table(means: Mapping[str, Pooled]) -> Table:
    """Pooled means, a line a column."""
    table = Table("column", "mean", "standard error", "95 % from", "to", "unknown", title="means over the draws")
    for name, mean in means.items():
        figures = (mean.estimate, mean.error, mean.low, mean.high)
        table.add_row(name, *(f"{figure:.6g}" for figure in figures), f"{mean.unknown:.1%}")
    return table


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
