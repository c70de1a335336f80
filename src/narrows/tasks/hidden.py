"""What imputing learns from hidden cells: how much a normal distribution counts, and how wide intervals must be.

    rows held out -> some cells hidden -> what network and normal distribution say of them -> `normal`, `intervals`

What this file does not know: what is done with holes (see `narrows.tasks.holes`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from narrows.fitted import Model, Part
from narrows.model.corruptions import Hiding
from narrows.schema import Batch
from narrows.tasks.holes import TINY, Beside, Features, Holes
from narrows.tasks.intervals import widened
from narrows.tasks.normal import Normal
from narrows.train.randomness import kept, seed_step

LEAST = 0.02  # weight below which the normal distribution is not worth asking
PRIOR = 20.0  # hidden cells that the weight of all cells counts for, beside a cell's own
ROUNDS = 50  # of the weights
MOST_LEARNT, MOST_JUDGED = 20_000, 4_096  # rows that the normal distribution and its weights are learnt from
MOST_VIEWS = 8  # of each of few rows
HOLED, MORE = 0.01, 0.15  # share of cells missing from which rows count as having holes, and share hidden on top


def learn_normal(model: Model, batches: Any) -> Part:
    """The part `normal`: mean and covariance, and what they weigh beside the network for each number cell.

    Weights are the shares of a mixture (Jacobs et al. 1991) under which cells hidden from both are most probable; those
    of cells with little to learn from lean on the weight of all. Nothing is kept where the network needs no help.

    Args:
        model: for which `fills` holds.
        batches: prepared training rows, and in `held` those held out.
    """
    features = Features.of(model.schema)
    if not features.numbers or not _binned(model):
        return Part()
    rows = _some(batches)
    cells, seen = features.rows(rows)
    normal = Normal.learn(cells.masked_fill(~seen, torch.nan))
    beside = Beside(normal, features, torch.zeros(model.schema.numbers))
    weight = _weights(model, beside, _judging(batches, rows))
    if not bool((weight > LEAST).any()):
        return Part()
    return Part(tensors={"mean": normal.mean, "covariance": normal.covariance, "weight": weight})


def learn_intervals(model: Model, batches: Any) -> Part:
    """The part `intervals`: the share to take of a cell's chances for each stated one, by cells that were hidden.

    Args:
        model: for which `fills` holds, with its part `normal`.
        batches: as in `learn_normal`.
    """
    if not _binned(model):
        return Part()
    rows = _judging(batches)
    view, hidden = _hidden(model, rows)
    binned = torch.zeros(model.schema.numbers, dtype=torch.bool)
    binned[_binned(model)] = True
    return Part(tensors={"shares": widened(Holes(model).needed(view), hidden & binned, len(rows))})


def _binned(model: Model) -> list[int]:
    """The number cells that are told by bins."""
    return [cell for cells, *_ in model.module.likelihood.binned(None) for cell in cells.tolist()]


def _judging(batches: Any, rows: Batch | None = None) -> Batch:
    """The rows held out, where there are any, else training rows."""
    held = getattr(batches, "held", None)
    if held is None:
        held = _some(batches) if rows is None else rows
    judging: Batch = held[:MOST_JUDGED].dense()
    return judging


def _hidden(model: Model, rows: Batch) -> tuple[Batch, Tensor]:
    """A view of rows, repeated where they are few, that hides cells, and (R, N) the numbers that it hides.

    Where rows have holes already a few more are made, so that as much is seen as will be when these are filled; whole
    rows are hidden from as in training.
    """
    rows = Batch.concat([rows] * max(1, min(MOST_VIEWS, MOST_JUDGED // max(1, len(rows)))))
    seen, device = rows.mask(), model.module.device
    with kept(device):
        seed_step(0, 0, device)
        holed = bool((~seen).double().mean() > HOLED)
        view = rows.with_seen(seen & (torch.rand(seen.shape) >= MORE)) if holed else Hiding()(rows)
    return view, (seen & ~view.mask())[:, : model.schema.numbers]


def _some(batches: Any) -> Batch:
    """The first rows of a stream, as many as are worth learning from."""
    parts, rows = [], 0
    for batch in batches:
        step = max(1, len(batch) // MOST_LEARNT)
        parts.append(batch[torch.arange(0, len(batch), step)].dense())
        rows += len(parts[-1])
        if rows >= MOST_LEARNT:
            break
    return Batch.concat(parts)


@torch.inference_mode()
def _weights(model: Model, beside: Beside, rows: Batch) -> Tensor:
    """(N,) weight of the normal distribution, by cells hidden from both."""
    device, (view, hidden) = model.module.device, _hidden(model, rows)

    def say(part: Batch) -> Tensor:
        p = model.module.decode(model.module.encode(part).z)
        mean, variance = beside.given(part)
        both = torch.zeros(len(part), 2, model.schema.numbers, dtype=torch.float64, device=device)
        for cells, family, outputs in p.likelihood.binned(p.outputs):
            here = family.place(part.numbers[:, cells]).unsqueeze(-1)  # hidden cells are there all the same
            both[:, 0, cells] = family.chances(outputs)[0].double().gather(-1, here).squeeze(-1)
            both[:, 1, cells] = beside.chances(cells, family, mean, variance).gather(-1, here).squeeze(-1)
        return both

    chances = model.blocks(view, say).clamp_min(TINY)
    own = mixed(chances, hidden, torch.tensor(0.5, dtype=torch.float64), across=True)
    binned = _binned(model)
    weight = torch.zeros(model.schema.numbers, dtype=torch.float64)
    weight[binned] = mixed(chances, hidden, own)[binned]
    return weight


def mixed(chances: Tensor, hidden: Tensor, prior: Tensor, across: bool = False) -> Tensor:
    """The second one's share of a mixture of two.

    Args:
        chances: (R, 2, N) that each gave what was there.
        hidden: (R, N) the cells that count.
        prior: () share that is worth `PRIOR` cells.
        across: one share for all cells, in place of one for each.
    """
    axes = (0, 1) if across else (0,)
    counted = hidden.double()
    share = prior.expand(chances.shape[2]) if not across else prior
    for _ in range(ROUNDS):
        second = share * chances[:, 1]
        owed = (second / (second + (1 - share) * chances[:, 0]) * counted).sum(axes)
        share = (owed + PRIOR * prior) / (counted.sum(axes) + PRIOR)
    return share
