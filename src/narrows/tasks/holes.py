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

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.fitted import Model
from narrows.model.binned import Bins
from narrows.model.corruptions import Hiding
from narrows.model.likelihoods import Prediction
from narrows.schema import Batch, Schema
from narrows.tasks.intervals import quantile, reach, taken
from narrows.tasks.normal import Normal
from narrows.train.randomness import kept, seed_step

PART, INTERVALS = "normal", "intervals"
MOST_FEATURES = 128  # of the normal distribution: its work for a row grows with the cube of those missing
MOST_LEVELS = 24  # of a category that is a feature for each level
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
