"""Numbers and values as people read them, the same in a terminal and on a page."""

from __future__ import annotations

from math import floor, isfinite, isnan, log10
from typing import Any

import pyarrow as pa

NONE = "-"
TEXT = 28  # characters of a value


def figure(value: float, measure: str = "rmse") -> str:
    """A number for people: three or four digits that count, shares in percent, a dash for none."""
    if isnan(value):
        return NONE
    if measure == "wrong":
        return f"{value:.1%}"
    size = abs(value)
    if size == 0 or not isfinite(value):
        return f"{value:g}"
    if size >= 1e7 or size < 1e-4:
        return f"{value:.2e}"
    digits = 0 if size >= 1_000 else 1 if size >= 100 else 2 - min(0, floor(log10(size)))
    return f"{value:,.{digits}f}"


def texts(array: pa.Array) -> list[str]:
    """Values as short text: numbers with the digits that count, dates without empty fractions."""
    if pa.types.is_temporal(array.type) and not pa.types.is_duration(array.type):
        return [_short(value) for value in _times(array)]
    return [_text(value) for value in array.to_pylist()]


def _times(array: pa.Array) -> list[str | None]:
    if pa.types.is_timestamp(array.type):  # Python's datetimes know neither nanoseconds nor the year 12000
        array = array.cast(pa.timestamp("s", array.type.tz), safe=False)
    values: list[str | None] = array.cast(pa.string()).to_pylist()
    return values


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _short(value)
    return f"{value:,}" if isinstance(value, int) else figure(value)


def _short(value: Any) -> str:
    text = "other" if value is None else str(value)
    return text if len(text) <= TEXT else text[: TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
