"""From cells to what the encoder reads: one vector a row, or the grids of array columns beside a vector of the rest.

    Embed      numbers as they are, counts as logarithms, categories one-hot or, with many levels, as vectors of a
               table, a flag for each cell with holes -> (B, D)
    GridEmbed  images, series, sounds and texts in their own shape, everything else through an Embed -> View

A dense layer over one-hot cells is an embedding table, so categories need no table of their own here, until one-hot
cells would be too wide; tokens have one, shared by all places of a text. An unseen cell enters as zero together with
its flag, so it is told from a cell that is zero; cells that never had holes in training and are never masked have no
flag and no weights to spend on one: if one is missing later, its training mean stands in.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

from narrows.model.numbers import Counts, Pieces, log_counts
from narrows.networks.fused import View
from narrows.schema import Batch, Column, Schema
from narrows.world import drawn

# Share of category cells that training shows as unknown levels. Without it one column of unseen levels threw the other
# columns off: on adult's test file, whose labels are spelled otherwise, the squared error fell from 7.75 to 2.22 (2 of
# them for the labels); on held-out rows with known levels the loss fell too, from 0.252 to 0.204.
STRANGERS = 0.01
TOKEN_WIDTH = 32  # numbers that stand for a token; characters and bytes need no more, words are helped by the network


class Embed(nn.Module):
    """Batch -> (B, `width`), one vector a row.

    Args:
        schema: of the prepared data.
        masking: whether the corruption hides cells, so that every cell needs a flag.
        without: columns whose grid is left out here; their side cells are not.
        pieces: that numbers outside of grids and bags are read in, beside as they are (see `Pieces`); 0 for none.
    """

    at: Tensor
    holes: Tensor
    hollow: Tensor
    hot: Tensor
    starts: Tensor
    sizes: Tensor

    def __init__(self, schema: Schema, masking: bool = False, without: Iterable[str] = (), pieces: int = 0) -> None:
        super().__init__()
        self.without = frozenset(without)
        columns = [c for c in schema if not (c.categorical and c.name in self.without)]
        numbers = sorted(cell for c in columns if not c.categorical for cell in self._vector_cells(schema, c))
        told = [c for c in columns if c.categorical and not c.grid]
        hot = [schema.spans[c.name].start for c in told if not c.classes]
        levels = [c.levels for c in told if not c.classes]
        hollow = set(range(schema.cells) if masking else schema.cells_where(holes=True))
        bags = set(schema.cells_where(kind="bag"))  # an item that was hidden looks like one that is not there
        places = [schema.spans[c.name].start for c in told]
        holes = [cell for cell in (*numbers, *places) if cell in hollow and cell not in bags]
        self.every = len(numbers) == schema.numbers
        self.numbers, self.cells, self.levels = len(numbers), schema.numbers, sum(levels)
        self.texts = nn.ModuleList(Tokens(c, schema) for c in columns if c.categorical and c.grid)
        self.tables = nn.ModuleList(Table(c, schema) for c in told if c.classes)
        self.counts = Counts(schema, numbers)
        alone = [c for c in columns if c.kind == "number" and not c.grid] if pieces else []
        cut = {cell for c in alone for cell in self._vector_cells(schema, c)}
        self.pieces = Pieces([place for place, cell in enumerate(numbers) if cell in cut], pieces) if cut else None
        indices = {
            "at": numbers,
            "holes": holes,
            "hot": [cell - schema.numbers for cell in hot],
            "starts": [*accumulate(levels, initial=0)][:-1],
            "sizes": levels,
        }
        for name, index in indices.items():
            self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)
        emptied = [cell in hollow for cell in numbers]
        self.register_buffer("hollow", torch.tensor(emptied, dtype=torch.bool), persistent=False)
        self.hiding = any(emptied)
        texts = sum(prod(c.grid) * TOKEN_WIDTH for c in columns if c.categorical and c.grid)
        self.width = self.numbers + self.levels + len(holes) + texts + sum(c.vector for c in told if c.classes)
        self.width += self.pieces.width if self.pieces else 0

    def _vector_cells(self, schema: Schema, column: Column) -> range:
        span = schema.spans[column.name]
        return range(span.start + (prod(column.grid) if column.name in self.without else 0), span.stop)

    def forward(self, batch: Batch) -> Tensor:
        """The encoder's input."""
        parts = [self._values(batch)] if self.numbers else []
        if self.pieces:
            parts.append(self.pieces(parts[0], self._there(batch)))
        if self.levels:
            parts.append(self._one_hot(batch))
        if len(self.holes):
            parts.append(self._flags(batch))
        parts += [table(batch).flatten(1) for table in self.texts]
        parts += [table(batch) for table in self.tables]
        if not parts:
            return batch.numbers[:, :0]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _values(self, batch: Batch) -> Tensor:
        numbers = batch.numbers if self.every else batch.numbers[:, self.at]
        there = self._there(batch)
        if there is not None:
            numbers = numbers.masked_fill(~there, 0.0)
        scaled: Tensor = self.counts(numbers)
        return scaled

    def _there(self, batch: Batch) -> Tensor | None:
        """(B, numbers) which numbers are read, since they were seen or would not be flagged if not; None for all."""
        if batch.seen is None or not self.hiding:
            return None
        seen = batch.seen[:, : self.cells] if self.every else batch.seen[:, self.at]
        return seen | ~self.hollow

    def _one_hot(self, batch: Batch) -> Tensor:
        """(B, levels): a one at each known level; nothing for "another level" and for unseen cells."""
        codes = batch.codes[:, self.hot]
        if self.training:
            codes = with_strangers(codes, self.sizes)
        known = codes < self.sizes
        if batch.seen is not None:
            known = known & batch.seen[:, self.cells + self.hot]
        return one_hot(codes, known, self.starts, self.levels, batch.numbers.dtype)

    def _flags(self, batch: Batch) -> Tensor:
        if batch.seen is None:
            return batch.numbers.new_zeros(len(batch), len(self.holes))
        return (~batch.seen[:, self.holes]).to(batch.numbers.dtype)


class Tokens(nn.Module):
    """A text's codes as vectors: one table for all its places, and one entry for tokens not known.

    Args:
        column: a text.
        schema: it stands in.
    """

    def __init__(self, column: Column, schema: Schema) -> None:
        super().__init__()
        self.span, self.levels = schema.spans[column.name], column.levels
        self.codes = slice(self.span.start - schema.numbers, self.span.stop - schema.numbers)
        self.table = nn.Embedding(column.levels + 1, TOKEN_WIDTH)

    def forward(self, batch: Batch) -> Tensor:
        """(B, T, TOKEN_WIDTH), zeros where no token was seen."""
        codes = batch.codes[:, self.codes]
        if self.training:
            codes = with_strangers(codes, self.levels)
        vectors: Tensor = self.table(codes)
        if batch.seen is not None:
            vectors = vectors * batch.seen[:, self.span].unsqueeze(-1)
        return vectors

    def feed(self, codes: Tensor) -> Tensor:
        """(B, TOKEN_WIDTH) of one place's codes (B,)."""
        vectors: Tensor = self.table(codes)
        return vectors


class Table(nn.Module):
    """A category with many levels as vectors: one a level, and one for each of the codes that unseen levels share.

    Rare levels, which have no code of their own, train the latter, as do levels that training shows as unseen.

    Args:
        column: a category of many levels.
        schema: it stands in.
    """

    def __init__(self, column: Column, schema: Schema) -> None:
        super().__init__()
        self.cell, self.levels, self.strange = schema.spans[column.name].start, column.levels, column.strange
        self.code = self.cell - schema.numbers
        self.vectors = nn.Embedding(column.levels + column.strange, column.vector)
        with torch.no_grad():  # as long as a one-hot cell, however many numbers
            self.vectors.weight.mul_(column.vector**-0.5)

    def forward(self, batch: Batch) -> Tensor:
        """(B, vector), zeros where the cell was not seen."""
        codes = batch.codes[:, self.code]
        if self.training:
            codes = with_strangers(codes, self.levels, self.strange)
        vectors: Tensor = self.vectors(codes)
        if batch.seen is not None:
            vectors = vectors * batch.seen[:, self.cell].unsqueeze(-1)
        return vectors


class Values(nn.Module):
    """An array column's number cells in the shape of its grid; where cells have holes, with flags as further channels.

    A flag is 1 where a cell was seen: networks read what is absent as zeros.

    Args:
        column: an image, series or sound.
        schema: it stands in.
        masking: whether the corruption hides cells.
    """

    def __init__(self, column: Column, schema: Schema, masking: bool) -> None:
        super().__init__()
        start = schema.spans[column.name].start
        self.grid, self.span = column.grid, slice(start, start + prod(column.grid))
        self.flagged = column.holes or masking
        self.counting = column.kind == "count"

    @property
    def channels(self) -> int:
        """Numbers at each position: values, then flags."""
        return self.grid[-1] * (2 if self.flagged else 1)

    def forward(self, batch: Batch) -> Tensor:
        """(B, *positions, channels)."""
        values = batch.numbers[:, self.span].reshape(-1, *self.grid)
        values = log_counts(values) if self.counting else values
        if not self.flagged:
            return values
        if batch.seen is None:
            return torch.cat([values, torch.ones_like(values)], dim=-1)
        seen = batch.seen[:, self.span].reshape(-1, *self.grid)
        return torch.cat([values.masked_fill(~seen, 0.0), seen.to(values.dtype)], dim=-1)

    def feed(self, cells: Tensor) -> Tensor:
        """(B, channels) of one position's cells (B, values), as if seen."""
        cells = log_counts(cells) if self.counting else cells
        return torch.cat([cells, torch.ones_like(cells)], dim=-1) if self.flagged else cells


class GridEmbed(nn.Module):
    """Batch -> View: the grids of some columns, and a vector of everything else.

    Args:
        schema: of the prepared data.
        names: columns whose grids a network reads, in this order.
        masking: whether the corruption hides cells.
        pieces: as in `Embed`.
    """

    def __init__(self, schema: Schema, names: list[str], masking: bool = False, pieces: int = 0) -> None:
        super().__init__()
        self.columns = columns = [schema[name] for name in names]
        self.rest = Embed(schema, masking, names, pieces)
        self.grids = nn.ModuleList(
            Tokens(column, schema) if column.categorical else Values(column, schema, masking) for column in columns
        )
        self.spans = [
            (part.span, column.grid, column.categorical) for part, column in zip(self.parts, columns, strict=True)
        ]

    @property
    def parts(self) -> list[Tokens | Values]:
        """What embeds each grid."""
        return list(self.grids)  # type: ignore[arg-type]

    def channels(self, index: int) -> int:
        """Numbers at each position of a grid."""
        part = self.parts[index]
        return TOKEN_WIDTH if isinstance(part, Tokens) else part.channels

    def forward(self, batch: Batch) -> View:
        """The encoder's input."""
        return View(
            self.rest(batch),
            tuple(part(batch) for part in self.grids),
            tuple(_present(batch, *where) for where in self.spans),
        )

    def feed(self, index: int, cells: Tensor) -> Tensor:
        """(B, channels) what one position of a grid looks like that holds these cells: values (B, v) or codes (B,)."""
        return self.parts[index].feed(cells)


def _present(batch: Batch, span: slice, grid: tuple[int, ...], categorical: bool) -> Tensor | None:
    """(B, *positions) which positions of a grid have anything seen; None for all."""
    if batch.seen is None:
        return None
    seen = batch.seen[:, span].reshape(-1, *grid)
    return seen if categorical else seen.any(-1)


class CellEmbed(nn.Module):
    """Batch -> View: every cell of the row as a vector of its own, for networks that relate cells to each other.

    A number is a line in its cell's own direction, a level a point of its column's table, a hole a point of its cell's
    (Gorishniy et al. 2021, the feature tokenizer).

    Args:
        schema: of the prepared data: columns of numbers and categories.
        width: numbers that stand for a cell.
        masking: whether the corruption hides cells, so that every cell needs a vector for when it is hidden.
    """

    hollow: Tensor
    sizes: Tensor
    starts: Tensor
    strange: Tensor

    def __init__(self, schema: Schema, width: int, masking: bool = False) -> None:
        super().__init__()
        self.numbers, self.width = schema.numbers, width
        self.counts = Counts(schema, list(range(schema.numbers)))
        self.slope = nn.Parameter(torch.randn(schema.numbers, width) * width**-0.5)
        self.offset = nn.Parameter(torch.randn(schema.cells, width) * width**-0.5)
        hollow = list(range(schema.cells)) if masking else schema.cells_where(holes=True)
        self.missing = nn.Parameter(torch.randn(len(hollow), width) * width**-0.5)
        codes = [most + 1 for most in schema.most]
        self.table = nn.Embedding(sum(codes), width)
        starts = [*accumulate(codes, initial=0)][:-1]
        strange = [count - levels for count, levels in zip(codes, schema.levels, strict=True)]
        indices = {"hollow": hollow, "starts": starts, "sizes": schema.levels, "strange": strange}
        for name, index in indices.items():
            self.register_buffer(name, torch.tensor(index, dtype=torch.long), persistent=False)

    def forward(self, batch: Batch) -> View:
        """The encoder's input: one grid of C positions, all of them present, since a hole says something too."""
        numbers = self.counts(batch.numbers).unsqueeze(-1) * self.slope
        codes = with_strangers(batch.codes, self.sizes, self.strange) if self.training else batch.codes
        vectors = torch.cat([numbers, self.table(codes + self.starts)], dim=1)
        if batch.seen is not None and len(self.hollow):
            seen = batch.seen[:, self.hollow].unsqueeze(-1)
            vectors = vectors.index_copy(1, self.hollow, torch.where(seen, vectors[:, self.hollow], self.missing))
        return View(batch.numbers[:, :0], (vectors + self.offset,), (None,))


def with_strangers(codes: Tensor, sizes: Tensor | int, strange: Tensor | int = 1) -> Tensor:
    """Codes with a few made unknown, so that the encoder has met what unseen levels will look like.

    Args:
        codes: (B,) or (B, M).
        sizes: known levels of each.
        strange: codes of unknown levels, from `sizes` on, of which one is drawn.
    """
    chance = drawn(torch.rand, *codes.shape, device=codes.device)
    if isinstance(strange, int) and strange == 1:
        return torch.where(chance < STRANGERS, sizes, codes)
    which = (chance / STRANGERS * strange).long()  # of chances below STRANGERS; as good as a draw of its own
    last = strange - 1
    unknown = sizes + (torch.minimum(which, last) if isinstance(last, Tensor) else which.clamp(max=last))
    return torch.where(chance < STRANGERS, unknown, codes)


def one_hot(codes: Tensor, known: Tensor, starts: Tensor, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, width): a one at each known level.

    Args:
        codes: (B, M).
        known: (B, M) bool: which of them are levels that have a place.
        starts: (M,) where each column's levels begin among all.
        width: known levels of all columns.
    """
    hot = torch.zeros(len(codes), width + 1, dtype=dtype, device=codes.device)
    # what is not known lands in one spare column, which is cut off
    return hot.scatter_(1, torch.where(known, codes + starts, width), 1.0)[:, :width]
