"""Which rows are odd: three judges' evidence, weighed into one score, calibrated by rows that training never saw.

    rows -> judges -> asinh of robust z -> weighed sum = score -> p-value, anomaly or not
                                                               -> blame: cells + a remainder

The weights were chosen on the tables of ADBench (see `docs/anomalies.md`). What this file does not know: labels. What
makes up more than half of the rows is the normal case to it, whatever it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic
import torch
from torch import Tensor

from narrows.errors import ModelFileError, SettingError
from narrows.fitted import Model, Part
from narrows.schema import Batch, Schema, one_row
from narrows.tasks.calibration import Calibration
from narrows.tasks.distances import Codes, Covariance, Memory, Neighbors, nearest
from narrows.tasks.judges import Evidence, Histograms, Judge, Telling
from narrows.tensorfile import shaped, under

PART = "detect"
FEW = 16  # rows


@dataclass(frozen=True)
class Blame:
    """Why n rows scored as they did: `cells` and `remainder` add up to `scores`.

    Args:
        scores: (n,) float64.
        cells: (n, C) what each cell adds, 0 and up.
        remainder: (n,) what is no single cell's: the distance of a code, or how much less odd than the middle a row is.
    """

    scores: Tensor
    cells: Tensor
    remainder: Tensor


@dataclass(frozen=True)
class Detector:
    """What a fit for detecting learnt, ready to judge prepared rows.

    Args:
        model: whose part it is.
        judges: who give evidence.
        weights: (J,) of each.
        centers: (J,) median evidence of each against training rows.
        scales: (J,) its spread: that of the middle half where it is bent, else its standard deviation.
        usual: (2, J, C) mean and spread of each judge's evidence against each cell, above 0; blame is what exceeds it.
        bent: whether evidence goes through asinh, so that no judge's verdict outweighs all others.
        calibration: scores of rows held out.
        threshold: above which a row is an anomaly.
        known: ordinary rows to show beside odd ones; None where rows are not compared.
        facts: how it was learnt.
    """

    model: Model
    judges: list[Judge]
    weights: Tensor
    centers: Tensor
    scales: Tensor
    usual: Tensor
    bent: bool
    calibration: Calibration
    threshold: float
    known: Batch | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> Detector:
        """The detector of a model.

        Raises:
            SettingError: for a model that was not fitted to detect.
            ModelFileError: for a part that is none.
        """
        part = model.parts.get(PART)
        if part is None:
            got = "a model that was not fitted to detect anomalies"
            raise SettingError(got, "one of `narrows fit --for detect`, or of AnomalyDetector")
        try:
            return _read(model, part)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            what = f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        except (KeyError, ValueError, RuntimeError) as error:
            what = str(error)
        raise ModelFileError(f"part {PART} of the model: {what}", "what a fit for detecting learns")

    def evidence(self, rows: Batch) -> list[Evidence]:
        """What each judge says of rows."""
        found, count = [judge(_enough(rows)) for judge in self.judges], len(rows)
        return [Evidence(each.total[:count], each.cells[:count]) for each in found]

    def scores(self, rows: Batch) -> Tensor:
        """(n,) float64: higher is more abnormal; around 0 are rows in the middle of those of training."""
        totals = [judge.total(_enough(rows))[: len(rows)] for judge in self.judges]
        return self._weighed(totals, rows).sum(1)

    def _weighed(self, totals: list[Tensor], rows: Batch) -> Tensor:
        """(n, J) what each judge adds to a score; nothing for a row of which nothing was seen."""
        units = (torch.stack([total.double() for total in totals], dim=1) - self.centers) / self.scales
        weighed = self.weights * (torch.asinh(units) if self.bent else units)
        return weighed if rows.seen is None else weighed * rows.dense().mask().any(1, keepdim=True)

    def blame(self, rows: Batch) -> Blame:
        """What of each row's score is whose: a judge's evidence above the middle is shared among its cells.

        Each cell has a share by how far the evidence against it exceeds what is usual there: else a cell that is hard
        to tell in every row, or a column of larger numbers, would be blamed for its neighbors.
        """
        evidence = self.evidence(rows)
        weighed = self._weighed([each.total for each in evidence], rows)
        cells = torch.zeros(len(rows), self.model.schema.cells, dtype=torch.float64)
        for each, adds, mean, spread in zip(evidence, weighed.T, *self.usual, strict=True):
            given = ((each.cells - mean) / spread).clamp_min(0).double()
            cells += adds.clamp_min(0)[:, None] * given / given.sum(1, keepdim=True).clamp_min(1e-300)
        scores = weighed.sum(1)
        return Blame(scores, cells, scores - cells.sum(1))

    def expected(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """Numbers (n, N) and codes (n, M) that the network tells of rows in place of what they hold."""
        return Telling(self.model).expected(rows)

    def normal(self, rows: Batch) -> Batch | None:
        """The nearest of the known ordinary rows, for each row; None where rows are not compared."""
        spaces = [judge.space for judge in self.judges if isinstance(judge, Memory | Neighbors)]
        return self.known[nearest(spaces[0], self.known, rows)] if spaces and self.known is not None else None

    def part(self) -> Part:
        """Everything but the model, for its file."""
        tensors = {"weights": self.weights, "centers": self.centers, "scales": self.scales, "usual": self.usual}
        tensors["calibration"] = self.calibration.scores
        for judge in self.judges:
            tensors |= {f"{judge.name}.{name}": tensor for name, tensor in judge.tensors().items()}
        if self.known is not None:
            tensors |= {"known.numbers": self.known.numbers, "known.codes": self.known.codes}
            tensors["known.seen"] = self.known.mask()
        names = [judge.name for judge in self.judges]
        return Part({**self.facts, "judges": names, "bent": self.bent, "threshold": self.threshold}, tensors)


class _Facts(pydantic.BaseModel, extra="forbid", strict=True):
    """The facts that the part must hold."""

    judges: list[str] = pydantic.Field(min_length=1)
    bent: bool
    threshold: pydantic.FiniteFloat
    network: Literal["used", "left out"]
    why: str
    errors: dict[str, pydantic.FiniteFloat]
    share: pydantic.FiniteFloat
    calibrated: Literal["held-out rows", "training rows"]
    contamination: Literal["auto"] | pydantic.FiniteFloat


def _enough(rows: Batch) -> Batch:
    """Rows, of a few copies too: products of very few rows round differently."""
    return rows[torch.arange(FEW) % len(rows)] if 0 < len(rows) < FEW else rows


def _read(model: Model, part: Part) -> Detector:
    """The detector that `Detector.part` wrote.

    Raises:
        KeyError, ValueError, RuntimeError: for a part that is none.
    """
    facts, tensors = _Facts.model_validate(part.facts).model_dump(), part.tensors
    names, bent, threshold = (facts.pop(name) for name in ("judges", "bent", "threshold"))
    judges, count = [_judge(model, name, under(f"{name}.", tensors)) for name in names], (len(names),)
    weights, centers, scales = shaped(tensors, torch.float64, weights=count, centers=count, scales=count)
    (usual,) = shaped(tensors, usual=(2, *count, model.schema.cells))
    if not ((scales > 0).all() and (usual[1] > 0).all()):
        raise ValueError("scales or spreads of 0 or less")
    calibration = Calibration.of(*shaped(tensors, torch.float64, calibration=(-1,)))
    known = _known(model.schema, under("known.", tensors))
    found = Detector(model, judges, weights, centers, scales, usual, bent, calibration, threshold, known, facts)
    found.blame(one_row(model.schema))  # what still does not fit is found here, not at the user's rows
    return found


def _known(schema: Schema, tensors: dict[str, Tensor]) -> Batch | None:
    """The rows of these tensors; None for no tensors."""
    if not tensors:
        return None
    (numbers,) = shaped(tensors, numbers=(-1, schema.numbers))
    (codes,) = shaped(tensors, torch.long, codes=(len(numbers), len(schema.levels)))
    (seen,) = shaped(tensors, torch.bool, seen=(len(numbers), schema.cells))
    if not ((codes >= 0) & (codes <= torch.tensor(schema.most, dtype=torch.long))).all():
        raise ValueError("known rows with levels that are none")
    return Batch(numbers, codes, seen)


def _judge(model: Model, name: str, tensors: dict[str, Tensor]) -> Judge:
    if name == "telling":
        return Telling(model)
    if name == "code":
        return Codes.read(model, tensors)
    kinds: tuple[type[Memory | Neighbors | Covariance | Histograms], ...] = (Memory, Neighbors, Covariance, Histograms)
    for kind in kinds:
        if kind.name == name:
            return kind.read(model.schema, tensors)
    raise ValueError(f"a judge {name!r}")
