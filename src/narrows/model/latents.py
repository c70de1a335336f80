"""The code of a row: how the encoder's features become z, and what that costs.

A latent owns its terms: per-row values, in nats where it is a distribution, that training adds to the loss with the
weight of the term's name; and scalars, which speak of a batch as a whole, train and never score.
Leading axes: K samples first, then E members where the network has them, then B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.reparametrized import Reparametrized
from narrows.networks.dense import activation
from narrows.world import drawn

STAGGERED = (1, 2, 4)  # parts of a code, of which members use one each, in turn


@dataclass(frozen=True)
class Posterior:
    """q(z|x), a normal distribution with diagonal covariance: mean and log variance, ([E,] B, size) each."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Code:
    """What a latent makes of features.

    Args:
        z: (K, [E,] B, size) samples, or the one best guess with K = 1.
        terms: name -> (K, [E,] B) what each row costs.
        scalars: name -> () what the batch costs as a whole; trains, never scores.
        posterior: where the latent has one in closed form.
        features: ([E,] B, features) that the code was made of; what `Latent.update` learns from.
        symbols: (K, [E,] B, positions) int64 entries of a codebook, where the code is discrete.
    """

    z: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, Tensor] = field(default_factory=dict)
    posterior: Posterior | None = None
    features: Tensor | None = None
    symbols: Tensor | None = None


class Latent(nn.Module, ABC):
    """Features -> Code.

    Args:
        size: numbers in the code of one row.
    """

    has_prior = False  # whether `sample` knows where codes lie, without having seen any
    limits = False  # whether the latent itself keeps a wide code from holding everything
    variational = False  # whether codes are drawn from q(z|x), and terms can be log q(z|x) - log p(z)
    symbols = 0  # entries to choose from at each position, where the code is discrete

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @property
    @abstractmethod
    def features(self) -> int:
        """Features the encoder must deliver."""

    @property
    def in_use(self) -> int:
        """Numbers of the code that one row may use: what it is to be compared with PCA by."""
        return self.size

    @abstractmethod
    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code of ([E,] B, `features`).

        Args:
            features: of rows.
            samples: draws; 0 asks for the best guess.
            ratio: the terms of a distribution are log q(z|x) - log p(z) at the draws, as importance weights want them,
                in place of the divergence in closed form.
        """

    def suit(self, members: int | None) -> None:
        """Settle on the networks that deliver the features: one, or so many side by side.

        Raises:
            SettingError: where the latent cannot be learnt by several.
        """

    def sample(self, rows: int) -> Tensor:
        """(rows, size) codes from the prior, drawn from torch's global generator; where the weights are, if it has any.

        Raises:
            SettingError: where the latent has none.
        """
        raise SettingError(f"samples from a {type(self).__name__} code, which has no prior", hint="a learnt code prior")

    def look_up(self, symbols: Tensor) -> Tensor:
        """([E,] B, size) codes that symbols ([E,] B, positions) stand for.

        Raises:
            SettingError: where the code is not discrete.
        """
        raise SettingError(f"symbols of a {type(self).__name__} code, which is not discrete", "the recipe vq or fsq")

    def update(self, code: Code) -> None:
        """Learn what gradients do not, such as a codebook's averages, from the code of a step; after each step."""

    def check(self, rows: int | None) -> None:
        """Refuse training data that the latent cannot be learnt from.

        Args:
            rows: of training; None where not known.

        Raises:
            SettingError: saying what to change.
        """


class Deterministic(Latent):
    """The features are the code.

    Args:
        size: numbers in the code of one row.
        link: activation of the code, such as `sigmoid` to keep it in (0, 1); the default leaves it free.
        normal: whether codes are drawn to a standard normal prior by a penalty, so that it can be sampled from.
        stagger: whether the members of an ensemble use all numbers of their code, half of them and a quarter, in turn,
            so that they err in different ways; the others are 0.
    """

    used: Tensor

    def __init__(self, size: int, link: str = "identity", normal: bool = False, stagger: bool = False) -> None:
        super().__init__(size)
        self.link = activation(link)
        self.has_prior, self.stagger = normal, stagger
        self.register_buffer("used", torch.ones(size), persistent=False)

    def suit(self, members: int | None) -> None:
        """Settle which numbers each member uses."""
        if self.stagger and members is not None:
            widths = torch.tensor([-(-self.size // STAGGERED[member % len(STAGGERED)]) for member in range(members)])
            self.used = (torch.arange(self.size) < widths[:, None]).float().unsqueeze(1)

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code; every sample of it would be the same, so there is one."""
        code = self.link(features)
        return Code((code * self.used if self.stagger else code).unsqueeze(0))

    def sample(self, rows: int) -> Tensor:
        """Standard normal codes, where training drew codes there."""
        return torch.randn(rows, self.size) if self.has_prior else super().sample(rows)


class Gaussian(Latent):
    """A normal posterior with diagonal covariance under a standard normal prior (Kingma & Welling 2014).

    Its term `kl` is KL(q(z|x) || p(z)) in closed form, or the log ratio of the two at each draw, whose gradient is that
    of an importance-weighted bound (see `narrows.model.reparametrized`). Log variances are kept within [-12, 12]:
    beyond, float32 exponentials would end a run that one bad row has thrown off.

    Args:
        size: numbers in the code of one row.
        free: nats that each number of the code may hold at no cost, in the mean over a batch (Kingma et al. 2016): a
            scalar that makes up for what its KL falls short of that.

    Raises:
        SettingError: for free nats below 0.
    """

    has_prior = True
    limits = True
    variational = True

    def __init__(self, size: int, free: float = 0.0) -> None:
        super().__init__(size)
        self.free = checked_nats(free)

    @property
    def features(self) -> int:
        """A mean and a log variance for each number of the code."""
        return 2 * self.size

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """Reparametrized draws, or the posterior mean."""
        mean, log_variance = features.float().chunk(2, dim=-1)
        log_variance = log_variance.clamp(-12.0, 12.0)
        noise = _noise(samples, mean) if samples else torch.zeros_like(mean)[None]
        if ratio:
            z, kl = Reparametrized.apply(mean, log_variance, noise)  # type: ignore[no-untyped-call]
            return Code(z, {"kl": kl}, {}, Posterior(mean, log_variance))
        z = mean + (0.5 * log_variance).exp() * noise
        each = divergence(mean, log_variance)
        kl = each.expand(len(z), *each.shape)
        scalars = {"free": spared(each, self.free)} if self.free and self.training else {}
        return Code(z, {"kl": kl.sum(-1)}, scalars, Posterior(mean, log_variance))

    def sample(self, rows: int) -> Tensor:
        """Draws from the standard normal prior."""
        return torch.randn(rows, self.size)


def _noise(samples: int, mean: Tensor) -> Tensor:
    """(samples, [E,] B, size) standard normal draws."""
    return drawn(torch.randn, samples, *mean.shape, rows=-2, device=mean.device)


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each number, in nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)


def log_ratio(z: Tensor, noise: Tensor, log_variance: Tensor) -> Tensor:
    """log q(z) - log N(z; 0, 1) of each number, in nats, for z = mean + exp(log_variance / 2) * noise."""
    return 0.5 * (z.square() - noise.square() - log_variance)


def spared(each: Tensor, free: float) -> Tensor:
    """() what the KL of each number, ([E,] B, size), falls short of `free` nats in the mean over rows; all summed.

    Added to the KL it makes sum_j max(free, mean over rows of KL_j).
    """
    return (free - each.mean(-2)).clamp_min(0.0).sum()


def checked_nats(free: float) -> float:
    """Free nats, if they can be that.

    Raises:
        SettingError: below 0, or not finite.
    """
    if not 0 <= free < inf:
        raise SettingError(f"free_bits={free}", "0 or more nats for each number of the code")
    return free
