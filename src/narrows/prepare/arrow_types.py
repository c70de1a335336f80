"""What Narrows makes of each Arrow type, and types as text and back.

A type has a nature, which says how its values are read: `number` (also decimals, durations, times of day), `flag`,
`date`, `text` (also dictionaries), `tensor` (a block of numbers in each row), `ragged` (lists: a series of any length
in each row), `map` (a bag: items and how much of each), `empty` (no values at all). Structs, bytes and other lists have
none and are refused by name. What the values mean (their kind) is chosen elsewhere.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import pyarrow as pa

from narrows.errors import DataError

Nature = Literal["number", "flag", "date", "text", "tensor", "ragged", "map", "empty"]
Type = Any  # pa.DataType; pyarrow carries no annotations

ZONED = re.compile(r"timestamp\[(s|ms|us|ns), tz=(.+)\]")
DECIMAL = re.compile(r"(decimal\d+)\((\d+), (-?\d+)\)")
LIST = re.compile(r"(large_)?list<item: (?:fixed_size_list<item: (\w+)>\[(\d+)\]|(\w+))>")
MAP = re.compile(r"map<(\w+), (\w+)>")
DICTIONARY = re.compile(r"dictionary<values=(.+), indices=(u?int\d+), ordered=([01])>")

WANTED = "numbers, texts, flags, dates, tensors, lists of numbers, or maps from texts or whole numbers to numbers"
HINTS = {
    "list": "lists of numbers, or of fixed-size lists of numbers, are series; give other elements columns of their own",
    "struct": "give its fields columns of their own (`Table.flatten()`)",
    "binary": "decode it to text or to images first, or leave the column out",
}


def is_text(arrow: Type) -> bool:
    """Whether values of this type are strings."""
    return bool(pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow))


def is_clock(arrow: Type) -> bool:
    """Whether values are durations or times of day: counts of a unit of time without a date."""
    return bool(pa.types.is_duration(arrow) or pa.types.is_time(arrow))


def is_date(arrow: Type) -> bool:
    """Whether values stand on the calendar."""
    return bool(pa.types.is_date(arrow) or pa.types.is_timestamp(arrow))


def is_plain_number(arrow: Type) -> bool:
    """Whether values cast to float64 as they are: integers, floats, decimals, and flags as 0 and 1."""
    number = pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_decimal(arrow)
    return bool(number or pa.types.is_boolean(arrow))


def is_tensor(arrow: Type) -> bool:
    """Whether each value is a block of numbers of one shape."""
    return isinstance(arrow, pa.FixedShapeTensorType)


def is_list(arrow: Type) -> bool:
    """Whether each value is a series of any length: a list of numbers, or of steps with so many numbers each."""
    if not (pa.types.is_list(arrow) or pa.types.is_large_list(arrow)):
        return False
    inner = arrow.value_type
    return _is_simple(inner.value_type if pa.types.is_fixed_size_list(inner) and inner.list_size else inner)


def is_map(arrow: Type) -> bool:
    """Whether each value is a bag: texts or whole numbers, each with a number."""
    keyed = pa.types.is_map(arrow) and (is_text(arrow.key_type) or pa.types.is_integer(arrow.key_type))
    return bool(keyed and _is_simple(arrow.item_type))


def _is_simple(arrow: Type) -> bool:
    return is_plain_number(arrow) and not pa.types.is_decimal(arrow)


def nature(arrow: Type, column: str) -> Nature:
    """How values of this Arrow type are read.

    Raises:
        DataError: for types that cannot be modeled, naming the column.
    """
    if is_tensor(arrow):
        return _tensor_nature(arrow, column)
    if pa.types.is_dictionary(arrow):
        return "text" if nature(arrow.value_type, column) != "tensor" else _refuse(arrow, column)
    natures: tuple[tuple[bool, Nature], ...] = (
        (pa.types.is_null(arrow), "empty"),
        (pa.types.is_boolean(arrow), "flag"),
        (is_list(arrow), "ragged"),
        (is_map(arrow), "map"),
        (is_text(arrow), "text"),
        (is_date(arrow), "date"),
        (is_plain_number(arrow) or is_clock(arrow), "number"),
    )
    return next((name for holds, name in natures if holds), None) or _refuse(arrow, column)


def _tensor_nature(arrow: Type, column: str) -> Nature:
    order = list(arrow.permutation or [])
    if not is_plain_number(arrow.value_type) or order != sorted(order):
        return _refuse(arrow, column)
    return "tensor"


def _refuse(arrow: Type, column: str) -> Nature:
    hint = next((hint for word, hint in HINTS.items() if word in str(arrow)), "cast the column, or leave it out")
    raise DataError(
        f"column {column!r} is of type {arrow}", "numbers, text, flags, dates, tensors, series or bags", hint
    )


def parse_type(text: str) -> Type:
    """The Arrow type whose `str` is `text`; of tensors only that of their numbers.

    Raises:
        ValueError: where there is none.
    """
    if match := LIST.fullmatch(text):
        inner = parse_type(match[2] or match[4])
        inner = pa.list_(inner, int(match[3])) if match[3] else inner
        return pa.large_list(inner) if match[1] else pa.list_(inner)
    if match := MAP.fullmatch(text):
        return pa.map_(parse_type(match[1]), parse_type(match[2]))
    if match := ZONED.fullmatch(text):
        return pa.timestamp(match[1], match[2])
    if match := DECIMAL.fullmatch(text):
        if not hasattr(pa, match[1]):
            raise ValueError(f"this pyarrow has no {match[1]}")
        return getattr(pa, match[1])(int(match[2]), int(match[3]))
    if match := DICTIONARY.fullmatch(text):
        return pa.dictionary(parse_type(match[2]), parse_type(match[1]), ordered=match[3] == "1")
    return pa.type_for_alias(text)


def canonical(arrow: Type) -> Type:
    """The type without what `parse_type` does not read: names and nullability of the fields within lists and maps."""
    if is_map(arrow):
        return pa.map_(arrow.key_type, arrow.item_type)
    if not is_list(arrow):
        return arrow
    inner = arrow.value_type
    inner = pa.list_(inner.value_type, inner.list_size) if pa.types.is_fixed_size_list(inner) else inner
    return pa.large_list(inner) if pa.types.is_large_list(arrow) else pa.list_(inner)


def level_type(arrow: Type) -> Type:
    """The type in which the levels of a column are counted, looked up and stored: one for all kinds of text."""
    if pa.types.is_dictionary(arrow):
        return level_type(arrow.value_type)
    if is_text(arrow):
        return pa.large_string()
    return pa.float32() if pa.types.is_float16(arrow) else arrow
