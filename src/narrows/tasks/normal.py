"""A normal distribution learnt from rows with holes, and what it says of a hole: the best guess of small tables.

    rows with holes -> EM -> mean and covariance -> for each row, mean and variance of what is missing given the rest

With few rows no network beats it, and with many it costs little; `tasks.holes` weighs the two by how well they tell
cells that were hidden. Expectation maximization as in Dempster, Laird & Rubin (1977), each row by its own pattern of
holes. What this file does not know: what the features mean.
"""

from __future__ import annotations

from dataclasses import dataclass

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
            whole, inverse = self._solved(cells[part], seen[part])
            away = whole - self.mean
            total += away.sum(0)
            missing = (~seen[part]).double()
            square += away.T @ away + (missing.unsqueeze(2) * inverse * missing.unsqueeze(1)).sum(0)
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
        parts = [self._solved(cells[i : i + CHUNK], seen[i : i + CHUNK]) for i in range(0, max(1, len(cells)), CHUNK)]
        means = torch.cat([mean for mean, _ in parts])
        return means, torch.cat([inverse.diagonal(dim1=1, dim2=2) for _, inverse in parts])

    def _solved(self, cells: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) rows without holes, and (B, D, D) whose block of the missing is their covariance given the rest."""
        precision = torch.linalg.inv(self.covariance)
        missing = (~seen).double()
        pair = missing.unsqueeze(2) * precision * missing.unsqueeze(1)
        factor = torch.linalg.cholesky(pair + torch.diag_embed(seen.double()))
        away = (cells - self.mean) * seen
        pull = -(away @ precision) * missing
        moved = torch.cholesky_solve(pull.unsqueeze(2), factor).squeeze(2)
        return torch.where(seen, cells, self.mean + moved), torch.cholesky_inverse(factor)
