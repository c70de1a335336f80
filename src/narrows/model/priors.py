"""Where codes lie: what every code prior promises, and the priors that latents bring along.

A prior is learnt from the codes of training rows, after the autoencoder (ex-post density estimation, Ghosh et al. 2020;
the second stage of van den Oord et al. 2017). Mixtures, flows and sequences have a file each. What this file does not
know: rows, and how a prior is chosen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log, pi
from typing import Any, final

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.autoencoder import Loss
from narrows.model.latents import Deterministic, Gaussian, Latent
from narrows.schema import Batch


class Prior(nn.Module, ABC):
    """A distribution over codes.

    Args:
        size: numbers of a code, all members of an ensemble side by side.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The arguments that, with the tensors of `state_dict`, say all there is to know; plain JSON values."""

    @abstractmethod
    def sample(self, rows: int, temperature: float = 1.0) -> Tensor:
        """(rows, size) codes, drawn from torch's global generator.

        Args:
            rows: how many.
            temperature: below 1 draws less, and above 1 more, than there is to the codes of training rows.
        """

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """(n,) log density of codes (n, size); of discrete ones the log probability."""

    def forward(self, batch: Batch) -> Loss:
        """The loss of codes that come as the numbers of a batch: minus their log density."""
        return Loss.of_cells(-self.log_prob(batch.numbers)[None, :, None], {}, {}, batch.weight)


@final
class Own(Prior):
    """The prior that a latent was trained towards.

    Args:
        latent: with a prior.
        members: networks side by side, each with codes of its own; None for one.

    Raises:
        SettingError: for a latent without.
    """

    def __init__(self, latent: Latent, members: int | None = None) -> None:
        super().__init__(latent.size * (members or 1))
        if not latent.has_prior:
            raise SettingError(f"the prior of a {type(latent).__name__} code, which has none", hint="a learnt one")
        self.latent, self.members = latent, members or 1
        self.normal = isinstance(latent, Gaussian | Deterministic)

    @property
    def settings(self) -> dict[str, Any]:
        """None: the latent has it all."""
        return {}

    def sample(self, rows: int, temperature: float = 1.0) -> Tensor:
        """Draws of each member's own; what they stand for differs from member to member.

        Raises:
            SettingError: for a temperature other than 1, where the prior is not one normal distribution.
        """
        if temperature != 1 and not self.normal:
            raise SettingError(f"temperature={temperature:g} with this recipe's own prior", "1", "a learnt code prior")
        drawn = [self.latent.sample(rows).cpu() for _ in range(self.members)]
        return temperature * torch.cat(drawn, dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of the standard normal distribution.

        Raises:
            SettingError: where the prior is another.
        """
        if not self.normal:
            raise SettingError("the density of codes under this recipe's own prior", hint="a learnt code prior")
        return standard_normal(z)


def standard_normal(x: Tensor) -> Tensor:
    """(n,) log density of points (n, d)."""
    return -0.5 * (x.square().sum(-1) + x.shape[-1] * log(2 * pi))
