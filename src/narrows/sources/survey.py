"""What must be known of a table before its rows are cut into windows: what each column is for, where each series
begins and ends, and that time stamps rise.

Where a stamp or series column is named, or rows were never counted, all rows are read once to find out; what is kept
is a few numbers for each series. A series is rows that stand together: one that comes back after another is refused,
as it would have to be held open. Knows nothing of windows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.arrays import flat
from narrows.sources.inference import first_misfit
from narrows.sources.reading import ASIDE, Reading, fact
from narrows.sources.source import Source

_ZONE = r":\d{2}(?:[.,]\d+)?\s*(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)$"
_EXACT = (pa.bool_(), pa.int8(), pa.int16(), pa.uint8(), pa.uint16(), pa.float16(), pa.float32())  # within float32


@dataclass(frozen=True)
class Roles:
    """What the columns of a table of consecutive rows are for.

    Args:
        channels: columns of numbers, the values of the series.
        stamp: the column of time stamps, if there is one.
        series: the column that tells series apart, if there is one.
        carried: columns of which a window keeps the value of its first row: the stamp, folders' keys, labels.
    """

    channels: tuple[pa.Field, ...]
    stamp: str | None
    series: str | None
    carried: tuple[pa.Field, ...]

    @classmethod
    def of(cls, table: Source, reading: Reading) -> Roles:
        """The roles of a table's columns.

        Raises:
            DataError: a named column is not there, or others are no numbers.
        """
        schema: pa.Schema = table.schema
        for role, name in (("stamp", reading.stamp), ("series", reading.series)):
            if name is not None and name not in schema.names:
                raise DataError(f"{table.name} has no column {name!r}", f"one of {', '.join(schema.names)}", f"{role}=")
        aside = {reading.stamp, *table.keys, *(f.name for f in schema if fact(f, ASIDE))} - {reading.series}
        carried = tuple(f for f in schema if f.name in aside)
        channels = tuple(f for f in schema if f.name not in aside and f.name != reading.series)
        _check_numbers(table, channels)
        return cls(channels, reading.stamp, reading.series, carried)

    @cached_property
    def names(self) -> list[str]:
        """A name for each channel: a matrix column has several, numbered."""
        named = [(f.name, _width(f.type)) for f in self.channels]
        return [name if width is None else f"{name}{i}" for name, width in named for i in range(width or 1)]

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """float32 where that holds every value exactly, else float64."""
        exact = all(_element(f.type) in _EXACT for f in self.channels)
        return np.dtype(np.float32 if exact else np.float64)

    def values(self, rows: pa.RecordBatch) -> NDArray[Any]:
        """(rows, channels) numbers; NaN where they are missing."""
        out = np.empty((rows.num_rows, len(self.names)), self.dtype)
        start = 0
        for entry in self.channels:
            width = _width(entry.type) or 1
            out[:, start : start + width] = _numbers(rows.column(entry.name), width, self.dtype)
            start += width
        return out


@dataclass(frozen=True)
class Stretch:
    """Rows that follow each other: those of one file.

    Args:
        name: of the file.
        offsets: piece -> its first row, and the row behind its last.
        starts: (S,) first row of each series in it.
        labels: (S,) values of the series column; None without one.
    """

    name: str
    offsets: dict[int, tuple[int, int]]
    starts: NDArray[np.int64]
    labels: pa.Array | None

    @cached_property
    def rows(self) -> int:
        """Rows of the file."""
        return max((stop for _, stop in self.offsets.values()), default=0)

    @cached_property
    def stops(self) -> NDArray[np.int64]:
        """(S,) one past the last row of each series."""
        return np.append(self.starts[1:], self.rows)


def survey(table: Source, roles: Roles) -> list[Stretch]:
    """The stretches of a table; reads all of it where its columns or unknown numbers of rows ask for that.

    Raises:
        DataError: stamps fall, repeat, are missing or mix zones; a series comes back after another.
    """
    counted = table.rows is not None and roles.stamp is None and roles.series is None
    stretches = []
    zones: dict[str, str] = {}
    for name, pieces in table.stretches:
        scan = _Scan(name, roles, zones)
        counts = [table.rows_of(piece) or 0 if counted else scan.rows_of(table, piece) for piece in pieces]
        ends = list(itertools.accumulate(counts))
        offsets = {piece: (end - count, end) for piece, count, end in zip(pieces, counts, ends, strict=True)}
        labels = pa.array(scan.labels, decoded(table.schema.field(roles.series).type)) if roles.series else None
        starts = np.array(scan.starts if roles.series else [0], dtype=np.int64)
        stretches.append(Stretch(name, offsets, starts, labels))
    return stretches


class _Scan:
    """One pass over the rows of a file; `zones` maps the zone that stamps were found in to where that was."""

    def __init__(self, name: str, roles: Roles, zones: dict[str, str]) -> None:
        self._name, self._roles, self._zones = name, roles, zones
        self._row = 0
        self._last: Any = None  # stamp before, as a number
        self._said = ""  # the same, as it is written
        self._known: set[Any] = set()
        self.starts: list[int] = []
        self.labels: list[Any] = []

    def rows_of(self, table: Source, piece: int) -> int:
        """Rows of the next piece, once they were looked at."""
        before = self._row
        for _, rows in table.read(piece):
            begins = self._begins(rows)
            if self._roles.stamp is not None:
                self._check_rising(rows.column(self._roles.stamp), begins)
            self._row += rows.num_rows
        return self._row - before

    def _begins(self, rows: pa.RecordBatch) -> NDArray[np.int64]:
        """Rows of a batch at which a series begins."""
        if self._roles.series is None:
            return np.array([0] if self._row == 0 else [], dtype=np.int64)
        values = _decoded(rows.column(self._roles.series))
        self._refuse_missing(values, "series")
        changes = pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)
        begins = np.append(0, np.flatnonzero(changes) + 1)
        labels = values.take(flat(begins)).to_pylist()
        if self.labels and labels[0] == self.labels[-1]:
            begins, labels = begins[1:], labels[1:]
        for begin, label in zip(begins, labels, strict=True):
            if label in self._known:
                got = f"{self._name} row {self._row + begin + 1}: series {label!r} comes back after another"
                raise DataError(got, "its rows together", "sorting the rows by series, then by time")
            self._known.add(label)
        self.starts += [self._row + int(begin) for begin in begins]
        self.labels += labels
        return begins

    def _check_rising(self, stamps: pa.Array, begins: NDArray[np.int64]) -> None:
        """Refuse a stamp that does not lie behind the one before it in its series."""
        self._refuse_missing(stamps, "stamp")
        values = self._as_numbers(stamps)
        before = np.append(values[:1] if self._last is None else self._last, values[:-1])
        falls = ~(values > before)
        falls[begins] = False
        if falls.any():
            at = int(falls.argmax())
            earlier = self._said if at == 0 else _said(stamps, at - 1)
            got = f"{self._name} row {self._row + at + 1}: stamp {_said(stamps, at)} comes after {earlier}"
            hint = f"sorting by {self._roles.stamp!r}, dropping repeated rows, or series= where several are mixed"
            raise DataError(got, "rising stamps", hint)
        self._last, self._said = values[-1], _said(stamps, len(stamps) - 1)

    def _as_numbers(self, stamps: pa.Array) -> NDArray[Any]:
        stamps = _decoded(stamps)
        kind = stamps.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            stamps = self._parsed(stamps.cast(pa.string()))
        elif not (pa.types.is_temporal(kind) or _number(kind)) or pa.types.is_interval(kind):
            got = f"{self._name} column {self._roles.stamp!r} is {kind}"
            raise DataError(got, "dates, times or numbers", "another stamp=")
        whole = pa.types.is_temporal(stamps.type)
        if whole:
            stamps = stamps.view(pa.int32() if stamps.type.bit_width == 32 else pa.int64())
        return np.asarray(stamps.to_numpy(zero_copy_only=False))

    def _parsed(self, texts: pa.Array) -> pa.Array:
        """Times of texts, which must all be of one zone or all of none."""
        zones = pc.struct_field(pc.extract_regex(texts, _ZONE), "zone").fill_null("")
        for zone in zones.unique().to_pylist():
            at = int(pc.index(zones, zone).as_py())
            self._zones.setdefault(zone, f"{self._name} row {self._row + at + 1} {_said(texts, at)}")
        if len(self._zones) > 1:
            here, there = list(self._zones.values())[:2]
            hint = "converting them all to UTC first, as pandas.to_datetime(column, utc=True) does"
            raise DataError(f"stamps mix time zones: {here}, {there}", "stamps of one zone", hint)
        kind = pa.timestamp("us", "UTC" if any(self._zones) else None)
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            at, value = first_misfit(texts, kind)
            got = f"{self._name} row {self._row + at + 1}: stamp {value!r} is no date or time"
            raise DataError(got, "ISO 8601, such as 2024-03-01T12:00:00") from None

    def _refuse_missing(self, values: pa.Array, what: str) -> None:
        missing = values.is_null(nan_is_null=True)
        if pc.any(missing).as_py():
            at = int(pc.index(missing, True).as_py())
            raise DataError(f"{self._name} row {self._row + at + 1} has no {what}", f"a {what} in every row")


def _check_numbers(table: Source, channels: tuple[pa.Field, ...]) -> None:
    wrong = [f for f in channels if not _number(_element(f.type))]
    if wrong or not channels:
        said = ", ".join(f"{f.name!r} ({f.type})" for f in wrong) or "none"
        hint = "stamp= for a column of times, series= for one that tells series apart, or leaving the others out"
        raise DataError(f"{table.name} is to be a series of numbers, but has columns {said}", "numbers", hint)


def _number(kind: pa.DataType) -> bool:
    """Whether values are numbers or truth values, or a column holds nothing at all."""
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)) or bool(
        types.is_decimal(kind) or types.is_null(kind)
    )


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _width(kind: pa.DataType) -> int | None:
    """Values in each cell of a matrix column; None for a scalar one."""
    storage = _storage(kind)
    return int(storage.list_size) if pa.types.is_fixed_size_list(storage) else None


def _element(kind: pa.DataType) -> pa.DataType:
    """Type of one value; that of a cell which has no place in a series stays as it is."""
    if isinstance(kind, pa.FixedShapeTensorType) and len(kind.shape) > 1:
        return kind
    return kind if _width(kind) is None else _storage(kind).value_type


def _numbers(column: pa.Array, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(rows, width) values of a column, NaN where missing."""
    storage = column.storage if isinstance(column, pa.ExtensionArray) else column
    matrix = pa.types.is_fixed_size_list(storage.type)
    numbers = (storage.flatten() if matrix else storage).cast(pa.from_numpy_dtype(dtype), safe=False)
    values = np.asarray(numbers.to_numpy(zero_copy_only=False)).reshape(-1, width)  # missing ones as NaN
    if not (matrix and storage.null_count):
        return values
    out = np.full((len(storage), width), np.nan, dtype)
    out[storage.is_valid().to_numpy(zero_copy_only=False)] = values
    return out


def decoded(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, whether they stand in a dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _said(values: pa.Array, at: int) -> str:
    return str(_decoded(values.slice(at, 1)).cast(pa.string())[0].as_py())
