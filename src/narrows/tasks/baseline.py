"""The yardstick: PCA with as many components as the model's code has numbers, over the same prepared cells.

It is learnt in one pass from the training rows and kept in the model as the part `baseline`, so that rows evaluated
later are as new to it as they are to the model. Up to 2,048 features (see `features`) it is exact; wider rows get
randomized PCA of an even sample of at most 10,000 rows, fewer where those would take more than 256 MB.

Texts are none of PCA's business: theirs is the unigram, how often each token came in training. Bags have both: PCA of
their counts, read as shares of a bag and mixed with a little of the unigram, so that no item is ruled out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from narrows.errors import ModelFileError
from narrows.fitted import Model, Part
from narrows.schema import Batch, Schema
from narrows.sources.source import Source
from narrows.tasks.features import category_levels, category_places, features, features_of, in_blocks, seen_features
from narrows.tasks.principal import fit_exactly, fit_sample
from narrows.tasks.shares import Unigram, as_shares, by_column, unigram_size

PART = "baseline"
EXACT = 2_048  # features up to which the scatter matrix is kept whole
BLOCK = 8_192  # rows of a float32 product
MIXED = 0.1  # of the unigram in PCA's shares of a bag


@dataclass(frozen=True)
class Baseline:
    """A fitted PCA over the prepared cells of a schema.

    Args:
        schema: of the prepared data.
        mean: (F,) mean of each feature.
        components: (k, F) orthonormal directions.
        origin: which rows it was learnt from, in words.
        unigram: (U,) share of each token of the texts and each item of the bags, column by column; models without
            such columns have none.
    """

    schema: Schema
    mean: Tensor
    components: Tensor
    origin: str
    unigram: Tensor = field(default_factory=lambda: torch.zeros(0))

    @property
    def size(self) -> int:
        """Components."""
        return len(self.components)

    @property
    def lossless(self) -> bool:
        """Whether there are as many components as features, so that nothing is left out."""
        return self.size >= len(self.mean)

    @property
    def shares(self) -> dict[str, Tensor]:
        """The unigrams by column."""
        return by_column(self.schema, self.unigram)

    def cells(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Numbers (B, N) and codes (B, M) as PCA gives the rows back, as `Model.cells` does; tokens are unknown.

        Args:
            batch: rows whose bags are written out.
        """
        centered = features(batch, self.schema) - self.mean
        seen = seen_features(batch, self.schema)
        if seen is not None:
            centered = centered.masked_fill(~seen, 0.0)
        numbers, codes = self._split(self.mean + (centered @ self.components.T) @ self.components)
        for name, unigram in self._bags():
            span = self.schema.spans[name]
            numbers[:, span] = (1 - MIXED) * as_shares(numbers[:, span]) + MIXED * unigram
        return numbers, codes

    def typical(self) -> tuple[Tensor, Tensor]:
        """The one row (1, N), (1, M) that stands for all: mean numbers and shares, most frequent levels and tokens."""
        numbers, codes = self._split(self.mean.unsqueeze(0).clone())
        for column in self.schema:
            span = self.schema.spans[column.name]
            if column.kind == "tokens" and column.cells:
                start = span.start - self.schema.numbers
                codes[:, start : start + column.cells] = self.shares[column.name][: column.levels].argmax()
        for name, unigram in self._bags():
            numbers[:, self.schema.spans[name]] = unigram
        return numbers, codes

    def _bags(self) -> list[tuple[str, Tensor]]:
        return [(name, shares) for name, shares in self.shares.items() if self.schema[name].kind == "bag"]

    def _split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        numbers, hot = values[:, : self.schema.numbers], values[:, self.schema.numbers :]
        codes = torch.tensor(self.schema.levels, dtype=torch.long).expand(len(values), -1).clone()
        if hot.shape[1]:
            parts = torch.split(hot, category_levels(self.schema), dim=1)
            codes[:, category_places(self.schema)] = torch.stack([levels.argmax(1) for levels in parts], dim=1)
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
        _check(part, model.schema, model.code_size)
        return cls(model.schema, origin=origin, **part.tensors)


def baseline_of(model: Model, batch: Batch) -> Baseline:
    """The baseline that a model carries, or one of these rows; for those who have rows at hand, not a source."""
    part = model.parts.get(PART) or learn_baseline(model, iter([batch]))
    _check(part, model.schema, model.code_size)
    return Baseline(model.schema, origin="", **part.tensors)


def learn_baseline(model: Model, batches: Iterator[Batch]) -> Part:
    """The part `baseline`: PCA, and unigrams.

    PCA has as many components as a row uses numbers of the code, fewer where rows or features are.

    Args:
        model: for its schema and the size of its code.
        batches: the training rows, each once, in any order.
    """
    schema = model.schema
    unigram = Unigram(schema)
    fit = fit_exactly if features_of(schema) <= EXACT else fit_sample
    size = model.module.latent.in_use * (model.members or 1)
    rows, mean, components = fit(schema, size, _counted(batches, schema, unigram))
    facts = {"components": len(components), "rows": rows}
    tensors = {"mean": mean.float(), "components": components.float().contiguous()}
    # models of format 1 know neither texts nor bags, and have no unigram
    return Part(facts, tensors | ({"unigram": unigram.shares()} if unigram_size(schema) else {}))


def _counted(batches: Iterator[Batch], schema: Schema, unigram: Unigram) -> Iterator[Batch]:
    """The rows block by block, counted on their way."""
    for block in in_blocks(batches, schema, BLOCK):
        unigram.add(block)
        yield block


def _check(part: Part, schema: Schema, code: int) -> None:
    """Refuse a part that holds anything but what `learn_baseline` gives: finite float32, shares above 0."""
    width, size = features_of(schema), unigram_size(schema)
    shapes = {name: tuple(tensor.shape) for name, tensor in part.tensors.items()}
    rows = shapes.get("components", (code + 1,))[:1]
    wanted = {"mean": (width,), "components": (*rows, width)} | ({"unigram": (size,)} if size else {})
    if shapes != wanted or rows > (code,):
        text = f"a mean of {width:,} features, at most {code} components of as many, and {size:,} shares"
        raise ModelFileError(f"part {PART} of the model with tensors of shapes {shapes}", text)
    for name, tensor in part.tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ModelFileError(f"part {PART} of the model: {name} ({tensor.dtype})", "finite float32 numbers")
    if size and not part.tensors["unigram"].min() > 0:
        raise ModelFileError(f"part {PART} of the model: a unigram with shares of 0 or less", "shares above 0")
