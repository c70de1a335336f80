"""Steps of series as they arrive to scores as they arrive: what `tail -f` is to a file, this is to `detect`.

    step -> the window that ends with it -> its score at once
                                         -> T - 1 steps later the mean over all windows that cover it (see `points`)

Of each series the last T - 1 steps and the sums of its open ones are held, nothing else, and both can be put into a
small file: a run that was stopped and goes on gives the scores of one that never was. The price of a score at once is
one pass of the model for each step. What this file does not know: how windows are scored, and where lines come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from narrows import tensorfile
from narrows.errors import DataError, ModelFileError, SettingError
from narrows.prepare.arrow import write_tensors
from narrows.prepare.preparer import Preparer
from narrows.schema import Batch, Column
from narrows.sources.reading import CHANNELS, fact
from narrows.tasks.points import Points, Steps, by_channel

KIND = "follow"
SERIES = 1_024  # held at once; beyond, the one that was silent longest is taken to have ended
Scoring = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Heard:
    """What is known by a step that has just arrived.

    Args:
        series: that it belongs to.
        step: which it is, from 0.
        adds: (channels + 1,) what each channel, and last a remainder, adds to the score of the window that ends with
            it; None while a window is not full.
        settled: steps whose mean over windows is known by now, in the same units; none, one, or the last ones of a
            series that has ended.
    """

    series: Any
    step: int
    adds: Tensor | None
    settled: list[Steps]

    @property
    def score(self) -> float | None:
        """Of the window that ends with the step."""
        return None if self.adds is None else float(self.adds.sum())


@dataclass
class _Tail:
    """What is held of a series: steps so far, the last of them (T - 1, ch), and sums of those that are open."""

    steps: int
    last: NDArray[np.float64]
    points: Points


class Follower:
    """Scores steps of one series or several, one at a time.

    Args:
        preparer: of a model whose rows are windows of a series.
        score: of windows, what each cell adds (B, C) and what is no cell's (B,).

    Attributes:
        channels: names of the numbers of a step, where the training data had some.

    Raises:
        SettingError: where the model's rows are something else.
    """

    def __init__(self, preparer: Preparer, score: Scoring) -> None:
        self._column, self._preparer, self._score = windowed(preparer), preparer, score
        self._length, self._width = self._column.grid
        self._tails: dict[Any, _Tail] = {}
        self.channels: list[str] = json.loads(fact(preparer.arrow_schema.field(0), CHANNELS) or "[]")

    def hear(self, values: NDArray[np.float64], series: Any = None) -> Heard:
        """Take the next step of a series.

        Args:
            values: (channels,) numbers, NaN where missing.
            series: which one; a new one begins here.

        Raises:
            DataError: for values of another shape, or infinite.
        """
        if values.shape != (self._width,):
            raise DataError(f"a step of shape {values.shape}", f"{self._width} numbers, the channels of training")
        settled = self._forget(series)
        tail = self._tails.pop(series, None) or self._begun()
        self._tails[series] = tail  # last of all: dicts keep the order in which series were heard
        window = np.concatenate([tail.last, values[None]])
        tail.last = window[max(0, len(window) - self._length + 1) :]
        tail.steps += 1
        if len(window) < self._length:
            return Heard(series, tail.steps - 1, None, settled)
        adds = self._adds(window, tail.steps - 1)
        first = tail.points.step
        settled.append(Steps(series, first, tail.points.feed(adds)))
        return Heard(series, tail.steps - 1, adds[0], settled)

    def finish(self) -> Iterator[Steps]:
        """The steps still open of every series, as none of them goes on."""
        while self._tails:
            yield from self._ended(next(iter(self._tails)))

    def _adds(self, window: NDArray[np.float64], step: int) -> Tensor:
        """(1, channels + 1) of a window (T, channels) that ends with a step."""
        value = self._preparer.arrow_schema.field(0).type.value_type
        exact = value if pa.types.is_floating(value) else pa.float64()  # whole numbers know nothing that is missing
        x = write_tensors(window.reshape(1, -1), exact, self._column.shape)
        rows = pa.RecordBatch.from_arrays([x], names=[self._column.name])
        cells, remainder = self._score(self._preparer.prepare(rows, step))
        return by_channel(self._column, cells.double(), remainder.double())

    def _begun(self) -> _Tail:
        return _Tail(0, np.zeros((0, self._width)), Points(self._length, 1))

    def _forget(self, coming: Any) -> list[Steps]:
        """Make room for a series."""
        full = len(self._tails) >= SERIES and coming not in self._tails
        return self._ended(next(iter(self._tails))) if full else []

    def _ended(self, series: Any) -> list[Steps]:
        points = self._tails.pop(series).points
        left = Steps(series, points.step, points.finish())
        return [left] if len(left.values) else []

    def save(self, path: str | Path) -> None:
        """Write what is held to a small file, atomically.

        Raises:
            NarrowsError: when the file cannot be written; nothing is left behind.
        """
        tensors: dict[str, Tensor] = {}
        for place, tail in enumerate(self._tails.values()):
            held = {"last": torch.from_numpy(tail.last), **tail.points.state()}
            tensors |= {f"{place}.{name}": tensor for name, tensor in held.items()}
        steps = [tail.steps for tail in self._tails.values()]
        tensorfile.write(path, KIND, {**self._about(), "series": list(self._tails), "steps": steps}, tensors)

    def restore(self, path: str | Path) -> None:
        """Go on where `save` was called.

        Raises:
            ModelFileError: for a file that is missing, damaged, or of windows of another model.
        """
        facts, tensors = tensorfile.read(path, KIND)
        about = {name: facts.get(name) for name in self._about()}
        if about != self._about():
            raise ModelFileError(f"{path} follows windows of {about}", f"windows of {self._about()}", "the same model")
        try:
            known = enumerate(zip(facts["series"], facts["steps"], strict=True))
            tails = {name: self._read(int(steps), tensorfile.under(f"{at}.", tensors)) for at, (name, steps) in known}
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: {error}", "what following a stream leaves behind") from None
        self._tails = tails

    def _about(self) -> dict[str, Any]:
        return {"window": self._length, "width": self._width, "channels": self.channels}

    def _read(self, steps: int, tensors: dict[str, Tensor]) -> _Tail:
        tail, last = self._begun(), tensors["last"]
        if last.dtype != torch.float64 or last.shape != (min(steps, self._length - 1), self._width):
            raise ValueError(f"steps of shape {tuple(last.shape)}")
        tail.points.restore(tensors)
        tail.steps, tail.last = steps, last.numpy()
        return tail


def windowed(preparer: Preparer) -> Column:
    """The column of windows that is all a model's rows hold.

    Raises:
        SettingError: where they hold something else.
    """
    columns = list(preparer.schema)
    column = columns[0]
    series = column.kind == "series" and bool(column.shape) and column.grid[:1] == column.shape[:1]
    if len(columns) > 1 or not series:
        got = f"rows of {', '.join(f'{c.name!r} ({c.kind})' for c in columns[:4])}"
        raise SettingError(got, "windows of a series", "a model that was fitted with window=")
    return column
