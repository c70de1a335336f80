"""A number cell told by the chances of its bins: any shape of distribution, with several peaks and with lumps.

    outputs (..., n * bins) -> log softmax -> the chance of the bin that a cell is in

Bins are learnt from a sample of the training rows: a value that many rows share is a bin of its own, the rest are cut
into bins of equal numbers of rows. What this file does not know: where the sample comes from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.draws import drawn
from narrows.model.families import NumberFamily

Floats = npt.NDArray[np.float64]
BINS = 64  # of a cell, where nobody says
MOST_BINS = 1024
ROWS_A_BIN = 8  # of a sample of 200 rows 25 bins are learnt: a bin that few rows are in is hardly ever told right
BEYOND = 1e9  # of all prepared values: where the bins stand that a cell has no use for
COARSER = 1.1  # how much wider bins get until there are few enough


class Bins(NumberFamily):
    """The chances of each cell's bins; a cell outside all of them costs its squared distance on top.

    Unlike a location with a scale it tells amounts that are mostly nothing, prices that end in 99 and two kinds of
    customers for what they are. Van den Oord et al. (2016) did so for pixels.

    Args:
        cells: number cells of a row.
        bins: of a cell at most; fewer are learnt where a cell has fewer values.

    Raises:
        SettingError: for a number of bins out of range.
    """

    edges: Tensor
    low: Tensor
    high: Tensor
    center: Tensor
    count: Tensor

    def __init__(self, cells: int, bins: int = BINS) -> None:
        super().__init__()
        if not 2 <= bins <= MOST_BINS:
            raise SettingError(f"bins({bins})", f"from 2 to {MOST_BINS:,} bins")
        self.outputs = bins
        # until it has learnt: bins of equal chance of a standard normal cell
        inner = torch.special.ndtri(torch.arange(1, bins, dtype=torch.float64, device="cpu") / bins).float()
        ends = torch.full((1,), 4.0, device="cpu")
        low, high = torch.cat([-ends, inner]), torch.cat([inner, ends])
        for name, row in (("edges", inner), ("low", low), ("high", high), ("center", (low + high) / 2)):
            self.register_buffer(name, row.repeat(cells, 1))
        self.register_buffer("count", torch.full((cells,), bins, device="cpu"))

    @torch.no_grad()
    def learn(self, sample: Tensor) -> None:
        """Cut bins for the values of each cell.

        Args:
            sample: (R, n) rows, NaN where a cell was not seen.
        """
        for cell, values in enumerate(sample.double().numpy().T):
            there = np.sort(values[~np.isnan(values)])
            if len(there):
                learnt = cut(there, min(self.outputs, max(2, len(there) // ROWS_A_BIN)))
                self.count[cell] = len(learnt[1])
                for name, row in zip(("edges", "low", "high", "center"), learnt, strict=True):
                    place = getattr(self, name)[cell]
                    place.fill_(BEYOND)
                    place[: len(row)] = torch.from_numpy(row).float()

    def chances(self, outputs: Tensor) -> Tensor:
        """(..., n, bins) the chance of each bin; 0 for what is none."""
        return self._log_chances(outputs).exp()

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected cells: the mean value of each bin, times its chance."""
        return (self.chances(outputs) * self.center).sum(-1)

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log chance of the bin that each cell is in, less its squared distance from the bins."""
        chances = self._log_chances(outputs)
        at = self.place(cells)
        inside = chances.gather(-1, at.expand(chances.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        last = self.high.gather(1, self.count.unsqueeze(1) - 1).squeeze(1)
        return inside - (cells - torch.minimum(torch.maximum(cells, self.low[:, 0]), last)).square()

    def place(self, cells: Tensor) -> Tensor:
        """(B, n) the bin that each cell is in, the nearest one where it is in none."""
        return torch.searchsorted(self.edges, cells.T.contiguous()).T

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """A bin drawn by its chance, and a value anywhere in it.

        Args:
            outputs: logits.
            temperature: these are divided by it.
        """
        at = drawn(self._log_chances(outputs), temperature).unsqueeze(-1)
        low, high = (_at(bound, at) for bound in (self.low, self.high))
        return torch.lerp(low, high, torch.rand_like(low))

    def _log_chances(self, outputs: Tensor) -> Tensor:
        logits = outputs.view(*outputs.shape[:-1], len(self.edges), self.outputs)
        none = torch.arange(self.outputs, device=logits.device) >= self.count.unsqueeze(1)
        return logits.masked_fill(none, float("-inf")).log_softmax(-1)


def cut(values: Floats, bins: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Edges (k - 1,) between bins, and least, greatest and mean value (k,) of each, for at most so many bins.

    A value gets a bin of its own where a bin's share of the rows has it, or where there are no more values than bins;
    between such values the others are cut into bins of equal numbers of rows.

    Args:
        values: (R,) sorted.
        bins: at least 2.
    """
    distinct, often = np.unique(values, return_counts=True)
    share = _fair_share(often, bins)
    places = _places(often, share)
    while places[-1] >= bins:
        share *= COARSER
        places = _places(often, share)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    rows = np.add.reduceat(often, starts)
    low, high = distinct[starts], distinct[np.append(starts[1:], len(distinct)) - 1]
    center = np.add.reduceat(distinct * often, starts) / rows
    return (high[:-1] + low[1:]) / 2, low, high, center.clip(low, high)


def _fair_share(often: npt.NDArray[np.int64], bins: int) -> float:
    """Rows of a bin, where values that more rows have are set apart; 0 where each value may have a bin of its own."""
    if len(often) <= bins:
        return 0.0
    share, before = often.sum() / bins, 0.0
    while share != before:  # what is set apart leaves less for the other bins, so that more is set apart
        alone = often >= share
        before, share = share, min(share, often[~alone].sum() / max(1, bins - int(alone.sum())))
    return float(share)


def _places(often: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """(V,) which bin each value is in, where one holds about `share` rows."""
    alone = often >= share
    stretch = np.cumsum(alone) * 2 + (~alone)  # a value of its own, then what lies between it and the next, in turn
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    sizes = np.diff(np.append(starts, len(often)))
    total = np.add.reduceat(often, starts).repeat(sizes)
    before = np.cumsum(often) - often
    middle = before - before[starts].repeat(sizes) + often / 2
    count = np.where(alone, 1, np.ceil(total / max(share, 1e-9))).astype(np.int64)
    within = np.minimum((middle / total * count).astype(np.int64), count - 1)
    first = np.cumsum(np.append(0, count[starts][:-1])).repeat(sizes)
    # a bin that no value's middle fell into is none
    return np.unique(first + within, return_inverse=True)[1].astype(np.int64)


def _at(bounds: Tensor, at: Tensor) -> Tensor:
    """(..., n) of bounds (n, bins) those at places (..., n, 1)."""
    return bounds.expand(*at.shape[:-1], -1).gather(-1, at).squeeze(-1)
