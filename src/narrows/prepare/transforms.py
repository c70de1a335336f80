"""The tensor half of preparing: which transform each number cell gets, and the module that applies them all at once.

    raw (B, N) float64, NaN where missing  ->  (raw - center) / scale  ->  curves of some cells  ->  (B, N) float32

Standardizing, min-max and pixels differ in nothing but center and scale. A quantile cell also follows a curve:
piecewise linear through up to 124 quantiles of the training rows, onto their normal scores, and an asinh cell the
inverse hyperbolic sine about its median. Subtracting in float64
lets large offsets (ids, timestamps) keep their digits. Nothing is clipped, except that prepared values stay within
+-1,000,000, where float32 and every network have long lost them. Knows nothing of categories or Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from narrows.prepare.arrow import Cells, Floats
from narrows.prepare.moments import Moments

LIMIT = 1e6
KNOTS = 128  # a power of two, for the search; four of them carry the lines beyond the ends
LEAN = 0.5  # slope a curve has at least, per range of the column: float32 scores then tell a millionth of it
LUMP, LUMP_ROWS = 0.05, 8  # share of the sample, and number in it, from which equal values get a ledge
LEDGE = 1e-4  # half its width, per distance to the nearest knot
FAR_DEVIATIONS = 8
FAR_RANGES = 10
MIDDLE = 2.56  # standard deviations of a normal distribution between its first and last tenth
NARROWEST = 0.2  # of a standard deviation: what the middle counts for at least, where most values are one
FINEST = 1e-12  # of the range: a column whose sample spreads no wider is as good as constant in float64
BEYOND = 10.0  # ranges to either side that an asinh curve is drawn for


@dataclass
class Plan:
    """What is done to the w number cells of a column.

    Args:
        center: (w,) subtracted first.
        scale: (w,) divided by then.
        fill: (w,) prepared value of a missing cell: the training mean.
        low: (w,) least prepared value of the training rows.
        high: (w,) greatest one.
        bounded: whether the prepared training values lie in [0, 1] by their nature.
        curves: knots (128,) and scores (128,) of the cells that follow a curve.
    """

    center: Floats
    scale: Floats
    fill: Floats
    low: Floats
    high: Floats
    bounded: bool = False
    curves: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)

    @classmethod
    def affine(cls, moments: Moments, center: Floats, scale: Floats, bounded: bool = False) -> Plan:
        """Center and scale alone; cells never seen in training keep the value 0."""
        low, high, mean = (np.nan_to_num(values) for values in (moments.low, moments.high, _mean(moments)))
        with np.errstate(over="ignore"):
            prepared = [np.clip((values - center) / scale, -LIMIT, LIMIT) for values in (mean, low, high)]
        return cls(center, scale, prepared[0], prepared[1], prepared[2], bounded)

    def tiled(self, times: int) -> Plan:
        """The same for so many repetitions of the cells, none of which follows a curve."""
        tiled: dict[str, Any] = {name: np.tile(getattr(self, name), times) for name in CELLWISE}
        return replace(self, **tiled)

    def beside(self, other: Plan) -> Plan:
        """Both plans, for cells that stand side by side and follow no curves."""
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in CELLWISE
        }
        return replace(self, **joined, bounded=self.bounded and other.bounded)


CELLWISE = ("center", "scale", "fill", "low", "high")


def _mean(moments: Moments) -> Floats:
    """Mean, or the middle of the range where the sum overflowed."""
    return np.where(np.isfinite(moments.mean), moments.mean, moments.low / 2 + moments.high / 2)


def plan_image(moments: Moments, bytes_: bool, transform: str | None) -> Plan:
    """One center and scale for all the cells of an image.

    By default whole numbers from 0 up are divided by their greatest, or by 255 where they are bytes above 127; floats
    within [0, 1] are taken as they are; anything else is mapped from its range over all cells to [0, 1].
    """
    low, high = float(np.nanmin(moments.low)), float(np.nanmax(moments.high))
    ones = np.ones(len(moments.mean))
    if transform == "standardize":
        center, scale = _pooled(moments)
        return Plan.affine(moments, center * ones, scale * ones)
    if transform == "none" or (transform is None and low >= 0 and high <= 1):
        return Plan.affine(moments, 0 * ones, ones, bounded=low >= 0 and high <= 1)
    if transform is None and low >= 0 and bool(moments.whole.all()):
        return Plan.affine(moments, 0 * ones, (255.0 if bytes_ and high > 127 else high) * ones, bounded=True)
    return Plan.affine(moments, low * ones, _width(np.array(low), np.array(high)) * ones, bounded=True)


def _pooled(moments: Moments) -> tuple[Floats, Floats]:
    """Mean and standard deviation over all cells together."""
    weight = moments.count / max(1, int(moments.count.sum()))
    mean = np.asarray((weight * _mean(moments)).sum())
    with np.errstate(over="ignore"):
        spread = np.sqrt((weight * (moments.deviation**2 + (_mean(moments) - mean) ** 2)).sum())
    return mean, _usable(np.asarray(spread), np.asarray(np.nanmin(moments.low)), np.asarray(np.nanmax(moments.high)))


def plan_numbers(moments: Moments, sample: Cells, transform: str | None) -> Plan:
    """A transform for each cell on its own.

    By default a cell is standardized, unless it is heavy-tailed: some value lies more than 8 standard deviations
    from the mean, and the range is more than 10 times that of the middle 80 % (normal data: 4 times, exponential
    6 times at a million rows). It then follows its quantiles. A constant cell becomes 0.

    Args:
        moments: of the w cells.
        sample: (k, w) sampled rows, NaN where missing.
        transform: for all cells, in place of the default.
    """
    constant = ~(moments.high > moments.low)
    if transform == "none":
        zeros = np.zeros(len(constant))
        bounded = bool(np.nanmin(moments.low) >= 0 and np.nanmax(moments.high) <= 1)
        return Plan.affine(moments, zeros, zeros + 1, bounded)
    wished = np.full(len(constant), transform in ("quantile", "asinh"))
    curved = (heavy_tailed(moments, sample) if transform is None else wished) & ~constant
    from_low = curved | (transform == "minmax")
    width = _width(moments.low, moments.high)
    center = np.where(constant | from_low, moments.low, _mean(moments))
    scale = np.where(constant, 1.0, np.where(from_low, width, _usable(moments.deviation, moments.low, moments.high)))
    plan = Plan.affine(moments, np.nan_to_num(center), scale, bounded=transform == "minmax")
    for cell in np.flatnonzero(curved):
        bow = asinh_curve if transform == "asinh" else curve
        _bend(plan, int(cell), sample[:, cell].astype(np.float64), bow)
    return plan


def plan_date(moments: Moments) -> Plan:
    """The position in time is standardized, its sines and cosines are taken as they are."""
    plan = Plan.affine(moments, np.zeros(len(moments.mean)), np.ones(len(moments.mean)))
    first = plan_numbers(moments.first(1), np.zeros((0, 1)), "standardize")
    for name in ("center", "scale", "fill", "low", "high"):
        getattr(plan, name)[0] = getattr(first, name)[0]
    plan.low[1:], plan.high[1:] = -1.0, 1.0
    return plan


def _width(low: Floats, high: Floats) -> Floats:
    """high - low, kept finite and above zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        width = np.minimum(high - low, np.finfo(np.float64).max)
    return np.where(width > 1e-300, width, 1.0)


def _usable(deviation: Floats, low: Floats, high: Floats) -> Floats:
    """The standard deviation, or the range where squares over- or underflowed."""
    good = np.isfinite(deviation) & (deviation > 1e-150)
    return np.where(good, deviation, _width(low, high))


def heavy_tailed(moments: Moments, sample: Cells) -> npt.NDArray[np.bool_]:
    """(w,) bool: which cells have values so far out that standardizing would squeeze all the others together."""
    deviation = _usable(moments.deviation, moments.low, moments.high)
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.fmax(moments.high - _mean(moments), _mean(moments) - moments.low)
        suspects = np.flatnonzero(out > FAR_DEVIATIONS * deviation)
        chosen = np.zeros(len(deviation), np.bool_)
        for cell in suspects:
            values = sample[:, cell]
            values = values[~np.isnan(values)] if len(values) else values
            tenth, ninetieth = np.quantile(values, [0.1, 0.9]) if len(values) else (0.0, 0.0)
            chosen[cell] = moments.high[cell] - moments.low[cell] > FAR_RANGES * (ninetieth - tenth)
    return chosen


def _bend(plan: Plan, cell: int, values: Floats, bow: Callable[[Floats], tuple[Floats, Floats]]) -> None:
    """Gives a cell, so far mapped from its range to [0, 1], the curve that `bow` makes of its sampled values."""
    with np.errstate(over="ignore"):
        values = np.clip((values[~np.isnan(values)] - plan.center[cell]) / plan.scale[cell], 0, 1)
    knots, scores = plan.curves[cell] = bow(np.sort(values))
    plan.low[cell], plan.high[cell] = np.interp([0.0, 1.0], knots, scores)
    plan.fill[cell] = (
        np.interp(values, knots, scores).mean() if len(values) else np.interp(plan.fill[cell], knots, scores)
    )


def curve(values: Floats) -> tuple[Floats, Floats]:
    """Knots and their scores (128 each, strictly increasing) that turn a sample into nearly normal values.

    A knot's score is the normal quantile of its mid-rank, plus a gentle straight line that bounds the slope from
    below, so that the way back is well-conditioned in float32. A value that many rows share (the zeros of an amount
    that is mostly nothing) gets a ledge: all scores of its ranks lead back to it. Beyond the ends the curve is at
    first as steep as the nearest cell, so that a guess slightly too low is a value slightly too low, and after one
    unit of score goes on with its mean slope, which keeps values far outside apart.

    Args:
        values: (k,) sorted sample within [0, 1], the range of all rows.
    """
    grid = np.linspace(0, 1, KNOTS - 6)
    quantiles = np.quantile(values, grid, method="inverted_cdf") if len(values) else np.zeros(0)
    inner = np.unique(np.concatenate([[0.0], quantiles, [1.0]]))
    knots, ranks = _with_ledges(values, inner)
    center = values.mean() if len(values) else 0.5
    scores = torch.special.ndtri(torch.from_numpy((ranks + 1) / (2 * len(values) + 2))).numpy()
    scores, rising = np.unique(scores + LEAN * (knots - center), return_index=True)
    return _with_ends(knots[rising], scores)


def asinh_curve(values: Floats) -> tuple[Floats, Floats]:
    """Knots and scores (128 each) of asinh((x - median) / scale): straight in the middle, a logarithm far from it.

    The scale is the width of the middle 80 % of the sample over that of a standard normal one, but at least a fifth of
    the standard deviation. Unlike the quantile curve it leaves gaps between values as they are, and unlike
    standardizing it lets no few rows stretch the column for all.

    Args:
        values: (k,) sorted sample within [0, 1], the range of all rows.
    """
    some = values if len(values) else np.array([0.5])
    tenth, median, ninetieth = np.quantile(some, [0.1, 0.5, 0.9])
    scale = max((ninetieth - tenth) / MIDDLE, NARROWEST * float(some.std()))
    scale = scale if scale > FINEST else 1.0
    first, last = np.arcsinh((np.array([-BEYOND, 1 + BEYOND]) - median) / scale)
    scores = np.linspace(first, last, KNOTS)
    return median + scale * np.sinh(scores), scores


def _with_ledges(values: Floats, inner: Floats) -> tuple[Floats, Floats]:
    """Knots, with two more around each value that many rows share, and twice the rank of each."""
    below, upto = (np.searchsorted(values, inner, side).astype(np.float64) for side in ("left", "right"))
    gaps = np.diff(inner, prepend=-1.0, append=2.0)
    width = LEDGE * np.minimum(gaps[:-1], gaps[1:])
    lumps = (upto - below >= max(LUMP_ROWS, LUMP * len(values))) & (inner - width < inner) & (inner + width > inner)
    knots = np.concatenate([inner, (inner - width)[lumps], (inner + width)[lumps]])
    order = np.argsort(knots)
    return knots[order], np.concatenate([below + upto, 2 * below[lumps], 2 * upto[lumps]])[order]


def _with_ends(knots: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """The knots with those beyond both ends: two on the left, one and all that are to spare on the right."""
    rise, run = np.diff(scores), np.diff(knots)
    mean = (scores[-1] - scores[0]) / (knots[-1] - knots[0])
    ease = min(1.0, (scores[-1] - scores[0]) / 4)
    left, right = (max(ease / max(rise[end] / run[end], mean), 1e-12) for end in (0, -1))
    knots = np.concatenate([[knots[0] - left], knots, [knots[-1] + right]])
    scores = np.concatenate([[scores[0] - ease], scores, [scores[-1] + ease]])
    spare = np.arange(1, KNOTS - len(knots))
    return (
        np.concatenate([[knots[0] - 1], knots, knots[-1] + spare]),
        np.concatenate([[scores[0] - mean], scores, scores[-1] + mean * spare]),
    )


class Scaling(nn.Module):
    """Raw cells to prepared ones and back: buffers, and plain tensor operations that can be exported.

    Args:
        tensors: `center`, `scale`, `fill`, `low`, `high` (N,) float64 as in `Plan`; `curved` (Q,) int64, the cells
            that follow a curve; `knots` and `scores` (Q, 128) float64.
    """

    center: Tensor
    scale: Tensor
    fill: Tensor
    low: Tensor
    high: Tensor
    curved: Tensor
    knots: Tensor
    scores: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name in self.__annotations__:
            self.register_buffer(name, tensors[name])

    @classmethod
    def of(cls, plans: list[Plan]) -> Scaling:
        """The plans of all number columns, side by side."""
        tensors = {
            name: torch.from_numpy(np.concatenate([np.zeros(0), *(getattr(plan, name) for plan in plans)]))
            for name in CELLWISE
        }
        starts = np.cumsum([0, *(len(plan.center) for plan in plans)])
        curves = {
            start + cell: pair for start, plan in zip(starts, plans, strict=False) for cell, pair in plan.curves.items()
        }
        tensors["curved"] = torch.tensor(sorted(curves), dtype=torch.int64)
        for i, name in enumerate(("knots", "scores")):
            stacked = np.array([curves[cell][i] for cell in sorted(curves)]).reshape(-1, KNOTS)
            tensors[name] = torch.from_numpy(stacked)
        return cls(tensors)

    def forward(self, raw: Tensor) -> Tensor:
        """Prepared cells (B, N) float32 of raw ones (B, N) float64; where NaN, the training mean."""
        unit = (raw - self.center) / self.scale
        if len(self.curved):
            unit = unit.index_copy(1, self.curved, follow(unit[:, self.curved], self.knots, self.scores))
        return torch.where(torch.isnan(raw), self.fill, unit).clamp(-LIMIT, LIMIT).float()

    def write(self, raw: Floats, numbers: Cells) -> npt.NDArray[np.bool_] | None:
        """The prepared cells of `forward`, bit for bit, but in place and so in half the time.

        Args:
            raw: (B, N), overwritten.
            numbers: (B, N) float32, written.

        Returns:
            (B, N) which cells were missing; None where none was.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(raw, self.center.numpy(), out=raw)
            np.divide(raw, self.scale.numpy(), out=raw)
        if len(self.curved):
            unit, curved = torch.from_numpy(raw), self.curved
            unit.index_copy_(1, curved, follow(unit[:, curved], self.knots, self.scores))
        missing = np.isnan(raw)
        holes = bool(missing.any())
        if holes:
            np.copyto(raw, self.fill.numpy(), where=missing)
        np.clip(raw, -LIMIT, LIMIT, out=numbers, casting="unsafe")
        return missing if holes else None

    def inverse(self, numbers: Tensor) -> Tensor:
        """Raw cells (B, N) float64 of prepared ones (B, N)."""
        unit = numbers.double()
        if len(self.curved):
            unit = unit.index_copy(1, self.curved, follow(unit[:, self.curved], self.scores, self.knots))
        return unit * self.scale + self.center


def follow(values: Tensor, knots: Tensor, scores: Tensor) -> Tensor:
    """Piecewise linear maps, one for each column, that go on straight beyond their ends.

    Args:
        values: (B, Q).
        knots: (Q, 128) strictly increasing arguments.
        scores: (Q, 128) their images.
    """
    offset = torch.arange(len(knots), device=knots.device) * KNOTS
    at = offset.expand_as(values)
    for step in (64, 32, 16, 8, 4, 2, 1):  # a binary search in gathers, which exports where searchsorted does not
        at = torch.where(_pick(knots, at + step) <= values, at + step, at)
    at = torch.minimum(at, offset + (KNOTS - 2))
    x, y = _pick(knots, at), _pick(scores, at)
    return y + (values - x) * (_pick(scores, at + 1) - y) / (_pick(knots, at + 1) - x)


def _pick(table: Tensor, at: Tensor) -> Tensor:
    """Elements of a flattened table: by `index_select`, since plain indexing wakes every core for a few cells."""
    return table.reshape(-1).index_select(0, at.reshape(-1)).reshape(at.shape)
