"""A code of several levels, each drawn given those above it (Sonderby et al. 2016; Vahdat & Kautz 2020).

    top     z_L ~ N(0, I)                                 q(z_L | x)
    down    z_l ~ N(mean_l, scale_l) given z_>l           q(z_l | x, z_>l), a step away from the prior
    code    z_L | ... | z_1 side by side, the decoder sees all

The prior of a level is learnt, so that what lower levels hold may depend on what upper ones say. Its trade-off: levels
are drawn one after the other, and upper ones are easily left unused. What it does not know: grids; a level is a vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.latents import Code, Latent, checked_nats, divergence, log_ratio, spared
from narrows.networks.dense import linear
from narrows.world import drawn

DEEPEST = 64  # levels: more is a slip of the keyboard
WIDTH = 64  # units of each network between levels, at least


class Hierarchical(Latent):
    """Normal posteriors under learnt normal priors, level by level from the top.

    A level's draw is z = mean + scale * u, where mean and scale are the prior's, given the levels above, and u is
    standard normal a priori. The posterior speaks of u: its mean and log variance are the encoder's features of that
    level plus what a small network makes of these and the levels above. So what is 0 stays at the prior, as in the
    residual parametrization of Vahdat & Kautz (2020). The term `kl1` is that of the bottom level, `kl2` of the one
    above, in closed form given the draws above or as the log ratio at the draw; of an unused level it is near 0.

    Args:
        size: numbers in the code of one row: each level gets half as many as the one below it, the top at least one.
        depth: levels.
        free: nats that each number may hold at no cost, as in `Gaussian`.

    Raises:
        SettingError: for fewer than two levels, or fewer numbers than levels.
    """

    has_prior = True
    limits = True
    variational = True

    def __init__(self, size: int, depth: int = 2, free: float = 0.0) -> None:
        super().__init__(size)
        if not 2 <= depth <= DEEPEST:
            raise SettingError(f"depth={depth}", f"from 2 to {DEEPEST} levels", "the recipe `vae` for one")
        if size < depth:
            raise SettingError(f"a code of {size} numbers in {depth} levels", f"at least {depth} numbers")
        self.free, self.sizes = checked_nats(free), level_sizes(size, depth)
        self.suit(None)

    def suit(self, members: int | None) -> None:
        """Networks between the levels for each member; codes of several members have no prior in common."""
        self.has_prior = members is None
        width, above = max(WIDTH, 2 * self.size), self.sizes[0]
        self.priors, self.posteriors = nn.ModuleList(), nn.ModuleList()
        for size in self.sizes[1:]:
            self.priors.append(_between(above, width, 2 * size, members))
            self.posteriors.append(_between(above + 2 * size, width, 2 * size, members))
            above += size

    @property
    def features(self) -> int:
        """A mean and a log variance for each number of the code: all means, top level first, then all log variances."""
        return 2 * self.size

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """Draws from the top down, or the posteriors' means."""
        features = features.float().expand(max(samples, 1), *features.shape)
        owned = [torch.split(half, self.sizes, dim=-1) for half in features.chunk(2, dim=-1)]
        z, each, terms = features[..., :0], [], {}
        for index in range(len(self.sizes)):
            mean, log_variance = self._posterior(index, owned[0][index], owned[1][index], z)
            noise = drawn(torch.randn, *mean.shape, rows=-2, device=mean.device) if samples else torch.zeros_like(mean)
            u = mean + (0.5 * log_variance).exp() * noise
            each.append(divergence(mean, log_variance))
            cost = log_ratio(u, noise, log_variance) if ratio else each[-1]
            terms[f"kl{len(self.sizes) - index}"] = cost.sum(-1)
            z = torch.cat([z, self._placed(index, u, z)], -1)
        scalars = {"free": spared(torch.cat(each, -1).mean(0), self.free)} if self.free and self.training else {}
        return Code(z, terms, scalars)

    def _posterior(self, index: int, mean: Tensor, log_variance: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of a level's standardized draw: its own features, and what the levels above add."""
        if index:
            added = self.posteriors[index - 1](torch.cat([mean, log_variance, above], -1)).float()
            more_mean, more_log_variance = added.chunk(2, dim=-1)
            mean, log_variance = mean + more_mean, log_variance + more_log_variance
        return mean, log_variance.clamp(-12.0, 12.0)

    def _placed(self, index: int, u: Tensor, above: Tensor) -> Tensor:
        """The code of a level whose standardized draw is `u`."""
        if not index:
            return u
        mean, log_variance = self.priors[index - 1](above).float().chunk(2, dim=-1)
        placed: Tensor = mean + (0.5 * log_variance.clamp(-12.0, 12.0)).exp() * u
        return placed

    def sample(self, rows: int) -> Tensor:
        """Draws from the top down."""
        if not self.has_prior:
            return super().sample(rows)
        device = next(self.parameters()).device
        drawn, z = torch.randn(rows, self.size).to(device), torch.zeros(rows, 0, device=device)
        for index, u in enumerate(torch.split(drawn, self.sizes, dim=-1)):
            z = torch.cat([z, self._placed(index, u, z)], -1)
        return z


def level_sizes(size: int, depth: int) -> list[int]:
    """Numbers of each level, top first: each half of the one below it as far as whole numbers go, none without any."""
    sizes: list[int] = []
    for above in range(depth - 1, 0, -1):  # from the bottom up
        kept = max(above, size * (2**above - 1) // (2 ** (above + 1) - 1))
        sizes, size = [size - kept, *sizes], kept
    return [size, *sizes]


def _between(inputs: int, width: int, outputs: int, members: int | None) -> nn.Module:
    """A network of one hidden layer that says little at first, so that levels begin near the standard normal."""
    last = linear(width, outputs, "identity", members)
    with torch.no_grad():
        last.weight *= 0.1
    return nn.Sequential(linear(inputs, width, "silu", members), nn.SiLU(), last)
