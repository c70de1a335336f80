"""What a variational model says of cells that are missing: codes drawn from what was seen, weighed by importance.

    rows with holes -> K codes from the encoder -> weights p(seen, code) / q(code | seen) -> expected cells, draws

The MIWAE imputation of Mattei & Frellsen (2019): right in the limit of many codes for any encoder. What this file does
not know: how well the encoder reads rows with holes; one trained on whole rows reads them worse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.fitted import Model
from narrows.model.likelihoods import Prediction
from narrows.schema import Batch
from narrows.tasks.holes import Guess
from narrows.train.randomness import kept, seed_step

SAMPLES = 64  # codes of a row


class Latent:
    """A variational model's say of what is missing.

    Args:
        model: variational, of one member, with a density for every cell.

    Raises:
        SettingError: for another one.
    """

    def __init__(self, model: Model) -> None:
        module = model.module
        fit = module.latent.variational and not model.members and not module.autoregressive
        if not (fit and module.likelihood.density):
            hint = "narrows fit DATA --for impute, or the recipe conditional or vae"
            raise SettingError(
                f"a {model.recipe.name} model asked for cells that are missing", "one that tells them", hint
            )
        self.model, self.schema = model, model.schema

    def guess(self, batch: Batch, share: float = 0.9) -> Guess:
        """What is expected, over codes by their weights; the interval is that of draws."""
        count = self.schema.numbers

        @torch.inference_mode()
        def say(part: Batch) -> Tensor:
            p, weight = self._weighed(part)
            numbers = (p.numbers().double() * weight.unsqueeze(-1)).sum(0)
            votes = p.codes()
            share_of = torch.stack([((votes == votes[k]) * weight.unsqueeze(-1)).sum(0) for k in range(len(votes))])
            codes = votes.gather(0, share_of.argmax(0, keepdim=True))[0]
            drawn, order = p.sample()[0].double().sort(0)
            below = weight.unsqueeze(-1).expand_as(drawn).gather(0, order).cumsum(0)
            ends = [drawn.gather(0, (below < end).sum(0, keepdim=True).clamp_max(len(drawn) - 1))[0] for end in tails]
            return torch.cat([numbers, *ends, codes.double()], dim=1)

        tails = (1 - share) / 2, (1 + share) / 2
        with kept(self.model.module.device):
            seed_step(0, 0, self.model.module.device)
            joined = self.model.blocks(batch, say)
        numbers, low, high, codes = joined.tensor_split([count, 2 * count, 3 * count], dim=1)
        return Guess(self._within(numbers.float()), codes.long(), low.float(), high.float())

    def draw(self, batch: Batch, seed: int, first: int = 0) -> Batch:
        """The rows with every hole filled by a draw: a code by its weight, then all cells at once."""
        count, device = self.schema.numbers, self.model.module.device
        at = first

        @torch.inference_mode()
        def say(part: Batch) -> Tensor:
            nonlocal at
            seed_step(seed, at, device)
            at += len(part)
            p, weight = self._weighed(part)
            one = torch.multinomial(weight.T, 1).T.unsqueeze(-1)
            numbers, codes = (cells.gather(0, one.expand(1, *cells.shape[1:]))[0] for cells in p.sample())
            return torch.cat([numbers.double(), codes.double()], dim=1)

        with kept(device):
            numbers, codes = self.model.blocks(batch, say).tensor_split([count], dim=1)
        seen = batch.mask()
        numbers = torch.where(seen[:, :count], batch.numbers, self._within(numbers.float()))
        return Batch(numbers, torch.where(seen[:, count:], batch.codes, codes.long()))

    def _weighed(self, part: Batch) -> tuple[Prediction, Tensor]:
        """What K codes of each row say, and how much each counts, (K, B)."""
        module = self.model.module
        code = module.latent(module.encoder(module.embed(part)), SAMPLES, True)
        p: Prediction = module.likelihood(module.decoder(code.z))
        likely = p.log_prob(part).double().sum(-1) - torch.stack([*code.terms.values()]).double().sum(0)
        return p, likely.softmax(0)

    def _within(self, numbers: Tensor) -> Tensor:
        """Numbers between the least and greatest of training."""
        dense, scaling = self.schema.dense, self.model.preparer.scaling
        kept_in = torch.minimum(torch.maximum(numbers[:, :dense], scaling.low.float()), scaling.high.float())
        return torch.cat([kept_in, numbers[:, dense:]], dim=1)
