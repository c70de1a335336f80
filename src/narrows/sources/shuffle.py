"""Training rows in a seeded random order, within bounded memory, from any point of an epoch on.

Pieces come in random order, up to 32 side by side, a block of each in turn; then every window of rows is permuted:

    pieces  A A A A A A | B B B B | C C C C C C C | ...      (order permuted by seed and epoch)
    taken   A A B B C C ... A A B B C C ... A A C C ...      (blocks of a window's share)
    given   [ part | part | part + order ] [ part | part + order ] ...

A window comes as parts and an order of their rows, so that whoever prepares rows does that part by part and permutes
what became of them: permuting tensors takes a tenth of the time of permuting columns.

This is no uniform shuffle: a row stays within a window of where its block was read. A source of one piece, such as a
CSV file, is read in order, so only the window mixes it: sorted data wants a large window, or to be rewritten by
`reshard`. Needs the memory of a part and of the pieces being read: as many side by side as say that they take 128 MB
together, or one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from narrows.errors import SettingError
from narrows.sources.source import Source, row_in_piece
from narrows.sources.split import Split, mix64

SIDE_BY_SIDE = 32  # of 20 row groups of four unlike files: 8, 8, 4 at once ended at a loss of 1.33, 10 and 10 at 0.06
_OPEN_BYTES = 128 << 20  # fewer pieces are read side by side where they would take more memory
_PART_ROWS = 16_384  # preparing 32 columns of 256 rows takes nine times as long a row as of 16,384
_PART_BYTES = 8 << 20


class End(NamedTuple):
    """The end of a window.

    Args:
        order: the training rows among those of the window's parts, counted through, in the order they are to be given.
        position: from which the rows behind the window follow; plain whole numbers.
    """

    order: NDArray[np.intp]
    position: dict[str, int]


class _Place(NamedTuple):
    """Where reading stands: pieces of the order that are done, blocks taken of those now open, rows of the next."""

    pieces: int = 0
    block: int = 0
    rows: int = 0


class Shuffle:
    """Shuffled training rows of a source.

    Args:
        source: what to read.
        split: its validation rows are left out; None: every row is for training.
        seed: of the order; the order of an epoch depends on nothing but the source, this and the window.
        window: rows to permute at a time, at least 1.
        reader: which of how many readers this is. In each epoch every reader gets other pieces, about as many rows as
            the others; where there are fewer pieces than readers, it gets blocks of each (see `Source.shard`).

    Attributes:
        lanes: pieces that are read side by side.
    """

    def __init__(
        self, source: Source, split: Split | None, seed: int, window: int, reader: tuple[int, int] = (0, 1)
    ) -> None:
        if window < 1:
            raise SettingError(f"a shuffle window of {window} rows", "at least 1")
        if len(source.pieces) < reader[1]:
            source, reader = source.shard(*reader), (0, 1)
        self.source, self._split, self._seed, self.window = source, split, seed, window
        self._reader = reader
        most, pieces = max(1, min(SIDE_BY_SIDE, _OPEN_BYTES // source.open_bytes)), len(source.pieces) // reader[1]
        rounds = max(1, -(-pieces // most))
        # rounds alike: a short last one would end the epoch on rows of few pieces, and training would forget the rest
        self.lanes = max(1, -(-pieces // rounds))
        self._block = -(-window // self.lanes)

    def parts(
        self, epoch: int, position: Mapping[str, int] | None = None
    ) -> Iterator[tuple[pa.RecordBatch, End | None]]:
        """The rows of an epoch; windows have exactly `window` rows, the last as many as are left.

        Args:
            epoch: its order is drawn from the seed and this number; each training row comes once.
            position: of some window's end in this epoch; what follows is what followed then. Pieces that were done
                by then are not read again.

        Yields:
            Rows as they stand in the source, at least one, those held out among them: picking rows by column costs
            more than preparing one row in ten for nothing. Behind a window's last part its end.
        """
        number = position["windows"] if position else 0
        start = _Place(*(position[name] for name in _Place._fields)) if position else _Place()
        order = self._order(epoch)
        part, window = _Part(), _Window()
        for place, row_id, rows in self._blocks(order, start):
            kept = self._kept(rows, row_id)
            while len(kept):
                if part.full(rows):
                    yield part.rows(), None
                    part = _Part()
                taken, kept = kept[: self.window - window.count], kept[self.window - window.count :]
                part.add(rows, taken)
                window.add(taken)
                if window.count == self.window:
                    number += 1
                    behind = place._replace(rows=place.rows + int(taken[-1]) + 1)
                    yield part.rows(), self._end(epoch, number, window, behind)
                    part, window = _Part(), _Window()
        if window.count:
            yield part.rows(), self._end(epoch, number + 1, window, _Place(len(order)))

    def draw(self, epoch: int, window: int) -> int:
        """A seed for what else is drawn of a window, counted from 1: of 63 bits, and of its own for every reader."""
        return _mixed(self._seed, epoch, window, *self._reader, 1) >> 1

    def _order(self, epoch: int) -> NDArray[np.intp]:
        """The pieces of an epoch, in order, that fall to this reader: each goes to the one who has least so far."""
        order = _permutation(len(self.source.pieces), self._seed, epoch)
        rank, size = self._reader
        if size == 1:
            return order
        burdens, own = [(0, other) for other in range(size)], []
        for place in order:
            rows, reader = heapq.heappop(burdens)
            heapq.heappush(burdens, (rows + (self.source.rows_of(self.source.pieces[place]) or 1), reader))
            own += [place] * (reader == rank)
        return np.array(own, np.intp)

    def _end(self, epoch: int, number: int, window: _Window, behind: _Place) -> End:
        order = window.places()[_permutation(window.count, self._seed, epoch, number)]
        return End(order, {**behind._asdict(), "windows": number})

    def _kept(self, rows: pa.RecordBatch, row_id: int) -> NDArray[np.intp]:
        """Positions of the training rows."""
        if self._split is None:
            return np.arange(rows.num_rows)
        return np.flatnonzero(~self._split.held_out(rows, row_id))

    def _blocks(self, order: NDArray[np.intp], start: _Place) -> Iterator[tuple[_Place, int, pa.RecordBatch]]:
        """All rows from a place on, as (place, id of the first row, rows of one block)."""
        for pieces in range(start.pieces, len(order), self.lanes):
            opened = [self.source.pieces[place] for place in order[pieces : pieces + self.lanes]]
            block, first = (start.block, start.rows) if pieces == start.pieces else (0, 0)
            lanes = [
                _Lane(self.source.read(piece, self._row_of(lane, block, first, len(opened))))
                for lane, piece in enumerate(opened)
            ]
            while any(lane.open for lane in lanes):
                turn, lane = divmod(block, len(lanes))
                for row_id, rows in lanes[lane].until((turn + 1) * self._block):
                    yield _Place(pieces, block, row_in_piece(row_id) - turn * self._block), row_id, rows
                block += 1

    def _row_of(self, lane: int, block: int, first: int, lanes: int) -> int:
        """The row from which a lane is still to be read when `block` blocks and `first` rows of the next are done."""
        turn, now = divmod(block, lanes)
        return (turn + (lane < now)) * self._block + (first if lane == now else 0)


class _Lane:
    """A piece that is read block by block."""

    def __init__(self, batches: Iterator[tuple[int, pa.RecordBatch]]) -> None:
        self._batches = batches
        self._next = next(batches, None)

    @property
    def open(self) -> bool:
        """Whether rows are left."""
        return self._next is not None

    def until(self, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows before row `stop` of the piece that have not been given yet."""
        while self._next is not None and row_in_piece(self._next[0]) < stop:
            row_id, rows = self._next
            count = min(rows.num_rows, stop - row_in_piece(row_id))
            rest = rows.slice(count)
            self._next = (row_id + count, rest) if rest.num_rows else next(self._batches, None)
            yield row_id, rows.slice(0, count)


class _Window:
    """Where the training rows of a window stand among the rows of its parts."""

    def __init__(self) -> None:
        self.count = self._rows = 0
        self._places: list[NDArray[np.intp]] = []

    def add(self, taken: NDArray[np.intp]) -> None:
        """Take the rows at these rising positions of a block, which `_Part` keeps from the first to the last."""
        self._places.append(taken - (taken[0] - self._rows))
        self._rows += int(taken[-1]) + 1 - int(taken[0])
        self.count += len(taken)

    def places(self) -> NDArray[np.intp]:
        """Their places, counted through the parts."""
        return np.concatenate(self._places)


class _Part:
    """Blocks gathered until it pays to prepare them; they are copied only then."""

    def __init__(self) -> None:
        self._blocks: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def full(self, more: pa.RecordBatch) -> bool:
        """Whether there are enough to do without more."""
        return self._rows > 0 and (self._rows + len(more) > _PART_ROWS or self._bytes + more.nbytes > _PART_BYTES)

    def add(self, rows: pa.RecordBatch, taken: NDArray[np.intp]) -> None:
        """Take the rows from the first to the last of these rising positions, at least one."""
        first, stop = int(taken[0]), int(taken[-1]) + 1
        self._blocks.append(rows.slice(first, stop - first))
        self._rows += stop - first
        self._bytes += self._blocks[-1].nbytes

    def rows(self) -> pa.RecordBatch:
        """What was taken, in order."""
        return self._blocks[0] if len(self._blocks) == 1 else joined_rows(self._blocks)


def joined_rows(blocks: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch of all rows, of the schema that `wide_codes` makes of theirs."""
    schema = wide_codes(blocks[0].schema)
    columns = zip(*(widened(block, schema).columns for block in blocks), strict=True)
    return pa.RecordBatch.from_arrays([pa.concat_arrays(each) for each in columns], schema=schema)


def wide_codes(schema: pa.Schema) -> pa.Schema:
    """The schema with int32 codes for dictionaries: those of several batches together may need more than int8."""
    for place, field in enumerate(schema):
        kind = field.type
        if pa.types.is_dictionary(kind) and kind.index_type != pa.int32():
            schema = schema.set(place, field.with_type(pa.dictionary(pa.int32(), kind.value_type, kind.ordered)))
    return schema


def widened(rows: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows in the schema that `wide_codes` made of theirs."""
    pairs = zip(rows.columns, schema.types, strict=True)
    return pa.RecordBatch.from_arrays([a if a.type == kind else a.cast(kind) for a, kind in pairs], schema=schema)


def _permutation(count: int, *key: int) -> NDArray[np.intp]:
    """The order of `count` things that belongs to a key: by hash, so that it never changes with a library."""
    # no two hashes are alike, so every kind of sort agrees
    return np.argsort(mix64(np.arange(count), _mixed(*key)))


def _mixed(*key: int) -> int:
    """A hash of 64 bits of some numbers."""
    seed = 0
    for number in key:
        seed = int(mix64(np.array([number], dtype=np.int64), seed)[0])
    return seed
