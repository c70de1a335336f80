"""From the decoder's outputs to a distribution over cells: one family for each kind of cell, joined.

A row's outputs are N numbers (a location for each number cell), then `levels + 1` logits for each category: its known
levels, and one for every other. Each family knows its link from outputs to the range of its data.
The words people use: `mse` is a Gaussian of fixed scale without its constant, so that the loss is the sum of squared
errors; `bce` is the Bernoulli likelihood; cross-entropy is what every category has.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.categorical import Categorical
from narrows.networks.dense import activation
from narrows.schema import Batch, Column, Schema

Words = str | dict[str, str]
FIXED = re.compile(r"gaussian\(([0-9.]+(?:e-?[0-9]+)?)\)")


class NumberFamily(nn.Module, ABC):
    """Outputs (..., n) and cells (B, n) -> log density of each cell."""

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Expected cells, in prepared units."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log density of each cell, (..., B, n)."""


class SquaredError(NumberFamily):
    """Minus the squared error: a Gaussian of variance 1/2 without its constant, so not a density.

    Args:
        link: activation of the outputs; `sigmoid` keeps reconstructions of [0, 1] data in range.
    """

    def __init__(self, link: str = "identity") -> None:
        super().__init__()
        self.link = activation(link)

    def mean(self, outputs: Tensor) -> Tensor:
        """The linked outputs."""
        linked: Tensor = self.link(outputs)
        return linked

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Minus the squared error of each cell."""
        return -(self.mean(outputs) - cells).square()


class Gaussian(NumberFamily):
    """Normal density of each cell around the linked output.

    Args:
        cells: number cells of a row.
        scale: fixed standard deviation, in prepared units; None learns one for each cell.
        floor: smallest learnt scale, so that repeated values do not send the density to infinity: a hundredth of a
            standardized column's spread.
        members: networks side by side, each with scales of its own; None for one.
    """

    def __init__(self, cells: int, scale: float | None = None, floor: float = 1e-2, members: int | None = None) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise SettingError(f"scale={scale!r}", "a standard deviation above 0, or None to learn it")
        self.floor = floor
        shape = (cells,) if members is None else (members, 1, cells)
        self.log_scale = nn.Parameter(torch.zeros(shape)) if scale is None else None
        self.fixed = scale

    def mean(self, outputs: Tensor) -> Tensor:
        """The outputs themselves."""
        return outputs

    def scale(self) -> Tensor:
        """Standard deviation of each cell; one for all where it is fixed."""
        if self.log_scale is None:
            return torch.tensor(self.fixed)
        return (self.log_scale.clamp(-20.0, 20.0).mul(2).exp() + self.floor**2).sqrt()

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log normal density of each cell."""
        scale = self.scale()
        return -0.5 * ((cells - outputs) / scale).square() - scale.log() - 0.5 * log(2 * pi)


class Bernoulli(NumberFamily):
    """Binary cells, and cells in [0, 1] taken as chances: the cross-entropy of pixels.

    Beyond [0, 1] a cross-entropy has no meaning, and would reward what lies there; such a cell counts as the nearer
    end, less its squared distance from it, so that a row fits the worse the further out it is.
    """

    def mean(self, outputs: Tensor) -> Tensor:
        """The sigmoid of the outputs."""
        return outputs.sigmoid()

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """`x log m + (1 - x) log(1 - m)`, from logits, less the squared excess over [0, 1]."""
        within = cells.clamp(0.0, 1.0)
        return within * outputs - F.softplus(outputs) - (cells - within).square()


@dataclass(frozen=True)
class Prediction:
    """p(row | code), as a likelihood and the decoder's outputs (K, [E,] B, outputs)."""

    likelihood: Likelihood
    outputs: Tensor

    def log_prob(self, batch: Batch) -> Tensor:
        """Log likelihood of each cell, (K, [E,] B, C); exactly 0 where it was not seen."""
        return self.likelihood.log_prob(self.outputs, batch)

    def numbers(self) -> Tensor:
        """Expected number cells, (K, [E,] B, N)."""
        return self.likelihood.mean(self.outputs)

    def codes(self) -> Tensor:
        """Most probable known levels, (K, [E,] B, M)."""
        return self.likelihood.mode(self.outputs)


class Likelihood(nn.Module):
    """The families of a schema, joined: calling it on a decoder's outputs gives a `Prediction`.

    Args:
        schema: of the prepared data.
        numbers: family of each number cell: `mse`, `gaussian` (learnt scale), `gaussian(0.1)` (fixed scale, in prepared
            units), `bernoulli` (or `bce`), or `auto`: Bernoulli for columns that lie in [0, 1], Gaussian for the rest.
            A mapping chooses by column; columns it leaves out are `auto`.
        link: activation of the outputs where the family is `mse`; `auto` is the sigmoid for columns that lie in
            [0, 1] (on MNIST it halved the error of the same network), and none for the rest.
        members: networks side by side.

    Raises:
        SettingError: for an unknown family or column, or `bernoulli` for a column that leaves [0, 1].
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        schema: Schema,
        numbers: Words = "auto",
        link: str = "auto",
        members: int | None = None,
    ) -> None:
        super().__init__()
        chosen = {c: (f, _link(f, schema[c], link)) for c, f in choose_families(schema, numbers).items()}
        kinds = sorted(set(chosen.values()))
        cells = [[i for c in chosen if chosen[c] == kind for i in _span(schema, c)] for kind in kinds]
        self.sizes = [len(group) for group in cells]
        self.families = nn.ModuleList(_family(*k, n, members) for k, n in zip(kinds, self.sizes, strict=True))
        self.categories = Categorical(schema.levels) if schema.levels else None
        self.count = schema.numbers
        self.width = schema.numbers + (self.categories.outputs if self.categories else 0)
        # the decoder's outputs stand family by family; `order` says which cell each is, `back` undoes it
        order = torch.tensor([i for group in cells for i in group], dtype=torch.long)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, outputs: Tensor) -> Prediction:
        """The distribution that these outputs describe; float32, whatever precision the network ran in."""
        return Prediction(self, outputs.float())

    def log_prob(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Log likelihood of each cell, (..., B, C); exactly 0 where it was not seen."""
        cells = batch.numbers if len(self.sizes) < 2 else batch.numbers[:, self.order]
        groups = zip(self._grouped(outputs), torch.split(cells, self.sizes, dim=1), strict=True)
        parts = [family.log_prob(*group) for family, group in zip(self._families(), groups, strict=True)]
        joined = self._in_cell_order(parts, outputs)
        if self.categories is not None:
            codes = self.categories.log_prob(outputs[..., self.count :], batch.codes)
            joined = torch.cat([joined, codes], dim=-1)
        return joined if batch.seen is None else joined.masked_fill(~batch.seen, 0.0)

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected number cells, (..., N)."""
        groups = zip(self._families(), self._grouped(outputs), strict=True)
        return self._in_cell_order([family.mean(group) for family, group in groups], outputs)

    def mode(self, outputs: Tensor) -> Tensor:
        """Most probable known levels, (..., M)."""
        if self.categories is None:
            return outputs.new_zeros((*outputs.shape[:-1], 0), dtype=torch.long)
        return self.categories.mode(outputs[..., self.count :])

    def _families(self) -> list[NumberFamily]:
        return list(self.families)  # type: ignore[arg-type]

    def _grouped(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return torch.split(outputs[..., : self.count], self.sizes, dim=-1)

    def _in_cell_order(self, parts: list[Tensor], outputs: Tensor) -> Tensor:
        """The families' values side by side, each in its cell's place."""
        if not parts:
            return outputs[..., :0]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)[..., self.back]


def choose_families(schema: Schema, numbers: Words) -> dict[str, str]:
    """The word for every column that has number cells: `mse`, `gaussian`, `gaussian(SCALE)` or `bernoulli`.

    Raises:
        SettingError: for an unknown word or column, or `bernoulli` for a column that leaves [0, 1].
    """
    columns = [column for column in schema if not column.categorical and column.width]
    asked = {c.name: numbers for c in columns} if isinstance(numbers, str) else dict(numbers)
    unknown = set(asked) - {column.name for column in columns}
    if unknown:
        raise SettingError(f"a likelihood for {', '.join(sorted(unknown))}", "columns of numbers")
    return {column.name: _word(column, asked.get(column.name, "auto")) for column in columns}


def _word(column: Column, asked: str) -> str:
    """The word asked for, checked; `auto` and `bce` replaced by what they stand for."""
    if asked == "auto":
        return "bernoulli" if column.bounded else "gaussian"
    word = "bernoulli" if asked == "bce" else asked
    if word not in ("mse", "gaussian", "bernoulli") and not FIXED.fullmatch(word):
        raise SettingError(f"likelihood {asked!r}", "auto, mse, gaussian, gaussian(0.1), bernoulli or bce")
    if word == "bernoulli" and not column.bounded:
        raise SettingError(
            f"a Bernoulli likelihood for column {column.name!r}", "numbers in [0, 1]", "transform it by `minmax`"
        )
    return word


def _span(schema: Schema, column: str) -> range:
    span = schema.spans[column]
    return range(span.start, span.stop)


def _link(family: str, column: Column, link: str) -> str:
    """The link of a column's squared errors; the other families have their own."""
    if family != "mse":
        return "identity"
    return link if link != "auto" else "sigmoid" if column.bounded else "identity"


def _family(word: str, link: str, cells: int, members: int | None) -> NumberFamily:
    if word == "mse":
        return SquaredError(link)
    if word == "bernoulli":
        return Bernoulli()
    fixed = FIXED.fullmatch(word)
    return Gaussian(cells, float(fixed[1]) if fixed else None, members=members)
