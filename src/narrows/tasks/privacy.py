"""Whether generated rows are copies: how near each is to its nearest training row, beside what real rows are.

    generated rows --+-> distance to the nearest training row -> copies, near copies
    real rows -------+

What counts as near is told by real rows: a twentieth of them lie nearer to another than some distance, and of generated
rows no more should lie nearer to a training row. This is the common check of synthetic tables, and no proof of privacy:
it sees copies, and not what a row's absence would have changed (see Ganev & De Cristofaro 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from narrows.errors import DataError, SettingError
from narrows.fitted import Model
from narrows.prepare.gathered import Thinned
from narrows.schema import Batch, Schema
from narrows.tasks.generate import Generation

NEAR = 0.05  # share of real rows that are called near to another
MOST = 20_000  # training rows looked at, and
LOOKED = 2_000  # real and generated rows compared with them
CHUNK = 256  # rows whose distances are in memory at once
SAME = 1e-6  # distance below which a row is a copy: what float32 makes of equal cells


@dataclass(frozen=True)
class Privacy:
    """How near generated rows are to training rows.

    Args:
        rows: generated ones that were looked at.
        copies: of them that equal a training row in every cell.
        real_copies: share of real rows that equal another one: of few columns many do.
        near: share of generated rows nearer to a training row than all but a twentieth of real rows are.
        median: distance of a generated row to the nearest training row.
        real_median: the same of a real row to another.
        held: whether the real rows were held out from training; else they are training rows, each beside the others.
    """

    rows: int
    copies: int
    real_copies: float
    near: float
    median: float
    real_median: float
    held: bool

    def __str__(self) -> str:
        what = "held-out rows" if self.held else "training rows beside each other"
        told = f"{self.copies:,} of {self.rows:,} generated rows equal a training row ({self.copies / self.rows:.1%})"
        of_real = f"of {what} {self.real_copies:.1%} equal one"
        near = f"{self.near:.1%} lie nearer to one than all but {NEAR:.0%} of {what}"
        return f"{told}, {of_real}; {near}; median distance {self.median:.3g}, of {what} {self.real_median:.3g}"


def privacy(model: Model, rows: Any, held: Any = None, *, count: int = LOOKED, seed: int = 0) -> Privacy:
    """Compare generated rows with those of training.

    Args:
        model: that generates.
        rows: of training; of more than 20,000 evenly drawn ones are looked at.
        held: rows that took no part in training; without them training rows are compared with the others, which only
            the same number of rows makes a little farther.
        count: generated rows, and real ones, at most.
        seed: of the generated rows.

    Raises:
        SettingError: for less than one row, and a model that cannot generate, or not by single cells.
        DataError: for fewer than two rows.
    """
    if count < 1:
        raise SettingError(f"count={count!r}", "at least 1")
    if not _alone(model.schema):
        raise SettingError("distances between rows of images, series, texts or bags", "rows of single cells")
    training = points(model, _some(model, rows, MOST))
    if len(training) < 2:
        raise DataError(f"{len(training)} training rows to compare with", "at least 2")
    made = Generation(model, seed)
    cells = [made.cells(start) for start in range(0, count, model.block_rows)]
    numbers, codes = (torch.cat(parts)[:count] for parts in zip(*cells, strict=True))
    generated = points(model, Batch(numbers, codes))
    if held is None:
        at = torch.linspace(0, len(training) - 1, min(count, len(training))).long()
        real = nearest(training[at], training, own=at)
    else:
        real = nearest(points(model, _some(model, held, count)), training)
    found = nearest(generated, training)
    limit = float(real.quantile(NEAR))
    nearer = float((found < limit).double().mean()) if limit > SAME else float((found <= SAME).double().mean())
    copies = int((found <= SAME).sum())
    medians = float(found.median()), float(real.median())
    return Privacy(len(found), copies, float((real <= SAME).double().mean()), nearer, *medians, held is not None)


def points(model: Model, batch: Batch) -> Tensor:
    """(B, P) rows as points whose distances, summed over places, are those of Gower (1971).

    A number counts by its share of the range of training, a level as 1 where it differs; what is missing as far from
    all that is there.
    """
    schema, scaling = model.schema, model.preparer.scaling
    raw = scaling.inverse(batch.numbers[:, : schema.dense])
    low, high = (scaling.inverse(end.unsqueeze(0).float())[0] for end in (scaling.low, scaling.high))
    width = (high - low).clamp_min(1e-12)
    seen = batch.mask()
    parts = [torch.where(seen[:, : schema.dense], (raw - low) / width, -1.0)]
    for place, levels in enumerate(schema.levels):
        codes = torch.where(seen[:, schema.numbers + place], batch.codes[:, place], levels + 1)
        parts.append(0.5 * (codes.unsqueeze(1) == torch.arange(min(levels, WIDE) + 2)).double())
    return torch.cat(parts, dim=1).float()


WIDE = 256  # levels told apart: rarer ones are alike


def nearest(rows: Tensor, others: Tensor, own: Tensor | None = None) -> Tensor:
    """(n,) distance of each row to the nearest of others, but for the place that is its own."""
    found = []
    for start in range(0, len(rows), CHUNK):
        distances = torch.cdist(rows[start : start + CHUNK], others, p=1)
        if own is not None:
            here = own[start : start + CHUNK]
            distances[torch.arange(len(here)), here] = torch.inf
        found.append(distances.min(1).values)
    return torch.cat(found).double()


def _alone(schema: Schema) -> bool:
    return not any(column.grid or column.kind == "bag" for column in schema)


def _some(model: Model, rows: Any, most: int) -> Batch:
    thinned = Thinned(most)
    for _, batch in model.batches(rows):
        thinned.add(batch)
    some = thinned.batch()
    if some is None:
        raise DataError("no rows to compare with", "at least 2")
    return some
