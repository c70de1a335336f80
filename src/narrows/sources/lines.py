"""Lines that arrive one by one, of CSV or JSON, to steps of a series: the reader for what has no end and no beginning.

    t,load,heat        load,heat            nan, 21.5
    09:00,,21.5   ->   9.25,21.0       ->   of each line (channels,) numbers, and the series that it belongs to
    {"load": 9.25, "heat": 21}

Each line is read by itself, as soon as it is there; so types are not found by looking, but known from training: numbers
all. What a file has besides, quoted line breaks or another encoding than UTF-8, has no place here.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from math import inf, isfinite, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import DataError
from narrows.sources.inference import MISSING, looks_like_value

Step = tuple[Any, NDArray[np.float64]]
_DELIMITERS = "\t;|,"
_ABSENT = {*MISSING, "-"}
_WORDS = {"true": 1.0, "false": 0.0}


def read_steps(lines: Iterable[str], channels: Sequence[str], series: str | None = None) -> Iterator[Step]:
    """The steps that lines hold, each as soon as its line is there; empty lines are passed over.

    Args:
        lines: of CSV, the first of which names the columns unless it holds a value for each of those read; or JSON
            objects. Other columns, such as a stamp, are ignored.
        channels: the columns of numbers to read.
        series: the column that tells one series from another.

    Yields:
        The value of that column, None without one; and (channels,) numbers, NaN where missing.

    Raises:
        DataError: naming the line and column, where a column is missing or holds no number.
    """
    names, delimiter = list[str](), ","
    wanted = [*channels, *([] if series is None else [series])]
    for number, line in enumerate(lines, 1):
        text = line.strip("\ufeff \r\n")
        if not text:
            continue
        if text.startswith("{"):
            yield _step(_object(text, number), number, channels, series)
            continue
        if not names:
            delimiter = _delimiter(text, wanted, number)
            names = _names(_fields(text, delimiter, number), wanted, number)
            if _fields(text, delimiter, number) == names:
                continue
        fields = _fields(text, delimiter, number)
        if len(fields) != len(names):
            raise DataError(f"line {number} has {len(fields)} fields", f"{len(names)}, as in the first")
        yield _step(dict(zip(names, fields, strict=True)), number, channels, series)


def _delimiter(text: str, wanted: Sequence[str], number: int) -> str:
    """The mark that finds most of the names, and of those that find as many the one that finds most fields."""
    found = {mark: _fields(text, mark, number) for mark in _DELIMITERS}
    return max(_DELIMITERS, key=lambda mark: (len({*found[mark]} & {*wanted}), len(found[mark])))


def _fields(text: str, delimiter: str, number: int) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([text], delimiter=delimiter))]
    except csv.Error as error:
        raise DataError(f"line {number} is no CSV: {error}") from None


def _names(fields: list[str], wanted: Sequence[str], number: int) -> list[str]:
    """The names of the columns, by the first line: its fields, or those wanted where it holds values."""
    if {*wanted} <= {*fields} or not all(field in _ABSENT or looks_like_value(field) for field in fields):
        return fields
    if len(fields) != len(wanted):
        got = f"line {number} begins with {len(fields)} values"
        raise DataError(got, f"names of columns, among them {', '.join(wanted)}", "a header as first line")
    return list(wanted)


def _object(text: str, number: int) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is no JSON object: {error}", '{"a": 1, "b": 2}') from None
    return dict(found)


def _step(row: dict[str, Any], number: int, channels: Sequence[str], series: str | None) -> Step:
    for name in [*channels, *([] if series is None else [series])]:
        if name not in row:
            raise DataError(f"line {number} has no column {name!r}, but {', '.join(map(repr, row)) or 'none'}")
    label = None if series is None else row[series]
    if not isinstance(label, str | int | float | None):
        raise DataError(f"line {number}, column {series!r}: {label!r}", "the name or number of a series")
    return label, np.array([_number(row[name], number, name) for name in channels])


def _number(value: Any, line: int, name: str) -> float:
    """A value as a number, NaN where it is missing."""
    if value is None or value != value or (isinstance(value, str) and value in _ABSENT):
        return nan
    try:
        number = _WORDS[value.lower()] if isinstance(value, str) and value.lower() in _WORDS else float(value)
    except (TypeError, ValueError, OverflowError):
        number = inf
    if not isfinite(number):
        raise DataError(f"line {line}, column {name!r}: {value!r:.40}", "a finite number, or nothing")
    return number
