"""Scores of windows to scores of the steps they are cut from: the mean over all windows that cover a step.

    window 0     a a a a
    window 1       b b b b        ->   step 0: a, step 1: (a + b) / 2, step 2: (a + b + c) / 3, ...
    window 2         c c c c           each given out once no later window can cover it

The mean of whole windows' scores, not of each step's own errors: on NAB, MSL and UCR that told anomalies better by far
(see `benchmarks/series_anomalies.py`), as a step is odd for what stands around it. The price is that an odd step lifts
all steps within a window of it. What this file does not know: how windows are scored, and the rows at the end of a
series that fill no window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataError, SettingError
from narrows.schema import Column
from narrows.sources.reading import Reading


@dataclass(frozen=True)
class Steps:
    """Some steps of a series that follow each other.

    Args:
        series: its name; None where there is but one.
        first: the first of them, counted from 0.
        values: (k, D) float64, k > 0; NaN where no window covers a step.
    """

    series: Any
    first: int
    values: Tensor


class Points:
    """The windows of one series, in the order of time, to means over steps; holds the steps that are still open.

    Sums run in the order of windows, so that how many come at a time changes no bit of a mean.

    Args:
        length: T, steps of a window.
        stride: steps from one window's start to the next's.

    Attributes:
        step: the first that is open.

    Raises:
        SettingError: for a length or stride below 1.
    """

    step: int

    def __init__(self, length: int, stride: int) -> None:
        for name, value in (("window", length), ("stride", stride)):
            if value < 1:
                raise SettingError(f"{name}={value}", "a whole number above 0")
        self.length, self.stride = length, stride
        self._begin()

    @property
    def next(self) -> int:
        """The step that the next window begins with."""
        return self.step + self._start

    def _begin(self) -> None:
        self.step = 0
        self._start = 0  # of the next window, steps from the first that is open
        self._sums = torch.zeros(0, 0, dtype=torch.float64)  # of open steps; the last column counts windows

    def feed(self, values: Tensor) -> Tensor:
        """Take the next windows, and give out the steps that no later one covers.

        Args:
            values: (b, D) of windows, alike for all of their steps; or (b, T, D), of each step its own.

        Returns:
            (k, D) float64 means of steps `step` on, as that was before the call; NaN where no window covers a step.
        """
        count = len(values)
        if not count:
            return values.new_zeros(0, values.shape[-1], dtype=torch.float64)
        values = torch.cat([values.double(), torch.ones(*values.shape[:-1], 1, dtype=torch.float64)], dim=-1)
        reach = self._start + (count - 1) * self.stride + self.length
        sums = torch.zeros(reach, values.shape[-1], dtype=torch.float64)
        if len(self._sums):
            sums[: len(self._sums)] = self._sums
        self._add(sums[self._start :], values)
        self._start += count * self.stride
        return self._give(sums, min(self._start, reach))

    def _add(self, sums: Tensor, values: Tensor) -> None:
        """Add windows to the sums of steps, the loop over the fewer: windows, or places in a window."""
        if len(values) < self.length:
            for window, value in enumerate(values):
                sums[window * self.stride :][: self.length] += value
            return
        span = (len(values) - 1) * self.stride + 1
        for place in reversed(range(self.length)):  # of the windows that cover a step, the last begins latest
            sums[place : place + span : self.stride] += values if values.ndim == 2 else values[:, place]

    def _give(self, sums: Tensor, steps: int) -> Tensor:
        """The first steps, which are no longer held."""
        self._sums, self.step, self._start = sums[steps:].clone(), self.step + steps, self._start - steps
        return sums[:steps, :-1] / sums[:steps, -1:]

    def finish(self) -> Tensor:
        """(k, D) the steps still open, as no window follows; the next one begins another series."""
        left = self._give(self._sums, len(self._sums))
        self._begin()
        return left

    def state(self) -> dict[str, Tensor]:
        """What is open: `restore`, on an object of the same settings, goes on from there."""
        return {"places": torch.tensor([self.step, self._start]), "sums": self._sums}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state` was taken.

        Raises:
            DataError: for what is no state of windows of this length.
        """
        places, sums = state["places"], state["sums"]
        if places.shape != (2,) or int(places.min()) < 0 or sums.ndim != 2 or len(sums) >= self.length:
            raise DataError("a state of other windows", f"one of windows of {self.length} steps")
        (self.step, self._start), self._sums = places.tolist(), sums.clone()


def by_channel(column: Column, cells: Tensor, remainder: Tensor) -> Tensor:
    """(b, channels + 1) what each channel, and last of all the remainder, adds to the scores of windows.

    Args:
        column: the series that windows are rows of, whose cells are all there are.
        cells: (b, C) what each cell adds; those beside the grid, such as a window's own scale, go to the remainder.
        remainder: (b,) what is no cell's.

    Raises:
        DataError: for a column without steps and channels.
    """
    if column.kind not in ("series", "audio") or len(column.grid) != 2:
        raise DataError(f"column {column.name!r} of kind {column.kind}", "a series", "a model of windows")
    grid, side = cells.tensor_split([column.cells - column.side], dim=1)
    channels = grid.reshape(len(cells), *column.grid).sum(1)
    return torch.cat([channels, (remainder + side.sum(1))[:, None]], dim=1)


def over_steps(windows: Iterable[tuple[pa.RecordBatch, Tensor]], reading: Reading) -> Iterator[Steps]:
    """The steps of each series in turn, of windows as `sources.windows` cuts them.

    Args:
        windows: rows of such a source, all of them and in order, and (b, D) or (b, T, D) values of each.
        reading: how they were cut.

    Raises:
        SettingError: where rows are no windows.
        DataError: where windows are missing or out of order.
    """
    if reading.window is None:
        raise SettingError("rows that are no windows", "a model of windows", "window=")
    return (
        steps
        for steps in _steps(windows, Points(reading.window, reading.stride or reading.window))
        if len(steps.values)
    )


def _steps(windows: Iterable[tuple[pa.RecordBatch, Tensor]], points: Points) -> Iterator[Steps]:
    name = None
    for rows, values in windows:
        starts = rows.column("start").to_numpy()
        begins = np.flatnonzero(starts == 0).tolist()
        for first, last in pairwise(sorted({0, *begins, len(starts)})):
            if starts[first] == 0:
                yield Steps(name, points.step, points.finish())
                name = rows.column("series")[first].as_py() if "series" in rows.schema.names else None
            if starts[first] != points.next or (np.diff(starts[first:last]) != points.stride).any():
                got = f"a window from step {starts[first]} on"
                raise DataError(got, f"that from step {points.next} on", "all windows, in the order of the source")
            yield Steps(name, points.step, points.feed(values[first:last]))
    yield Steps(name, points.step, points.finish())
