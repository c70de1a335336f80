"""What the values of JSON objects are: one type for each column, found by looking, and the conversion to it.

    null < bool      null < whole number < number      null < text or date      and text holds all that mix

Objects within objects become columns of their own (`a.b`); those whose values are all numbers of 0 and more are bags,
`{"apple": 3}`, maps from item to count. Lists of numbers stay lists; lists of lists that are of one shape in all rows
are tensors, and series of steps where only the number of steps differs. Lists of objects come as their JSON text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from narrows.sources.inference import convert, widened

BAG = pa.map_(pa.string(), pa.float32())
MOST = (2 - 2**-23) * 2.0**127  # that single precision holds: an object of larger numbers is no bag
_SCALARS = {bool: "bool", int: "int", float: "float", str: "text", list: "list", dict: "object"}
_TYPES = {"null": pa.null(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "any": pa.string()}
_ALLOWED: dict[pa.DataType, set[type]] = {
    pa.bool_(): {bool},
    pa.int64(): {int},
    pa.float64(): {int, float},
    pa.string(): {str},
}
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DATES = (pa.date32(), pa.timestamp("us", "UTC"))
_RAGGED = -1


class JsonColumn(NamedTuple):
    """A column: its name, its type, and whether values that are no texts are to be written out as JSON."""

    name: str
    type: pa.DataType
    written: bool


class Seen:
    """What the values at one place of the objects have been so far.

    Args:
        bag: whether objects may be bags: rows themselves are none, even where all their values are counts.
    """

    __slots__ = ("_bag", "_date", "_holes", "_items", "_length", "_texts", "fields", "kind")

    def __init__(self, bag: bool = True) -> None:
        self.kind = "null"
        self.fields: dict[str, Seen] = {}
        self._items: Seen | None = None
        self._length: int | None = None
        self._bag, self._holes = bag, False
        self._date, self._texts = pa.null(), list[str]()

    @property
    def record(self) -> bool:
        """Whether the values are objects whose fields are columns."""
        return self.kind == "object" and not self._bag

    def add(self, value: Any) -> None:
        """Take a value into account."""
        if value is None:
            self._holes = True
            return
        kind = _SCALARS[type(value)]
        if kind == "int" and not -(2**63) <= value < 2**63:
            kind = "float"
        self.kind = _joined(self.kind, kind)
        if self.kind == "list":
            self._add_list(value)
        elif self.kind == "object":
            self._add_object(value)
        elif self.kind == "text" and self._date != pa.string():
            self._texts.append(value)
            if not _DATE.match(value):
                self._date, self._texts = pa.string(), []

    def _add_list(self, values: list[Any]) -> None:
        self._items = self._items or Seen()
        self._length = len(values) if self._length in (None, len(values)) else _RAGGED
        kinds = set(map(type, values))
        if kinds <= {int, float}:  # one of each tells as much as all
            ends = (min(values), max(values)) if values else ()
            values = [*ends, 0.5] if float in kinds else list(ends)
        for value in values:
            self._items.add(value)

    def _add_object(self, values: dict[str, Any]) -> None:
        self._bag = self._bag and all(type(v) in (int, float) and 0 <= v <= MOST for v in values.values())
        for key, value in values.items():
            if key not in self.fields:
                key.encode()  # half a surrogate pair names no column
                self.fields[key] = Seen()
            self.fields[key].add(value)

    def settle(self) -> None:
        """Decide from the texts gathered since the last time whether they are dates."""
        for field in self.fields.values():
            field.settle()
        if self._texts:
            texts = pa.array(self._texts, pa.string())
            starts = _DATES if pa.types.is_null(self._date) else (self._date,)
            found = [widened(start, texts) for start in starts]
            self._date = next((type for type in found if type != pa.string()), pa.string())
            self._texts = []

    def columns(self, name: str) -> Iterator[JsonColumn]:
        """The columns that the values make."""
        if self.record:
            for key, field in self.fields.items():
                yield from field.columns(f"{name}.{key}" if name else key)
        else:
            yield JsonColumn(name, *self._type())

    def _type(self) -> tuple[pa.DataType, bool]:
        if self.kind == "text":
            return (pa.string() if pa.types.is_null(self._date) else self._date), False
        if self.kind == "object":
            return BAG, False
        if self.kind == "list":
            return self._list_type()
        return _TYPES[self.kind], self.kind == "any"

    def _list_type(self) -> tuple[pa.DataType, bool]:
        lengths, inner = [self._length], self._items or Seen()
        while inner.kind == "list":
            lengths.append(_RAGGED if inner._holes else inner._length)
            inner = inner._items or Seen()
        if inner.kind == "object" or inner.kind == "any" or (inner.kind in ("text", "bool") and len(lengths) > 1):
            return pa.string(), True
        if inner.kind in ("text", "bool"):
            return pa.list_(pa.string() if inner.kind == "text" else pa.bool_()), False
        item = pa.int64() if inner.kind == "int" and not inner._holes else pa.float64()
        return _of_lengths([length or 0 for length in lengths], item), False


def _joined(known: str, kind: str) -> str:
    if known in ("null", kind):
        return kind
    return "float" if {known, kind} == {"int", "float"} else "any"


def _of_lengths(lengths: list[int], item: pa.DataType) -> pa.DataType:
    """The type of nested lists of numbers, from the length at each depth: `_RAGGED` where it differs."""
    if len(lengths) > 1 and min(lengths[1:]) > 0:
        if lengths[0] > 0:
            return pa.fixed_shape_tensor(item, lengths)
        if len(lengths) == 2:
            return pa.list_(pa.list_(item, lengths[1]))
    for _ in lengths:
        item = pa.list_(item)
    return item


def raw_type(type: pa.DataType) -> pa.DataType:
    """The type in which values are parsed before `finished` makes them what they should be."""
    if pa.types.is_temporal(type):
        return pa.string()
    if isinstance(type, pa.FixedShapeTensorType):
        return _of_lengths([_RAGGED] * len(type.shape), type.value_type)
    if pa.types.is_list(type) and pa.types.is_fixed_size_list(type.value_type):
        return pa.list_(pa.list_(type.value_type.value_type))
    return type


def parsed(values: list[Any], column: JsonColumn) -> pa.Array:
    """Values as `json.loads` gives them, as an array of a column's type.

    Raises:
        ArrowException, ValueError, TypeError or OverflowError: a value is of another kind.
    """
    raw = raw_type(column.type)
    if column.written:
        values = [value if value is None or type(value) is str else _text(value) for value in values]
    kinds = set(map(type, values)) - {type(None)}
    if not kinds <= _ALLOWED.get(raw, {dict} if raw == BAG else {list} if pa.types.is_nested(raw) else {object}):
        raise TypeError(f"no {column.type}")
    if raw == pa.float64():
        values = [None if value is None else float(value) for value in values]
    if raw == BAG:
        values = [None if bag is None else [(item, _count(count)) for item, count in bag.items()] for bag in values]
    return finished(pa.array(values, raw), column.type)


def finished(raw: pa.Array, type: pa.DataType) -> pa.Array:
    """Parsed values as what they should be: texts as dates, nested lists as tensors.

    Raises:
        ArrowException: a text is no date, or a list has another shape.
    """
    if pa.types.is_temporal(type):
        return convert(raw, type)
    if isinstance(type, pa.FixedShapeTensorType):
        cells = _flat(raw, type.shape)
        if pa.types.is_floating(cells.type):
            cells = pc.fill_null(cells, float("nan"))
        storage = pa.FixedSizeListArray.from_arrays(cells, type.storage_type.list_size)
        return pa.ExtensionArray.from_storage(type, _with_holes(storage, raw))
    if raw.type != type:
        size = type.value_type.list_size
        steps = pa.FixedSizeListArray.from_arrays(_flat(raw.flatten(), [size]), size)
        return pa.ListArray.from_arrays(_offsets(raw), steps, type=type, mask=raw.is_null())
    return raw


def _flat(lists: pa.Array, lengths: list[int]) -> pa.Array:
    """The values of nested lists that have these lengths, end to end."""
    for length in lengths:
        if not pc.all(pc.equal(pc.list_value_length(lists.drop_null()), length), min_count=0).as_py():
            raise pa.ArrowInvalid(f"a list that has not {length} values")
        lists = lists.flatten()
    return lists


def _with_holes(storage: pa.Array, raw: pa.Array) -> pa.Array:
    """Lists of the rows that are there, with missing ones between them."""
    if raw.null_count == 0:
        return storage
    there = raw.is_valid()
    return storage.take(pc.if_else(there, pc.subtract(pc.cumulative_sum(there.cast(pa.int64())), 1), None))


def _offsets(raw: pa.ListArray) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(raw), 0).cast(pa.int32())
    return pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])


def _count(value: Any) -> float:
    if type(value) not in (int, float) or value > MOST:
        raise TypeError("no number that single precision holds")
    return float(value)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
