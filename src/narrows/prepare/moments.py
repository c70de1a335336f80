"""Running moments of blocks of numbers, and a sample of rows for quantiles: two summaries that merge.

Counts, minima, maxima and the sampled rows come out the same however the rows are cut and in whatever order they
come; means and variances to rounding (Chan, Golub and LeVeque 1983). Quantiles are those of the sampled rows, the k
whose ids hash lowest (a bottom-k sample), so they are off by about 1/sqrt(k) in rank: 1 % for 10,000 rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from narrows.prepare.abreast import abreast
from narrows.prepare.arrow import Cells, Floats
from narrows.sources.split import mix64

BLOCK_CELLS = 1 << 18  # cells whose moments are taken at once: what fits a processor's cache


@dataclass
class Moments:
    """Count, mean, spread and range of each of a column's c cells; missing values are left out.

    Args:
        count: (c,) values that were there.
        mean: (c,) of these; 0 without any.
        m2: (c,) sum of squared distances from the mean.
        low: (c,) least value; NaN without any.
        high: (c,) greatest value; NaN without any.
        whole: (c,) whether all values are integers.
    """

    count: npt.NDArray[np.int64]
    mean: Floats
    m2: Floats
    low: Floats
    high: Floats
    whole: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, cells: int) -> Moments:
        """Of no rows."""
        zeros, unknown = np.zeros(cells), np.full(cells, np.nan)
        return cls(np.zeros(cells, np.int64), zeros, zeros, unknown, unknown, np.ones(cells, np.bool_))

    @classmethod
    def of(cls, block: Cells) -> Moments:
        """Of one block (B, c) of cells, NaN where missing."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = block.astype(np.float64)
            low, high = np.fmin.reduce(values, axis=0), np.fmax.reduce(values, axis=0)
            missing = np.isnan(values) if block.dtype.kind == "f" else np.zeros((1, 1), np.bool_)
            holes = bool(missing.any())
            count = len(block) - missing.sum(axis=0) if holes else np.full(block.shape[1], len(block))
            if holes:
                values[missing] = 0
            mean = values.sum(axis=0) / np.maximum(count, 1)
            whole = (
                np.ones(block.shape[1], np.bool_)
                if block.dtype.kind in "iu"
                else (values == np.rint(values)).all(axis=0)
            )
            values -= mean
            if holes:
                values[missing] = 0
            return cls(count, mean, np.einsum("ij,ij->j", values, values), low, high, whole)

    def update(self, block: Cells) -> None:
        """Adds a block (B, c) of cells."""
        step = max(1, BLOCK_CELLS // max(1, block.shape[1]))
        for part in abreast(Moments.of, [block[start : start + step] for start in range(0, len(block), step)]):
            self.merge(part)

    def merge(self, other: Moments) -> None:
        """Adds what another part of the rows held."""
        total = self.count + other.count
        with np.errstate(over="ignore", invalid="ignore"):
            apart = other.mean - self.mean
            share = other.count / np.maximum(total, 1)
            self.m2 = self.m2 + other.m2 + apart * apart * self.count * share
            self.mean = self.mean + apart * share
        self.count = total
        self.low, self.high = np.fmin(self.low, other.low), np.fmax(self.high, other.high)
        self.whole = self.whole & other.whole

    def first(self, cells: int) -> Moments:
        """Of the first cells alone."""
        return Moments(**{name: values[:cells] for name, values in vars(self).items()})

    def split(self, cells: int) -> tuple[Moments, Moments]:
        """Of the first cells, and of the others."""
        return self.first(cells), Moments(**{name: values[cells:] for name, values in vars(self).items()})

    def pooled(self, groups: int) -> Moments:
        """Of groups of cells taken together: cell i belongs to group i % groups, as the channels of series do."""
        count, mean, m2, low, high, whole = (values.reshape(-1, groups) for values in vars(self).values())
        total = count.sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            center = (mean * (count / np.maximum(total, 1))).sum(axis=0)
            spread = (m2 + count * (mean - center) ** 2).sum(axis=0)
        return Moments(total, center, spread, np.fmin.reduce(low), np.fmax.reduce(high), whole.all(axis=0))

    @property
    def deviation(self) -> Floats:
        """(c,) standard deviation, over n."""
        return np.asarray(np.sqrt(self.m2 / np.maximum(self.count, 1)))


@dataclass
class Sample:
    """The rows whose ids hash lowest, with their cells: a uniform sample that is the same in every order and merge.

    Args:
        size: most rows to keep.
        names: columns whose cells are kept.
    """

    size: int
    names: list[str]
    _hashes: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    _cells: dict[str, list[Cells]] = field(default_factory=dict)
    _limit: int = 2**64 - 1
    _trimmed: bool = True

    def update(self, ids: npt.NDArray[np.int64], blocks: dict[str, Cells]) -> None:
        """Offers rows with these ids."""
        hashes = mix64(ids, 0)
        chosen = np.flatnonzero(hashes <= np.uint64(self._limit))
        if len(chosen):
            self._add(hashes[chosen], {name: blocks[name][chosen] for name in self.names})

    def merge(self, other: Sample) -> None:
        """Adds what another part of the rows held."""
        for i, hashes in enumerate(other._hashes):
            self._add(hashes, {name: other._cells[name][i] for name in self.names})

    def _add(self, hashes: npt.NDArray[np.uint64], cells: dict[str, Cells]) -> None:
        self._hashes.append(hashes)
        self._trimmed = False
        for name in self.names:
            self._cells.setdefault(name, []).append(cells[name])
        if sum(map(len, self._hashes)) > 2 * self.size:
            self._trim()

    def _trim(self) -> None:
        hashes = np.concatenate(self._hashes)
        order = np.argsort(hashes)[: self.size]
        self._hashes = [hashes[order]]
        self._cells = {name: [np.concatenate(parts)[order]] for name, parts in self._cells.items()}
        if len(order) == self.size:
            self._limit = int(self._hashes[0][-1])
        self._trimmed = True

    def cells(self, name: str) -> Cells:
        """(k, c) sampled cells of a column, NaN where missing."""
        if not self._trimmed:
            self._trim()
        return self._cells[name][0]
