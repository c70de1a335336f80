"""What a terminal says of many verdicts: how many anomalies, above which score, and the worst rows with their why.

One pass, in the memory of a few rows. What it does not know: the verdicts on rows that were not among the worst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from narrows.schema import Batch
from narrows.sources.reading import asides
from narrows.sources.source import Source
from narrows.tasks.figures import figure, texts
from narrows.tasks.verdicts import Verdicts, in_steps
from narrows.tasks.why import Why

if TYPE_CHECKING:
    from rich.table import Table

WORST = 5  # rows shown


class Digest:
    """What was said of rows.

    Args:
        verdicts: that are given on them.

    Attributes:
        rows: judged so far.
        anomalies: among them.
        worst: the rows of the highest scores, worst first: `row` (its place, from 0), what stands aside of it (its
            path, a label), `score`, `p_value`, `anomaly` and `why`.
    """

    def __init__(self, verdicts: Verdicts) -> None:
        self.verdicts, self._why = verdicts, Why(verdicts.detector)
        self.rows = self.anomalies = 0
        self.worst: list[dict[str, Any]] = []

    def of(self, source: Source) -> Iterator[tuple[pa.RecordBatch, Batch, pa.RecordBatch]]:
        """Rows, raw and prepared, and the verdicts on them, once note was taken of these."""
        for raw, batch in in_steps(self.verdicts.model, source):
            said = self.verdicts.of(raw, batch)
            self._add(raw, batch, said)
            yield raw, batch, said

    def _add(self, raw: pa.RecordBatch, batch: Batch, said: pa.RecordBatch) -> None:
        scores = said.column("score").to_numpy()
        top = np.argsort(-scores, kind="stable")[:WORST]
        if len(self.worst) == WORST:
            top = top[scores[top] > self.worst[-1]["score"]]
        if len(top):
            chosen = pa.concat_batches([raw.slice(place, 1) for place in top])  # not all types can be taken
            found = self._rows(chosen, batch[torch.from_numpy(top)], said.take(pa.array(top)), top)
            self.worst = sorted(self.worst + found, key=lambda row: -row["score"])[:WORST]
        self.rows += len(scores)
        self.anomalies += said.column("anomaly").true_count

    def _rows(
        self, raw: pa.RecordBatch, batch: Batch, said: pa.RecordBatch, places: NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """What is kept of some rows at these places of those judged now."""
        known = pa.RecordBatch.from_pydict({e.name: texts(raw.column(e.name)) for e in asides(raw.schema)}).to_pylist()
        told = said.select(["score", "p_value", "anomaly"]).to_pylist()
        words = self._why.words(raw, batch)
        rows = zip((self.rows + places).tolist(), known or [{}] * len(told), told, words, strict=True)
        return [{"row": row, **names, **facts, "why": why} for row, names, facts, why in rows]

    def __str__(self) -> str:
        share = f" ({self.anomalies / self.rows:.1%})" if self.rows else ""
        verb = "is an anomaly" if self.anomalies == 1 else "are anomalies"
        counted = (
            f"{self.anomalies:,} of {self.rows:,} rows {verb}{share}: scores above {figure(self.verdicts.threshold)}"
        )
        return f"{counted}, {self._threshold()}. {self._calibration()}"

    def _threshold(self) -> str:
        """Where the threshold comes from."""
        facts, alarms = self.verdicts.detector.facts, self.verdicts.alarms
        if alarms is not None:
            return f"which at most {alarms:.3g} of normal rows reach"
        if facts["contamination"] == "auto":
            return f"which the scores of {facts['calibrated']} suggest"
        return f"which {facts['contamination']:.3g} of the training rows reach"

    def _calibration(self) -> str:
        """What p-values rest on, and what the guard found."""
        detector = self.verdicts.detector
        count, facts = len(detector.calibration.scores), detector.facts
        said = f"p-values by {count:,} {facts['calibrated']}"
        said += "" if facts["calibrated"] == "held-out rows" else ", which are smaller than those of new rows"
        return f"{said}; {facts['why']}, so scores go without it" if facts["why"] else said

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        facts = self.verdicts.detector.facts
        counts = {"rows": self.rows, "anomalies": self.anomalies, "threshold": self.verdicts.threshold}
        named = {name: facts[name] for name in ("contamination", "calibrated", "network")}
        held = {"calibration_rows": len(self.verdicts.detector.calibration.scores), "alarms": self.verdicts.alarms}
        return {**counts, **named, **held, "worst": self.worst}

    def table(self) -> Table:
        """The worst rows, for a terminal."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title="highest scores", title_justify="left")
        names = [name for name in self.worst[0] if name != "anomaly"] if self.worst else []
        for name in names:
            table.add_column(name.replace("_", "-"), justify="right" if name in ("row", "score", "p_value") else "left")
        for row in self.worst:
            style = "bold" if row["anomaly"] else ""
            table.add_row(*(Text(_cell(row[name])) for name in names), style=style)
        return table


def _cell(value: Any) -> str:
    return figure(value) if isinstance(value, float) else str(value)
