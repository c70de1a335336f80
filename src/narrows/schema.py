"""The shared nouns: what a column is, what a schema is, and what a batch of prepared rows looks like.

Raw rows travel as Arrow record batches. The preparer turns them into a `Batch`, whose cells stand in two
blocks: all the numbers (standardized values, pixels, parts of dates), then the category codes:

    numbers (B, N) float32 | codes (B, M) int64        cells C = N + M;  seen (B, C) bool

A scalar column owns one cell; an array column (an image, a row of an unnamed matrix) owns one for each element; a date
owns several, a text one code for each token, a bag one number for each known item. Bags stay sparse until `Batch.dense`
writes their cells out behind the other numbers. `Schema` says which cells belong to which column, and is all that a
model knows of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from narrows.errors import DataError

Kind = Literal["number", "count", "binary", "category", "date", "image", "series", "audio", "tokens", "bag"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MANY_LEVELS = ("classes", "vector", "strange")  # facts of a column that only categories with many levels have


@dataclass(frozen=True)
class Column:
    """One column: what it was in the data and what it became as cells.

    Args:
        name: as in the data; unnamed arrays have the one column `x`.
        kind: what the values mean; decides the transform and the likelihood.
        type: Arrow type of one value, as text (`int64`, `timestamp[us, tz=UTC]`): reconstructions get it back.
        shape: of one value; `()` for a scalar, `(28, 28)` for an image, `(D,)` for a row of an unnamed matrix.
        width: number cells the column owns; 0 for categories, and for a column that was all missing.
        levels: known levels of a category, or tokens of a text; the code `levels` stands for every rare or unseen one.
            0 for numbers. The last known token of a text, `levels - 1`, marks its end; cells behind it are unseen.
        holes: whether cells were missing while the preparer learnt.
        bounded: whether the prepared numbers lie in [0, 1], so that a Bernoulli likelihood suits them.
        grid: how the first cells of an array column are arranged, positions first and channels last, for networks that
            look at neighbors: (height, width, channels) of an image, (steps, channels) of a series or sound, (tokens,)
            of a text. The `side` cells behind them (a ragged series' length, a window's own scale) have no place in
            it. Empty for scalars, bags and plain matrices.
        rate: samples per second of a sound.
        classes: of a category with many levels: the classes that its levels are dealt to, the first so many to the
            first class and so on, so that a level is told in two steps; 0 where one softmax tells them all.
        vector: of such a category: numbers that stand for a level where it is read, and that tell it within its class.
        strange: of such a category: codes from `levels` on that unseen levels share, each by its hash; else one.
    """

    name: str
    kind: Kind
    type: str
    shape: tuple[int, ...] = ()
    width: int = 1
    levels: int = 0
    holes: bool = False
    bounded: bool = False
    grid: tuple[int, ...] = ()
    rate: int = 0
    classes: int = 0
    vector: int = 0
    strange: int = 1

    @property
    def categorical(self) -> bool:
        """Whether the column's cells are codes: one of a category, or one for each token of a text."""
        return self.levels > 0

    @property
    def cells(self) -> int:
        """Cells the column owns: its numbers, or its codes."""
        return prod(self.grid) if self.categorical else self.width

    @property
    def outputs(self) -> int:
        """Numbers that the decoder says of each code cell: one a level and one for others; or classes and a vector."""
        return self.classes + 1 + self.vector if self.classes else self.levels + 1

    @property
    def fellows(self) -> int:
        """Levels of a class, fewer of the last."""
        return -(-self.levels // self.classes)

    @property
    def side(self) -> int:
        """Cells that have no place in the grid; all of them where there is none."""
        return self.cells - prod(self.grid) if self.grid else self.cells

    def cell_names(self) -> list[str]:
        """A name for each cell: the column's own, numbered where it owns several."""
        single = self.cells == 1 and not self.shape and not self.grid
        return [self.name] if single else [f"{self.name}{i}" for i in range(self.cells)]


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
    def dense(self) -> int:
        """The number cells that are held densely: those of all columns but bags, which follow behind them."""
        return sum(column.width for column in self.columns if not column.categorical and column.kind != "bag")

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Known levels of each code cell (M entries): those of a text repeat for each of its tokens."""
        return tuple(levels for c in self.columns if c.categorical for levels in [c.levels] * c.cells)

    @cached_property
    def most(self) -> tuple[int, ...]:
        """The highest code of each code cell: unseen levels have those from its `levels` on."""
        return tuple(c.levels + c.strange - 1 for c in self.columns if c.categorical for _ in range(c.cells))

    @cached_property
    def outputs(self) -> int:
        """Numbers that describe a row: one for each number cell, and for each code one a level and one for others.

        Of a category with many levels, what the decoder says and the vectors that it is compared with.
        """
        codes = [c for c in self.columns if c.categorical]
        return self.numbers + sum(c.cells * (c.outputs + c.vector * (c.fellows if c.classes else 0)) for c in codes)

    @property
    def cells(self) -> int:
        """C = N + M, the cells of a row."""
        return self.numbers + len(self.levels)

    @cached_property
    def spans(self) -> dict[str, slice]:
        """Where each column's cells stand among the C cells of a row."""
        blocks: tuple[list[Column], ...] = ([], [], [])  # numbers, bags, codes
        for column in self.columns:
            blocks[2 if column.categorical else 1 if column.kind == "bag" else 0].append(column)
        ordered = [column for block in blocks for column in block]
        starts = accumulate((column.cells for column in ordered), initial=0)
        spans = {c.name: slice(start, start + c.cells) for c, start in zip(ordered, starts, strict=False)}
        return {column.name: spans[column.name] for column in self.columns}

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
        """Plain lists and dicts, for the model file; what only categories with many levels have, only for them."""
        return [
            {key: fact for key, fact in asdict(column).items() if column.classes or key not in MANY_LEVELS}
            for column in self.columns
        ]

    @classmethod
    def from_json(cls, columns: list[Mapping[str, Any]]) -> Schema:
        """The schema that `to_json` wrote."""
        known = [{**column, **{key: tuple(column.get(key, ())) for key in ("shape", "grid")}} for column in columns]
        return cls(tuple(Column(**column) for column in known))


@dataclass(frozen=True)
class Sparse:
    """The cells of bags, B rows of them: only those above 0.

    Args:
        offsets: (B + 1,) int64: entries `offsets[i]` to `offsets[i + 1]` are those of row i.
        cells: (E,) int64: place of each entry among the bags' cells, 0 for the first cell of the first bag.
        values: (E,) float32.
        width: cells of all bags.
    """

    offsets: Tensor
    cells: Tensor
    values: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice | Tensor) -> Sparse:
        """The rows of a slice, or of a tensor of positions or of flags."""
        if isinstance(rows, slice):
            places = torch.arange(*rows.indices(len(self)), device=self.offsets.device)
        else:
            places = rows if rows.dtype == torch.long else rows.nonzero().flatten()
        counts = self.offsets[places + 1] - self.offsets[places]
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        starts = self.offsets[places] - offsets[:-1]
        entries = torch.arange(int(offsets[-1]), device=self.offsets.device) + starts.repeat_interleave(counts)
        return Sparse(offsets, self.cells[entries], self.values[entries], self.width)

    def to(self, device: torch.device | str, wait: bool = True) -> Sparse:
        """The same on another device; see `Batch.to`."""
        offsets, cells, values = (_on(tensor, device, wait) for tensor in self.tensors())
        return Sparse(offsets, cells, values, self.width)

    def tensors(self) -> list[Tensor]:
        """All that it consists of."""
        return [self.offsets, self.cells, self.values]

    def dense(self) -> Tensor:
        """(B, width) float32."""
        rows = torch.arange(len(self), device=self.offsets.device)
        # told how many there are, a GPU need not be asked
        rows = rows.repeat_interleave(self.offsets.diff(), output_size=len(self.cells))
        return self.values.new_zeros(len(self), self.width).index_put_((rows, self.cells), self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the tensors take."""
        return self.offsets.nbytes + self.cells.nbytes + self.values.nbytes

    @classmethod
    def concat(cls, parts: list[Sparse]) -> Sparse:
        """All rows, in order."""
        counts = torch.cat([part.offsets.diff() for part in parts])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        cells, values = torch.cat([part.cells for part in parts]), torch.cat([part.values for part in parts])
        return cls(offsets, cells, values, parts[0].width)


@dataclass(frozen=True)
class Batch:
    """B prepared rows.

    Args:
        numbers: (B, N) float32 in prepared units; where unseen, the training mean, never NaN. Beside `sparse` only the
            numbers of the columns that are not bags.
        codes: (B, M) int64 in `0..levels`, the last meaning "another level"; where unseen, also that. Of a category
            with many levels, other levels have several codes from there on.
        seen: (B, C) bool, numbers first, without the bags' cells where they are sparse; None says that every cell is
            there, and costs nothing.
        weight: (B,) float32 row weights; None weighs all rows alike.
        sparse: the bags' cells, where they are not among the numbers.
        span: which row of a batch common to several processes these begin with, how many they are, and how many all
            have; None where they are all there is.
    """

    numbers: Tensor
    codes: Tensor
    seen: Tensor | None = None
    weight: Tensor | None = None
    sparse: Sparse | None = None
    span: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return self.numbers.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """The rows of a slice (views), or of a tensor of positions or of flags (copies)."""
        if isinstance(rows, Tensor) and rows.dtype == torch.long:  # a third of the time of indexing
            return self._map(lambda part: part.index_select(0, rows) if isinstance(part, Tensor) else part[rows])
        return self._map(lambda part: part[rows])

    def to(self, device: torch.device | str, wait: bool = True) -> Batch:
        """The batch on another device.

        Args:
            device: to go to.
            wait: until it is there; otherwise it is on its way to a GPU from pinned memory, and what reads it must be
                queued behind it.
        """
        there = self._map(lambda part: part.to(device, wait) if isinstance(part, Sparse) else _on(part, device, wait))
        return replace(there, span=self.span)

    def tensors(self) -> list[Tensor]:
        """All that it consists of."""
        found: list[Tensor] = []
        self._map(lambda part: found.extend(part.tensors() if isinstance(part, Sparse) else [part]))
        return found

    def copy(self) -> Batch:
        """The same rows in memory of their own; not those of bags, which are shared."""
        return self._map(lambda part: part.clone() if isinstance(part, Tensor) else part)

    def _map(self, change: Any) -> Batch:
        """The batch with `change` applied to everything it holds."""
        parts = (self.numbers, self.codes, self.seen, self.weight, self.sparse)
        return Batch(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]

    def dense(self) -> Batch:
        """The batch with the bags' cells written out behind the other numbers; itself where there are none.

        An item that is not in a bag is a seen zero.
        """
        if self.sparse is None:
            return self
        bags, at = self.sparse.dense(), self.numbers.shape[1]
        seen = self.seen
        if seen is not None:
            seen = torch.cat([seen[:, :at], torch.ones_like(bags, dtype=torch.bool), seen[:, at:]], dim=1)
        return Batch(torch.cat([self.numbers, bags], dim=1), self.codes, seen, self.weight)

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
        parts = (self.numbers, self.codes, self.seen, self.weight, self.sparse)
        return sum(part.nbytes for part in parts if part is not None)

    @classmethod
    def concat(cls, batches: list[Batch]) -> Batch:
        """One batch of all rows, in order; a mask or weights appear where any of the batches has them."""
        seen = any(batch.seen is not None for batch in batches)
        weight = any(batch.weight is not None for batch in batches)
        sparse = [batch.sparse for batch in batches if batch.sparse is not None]
        return cls(
            torch.cat([batch.numbers for batch in batches]),
            torch.cat([batch.codes for batch in batches]),
            torch.cat([batch.mask() for batch in batches]) if seen else None,
            torch.cat([batch.weights() for batch in batches]) if weight else None,
            Sparse.concat(sparse) if sparse else None,
        )

    def weights(self) -> Tensor:
        """`weight`, written out where it is None."""
        return self.weight if self.weight is not None else self.numbers.new_ones(len(self))


def _on(tensor: Tensor, device: torch.device | str, wait: bool) -> Tensor:
    """A tensor on a device; without waiting, a pinned copy of it is on its way."""
    if wait or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def weightless(batch: Batch) -> Batch:
    """Two rows of a batch, of no weight: a step on them takes part and moves nothing."""
    few = batch[torch.zeros(2, dtype=torch.long, device=batch.numbers.device)]
    return replace(few, weight=few.numbers.new_zeros(2))


def one_row(schema: Schema) -> Batch:
    """A row of zeros and first levels, everything seen: for finding out what a network does with a row."""
    return Batch(torch.zeros(1, schema.numbers), torch.zeros(1, len(schema.levels), dtype=torch.long))


class Stream(Protocol):
    """Batches of training rows, and where they stand: what the training loop asks of its data.

    `rows` counts the rows of an epoch where known, those of all processes together. With `common` every process has the
    same batches in sight, and takes its share of each; else each has rows of its own. `epoch(n)` yields the batches of
    epoch n in an order fixed by the seed; with `position`, as reported after some batch of that epoch, it goes on right
    behind that batch.
    """

    rows: int | None
    common: bool

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches of epoch `number`, each with the position behind it."""
        ...
