"""The shared nouns: what a column is, what a schema is, and what a batch of prepared rows looks like.

Raw rows travel as Arrow record batches. The preparer turns them into a `Batch`, whose cells stand in two
blocks: all the numbers (standardized values, pixels, parts of dates), then the category codes:

    numbers (B, N) float32 | codes (B, M) int64        cells C = N + M;  seen (B, C) bool

A scalar column owns one cell; an array column (an image, a row of an unnamed matrix) owns one for each element;
a date owns several. `Schema` says which cells belong to which column, and is all that a model knows of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from narrows.errors import DataError

Kind = Literal["number", "binary", "category", "date", "image"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Column:
    """One column: what it was in the data and what it became as cells.

    Args:
        name: as in the data; unnamed arrays have the one column `x`.
        kind: what the values mean; decides the transform and the likelihood.
        type: Arrow type of one value, as text (`int64`, `timestamp[us, tz=UTC]`): reconstructions get it back.
        shape: of one value; `()` for a scalar, `(28, 28)` for an image, `(D,)` for a row of an unnamed matrix.
        width: number cells the column owns; 0 for categories, and for a column that was all missing.
        levels: known levels of a category; the code `levels` stands for every rare or unseen one. 0 for numbers.
        holes: whether cells were missing while the preparer learnt.
        bounded: whether the prepared numbers lie in [0, 1], so that a Bernoulli likelihood suits them.
    """

    name: str
    kind: Kind
    type: str
    shape: tuple[int, ...] = ()
    width: int = 1
    levels: int = 0
    holes: bool = False
    bounded: bool = False

    @property
    def categorical(self) -> bool:
        """Whether the column's one cell is a category code."""
        return self.levels > 0

    @property
    def cells(self) -> int:
        """Cells the column owns: its numbers, or one code."""
        return 1 if self.categorical else self.width

    def cell_names(self) -> list[str]:
        """A name for each cell: the column's own, numbered where it owns several."""
        return [self.name] if self.cells == 1 and not self.shape else [f"{self.name}{i}" for i in range(self.cells)]


@dataclass(frozen=True)
class Schema:
    """The columns of a table, and where their cells stand in a prepared `Batch`."""

    columns: tuple[Column, ...]

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise DataError(f"no column {name!r}", f"one of {', '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    @cached_property
    def numbers(self) -> int:
        """N, the number cells of a row."""
        return sum(column.width for column in self.columns if not column.categorical)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Known levels of each category column (M entries)."""
        return tuple(column.levels for column in self.columns if column.categorical)

    @property
    def cells(self) -> int:
        """C = N + M, the cells of a row."""
        return self.numbers + len(self.levels)

    @cached_property
    def spans(self) -> dict[str, slice]:
        """Where each column's cells stand among the C cells of a row."""
        number, code = 0, self.numbers
        spans = {}
        for column in self.columns:
            start = code if column.categorical else number
            spans[column.name] = slice(start, start + column.cells)
            if column.categorical:
                code += 1
            else:
                number += column.width
        return spans

    def cells_where(self, **facts: object) -> list[int]:
        """Positions of the cells whose column has these facts, such as `holes=True`, in cell order."""
        chosen = [c for c in self.columns if all(getattr(c, key) == value for key, value in facts.items())]
        return sorted(cell for c in chosen for cell in range(self.spans[c.name].start, self.spans[c.name].stop))

    @property
    def cell_names(self) -> list[str]:
        """A name for each of the C cells, in cell order."""
        named = {name: column.cell_names() for name, column in zip(self.names, self.columns, strict=True)}
        ordered = sorted(self.names, key=lambda name: self.spans[name].start)
        return [cell for name in ordered for cell in named[name]]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain lists and dicts, for the model file."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def from_json(cls, columns: list[Mapping[str, Any]]) -> Schema:
        """The schema that `to_json` wrote."""
        return cls(tuple(Column(**{**column, "shape": tuple(column["shape"])}) for column in columns))


@dataclass(frozen=True)
class Batch:
    """B prepared rows.

    Args:
        numbers: (B, N) float32 in prepared units; where unseen, the training mean, never NaN.
        codes: (B, M) int64 in `0..levels`, the last meaning "another level"; where unseen, also that.
        seen: (B, C) bool, numbers first; None says that every cell is there, and costs nothing.
        weight: (B,) float32 row weights; None weighs all rows alike.
    """

    numbers: Tensor
    codes: Tensor
    seen: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.numbers.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """The rows of a slice (views) or of an index tensor (copies)."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, change: Any) -> Batch:
        """The batch with `change` applied to every tensor it holds."""
        tensors = (self.numbers, self.codes, self.seen, self.weight)
        return Batch(*(None if tensor is None else change(tensor) for tensor in tensors))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def with_seen(self, seen: Tensor | None) -> Batch:
        """The same rows with other cells counted as seen."""
        return replace(self, seen=seen)

    def mask(self) -> Tensor:
        """`seen`, written out where it is None."""
        if self.seen is not None:
            return self.seen
        cells = self.numbers.shape[1] + self.codes.shape[1]
        return torch.ones(len(self), cells, dtype=torch.bool, device=self.numbers.device)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tensors take."""
        tensors = (self.numbers, self.codes, self.seen, self.weight)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @classmethod
    def concat(cls, batches: list[Batch]) -> Batch:
        """One batch of all rows, in order; a mask or weights appear where any of the batches has them."""
        seen = any(batch.seen is not None for batch in batches)
        weight = any(batch.weight is not None for batch in batches)
        return cls(
            torch.cat([batch.numbers for batch in batches]),
            torch.cat([batch.codes for batch in batches]),
            torch.cat([batch.mask() for batch in batches]) if seen else None,
            torch.cat([batch.weights() for batch in batches]) if weight else None,
        )

    def weights(self) -> Tensor:
        """`weight`, written out where it is None."""
        return self.weight if self.weight is not None else self.numbers.new_ones(len(self))


class Stream(Protocol):
    """Batches of training rows, and where they stand: what the training loop asks of its data.

    `rows` counts the rows of an epoch where known. `epoch(n)` yields the batches of epoch n in an order fixed by the
    seed; with `position`, as reported after some batch of that epoch, it goes on right behind that batch.
    """

    rows: int | None

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches of epoch `number`, each with the position behind it."""
        ...
