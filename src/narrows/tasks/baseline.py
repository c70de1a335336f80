"""The yardstick: PCA with as many components as the model's code has numbers, over the same prepared cells.

It is learnt in one pass from the training rows and kept in the model as the part `baseline`, so that rows evaluated
later are as new to it as they are to the model. What PCA sees of a row: its numbers, then every category one-hot over
its known levels, holes filled with the mean. Up to 2,048 such features it is exact: products in float32 block by block,
added up in float64. Wider rows would need matrices beyond reason: they get randomized PCA (Halko, Martinsson & Tropp
2011) of an even sample of at most 10,000 rows, fewer where those would take more than 256 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from narrows.errors import ModelFileError
from narrows.fitted import Model, Part
from narrows.model.embed import one_hot
from narrows.schema import Batch, Schema
from narrows.sources.source import Source
from narrows.tasks.keep import Keep

PART = "baseline"
EXACT = 2_048  # features up to which the scatter matrix is kept whole
SAMPLE = 10_000  # rows for randomized PCA beyond
VALUES = 2**26  # numbers that such a sample may have
BLOCK = 8_192  # rows of a float32 product


@dataclass(frozen=True)
class Baseline:
    """A fitted PCA over the prepared cells of a schema.

    Args:
        schema: of the prepared data.
        mean: (F,) mean of each feature.
        components: (k, F) orthonormal directions.
        origin: which rows it was learnt from, in words.
    """

    schema: Schema
    mean: Tensor
    components: Tensor
    origin: str

    @property
    def size(self) -> int:
        """Components."""
        return len(self.components)

    @property
    def lossless(self) -> bool:
        """Whether there are as many components as features, so that nothing is left out."""
        return self.size >= len(self.mean)

    def cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Numbers (B, N) and codes (B, M) as PCA gives the rows back, as `Model.cells` does."""
        centered = features(batch, self.schema) - self.mean
        seen = seen_features(batch, self.schema)
        if seen is not None:
            centered = centered.masked_fill(~seen, 0.0)
        return self._split(self.mean + (centered @ self.components.T) @ self.components)

    def typical(self) -> tuple[Tensor, Tensor]:
        """The one row (1, N), (1, M) that stands for all: mean numbers, most frequent levels."""
        return self._split(self.mean.unsqueeze(0))

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        numbers, hot = values[:, : self.schema.numbers], values[:, self.schema.numbers :]
        modes = (
            [levels.argmax(1) for levels in torch.split(hot, list(self.schema.levels), dim=1)] if hot.shape[1] else []
        )
        codes = torch.stack(modes, dim=1) if modes else torch.zeros(len(values), 0, dtype=torch.long)
        return numbers, codes

    @classmethod
    def of(cls, model: Model, source: Source) -> Baseline:
        """The baseline that a model carries; for a model without, one learnt from the rows of `source`.

        Raises:
            ModelFileError: for a part that is no PCA of rows like the model's.
        """
        part, origin = model.parts.get(PART), "the training rows"
        if part is None:
            part = learn_baseline(model, (batch for _, batch in model.batches(source)))
            origin = "the evaluated rows"
        _check(part, features_of(model.schema), model.code_size)
        return cls(model.schema, part.tensors["mean"], part.tensors["components"], origin)


def learn_baseline(model: Model, batches: Iterator[Batch]) -> Part:
    """The part `baseline`: PCA of `model.code_size` components, fewer where rows or features are.

    Args:
        model: for its schema and the size of its code.
        batches: the training rows, each once, in any order.
    """
    schema = model.schema
    width = features_of(schema)
    blocks = (batch[start : start + BLOCK] for batch in batches for start in range(0, len(batch), BLOCK))
    fit = _fit_exactly if width <= EXACT else _fit_sample
    rows, mean, components = fit(schema, width, model.code_size, blocks)
    facts = {"components": len(components), "rows": rows}
    return Part(facts, {"mean": mean.float(), "components": components.float().contiguous()})


def _check(part: Part, width: int, code: int) -> None:
    """Refuse a part that holds anything but a mean (F,) and at most `code` components (k, F), finite float32."""
    shapes = {name: tuple(tensor.shape) for name, tensor in part.tensors.items()}
    rows = shapes.get("components", (code + 1,))[:1]
    if shapes != {"mean": (width,), "components": (*rows, width)} or rows > (code,):
        wanted = f"a mean of {width:,} features, and at most {code} components of as many"
        raise ModelFileError(f"part {PART} of the model with tensors of shapes {shapes}", wanted)
    for name, tensor in part.tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ModelFileError(f"part {PART} of the model: {name} ({tensor.dtype})", "finite float32 numbers")


def features_of(schema: Schema) -> int:
    """F, what PCA sees of a row: its numbers, and a feature for each known level."""
    return schema.numbers + sum(schema.levels)


def features(batch: Batch, schema: Schema) -> Tensor:
    """(B, F) numbers, then each category one-hot; a level that is not known is no level at all."""
    if not schema.levels:
        return batch.numbers
    sizes = torch.tensor(schema.levels)
    known = batch.codes < sizes
    if batch.seen is not None:
        known = known & batch.seen[:, schema.numbers :]
    hot = one_hot(batch.codes, known, sizes.cumsum(0) - sizes, sum(schema.levels))
    return torch.cat([batch.numbers, hot], dim=1)


def seen_features(batch: Batch, schema: Schema) -> Tensor | None:
    """(B, F) which features were seen; None where all were."""
    if batch.seen is None or bool(batch.seen.all()):
        return None
    levels = torch.tensor(schema.levels, dtype=torch.long)
    numbers, codes = batch.seen[:, : schema.numbers], batch.seen[:, schema.numbers :]
    return torch.cat([numbers, codes.repeat_interleave(levels, dim=1)], dim=1)


@dataclass(frozen=True)
class _Moments:
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
    def of(cls, values: Tensor, seen: Tensor | None) -> _Moments:
        """The moments of (B, F) values."""
        rows, width = values.shape
        if seen is None:
            mean = values.mean(0, dtype=torch.float64)
            deviations = values - mean.float()
            count = torch.full((width,), float(rows), dtype=torch.float64)
            nothing, whole = torch.zeros(1, 1, dtype=torch.float64), count[:1, None]
            scatter = (deviations.T @ deviations).double()
            return cls(rows, count, mean, scatter, nothing.expand(width, width), whole.expand(width, width))
        count = seen.sum(0).double()
        mean = values.masked_fill(~seen, 0.0).sum(0, dtype=torch.float64) / count.clamp(min=1.0)
        deviations, flags = (values - mean.float()).masked_fill(~seen, 0.0), seen.float()
        products = [deviations.T @ deviations, deviations.T @ flags, flags.T @ flags]
        return cls(rows, count, mean, *(product.double() for product in products))

    def __add__(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count.clamp(min=1.0)
        sums = [a + b for a, b in zip(self._around(mean), other._around(mean), strict=True)]
        return _Moments(self.rows + other.rows, count, mean, *sums)

    def _around(self, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three sums with deviations taken from another mean."""
        shift = self.mean - mean
        tilt = self.cross * shift
        scatter = self.scatter + tilt + tilt.T + torch.outer(shift, shift) * self.pairs
        return scatter, self.cross + shift.unsqueeze(1) * self.pairs, self.pairs


def _fit_exactly(schema: Schema, width: int, size: int, blocks: Iterator[Batch]) -> tuple[int, Tensor, Tensor]:
    """Rows, mean (F,) and components (k, F) from the eigenvectors of the scatter matrix."""
    total: _Moments | None = None
    for block in blocks:
        moments = _Moments.of(features(block, schema), seen_features(block, schema))
        total = moments if total is None else total + moments
    if total is None:
        return 0, torch.zeros(width), torch.zeros(0, width)
    vectors = torch.linalg.eigh(total.scatter).eigenvectors
    return total.rows, total.mean, vectors.flip(1)[:, : min(size, total.rows)].T


def _fit_sample(schema: Schema, width: int, size: int, blocks: Iterator[Batch]) -> tuple[int, Tensor, Tensor]:
    """The same by randomized PCA of an even sample."""
    from sklearn.decomposition import PCA

    draws = torch.Generator().manual_seed(0)
    kept = Keep(max(min(SAMPLE, VALUES // width), 4 * size))
    for block in blocks:
        keys = torch.rand(len(block), generator=draws, dtype=torch.float64)
        kept.offer(keys, {"numbers": block.numbers, "codes": block.codes, "seen": block.mask()})
    if not kept.rows:
        return 0, torch.zeros(width), torch.zeros(0, width)
    sample = Batch(kept.rows["numbers"], kept.rows["codes"], kept.rows["seen"])
    values, seen = features(sample, schema), seen_features(sample, schema)
    if seen is not None:
        mean = values.masked_fill(~seen, 0.0).sum(0) / seen.sum(0).clamp(min=1)
        values = torch.where(seen, values, mean)
    pca = PCA(min(size, *values.shape), svd_solver="randomized", random_state=0).fit(values.numpy())
    as_tensor = [torch.from_numpy(np.asarray(array)) for array in (pca.mean_, pca.components_)]
    return len(sample), as_tensor[0], as_tensor[1]
