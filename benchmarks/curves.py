"""Charts of curves as a PNG, side by side: what `charts.py` of the report is for pages, by Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from narrows.report.charts import Axis

Curve = Sequence[Sequence[float]]  # (x, y), ...
WIDTH, HEIGHT, FINE = 460, 330, 2  # of a chart; drawn twice as fine
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 44
INKS = ("#1f6fb4", "#d1661f", "#2f8f4e", "#8a4fb0")


@dataclass
class Chart:
    """Curves over common axes, the upright one logarithmic.

    Args:
        title: above.
        across: what x is.
        up: what y is.
        curves: name -> some of that name, in one color.
    """

    title: str
    across: str
    up: str
    curves: Mapping[str, Sequence[Curve]]


def draw(charts: Sequence[Chart], path: Path) -> None:
    """Write charts side by side."""
    canvas = Image.new("RGB", (WIDTH * FINE * len(charts), HEIGHT * FINE), "white")
    for place, chart in enumerate(charts):
        _draw(chart, ImageDraw.Draw(canvas), place * WIDTH)
    canvas.save(path, optimize=True)


def _draw(chart: Chart, pen: ImageDraw.ImageDraw, offset: int) -> None:
    points = np.concatenate([np.asarray(curve) for some in chart.curves.values() for curve in some])
    x = Axis(0.0, float(points[:, 0].max()), offset + LEFT, offset + WIDTH - RIGHT)
    y = Axis.over(points[:, 1], HEIGHT - BOTTOM, TOP, log=True)
    _frame(chart, pen, x, y)
    for row, (name, some) in enumerate(chart.curves.items()):
        ink = INKS[row % len(INKS)]
        for curve in some:
            across, up = np.asarray(curve).T
            pen.line([*map(tuple, FINE * np.column_stack([x.at(across), y.at(up)]))], ink, 2 * FINE, "curve")
        _write(pen, (x.stop - 8, TOP + 14 + 16 * row), name, "rm", ink)


def _frame(chart: Chart, pen: ImageDraw.ImageDraw, x: Axis, y: Axis) -> None:
    for tick, at in zip(y.ticks(), y.at(y.ticks()), strict=True):
        pen.line([(FINE * x.start, FINE * at), (FINE * x.stop, FINE * at)], "#dddddd", FINE)
        _write(pen, (x.start - 6, at), f"{tick:g}", "rm")
    for tick, at in zip(x.ticks(), x.at(x.ticks()), strict=True):
        _write(pen, (at, HEIGHT - BOTTOM + 12), f"{tick:g}", "mm")
    pen.line([(FINE * x.start, FINE * y.start), (FINE * x.stop, FINE * y.start)], "#777777", FINE)
    _write(pen, (x.start, TOP / 2), f"{chart.title}: {chart.up}", "lm")
    _write(pen, ((x.start + x.stop) / 2, HEIGHT - 14), chart.across, "mm")


def _write(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str, ink: str = "#333333") -> None:
    place = (FINE * at[0], FINE * at[1])
    pen.text(place, text, ink, ImageFont.load_default(12 * FINE), anchor)
