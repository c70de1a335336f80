"""What PCA sees of a row: its numbers, bags included, then every category one-hot over its known levels.

Tokens of texts are left out: one-hot, a text of 500 characters would be tens of thousands of features, and PCA of them
no yardstick for anything; of a category with many levels it sees the first 256, which are the most frequent. Bags are
sparse until here, and are written out some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from narrows.fitted import BLOCK as PASS
from narrows.model.embed import one_hot
from narrows.schema import Batch, Schema

MOST = 256  # levels of a category that are features
CELLS = 2**23  # of a block: 32 MB where all of them are numbers, and there are several such at a time


def in_blocks(batches: Iterable[Batch], schema: Schema, rows: int) -> Iterator[Batch]:
    """The rows of all batches in order, so few at a time that all their cells and features can be written out.

    Args:
        batches: of any size; small ones are joined, since a model pads every block to a whole pass.
        schema: of the rows.
        rows: at most.
    """
    step = at_once(schema, rows)
    waiting: list[Batch] = []
    for batch in batches:
        for start in range(0, len(batch), step):
            part = batch[start : start + step]
            if sum(map(len, waiting)) + len(part) > step:
                yield _joined(waiting)
                waiting = []
            waiting.append(part)
    if waiting:
        yield _joined(waiting)


def at_once(schema: Schema, rows: int) -> int:
    """How many rows, but no more than `rows`, have cells and features that can all be written out at a time."""
    step = max(1, min(rows, CELLS // max(schema.cells, features_of(schema), 1)))
    return step // PASS * PASS or step


def _joined(batches: list[Batch]) -> Batch:
    return batches[0] if len(batches) == 1 else Batch.concat(batches)


def category_levels(schema: Schema) -> list[int]:
    """Levels of each category that are features: the known ones, or the first of many."""
    told = [column for column in schema if column.categorical and column.kind != "tokens"]
    return [min(column.levels, MOST) if column.classes else column.levels for column in told]


def category_places(schema: Schema) -> Tensor:
    """Which of the M codes are categories, not tokens of a text."""
    columns = [column for column in schema if column.categorical and column.kind != "tokens"]
    return torch.tensor([schema.spans[column.name].start - schema.numbers for column in columns], dtype=torch.long)


def features_of(schema: Schema) -> int:
    """F, the features of a row: a number cell is one, and so is each known level of a category."""
    return schema.numbers + sum(category_levels(schema))


def hot_categories(batch: Batch, schema: Schema) -> Tensor:
    """(B, known levels) each category one-hot; a level that is not known is no level at all."""
    places, sizes = category_places(schema), torch.tensor(category_levels(schema), dtype=torch.long)
    codes = batch.codes[:, places]
    known = codes < sizes
    if batch.seen is not None:
        known = known & batch.seen[:, _codes_from(batch) :][:, places]
    return one_hot(codes, known, sizes.cumsum(0) - sizes, int(sizes.sum()))


def features(batch: Batch, schema: Schema) -> Tensor:
    """(B, F) features of rows whose bags are written out."""
    if not category_levels(schema):
        return batch.numbers
    return torch.cat([batch.numbers, hot_categories(batch, schema)], dim=1)


def seen_features(batch: Batch, schema: Schema) -> Tensor | None:
    """(B, F) which features were seen; None where all were. Of a batch with sparse bags, those of the other columns."""
    if batch.seen is None or bool(batch.seen.all()):
        return None
    levels = torch.tensor(category_levels(schema), dtype=torch.long)
    start = _codes_from(batch)
    numbers, codes = batch.seen[:, :start], batch.seen[:, start:][:, category_places(schema)]
    return torch.cat([numbers, codes.repeat_interleave(levels, dim=1)], dim=1)


def _codes_from(batch: Batch) -> int:
    """Where the codes begin in `seen`: behind the numbers that the batch holds densely."""
    return batch.numbers.shape[1]
