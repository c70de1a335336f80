"""Which rows are validation: decided row by row from a hash, so that it is the same however the rows are read.

A random split is right only on average (a fraction of 0.1 of 100 rows may hold out 7 or 13): exact counts would need
the number of rows in advance. Knows nothing of what the columns mean beyond the one it is told to group or order by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from narrows.errors import DataError, SettingError
from narrows.sources.source import Source

SAMPLE = 4_194_304  # values kept to find a time quantile: exact up to here, within 0.1 % of the rows beyond
_SALT = 0x5EA7ED  # the preparer samples rows by mix64 too: its sample must not be the validation rows
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def mix64(ids: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """Uniform 64-bit hashes of integers: splitmix64 (Steele, Lea and Flood, 2014) started from `seed`.

    Args:
        ids: (n,) integers of any width; negative ones wrap.
        seed: any integer; different seeds give unrelated hashes.

    Returns:
        (n,) uint64, the same on every platform and for ever: splits, samples and shuffles rest on it.
    """
    key = _finish_int((seed + 1) * _GAMMA & _MASK)
    mixed = np.array(ids).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed *= np.uint64(_GAMMA)
        mixed += np.uint64(key)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _finish_int(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


@dataclass(frozen=True)
class Split:
    """A rule that says of each row whether it is held out for validation.

    Args:
        fraction: of the rows (or groups) to hold out, within (0, 1).
        seed: of the hash; another seed holds out other rows. Not used with `time`.
        group: a column whose equal values stay on one side; rows where it is missing are one group.
        time: a column of numbers or dates whose highest values are held out; rows where it is missing are not.
        cut: the lowest value of `time` that is held out, as `learn` found it.

    Raises:
        SettingError: the fraction is out of range, or both `group` and `time` are given.
    """

    fraction: float
    seed: int = 0
    group: str | None = None
    time: str | None = None
    cut: float | int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise SettingError(f"validation fraction {self.fraction}", "more than 0 and less than 1")
        if self.group is not None and self.time is not None:
            raise SettingError(f"split by group {self.group!r} and by time {self.time!r}", "one of them")

    def learn(self, source: Source) -> Split:
        """The split with what it must know of the data, after checking that both sides get rows.

        Reads on until both sides have a row, and everything for `time`. Give it the whole source, not a shard.

        Raises:
            DataError: the column is not there or of a type that does not do, or a side would be empty.
        """
        for column in (self.group, self.time):
            if column is not None and column not in source.schema.names:
                raise DataError(f"{source.name} has no column {column!r}", f"one of {', '.join(source.schema.names)}")
        split = self if self.time is None else replace(self, cut=_cut(source, self.time, self.fraction))
        seen = set[bool]()
        for first_row, rows in source.batches():
            seen.update(np.unique(split.held_out(rows, first_row)).tolist())
            if len(seen) == 2:
                return split
        side = "training" if True in seen else "validation"
        rule = next((f" by {kind} {name!r}" for kind, name in _rules(self) if name), "")
        hint = "a larger fraction or other data" if side == "validation" else "a smaller fraction or other data"
        raise DataError(f"holding out {self.fraction:g} of {source.name}{rule} leaves no {side} rows", hint=hint)

    def held_out(self, rows: pa.RecordBatch, first_row: int) -> NDArray[np.bool_]:
        """Which rows are for validation, (n,) bool; `first_row` is the id of the first, as sources give it."""
        if self.time is not None:
            if self.cut is None:
                raise SettingError(f"a split by time {self.time!r} that has not seen the data", "Split.learn(source)")
            values, known = _ordered(_column(rows, self.time), self.time)
            return known & (values >= self.cut)
        if self.group is not None:
            ids = _group_ids(_column(rows, self.group), self.group)
        else:
            ids = np.arange(first_row, first_row + rows.num_rows, dtype=np.int64)
        return mix64(ids, self.seed ^ _SALT) < np.uint64(int(self.fraction * 2**64))


def _rules(split: Split) -> Iterator[tuple[str, str | None]]:
    yield from (("group", split.group), ("time", split.time))


def _column(rows: pa.RecordBatch, name: str) -> pa.Array:
    if name not in rows.schema.names:
        raise DataError(f"rows without column {name!r}", f"the columns {', '.join(rows.schema.names)} and it")
    column = rows.column(name)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _group_ids(column: pa.Array, name: str) -> NDArray[np.uint64]:
    """A hash of each value; Python's own differs from run to run."""
    if pa.types.is_nested(column.type) or isinstance(column.type, pa.BaseExtensionType):
        raise DataError(f"group column {name!r} is {column.type}", "a column of single values")
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    encoded = column.dictionary_encode(null_encoding="encode")
    texts = [
        b"" if value is None else b"%d" % len(str(value)) + str(value).encode()
        for value in encoded.dictionary.to_pylist()
    ]
    hashes = [int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") for text in texts]
    ids: NDArray[np.uint64] = np.array(hashes, dtype=np.uint64)[encoded.indices.to_numpy()]
    return ids


def _ordered(column: pa.Array, name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Values of a time column as numbers, and which of them are known."""
    kind = column.type
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.int64())
    elif pa.types.is_integer(kind) and kind != pa.uint64():
        column = column.cast(pa.int64())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    else:
        raise DataError(f"time column {name!r} is {kind}", "numbers, dates or timestamps")
    known = pc.is_valid(column).to_numpy(zero_copy_only=False)
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    return values, known & ~np.isnan(values)


def _cut(source: Source, time: str, fraction: float) -> float | int:
    """The value that splits off the highest `fraction` of a column; above some millions of rows from a sample."""
    values = _sampled(source, time)
    if len(values) == 0:
        raise DataError(f"time column {time!r} of {source.name} has no values")
    values = np.sort(values)
    cut = values[min(int((1 - fraction) * len(values)), len(values) - 1)]
    above = values[values > values[0]]
    if cut == values[0] and len(above):  # ties stay on one side, and it must not be all on one side
        cut = above[0]
    number: float | int = cut.item()
    return number


def _sampled(source: Source, time: str) -> NDArray[Any]:
    """Values of a column: all of them, or those of the `SAMPLE` rows of the smallest hashes."""
    hashes: list[NDArray[np.uint64]] = []
    kept: list[NDArray[Any]] = []
    count = 0
    for first_row, rows in source.batches():
        values, known = _ordered(_column(rows, time), time)
        hashes.append(mix64(np.arange(first_row, first_row + len(values)), _SALT)[known])
        kept.append(values[known])
        count += len(kept[-1])
        if count > 2 * SAMPLE:
            smallest = np.argpartition(np.concatenate(hashes), SAMPLE)[:SAMPLE]
            hashes, kept = [np.concatenate(hashes)[smallest]], [np.concatenate(kept)[smallest]]
            count = SAMPLE
    return np.concatenate(kept) if kept else np.empty(0)
