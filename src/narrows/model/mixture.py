"""A mixture of normal distributions over codes: exact, fast to draw from, and hard to beat on a few numbers.

What it does not know: how it is fitted (see `narrows.tasks.priorfits`); here are its tensors, scored and drawn from.
"""

from __future__ import annotations

from math import log, pi
from typing import Any, final

import torch
from torch import Tensor

from narrows.model.draws import drawn
from narrows.model.priors import Prior


@final
class Mixture(Prior):
    """A mixture of normal distributions.

    Args:
        size: numbers of a code.
        components: normal distributions.
        full: whether each has a covariance matrix of its own; else only variances.
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, size: int, components: int = 1, full: bool = True) -> None:
        super().__init__(size)
        self.full = full
        factors = torch.eye(size).expand(components, -1, -1) if full else torch.ones(components, size)
        self.register_buffer("log_weights", torch.full((components,), -log(components)))
        self.register_buffer("means", torch.zeros(components, size))
        self.register_buffer("factors", factors.clone())  # lower triangles L of covariances L L^T, or deviations

    @property
    def settings(self) -> dict[str, Any]:
        """Size and shape."""
        return {"size": self.size, "components": len(self.means), "full": self.full}

    def sample(self, rows: int, temperature: float = 1.0) -> Tensor:
        """Draws around the mean of a drawn component; the temperature is a factor of their distance to it."""
        chosen = drawn(self.log_weights.expand(rows, -1))
        away, mean = temperature * torch.randn(rows, self.size), self.means[chosen]
        if not self.full:
            return mean + self.factors[chosen] * away
        for component in set(chosen.tolist()):
            here = chosen == component
            away[here] = away[here] @ self.factors[component].T
        return mean + away

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density; in float64, since far codes have small differences of large squares."""
        away = (z.double().unsqueeze(0) - self.means.double().unsqueeze(1)).mT  # (components, size, n)
        factors = self.factors.double()
        if self.full:
            units = torch.linalg.solve_triangular(factors, away, upper=False)
            heights = factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        else:
            units, heights = away / factors.unsqueeze(-1), factors.log().sum(-1)
        each = -0.5 * (units.square().sum(1) + self.size * log(2 * pi)) - heights.unsqueeze(1)
        return torch.logsumexp(each + self.log_weights.double().unsqueeze(1), dim=0).to(z.dtype)
