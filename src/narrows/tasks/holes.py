"""What a model says of cells that are missing, and draws of them: the one place that imputing and generating share.

    rows with holes -> network -> chances of bins and levels --+-> expected cells, intervals
                    -> normal distribution -> chances ---------+-> cell by cell, each given those before: draws

For models that were trained to tell hidden cells from the others (the recipe `conditional`). A number's chances are
pooled with those of a normal distribution, by weights that were learnt on hidden cells, as is how wide an interval must
be to hold what it states; draws are of the one that weighs more. Levels are the network's.
Drawn one after the other in a random order, each given what was seen and drawn before, cells go together as in
training. What this file does not know: what is done with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.fitted import Model, Part
from narrows.model.binned import Bins
from narrows.model.corruptions import Hiding
from narrows.model.likelihoods import Prediction
from narrows.schema import Batch, Schema
from narrows.tasks.intervals import quantile, reach, taken, widened
from narrows.tasks.normal import Normal
from narrows.train.randomness import kept, seed_step

PART, INTERVALS = "normal", "intervals"
MOST_FEATURES = 128  # of the normal distribution: its work for a row grows with the cube of those missing
MOST_LEVELS = 24  # of a category that is a feature for each level
LEAST = 0.02  # weight below which the normal distribution is not worth asking
PRIOR = 20.0  # hidden cells that the weight of all cells counts for, beside a cell's own
ROUNDS = 50  # of the weights
MOST_LEARNT, MOST_JUDGED = 20_000, 4_096  # rows that the normal distribution and its weights are learnt from
MOST_VIEWS = 8  # of each of few rows
HOLED, MORE = 0.01, 0.15  # share of cells missing from which rows count as having holes, and share hidden on top
TINY = 1e-12


@dataclass(frozen=True)
class Guess:
    """What is expected of rows.

    Args:
        numbers: (B, N) expected number cells, in prepared units: means of the raw values where the cell has bins.
        codes: (B, M) most probable levels.
        low: (B, N) below which a cell lies with half of what the interval leaves over; the numbers without bins.
        high: (B, N) above which it does.
    """

    numbers: Tensor
    codes: Tensor
    low: Tensor
    high: Tensor


def fills(model: Model) -> bool:
    """Whether a model was trained to tell hidden cells from any others, so that rows can be made cell by cell."""
    hiding = any(isinstance(part, Hiding) for part in model.module.corrupt)
    return hiding and not model.members and not model.module.autoregressive


class Holes:
    """A model's say of what is missing.

    Args:
        model: for which `fills` holds.

    Raises:
        SettingError: for another one.
    """

    def __init__(self, model: Model) -> None:
        if not fills(model):
            hint = "--for impute; in Python Imputer, or the recipe conditional"
            got = f"a {model.recipe.name} model, which was not trained to tell any cells from any others"
            raise SettingError(got, "one that was", hint)
        self.model, self.schema = model, model.schema
        self.beside = Beside.of(model)

    def guess(self, batch: Batch, share: float = 0.9) -> Guess:
        """What is expected, whatever was seen.

        Args:
            batch: rows with holes.
            share: of the interval.
        """

        @torch.inference_mode()
        def say(part: Batch) -> Tensor:
            guess = self._guess(part, share)
            return torch.cat([guess.numbers, guess.low, guess.high, guess.codes.double()], dim=1)

        count = self.schema.numbers
        joined = self.model.blocks(batch, say)
        numbers, low, high, codes = joined.tensor_split([count, 2 * count, 3 * count], dim=1)
        return Guess(numbers.float(), codes.long(), low.float(), high.float())

    def _guess(self, part: Batch, share: float) -> Guess:
        p = self._told(part)
        numbers = p.numbers()[0].double()
        low, high, wide = numbers.clone(), numbers.clone(), self._wide(share).to(numbers)
        for cells, family, chances in self._pooled(p, part):
            chances = chances.double()
            raw = (chances * self._raw(cells, family)).sum(-1)
            numbers[:, cells] = self._prepared(cells, raw)
            low[:, cells] = quantile(family, chances, (1 - wide[cells]) / 2)
            high[:, cells] = quantile(family, chances, (1 + wide[cells]) / 2)
        return Guess(numbers, p.codes()[0], low, high)

    def _wide(self, share: float) -> Tensor:
        """(N,) the share of each cell's chances that holds a stated one; in models of no such part, that one."""
        part = self.model.parts.get(INTERVALS)
        if part is None or not part.tensors:
            return torch.full((self.schema.numbers,), share, dtype=torch.float64)
        return taken(part.tensors["shares"], share)

    @torch.inference_mode()
    def needed(self, view: Batch) -> Tensor:
        """(B, N) the share of its chances that reaches each number of rows, those that a view hides but has."""

        def say(part: Batch) -> Tensor:
            shares = torch.zeros(len(part), self.schema.numbers, dtype=torch.float64, device=part.numbers.device)
            for cells, family, chances in self._pooled(self._told(part), part):
                shares[:, cells] = reach(family, chances.double(), part.numbers[:, cells])
            return shares

        return self.model.blocks(view, say)

    @torch.inference_mode()
    def odds(self, batch: Batch, view: Batch) -> Tensor:
        """(B, C) log probability of each cell of a batch, told from a view of it, less that of the likeliest value."""
        p = self._told(view.to(self.model.module.device))
        likeliest = Batch(p.numbers()[0], p.codes()[0])
        for cells, family, outputs in p.likelihood.binned(p.outputs):
            best = family.chances(outputs)[0].argmax(-1, keepdim=True)
            likeliest.numbers[:, cells] = family.center.expand(len(best), -1, -1).gather(-1, best).squeeze(-1)
        pair = [p.log_prob(rows.to(self.model.module.device))[0].cpu() for rows in (batch.with_seen(None), likeliest)]
        return pair[0] - pair[1]

    def draw(self, batch: Batch, seed: int, first: int = 0, temperature: float = 1.0) -> Batch:
        """The rows with every hole filled by a draw, cell by cell.

        Args:
            batch: rows with holes.
            seed: of the draws.
            first: row that the batch begins with: blocks of rows draw from (seed, place).
            temperature: below 1 for the more probable, above 1 for the less.
        """
        device, size = self.model.module.device, self.model.block_rows
        parts = []
        with kept(device):
            for start in range(0, max(1, len(batch)), size):
                seed_step(seed, first + start, device)
                parts.append(self._drawn(batch[start : start + size].to(device), temperature))
        joined = Batch.concat([part.to("cpu") for part in parts])
        return Batch(joined.numbers, joined.codes)

    @torch.inference_mode()
    def _drawn(self, part: Batch, temperature: float) -> Batch:
        """A block of rows, one more cell of each in every round."""
        seen, numbers, codes = part.mask().clone(), part.numbers.clone(), part.codes.clone()
        order = torch.rand(seen.shape, device=seen.device).masked_fill(seen, 2.0).argsort(1)
        rows, count = torch.arange(len(seen), device=seen.device), self.schema.numbers
        for cell in order[:, : int((~seen).sum(1).max()) if len(seen) else 0].T:
            here = ~seen[rows, cell]
            cells, levels = self._draws(Batch(numbers, codes, seen), temperature)
            number = here & (cell < count)
            numbers[rows[number], cell[number]] = cells[rows[number], cell[number]]
            level = here & (cell >= count)
            codes[rows[level], cell[level] - count] = levels[rows[level], cell[level] - count]
            seen[rows, cell] = True
        return Batch(numbers, codes)

    def _draws(self, part: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """(B, N) and (B, M): a draw of every cell, each by itself."""
        p = self._told(part)
        numbers, codes = (cells[0].clone() for cells in p.sample(temperature))
        if self.beside is None:
            return numbers, codes
        # a pool is broader than either: rows of its draws hung together less than those of the better one
        for cells, family, chances in self._pooled(p, part, one=True):
            numbers[:, cells] = family.sample(chances.clamp_min(TINY).log().flatten(-2).float(), temperature)
        return numbers, codes

    def _told(self, part: Batch) -> Prediction:
        return self.model.module.decode(self.model.module.encode(part).z)

    def _pooled(self, p: Prediction, part: Batch, one: bool = False) -> Iterator[tuple[Tensor, Bins, Tensor]]:
        """Cells with bins, their family, and the chances (B, n, bins) of these: pooled, or of `one`, the better one."""
        said = self.beside.given(part) if self.beside else None
        for cells, family, outputs in p.likelihood.binned(p.outputs):
            chances = family.chances(outputs)[0]
            if self.beside and said:
                weight = self.beside.weight[cells].unsqueeze(-1).to(chances)
                weight = weight.round() if one else weight
                chances = torch.lerp(chances, self.beside.chances(cells, family, *said).to(chances), weight)
            yield cells, family, chances

    def _raw(self, cells: Tensor, family: Bins) -> Tensor:
        """(n, bins) the mean value of each bin in raw units."""
        table = torch.zeros(family.outputs, self.schema.dense, dtype=torch.float64)
        table[:, cells] = family.center.T.double().cpu()
        return self.model.preparer.scaling.inverse(table)[:, cells].T.to(family.center.device)

    def _prepared(self, cells: Tensor, raw: Tensor) -> Tensor:
        table = torch.zeros(len(raw), self.schema.dense, dtype=torch.float64)
        table[:, cells] = raw.cpu()
        prepared: Tensor = self.model.preparer.scaling(table)
        return prepared[:, cells].double().to(raw.device)


@dataclass(frozen=True)
class Features:
    """Which cells of a row are features of the normal distribution.

    Args:
        numbers: places of the number cells.
        hot: (place among the codes, levels) of the categories that are a feature for each level.
    """

    numbers: list[int]
    hot: list[tuple[int, int]]

    @classmethod
    def of(cls, schema: Schema) -> Features:
        """Of all numbers that stand alone, and of the categories of few levels as long as there is room."""
        columns = [column for column in schema if not column.categorical and not column.grid and column.kind != "bag"]
        numbers = [cell for c in columns for cell in range(schema.spans[c.name].start, schema.spans[c.name].stop)]
        room, hot = MOST_FEATURES - len(numbers), []
        for levels, place in sorted((count, place) for place, count in enumerate(schema.levels)):
            if levels <= min(room, MOST_LEVELS):
                room -= levels
                hot.append((place, levels))
        return cls(numbers if len(numbers) <= MOST_FEATURES else [], hot)

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) float64 features, and which were seen."""
        seen, count = batch.mask(), batch.numbers.shape[1]
        parts, there = [batch.numbers[:, self.numbers].double()], [seen[:, self.numbers]]
        for place, levels in self.hot:
            codes = batch.codes[:, place : place + 1]
            parts.append((codes == torch.arange(levels, device=codes.device)).double())
            there.append(seen[:, count + place : count + place + 1].expand(-1, levels))
        return torch.cat(parts, dim=1), torch.cat(there, dim=1)


@dataclass(frozen=True)
class Beside:
    """The normal distribution beside the network, as the part `normal`.

    Args:
        normal: of the features.
        features: of a row.
        weight: (N,) of it in the pool, for each number cell.
    """

    normal: Normal
    features: Features
    weight: Tensor

    @classmethod
    def of(cls, model: Model) -> Beside | None:
        """Of a model's part; None where it has none."""
        part = model.parts.get(PART)
        if part is None or not part.tensors:
            return None
        device = model.module.device
        mean, covariance, weight = (part.tensors[name].to(device) for name in ("mean", "covariance", "weight"))
        return cls(Normal(mean, covariance), Features.of(model.schema), weight)

    def given(self, part: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) mean and variance of every feature given the others that were seen, and of seen ones as they are."""
        return self.normal.given(*self.features.rows(part))

    def chances(self, cells: Tensor, family: Bins, mean: Tensor, variance: Tensor) -> Tensor:
        """(B, n, bins) how probable the normal distribution makes each bin."""
        place = {cell: i for i, cell in enumerate(self.features.numbers)}
        at = [place[cell] for cell in cells.tolist()]
        scale = variance[:, at].clamp_min(TINY).sqrt().unsqueeze(-1) * sqrt(2.0)
        edges = family.edges.double().unsqueeze(0)
        below = 0.5 + 0.5 * torch.erf((edges - mean[:, at].unsqueeze(-1)) / scale)
        whole = torch.ones_like(below[..., :1])
        cut: Tensor = torch.diff(torch.cat([torch.zeros_like(whole), below, whole], dim=-1), dim=-1)
        return cut


def learn_normal(model: Model, batches: Any) -> Part:
    """The part `normal`: mean and covariance, and what they weigh beside the network for each number cell.

    Weights are the shares of a mixture (Jacobs et al. 1991) under which cells hidden from both are most probable; those
    of cells with little to learn from lean on the weight of all. Nothing is kept where the network needs no help.

    Args:
        model: for which `fills` holds.
        batches: prepared training rows, and in `held` those held out.
    """
    features = Features.of(model.schema)
    if not features.numbers or not _binned(model):
        return Part()
    rows = _some(batches)
    cells, seen = features.rows(rows)
    normal = Normal.learn(cells.masked_fill(~seen, torch.nan))
    beside = Beside(normal, features, torch.zeros(model.schema.numbers))
    weight = _weights(model, beside, _judging(batches, rows))
    if not bool((weight > LEAST).any()):
        return Part()
    return Part(tensors={"mean": normal.mean, "covariance": normal.covariance, "weight": weight})


def learn_intervals(model: Model, batches: Any) -> Part:
    """The part `intervals`: the share to take of a cell's chances for each stated one, by cells that were hidden.

    Args:
        model: for which `fills` holds, with its part `normal`.
        batches: as in `learn_normal`.
    """
    if not _binned(model):
        return Part()
    rows = _judging(batches)
    view, hidden = _hidden(model, rows)
    binned = torch.zeros(model.schema.numbers, dtype=torch.bool)
    binned[_binned(model)] = True
    return Part(tensors={"shares": widened(Holes(model).needed(view), hidden & binned, len(rows))})


def _binned(model: Model) -> list[int]:
    """The number cells that are told by bins."""
    return [cell for cells, *_ in model.module.likelihood.binned(None) for cell in cells.tolist()]


def _judging(batches: Any, rows: Batch | None = None) -> Batch:
    """The rows held out, where there are any, else training rows."""
    held = getattr(batches, "held", None)
    if held is None:
        held = _some(batches) if rows is None else rows
    judging: Batch = held[:MOST_JUDGED].dense()
    return judging


def _hidden(model: Model, rows: Batch) -> tuple[Batch, Tensor]:
    """A view of rows, repeated where they are few, that hides cells, and (R, N) the numbers that it hides.

    Where rows have holes already a few more are made, so that as much is seen as will be when these are filled; whole
    rows are hidden from as in training.
    """
    rows = Batch.concat([rows] * max(1, min(MOST_VIEWS, MOST_JUDGED // max(1, len(rows)))))
    seen, device = rows.mask(), model.module.device
    with kept(device):
        seed_step(0, 0, device)
        holed = bool((~seen).double().mean() > HOLED)
        view = rows.with_seen(seen & (torch.rand(seen.shape) >= MORE)) if holed else Hiding()(rows)
    return view, (seen & ~view.mask())[:, : model.schema.numbers]


def _some(batches: Any) -> Batch:
    """The first rows of a stream, as many as are worth learning from."""
    parts, rows = [], 0
    for batch in batches:
        step = max(1, len(batch) // MOST_LEARNT)
        parts.append(batch[torch.arange(0, len(batch), step)].dense())
        rows += len(parts[-1])
        if rows >= MOST_LEARNT:
            break
    return Batch.concat(parts)


@torch.inference_mode()
def _weights(model: Model, beside: Beside, rows: Batch) -> Tensor:
    """(N,) weight of the normal distribution, by cells hidden from both."""
    device, (view, hidden) = model.module.device, _hidden(model, rows)

    def say(part: Batch) -> Tensor:
        p = model.module.decode(model.module.encode(part).z)
        mean, variance = beside.given(part)
        both = torch.zeros(len(part), 2, model.schema.numbers, dtype=torch.float64, device=device)
        for cells, family, outputs in p.likelihood.binned(p.outputs):
            here = family.place(part.numbers[:, cells]).unsqueeze(-1)  # hidden cells are there all the same
            both[:, 0, cells] = family.chances(outputs)[0].double().gather(-1, here).squeeze(-1)
            both[:, 1, cells] = beside.chances(cells, family, mean, variance).gather(-1, here).squeeze(-1)
        return both

    chances = model.blocks(view, say).clamp_min(TINY)
    own = mixed(chances, hidden, torch.tensor(0.5, dtype=torch.float64), across=True)
    binned = _binned(model)
    weight = torch.zeros(model.schema.numbers, dtype=torch.float64)
    weight[binned] = mixed(chances, hidden, own)[binned]
    return weight


def mixed(chances: Tensor, hidden: Tensor, prior: Tensor, across: bool = False) -> Tensor:
    """The second one's share of a mixture of two.

    Args:
        chances: (R, 2, N) that each gave what was there.
        hidden: (R, N) the cells that count.
        prior: () share that is worth `PRIOR` cells.
        across: one share for all cells, in place of one for each.
    """
    axes = (0, 1) if across else (0,)
    counted = hidden.double()
    share = prior.expand(chances.shape[2]) if not across else prior
    for _ in range(ROUNDS):
        second = share * chances[:, 1]
        owed = (second / (second + (1 - share) * chances[:, 0]) * counted).sum(axes)
        share = (owed + PRIOR * prior) / (counted.sum(axes) + PRIOR)
    return share
