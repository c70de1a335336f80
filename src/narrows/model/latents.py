"""The code of a row: how the encoder's features become z, and what that costs.

A latent owns its terms: per-row values, in nats, that training adds to the loss with the weight of the term's name.
Leading axes: K samples first, then E members where the network has them, then B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from narrows.networks.dense import activation


@dataclass(frozen=True)
class Code:
    """What a latent makes of features.

    Args:
        z: (K, [E,] B, size) samples, or the one best guess with K = 1.
        terms: name -> (K, [E,] B), in nats a row.
    """

    z: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Latent(nn.Module, ABC):
    """Features -> Code.

    Args:
        size: numbers in the code of one row.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @property
    @abstractmethod
    def features(self) -> int:
        """Features the encoder must deliver."""

    @abstractmethod
    def forward(self, features: Tensor, samples: int) -> Code:
        """The code of ([E,] B, `features`): `samples` draws, or the best guess for `samples=0`."""


class Deterministic(Latent):
    """The features are the code.

    Args:
        size: numbers in the code of one row.
        link: activation of the code, such as `sigmoid` to keep it in (0, 1); the default leaves it free.
    """

    def __init__(self, size: int, link: str = "identity") -> None:
        super().__init__(size)
        self.link = activation(link)

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def forward(self, features: Tensor, samples: int) -> Code:
        """The code; every sample of it would be the same, so there is one."""
        return Code(self.link(features).unsqueeze(0))


class Gaussian(Latent):
    """A normal posterior with diagonal covariance under a standard normal prior (Kingma & Welling 2014).

    Its term `kl` is KL(q(z|x) || p(z)) in closed form. Log variances are kept within [-12, 12]: beyond, float32
    exponentials would end a run that one bad row has thrown off.
    """

    @property
    def features(self) -> int:
        """A mean and a log variance for each number of the code."""
        return 2 * self.size

    def forward(self, features: Tensor, samples: int) -> Code:
        """Reparametrized draws, or the posterior mean."""
        mean, log_variance = features.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-12.0, 12.0)
        deviation = (0.5 * log_variance).exp()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(-1)
        z = mean.unsqueeze(0)
        if samples:
            z = z + deviation * torch.randn(samples, *mean.shape, device=mean.device)
        return Code(z, {"kl": kl.expand(len(z), *kl.shape)})
