"""Category columns: counting their values in a stream, choosing the levels to keep, and values to codes and back.

Counts are exact up to a limit of distinct values. Beyond it, numbers, which are hardly categories then, are no longer
counted at all. Of text the frequent values are kept by a summary (Misra & Gries 1982; merged as by Agarwal et al.
2012): every value has a credit beside its count, and whenever there are too many, the first credit that is one too
many is taken off all, and the values behind it are dropped. So counts are lower bounds, too low by at most rows /
limit, and a value that is in more rows than that is never lost, wherever they stand.

A column of more than 256 levels is told in two steps and read by a table of vectors (see `model.factored`,
`model.embed`). Its unseen levels are spread over a few codes by their hash, so that two of them are hardly ever the
same to the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from math import ceil, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.prepare.arrow import Values, cast_all, plain
from narrows.prepare.arrow_types import Type, is_clock, is_date, is_plain_number, is_text, level_type

TEXT_LEVELS = 1_000_000
OTHER_LEVELS = 50_000  # below a batch of the sources, so that a column of distinct numbers is let go at once
MOST_BYTES = 128 << 20  # of values that are counted: whole documents are hardly categories
FEW_UNKNOWN = 5  # unknown values that pass without a word where training had some too
FEW_LEVELS = 20  # up to so many levels, those that occurred once are kept too
MANY = 256  # levels up to which they are read and told one by one: beyond, tables of vectors take less time and memory
MOST_LEVELS = 1 << 17  # that get a code of their own: 131,072 vectors of 64 numbers are 34 MB, for reading and telling
STRANGE = 64  # codes that the unseen levels of a column of many share
MORE_CLASSES = 4  # a class is a column of a product, its levels are fetched row by row: many classes, of few levels
WIDEST_VECTOR = 64

Codes = npt.NDArray[np.int64]


class Counts:
    """How often each value of a column occurs, in a bounded amount of memory.

    Args:
        arrow: the column's Arrow type.
        limit: distinct values to count; by default 1,000,000 of text and 50,000 of anything else.
        keeping: whether the most frequent values are kept beyond the limit; by default those of text are.

    Attributes:
        lost: how much too low a count may be at most.
    """

    def __init__(self, arrow: Type, limit: int | None = None, keeping: bool = False) -> None:
        self.type = level_type(arrow)
        self.keeping = keeping or is_text(self.type)
        self.limit = limit or (TEXT_LEVELS if self.keeping else OTHER_LEVELS)
        self.overflowed = False
        self.lost = 0
        self._blocks: list[pa.Table] = []

    def add(self, array: Values) -> Values:
        """Counts the values of one array, and gives the distinct ones; missing ones are left out."""
        if not self.counting:
            return array[:0]
        pairs = pc.value_counts(without_nan(plain(array).cast(self.type)).drop_null())
        counts = pairs.field("counts")
        self._add(pa.table({"value": pairs.field("values"), "count": counts, "credit": counts}))
        return pairs.field("values")

    def merge(self, other: Counts) -> None:
        """Adds what another part of the rows held."""
        self.overflowed |= other.overflowed
        self.lost += other.lost
        if self.counting:
            self._add(other._merged())
        else:
            self._blocks = []

    @property
    def counting(self) -> bool:
        """Whether values are still counted: numbers with too many distinct ones are not."""
        return self.keeping or not self.overflowed

    def _add(self, block: pa.Table) -> None:
        self._blocks.append(block)
        first = len(self._blocks[0])
        if len(self._blocks) > 1 and sum(map(len, self._blocks)) < 2 * max(first, 4096):
            return
        merged = self._merged()
        limit = min(self.limit, max(1, len(merged) * MOST_BYTES // max(1, merged.nbytes)))
        self.overflowed |= len(merged) > limit
        self._blocks = [self._reduced(merged, limit) if len(merged) > limit else merged]
        if not self.counting:
            self._blocks = []

    def _merged(self) -> pa.Table:
        if not self._blocks:
            nothing = pa.array([], pa.int64())
            return pa.table({"value": pa.array([], self.type), "count": nothing, "credit": nothing})
        whole = pa.concat_tables(self._blocks).group_by("value").aggregate([("count", "sum"), ("credit", "sum")])
        return whole.select(["value", "count_sum", "credit_sum"]).rename_columns(["value", "count", "credit"])

    def _reduced(self, table: pa.Table, limit: int) -> pa.Table:
        """The values of most credit, less that of the first beyond the limit."""
        ranked = self._ranked(table, "credit")
        cut = ranked["credit"][limit].as_py()
        self.lost += cut
        kept = ranked[:limit]
        return kept.set_column(2, "credit", pc.subtract(kept["credit"], cut))

    @staticmethod
    def _ranked(table: pa.Table, by: str = "count") -> pa.Table:
        return table.take(pc.sort_indices(table, sort_keys=[(by, "descending"), ("value", "ascending")]))

    def ranked(self) -> tuple[Values, Codes]:
        """The values, the most frequent first and equally frequent ones in their own order; and their counts."""
        merged = self._merged()
        self.overflowed |= len(merged) > self.limit
        table = self._ranked(merged) if self.counting else merged[:0]
        table = table[: self.limit]
        values = pa.concat_arrays(table["value"].chunks) if table.num_rows else pa.array([], self.type)
        return values, np.asarray(table["count"].to_numpy())


def without_nan(array: Values) -> Values:
    """Floats with NaN as null and no negative zero; anything else as it is."""
    if not pa.types.is_floating(array.type):
        return array
    zeroed = pc.add(array, pa.scalar(0.0, array.type))
    return pc.if_else(pc.is_nan(zeroed), pa.scalar(None, array.type), zeroed)


@dataclass(frozen=True)
class Levels:
    """The known levels of a category column.

    Args:
        values: by code, in the type of `level_type`.
        rest: share of the training values that got no code of their own, and so trained those of unseen levels.
        strange: codes that unseen levels share.
    """

    values: Values
    rest: float = 0.0
    strange: int = 1

    def __len__(self) -> int:
        return len(self.values)

    def surprised(self, unknown: int, rows: int) -> bool:
        """Whether so many unknown values among so many rows are more than training had."""
        return surprising(self.rest, unknown, rows)


def surprising(rest: float, unknown: int, count: int) -> bool:
    """Whether so many unknown values of so many are more than training had, where their share was `rest`."""
    return unknown > (2 * rest * count + FEW_UNKNOWN if rest else 0)


def choose_levels(values: Values, counts: Codes, max_levels: int) -> Values:
    """The levels that get a code of their own, in the order of their codes.

    The most frequent `max_levels` are kept. Where there are more than 20, those that occurred only once share the code
    of unseen levels, which thereby is trained; unless fewer than two occurred more often.

    Args:
        values: distinct values, the most frequent first.
        counts: of each.
        max_levels: most levels to keep.
    """
    repeated = int((counts > 1).sum())
    kept = repeated if len(values) > FEW_LEVELS and repeated > 1 else len(values)
    return values[: min(kept, max_levels)]


def encode(
    array: Values, levels: Levels, column: str, first_row: int = 0
) -> tuple[Codes, npt.NDArray[np.bool_] | None, str | None]:
    """Values to codes.

    Args:
        array: the column as it came; text and numbers are turned into each other where they can be.
        levels: the known levels, by code.
        column: its name, for messages.
        first_row: id of the first row, for messages.

    Returns:
        (B,) codes, `len(levels)` where missing, and from there on where unknown; (B,) which values are there, or None
        where all are; and an unknown level, if more came than in training.

    Raises:
        DataError: where values cannot be read as the type of the levels.
    """
    values, known = _comparable(without_nan(plain(array)), levels.values, column, first_row)
    codes = found_in(values, known)
    seen = np.asarray(values.is_valid()) if values.null_count else None
    unknown = np.flatnonzero((codes == len(levels)) & (True if seen is None else seen))
    if levels.strange > 1 and len(unknown):
        codes = codes.copy()  # Arrow's may not be written to
        codes[unknown] += hashed(values.take(pa.array(unknown)), levels.strange)
    surprise = levels.surprised(len(unknown), len(codes))
    return codes, seen, str(values[int(unknown[0])].as_py()) if surprise else None


def hashed(values: Values, buckets: int) -> Codes:
    """(B,) which of some buckets each value belongs to: the same in every process, on every machine and for ever.

    By BLAKE2b of its text; a number's is that of a float, whatever its type.
    """
    distinct = values.dictionary_encode()
    whole = is_plain_number(values.type)
    texts = [str(float(value) if whole else value).encode() for value in distinct.dictionary.to_pylist()]
    hashes = [int.from_bytes(blake2b(text, digest_size=8).digest(), "little") % buckets for text in texts]
    found: Codes = np.array(hashes, np.int64)[distinct.indices.to_numpy()]
    return found


def dealt(levels: int) -> dict[str, int]:
    """The facts of a `Column` with so many levels that only a category with many has; none for fewer.

    Vectors have 1.6 levels^0.56 numbers, the rule of thumb of fastai (Howard & Gugger 2020), and 64 at most.
    """
    if levels <= MANY:
        return {}
    fellows = ceil(sqrt(levels) / MORE_CLASSES)
    vector = min(WIDEST_VECTOR, round(1.6 * levels**0.56))
    return {"classes": ceil(levels / fellows), "vector": vector, "strange": STRANGE}


def found_in(values: Values, known: Values) -> Codes:
    """(B,) where each value stands among the known ones; their number where it is missing or unknown."""
    found = pc.index_in(values, value_set=known, skip_nulls=True)
    return np.asarray(found.fill_null(len(known)).to_numpy(), dtype=np.int64)


def _comparable(array: Values, levels: Values, column: str, first_row: int) -> tuple[Values, Values]:
    """Values and levels in one type, in which they are looked up."""
    kind = levels.type
    if array.type == kind or pa.types.is_null(array.type):
        return array.cast(kind), levels
    wanted = f"values like {', '.join(map(repr, levels[:3].to_pylist()))}, as in training"
    if is_plain_number(kind) and not is_date(array.type) and not is_clock(array.type):
        text = is_text(array.type)
        numbers = cast_all(array, pa.float64(), column, wanted, first_row) if text else _floats(array)
        return without_nan(numbers), _floats(levels)
    return cast_all(array, kind, column, wanted, first_row), levels


def _floats(array: Values) -> Values:
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.int8())
    return array.cast(pa.float64(), safe=False)


def decode(codes: Codes, levels: Values, arrow: Type) -> Values:
    """Codes to values of the column's type; null for codes that stand for no one level."""
    known = (codes >= 0) & (codes < len(levels))
    if pa.types.is_dictionary(arrow):
        indices = pa.array(np.where(known, codes, 0), mask=~known).cast(arrow.index_type)
        return pa.DictionaryArray.from_arrays(indices, levels.cast(arrow.value_type), ordered=arrow.ordered)
    return levels.take(pa.array(np.where(known, codes, 0), mask=~known)).cast(arrow)


def levels_to_json(levels: Values) -> list[Any]:
    """Levels as JSON values: dates and times as whole numbers of their unit, decimals as text."""
    if is_date(levels.type) or is_clock(levels.type):
        levels = levels.view(pa.int64() if levels.type.bit_width == 64 else pa.int32())
    elif pa.types.is_decimal(levels.type):
        levels = levels.cast(pa.string())
    return list(levels.to_pylist())


def levels_from_json(stored: list[Any], arrow: Type) -> Values:
    """The levels that `levels_to_json` wrote, of a column of this Arrow type.

    Raises:
        ValueError: where they are not distinct values of that type (pyarrow's errors and OverflowError included).
    """
    kind = level_type(arrow)
    if is_date(kind) or is_clock(kind):
        levels = pa.array(stored, pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind)
    elif pa.types.is_decimal(kind):
        levels = pa.array(stored, pa.string()).cast(kind)
    else:
        levels = pa.array(stored, kind)
    if without_nan(levels).null_count or len(levels.unique()) != len(levels):
        raise ValueError("levels are not distinct values")
    return levels
