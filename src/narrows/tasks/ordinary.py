"""Which rows are ordinary enough to learn from: what `fit --for detect` asks of a fit before there is a model.

Trained on everything, an autoencoder learns the anomalies too. So a cheap screening, distance and rarity (see
`tasks.judges`), first chooses the half of the rows that looks most ordinary, and only these train the network, for so
few steps that it does not learn what is rare among them. The price: what is ordinary but rare looks odder than it is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from narrows.errors import DataError
from narrows.fitting import Plan
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.rows import Core
from narrows.schema import Batch, Schema
from narrows.tasks.distances import Memory
from narrows.tasks.judges import Histograms, Judge
from narrows.tasks.space import Space, of_series
from narrows.train.randomness import VALIDATION, generator

RECIPE = "masked:rate=0.6,patch=1,vary=true,shown=0.1,stagger=true"
NETWORK, LATENT = Dense(hidden=(64,), members=8), 8
SHARE = 0.5  # of the rows
COMMON = 0.05  # of the rows: levels of so many say nothing, or the core would be the commonest combination of levels
STEPS = 100  # of training: more teach the network what it should find odd
SERIES_STEPS = 300  # of what tells the expected values of series: their scores go without
MOST = 65_536  # rows that the core is chosen from
FEW = 20  # rows of which little can be said


def suit(plan: Plan, schema: Schema, rows: int) -> Plan:
    """The plan as detecting wants it, where the user left it open: an ensemble of small networks for tables."""
    if any(column.grid for column in schema):
        steps = SERIES_STEPS if of_series(schema) else None
        return replace(plan, recipe="plain", steps=steps) if plan.recipe == RECIPE else plan
    own = Network.of(plan.network) == Network() and plan.recipe == RECIPE
    return replace(plan, network=NETWORK, latent=plan.latent or LATENT, steps=STEPS) if own else plan


def steps_of(recipe: Recipe, schema: Schema) -> int | None:
    """Steps that a network of this recipe makes for detecting, where nobody says how many; None for as any other."""
    if any(column.grid for column in schema):
        return SERIES_STEPS if of_series(schema) else None
    return STEPS if recipe == Recipe.parse(RECIPE) else None


def core(share: float = SHARE) -> Core:
    """The rows to train on: a share of those that look most ordinary; 1 takes them all, where all are known to be."""
    return Core(lambda schema, rows: ordinary(schema, rows, share), MOST)


def ordinary(schema: Schema, rows: Batch, share: float) -> Tensor:
    """(n,) bool: the rows that screening finds the most ordinary; all of those it cannot compare.

    Raises:
        DataError: for a lone one, which there is nothing to compare with.
    """
    if len(rows) < 2:
        raise DataError(f"{len(rows)} sample to learn what is ordinary from", f"at least {FEW} rows")
    if share >= 1 or of_series(schema) or not Space.holds(schema):  # half of the windows may lack a whole phase
        return torch.ones(len(rows), dtype=torch.bool)
    memory, _ = Memory.learn(Space.of(schema, rows, COMMON), rows, generator(0, VALIDATION))
    screens: list[Judge] = [memory, Histograms.learn(schema, rows, COMMON)]
    odd = torch.stack([_squashed(screen(rows).total) for screen in screens]).sum(0)
    kept = odd.argsort(stable=True)[: max(2, round(share * len(rows)))]
    return torch.zeros(len(rows), dtype=torch.bool).index_fill_(0, kept, True)


def remember(schema: Schema, rows: Batch) -> tuple[Memory, Tensor]:
    """A memory of rows, and which of them it remembers; the same ones for the same rows."""
    return Memory.learn(Space.of(schema, rows), rows, generator(0, VALIDATION))


def _squashed(values: Tensor) -> Tensor:
    center, scale = robust(values)
    return torch.asinh((values - center) / scale)


def robust(values: Tensor) -> tuple[float, float]:
    """Median and spread of (n,) values: that of the middle half, as for a normal distribution."""
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    low, middle, high = torch.quantile(values.double(), quarters).tolist()
    return middle, (high - low) / 1.349 or float(values.double().std(correction=0)) or 1.0
