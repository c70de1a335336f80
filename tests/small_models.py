"""Small fitted models for tests of what comes after training: built by hand and trained for a moment."""

from __future__ import annotations

from typing import Any

import torch

from narrows.fitted import Model
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.schema import Batch
from narrows.sources.source import open_source
from narrows.tasks.baseline import learn_baseline


def small_model(
    data: Any,
    recipe: str = "plain",
    latent: int = 2,
    members: int | None = None,
    steps: int = 150,
    baseline: bool = True,
    hidden: tuple[int, ...] = (32,),
) -> Model:
    """A model, of one hidden layer by default, after a few full-batch steps, with its baseline."""
    source = open_source(data)
    statistics = Statistics(source.schema)
    for row_id, rows in source.batches():
        statistics.update(rows, row_id)
    preparer = Preparer.learn(statistics)
    network = Network.of(Dense(hidden=hidden, members=members))
    torch.manual_seed(0)
    module = build(Recipe.parse(recipe), preparer.schema, latent, network)
    everything = Batch.concat([preparer.prepare(rows) for _, rows in source.batches()])
    history = _trained(module, everything, steps)
    facts = {"rows": len(everything), "epochs": steps, "reason": "epochs", "seed": 0, "records": history}
    model = Model(preparer, module.eval(), Recipe.parse(recipe), latent, network, facts)
    if baseline:
        model.parts["baseline"] = learn_baseline(model, iter([everything]))
    return model


def _trained(module: AutoencoderModule, everything: Batch, steps: int) -> list[dict[str, float]]:
    """Records of full-batch steps; on one thread, which matrices of this size do not outgrow."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    records = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = module(everything).total()
        loss.backward()
        optimizer.step()
        records.append({"epoch": step + 1, "loss": loss.item(), "val_loss": loss.item() * 1.1, "lr": 0.01})
    torch.set_num_threads(threads)
    return records


def as_linear_gaussian(
    module: AutoencoderModule, aim: float = 1.0, wide: float = 1.0
) -> torch.distributions.MultivariateNormal:
    """Make a module p(z) = N(0, 1), p(x|z) = N(wz + b, s^2 I), whose evidence is known in closed form.

    Args:
        module: of the recipe `vae:likelihood=gaussian` or `iwae`, one linear layer each way, a code of one number.
        aim: times the true posterior's slope.
        wide: times its standard deviation.

    Returns:
        The distribution of rows.
    """
    noise = module.likelihood.families[0].scale().detach()
    w, b = torch.randn(len(noise), 1).to(noise), torch.randn(len(noise)).to(noise)
    variance = 1 / (1 + (w.squeeze() ** 2 / noise**2).sum())
    projection = variance * w.T / noise**2
    with torch.no_grad():
        module.decoder[0].weight.copy_(w)
        module.decoder[0].bias.copy_(b)
        module.encoder[0].weight.copy_(torch.cat([aim * projection, torch.zeros_like(projection)]))
        module.encoder[0].bias.copy_(torch.cat([-projection @ b, (variance * wide**2).log().reshape(1)]))
    return torch.distributions.MultivariateNormal(b, w @ w.T + torch.diag(noise**2))
