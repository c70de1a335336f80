"""What moved between usual and new rows, in a plain phrase: which level, in which direction, from what to what.

Values are told in the units of the data. What this file does not know: whether what moved is more than chance.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from narrows.fitted import Model
from narrows.prepare.categories import Levels
from narrows.tasks.figures import TEXT, figure
from narrows.tasks.reference import Watched

Floats = NDArray[np.float64]
ARROW = "\N{RIGHTWARDS ARROW}"
WIDER = 0.2  # log of the ratio of spreads from which a column is called more or less spread


def raw_values(model: Model, cell: Watched, values: Floats) -> Floats:
    """Prepared numbers (n,) of a cell in the units of the data; dates in seconds since 1970."""
    cells = torch.zeros(len(values), model.schema.dense, dtype=torch.float64)
    cells[:, cell.place] = torch.from_numpy(values)
    raw: Floats = model.preparer.scaling.inverse(cells)[:, cell.place].numpy()
    return raw


def of_numbers(model: Model, cell: Watched, usual: Floats, new: Floats) -> str:
    """How numbers or dates (n,), (m,) in prepared units moved: by the middle, or by the spread if that moved more."""
    before, after = (raw_values(model, cell, values) for values in (usual, new))
    quarters = [np.quantile(values, [0.25, 0.5, 0.75]) for values in (before, after)]
    widths = [float(q[2] - q[0]) for q in quarters]
    middles, what = [float(q[1]) for q in quarters], "median"
    if cell.kind != "date" and (middles[0] == middles[1] or not all(widths)):
        middles, what = [float(values.mean()) for values in (before, after)], "mean"
        widths = [float(values.std()) for values in (before, after)]
    shift = abs(middles[1] - middles[0]) / (max(widths) or 1.0)
    stretch = abs(float(np.log(widths[1] / widths[0]))) if all(widths) else 0.0
    if stretch > max(WIDER, shift):
        word, name = "more" if widths[1] > widths[0] else "less", "middle half" if what == "median" else "deviation"
        return f"{word} spread: {name} {_change(cell, widths, span=True)}"
    word = "later" if cell.kind == "date" else "higher"
    if middles[1] < middles[0]:
        word = "earlier" if cell.kind == "date" else "lower"
    if middles[0] == middles[1] or _text(cell, middles[0]) == _text(cell, middles[1]):
        return f"spread otherwise, about the same {what} {_text(cell, middles[1])}"
    return f"{word}: {what} {_change(cell, middles)}"


def of_levels(model: Model, cell: Watched, usual: NDArray[np.int64], new: NDArray[np.int64]) -> str:
    """Counts of each level, the last of those not kept in training: whose share moved most."""
    shares = [counts / max(1, counts.sum()) for counts in (usual, new)]
    at = int(np.abs(shares[1] - shares[0]).argmax())
    return f"{_level(model, cell, at)} {change(float(shares[0][at]), float(shares[1][at]))}"


def change(before: float, after: float) -> str:
    """Two shares in percent."""
    return f"{before:.1%} {ARROW} {after:.1%}"


def of_scores(usual: Floats, new: Floats) -> str:
    """Medians of scores."""
    before, after = float(np.median(usual)), float(np.median(new))
    word = "higher, so that rows fit worse" if after > before else "lower, so that rows fit better"
    return f"{word}: median {figure(before)} {ARROW} {figure(after)}"


def _level(model: Model, cell: Watched, at: int) -> str:
    layout = model.preparer.layouts.get(cell.column)
    if not isinstance(layout, Levels) or at >= len(layout):
        return "levels not kept in training"
    text = str(layout.values[at].as_py())
    return text if len(text) <= TEXT else text[: TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _change(cell: Watched, pair: list[float], span: bool = False) -> str:
    unit = " days" if span and cell.kind == "date" else ""
    return f" {ARROW} ".join(_text(cell, value, span) for value in pair) + unit


def _text(cell: Watched, value: float, span: bool = False) -> str:
    if cell.kind != "date":
        return f"{value:,.0f}" if abs(value) < 1e7 and value == round(value) else figure(value)
    return figure(value / 86_400) if span else str(np.datetime64(round(value), "s").astype("datetime64[D]"))
