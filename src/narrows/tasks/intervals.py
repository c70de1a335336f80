"""Intervals of numbers told by chances of bins, as wide as they must be to hold what they state.

    chances of bins --quantile--> ends of a central interval
    cells that were hidden --reach--> the share that each needed --widened--> the share to take for a stated one

A network's chances are too narrow where it has learnt its rows by heart; and those of lumps, such as whole numbers,
too wide, since an end falls on a lump and takes all of it. Shares needed on rows that were held out say by how much:
distributional conformal prediction (Chernozhukov et al. 2021), the quantile of a column leaning on that of all of them
where little of it was hidden. What this file does not know: models and rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.model.binned import Bins

STATED = 50  # steps between the stated shares that are kept: 0, 0.02, ... 1
LEANING = 20.0  # cells that what is taken for all columns counts for, beside a column's own
TINY = 1e-12
ROUNDED = 1e-9  # cells that a share of them may be off by rounding, which differs from processor to processor


def quantile(family: Bins, chances: Tensor, share: float | Tensor) -> Tensor:
    """(B, n) the value below which a share of each cell's chances (B, n, bins) lies; bins are filled evenly.

    Args:
        family: whose bins they are.
        chances: of each bin.
        share: one, or (n,) of each cell.
    """
    below = chances.cumsum(-1)
    wanted = torch.as_tensor(share, dtype=below.dtype, device=below.device).unsqueeze(-1).expand_as(below[..., :1])
    at = torch.searchsorted(below, wanted.contiguous()).clamp_max(below.shape[-1] - 1)
    inside = chances.gather(-1, at).clamp_min(TINY)
    part = 1 - ((below.gather(-1, at) - wanted) / inside).clamp(0, 1)
    low, high = (bound.double().expand_as(chances).gather(-1, at) for bound in (family.low, family.high))
    return torch.lerp(low, high, part).squeeze(-1)


def reach(family: Bins, chances: Tensor, cells: Tensor) -> Tensor:
    """(B, n) how large a share a central interval must take to reach each cell (B, n): 0 in the middle, 1 outside."""
    at = family.place(cells).unsqueeze(-1)
    inside = chances.gather(-1, at).squeeze(-1)
    before = chances.cumsum(-1).gather(-1, at).squeeze(-1) - inside
    low, high = (bound.double().expand_as(chances).gather(-1, at).squeeze(-1) for bound in (family.low, family.high))
    wide = high > low
    part = ((cells.double() - low) / (high - low).clamp_min(TINY)).clamp(0, 1)
    first = torch.where(wide, before + part * inside, before)
    last = torch.where(wide, before + part * inside, before + inside)
    return torch.maximum(1 - 2 * last, 2 * first - 1).clamp(0, 1)


def widened(needed: Tensor, hidden: Tensor, rows: int) -> Tensor:
    """(N, STATED + 1) the share to take of each column's chances, for the stated shares 0 to 1 in equal steps.

    Args:
        needed: (R, N) shares that hidden cells needed.
        hidden: (R, N) which cells those are.
        rows: that these are of, each one so many times: a further row lies in one of the n + 1 gaps that n leave.
    """
    stated = torch.linspace(0, 1, STATED + 1, dtype=torch.float64)
    of_known = (stated * (1 + 1 / max(1, rows))).clamp_max(1)
    whole = _leaning(needed[hidden], of_known, stated)
    return torch.stack([_leaning(needed[:, n][hidden[:, n]], of_known, whole) for n in range(needed.shape[1])])


def _leaning(needed: Tensor, at: Tensor, prior: Tensor) -> Tensor:
    """Quantiles of the shares needed, drawn towards others that are worth `LEANING` cells."""
    if not len(needed):
        return prior
    place = (at * len(needed) - ROUNDED).ceil().long().sub(1).clamp_min(0)
    own = needed.double().sort().values[place]
    return (len(needed) * own + LEANING * prior) / (len(needed) + LEANING)


def taken(shares: Tensor, share: float) -> Tensor:
    """(N,) of what `widened` gave, the share to take of each column's chances for a stated one."""
    at = share * STATED
    step = min(int(at), STATED - 1)
    return torch.lerp(shares[:, step], shares[:, step + 1], at - step)
