"""The judges of a row: how far it is from random rows, how rare its cells are, how badly they are told.

    rows -> Memory | Histograms | Telling | Codes -> (n,) evidence against each row, (n, C) what each cell gave of it

Each looks at what the others miss. Distance to a few rows drawn at random is robust, since odd rows are few (Sugiyama &
Borgwardt 2013); columns taken one by one see a rare value in any of them (Goldstein & Dengel 2012); a network that
tells hidden cells from the others sees the odd combination. Weighing and adding them up is for `detect`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.model.autoencoder import AutoencoderModule
from narrows.schema import Batch, Column, Schema
from narrows.tasks.space import Space
from narrows.train.randomness import VALIDATION, generator

MEMBERS, SIZE = 32, 16  # memories, and rows of each: 8 and 64 rows did worse on the tables of ADBench
BINS = 10
RIDGE = 0.05  # of the mean variance of all directions, added to each
GROUPS = 4  # of cells, hidden one after the other
BLOCK = 4_096  # rows whose distances are held at once


@dataclass(frozen=True)
class Evidence:
    """What a judge says of n rows.

    Args:
        total: (n,) the more the odder.
        cells: (n, C) what each cell gave, 0 and up, in the same order of size as `total` but not adding up to it.
    """

    total: Tensor
    cells: Tensor


class Judge(ABC):
    """Rows to evidence. What it learnt is in tensors, for the file."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows."""

    def tensors(self) -> dict[str, Tensor]:
        """What it learnt, by name; `read` of its class takes it back."""
        return {}


class Memory(Judge):
    """-log density of a mixture around few rows drawn at random, averaged over such memories.

    The bandwidth of each memory is the median squared distance from a row to the nearest of its rows.

    Args:
        space: where rows lie.
        points: (E * S, F) the rows that are remembered, E memories of S.
        bandwidths: (E,) each above 0.
    """

    name = "distance"

    def __init__(self, space: Space, points: Tensor, bandwidths: Tensor) -> None:
        self.space, self.points, self.bandwidths = space, points, bandwidths

    @classmethod
    def learn(cls, space: Space, rows: Batch, draws: torch.Generator) -> tuple[Memory, Tensor]:
        """A memory of rows (n), and which of them it remembers (E * S,)."""
        points, seen = space.points(rows)
        chosen = torch.stack([torch.randperm(len(rows), generator=draws)[:SIZE] for _ in range(MEMBERS)])
        memory = cls(space, points[chosen.flatten()], torch.ones(MEMBERS))
        nearest = torch.cat(
            [
                memory.distances(some, there).min(-1).values
                for some, there in zip(torch.split(points, BLOCK), torch.split(seen, BLOCK), strict=True)
            ]
        )
        return cls(space, memory.points, nearest.median(0).values.clamp_min(1e-6)), chosen.flatten()

    @classmethod
    def read(cls, schema: Schema, tensors: Mapping[str, Tensor]) -> Memory:
        """The memory of these tensors."""
        return cls(Space(schema, tensors["weight"]), tensors["points"], tensors["bandwidths"])

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered."""
        return {"weight": self.space.weight, "points": self.points, "bandwidths": self.bandwidths}

    def among(self, rows: Batch) -> Memory:
        """A memory in the same space of these rows, for asking which of them is nearest."""
        return Memory(self.space, self.space.points(rows)[0], torch.ones(1))

    def distances(self, points: Tensor, seen: Tensor) -> Tensor:
        """(n, E, S) squared distances, scaled up to all features where only some were seen."""
        remembered = self.points.T
        squares = points.square().sum(1, keepdim=True) - 2 * points @ remembered + seen @ remembered.square()
        share = len(remembered) / seen.sum(1, keepdim=True).clamp_min(1)
        return (squares * share).clamp_min(0).unflatten(1, (len(self.bandwidths), -1))

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows; a cell's is its part of the distance to the rows that are near."""
        found = [self._evidence(rows[start : start + BLOCK]) for start in range(0, max(1, len(rows)), BLOCK)]
        return Evidence(torch.cat([each.total for each in found]), torch.cat([each.cells for each in found]))

    def _evidence(self, rows: Batch) -> Evidence:
        points, seen = self.space.points(rows)
        close = -self.distances(points, seen) / (2 * self.bandwidths[:, None])
        near = (close.softmax(2) / (2 * self.bandwidths[:, None])).flatten(1) / len(self.bandwidths)
        middle, square = near @ self.points, near @ self.points.square()
        apart = (near.sum(1, keepdim=True) * points.square() - 2 * points * middle + square) * seen
        return Evidence(-torch.logsumexp(close, 2).mean(1), self.space.cells(apart.clamp_min(0)))

    def nearest(self, rows: Batch) -> Tensor:
        """(n,) which of the remembered rows is nearest."""
        return torch.cat(
            [
                self.distances(*self.space.points(rows[start : start + BLOCK])).flatten(1).argmin(1)
                for start in range(0, max(1, len(rows)), BLOCK)
            ]
        )


class Covariance(Judge):
    """Squared Mahalanobis distance from the mean, with every direction's variance raised by a little of their mean.

    It sees what moves against the ways in which rows move together, however small it is: the one judge that finds a
    faint change of shape in a window of a series. Unseen features count as the mean.

    Args:
        space: where rows lie.
        mean: (F,) of the points.
        root: (F, F) a square root of the inverse of the covariance: the distance is that of `centered @ root` from 0.
    """

    name = "covariance"

    def __init__(self, space: Space, mean: Tensor, root: Tensor) -> None:
        self.space, self.mean, self.root = space, mean, root

    @classmethod
    def learn(cls, space: Space, rows: Batch) -> Covariance:
        """The covariance of rows (n)."""
        points, seen = space.points(rows)
        mean = points.sum(0) / seen.sum(0).clamp_min(1)
        centered = ((points - mean) * seen).double()
        values, vectors = torch.linalg.eigh(centered.T @ centered / len(points))
        raised = values.clamp_min(0) + RIDGE * values.mean().clamp_min(1e-12)
        return cls(space, mean, (vectors / raised.sqrt()).float())

    @classmethod
    def read(cls, schema: Schema, tensors: Mapping[str, Tensor]) -> Covariance:
        """The covariance of these tensors."""
        return cls(Space(schema, tensors["weight"]), tensors["mean"], tensors["root"])

    def tensors(self) -> dict[str, Tensor]:
        """Mean and root."""
        return {"weight": self.space.weight, "mean": self.mean, "root": self.root}

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows; a cell's is its deviation times how that pulls, where it pulls outward."""
        points, seen = self.space.points(rows)
        centered = (points - self.mean) * seen
        along = centered @ self.root
        pulls = centered * (along @ self.root.T)
        return Evidence(along.square().sum(1), self.space.cells(pulls.clamp_min(0)))


class Histograms(Judge):
    """-log share of rows whose cell is in the same of ten equal bins, or of the same level, column by column.

    Args:
        schema: of the rows.
        low: (N,) where the bins of each number begin.
        width: (N,) of a bin.
        bins: (N, 12) -log share of each bin, and of what lies below and above.
        levels: (sum of levels + 1,) -log share of each level, and of others, category by category; 0 for tokens.
    """

    name = "rarity"

    def __init__(self, schema: Schema, low: Tensor, width: Tensor, bins: Tensor, levels: Tensor) -> None:
        self.schema, self.low, self.width, self.bins, self.levels = schema, low, width, bins, levels

    @classmethod
    def learn(cls, schema: Schema, rows: Batch) -> Histograms:
        """The histograms of rows (n)."""
        rows = rows.dense()
        seen = rows.mask()
        low, high = (rows.numbers.masked_fill(~seen[:, : schema.numbers], end).nan_to_num() for end in (1e9, -1e9))
        low, high = low.amin(0), high.amax(0)
        empty = low > high
        low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
        made = cls(schema, low, ((high - low) / BINS).clamp_min(1e-9), torch.zeros(0), torch.zeros(0))
        places = made._places(rows.numbers)
        counts = torch.zeros(schema.numbers, BINS + 2).scatter_add_(
            1, places.T, seen[:, : schema.numbers].T.float().contiguous()
        )
        made.bins = _rarity(counts)
        made.levels = torch.cat([torch.zeros(0), *made._levels(rows, seen)])
        return made

    @classmethod
    def read(cls, schema: Schema, tensors: Mapping[str, Tensor]) -> Histograms:
        """The histograms of these tensors."""
        return cls(schema, *(tensors[name] for name in ("low", "width", "bins", "levels")))

    def tensors(self) -> dict[str, Tensor]:
        """The bins, and what they are worth."""
        return {"low": self.low, "width": self.width, "bins": self.bins, "levels": self.levels}

    def _levels(self, rows: Batch, seen: Tensor) -> list[Tensor]:
        told = _tokens(self.schema)
        found = []
        for place, levels in enumerate(self.schema.levels):
            known = rows.codes[seen[:, self.schema.numbers + place], place]
            rare = _rarity(torch.bincount(known, minlength=levels + 1)[None].float())[0]
            found.append(torch.zeros_like(rare) if place in told else rare)
        return found

    def _places(self, numbers: Tensor) -> Tensor:
        """(n, N) the bin of each number; the greatest value of those learnt from belongs to the last."""
        places = ((numbers - self.low) / self.width).clamp(-1, BINS + 1)
        top = (numbers <= self.low + BINS * self.width * (1 + 1e-6)) & (places >= BINS)
        return torch.where(top, BINS - 1, places.floor().clamp(-1, BINS)).long() + 1

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows: the sum over cells, scaled up where some were not seen."""
        rows = rows.dense()
        found = [self.bins.T.gather(0, self._places(rows.numbers))]
        if self.schema.levels:
            starts = torch.tensor([0, *(levels + 1 for levels in self.schema.levels)]).cumsum(0)[:-1]
            found.append(self.levels[rows.codes + starts])
        return _summed(torch.cat(found, dim=1), rows)


def _rarity(counts: Tensor) -> Tensor:
    """(n, bins) -log share of each bin, half a row added to each so that none is empty."""
    return -torch.log((counts + 0.5) / (counts.sum(1, keepdim=True) + 0.5 * counts.shape[1]))


def _tokens(schema: Schema) -> set[int]:
    """Places of the codes that are tokens."""
    spans = [schema.spans[column.name] for column in schema if column.kind == "tokens"]
    return {place - schema.numbers for span in spans for place in range(span.start, span.stop)}


class Telling(Judge):
    """What the network fails to tell: of tables each cell from the others, of what has a grid the row from its code.

    Args:
        model: a fitted model.
    """

    name = "telling"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.hidden = hides(model.module)
        cells = model.schema.cells
        # shuffled: columns side by side, or at equal distances, are often of one kind, and each group should have some
        self._groups = torch.randperm(cells, generator=generator(0, VALIDATION)) % min(GROUPS, cells)

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows: the loss of all cells, scaled up where some were not seen."""
        cells = self.model.schema.cells
        found = self.model.blocks(rows, self._told)[:, :cells] if self.hidden else self.model.costs(rows)[:, :cells]
        return _summed(found.float(), rows.dense())

    def expected(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """Numbers (n, N) and codes (n, M) that the network tells of rows, each cell hidden in its turn."""
        if not self.hidden:
            return self.model.cells(self.model.codes(rows))
        told = self.model.blocks(rows, self._told)[:, self.model.schema.cells :]
        numbers, codes = told.tensor_split([self.model.schema.numbers], dim=1)
        return numbers.float(), codes.long()

    @torch.inference_mode()
    def _told(self, rows: Batch) -> Tensor:
        """(B, 2C) costs of the cells, and what was expected in their place; mean over members."""
        rows, schema = rows.dense(), self.model.schema
        there = rows.mask()
        costs = torch.zeros(len(rows), schema.cells, dtype=torch.float64, device=rows.numbers.device)
        told = torch.zeros_like(costs)
        groups = self._groups.to(rows.numbers.device)
        for group in range(int(groups.max()) + 1):
            hidden = groups == group
            p = self.model.module.decode(self.model.module.encode(rows.with_seen(there & ~hidden)).z)
            nll = -p.log_prob(rows)[0]
            guess = self._guess(p.numbers()[0], p.codes()[0])
            costs[:, hidden] = (nll.mean(0) if self.model.members else nll).double()[:, hidden]
            told[:, hidden] = guess[:, hidden]
        return torch.cat([costs, told], dim=1)

    def _guess(self, numbers: Tensor, codes: Tensor) -> Tensor:
        if self.model.members:
            numbers, codes = numbers.mean(0), codes.mode(0).values
        return torch.cat([numbers.double(), codes.double()], dim=1)


class Codes(Judge):
    """How far a row's code is from those of random rows: for rows that are too wide to be compared themselves.

    Args:
        model: a fitted model.
        memory: of codes, whose numbers are columns there.
    """

    name = "code"

    def __init__(self, model: Model, memory: Memory) -> None:
        self.model, self.memory = model, memory

    @classmethod
    def learn(cls, model: Model, rows: Batch, draws: torch.Generator) -> Codes:
        """A memory of the codes of rows, each number of a code weighed by its spread."""
        codes = model.codes(rows)
        weight = 1 / codes.std(0, correction=0).clamp_min(1e-6)
        return cls(model, Memory.learn(Space(_numbers(model.code_size), weight), _as_rows(codes), draws)[0])

    @classmethod
    def read(cls, model: Model, tensors: Mapping[str, Tensor]) -> Codes:
        """The memory of these tensors."""
        return cls(model, Memory.read(_numbers(model.code_size), tensors))

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered."""
        return self.memory.tensors()

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows, for which no cell is to blame."""
        total = self.memory(_as_rows(self.model.codes(rows))).total
        return Evidence(total, total.new_zeros(len(total), self.model.schema.cells))


def _numbers(size: int) -> Schema:
    return Schema(tuple(Column(str(place), "number", "float", width=1) for place in range(size)))


def _as_rows(codes: Tensor) -> Batch:
    return Batch(codes, torch.zeros(len(codes), 0, dtype=torch.long))


def hides(module: AutoencoderModule) -> bool:
    """Whether a module learnt to tell hidden cells."""
    return any(getattr(part, "hides", False) for part in module.corrupt) and not module.autoregressive


def _summed(cells: Tensor, rows: Batch) -> Evidence:
    """Evidence of cells (n, C), of which the unseen ones say nothing."""
    if rows.seen is None:
        return Evidence(cells.sum(1), cells)
    cells = cells * rows.seen
    return Evidence(cells.sum(1) * cells.shape[1] / rows.seen.sum(1).clamp_min(1), cells)
