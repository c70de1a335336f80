"""How many numbers a code needs: short fits of several sizes, judged by cells that the encoder was not shown.

    rows -> training | held out -> one short fit a size -> cost of hidden cells, row by row -> one-standard-error rule

What is reconstructed from itself gets better with every number of the code, up to a copy. A cell that is hidden from
the encoder can only be told from what the others share, so its error stops falling at the number of factors that they
have in common (the idea of bi-cross-validation, Owen & Perry 2009). Variational recipes are judged by their bound,
which pays for each number that a code uses. What this file does not know: settings other than the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from narrows import world
from narrows.errors import DataError, SettingError
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.building import build
from narrows.model.corruptions import Masking
from narrows.model.recipe import Recipe
from narrows.model.slots import Slots
from narrows.networks.choice import Network
from narrows.schema import Batch, Schema, Stream
from narrows.train.loop import train
from narrows.train.randomness import VALIDATION, generator, kept, seed_step
from narrows.train.resident import Resident
from narrows.train.settings import Record, Training, Watch

PART = "tune"
HIDDEN = 0.3  # share of cells hidden: few enough that the others tell the code, many enough to count errors on
DRAWS = 4  # times that cells of each row are hidden
BLOCK = 1024  # rows judged at once
STEPS, ROWS = 500, 256  # of a short fit, and rows of a step: more at once, so that fewer steps settle the weights
MOST, JUDGED = 8_192, 2_048  # rows of a short fit, and rows that judge it
FEWEST = 20  # rows held out, for a standard error worth the name
SHARE = 0.25  # of the rows held out, where nobody held out any
LARGEST = 256  # numbers of a code that are looked at
ALIKE = 0.03  # of the best cost: wider codes are easier to train, and a short fit gains so much from that alone
VARIATIONAL = ("vae", "iwae", "hierarchical", "tcvae", "vaegan")
Costs = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Masked(Recipe):
    """A recipe whose encoder is shown fewer cells than it was asked for, to learn to tell the others."""

    def slots(self) -> Slots:
        """The slots of the recipe, with a mask where it has none."""
        slots = super().slots()
        if any(part.hides for part in slots.corruptions):
            return slots
        return replace(slots, corruptions=(*slots.corruptions, Masking(HIDDEN)))


def judged(recipe: Recipe) -> Recipe:
    """The recipe that stands for another where sizes are compared: itself if variational, else one that hides cells."""
    if recipe.name == "conditional":
        got = "choosing a code size for the recipe conditional, whose code is no bottleneck"
        raise SettingError(got, "a size, or none", "another recipe, such as plain or vae")
    return recipe if recipe.name in VARIATIONAL else Masked(recipe.name, recipe.arguments)


@dataclass(frozen=True)
class Judge:
    """Costs of held-out rows under a module, the same rows and hidden cells each time it is asked.

    Args:
        rows: held out.
        recipe: decides what is counted: `hidden cells`, or `bound` for variational recipes.
        seed: of the cells to hide, and of draws of codes.
    """

    rows: Batch
    recipe: Recipe
    seed: int = 0

    @property
    def measure(self) -> str:
        """What is counted."""
        return "bound" if self.recipe.name in VARIATIONAL else "hidden cells"

    @torch.inference_mode()
    def costs(self, module: AutoencoderModule) -> np.ndarray:
        """(n,) float64 of each row: mean cost of a hidden cell, or the negative bound; lower is better.

        Raises:
            SettingError: for decoders that read what they are to tell.
        """
        if module.autoregressive:
            raise SettingError("choosing a code size for texts that are told step by step", "a size", "--latent 16")
        training = module.training
        module.eval()
        count = self._bound if self.measure == "bound" else self._hidden
        draws = generator(self.seed, VALIDATION)
        with kept(module.device):
            seed_step(self.seed, VALIDATION, module.device)
            blocks = [self.rows[start : start + BLOCK] for start in range(0, len(self.rows), BLOCK)]
            costs = [count(module, block, draws).double().cpu() for block in blocks]
        module.train(training)
        return np.asarray(torch.cat(costs).numpy())

    def _bound(self, module: AutoencoderModule, rows: Batch, draws: torch.Generator) -> Tensor:
        losses = [module(replace(rows, weight=None).to(module.device)).per_row() for _ in range(DRAWS)]
        costs = torch.stack(losses).mean(0)
        return costs.mean(0) if costs.ndim > 1 else costs

    def _hidden(self, module: AutoencoderModule, rows: Batch, draws: torch.Generator) -> Tensor:
        rows = rows.dense()
        there = rows.mask()
        total = torch.zeros(len(rows), device=module.device)
        for _ in range(DRAWS):
            hidden = (torch.rand(there.shape, generator=draws) < HIDDEN) & there.cpu()
            view = rows.with_seen((there.cpu() & ~hidden).to(there.device)).to(module.device)
            code = module.encode(view).z
            nll = -module.decode(code).log_prob(rows.to(module.device))[0]
            nll = nll.mean(0) if nll.ndim > 2 else nll
            total = total + nll.masked_fill(~hidden.to(nll.device), 0.0).sum(1)
        return total / (DRAWS * HIDDEN * max(1.0, float(there.float().sum(1).mean())))


def one_standard_error(costs: Costs) -> int:
    """The smallest size that is no worse than the best by more than one standard error (Breiman et al. 1984).

    The error is that of the mean difference to the best on the same rows: rows that are hard for every size say
    nothing of which is better. A difference of 3 % of the best cost is what short fits owe to
    luck and to wider codes being easier to train, not to a factor.

    Args:
        costs: size -> (n,) costs of the same rows.

    Raises:
        SettingError: for no size, or sizes without a finite cost.
    """
    means = {size: float(np.mean(each)) for size, each in costs.items() if np.isfinite(each).all() and len(each)}
    if not means:
        raise SettingError("no size with a finite cost", "at least one")
    best = min(means, key=lambda size: (means[size], size))
    return min(size for size in means if within(costs[size], costs[best]))


def within(costs: np.ndarray, best: np.ndarray) -> bool:
    """Whether costs (n,) are within one standard error of the best ones (n,), or within what a seed changes."""
    gap = float(np.mean(costs - best))
    return gap <= max(standard_error(costs - best), ALIKE * abs(float(np.mean(best))))


def standard_error(values: np.ndarray) -> float:
    """Of the mean of (n,) values; 0 for a single one."""
    return float(np.std(values, ddof=1) / sqrt(len(values))) if len(values) > 1 else 0.0


def search(cost: Callable[[int], np.ndarray], start: int, largest: int) -> dict[int, np.ndarray]:
    """Costs of as few sizes as tell which one `one_standard_error` would take of all.

    From `start` upwards by halves while that helps, then down in growing strides, then by bisection: on a curve that
    falls to a floor, some log2 of the distance from the start.

    Args:
        cost: size -> (n,) costs of the same rows.
        start: where to look first, from 1 to `largest`.
        largest: size to look at.
    """
    known = {start: cost(start)}

    def ask(size: int) -> None:
        if size not in known:
            known[size] = cost(size)

    top = start
    while top < largest:
        above = min(largest, top + max(2, top // 2))
        ask(above)
        if within(known[top], known[above]):
            break
        top = above
    stride = 1
    while (chosen := one_standard_error(known)) > 1:
        below = max((size for size in known if size < chosen), default=0)
        if below + 1 == chosen:
            break
        ask(max(chosen - stride, (below + chosen) // 2 if below else 1))
        stride *= 2
    return known


def start_size(rows: Batch, largest: int) -> int:
    """Eigenvalues of the numbers' correlations above 1, which no independent columns have (Kaiser 1960).

    Only where to look first: it finds too many factors of what is bent, and too few of weak ones.
    """
    numbers = rows.dense().numbers.double()
    numbers = numbers[:, numbers.std(0) > 1e-9] if len(numbers) > 1 else numbers[:, :0]
    if numbers.shape[1] < 3:
        return max(1, min(largest, 2))
    noise = (1 + sqrt(numbers.shape[1] / len(numbers))) ** 2  # of independent columns (Marchenko & Pastur 1967)
    above = int((torch.linalg.eigvalsh(torch.corrcoef(numbers.T).nan_to_num()) > min(noise, 2.0)).sum())
    return max(1, min(largest, above + above // 4))


@dataclass(frozen=True)
class Sizing:
    """What a code size is chosen for.

    Args:
        schema: of the prepared rows.
        recipe: that was asked for.
        network: encoder and decoder.
        training: optimizer and the rest; steps are few here whatever it says of time.
        lr: peak learning rate; None takes the optimizer's own.
        seed: of weights, order and hidden cells.
        device: where to compute.
        told: called with each size and its mean cost.
    """

    schema: Schema
    recipe: Recipe
    network: Network
    training: Training
    lr: float | None = None
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    told: Callable[[int, float], None] = lambda size, cost: None

    def choose(self, train_rows: Batch, held: Batch | None) -> tuple[int, dict[str, Any]]:
        """The size, and the facts of the part `tune`: every size that was tried, its cost and standard error.

        Args:
            train_rows: prepared; more than 8,192 are thinned to so many.
            held: rows held out, of which 2,048 at most judge; None holds out a quarter of the others.

        Raises:
            DataError: for too few rows to hold some out.
            SettingError: for recipes that allow no size, and several processes.
        """
        if world.size() > 1:
            raise SettingError("latent='auto' on several processes", "a size", "choose it on one, on fewer rows")
        rows, held = halves(train_rows, held, self.seed)
        judge = Judge(held, self.recipe, self.seed)
        sizes = [size for size in range(1, min(LARGEST, self.schema.cells) + 1) if self._fits(size)]
        if not sizes:
            raise SettingError(f"latent='auto' with the recipe {self.recipe.name}", "a recipe that allows small codes")
        start = start_size(rows, len(sizes))
        costs = search(lambda rank: self._costs(sizes[rank - 1], rows, judge), start, len(sizes))
        known = {sizes[rank - 1]: each for rank, each in costs.items()}
        chosen = one_standard_error(known)
        return chosen, facts(
            "auto", judge, len(rows), chosen, ({"latent": size, **scored(known[size])} for size in sorted(known))
        )

    def _fits(self, size: int) -> bool:
        try:
            with torch.device("meta"):
                self.recipe.slots().latent(size)
        except SettingError:
            return False
        return True

    def _costs(self, size: int, rows: Batch, judge: Judge) -> np.ndarray:
        module = self.fitted(size, rows)
        costs = judge.costs(module)
        self.told(size, float(costs.mean()))
        return costs

    def fitted(
        self,
        size: int,
        rows: Batch,
        steps: int | None = None,
        heed: Callable[[AutoencoderModule, Record], bool] | None = None,
    ) -> AutoencoderModule:
        """A module of this code size, trained for so many steps on rows.

        Args:
            size: of the code.
            rows: prepared.
            steps: about so many, in whole epochs; None for 500.
            heed: called with the module and the record after each epoch; training stops where it says True.
        """
        size_of_step = self.training.batch_size or max(8, min(ROWS, len(rows) // 8))
        training = replace(
            self.training, batch_size=size_of_step, validation=0, time_limit=None, patience=None, group=None, time=None
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            module = build(judged(self.recipe), self.schema, size, self.network).to(self.device)
        stream: Stream = Resident(rows.to(self.device), training.step_rows(len(rows)), self.seed)
        epochs = max(1, round((steps or STEPS) * training.step_rows(len(rows)) / len(rows)))
        callbacks = () if heed is None else (lambda record: heed(module, record),)
        train(
            module, stream, None, training, epochs=epochs, lr=self.lr, seed=self.seed, watch=Watch(callbacks=callbacks)
        )
        return module


def halves(rows: Batch, held: Batch | None, seed: int) -> tuple[Batch, Batch]:
    """Rows to train on and rows to judge by, thinned evenly where there are more than a short fit can use.

    Raises:
        DataError: where fewer than 20 can be held out.
    """
    order = torch.randperm(len(rows), generator=generator(seed, VALIDATION))
    if held is None or len(held) < FEWEST:
        count = min(JUDGED, round(SHARE * len(rows)))
        held, order = rows[order[:count]], order[count:]
    if len(held) < FEWEST:
        got = f"{len(rows):,} rows to choose a code size by"
        raise DataError(got, f"at least {round(FEWEST / SHARE)}, a quarter of them held out", "a size, such as 2")
    drawn = torch.randperm(len(held), generator=generator(seed, VALIDATION))[:JUDGED]
    return rows[order[:MOST]], held[drawn]


def scored(costs: np.ndarray) -> dict[str, Any]:
    """Mean and standard error of costs, for a file: digits beyond these differ from machine to machine."""
    return {"score": float(f"{np.mean(costs):.6g}"), "error": float(f"{standard_error(costs):.3g}")}


def facts(how: str, judge: Judge, rows: int, chosen: int, trials: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The facts of the part `tune`: how a size was chosen, of which trials."""
    about = {"how": how, "measure": judge.measure, "rows": rows, "held": len(judge.rows)}
    return {**about, "latent": int(chosen), "trials": list(trials)}
