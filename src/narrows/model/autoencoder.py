"""The one module: five slots, and a forward pass that reads in the order the data meets them.

    batch -> corrupt -> embed -> encoder -> latent -> decoder -> likelihood -> Loss
      B rows, C cells                      z (K, [E,] B, size)          nll (K, [E,] B, C)

K samples of the code, E members where the network is an ensemble. The loss counts the uncorrupted cells, where they
were seen. Variants are other parts in the slots; nothing subclasses `AutoencoderModule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from narrows.model.embed import CellEmbed, Embed, GridEmbed
from narrows.model.latents import Code, Latent
from narrows.model.likelihoods import Likelihood, Prediction
from narrows.networks.grids import Feedback
from narrows.schema import Batch


@dataclass(frozen=True)
class Loss:
    """What a pass cost, cell by cell and term by term, not yet added up.

    Args:
        nll: (K, [E,] B, C) negative log likelihood of each seen cell, 0 elsewhere.
        terms: name -> (K, [E,] B) what the latent asks of each row.
        weights: name -> weight of a term, such as beta for `kl`; terms without one weigh 1.
        rows: (B,) weight of each row, or None for equal ones.
    """

    nll: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    rows: Tensor | None = None

    def per_row(self) -> Tensor:
        """([E,] B) loss of each row: summed over cells and weighted terms, averaged over samples."""
        total = self.nll.sum(-1)
        for name, term in self.terms.items():
            total = total + self.weights.get(name, 1.0) * term
        return total.squeeze(0) if len(total) == 1 else total.mean(0)

    def total(self) -> Tensor:
        """The number to minimize: (weighted) mean over rows; summed over members, each of which trains as if alone."""
        rows = self.per_row()
        if self.rows is None:
            return rows.mean(-1).sum()
        # a batch may hold rows of weight 0 alone; it costs nothing then
        return (rows @ self.rows).sum() / self.rows.sum().clamp_min(torch.finfo(torch.float32).tiny)

    def broken(self) -> list[int]:
        """Positions of the cells whose likelihood is not finite for some row."""
        finite = self.nll.isfinite().flatten(0, -2).all(0)
        return (~finite).nonzero().flatten().tolist()


@final
class AutoencoderModule(nn.Module):
    """An autoencoder: the slots, filled.

    Args:
        corrupt: Batch -> Batch, applied in training only.
        embed: Batch -> (B, inputs), or a View where the network reads grids.
        encoder: (B, inputs) or View -> ([E,] B, features).
        latent: features -> Code.
        decoder: (K, [E,] B, size) -> (K, [E,] B, outputs). An autoregressive one also reads the embedded rows.
        likelihood: outputs -> Prediction.
        weights: of the latent's terms.
    """

    def __init__(
        self,
        corrupt: nn.Module,
        embed: Embed | GridEmbed | CellEmbed,
        encoder: nn.Module,
        latent: Latent,
        decoder: nn.Module,
        likelihood: Likelihood,
        weights: dict[str, float],
    ) -> None:
        super().__init__()
        self.corrupt, self.embed, self.encoder = corrupt, embed, encoder
        self.latent, self.decoder, self.likelihood = latent, decoder, likelihood
        self.weights = weights

    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch, with one sample of each code."""
        batch = batch.dense()
        view = self.corrupt(batch) if self.training else batch
        code: Code = self.latent(self.encoder(self.embed(view)), samples=1)
        return self._loss(code, batch)

    def encode(self, batch: Batch) -> Code:
        """The best guess of each row's code: z (1, [E,] B, size)."""
        code: Code = self.latent(self.encoder(self.embed(batch.dense())), samples=0)
        return code

    def decode(self, z: Tensor) -> Prediction:
        """The rows that codes (K, [E,] B, size) stand for; what is told step by step goes on from its own words."""
        outputs = self.decoder(z, None, self._feedback()) if self.autoregressive else self.decoder(z)
        prediction: Prediction = self.likelihood(outputs)
        return prediction

    def score(self, batch: Batch) -> Loss:
        """The loss of a batch at the best guess of its codes: the same whenever it is asked."""
        batch = batch.dense()
        return self._loss(self.encode(batch), batch)

    def _loss(self, code: Code, batch: Batch) -> Loss:
        """What codes cost that are to stand for these rows."""
        outputs = self.decoder(code.z, self.embed(batch)) if self.autoregressive else self.decoder(code.z)
        p: Prediction = self.likelihood(outputs)
        return Loss(-p.log_prob(batch), code.terms, self.weights, batch.weight)

    @property
    def autoregressive(self) -> bool:
        """Whether the decoder reads what came before: the rows themselves in training, its own words in `decode`."""
        return bool(getattr(self.decoder, "autoregressive", False))

    def _feedback(self) -> list[Feedback]:
        """For each grid: one position's outputs -> the same position as the decoder reads it."""
        embed = self.embed
        if not isinstance(embed, GridEmbed):
            return []

        def feed(index: int, outputs: Tensor) -> Tensor:
            return embed.feed(index, self.likelihood.at_position(embed.columns[index], outputs.float()))

        return [partial(feed, index) for index in range(len(embed.columns))]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
