"""What is done to a batch before the encoder sees it. The loss still counts the uncorrupted cells.

All of it is drawn anew for each step, so that no row is ever seen alike twice. Validation rows are corrupted too, the
same each time, so that weights are chosen by what they are trained for; the price is that validation losses of two
corruptions cannot be compared: `evaluate` and `score` take rows as they come.
What this file does not know: what a recipe is for, and what the network makes of a hidden cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.schema import Batch, Column, Schema
from narrows.world import drawn

EXTREME = 3.0  # standard deviations from the mean at which salt and pepper lie in a column without bounds


class Corruption(nn.Module, ABC):
    """Batch -> Batch, drawn from torch's global generator; the rows that came are left as they are.

    Attributes:
        hides: whether cells are hidden, so that the network needs a flag for each.
    """

    hides = False

    def suit(self, schema: Schema) -> None:
        """Settle on the columns of this schema.

        Raises:
            SettingError: where it has none to work on.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> Batch:
        """The batch, corrupted."""


class GaussianNoise(Corruption):
    """Normal noise on every number cell that is not a count (Vincent et al. 2010).

    Args:
        scale: standard deviation in prepared units: 1 is a column's own spread where it was standardized, and the
            whole range where it lies in [0, 1].
    """

    counted: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise SettingError(f"noise={scale!r}", "a standard deviation above 0")
        self.scale = scale
        self.register_buffer("counted", torch.zeros(0, dtype=torch.long), persistent=False)

    def suit(self, schema: Schema) -> None:
        """Leave the counts of this schema as they are: noise would drown a bag's few items among its many zeros."""
        self.counted = torch.tensor(schema.cells_where(kind="count") + schema.cells_where(kind="bag"), dtype=torch.long)

    def forward(self, batch: Batch) -> Batch:
        """The batch with noisy numbers."""
        noise = self.scale * drawn(torch.randn, *batch.numbers.shape, device=batch.numbers.device)
        if len(self.counted):
            noise.index_fill_(1, self.counted, 0.0)
        return replace(batch, numbers=batch.numbers + noise)


class SaltAndPepper(Corruption):
    """Sets number cells to the least or the greatest value of their column, each with half of the chance.

    Vincent et al. (2010). The ends are 0 and 1 where a column lies in [0, 1], else 3 standard deviations to either side
    of the mean. Counts are left as they are, as `GaussianNoise` leaves them.

    Args:
        rate: chance for a cell to be changed, between 0 and 1.
    """

    low: Tensor
    free: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = _share("salt", rate)
        self.register_buffer("low", torch.zeros(0), persistent=False)
        self.register_buffer("free", torch.zeros(0, dtype=torch.bool), persistent=False)

    def suit(self, schema: Schema) -> None:
        """Find the ends of each number cell of this schema."""
        self.low, self.free = torch.full((schema.numbers,), -EXTREME), torch.ones(schema.numbers, dtype=torch.bool)
        self.low[[cell for cell in schema.cells_where(bounded=True) if cell < schema.numbers]] = 0.0
        self.free[schema.cells_where(kind="count") + schema.cells_where(kind="bag")] = False

    def forward(self, batch: Batch) -> Batch:
        """The batch with some numbers at an end."""
        draw = drawn(torch.rand, *batch.numbers.shape, device=batch.numbers.device)
        ends = torch.where(draw < self.rate / 2, self.low, torch.where(self.low == 0.0, 1.0, -self.low))
        return replace(batch, numbers=torch.where((draw < self.rate) & self.free, ends, batch.numbers))


class Masking(Corruption):
    """Hides each cell, number or category, with the same chance (Vincent et al. 2008, with a flag for what is hidden).

    Args:
        rate: chance for a cell to be hidden, between 0 and 1.
    """

    hides = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = _share("mask", rate)

    def forward(self, batch: Batch) -> Batch:
        """The batch with fewer cells seen."""
        cells = batch.numbers.shape[1] + batch.codes.shape[1]
        shown = drawn(torch.rand, len(batch), cells, device=batch.numbers.device) >= self.rate
        return batch.with_seen(shown if batch.seen is None else shown & batch.seen)


class PatchMasking(Corruption):
    """Hides patches of grids, of each grid the same share in every row (the masked autoencoder of He et al. 2022).

    A patch is a square of an image in all its channels, a span of a series or sound, or so many tokens of a text; it is
    never more than half of a side, so that a grid has several, of which one is shown at least: a network that
    normalizes what it reads cannot learn from a row of nothing. The cells without a grid are patches of their own, of
    which all together the same share is hidden; a lone one with that chance.

    Args:
        rate: share of patches hidden, between 0 and 1. 0.75 is He et al.'s for photographs, whose neighbors say much of
            each other; tables want less.
        patch: positions a side.
        vary: draw the share of each row anew, evenly from 0 to `rate`: the network then learns to tell a cell from many
            others and from few (Ivanov et al. 2019).
    """

    hides = True
    places: Tensor

    def __init__(self, rate: float, patch: int, vary: bool = False) -> None:
        super().__init__()
        self.vary = vary
        if patch < 1:
            raise SettingError(f"patch={patch!r}", "positions a side, at least 1")
        self.rate, self.patch = _share("rate", rate), patch
        self.counts: list[int] = []
        self.register_buffer("places", torch.zeros(0, dtype=torch.long), persistent=False)

    def suit(self, schema: Schema) -> None:
        """Number the patches of this schema: grid by grid, then the cells that are in none."""
        # on the CPU even where a module is only sketched, without memory, to learn the shapes of its weights
        places, self.counts = torch.full((schema.cells,), -1, device="cpu"), []
        for column in schema:
            if column.grid:
                inside, start = self._patches(column), schema.spans[column.name].start
                places[start : start + len(inside)] = sum(self.counts) + inside
                self.counts.append(int(inside.max()) + 1)
        rest = int((places < 0).sum())
        places[places < 0] = sum(self.counts) + torch.arange(rest, device="cpu")
        self.places, self.counts = places, self.counts + [rest] * (rest > 0)

    def _patches(self, column: Column) -> Tensor:
        """Number of the patch that each cell of a column's grid is in."""
        sides = column.grid if column.categorical else column.grid[:-1]
        numbers = torch.zeros(1, dtype=torch.long, device="cpu")
        for side in sides:
            along = torch.arange(side, device="cpu") // max(1, min(self.patch, side // 2))
            numbers = (numbers[:, None] * (int(along[-1]) + 1) + along).flatten()
        return numbers.repeat_interleave(prod(column.grid) // prod(sides))

    def forward(self, batch: Batch) -> Batch:
        """The batch with fewer patches seen."""
        draw = drawn(torch.rand, len(batch), sum(self.counts), device=batch.numbers.device)
        shown = torch.cat([self._shown(part) for part in torch.split(draw, self.counts, dim=1)], dim=1)
        shown = shown.index_select(1, self.places)
        return batch.with_seen(shown if batch.seen is None else shown & batch.seen)

    def _shown(self, draw: Tensor) -> Tensor:
        """Which patches of a grid (B, patches) stay, by a draw for each: those with the greatest."""
        patches = draw.shape[1]
        if self.vary:
            most = draw.amax(dim=1, keepdim=True)
            share = drawn(torch.rand, *most.shape, device=most.device)
            return (draw >= self.rate * share) | ((draw == most) & (patches > 1))
        if patches == 1:
            return draw >= self.rate
        hidden = min(max(1, round(self.rate * patches)), patches - 1)
        return draw > draw.kthvalue(hidden, dim=1, keepdim=True).values


class Hiding(Corruption):
    """Hides of each row a share of its own, evenly drawn from none to all cells.

    The network so learns to tell any cells from any others, and a first one from nothing (Ivanov et al. 2019; Strauss &
    Oliva 2021): what it takes to fill holes of every pattern, and to make a row cell by cell.
    """

    hides = True

    def forward(self, batch: Batch) -> Batch:
        """The batch with fewer cells seen."""
        cells = batch.numbers.shape[1] + batch.codes.shape[1]
        share = drawn(torch.rand, len(batch), 1, device=batch.numbers.device)
        shown = drawn(torch.rand, len(batch), cells, device=batch.numbers.device) >= share
        return batch.with_seen(shown if batch.seen is None else shown & batch.seen)


def _share(name: str, rate: float) -> float:
    """A rate, checked.

    Raises:
        SettingError: when it is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise SettingError(f"{name}={rate!r}", "a share between 0 and 1")
    return rate
