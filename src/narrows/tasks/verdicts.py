"""Rows to verdicts: a score, a p-value, anomaly or not, and why; some rows at a time, however many there are.

    rows -> batches of a few thousand -> scores -> p-values by rows held out, anomalies by the threshold
                                                -> blame, expected and ordinary rows (see `tasks.why`)

What this file does not know: how scores are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isinf
from typing import Any

import numpy as np
import pyarrow as pa

from narrows.errors import SettingError
from narrows.fitted import Model
from narrows.schema import Batch
from narrows.sources.source import Source
from narrows.tasks.detect import Detector
from narrows.tasks.features import at_once, in_blocks
from narrows.tasks.why import Why

ROWS = 8_192  # judged at once
FIELDS = [("score", pa.float64()), ("p_value", pa.float64()), ("anomaly", pa.bool_())]


def detect(model: Model, rows: Any, *, explain: bool = False, alarms: float | None = None) -> pa.Table:
    """Verdicts on rows, one for each, in order.

    Args:
        model: that was fitted to detect (`narrows fit --for detect`, `AnomalyDetector`).
        rows: anything `open_source` takes.
        explain: say why (see `narrows.tasks.why.Why`).
        alarms: share of normal rows that may be called anomalies at most; None takes the model's own threshold.

    Returns:
        `score`, higher for what is less normal; `p_value`, the share of rows held out from training that score as high;
        `anomaly`, whether the score is above the threshold; and what explains it.

    Raises:
        SettingError: for a model that was not fitted to detect, or alarms that it cannot promise.
        DataError: for rows that do not fit the model.
    """
    verdicts = Verdicts(model, explain=explain, alarms=alarms)
    return pa.Table.from_batches([said for _, said in verdicts.on(model.source(rows))], verdicts.schema)


class Verdicts:
    """A model's verdicts; arguments and errors as those of `detect`.

    Attributes:
        detector: who gives them.
        alarms: as given.
        threshold: above which a row is an anomaly.
        schema: of the verdicts.
    """

    def __init__(self, model: Model, *, explain: bool = False, alarms: float | None = None) -> None:
        self.model, self.detector, self.alarms = model, Detector.of(model), alarms
        self.threshold = self.detector.threshold if alarms is None else promised(self.detector, alarms)
        self._why = Why(self.detector) if explain else None
        self.schema = pa.schema([*FIELDS, *(self._why.schema if self._why else [])])

    def on(self, source: Source) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Raw rows and the verdicts on them."""
        for raw, batch in in_steps(self.model, source):
            yield raw, self.of(raw, batch)

    def of(self, raw: pa.RecordBatch, batch: Batch) -> pa.RecordBatch:
        """The verdicts on some rows, raw and prepared."""
        blame = self.detector.blame(batch) if self._why else None
        scores = self.detector.scores(batch) if blame is None else blame.scores
        said = [scores, self.detector.calibration.p_values(scores), scores > self.threshold]
        columns = [pa.array(values.numpy()) for values in said]
        columns += self._why.columns(raw, batch, blame) if self._why and blame else []
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def in_steps(model: Model, source: Source) -> Iterator[tuple[pa.RecordBatch, Batch]]:
    """Raw and prepared rows, in order, so few at a time that all that is said of them fits into memory."""
    step = at_once(model.schema, ROWS)
    for raw, batch in model.batches(source):
        for start in range(0, len(batch), step):
            yield raw.slice(start, step), batch[start : start + step]


def scores_of(detector: Detector, rows: Any) -> np.ndarray:
    """(n,) float64 scores of rows, which are anything `open_source` takes; higher for what is less normal."""
    model = detector.model
    batches = in_blocks((batch for _, batch in model.batches(rows)), model.schema, ROWS)
    return np.concatenate([np.zeros(0), *(detector.scores(batch).numpy() for batch in batches)])


def promised(detector: Detector, alarms: float) -> float:
    """The threshold above which at most this share of normal rows lies.

    Raises:
        SettingError: where too few rows were held out from training to promise it.
    """
    held = len(detector.calibration.scores) if detector.facts["calibrated"] == "held-out rows" else 0
    threshold = detector.calibration.threshold(alarms)
    if not held or isinf(threshold):
        got = f"false alarms of {alarms:g}, promised by {held} rows held out from training"
        least = f"at least {1 / (held + 1):.2g} of so many rows" if held else "some rows held out"
        raise SettingError(got, least, "a fit on more rows, with a larger --validation share or more rows named there")
    return threshold
