"""Numbers as people read them, the same in a terminal and on a page."""

from __future__ import annotations

from math import floor, isfinite, isnan, log10

NONE = "-"


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
