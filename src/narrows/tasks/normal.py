"""A normal distribution learnt from rows with holes, and what it says of a hole: the best guess of small tables.

    rows with holes -> EM -> mean and covariance -> for each row, mean and variance of what is missing given the rest

With few rows no network beats it, and with many it costs little; `tasks.holes` weighs the two by how well they tell
cells that were hidden. Expectation maximization as in Dempster, Laird & Rubin (1977), each row by its own pattern of
holes. What this file does not know: what the features mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROUNDS = 15
SETTLED = 1e-3  # change of the means and covariances below which another round is in vain
WORK = 3e10  # multiplications of all rounds: a few seconds
FEWEST, MOST = 500, 4_000  # rows it is learnt from
CHUNK = 256  # rows solved at once
SHRUNK = 0.1  # rows' worth of independence for each feature: few rows must not make a covariance singular
FLOOR = 1e-6  # least variance


@dataclass(frozen=True)
class Normal:
    """Mean and covariance of D features.

    Args:
        mean: (D,) float64.
        covariance: (D, D) float64.
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def learn(cls, rows: Tensor) -> Normal:
        """By expectation maximization.

        Args:
            rows: (R, D) float64, NaN where missing. Of more rows than there is work for, evenly spread ones are taken.
        """
        width = rows.shape[1]
        most = int(min(MOST, max(FEWEST, WORK / (ROUNDS * max(1, width) ** 3))))
        rows = rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).long()] if len(rows) else rows
        seen = ~rows.isnan()
        count = seen.sum(0).clamp_min(1)
        cells = rows.nan_to_num()
        mean = cells.sum(0) / count
        spread = ((cells - mean).square() * seen).sum(0) / count
        found = cls(mean, torch.diag(spread.clamp_min(FLOOR)))
        for _ in range(ROUNDS):
            before, found = found, found._better(cells, seen)
            change = (found.covariance - before.covariance).abs().max() / found.covariance.diagonal().max()
            if change < SETTLED:
                break
        return found

    def _better(self, cells: Tensor, seen: Tensor) -> Normal:
        """One round: holes by what is expected there, then mean and covariance of the whole rows."""
        total, square = torch.zeros_like(self.mean), torch.zeros_like(self.covariance)
        for start in range(0, max(1, len(cells)), CHUNK):
            part = slice(start, start + CHUNK)
            whole, at, inverse = self._solved(cells[part], seen[part])
            away = whole - self.mean
            total += away.sum(0)
            square += away.T @ away
            pairs = at.unsqueeze(2) * len(total) + at.unsqueeze(1)
            square.view(-1).index_add_(0, pairs.flatten(), inverse.flatten())
        rows = max(1, len(cells))
        shift = total / rows
        covariance = square / rows - torch.outer(shift, shift)
        kept = rows / (rows + SHRUNK * len(shift))
        diagonal = covariance.diagonal().clamp_min(FLOOR)
        return Normal(self.mean + shift, kept * covariance + torch.diag(diagonal * (1 - kept) + FLOOR))

    def given(self, cells: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What is expected of each feature, given the others that were seen.

        Args:
            cells: (B, D) float64; what was not seen may hold anything finite.
            seen: (B, D) bool.

        Returns:
            Means (B, D), of what was seen the cells themselves, and variances (B, D) where it was not seen.
        """
        means, variances = torch.empty_like(cells), torch.zeros_like(cells)
        for start in range(0, len(cells), CHUNK):
            part = slice(start, start + CHUNK)
            means[part], at, inverse = self._solved(cells[part], seen[part])
            variances[part].scatter_(1, at, inverse.diagonal(dim1=1, dim2=2))
        return means, variances

    def _solved(self, cells: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) rows without holes; (B, m) places of what is missing; (B, m, m) their covariance given the rest.

        m is that of the row with most missing: of the others the rest are places that were seen, with a covariance of
        0. The work grows with its cube, and not with that of all features.
        """
        most = int((~seen).sum(1).max()) if len(seen) else 0
        at = seen.to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        lacking = ~seen.gather(1, at)
        both = lacking.unsqueeze(2) & lacking.unsqueeze(1)
        block = self.precision[at.unsqueeze(2), at.unsqueeze(1)] * both + torch.diag_embed((~lacking).double())
        factor = torch.linalg.cholesky(block)
        pull = -(((cells - self.mean) * seen) @ self.precision).gather(1, at) * lacking
        moved = torch.cholesky_solve(pull.unsqueeze(2), factor).squeeze(2)
        whole = torch.where(seen, cells, self.mean).scatter_add(1, at, moved)
        return whole, at, torch.cholesky_inverse(factor) * both

    @cached_property
    def precision(self) -> Tensor:
        """(D, D) the inverse of the covariance."""
        inverse: Tensor = torch.linalg.inv(self.covariance)
        return inverse
