"""The contractive penalty: how far a code moves when its row moves a little (Rifai et al. 2011).

Exact where the encoder is one linear layer, at the price of one product; elsewhere a random projection of the Jacobian,
at the price of another pass through the encoder and back, twice differentiated. What it does not know: how large codes
are meant to be. They shrink, since a decoder can undo that, but they also move less for their size: on 8 x 8 digits the
squared norm over the variance of the codes fell from 11 to 3 at a weight of 0.1.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.embed import Embed
from narrows.model.latents import Deterministic
from narrows.model.penalties import Pass, Penalty, Site, twice_differentiable
from narrows.networks.dense import MemberLinear
from narrows.schema import Batch
from narrows.world import drawn


class Contractive(Penalty):
    """The squared Frobenius norm of the Jacobian of a row's code with respect to its number cells, in prepared units.

    Of a code that is drawn, its best guess counts. Where layers in between look at the whole batch, as batch
    normalization does, the estimate is of the Jacobian of all codes with respect to the row.

    Args:
        site: whose encoder is meant.
        draws: random projections of the estimate; its error falls with their root. One is unbiased and costs least.

    Raises:
        SettingError: for rows without numbers, or no draws.
    """

    name = "contractive"

    def __init__(self, site: Site, draws: int = 1) -> None:
        super().__init__()
        if not site.schema.numbers:
            raise SettingError("the recipe contractive for rows without numbers", "a column of numbers", "denoising")
        if draws < 1:
            raise SettingError(f"draws={draws}", "at least 1")
        self.draws, self.members = draws, site.members
        # in a tuple, so that torch does not count as this penalty's what is the model's
        self._ends = (site.embed, site.encoder, site.latent)
        bags = any(column.kind == "bag" for column in site.schema)
        straight = isinstance(site.embed, Embed) and isinstance(site.latent, Deterministic) and not bags
        self.exact = straight and len(_layers(site.encoder)) == 1

    def forward(self, passed: Pass) -> Tensor:
        """([E,] B) the squared norm, or an estimate of it."""
        return self.norm(passed.view) if self.exact else self.estimate(passed.view)

    def norm(self, view: Batch) -> Tensor:
        """([E,] B) exactly, for an encoder of one linear layer and an activation of each number of the code."""
        embed, encoder, latent = self._ends
        numbers = view.numbers.detach().requires_grad_()
        inputs = embed(replace(view, numbers=numbers))
        values = inputs[:, : numbers.shape[1]]  # of each cell its own; what follows them does not depend on numbers
        rates = _slope(values, numbers).square()
        features = encoder(inputs.detach())
        slopes = _slope(latent(features, 0).z.squeeze(0), features).float().square()
        (layer,) = _layers(encoder)
        weight = _weight(layer)
        return (slopes * (rates @ weight[..., : numbers.shape[1], :].square())).sum(-1)

    def estimate(self, view: Batch) -> Tensor:
        """([E,] B) the mean of |v J|^2 over normal v (Hutchinson 1990), which is right in expectation."""
        embed, encoder, latent = self._ends
        rows, members = len(view), self.members
        if members is not None:  # each with rows of its own, or their Jacobians would be added before they are squared
            view = view[torch.arange(rows, device=view.numbers.device).repeat(members)]
        numbers = view.numbers.detach().requires_grad_()
        with twice_differentiable():
            inputs = embed(replace(view, numbers=numbers))
            if members is not None:
                inputs = inputs.view(members, rows, -1)
            z = latent(encoder(inputs), 0).z.float()
            norms = [_slope(z, numbers, _along(z)).square().sum(-1) for _ in range(self.draws)]
        mean = torch.stack(norms).mean(0)
        return mean if members is None else mean.view(members, rows)


def _slope(of: Tensor, to: Tensor, along: Tensor | None = None) -> Tensor:
    """The gradient of a sum, weighted by `along`; to be differentiated again."""
    along = torch.ones_like(of) if along is None else along
    (slope,) = torch.autograd.grad(of, to, along, create_graph=True)
    return slope


def _along(z: Tensor) -> Tensor:
    """A random direction for each code."""
    return drawn(torch.randn, *z.shape, rows=-2, device=z.device)


def _layers(encoder: nn.Module) -> list[nn.Module]:
    """The layers of an encoder that is nothing but linear ones; none for others."""
    layers = list(encoder.children()) if isinstance(encoder, nn.Sequential) else [encoder]
    return layers if all(isinstance(layer, nn.Linear | MemberLinear) for layer in layers) else []


def _weight(layer: nn.Module) -> Tensor:
    """([E,] inputs, features) weights of a linear layer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight if isinstance(layer, MemberLinear) else weight.mT
