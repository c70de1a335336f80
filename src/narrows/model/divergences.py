"""How far the codes of a batch lie from a distribution that they should have.

Both compare all pairs of rows, so their work and memory grow with the square of the batch (total correlation: times the
size of the code), and both get better as batches grow: below some dozens of rows they are mostly noise. What they do
not know: weights of rows; each counts alike.
"""

from __future__ import annotations

from math import log, pi
from typing import Literal

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.latents import Gaussian, Posterior
from narrows.model.penalties import Pass, Penalty, Site
from narrows.world import drawn

Kernel = Literal["imq", "rbf"]
SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # of the squared distance that two normal codes have in the mean


class Discrepancy(Penalty):
    """The squared maximum mean discrepancy of a batch's codes from standard normal ones (Tolstikhin et al. 2018).

    Against as many fresh draws. The estimate is unbiased, so it falls below 0 where the two are alike. A lone row has
    no pair, and costs nothing.

    Args:
        kernel: see `mmd`.
    """

    name = "mmd"
    judges = True

    def __init__(self, kernel: Kernel = "imq") -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, passed: Pass) -> Tensor:
        """() the discrepancy."""
        z = passed.code.z.float()
        return mmd(z, drawn(torch.randn, *z.shape, rows=-2, device=z.device), self.kernel).mean(0).sum()


def mmd(x: Tensor, y: Tensor, kernel: Kernel = "imq") -> Tensor:
    """(...) the unbiased estimate of MMD^2 between two samples (Gretton et al. 2012), 0 where one has no pair.

    Args:
        x: (..., n, size).
        y: (..., m, size).
        kernel: `imq`, inverse multiquadratics C / (C + d^2), whose tails pull at codes however far off; or `rbf`,
            exp(-d^2 / C). Either is summed over C = 2 size s, for the seven scales s of the WAE's authors.
    """
    n, m = x.shape[-2], y.shape[-2]
    if min(n, m) < 2:
        return x.new_zeros(x.shape[:-2])
    within = _others(_affinity(x, x, kernel)) / (n * (n - 1)) + _others(_affinity(y, y, kernel)) / (m * (m - 1))
    return within - 2 * _affinity(x, y, kernel).mean((-2, -1))


def _affinity(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """(..., n, m) the kernel of each pair."""
    with torch.autocast(x.device.type, enabled=False):  # a difference of large numbers
        products = x @ y.mT
    squares = x.square().sum(-1).unsqueeze(-1) + y.square().sum(-1).unsqueeze(-2)
    distances = (squares - 2 * products).clamp_min(0.0)
    total = torch.zeros_like(distances)
    for scale in SCALES:
        c = 2 * x.shape[-1] * scale
        total = total + (c / (c + distances) if kernel == "imq" else (-distances / c).exp())
    return total


def _others(affinity: Tensor) -> Tensor:
    """(...) the sum over pairs of different rows."""
    return affinity.sum((-2, -1)) - affinity.diagonal(dim1=-2, dim2=-1).sum(-1)


class TotalCorrelation(Penalty):
    """How far the numbers of a code are from independent: KL(q(z) || prod q(z_j)), in nats (Chen et al. 2018).

    By minibatch-weighted sampling: q(z) is taken for the mean of the posteriors of the batch. The authors divide by
    the rows of the whole training set too, which adds a constant and leaves every gradient as it is; without, this is
    0 for a lone row, and the total correlation of the batch's own mixture.

    Args:
        site: whose latent must be Gaussian.

    Raises:
        SettingError: for another latent.
    """

    name = "tc"
    judges = True

    def __init__(self, site: Site) -> None:
        super().__init__()
        if not isinstance(site.latent, Gaussian):
            got = f"the total correlation of a {type(site.latent).__name__} code"
            raise SettingError(got, "a Gaussian one, whose posterior is known")

    def forward(self, passed: Pass) -> Tensor:
        """([E,] B) log q(z) - sum log q(z_j) at each row's draws."""
        posterior = passed.code.posterior
        if posterior is None:
            raise SettingError("a total correlation", "a code with a posterior")
        return total_correlation(passed.code.z.float(), posterior).mean(0)


def total_correlation(z: Tensor, posterior: Posterior) -> Tensor:
    """(K, [E,] B) log q(z) - sum over j of log q(z_j), q the mean of the rows' posteriors.

    Args:
        z: (K, [E,] B, size) draws.
        posterior: of each row, ([E,] B, size).
    """
    mean, log_variance = posterior.mean.unsqueeze(-3), posterior.log_variance.unsqueeze(-3)
    deviation = (z.unsqueeze(-2) - mean) * (-0.5 * log_variance).exp()
    each = -0.5 * (deviation.square() + log_variance + log(2 * pi))  # (K, [E,] B, B, size): of each under each
    rows = log(each.shape[-2])
    joint = each.sum(-1).logsumexp(-1) - rows
    return joint - (each.logsumexp(-2) - rows).sum(-1)
