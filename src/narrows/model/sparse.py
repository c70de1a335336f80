"""Sparse codes: many numbers, of which a row uses few.

L1 and a target rate ask for it by a cost, so that how few are used follows from the data; TopK grants exactly k, which
costs nothing and has no weight to be tuned. What this file does not know: the decoder. So an L1 norm must not be
cheated by a small code under a large decoder, and units that died come back without being told what is still missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.latents import Code, Latent
from narrows.networks.dense import activation

GHOST = 0.1  # of the gradient that a dead unit would have: 0.01 to 0.3 did alike, 1 let errors of other units grow
START = 1.0  # added to features that will be rectified, so that few units are 0 for every row before training
FLOOR = 1e-2  # of the mean square of all numbers: what a number that is nearly always 0 is measured by at least
FORGETS = 0.01  # share of a step in the running averages, once there were a hundred


class Reviving(Latent):
    """A code of rectified units, which die where they are 0 for every row: no gradient reaches them any more.

    One that has not fired for `patience` steps gets, in training, the gradient that it would have if it fired, on the
    rows where firing would lower the loss, times 0.1: it stays 0 until it has become a feature that such rows want.
    Nothing else changes, so nothing is disturbed. (Bricken et al. 2023 draw dead units anew and Gao et al. 2024 let
    them model the residual, which a latent knows by its gradient only.) On 8 x 8 digits with 64 units, of which 4 stay,
    none was dead at the end in place of 39, and the squared error of unseen rows was 1.23 in place of 1.41 (means of
    three seeds). Raising the biases of dead units until they fired left as many dead, and larger errors.

    Args:
        size: numbers in the code of one row.
        patience: steps without firing after which a unit is dead; 0 never revives.

    Raises:
        SettingError: for a negative patience.
    """

    limits = True
    idle: Tensor

    def __init__(self, size: int, patience: int) -> None:
        super().__init__(size)
        if patience < 0:
            raise SettingError(f"patience={patience}", "0 or more steps")
        self.patience = patience
        self.suit(None)

    def suit(self, members: int | None) -> None:
        """Room for a count for each unit of each member."""
        self.register_buffer("idle", torch.zeros(*_axes(members), 1, self.size, dtype=torch.long))

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def haunted(self, z: Tensor, features: Tensor) -> Tensor:
        """The same code, with a gradient for dead units."""
        if not (self.training and self.patience and features.requires_grad):
            return z
        ghost = features * ((self.idle >= self.patience) & (z == 0))
        ghost.register_hook(lambda gradient: GHOST * gradient.clamp_max(0.0))  # type: ignore[no-untyped-call]
        return z + (ghost - ghost.detach())

    def update(self, code: Code) -> None:
        """Count the steps that each unit has not fired for."""
        self.idle.add_(1).masked_fill_((code.z[0] != 0).any(-2, keepdim=True), 0)


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

    def __init__(self, size: int, link: str = "relu", patience: int = 20) -> None:
        super().__init__(size, patience)
        self.link = activation(link)

    def suit(self, members: int | None) -> None:
        """Room for the counts and averages of each member."""
        super().suit(members)
        self.register_buffer("mean_square", torch.ones(self.idle.shape))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code, and what it costs."""
        features = features.float() + START
        z = self.link(features)
        square = z.square().mean(-2, keepdim=True) if self.training else self.mean_square
        floor = FLOOR * square.detach().mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny ** 0.5
        cost = (z.abs() * (square + floor).rsqrt()).sum(-1)
        return Code(self.haunted(z, features).unsqueeze(0), {"sparsity": cost.unsqueeze(0)})

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
        tiny, rate = torch.finfo(torch.float32).tiny, z.new_full((), self.rate)
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

    def __init__(self, size: int, k: int, patience: int = 20) -> None:
        super().__init__(size, patience)
        if not 1 <= k <= size:
            raise SettingError(f"k={k} for a code of {size} numbers", f"from 1 to {size}", "a wider code (--latent)")
        self.k = k

    @property
    def in_use(self) -> int:
        """k."""
        return self.k

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The code: exactly k features, of which negative ones become 0."""
        features = features.float() + START
        values, chosen = features.topk(self.k, dim=-1)
        z = torch.zeros_like(features).scatter(-1, chosen, values.relu())
        return Code(self.haunted(z, features).unsqueeze(0))


def _axes(members: int | None) -> Sequence[int]:
    """The members' axis, where there is one."""
    return () if members is None else (members,)
