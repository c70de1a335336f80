"""Discrete codes: each position of a code is one of a few entries, learnt (VQ) or fixed on a grid (FSQ).

A learnt codebook follows the data wherever it lies, and needs care against entries that nothing uses; the grid needs
none, and many more numbers for the same fidelity. What this file does not know: how entries follow each other, which a
code prior learns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.latents import Code, Latent

DECAY = 0.99  # of a codebook's averages a step
UNUSED = 0.1  # of the use that each entry would have if all were used alike: below, an entry is given a new place
MOST_LEVELS = 1 << 20


class VectorQuantized(Latent):
    """A code of size / dim positions, each the nearest of `levels` learnt entries (van den Oord et al. 2017).

    Gradients pass the choice as if it were not there (straight through). The term `commitment` of a row, its squared
    distance from the entries chosen, keeps the encoder near them; entries follow the features they were chosen for, as
    exponential moving averages (Razavi et al. 2019) that `update` takes. An entry that is chosen less than a tenth as
    often as if all were chosen alike moves to a feature of the batch (Dhariwal et al. 2020): so the first step places
    the whole codebook on the data.

    Args:
        size: numbers in the code of one row.
        levels: entries of the codebook, which all positions share.
        dim: numbers of an entry.

    Raises:
        SettingError: for a size that `dim` does not divide, or values out of range.
    """

    limits = True
    entries: Tensor
    counts: Tensor

    def __init__(self, size: int, levels: int = 256, dim: int = 4) -> None:
        super().__init__(size)
        if not 2 <= levels <= MOST_LEVELS:
            raise SettingError(f"levels={levels}", f"from 2 to {MOST_LEVELS:,}")
        if dim < 1 or size % dim:
            near = sorted({max(1, size // dim) * dim, (size // dim + 1) * dim}) if dim > 0 else []
            sizes = " or ".join(map(str, near)) or "dim of at least 1"
            raise SettingError(f"a code of {size} numbers in entries of dim={dim}", f"a code of {sizes} numbers")
        self.symbols, self.dim = levels, dim
        self.suit(None)

    def suit(self, members: int | None) -> None:
        """A codebook, and how often its entries were chosen a step, for each member."""
        axes = () if members is None else (members,)
        self.register_buffer("entries", torch.randn(*axes, self.symbols, self.dim))
        self.register_buffer("counts", torch.zeros(*axes, self.symbols))

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The entries nearest to the features."""
        x = features.float()
        symbols = self.nearest(x)
        z = self.look_up(symbols)
        if (
            self.training
        ):  # before the first update places the codebook, its entries are noise: features pass as they are
            z = torch.where(self.counts.any(), z, x.detach())
        commitment = (x - z).square().sum(-1)
        z = x + (z - x).detach() if self.training else z
        return Code(z.unsqueeze(0), {"commitment": commitment[None]}, features=features, symbols=symbols[None])

    def nearest(self, x: Tensor) -> Tensor:
        """([E,] B, positions) int64 entries with the least squared distance from features ([E,] B, size)."""
        places = self._places(x)
        with torch.autocast(x.device.type, enabled=False):  # rounded to bfloat16, another entry would often be nearer
            closeness = places @ self.entries.mT - 0.5 * self.entries.square().sum(-1).unsqueeze(-2)
        return closeness.argmax(-1).view(*x.shape[:-1], -1)

    def look_up(self, symbols: Tensor) -> Tensor:
        """([E,] B, size) codes of entries ([E,] B, positions)."""
        flat = symbols.flatten(-2).unsqueeze(-1)
        return torch.take_along_dim(self.entries, flat, dim=-2).reshape(*symbols.shape[:-1], -1)

    def update(self, code: Code) -> None:
        """Move the entries towards the features that chose them, and those that none chooses among the features."""
        if code.features is None or code.symbols is None:
            return
        places = self._places(code.features.float())
        symbols = code.symbols[0].flatten(-2).unsqueeze(-1)
        chose = places.new_zeros(*places.shape[:-1], self.symbols).scatter_(-1, symbols, 1.0)
        sums = (DECAY * self.counts).unsqueeze(-1) * self.entries + (1 - DECAY) * (chose.mT @ places)
        self.counts.mul_(DECAY).add_(chose.sum(-2), alpha=1 - DECAY)
        used = self.counts.unsqueeze(-1) > torch.finfo(torch.float32).tiny
        self.entries.copy_(torch.where(used, sums / self.counts.unsqueeze(-1), self.entries))
        self._revive(places)

    def _revive(self, places: Tensor) -> None:
        """Give entries that are hardly used the place of a feature each, as far as there are features."""
        dead = self.counts < UNUSED * places.shape[-2] / self.symbols
        if dead.is_cuda or bool(dead.any()):  # to ask a GPU would take longer than to move nothing
            self._replace(dead, places)

    def _replace(self, dead: Tensor, places: Tensor) -> None:
        """Move entries to features drawn at random, and count them as used."""
        count = places.shape[-2]
        drawn = torch.rand(places.shape[:-1], device=places.device).argsort(-1)
        rank = dead.cumsum(-1) - 1
        reborn = dead & (rank < count)
        chosen = drawn.gather(-1, rank.clamp(0, count - 1)).unsqueeze(-1)
        fresh = torch.take_along_dim(places, chosen, dim=-2)
        self.entries.copy_(torch.where(reborn.unsqueeze(-1), fresh, self.entries))
        self.counts.masked_fill_(reborn, count / self.symbols)

    def check(self, rows: int | None) -> None:
        """Refuse fewer rows than entries."""
        if rows is not None and rows < self.symbols:
            raise SettingError(f"a codebook of levels={self.symbols} for {rows} rows", f"at most {rows} levels")

    def _places(self, features: Tensor) -> Tensor:
        """([E,] B * positions, dim)."""
        return features.reshape(*features.shape[:-2], -1, self.dim)


class FiniteScalar(Latent):
    """A code each of whose numbers takes one of `levels` values, evenly spaced in [-1, 1] (Mentzer et al. 2024).

    A feature is bounded by tanh and rounded, straight through for gradients. There is nothing to be learnt and no term.
    Their half step of shift for even `levels` is left out: the grid is symmetric for all.

    Args:
        size: numbers in the code of one row; each is a position of its own.
        levels: values of each.

    Raises:
        SettingError: for fewer than two levels.
    """

    limits = True

    def __init__(self, size: int, levels: int = 8) -> None:
        super().__init__(size)
        if not 2 <= levels <= MOST_LEVELS:
            raise SettingError(f"levels={levels}", f"from 2 to {MOST_LEVELS:,}")
        self.symbols = levels

    @property
    def features(self) -> int:
        """One for each number of the code."""
        return self.size

    def forward(self, features: Tensor, samples: int, ratio: bool = False) -> Code:
        """The values nearest to the bounded features."""
        bounded = features.float().tanh()
        symbols = ((bounded + 1) * (0.5 * (self.symbols - 1))).round().long()
        z = self.look_up(symbols)
        z = bounded + (z - bounded).detach() if self.training else z
        return Code(z[None], symbols=symbols[None])

    def look_up(self, symbols: Tensor) -> Tensor:
        """(..., size) values of symbols (..., size): -1 for the first, 1 for the last."""
        return symbols * (2.0 / (self.symbols - 1)) - 1.0
