"""Opponents: critics that learn to tell what is real from what the autoencoder made.

Each is a game of two losses in one step. The critic learns to give real things a high logit; the autoencoder to be
given one too, by the non-saturating loss -log sigmoid (Goodfellow et al. 2014), which pulls hardest where it is losing.
Two things keep them from circling each other, both weak enough to leave the critic its verdict: logits are kept flat
around real things (R1, Mescheder et al. 2018), and real things are real by nine tenths only (Salimans et al. 2016). On
8 x 8 digits, 8 numbers a code, the squared error was 0.93 with both, 0.93 with the first, 1.2 with the second and 1.7
with neither, whose codes ended far from normal; instance noise gave 1.5. What they do not know: weights of rows, and
whether training has come far. The value of a game says little, so they do not judge which weights to keep.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.penalties import Pass, Penalty, Site, frozen, twice_differentiable
from narrows.networks.dense import activation, linear
from narrows.schema import Batch
from narrows.world import drawn

HIDDEN = (256, 256)  # of the critic of codes
SURE = 0.9  # how surely real things are to be called real
FLAT = 0.1  # weight of the squared gradient at real things; at 1 and 10 the critics saw too little


class CodeCritic(Penalty):
    """Codes that cannot be told from standard normal ones: the adversarial autoencoder (Makhzani et al. 2016).

    Args:
        site: whose codes are meant.
        flat: weight of the squared gradient of the critic at normal codes.
    """

    name = "adversary"

    def __init__(self, site: Site, flat: float = FLAT) -> None:
        super().__init__()
        widths = (site.latent.size, *HIDDEN)
        layers: list[nn.Module] = []
        for inside, outside in zip(widths, HIDDEN, strict=False):
            layers += [linear(inside, outside, "leaky_relu", site.members), activation("leaky_relu")]
        self.critic = nn.Sequential(*layers, linear(widths[-1], 1, "identity", site.members))
        self.flat = flat

    def forward(self, passed: Pass) -> Tensor:
        """([E,] B) how surely each code is told from a normal one."""
        return fooled(frozen(self.critic, passed.code.z)).mean(0)

    def opposing(self, passed: Pass) -> Tensor:
        """() how badly codes are told from normal ones."""
        z = passed.code.z.detach().float()
        normal = drawn(torch.randn, *z.shape, rows=-2, device=z.device).requires_grad_()
        real = self.critic(normal)
        cost = told(real, self.critic(z)).mean(0)
        return (cost + self.flat * steepness(real, normal).mean(0)).mean(-1).sum()


class RowCritic(Penalty):
    """Reconstructions and decoded prior draws that cannot be told from real rows: the VAE-GAN (Larsen et al. 2016).

    The critic is a network like the encoder. Its features of a row and of the reconstruction shall agree (half their
    squared distance), so that errors count by how they look to it; its verdict on what is made from codes trains the
    decoder alone, as in the source. Made rows are expected cells, as hidden or absent as those of the real rows.

    Args:
        site: where rows are all numbers, and the network is a single one.
        features: numbers by which the critic knows a row.
        flat: weight of the squared gradient of the critic at real rows.

    Raises:
        SettingError: for other rows, and for ensembles.
    """

    name = "adversary"

    def __init__(self, site: Site, features: int = 64, flat: float = FLAT) -> None:
        super().__init__()
        _check(site)
        if features < 1:
            raise SettingError(f"features={features}", "at least 1")
        self.look = site.critic(features)
        self.verdict = nn.Sequential(activation("leaky_relu"), linear(features, 1, "identity", None))
        self.flat = flat

    def forward(self, passed: Pass) -> Tensor:
        """(B,) how the reconstruction looks unlike the row, and how surely what was made is told from real rows."""
        z = passed.code.z[:1].detach()
        made = passed.decode(torch.cat([z, drawn(torch.randn, *z.shape, rows=-2, device=z.device)])).numbers()
        looks = _each(frozen(self.look, _made(passed.batch, made)), passed.batch)
        return self.unlike(passed) + fooled(frozen(self.verdict, looks)).mean(0)

    def unlike(self, passed: Pass) -> Tensor:
        """(B,) half the squared distance between the features of row and reconstruction, a feature."""
        batch = passed.batch
        wanted: Tensor = frozen(self.look, batch).detach().float()
        again = _each(frozen(self.look, _made(batch, passed.p.numbers())), batch).float()
        return 0.5 * (again - wanted).square().mean(-1).mean(0)

    def opposing(self, passed: Pass) -> Tensor:
        """() how badly what was made is told from real rows."""
        with torch.no_grad():
            z = drawn(torch.randn, *passed.code.z[:1].shape, rows=-2, device=passed.code.z.device)
            made = _made(passed.batch, torch.cat([passed.p.numbers()[:1], passed.decode(z).numbers()]))
        real = replace(passed.batch, numbers=passed.batch.numbers.detach().requires_grad_())
        with twice_differentiable():
            logits = self.verdict(self.look(real))
            flat = self.flat * steepness(logits, real.numbers)
        return (told(logits, self.verdict(_each(self.look(made), passed.batch))).mean(0) + flat).mean()


def fooled(made: Tensor) -> Tensor:
    """(...) the cost of being told: -log sigmoid of logits (..., 1)."""
    return F.softplus(-made.float()).squeeze(-1)


def told(real: Tensor, made: Tensor) -> Tensor:
    """(...) the cost of not telling: cross-entropy of logits (..., 1), real things counting as such by `SURE`."""
    real, made = real.float(), made.float()
    return (SURE * F.softplus(-real) + (1 - SURE) * F.softplus(real) + F.softplus(made)).squeeze(-1)


def steepness(logits: Tensor, inputs: Tensor) -> Tensor:
    """(...) half the squared gradient of each row's logit with respect to the row, as R1 has it.

    Args:
        logits: (..., 1), each of its own row.
        inputs: (..., size) that wanted gradients.
    """
    (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return 0.5 * slope.float().square().sum(-1)


def _made(batch: Batch, numbers: Tensor) -> Batch:
    """Numbers (K, B, N) as K * B rows, seen where the real ones were."""
    times = len(numbers)
    seen = None if batch.seen is None else batch.seen.repeat(times, 1)
    return Batch(numbers.flatten(0, 1), batch.codes.repeat(times, 1), seen)


def _each(looks: Tensor, batch: Batch) -> Tensor:
    """(K, B, features) of K * B rows."""
    return looks.reshape(-1, len(batch), looks.shape[-1])


def _check(site: Site) -> None:
    """Refuse what cannot be decoded in a way that gradients pass, or held against real rows one by one."""
    other = [column for column in site.schema if column.categorical or column.kind == "bag"]
    if other or not site.schema.numbers:
        got = f"the recipe vaegan for column {other[0].name!r} of kind {other[0].kind}" if other else "no numbers"
        raise SettingError(got, "columns of numbers alone", "the recipe aae, whose critic reads codes")
    if site.members is not None:
        raise SettingError(f"the recipe vaegan with members={site.members}", "one member", "the recipe aae")
