"""Draws of a code for importance weights, and gradients that get no noisier with more of them (Tucker et al. 2019).

The importance-weighted bound of K draws z_k = mean + deviation u_k teaches the encoder less the more draws there are:
the signal in its plain gradient fades faster than the noise (Rainforth et al. 2018). Doubly reparametrized, the
gradient is

    sum_k w_k**2  d (log p(x, z_k) - log q(z_k|x)) / d z_k  d z_k / d (mean, deviation)

with w the normalized importance weights and q itself held still. Its mean is the plain gradient's, and it is 0 where
the posterior is exact. What reaches the ratios from the bound is w, so that draws and ratios, taken in one step, are
all there is to know here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Reparametrized(torch.autograd.Function):
    """Mean and log variance ([E,] B, size), standard normal noise (K, [E,] B, size) -> z and log q(z|x) - log p(z).

    z is like the noise, the ratio (K, [E,] B); the prior p(z) is standard normal. The gradient holds for the loss
    -log sum_k exp(log p(x|z_k) - ratio_k) of a row, times any weight.
    """

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The draws and their log ratios."""
        deviation = (0.5 * log_variance).exp()
        z = torch.addcmul(mean, deviation, noise)
        ctx.save_for_backward(z, deviation, noise)
        ratio = 0.5 * (z.square().sum(-1) - noise.square().sum(-1) - log_variance.sum(-1))
        return z, ratio

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_z: Tensor, from_ratio: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of mean and log variance, the score of q left out and each draw's weighted once more."""
        z, deviation, noise = ctx.saved_tensors
        total = from_ratio.sum(0)
        weights = from_ratio / total.where(total != 0, 1.0)  # a row without weight has no gradient at all
        each = from_z + from_ratio.unsqueeze(-1) * (z - noise / deviation)
        each *= weights.unsqueeze(-1)
        return each.sum(0), 0.5 * deviation * (each * noise).sum(0), None
