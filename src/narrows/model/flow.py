"""A normalizing flow over codes: a chain of invertible maps from codes to a standard normal distribution.

    code -> whiten -> [reorder -> spline half of it, as a small network of the other half says] x layers -> normal

Coupling layers (Dinh et al. 2017) with monotone rational-quadratic splines (Durkan et al. 2019): density and draws are
exact and cost the same. It bends where a mixture has to tile, at the price of a training of its own. Each spline acts
within five standard deviations and leaves what lies beyond as it is.
"""

from __future__ import annotations

from math import exp, log
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.priors import Prior, standard_normal
from narrows.networks.dense import linear

REACH = 5.0  # standard deviations within which splines bend
THIN = 1e-2  # least width and height of a bin, as a share of the reach, and least slope: float32 finds the way back
SLOPE = log(exp(1 - THIN) - 1)  # what softplus makes 1 of, with the least slope: splines begin as straight lines
BLUR = 1e-2  # least deviation of whitened codes along any direction, as a share of the mean one


@final
class Flow(Prior):
    """A spline coupling flow.

    Args:
        size: numbers of a code, at least 2.
        layers: couplings; every two of them move each number once.
        hidden: width of the two hidden layers of each coupling's network.
        bins: of each spline.

    Raises:
        SettingError: for a code of one number, which has no other half.
    """

    center: Tensor
    factor: Tensor
    orders: Tensor

    def __init__(self, size: int, layers: int = 4, hidden: int = 64, bins: int = 8) -> None:
        super().__init__(size)
        if size < 2:
            raise SettingError("a flow over codes of one number", "at least 2", "a mixture")
        self.hidden, self.bins, self.kept = hidden, bins, size // 2
        moved = size - self.kept
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("factor", torch.eye(size))
        self.register_buffer("orders", torch.stack([self._order(layer) for layer in range(layers)]))
        self.networks = nn.ModuleList(_network(self.kept, hidden, moved * (3 * bins - 1)) for _ in range(layers))

    def _order(self, layer: int) -> Tensor:
        """A random order, then the one that gives the halves each other's place."""
        return torch.arange(self.size).roll(-self.kept) if layer % 2 else torch.randperm(self.size)

    @property
    def settings(self) -> dict[str, Any]:
        """Size and shape."""
        return {"size": self.size, "layers": len(self.orders), "hidden": self.hidden, "bins": self.bins}

    @torch.no_grad()
    def whiten(self, z: Tensor) -> None:
        """Settle on the mean and covariance of codes (n, size), from which splines then depart."""
        z = z.double()
        covariance = torch.cov(z.T)
        floor = BLUR**2 * covariance.diagonal().mean().clamp_min(1e-12)
        factor = torch.linalg.cholesky(covariance + floor * torch.eye(self.size, dtype=z.dtype))
        self.center.copy_(z.mean(0))
        self.factor.copy_(factor)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density, by the change of variables."""
        x, grown = self.to_normal(z)
        return standard_normal(x) + grown

    def sample(self, rows: int, temperature: float = 1.0) -> Tensor:
        """Normal draws, taken back to codes; the temperature is a factor of their distance to the origin."""
        with torch.no_grad():
            return self.from_normal(temperature * torch.randn(rows, self.size))

    def to_normal(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (n, size) to normal ones, and (n,) the log of how much volumes grow on the way."""
        x = torch.linalg.solve_triangular(self.factor, (z - self.center).T, upper=False).T
        grown = -self.factor.diagonal().log().sum().expand(len(z))
        for order, network in zip(self.orders, self.networks, strict=True):
            kept, moved = x[:, order].tensor_split([self.kept], dim=1)
            moved, change = spline(moved, self._bends(network, kept))
            x, grown = torch.cat([kept, moved], dim=1), grown + change.sum(1)
        return x, grown

    def from_normal(self, x: Tensor) -> Tensor:
        """`to_normal` undone."""
        for order, network in zip(self.orders.flip(0), reversed(list(self.networks)), strict=True):
            kept, moved = x.tensor_split([self.kept], dim=1)
            moved, _ = spline(moved, self._bends(network, kept), inverse=True)
            x = torch.cat([kept, moved], dim=1)[:, order.argsort()]
        return x @ self.factor.T + self.center

    def _bends(self, network: nn.Module, kept: Tensor) -> Tensor:
        parameters: Tensor = network(kept).unflatten(1, (self.size - self.kept, -1))
        return parameters


def _network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers, and a last one that begins at zero: the flow starts as the whitening alone."""
    last = linear(hidden, outputs, "identity", None)
    nn.init.zeros_(last.weight)
    layers = [linear(inputs, hidden, "silu", None), nn.SiLU(), linear(hidden, hidden, "silu", None), nn.SiLU()]
    return nn.Sequential(*layers, last)


def spline(x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Monotone rational-quadratic splines through knots of their own, straight lines of slope 1 beyond.

    Args:
        x: (n, m).
        parameters: (n, m, 3 bins - 1) any numbers: what widths, heights and slopes are made of.
        inverse: go the way back.

    Returns:
        (n, m) values, and (n, m) the log of their slopes.
    """
    bins = (parameters.shape[-1] + 1) // 3
    widths, heights, slopes = torch.split(parameters, [bins, bins, bins - 1], dim=-1)
    left, bottom = _knots(widths), _knots(heights)
    slopes = F.pad(THIN + F.softplus(slopes + SLOPE), (1, 1), value=1.0)
    within = x.clamp(-REACH, REACH)
    inner = (bottom if inverse else left)[..., 1:-1]
    bin_ = (within.unsqueeze(-1) >= inner).sum(-1, keepdim=True)

    def at(knots: Tensor, next_: int = 0) -> Tensor:
        return knots.gather(-1, bin_ + next_).squeeze(-1)

    start, low, first, second = at(left), at(bottom), at(slopes), at(slopes, 1)
    width, height = at(left, 1) - start, at(bottom, 1) - low
    steep = height / width
    bend = first + second - 2 * steep
    share = _share(within - low, height, steep, first, bend) if inverse else (within - start) / width
    mixed = share * (1 - share)
    base = steep + bend * mixed
    value = start + share * width if inverse else low + height * (steep * share.square() + first * mixed) / base
    rise = second * share.square() + 2 * steep * mixed + first * (1 - share).square()
    slope = 2 * steep.log() + rise.log() - 2 * base.log()
    inside = x.abs() < REACH
    return torch.where(inside, value, x), torch.where(inside, -slope if inverse else slope, 0.0)


def _share(above: Tensor, height: Tensor, steep: Tensor, first: Tensor, bend: Tensor) -> Tensor:
    """How far into its bin the point lies whose value is so much above the bin's lower end: a root of a quadratic."""
    a = height * (steep - first) + above * bend
    b = height * first - above * bend
    c = -steep * above
    root = (b.square() - 4 * a * c).clamp_min(0.0).sqrt()
    return 2 * c / (-b - root)


def _knots(parameters: Tensor) -> Tensor:
    """(..., bins + 1) places from -REACH to REACH, no two of them closer than `THIN` allows."""
    shares = THIN + (1 - THIN * parameters.shape[-1]) * parameters.softmax(-1)
    inner = 2 * REACH * shares.cumsum(-1)[..., :-1] - REACH
    return F.pad(F.pad(inner, (1, 0), value=-REACH), (0, 1), value=REACH)
