"""Verdicts on the steps of series: of a whole source, and of steps that arrive one by one.

    windows -> blame -> by channel -> mean over the windows that cover a step -> score, anomaly, blame of each channel

What this file does not know: how windows are scored, and how means are kept (see `points` and `follow`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from narrows.schema import Batch
from narrows.sources.source import Source
from narrows.tasks.follow import Follower, Heard, windowed
from narrows.tasks.points import Steps, by_channel, over_steps
from narrows.tasks.verdicts import Verdicts, in_steps

REMAINDER = "remainder"


class StepVerdicts:
    """A model's verdicts on steps.

    Args:
        verdicts: on windows; their threshold is that of steps.

    Raises:
        SettingError: for a model whose rows are no windows of a series.
    """

    def __init__(self, verdicts: Verdicts) -> None:
        self.verdicts, self._column = verdicts, windowed(verdicts.model.preparer)
        self.follower = Follower(verdicts.model.preparer, self._blame)
        width = self._column.grid[1]
        self.channels = self.follower.channels or [str(place) for place in range(width)]

    @property
    def schema(self) -> pa.Schema:
        """Of the verdicts on a source: `series` (its name, where there are several), `step`, `score`, `anomaly`, and
        what each channel and the remainder add to the score.
        """
        blamed = [pa.field(f"blame.{name}", pa.float64()) for name in self.channels]
        told = [("series", pa.string()), ("step", pa.int64()), ("score", pa.float64()), ("anomaly", pa.bool_())]
        return pa.schema([*told, *blamed, (REMAINDER, pa.float64())])

    def on(self, source: Source) -> Iterator[pa.RecordBatch]:
        """The verdicts on all steps that a window covers, in order.

        Raises:
            SettingError: for a source that is not cut into windows.
            DataError: for windows that are missing or out of order.
        """
        windows = ((raw, self._adds(batch)) for raw, batch in in_steps(self.verdicts.model, source))
        for steps in over_steps(windows, source.reading):
            yield self._said(steps)

    def _said(self, steps: Steps) -> pa.RecordBatch:
        scores, count = steps.values.sum(1), len(steps.values)
        columns = [scores, scores > self.verdicts.threshold, *steps.values.T]
        arrays = [pa.array(column.numpy()) for column in columns]
        names = pa.array([None if steps.series is None else str(steps.series)] * count, pa.string())
        places = pa.array(range(steps.first, steps.first + count), pa.int64())
        return pa.RecordBatch.from_arrays([names, places, *arrays], schema=self.schema)

    def heard(self, heard: Heard) -> dict[str, Any]:
        """What is known of a step that has just arrived, in plain JSON.

        `score`, `p_value` and `anomaly` are of the window that ends with it, None before one is full; `blame` says
        which channel added what; `settled` lists the steps whose mean over windows is known by now, with it.
        """
        said: dict[str, Any] = {"step": heard.step, "score": heard.score, "p_value": None, "anomaly": None}
        if heard.series is not None:
            said["series"] = heard.series
        if heard.adds is not None:
            score = heard.adds.sum().reshape(1)
            said["p_value"] = float(self.verdicts.detector.calibration.p_values(score))
            said["anomaly"] = bool(score > self.verdicts.threshold)
            said["blame"] = dict(zip([*self.channels, REMAINDER], heard.adds.tolist(), strict=True))
        said["settled"] = [pair for steps in heard.settled for pair in means(steps)]
        return said

    def _blame(self, batch: Batch) -> tuple[Tensor, Tensor]:
        blame = self.verdicts.detector.blame(batch)
        return blame.cells, blame.remainder

    def _adds(self, batch: Batch) -> Tensor:
        cells, remainder = self._blame(batch)
        return by_channel(self._column, cells, remainder)


def means(steps: Steps) -> list[dict[str, Any]]:
    """Steps with their mean over windows, in plain JSON."""
    named = {} if steps.series is None else {"series": steps.series}
    scores = torch.nan_to_num(steps.values.sum(1)).tolist()
    return [{**named, "step": steps.first + place, "score": score} for place, score in enumerate(scores)]
