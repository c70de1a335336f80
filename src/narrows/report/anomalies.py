"""The section of anomalies: how scores lie about the threshold, and the oddest rows with the cells to blame.

    rows -> verdicts -> how many, by what threshold | a histogram beside rows held out | the oddest rows, explained

One pass, in the memory of some scores and a few rows. Left out for a model that was not fitted to detect. What it does
not know: how scores are made, and shared among cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from markupsafe import Markup
from torch import Tensor

from narrows.fitted import Model
from narrows.report.cells import drawing, pixels_of, steps_of
from narrows.report.charts import Floats, histogram, overlay
from narrows.report.pixels import data_uri
from narrows.schema import Batch, Column
from narrows.sources.source import Source
from narrows.tasks.denoise import with_holes
from narrows.tasks.detect import PART, Detector
from narrows.tasks.digest import Digest
from narrows.tasks.figures import figure
from narrows.tasks.heat import hottest, on_grid, pictured, pictures
from narrows.tasks.keep import Keep
from narrows.tasks.verdicts import Verdicts
from narrows.tasks.why import WHOLE, Suspect, restored, suspects_of, values_of

SCORES = 50_000  # that a histogram is drawn of, evenly drawn where there are more
BARS = 40  # of a histogram, about
FAR = 2.0  # times the way from the least score to the threshold, beyond which scores share the last bar
NAMED, CHARTS, CHANNELS = 4, 2, 3  # suspects of a row, its columns drawn as lines, and channels of each
LEAST = 0.05  # that a suspect must add to be named
JUDGES = {
    "distance": "its distance to a few rows drawn at random",
    "neighbors": "its distance to the nearest rows of training",
    "telling": "how badly the network tells its cells",
    "rarity": "how rare its values are, column by column",
    "covariance": "how it moves against the ways in which columns move together",
    "code": "how far its code is from those of other rows",
}


@dataclass(frozen=True)
class Named:
    """A suspect of a row: what it adds to the score, what stands there, what was expected, what an ordinary row has."""

    name: str
    adds: str
    share: float
    value: str = ""
    expected: str = ""
    ordinary: str = ""


@dataclass(frozen=True)
class Odd:
    """One of the oddest rows."""

    index: int
    score: str
    p_value: str
    anomaly: bool
    suspects: list[Named]
    pictures: list[tuple[str, str]]
    charts: list[Markup]


@dataclass(frozen=True)
class Anomalies:
    """The section.

    Args:
        digest: how many anomalies, by what threshold, calibrated by what.
        judges: what a score is made of.
        chart: of the scores, those of rows held out as an outline.
        beyond: how many scores stand in the last bar for being far out; empty for none.
        rows: the oddest, oddest first.
        ordinary: whether the nearest ordinary rows are shown.
    """

    digest: str
    judges: str
    chart: Markup
    beyond: str
    rows: list[Odd]
    ordinary: bool

    @property
    def drawn(self) -> bool:
        """Whether some rows are drawn as lines."""
        return any(row.charts for row in self.rows)


def anomalies(model: Model, source: Source, worst: int) -> Anomalies | None:
    """The section; None for a model that was not fitted to detect.

    Args:
        model: a fitted model.
        source: of the rows.
        worst: rows to show.
    """
    if PART not in model.parts:
        return None
    digest = Digest(Verdicts(model))
    some, oddest, draws = Keep(SCORES), _Oddest(worst), torch.Generator().manual_seed(0)
    for raw, batch, said in digest.of(source):
        scores = torch.tensor(said.column("score").to_numpy())
        some.offer(torch.rand(len(scores), generator=draws, dtype=torch.float64), {"score": scores})
        oddest.offer(raw, batch, scores, digest.rows - len(scores))
    detector = digest.verdicts.detector
    chart, beyond = score_chart(some.rows["score"].numpy(), detector.calibration.scores.numpy(), detector.threshold)
    rows, ordinary = oddest.explained(detector), detector.known is not None
    return Anomalies(str(digest), told_by(detector), chart, beyond, rows, ordinary)


def told_by(detector: Detector) -> str:
    """What a score is made of, and how well the network that is asked tells rows."""
    weights = detector.weights.tolist()
    parts = [f"{JUDGES[judge.name]} ({weight:g})" for judge, weight in zip(detector.judges, weights, strict=True)]
    said = f"The score of a row weighs {', '.join(parts[:-1])}{' and ' if parts[:-1] else ''}{parts[-1]}."
    errors = detector.facts["errors"]
    if all(judge.name != "telling" for judge in detector.judges):
        return said
    others = [("columns", "the mean of each column"), ("untrained", "the untrained network")]
    compared = " and ".join(f"{words} with {figure(errors[name])}" for name, words in others if name in errors)
    return f"{said} The network tells ordinary rows with an error of {figure(errors['trained'])}, {compared}."


def score_chart(scores: Floats, held: Floats, threshold: float) -> tuple[Markup, str]:
    """Shares of scores (n,) in bars, those above the threshold in another color, under an outline of rows held out.

    Returns:
        The chart, and what lies beyond its right end, in words.
    """
    every = np.concatenate([scores, held])
    down = max(threshold - every.min(), np.median(every) - threshold, 1e-6 * max(1.0, abs(threshold)))
    up = min(max(every.max() - threshold, 0.0), FAR * down)
    width = (down + up) / BARS
    below, above = (max(1, int(np.ceil(way / width - 1e-9))) for way in (down, up))
    edges = threshold + width * np.arange(-below, above + 1)
    shares = [np.histogram(values.clip(edges[0], edges[-1]), edges)[0] / len(values) for values in (scores, held)]
    chart = histogram(edges, shares[0], shares[1], threshold, ("score", "share of rows"))
    far = float((scores > edges[-1]).mean())
    return chart, f"The last bar holds {far:.2%} of the rows that score up to {figure(scores.max())}." if far else ""


class _Oddest:
    """The rows of the highest scores, raw and prepared, highest first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: list[tuple[float, int, pa.RecordBatch, Batch]] = []

    def offer(self, raw: pa.RecordBatch, batch: Batch, scores: Tensor, first: int) -> None:
        """Rows that stand for keeping, the first of them at this place of the data."""
        top = scores.argsort(descending=True, stable=True)[: self.size].tolist()
        near = [(float(scores[at]), first + at, raw.slice(at, 1), batch[torch.tensor([at])]) for at in top]
        self.kept = sorted(self.kept + near, key=lambda row: -row[0])[: self.size]

    def explained(self, detector: Detector) -> list[Odd]:
        """All of them, with their suspects and drawings."""
        scores, places, raws, rows = zip(*self.kept, strict=True)
        case = _Case(detector, pa.concat_batches(raws), Batch.concat([*rows]))
        p_values = detector.calibration.p_values(torch.tensor(scores, dtype=torch.float64)).tolist()
        return [
            Odd(index, figure(score), figure(p), score > detector.threshold, *case.drawn(at))
            for at, (index, score, p) in enumerate(zip(places, scores, p_values, strict=True))
        ]


class _Case:
    """Some rows with all that explains them.

    Args:
        detector: that scored them.
        raw: as they came.
        rows: prepared.
    """

    def __init__(self, detector: Detector, raw: pa.RecordBatch, rows: Batch) -> None:
        model, dense = detector.model, rows.dense()
        blame, (numbers, codes), normal = detector.blame(rows), detector.expected(rows), detector.normal(rows)
        self.schema, self.raw, self.rows, self.expected_numbers, self.blame = model.schema, raw, dense, numbers, blame
        self.given, self.expected = restored(model, dense), model.preparer.restore(numbers, codes)
        self.ordinary = None if normal is None else with_holes(model, restored(model, normal), normal)
        self.suspects = [*suspects_of(model)]
        added = [blame.cells[:, suspect.cells].sum(1) for suspect in self.suspects]
        self.added = torch.stack([*added, blame.remainder], dim=1)
        self.picture = pictured(model)
        if self.picture is not None:
            self.heated = pictures(detector, self.picture, rows).column(0).to_numpy_ndarray() / 255

    def drawn(self, row: int) -> tuple[list[Named], list[tuple[str, str]], list[Markup]]:
        """A row's suspects, pictures and charts."""
        lines = [column for column in self.schema if drawing(column) == "lines"][:CHARTS]
        return [*self._named(row)], self._pictures(row), [chart for each in lines for chart in self._charts(each, row)]

    def _named(self, row: int) -> Iterator[Named]:
        """The suspects that add most; the remainder is one of them."""
        most = self.added[row].topk(min(NAMED, self.added.shape[1]))
        for adds, place in zip(most.values.tolist(), most.indices.tolist(), strict=True):
            if adds < LEAST:
                return
            name, *values = [WHOLE] if place == len(self.suspects) else self._values(self.suspects[place], row)
            yield Named(name, figure(adds), 100 * adds / float(most.values[0]), *values)

    def _values(self, suspect: Suspect, row: int) -> list[str]:
        """A suspect's name, and as far as they can be said its value, the expected one, and an ordinary row's."""
        column = suspect.column
        if column.grid:
            return [suspect.name, *hottest(column, self.blame.cells[row : row + 1, suspect.cells])]
        if column.kind == "bag":
            held = bool(self.rows.numbers[row, suspect.cells.start] > 0)
            return [f"{column.name}: {suspect.name}", "in it" if held else "not in it"]
        own = self.raw if not column.shape and column.name in self.raw.schema.names else self.given
        tables = [own, self.expected] if self.ordinary is None else [own, self.expected, self.ordinary]
        at = pa.array([row])
        return [suspect.name, *(values_of(table.column(column.name), at, suspect)[0] for table in tables)]

    def _pictures(self, row: int) -> list[tuple[str, str]]:
        """The image, with its heat, and as it was expected; none for rows without one."""
        if self.picture is None:
            return []
        span, whole = self.schema.spans[self.picture.name], self.heated[row]
        expected = pixels_of(self.picture, self.expected_numbers[row, span], self.rows.numbers[:, span])
        middle = whole.shape[1] // 2
        shown = [("as it came", whole[:, :middle]), ("to blame", whole[:, middle:]), ("expected", expected)]
        return [(label, data_uri(pixels)) for label, pixels in shown]

    def _charts(self, column: Column, row: int) -> list[Markup]:
        """A chart for each channel: what came over what was expected and an ordinary row, tinted where blame lies."""
        tables = [("pca", self.ordinary), ("model", self.expected), ("original", self.given)]
        lines = {style: steps_of(column, t.column(column.name).slice(row, 1)) for style, t in tables if t is not None}
        heat = on_grid(column, self.blame.cells[row : row + 1, self.schema.spans[column.name]])[0].numpy()
        heat = heat[: len(lines["original"])] / max(float(heat.max()), LEAST)
        channels = range(min(CHANNELS, lines["original"].shape[1]))
        return [overlay([(style, v[:, at]) for style, v in lines.items()], column.name, heat) for at in channels]
