"""What a page shows of the rows: an even sample, and the rows that fit worst. One pass, in bounded memory.

The sample depends on the seed and the order of the rows alone, not on how they come in batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from narrows.errors import DataError
from narrows.fitted import Model
from narrows.schema import Batch
from narrows.sources.source import Source
from narrows.tasks.baseline import Baseline
from narrows.tasks.features import in_blocks
from narrows.tasks.keep import Keep

BLOCK = 4_096
NUMBERS, LARGEST = 6, 9  # of the code, and rows of each in which it is largest
FAINT = 0.1  # of the largest spread: numbers that vary less are hardly used
POINTS = 2_000  # codes on the map: more would hide each other


@dataclass(frozen=True)
class Seen:
    """Some rows, three times.

    Args:
        index: (n,) position of each row in the data.
        truth: the prepared rows, bags written out.
        model: number cells (n, N) and codes (n, M) as the model gives them back.
        pca: as the baseline gives them back.
        costs: (n, C + terms) what each cell and term cost.
        excess: (n, C + terms) the same beyond what it costs on average over all rows.
    """

    index: Tensor
    truth: Batch
    model: tuple[Tensor, Tensor]
    pca: tuple[Tensor, Tensor]
    costs: Tensor
    excess: Tensor

    @property
    def score(self) -> Tensor:
        """(n,) what each row cost."""
        return self.costs.sum(1)


@dataclass(frozen=True)
class Activating:
    """The rows in which a number of the code is largest.

    Args:
        number: of the code.
        values: (n,) it takes, largest first.
        rows: the prepared rows.
    """

    number: int
    values: Tensor
    rows: Batch


@dataclass(frozen=True)
class Gathered:
    """What the page shows.

    Args:
        rows: in all.
        codes: (n, code_size) of an even sample of at most 2,000 rows.
        scores: (n,) of the same rows.
        sample: a few of them.
        worst: the rows of the highest scores, worst first.
        activating: for the numbers of the code that vary most, the rows in which they are largest.
    """

    rows: int
    codes: Tensor
    scores: Tensor
    sample: Seen
    worst: Seen
    activating: list[Activating] = field(default_factory=list)


def gather(model: Model, baseline: Baseline, source: Source, shown: int, worst: int) -> Gathered:
    """One pass over a source.

    Args:
        model: gives codes and costs.
        baseline: gives rows to lay beside the model's.
        source: of the rows.
        shown: rows in the small sample.
        worst: rows of the highest scores.
    """
    points, few, bad = Keep(POINTS), Keep(shown), Keep(worst)
    draws = torch.Generator().manual_seed(0)
    most: dict[int, Keep] = {}
    rows, costs_sum = 0, torch.zeros(0, dtype=torch.float64)
    for batch in in_blocks((batch for _, batch in model.batches(source)), model.schema, BLOCK):
        codes, costs = model.codes(batch), model.costs(batch)
        scores, keys = costs.sum(1), torch.rand(len(batch), generator=draws, dtype=torch.float64)
        entire = {"index": torch.arange(rows, rows + len(batch)), "costs": costs}
        points.offer(keys, {"code": codes, "score": scores})
        few.offer(keys, entire, batch)
        bad.offer(scores, entire, batch)
        most = most or {number: Keep(LARGEST) for number in _varying(model, codes)}
        for number, keep in most.items():
            keep.offer(codes[:, number], {"value": codes[:, number]}, batch)
        rows += len(batch)
        costs_sum = costs.sum(0, dtype=torch.float64) + (costs_sum if len(costs_sum) else 0.0)
    mean = (costs_sum / rows).float()
    sample, worst_rows = (_seen(model, baseline, kept, mean) for kept in (few, bad))
    activating = [_activating(number, keep, points.rows["code"][:, number]) for number, keep in most.items()]
    found = [each for each in activating if each is not None]
    return Gathered(rows, points.rows["code"], points.rows["score"], sample, worst_rows, found)


def _varying(model: Model, codes: Tensor) -> list[int]:
    """The numbers of the code that vary most in the first block; none of discrete codes, and of several networks'."""
    if model.members or model.module.latent.symbols or len(codes) < 2:
        return []
    spread = codes.std(0)
    return [i for i in spread.argsort(descending=True).tolist()[:NUMBERS] if spread[i] > FAINT * spread.max()]


def _activating(number: int, keep: Keep, usual: Tensor) -> Activating | None:
    """What was kept for a number, as far as it is more than usual; None for a single row."""
    values = keep.rows["value"]
    more = values > usual.median()
    if keep.batch is None or int(more.sum()) < 2:
        return None
    return Activating(number, values[more], keep.batch[more])


def _seen(model: Model, baseline: Baseline, kept: Keep, mean: Tensor) -> Seen:
    if kept.batch is None:
        raise DataError("no rows", "at least one row to show")
    truth, costs = kept.batch.dense(), kept.rows["costs"]
    # an unseen cell costs nothing, which is no merit
    hidden = torch.zeros_like(costs, dtype=torch.bool)
    hidden[:, : model.schema.cells] = ~truth.mask()
    excess = (costs - mean).masked_fill(hidden, 0.0)
    return Seen(kept.rows["index"], truth, model.cells(model.codes(truth)), baseline.cells(truth), costs, excess)
