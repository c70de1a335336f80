"""Small charts as SVG text: curves, a map of points, a line over a line.

Colors are CSS classes of the page, so that one drawing serves light and dark. Every text that comes from data passes
through `Markup.format`, which escapes it. Knows coordinates and ticks; nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Floats = npt.NDArray[np.float64]
WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 12, 48
BANDS, FAINT = 80, 0.03  # of a tint behind lines, and the least that is drawn


@dataclass(frozen=True)
class Axis:
    """Values low..high on the pixels start..stop.

    Args:
        low: smallest value shown.
        high: largest value shown.
        start: pixel of `low`.
        stop: pixel of `high`.
        log: logarithmic; then `low` lies above 0.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, values: npt.ArrayLike) -> Floats:
        """Pixels of values."""
        array = np.asarray(values, dtype=np.float64)
        low, high = (log10(self.low), log10(self.high)) if self.log else (self.low, self.high)
        share = ((np.log10(array) if self.log else array) - low) / (high - low)
        return np.asarray(self.start + share * (self.stop - self.start))

    def ticks(self, about: int = 5) -> list[float]:
        """Round values along the axis: steps of 1, 2 or 5, or decades."""
        if self.log:
            first, last = floor(log10(self.low)), ceil(log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            marks = [m * 10.0**k for k in range(first, last + 1) for m in steps]
            return [mark for mark in marks if self.low <= mark <= self.high]
        step = _round_step((self.high - self.low) / about)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    @classmethod
    def over(cls, values: Floats, start: float, stop: float, log: bool = False) -> Axis:
        """An axis that holds all finite values with a little room at both ends."""
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
        if log:
            return cls(low / 1.15, high * 1.15, start, stop, True)
        room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - room, high + room, start, stop)


def curves(series: Sequence[tuple[str, Floats, Floats]], x_title: str, y_title: str) -> Markup:
    """Lines over a common axis, logarithmic where positive values span more than a factor of 10.

    Args:
        series: CSS class, x (n,) and y (n,) of each line; NaN leaves a gap.
        x_title: below.
        y_title: beside.
    """
    every = np.concatenate([y for _, _, y in series])
    finite = every[np.isfinite(every)]
    log = bool(finite.size and finite.min() > 0 and finite.max() > 10 * finite.min())
    across = np.concatenate([x for _, x, _ in series])
    x = Axis(float(across.min()), float(max(across.max(), across.min() + 1)), LEFT + 4, WIDTH - RIGHT)
    y = Axis.over(every, HEIGHT - BOTTOM, TOP, log)
    lines = [_line(name, x.at(xs), y.at(ys)) for name, xs, ys in series]
    return _drawing(x, y, x_title, f"{y_title} (log scale)" if log else y_title, lines)


def points(x: Floats, y: Floats, classes: npt.NDArray[np.int64], titles: tuple[str, str]) -> Markup:
    """A map of points, each in the tint of its class; higher classes lie on top.

    Args:
        x: (n,) across.
        y: (n,) up.
        classes: (n,) CSS classes `tint0`, `tint1`, ...
        titles: of the two axes.
    """
    across, up = Axis.over(x, LEFT, WIDTH - RIGHT), Axis.over(y, HEIGHT - BOTTOM, TOP)
    pixels = np.column_stack([across.at(x), up.at(y)]).round(1)
    size = 7 if len(x) <= 300 else 5 if len(x) <= 1_000 else 4
    # a line of no length with round ends is a dot, and takes a fifth of the bytes of a circle
    layers = [
        Markup('<path class="dot tint{}" stroke-width="{}" d="{}"/>').format(
            tint, size, "".join(f"M{a:g} {b:g}h0" for a, b in pixels[classes == tint])
        )
        for tint in np.unique(classes)
    ]
    return _drawing(across, up, *titles, layers)


def histogram(edges: Floats, shares: Floats, line: Floats, mark: float, titles: tuple[str, str]) -> Markup:
    """Bars of shares, those beyond a mark in another color, and the outline of other shares over them.

    Args:
        edges: (n + 1,) of the bars.
        shares: (n,) height of each; what is not 0 is drawn at least two pixels high.
        line: (n,) heights of the outline.
        mark: value where an upright line stands.
        titles: of the two axes.
    """
    x = Axis(float(edges[0]), float(edges[-1]), LEFT + 4, WIDTH - RIGHT)
    y = Axis(0.0, 1.08 * max(float(shares.max()), float(line.max()), 1e-9), HEIGHT - BOTTOM, TOP)
    left, right, floor_ = x.at(edges[:-1]), x.at(edges[1:]), HEIGHT - BOTTOM
    tops = np.where(shares > 0, np.minimum(y.at(shares), floor_ - 2), floor_)
    parts = [
        Markup('<path class="{}" d="{}"/>').format(
            name,
            "".join(
                f"M{a + 0.5:.1f} {floor_}V{top:.1f}H{b - 0.5:.1f}V{floor_}"
                for a, b, top, here in zip(left, right, tops, beyond, strict=True)
                if here and top < floor_
            ),
        )
        for name, beyond in (("low", edges[:-1] < mark), ("high", edges[:-1] >= mark))
    ]
    outline = "".join(f"V{up:.1f}H{b:.1f}" for up, b in zip(y.at(line), right, strict=True))
    parts.append(Markup('<path class="line original" d="M{:.1f} {}{}"/>').format(left[0], floor_, outline))
    parts.append(Markup('<path class="mark" d="M{:.1f} {}V{}"/>').format(float(x.at(mark)), floor_, TOP))
    return _drawing(x, y, *titles, parts)


def overlay(series: Sequence[tuple[str, Floats]], name: str, heat: Floats | None = None) -> Markup:
    """A small chart of lines over the positions of a row, with its lowest and highest value as ticks.

    Args:
        series: CSS class and values of each line, drawn in order; some may end earlier than others.
        name: what it shows, for readers who cannot see it.
        heat: (n,) from 0 to 1, how strongly the positions behind the lines are tinted.
    """
    width, height, left = 280, 120, 44
    count = max(len(values) for _, values in series)
    x = Axis(0, max(count - 1, 1), left, width - 4)
    y = Axis.over(np.concatenate([values for _, values in series]), height - 6, 6)
    places = [np.unique(np.linspace(0, len(line) - 1, min(len(line), 400)).astype(int)) for _, line in series]
    lines = [_line(style, x.at(at), y.at(line[at])) for (style, line), at in zip(series, places, strict=True)]
    ends = [t for t in y.ticks(3) if y.low <= t <= y.high]
    grid = _rows(y, ends, left, width - 4)
    grid = grid if heat is None else _shades(heat, x, height) + grid
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, name, Markup("").join([grid, *lines])
    )


def _shades(heat: Floats, x: Axis, height: float) -> Markup:
    """Upright bands behind positions, as many as can be told apart, each as strong as its hottest position."""
    edges = np.unique(np.linspace(0, len(heat), min(len(heat), BANDS) + 1).round().astype(int))
    band = Markup('<path class="hot" opacity="{:.2f}" d="M{:.1f} 0H{:.1f}V{:g}H{:.1f}z"/>')
    places = x.at(edges - 0.5).clip(x.start, x.stop)
    strengths = [float(heat[a:b].max()) for a, b in pairwise(edges)]
    drawn = zip(strengths, places[:-1], places[1:], strict=True)
    return Markup("").join(band.format(how, a, b, height, a) for how, a, b in drawn if how > FAINT)


def _drawing(x: Axis, y: Axis, x_title: str, y_title: str, marks: Iterable[Markup]) -> Markup:
    """Grid, ticks and titles around the marks."""
    columns = Markup("").join(
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(at, HEIGHT - BOTTOM + 18, label)
        for at, label in zip(x.at(x.ticks(6)), _labels(x.ticks(6)), strict=True)
    )
    base = Markup('<path class="base" d="M{} {}H{}"/>').format(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    titles = Markup(
        '<text class="title" x="{}" y="{}" text-anchor="middle">{}</text>'
        '<text class="title" x="14" y="{}" text-anchor="middle" transform="rotate(-90 14 {})">{}</text>'
    ).format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, middle, middle, y_title)
    inside = Markup("").join([_rows(y, y.ticks(), LEFT, WIDTH - RIGHT), base, columns, titles, *marks])
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{} by {}">{}</svg>').format(
        WIDTH, HEIGHT, y_title, x_title, inside
    )


def _rows(y: Axis, ticks: list[float], left: float, right: float) -> Markup:
    """A grid line and a label at each tick of the upright axis."""
    return Markup("").join(
        Markup('<path class="grid" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            left, at, right, left - 6, at + 4, label
        )
        for at, label in zip(y.at(ticks), _labels(ticks), strict=True)
    )


def _line(style: str, x: Floats, y: Floats) -> Markup:
    """A polyline with gaps where y is NaN; a single point becomes a dot."""
    steps, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if np.isfinite(b):
            steps.append(f"{pen}{a:.1f} {b:.1f}")
            pen = "L"
        else:
            pen = "M"
    dot = "h0" if len(steps) == 1 else ""
    return Markup('<path class="line {}" d="{}"/>').format(style, "".join(steps) + dot)


def _labels(ticks: list[float]) -> list[str]:
    """Ticks as short text, all with the digits that their steps need."""
    labels = [f"{tick:.4g}" for tick in ticks]
    if len(set(labels)) < len(ticks):
        labels = [f"{tick:.8g}" for tick in ticks]
    return [
        "0" if abs(tick) < 1e-12 else label.replace("-", "\N{MINUS SIGN}")
        for tick, label in zip(ticks, labels, strict=True)
    ]


def _round_step(step: float) -> float:
    """The smallest of 1, 2, 5 x 10^k that is not below `step`."""
    power = 10.0 ** floor(log10(step))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= step * (1 - 1e-9))
