"""Texts to values: which type a column of texts has, and the conversion to it.

Types form a lattice, and a column gets the least one that holds all its blocks, however the file is cut into them:

    null < int64 < double < string      null < bool < string
    null < date32 < timestamp[us] < timestamp[ns] < string      null < timestamp[us, UTC] < [ns, UTC] < string

Refuses to guess: dates are ISO 8601 only, and decimal commas, yes/no and numbers with leading zeros (007) stay text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc

# What stands for a missing cell, once spaces are trimmed; where the column is not text, a dash does too.
MISSING = ["", "?", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None"]

_NUMBERS = (pa.int64(), pa.float64())
_FEW = 64  # a cast that fails takes thirty times as long as one that does not: it is tried on a few values first
_BOOLS = ["true", "True", "TRUE", "false", "False", "FALSE"]
_CHAINS = (
    _NUMBERS,
    (pa.bool_(),),
    (pa.date32(), pa.timestamp("us"), pa.timestamp("ns")),
    (pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC")),
)
_VALUE = re.compile(r"[+-]?\.?\d[\d.,:/ +-]*([eE][+-]?\d+|T[\d.:+-]+)?Z?", re.ASCII)


def looks_like_value(text: str) -> bool:
    """Whether a field is a number, a date or time in any notation, or a truth value, and so names no column."""
    text = text.strip()
    return text in _BOOLS or _VALUE.fullmatch(text) is not None


def widened(known: pa.DataType, values: pa.Array) -> pa.DataType:
    """The least type that holds these texts and whatever `known` holds."""
    few = values.drop_null().slice(0, _FEW)
    return next((type for type in _from(known) if _fits(few, type) and _fits(values, type)), pa.string())


def joined_type(types: Iterable[pa.DataType]) -> pa.DataType:
    """The least type that holds what each of these holds."""
    return functools.reduce(lambda a, b: next(type for type in _from(a) if type in _from(b)), types)


def convert(values: pa.Array, type: pa.DataType) -> pa.Array:
    """Texts as values of one of the types above; spaces around them do not count.

    Raises:
        pa.ArrowInvalid: a text is no such value; `first_misfit` says which.
    """
    if type == pa.string():
        return _trimmed(values, MISSING)
    if type in _NUMBERS:
        with suppress(pa.ArrowInvalid):  # after a space, a dash or truly no number, the slow way finds out
            values.slice(0, _FEW).cast(type)
            return values.cast(type)
    values = _trimmed(values, [*MISSING, "-"])
    if pa.types.is_null(type):
        if values.null_count < len(values):
            raise pa.ArrowInvalid("not missing")
        return pa.nulls(len(values))
    if type == pa.bool_():
        places = pc.index_in(values, value_set=pa.array(_BOOLS))
        if places.null_count > values.null_count:
            raise pa.ArrowInvalid("not a truth value")
        return pc.less(places, 3)
    return values.cast(type)


def first_misfit(values: pa.Array, type: pa.DataType) -> tuple[int, str]:
    """Position and text of the first value that does not convert."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            convert(values.slice(low, middle - low), type)
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low, values[low].as_py()


def _from(known: pa.DataType) -> list[pa.DataType]:
    """The types that hold what `known` holds, least first."""
    if pa.types.is_null(known):
        return [known, *(type for chain in _CHAINS for type in chain), pa.string()]
    chain = next((chain for chain in _CHAINS if known in chain), (known,))
    return [*chain[chain.index(known) :], *([] if known == pa.string() else [pa.string()])]


def _fits(values: pa.Array, type: pa.DataType) -> bool:
    try:
        convert(values, type)
    except pa.ArrowInvalid:
        return False
    return type not in _NUMBERS or not pc.any(pc.match_substring_regex(values, r"^\s*[+-]?0[0-9xX]")).as_py()


def _trimmed(values: pa.Array, missing: list[str]) -> pa.Array:
    trimmed = pc.ascii_trim_whitespace(values)
    return pc.if_else(pc.is_in(trimmed, value_set=pa.array(missing)), pa.scalar(None, pa.string()), trimmed)
