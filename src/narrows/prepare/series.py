"""Series and sounds to raw cells and back: windows of one length, or whole series of any length.

    list or tensor -> (B, T, ch), NaN where missing or behind the end [-> spectra] -> cells of a grid, side cells

One center and scale for each channel keeps a series' shape; with `own` each row has its own, which are then side cells:
its mean and the logarithm of its spread in each channel. A ragged series has its length as first side cell, and is cut
there when it comes back. Padding costs memory: every row is as long as the longest series of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from narrows.errors import DataError
from narrows.prepare.arrow import Cells, Floats, Values, read_tensors, refuse_infinite, write_tensors
from narrows.prepare.arrow_types import Type, is_list
from narrows.prepare.moments import Moments
from narrows.prepare.ragged import Ragged, channels_of, number_of, read_lists, refuse_ragged, write_lists
from narrows.prepare.spectra import Spectra
from narrows.prepare.statistics import ColumnStatistics
from narrows.prepare.transforms import Plan, plan_numbers

LONGEST = 65_536  # steps of a ragged series: a row of more does not suit any network, and all rows are as long
PADDED_CELLS = 1 << 20  # sampled rows are padded a few at a time
USUAL_RATE = 8000  # samples per second of a sound whose source does not tell
FLAT = 1e-3  # least spread of a row, per median spread of training: what varies less is taken for constant


@dataclass(frozen=True)
class Series:
    """How the values of a series or sound lie in cells.

    Args:
        transform: one of the words of kind series or audio.
        steps: T, of each row; behind its end a ragged one is padded.
        channels: ch, numbers at each step.
        ragged: whether rows have lengths of their own.
        names: of the channels in the data, where known.
        floor: (ch,) least spread of a row, for `own`; empty otherwise.
        spectra: how sounds become spectra, where that is the transform.
        unit: what a spectrum takes for full loudness: that of the whole numbers of a sound file, or 1.
    """

    transform: str
    steps: int
    channels: int
    ragged: bool = False
    names: tuple[str, ...] = ()
    floor: tuple[float, ...] = ()
    spectra: Spectra | None = None
    unit: float = 1.0

    @property
    def grid(self) -> tuple[int, int]:
        """Positions of the cells, and cells of each: steps and channels, or frames and the bins of all channels."""
        if self.spectra is not None:
            return self.spectra.frames(self.steps), self.spectra.bins * self.channels
        return self.steps, self.channels

    @property
    def side(self) -> int:
        """Cells behind the grid."""
        return int(self.ragged) + 2 * self.channels * (self.transform == "own")

    def read(self, array: Values, column: str, first_row: int = 0) -> SeriesBlock:
        """A column as raw cells, made when rows are asked for.

        Raises:
            DataError: where values are infinite, or not series of as many channels.
        """
        if not self.ragged:
            values = read_tensors(array)
        elif pa.types.is_null(array.type):
            return SeriesBlock(self, missing_series(len(array), self.channels))
        elif not is_list(array.type) or channels_of(array.type) != self.channels:
            raise DataError(f"column {column!r} came as {array.type}", f"lists with {self.channels} numbers a step")
        else:
            ragged = read_lists(array)
            refuse_ragged(ragged, column, first_row)
            return SeriesBlock(self, ragged)
        refuse_infinite(values, column, first_row)
        return SeriesBlock(self, values)

    def cells(self, waves: Floats, lengths: Floats | None) -> Floats:
        """(B, width) raw cells of series (B, T, ch), NaN where missing, and of their lengths (B,)."""
        sides = [] if lengths is None else [lengths[:, None]]
        if self.transform == "own":
            mean, spread = self.scales(waves)
            waves = (waves - mean[:, None]) / spread[:, None]
            sides += [mean, np.log(spread)]
        if self.spectra is not None:
            waves = self._heard(self.spectra, waves, lengths)
        return np.concatenate([waves.reshape(len(waves), prod(self.grid)), *sides], axis=1)

    def _heard(self, spectra: Spectra, waves: Floats, lengths: Floats | None) -> Floats:
        """(B, frames, bins of all channels) spectra; NaN behind the end of a sound, and where it is missing."""
        heard = np.full((len(waves), *self.grid), np.nan)
        for rows, samples in self._spans(np.zeros(len(waves)) if lengths is None else lengths):
            sounds = waves[rows, :samples] / self.unit
            parts = [spectra.forward(sounds[:, :, channel]) for channel in range(self.channels)]
            heard[rows, : spectra.frames(samples)] = np.concatenate(parts, axis=2)
        heard[np.isnan(waves).all(axis=(1, 2))] = np.nan
        return heard

    def _sounding(self, spectra: Spectra, heard: Floats, lengths: npt.NDArray[np.int64]) -> Floats:
        """(B, T, ch) sounds that have these spectra, each up to its own length, and silence behind it."""
        sounds = np.zeros((len(heard), self.steps, self.channels))
        for rows, samples in self._spans(lengths):
            parts = np.split(heard[rows, : spectra.frames(samples)], self.channels, axis=2)
            for channel, part in enumerate(parts if samples else ()):
                sounds[rows, :samples, channel] = spectra.inverse(part, samples)
        return sounds * self.unit

    def _spans(self, lengths: Floats | npt.NDArray[np.int64]) -> Iterator[tuple[slice, int]]:
        """Rows that are worked on together, and their samples: all where they are of one length, else each for itself.

        Padded to the longest, spoken digits took five times the work.
        """
        if not self.ragged:
            yield from [(slice(None), self.steps)] if len(lengths) else []
            return
        for row, samples in enumerate(np.nan_to_num(lengths)):
            yield slice(row, row + 1), int(samples)

    def scales(self, waves: Floats) -> tuple[Floats, Floats]:
        """(B, ch) each row's own mean and spread in each channel; NaN where it has no values."""
        there = ~np.isnan(waves)
        count = there.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(there, waves, 0).sum(axis=1) / count
            gaps = np.where(there, waves - mean[:, None], 0)
            spread = np.sqrt((gaps * gaps).sum(axis=1) / count)
        return mean, np.maximum(spread, np.array(self.floor or 0.0))

    def waves(self, cells: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Series (B, T, ch) of raw cells (B, width), and their lengths (B,)."""
        grid, side = np.split(cells, [cells.shape[1] - self.side], axis=1)
        waves = grid.reshape(-1, *self.grid)
        lengths = side[:, 0] if self.ragged else np.full(len(cells), float(self.steps))
        whole = np.rint(np.clip(lengths, 0, self.steps)).astype(np.int64)
        if self.transform == "own":
            mean, spread = np.split(side[:, int(self.ragged) :, None].transpose(0, 2, 1), 2, axis=2)
            waves = waves * np.exp(np.clip(spread, -700, 700)) + mean
        if self.spectra is not None:
            waves = self._sounding(self.spectra, waves, whole)
        return waves, whole

    def write(self, cells: Floats, arrow: Type, shape: tuple[int, ...]) -> Values:
        """(B, width) raw cells as a column of tensors of a number type and shape, or of a list type."""
        with np.errstate(over="ignore", invalid="ignore"):
            waves, lengths = self.waves(cells)
        if self.ragged:
            return write_lists(waves, lengths, arrow)
        return write_tensors(waves.reshape(len(waves), self.steps * self.channels), arrow, shape)


class SeriesBlock:
    """The raw cells (B, width) of a column, padded and scaled only for the rows that are asked for.

    Args:
        series: how they are made.
        values: (B, T * ch) of series of one length, or the ragged ones.
    """

    def __init__(self, series: Series, values: Cells | Ragged) -> None:
        self.series, self.values = series, values
        self.shape = (len(values), prod(series.grid) + series.side)

    @property
    def cut(self) -> int:
        """Rows that are longer than the longest of training."""
        return int((self.values.lengths > self.series.steps).sum()) if isinstance(self.values, Ragged) else 0

    def __getitem__(self, rows: slice) -> Floats:
        """(b, width) of a slice of rows, NaN where missing."""
        return self.series.cells(*self.waves(rows))

    def waves(self, rows: slice) -> tuple[Floats, Floats | None]:
        """(b, T, ch) values of a slice of rows, NaN where missing; and the lengths (b,) of ragged ones."""
        values, series = self.values, self.series
        if not isinstance(values, Ragged):
            return np.asarray(values[rows], dtype=np.float64).reshape(-1, series.steps, series.channels), None
        start, stop, _ = rows.indices(len(values))
        lengths = np.minimum(values.lengths[start:stop], series.steps).astype(np.float64)
        if values.missing is not None:
            lengths[values.missing[start:stop]] = np.nan
        return values.padded(start, stop, series.steps), lengths

    def slices(self) -> Iterator[slice]:
        """All rows, a few at a time."""
        step = max(1, PADDED_CELLS // self.shape[1])
        return (slice(start, start + step) for start in range(0, self.shape[0], step))


def missing_series(rows: int, channels: int) -> Ragged:
    """Series of which none is there."""
    return Ragged(np.zeros((0, channels)), np.zeros(rows + 1, np.int64), np.ones(rows, np.bool_))


def with_floor(series: Series, sampled: SeriesBlock) -> Series:
    """The layout with the least spread that `own` divides a row by: a constant row has none of its own."""
    spreads = np.concatenate([series.scales(sampled.waves(rows)[0])[1] for rows in sampled.slices()])
    typical = [np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in spreads.T]
    return replace(series, floor=tuple(float(np.clip(FLAT * spread, 1e-300, 1e300)) for spread in typical))


def plan_series(series: Series, moments: Moments, lengths: Moments, sampled: SeriesBlock) -> Plan:
    """One center and scale for all steps of each channel, and one for each side cell.

    Args:
        series: how the cells lie.
        moments: of each channel over all steps.
        lengths: moments of the lengths.
        sampled: some rows, for what only whole rows show: their own means and spreads.
    """
    positions, channels = series.grid
    if series.transform in ("own", "spectra"):
        units = Moments.empty(sampled.shape[1])
        for rows in sampled.slices():
            units.update(sampled[rows])
        inner, side = units.split(positions * channels)
        grid = _plan(inner.pooled(channels), "none" if series.transform == "own" else "standardize")
        return grid.tiled(positions).beside(_plan(side, "standardize"))
    grid = ONE_SCALE[series.transform](moments) if series.transform in ONE_SCALE else _plan(moments, series.transform)
    plan = grid.tiled(positions)
    return plan.beside(_plan(lengths, "standardize")) if series.ragged else plan


def _plan_wave(channels: Moments) -> Plan:
    """One scale for all channels, and no center: silence is 0."""
    level = float(channels.pooled(1).deviation[0])
    zeros = np.zeros(len(channels.mean))
    return Plan.affine(channels, zeros, zeros + (level if 1e-150 < level < np.inf else 1.0))


def _plan_joint(channels: Moments) -> Plan:
    """One scale for all channels, those that move much and those that hardly do, and each one's own center."""
    level = float(np.sqrt(np.mean(channels.deviation**2)))
    return Plan.affine(channels, channels.mean, np.full(len(channels.mean), level if 1e-150 < level < np.inf else 1.0))


ONE_SCALE = {"wave": _plan_wave, "joint": _plan_joint}


def _plan(moments: Moments, transform: str) -> Plan:
    return plan_numbers(moments, np.zeros((0, len(moments.mean))), transform)


def series_of(name: str, column: ColumnStatistics, transform: str) -> Series:
    """The layout of a column with these statistics.

    Raises:
        DataError: where a series is too long to be one row.
    """
    names = column.hints.names
    if column.nature == "tensor":
        steps, channels = (*column.shape, 1)[:2]
        series = Series(transform, steps, channels, names=names)
    else:
        steps = int(np.nan_to_num(column.lengths.high[0]))
        if steps > LONGEST:
            got = f"column {name!r} has a series of {steps:,} steps"
            raise DataError(got, f"at most {LONGEST:,}: every row becomes as long as the longest", "window=")
        series = Series(transform, steps, len(column.moments.mean), ragged=True, names=names)
    if transform != "spectra":
        return series
    number = number_of(column.type) if series.ragged else column.type
    whole = number.bit_width if pa.types.is_integer(number) else 1
    return replace(series, spectra=Spectra.of_rate(column.hints.rate or USUAL_RATE), unit=2.0 ** (whole - 1))
