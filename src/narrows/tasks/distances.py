"""Judges that compare rows as points: with few rows drawn at random, with their neighbors, with the cloud as a whole.

    rows -> points -> Memory | Neighbors | Covariance -> evidence          rows -> codes -> Codes -> evidence

Distance to a few rows drawn at random is robust, since odd rows are few (Sugiyama & Borgwardt 2013); distance to the
nearest rows knows more, where these are normal (Ramaswamy et al. 2000); distance from the cloud sees faint changes in
how columns move together. Rows too wide to be compared are compared by their codes. What this file does not know:
which judges are asked, and what their word is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.schema import Batch, Column, Schema
from narrows.tasks.features import features_of
from narrows.tasks.judges import Evidence, Judge
from narrows.tasks.space import Space
from narrows.tensorfile import shaped, under

MEMBERS, SIZE = 32, 16  # memories, and rows of each: 8 and 64 rows did worse on the tables of ADBench
NEAREST = 5
REMEMBERED, MEMORY = 8_192, 1 << 22  # rows that neighbors are looked for among, and numbers of all of them
DIRECTIONS, FULL = 128, 2_048  # that have variances of their own; features up to which all rows are looked at
RIDGE = 0.05  # of the mean variance of all directions, added to each
BLOCK = 1_024  # rows whose distances are held at once


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
        size = min(SIZE, max(1, len(rows) // 3))  # or most of the few rows would be near: to themselves
        chosen = torch.stack([torch.randperm(len(rows), generator=draws)[:size] for _ in range(MEMBERS)])
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
        width = features_of(schema)
        weight, points, bandwidths = shaped(tensors, weight=(width,), points=(-1, width), bandwidths=(-1,))
        if len(points) % len(bandwidths) or not (bandwidths > 0).all():
            raise ValueError(f"{len(points)} points in memories of bandwidths {bandwidths.tolist()}")
        return cls(Space(schema, weight), points, bandwidths)

    def tensors(self) -> dict[str, Tensor]:
        """What is remembered."""
        return {"weight": self.space.weight, "points": self.points, "bandwidths": self.bandwidths}

    def distances(self, points: Tensor, seen: Tensor) -> Tensor:
        """(n, E, S) squared distances."""
        apart = squared_distances(points, seen, self.points)
        return apart.view(len(apart), len(self.bandwidths), len(self.points) // len(self.bandwidths))

    def total(self, rows: Batch) -> Tensor:
        """(n,) the evidence alone, in half of the time."""
        close = (self._close(*self.space.points(block)) for block in _blocks(rows))
        return torch.cat([-torch.logsumexp(each, 2).mean(1) for each in close])

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows; a cell's is its part of the distance to the rows that are near."""
        return _in_blocks(rows, self._evidence)

    def _close(self, points: Tensor, seen: Tensor) -> Tensor:
        """(n, E, S) log densities of the remembered rows' parts of the mixture, but for a constant."""
        return -self.distances(points, seen) / (2 * self.bandwidths[:, None])

    def _evidence(self, rows: Batch) -> Evidence:
        points, seen = self.space.points(rows)
        close = self._close(points, seen)
        near = (close.softmax(2) / (2 * self.bandwidths[:, None])).flatten(1) / len(self.bandwidths)
        middle, square = near @ self.points, near @ self.points.square()
        apart = (near.sum(1, keepdim=True) * points.square() - 2 * points * middle + square) * seen
        return Evidence(-torch.logsumexp(close, 2).mean(1), self.space.cells(apart.clamp_min(0)))


class Neighbors(Judge):
    """Mean distance to the five nearest of the rows that were learnt from (Ramaswamy et al. 2000).

    Where all of these are normal, near any of them is normal, which knows more than a small memory. Where they are not,
    anomalies that come in groups are near each other.

    Args:
        space: where rows lie.
        points: (R, F) the rows learnt from.
    """

    name = "neighbors"

    def __init__(self, space: Space, points: Tensor) -> None:
        self.space, self.points = space, points

    @classmethod
    def learn(cls, space: Space, rows: Batch) -> Neighbors:
        """The neighbors that rows (n) will be, evenly drawn where they are too many."""
        some = max(NEAREST + 1, min(len(rows), REMEMBERED, MEMORY // len(space.weight)))
        return cls(space, space.points(rows[torch.linspace(0, len(rows) - 1, some).round().long()])[0])

    @classmethod
    def read(cls, schema: Schema, tensors: Mapping[str, Tensor]) -> Neighbors:
        """The neighbors of these tensors."""
        width = features_of(schema)
        weight, points = shaped(tensors, weight=(width,), points=(-1, width))
        return cls(Space(schema, weight), points)

    def tensors(self) -> dict[str, Tensor]:
        """The rows learnt from."""
        return {"weight": self.space.weight, "points": self.points}

    def typical(self, rows: Batch) -> Evidence:
        """What it says of the rows learnt from, each without itself."""
        points = torch.split(self.points, BLOCK)
        return _joined([self._apart(some, torch.ones_like(some), 1) for some in points])

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows; a cell's is its part of the squared distances."""
        return _in_blocks(rows, self._evidence)

    def _evidence(self, rows: Batch) -> Evidence:
        return self._apart(*self.space.points(rows), 0)

    def _apart(self, points: Tensor, seen: Tensor, skipped: int) -> Evidence:
        """The evidence against points, with so many of the nearest left out."""
        found = squared_distances(points, seen, self.points).topk(NEAREST + skipped, dim=1, largest=False)
        squares, near = found.values[:, skipped:], found.indices[:, skipped:]
        apart = (points[:, None] - self.points[near]).square().mean(1) * seen
        return Evidence(squares.sqrt().mean(1), self.space.cells(apart))


class Covariance(Judge):
    """Squared Mahalanobis distance from the mean, with every direction's variance raised by a little of their mean.

    It sees what moves against the ways in which rows move together, however small it is: the one judge that finds a
    faint change of shape in a window of a series. Unseen features count as the mean. Beyond the first directions all
    are given one variance, so that windows of many channels can be told too.

    Args:
        space: where rows lie.
        mean: (F,) of the points.
        directions: (F, K) orthonormal, those in which rows vary most.
        variances: (K + 1,) raised ones along these, and along any other.
    """

    name = "covariance"

    def __init__(self, space: Space, mean: Tensor, directions: Tensor, variances: Tensor) -> None:
        self.space, self.mean, self.directions, self.variances = space, mean, directions, variances

    @classmethod
    def learn(cls, space: Space, rows: Batch) -> Covariance:
        """The covariance of rows (n); of an even sample of them where they have more features than is quick."""
        if len(space.weight) > FULL:
            rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), FULL)).round().long()]
        points, seen = space.points(rows)
        mean = points.sum(0) / seen.sum(0).clamp_min(1)
        centered = ((points - mean) * seen).double()
        values, directions = _principal(centered, min(DIRECTIONS, *centered.shape))
        total, features = float(centered.square().sum()) / len(centered), centered.shape[1]
        rest = max(0.0, total - float(values.sum())) / max(1, features - len(values))
        raised = torch.cat([values, values.new_tensor([rest])]) + RIDGE * max(total / features, 1e-12)
        return cls(space, mean, directions.float(), raised.float())

    @classmethod
    def read(cls, schema: Schema, tensors: Mapping[str, Tensor]) -> Covariance:
        """The covariance of these tensors."""
        width = features_of(schema)
        weight, mean, directions = shaped(tensors, weight=(width,), mean=(width,), directions=(width, -1))
        (variances,) = shaped(tensors, variances=(directions.shape[1] + 1,))
        if not (variances > 0).all():
            raise ValueError("variances of 0 or less")
        return cls(Space(schema, weight), mean, directions, variances)

    def tensors(self) -> dict[str, Tensor]:
        """Mean, directions and variances."""
        learnt = {"mean": self.mean, "directions": self.directions, "variances": self.variances}
        return {"weight": self.space.weight, **learnt}

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows; a cell's is its deviation times how that pulls, where it pulls outward."""
        points, seen = self.space.points(rows)
        centered = (points - self.mean) * seen
        along, (first, rest) = centered @ self.directions, self.variances.tensor_split([-1])
        pull = (along * (1 / first - 1 / rest)) @ self.directions.T + centered / rest
        return Evidence((centered * pull).sum(1).clamp_min(0), self.space.cells((centered * pull).clamp_min(0)))


def _principal(centered: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Variances (count,) and directions (F, count) in which centered rows (n, F) vary most."""
    rows, features = centered.shape
    if features <= rows:
        values, vectors = torch.linalg.eigh(centered.T @ centered / rows)
        return values[-count:].clamp_min(0), vectors[:, -count:]
    values, vectors = torch.linalg.eigh(centered @ centered.T / rows)  # as many that are not 0, and quicker
    values, found = values[-count:].clamp_min(0), centered.T @ vectors[:, -count:]
    return values, found / found.norm(dim=0).clamp_min(1e-12)


class Codes(Judge):
    """How far a row's code is from those of other rows: for rows that are too wide to be compared themselves.

    Args:
        model: a fitted model.
        judge: of codes, whose numbers are columns there.
    """

    name = "code"

    def __init__(self, model: Model, judge: Memory | Neighbors) -> None:
        self.model, self.judge = model, judge

    @classmethod
    def learn(cls, model: Model, rows: Batch, draws: torch.Generator, all_normal: bool) -> Codes:
        """The codes of rows, each number weighed by its spread: neighbors where all are normal, else a memory."""
        codes = model.codes(rows)
        space = Space(_numbers(model.code_size), 1 / codes.std(0, correction=0).clamp_min(1e-6))
        known = _as_rows(codes)
        return cls(model, Neighbors.learn(space, known) if all_normal else Memory.learn(space, known, draws)[0])

    @classmethod
    def read(cls, model: Model, tensors: Mapping[str, Tensor]) -> Codes:
        """The codes of these tensors."""
        kind = Memory if any(name.startswith(Memory.name) for name in tensors) else Neighbors
        return cls(model, kind.read(_numbers(model.code_size), under(f"{kind.name}.", tensors)))

    def typical(self, rows: Batch) -> Evidence:
        """What it says of the rows that it learnt from."""
        return self._of_no_cell(self.judge.typical(_as_rows(self.model.codes(rows))).total)

    def tensors(self) -> dict[str, Tensor]:
        """What its judge learnt."""
        return {f"{self.judge.name}.{name}": tensor for name, tensor in self.judge.tensors().items()}

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows, for which no cell is to blame."""
        return self._of_no_cell(self.judge(_as_rows(self.model.codes(rows))).total)

    def _of_no_cell(self, total: Tensor) -> Evidence:
        return Evidence(total, total.new_zeros(len(total), self.model.schema.cells))


def squared_distances(points: Tensor, seen: Tensor, others: Tensor) -> Tensor:
    """(n, R) squared distances from points (n, F) to others (R, F), scaled up where only some features were seen."""
    squares = points.square().sum(1, keepdim=True) - 2 * points @ others.T + seen @ others.square().T
    share = others.shape[1] / seen.sum(1, keepdim=True).clamp_min(1)
    return (squares * share).clamp_min(0)


def nearest(space: Space, known: Batch, rows: Batch) -> Tensor:
    """(n,) which of the known rows is the nearest to each row."""
    others = space.points(known)[0]
    return torch.cat([squared_distances(*space.points(block), others).argmin(1) for block in _blocks(rows)])


def _blocks(rows: Batch) -> list[Batch]:
    """Rows, so many at a time that their distances can be held; one empty block of none."""
    return [rows[start : start + BLOCK] for start in range(0, max(1, len(rows)), BLOCK)]


def _in_blocks(rows: Batch, judge: Callable[[Batch], Evidence]) -> Evidence:
    """The evidence of a judge who holds the distances of all rows at once, a block at a time."""
    return _joined([judge(block) for block in _blocks(rows)])


def _joined(found: list[Evidence]) -> Evidence:
    return Evidence(torch.cat([each.total for each in found]), torch.cat([each.cells for each in found]))


def _numbers(size: int) -> Schema:
    return Schema(tuple(Column(str(place), "number", "float", width=1) for place in range(size)))


def _as_rows(codes: Tensor) -> Batch:
    return Batch(codes, torch.zeros(len(codes), 0, dtype=torch.long))
