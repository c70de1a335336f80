"""How probable a model finds rows: -log p(x) by importance sampling, with two standard errors.

    rows -> S codes each from q(z|x) -> log weights  log p(x|z) + log p(z) - log q(z|x) -> log of their mean

The estimate is a lower bound in the mean that rises to log p(x) with S (Burda et al. 2016); with thousands of samples
it is what papers print as the likelihood. Its cost is S decodings a row. What it does not know: how a model that draws
no codes could be asked the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any

import torch
from torch import Tensor

from narrows.errors import DataError, SettingError
from narrows.fitted import Model
from narrows.schema import Batch
from narrows.tasks.features import in_blocks

BLOCK = 64  # rows whose samples are drawn together
OUTPUTS = 1 << 22  # numbers that the decoder may say in a pass: what a processor's caches nearly hold
MOST = 1 << 20  # samples a row


@dataclass(frozen=True)
class Likelihood:
    """What was estimated, in nats a row.

    Args:
        nats: mean of -log p(x) over the rows.
        error: standard error of that mean, from how the rows differ.
        noise: standard error from the draws of codes alone: what another seed would change.
        effective: mean number of equal weights that the weights of a row are worth; near 1 more samples are needed.
        samples: of each row.
        rows: how many.
    """

    nats: float
    error: float
    noise: float
    effective: float
    samples: int
    rows: int

    def __str__(self) -> str:
        spread = f"± {self.error:.3g} over rows, ± {self.noise:.2g} over draws"
        drawn = f"{self.samples:,} draws each, worth {self.effective:,.0f}"
        return f"-log p(x) = {self.nats:.3f} nats a row ({spread}; {self.rows:,} rows, {drawn})"


def log_likelihood(model: Model, data: Any, samples: int = 1000, seed: int = 0) -> Likelihood:
    """Estimate -log p(x) of rows.

    Args:
        model: whose codes are drawn: of the recipes `vae`, `iwae`, `hierarchical` and their kin.
        data: anything `open_source` takes.
        samples: codes drawn for each row; 5,000 is what papers take.
        seed: of the draws.

    Raises:
        SettingError: for a model that draws no codes or whose cells have squared errors for a likelihood.
        DataError: for no rows.
    """
    _refuse(model, samples)
    source = model.source(data)
    total = squares = variance = effective = 0.0
    rows = 0
    devices = [model.module.device] if model.module.device.type == "cuda" else []
    with torch.inference_mode(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for block in in_blocks((batch for _, batch in model.batches(source)), model.schema, BLOCK):
            value, noise, worth = _estimate(model, block.to(model.module.device), samples)
            total += float(value.sum())
            squares += float(value.square().sum())
            variance += float(noise.sum())
            effective += float(worth.sum())
            rows += len(value)
    if not rows:
        raise DataError(f"no rows in {source.name}", "at least one row to evaluate")
    spread = max(squares / rows - (total / rows) ** 2, 0.0)
    error = sqrt(spread / (rows - 1)) if rows > 1 else inf
    return Likelihood(-total / rows, error, sqrt(variance) / rows, effective / rows, samples, rows)


def _refuse(model: Model, samples: int) -> None:
    if not 1 <= samples <= MOST:
        raise SettingError(f"{samples} samples of a code", f"from 1 to {MOST:,}")
    if not model.module.latent.variational:
        raise SettingError(f"the likelihood of a model of the recipe {model.recipe.name}", "one that draws codes: vae")
    if not model.module.likelihood.density:
        hint = f"{model.recipe.name}:likelihood=auto"
        raise SettingError("the likelihood of cells whose loss is their squared error", "a density", hint)


def _estimate(model: Model, batch: Batch, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: log p(x), its variance over draws, and how many equal weights its weights are worth."""
    step = max(1, OUTPUTS // (len(batch) * model.outputs * (model.members or 1)))
    parts = [
        _member_mean(model.module.likelihoods(batch, min(step, samples - start)).double())
        for start in range(0, samples, step)
    ]
    weights = torch.cat(parts)
    value = torch.logsumexp(weights, dim=0) - log(samples)
    shares = (weights - value).exp()  # of mean 1
    variance = shares.var(0) / samples if samples > 1 else torch.full_like(value, inf)
    return value, variance, samples**2 / shares.square().sum(0)


def _member_mean(weights: Tensor) -> Tensor:
    """(K, B) log weights under the mixture of a model's members: weights (K, [E,] B) averaged over E."""
    return weights if weights.ndim == 2 else torch.logsumexp(weights, dim=1) - log(weights.shape[1])
