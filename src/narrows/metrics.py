"""Arrays -> numbers: how far guesses lie from the truth, column by column, over the cells that were seen.

Sums come first and are turned into errors last, so that a stream of batches gives the same figures as one large array.
Knows arrays only: nothing of schemas, units or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def squared_errors(truth: Floats, guess: Floats, seen: Mask) -> Floats:
    """(D,) sum of squared differences over the seen rows of each column; `guess` (B, D), or (1, D) for a constant."""
    difference = np.where(seen, truth - guess, 0.0)
    return np.asarray(np.einsum("bd,bd->d", difference, difference))


def wrong(truth: npt.NDArray[np.int64], guess: npt.NDArray[np.int64], seen: Mask) -> npt.NDArray[np.int64]:
    """(D,) seen rows of each column in which the category is another one."""
    return np.asarray(((truth != guess) & seen).sum(0))


@dataclass(frozen=True)
class Spread:
    """Count (D,), mean (D,) and sum of squared deviations from it (D,) of each column's seen cells."""

    count: Floats
    mean: Floats
    squares: Floats

    @classmethod
    def of(cls, values: Floats, seen: Mask) -> Spread:
        """The spread of values (B, D) where `seen` (B, D)."""
        count = seen.sum(0).astype(np.float64)
        mean = np.where(seen, values, 0.0).sum(0) / np.maximum(count, 1.0)
        return cls(count, mean, squared_errors(values, mean[None], seen))

    def __add__(self, other: Spread) -> Spread:
        """The spread of both sets of rows together (Chan, Golub & LeVeque 1983)."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1.0)
        gap = other.mean - self.mean
        squares = self.squares + other.squares + gap**2 * self.count * share
        return Spread(count, self.mean + gap * share, squares)


def root_mean(squares: Floats, count: Floats) -> float:
    """Root mean squared error over all columns' cells; NaN where no cell was seen."""
    cells = float(count.sum())
    return float(np.sqrt(squares.sum() / cells)) if cells else float("nan")


def explained(squares: Floats, spread: Spread) -> float:
    """R2 over all columns' cells, each column weighing as much as it varies; NaN where no cell was seen.

    As in scikit-learn, cells that never vary give 1 when they are met exactly and 0 otherwise, never infinity.
    """
    if not spread.count.sum():
        return float("nan")
    error, total = float(squares.sum()), float(spread.squares.sum())
    return 1.0 - error / total if total > 0 else float(error == 0)


def bits(nats: float, tokens: int) -> float:
    """Bits a token, of what all of them cost in nats; NaN where there were none."""
    return nats / log(2) / tokens if tokens else float("nan")


def perplexity(nats: float, items: float) -> float:
    """Perplexity an item: among how many equally likely items each was, as it were; NaN where there were none.

    Args:
        nats: minus the sum of counts times log shares.
        items: sum of the counts.
    """
    return exp(min(nats / items, 700.0)) if items > 0 else float("nan")
