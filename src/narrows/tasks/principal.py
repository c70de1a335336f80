"""Principal components of rows that come in blocks: exact where they are few features, else of a sample.

Exact is the eigenvectors of the scatter matrix: products in float32 block by block, added up in float64. Where such a
matrix is out of reason, an even sample of rows goes through randomized PCA (Halko, Martinsson & Tropp 2011), with the
mean taken off in the products, so that bags stay sparse. Holes are filled with the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from narrows.schema import Batch, Schema
from narrows.tasks.features import features, features_of, hot_categories, seen_features
from narrows.tasks.keep import Keep

SAMPLE = 10_000  # rows for randomized PCA
VALUES = 2**26  # numbers that such a sample may have, bags aside
SPARE, ROUNDS = 10, 4  # of randomized PCA: directions beside those asked for, and rounds that sharpen them

Floats = npt.NDArray[np.float32]
Found = tuple[int, Tensor, Tensor]


@dataclass(frozen=True)
class Moments:
    """Sums over rows from which the scatter of mean-filled rows follows exactly, whatever cells are missing.

    Args:
        rows: how many.
        count: (F,) rows in which the feature was seen.
        mean: (F,) over those.
        scatter: (F, F) sums of products of deviations, 0 where unseen.
        cross: (F, F) sums of deviations of i where j was seen.
        pairs: (F, F) rows in which both were seen.
    """

    rows: int
    count: Tensor
    mean: Tensor
    scatter: Tensor
    cross: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, values: Tensor, seen: Tensor | None) -> Moments:
        """The moments of (B, F) values."""
        rows, width = values.shape
        if seen is None:
            mean = values.mean(0, dtype=torch.float64)
            deviations = values - mean.float()
            count = torch.full((width,), float(rows), dtype=torch.float64)
            nothing, whole = torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), float(rows)).double()
            scatter = (deviations.T @ deviations).double()
            return cls(rows, count, mean, scatter, nothing.expand(width, width), whole.expand(width, width))
        count = seen.sum(0).double()
        mean = values.masked_fill(~seen, 0.0).sum(0, dtype=torch.float64) / count.clamp(min=1.0)
        deviations, flags = (values - mean.float()).masked_fill(~seen, 0.0), seen.float()
        products = [deviations.T @ deviations, deviations.T @ flags, flags.T @ flags]
        return cls(rows, count, mean, *(product.double() for product in products))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count.clamp(min=1.0)
        sums = [a + b for a, b in zip(self._around(mean), other._around(mean), strict=True)]
        return Moments(self.rows + other.rows, count, mean, *sums)

    def _around(self, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three sums with deviations taken from another mean."""
        shift = self.mean - mean
        tilt = self.cross * shift
        scatter = self.scatter + tilt + tilt.T + torch.outer(shift, shift) * self.pairs
        return scatter, self.cross + shift.unsqueeze(1) * self.pairs, self.pairs


def fit_exactly(schema: Schema, size: int, blocks: Iterator[Batch]) -> Found:
    """Rows, mean (F,) and components (k, F) from the eigenvectors of the scatter matrix.

    Args:
        schema: of the rows.
        size: components wanted; k is less where there are fewer rows or features.
        blocks: all rows, some at a time.
    """
    total: Moments | None = None
    for block in blocks:
        rows = block.dense()
        moments = Moments.of(features(rows, schema), seen_features(rows, schema))
        total = moments if total is None else total + moments
    if total is None or not len(total.mean):
        return 0 if total is None else total.rows, torch.zeros(features_of(schema)), torch.zeros(0, features_of(schema))
    vectors = torch.linalg.eigh(total.scatter).eigenvectors
    return total.rows, total.mean, vectors.flip(1)[:, : min(size, total.rows)].T


def fit_sample(schema: Schema, size: int, blocks: Iterator[Batch]) -> Found:
    """The same by randomized PCA of an even sample."""
    draws = torch.Generator().manual_seed(0)
    bags = schema.numbers - schema.dense
    kept = Keep(max(min(SAMPLE, VALUES // max(1, features_of(schema) - bags)), 4 * size))
    for block in blocks:
        kept.offer(torch.rand(len(block), generator=draws, dtype=torch.float64), {}, block)
    width = features_of(schema)
    if kept.batch is None:
        return 0, torch.zeros(width), torch.zeros(0, width)
    values, mean = _sampled(kept.batch, schema)
    return len(kept.batch), torch.from_numpy(mean), torch.from_numpy(principal(values, mean, size))


def _sampled(batch: Batch, schema: Schema) -> tuple[Any, Floats]:
    """(n, F) features with holes filled, as an array or, where there are bags, a sparse one; and their mean (F,)."""
    at = batch.numbers.shape[1]
    values = torch.cat([batch.numbers, hot_categories(batch, schema)], dim=1)
    seen = seen_features(batch, schema)
    mean = values.mean(0)
    if seen is not None:
        mean = values.masked_fill(~seen, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        values = torch.where(seen, values, mean)
    if batch.sparse is None:
        return values.numpy(), mean.numpy()
    from scipy import sparse

    bags = batch.sparse
    parts = (bags.values.numpy(), bags.cells.numpy(), bags.offsets.numpy())
    counts = sparse.csr_array(parts, shape=(len(bags), bags.width))
    dense = [sparse.csr_array(part.numpy()) for part in (values[:, :at], values[:, at:])]
    joined = sparse.hstack([dense[0], counts, dense[1]], format="csr")
    middle = np.asarray(counts.sum(axis=0), dtype=np.float32) / len(bags)
    return joined, np.concatenate([mean[:at].numpy(), middle, mean[at:].numpy()])


def principal(values: Any, mean: Floats, size: int) -> Floats:
    """(k, F) the first principal directions of rows, by randomized subspace iteration.

    Args:
        values: (n, F) array or SciPy sparse array.
        mean: (F,) taken off every row.
        size: k, at most n and F.
    """
    rows, width = values.shape
    directions = min(size + SPARE, rows, width)

    def down(basis: Floats) -> Floats:
        return np.asarray(values @ basis - mean @ basis)

    def up(left: Floats) -> Floats:
        return np.asarray(values.T @ left - np.outer(mean, left.sum(0)))

    left = np.random.default_rng(0).standard_normal((rows, directions), dtype=np.float32)
    for _ in range(ROUNDS):
        basis = np.linalg.qr(up(left))[0]
        left = np.linalg.qr(down(basis))[0]
    basis = np.linalg.qr(up(left))[0]
    turn = np.linalg.svd(down(basis), full_matrices=False)[2]
    return np.ascontiguousarray((basis @ turn.T)[:, : min(size, rows, width)].T, dtype=np.float32)
