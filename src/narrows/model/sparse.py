"""Sparse codes: many numbers, of which a row uses few.

L1 and a target rate ask for it by a cost, so that how few are used follows from the data; TopK grants exactly k, which
costs nothing and has no weight to be tuned. What this file does not know: the decoder. So an L1 norm must not be
cheated by a small code under a large decoder, and units that died come back without being told what is still missing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.latents import Code, Latent
from narrows.networks.dense import activation

FLOOR = 1e-4  # of the mean square of all numbers: what a number that is nearly always 0 is measured by at least
FORGETS = 0.01  # share of a step in the running averages, once there were a hundred


class Reviving(Latent):
    """A code whose units may die, as ReLUs do that are 0 for every row and get no gradient.

    Each unit has a bias that training raises once the unit has not fired for `patience` steps, by just as much as it
    lacked in the row of the batch that needed least: it fires for the rows that it suits best, and from there on
    gradients shape it. (Bricken et al. 2023 draw dead units anew and Gao et al. 2024 let them model the residual, which
    take encoder and decoder; here the encoder's own preference decides.) The bias is part of the feature in training
    and after, so that a code means the same in both.

    Args:
        size: numbers in the code of one row.
        patience: steps without firing after which a unit is dead; 0 never revives.
        start: the biases before training.

    Raises:
        SettingError: for a negative patience.
    """

    limits = True
    bias: Tensor
    idle: Tensor

    def __init__(self, size: int, patience: int, start: float) -> None:
        super().__init__(size)
        if patience < 0:
            raise SettingError(f"patience={patience}", "0 or more steps")
        self.patience, self.start = patience, start
        self.suit(None)

    def suit(self, members: int | None) -> None:
        """Room for a bias and a count for each unit of each member."""
        self.register_buffer("bias", torch.full((*_axes(members), 1, self.size), self.start))
        self.register_buffer("idle", torch.zeros(*_axes(members), 1, self.size, dtype=torch.long))

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def biased(self, features: Tensor) -> Tensor:
        """Features and what was added to raise them."""
        return features.float() + self.bias

    @abstractmethod
    def bar(self, biased: Tensor) -> Tensor | float:
        """What a biased feature must exceed to fire: for all, or for each row."""

    def update(self, code: Code) -> None:
        """Count the steps that each unit has not fired for, and raise those that are dead."""
        self.idle.add_(1).masked_fill_((code.z[0] != 0).any(-2, keepdim=True), 0)
        dead = self.idle >= self.patience
        if not self.patience or code.features is None or not bool(dead.any()):
            return
        biased = self.biased(code.features)
        lacking = (self.bar(biased) - biased).amin(-2, keepdim=True).clamp_min(0.0)
        self.bias += dead * (1.01 * lacking + 1e-6)


class L1Sparse(Reviving):
    """A code that costs its L1 norm, in units that no scaling of the code can cheat.

    The term `sparsity` of a row is sum_j |z_j| / r_j, where r_j is the root mean square of number j: over the batch in
    training, with gradients, and as averaged over training in scoring. The L1 norm itself, the usual cost of sparse
    coding (Olshausen & Field 1996), also falls when the code shrinks and the decoder grows, which says nothing of
    sparsity; dictionary learning forbids that by unit norms of a linear decoder, which a deep one does not have.
    Measured by its own spread, a number that is equally large for every row costs 1 a row, and one that is there for a
    share s of the rows at most sqrt(s).

    Args:
        size: numbers in the code of one row.
        link: activation of the code; ReLU makes zeros exact.
        patience: steps without firing after which a unit is revived; 0 never revives.
    """

    mean_square: Tensor
    steps: Tensor

    def __init__(self, size: int, link: str = "relu", patience: int = 100) -> None:
        # rectified units that start above 0 are all there at first; the cost thins them out
        super().__init__(size, patience, start=1.0 if link == "relu" else 0.0)
        self.link = activation(link)

    def suit(self, members: int | None) -> None:
        """Room for the biases and averages of each member."""
        super().suit(members)
        self.register_buffer("mean_square", torch.ones_like(self.bias))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code, and what it costs."""
        z = self.link(self.biased(features))
        square = z.square().mean(-2, keepdim=True) if self.training else self.mean_square
        floor = FLOOR * square.detach().mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny ** 0.5
        cost = (z.abs() * (square + floor).rsqrt()).sum(-1)
        return Code(z.unsqueeze(0), {"sparsity": cost.unsqueeze(0)}, features=features)

    def bar(self, biased: Tensor) -> float:
        """Zero, as activations that are exactly 0 are so below it."""
        return 0.0

    def update(self, code: Code) -> None:
        """Also average the squares: over all steps at first, over about the last hundred later."""
        super().update(code)
        self.steps += 1
        share = (1.0 / self.steps).clamp_min(FORGETS)
        self.mean_square.lerp_(code.z[0].square().mean(-2, keepdim=True), share)


class RateSparse(Latent):
    """A code in (0, 1) each of whose numbers is to be on for a share of the rows (Ng 2011).

    The scalar `sparsity` is sum_j KL(rate || mean of number j over the batch), both read as chances. It asks for a mean
    alone: a number may also reach it by being a little on for every row, so look at the codes, or take `L1Sparse`.

    Args:
        size: numbers in the code of one row.
        rate: the mean asked for, between 0 and 1.

    Raises:
        SettingError: for a rate out of range.
    """

    limits = True

    def __init__(self, size: int, rate: float = 0.05) -> None:
        super().__init__(size)
        if not 0 < rate < 1:
            raise SettingError(f"rate={rate!r}", "a share between 0 and 1")
        self.rate = rate

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code, and what its means cost; members summed."""
        features = features.float()
        z = features.sigmoid()
        # by way of 1 - sigmoid(x) = sigmoid(-x): a mean that rounds to 1 still has a logarithm
        on, off = z.mean(-2), (-features).sigmoid().mean(-2)
        tiny, rate = torch.finfo(torch.float32).tiny, torch.tensor(self.rate, device=z.device)
        cost = torch.xlogy(rate, rate / on.clamp_min(tiny)) + torch.xlogy(1 - rate, (1 - rate) / off.clamp_min(tiny))
        return Code(z.unsqueeze(0), scalars={"sparsity": cost.sum()})


class TopK(Reviving):
    """Only the k largest features of a row stay, rectified (Makhzani & Frey 2014; Gao et al. 2024).

    Args:
        size: numbers in the code of one row.
        k: of them stay.
        patience: steps without firing after which a unit is revived; 0 never revives.

    Raises:
        SettingError: for a k beyond the code, or a negative patience.
    """

    def __init__(self, size: int, k: int, patience: int = 100) -> None:
        if not 1 <= k <= size:
            raise SettingError(f"k={k} for a code of {size} numbers", f"from 1 to {size}", "a wider code (--latent)")
        super().__init__(size, patience, start=1.0)  # so that few of those that stay are rectified away at first
        self.k = k

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code: exactly k features, of which negative ones become 0."""
        biased = self.biased(features)
        values, chosen = biased.topk(self.k, dim=-1)
        z = torch.zeros_like(biased).scatter(-1, chosen, values.relu())
        return Code(z.unsqueeze(0), features=features)

    def bar(self, biased: Tensor) -> Tensor:
        """The least of the k that stay, or 0 where that is more."""
        return biased.topk(self.k, dim=-1).values[..., -1:].relu()


def _axes(members: int | None) -> Sequence[int]:
    """The members' axis, where there is one."""
    return () if members is None else (members,)
