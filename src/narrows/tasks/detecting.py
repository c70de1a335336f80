"""Learning to detect: from training rows and the network that was trained on their core to the part `detect`.

    rows -> a sample -> judges -> centers, scales; rows held out -> calibration; scores -> threshold

The network is kept as a judge only if it tells hidden cells of ordinary rows better than the column means do, and
better than its untrained self: elsewhere it adds noise to the score, and the fit says so. What this file does not know:
what is done with scores.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from narrows.errors import DataError, FitWarning
from narrows.fitted import Model, Part
from narrows.prepare.gathered import Thinned
from narrows.rows import Prepared
from narrows.schema import Batch, Schema
from narrows.tasks.calibration import FEWEST, Calibration, fence, quantile
from narrows.tasks.detect import Detector
from narrows.tasks.diagnosis import untrained
from narrows.tasks.distances import Codes, Covariance, Neighbors
from narrows.tasks.judges import Histograms, Judge, Telling
from narrows.tasks.ordinary import FEW, SHARE, ordinary, remember, robust
from narrows.tasks.shares import with_shares
from narrows.tasks.space import Space, of_series
from narrows.train.randomness import VALIDATION, generator

SAMPLE = 20_000  # rows that judges learn from, and that the middle of scores is taken of
CELLS = 1 << 26  # of these rows: evidence against all of them stands side by side
COMPARED = 2_048  # ordinary rows that the network is compared on
NARROWEST = 0.1  # of the mean spread of evidence over cells, that of a cell which hardly ever varies counts for


def learn_detector(model: Model, rows: Prepared, share: float = SHARE, contamination: float | None = None) -> Part:
    """The part `detect`.

    Args:
        model: just trained on the core of the rows.
        rows: all training rows; those held out calibrate the scores.
        share: of the rows that trained it.
        contamination: share of the training rows to call anomalies; None lets the scores say it.

    Raises:
        DataError: for rows too few, or all alike.
    """
    thinned = Thinned(min(SAMPLE, max(FEW, CELLS // model.schema.cells)))
    for batch in rows:
        thinned.add(batch)
    sample = thinned.batch()
    if sample is None:
        raise DataError("no rows to detect anomalies by", f"at least {FEW}")
    if len(sample) < FEW:
        text = f"{len(sample)} rows say little of what is ordinary: scores are rough below {FEW}"
        warnings.warn(text, FitWarning, stacklevel=3)
    chosen = ordinary(model.schema, sample, share)
    weighed, known = _judges(model, sample, chosen, share >= 1)
    guard = _guard(model, sample[chosen], rows.held, share)
    if guard["network"] != "used" and any(isinstance(judge, Telling) for judge in weighed):
        weighed = {judge: weight for judge, weight in weighed.items() if not isinstance(judge, Telling)}
        warnings.warn(f"{guard['why']}: scores go without it", FitWarning, stacklevel=2)
    judges, bent = list(weighed), not any(isinstance(judge, Covariance) for judge in weighed)
    evidence = [judge.typical(sample) for judge in judges]
    usual = torch.stack([_usual(each.cells) for each in evidence], dim=1)
    units = [(weight, *_unit(each.total, bent)) for weight, each in zip(weighed.values(), evidence, strict=True)]
    weights, centers, scales = (torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*units, strict=True))
    facts: dict[str, Any] = {**guard, "share": share}
    blank = Calibration.of(torch.zeros(0))
    found = Detector(model, judges, weights, centers, scales, usual, bent, blank, 0.0, known, facts)
    return _calibrated(found, sample, rows.held, contamination)


def _judges(model: Model, sample: Batch, chosen: Tensor, all_normal: bool) -> tuple[dict[Judge, float], Batch | None]:
    """The judges that rows of this kind have, each with its weight, and ordinary rows to show.

    Windows of series are compared as a whole, since each step of a window is much like the next.
    """
    schema, series = model.schema, of_series(model.schema)
    if not Space.holds(schema) or (not series and any(column.grid for column in schema)):
        return {Codes.learn(model, sample, generator(0, VALIDATION), all_normal): 1.0, Telling(model): 1.0}, None
    memory, remembered = remember(schema, sample)
    normal = sample[remembered[chosen[remembered]]]
    shown = normal.dense() if len(normal) else None
    if series:
        return {memory: 1.0, Covariance.learn(memory.space, sample): 0.5}, shown  # alone it does worse on NAB
    rarity = Histograms.learn(schema, sample[chosen])
    if all_normal:
        return {Neighbors.learn(memory.space, sample): 4.0, rarity: 1.0}, shown  # the network's word only blurs theirs
    return {memory: 1.0, Telling(model): 4.0, rarity: 1.0}, shown


def _unit(evidence: Tensor, bent: bool) -> tuple[float, float]:
    """The middle of evidence (n,) and its spread; with its tails where they are not bent: who raves has less say."""
    middle, spread = robust(evidence)
    return (middle, spread) if bent else (middle, float(evidence.double().std(correction=0)) or 1.0)


def _usual(cells: Tensor) -> Tensor:
    """(2, C) mean and spread of evidence against cells (n, C); no cell's spread is far below that of the others."""
    spread = cells.std(0, correction=0)
    return torch.stack([cells.mean(0), spread.clamp_min(max(NARROWEST * float(spread.mean()), 1e-9))])


def _guard(model: Model, core: Batch, held: Batch | None, share: float) -> dict[str, Any]:
    """Whether the network tells rows better than the mean of each column does, and than before its training.

    By squared errors of numbers in prepared units, bags as shares, and the share of levels that are wrong, added up;
    each cell told from the others where the network learnt that. On ordinary rows that were held out, if there are
    enough: of those it was trained on, independent columns too are told by heart.
    """
    enough = held is not None and len(held) >= FEWEST
    rows = held[ordinary(model.schema, held, share)] if held is not None and enough else core
    rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), COMPARED)).round().long()].dense()
    numbers, codes = _typical(model.schema, core.dense())
    columns = numbers.expand_as(rows.numbers), codes.expand_as(rows.codes)
    told = {"trained": Telling(model).expected(rows), "columns": columns}
    fresh = untrained(model)
    if fresh is not None:
        told["untrained"] = Telling(fresh).expected(rows)
    errors = {name: _error(model.schema, rows, guess) for name, guess in told.items()}
    better = [name for name in ("columns", "untrained") if errors.get(name, inf) <= errors["trained"]]
    words = {"columns": "the mean of each column", "untrained": "the untrained network"}
    why = f"the network tells ordinary rows no better than {words[better[0]]}" if better else ""
    return {"network": "left out" if better else "used", "why": why, "errors": errors}


def _error(schema: Schema, rows: Batch, told: tuple[Tensor, Tensor]) -> float:
    """Mean error a row."""
    numbers, codes = told
    apart = with_shares(schema, rows.numbers) - numbers
    wrong = torch.cat([apart.square(), (rows.codes != codes).float()], dim=1)
    return float((wrong * rows.mask()).sum(1).double().mean())


def _typical(schema: Schema, rows: Batch) -> tuple[Tensor, Tensor]:
    """The mean of each number (N,), and the most frequent level of each category (M,)."""
    there = rows.mask()[:, : schema.numbers]
    mean = (with_shares(schema, rows.numbers) * there).sum(0) / there.sum(0).clamp_min(1)
    return mean, rows.codes.mode(0).values


def _calibrated(found: Detector, sample: Batch, held: Batch | None, contamination: float | None) -> Part:
    """The part, with the scores of rows held out and a threshold; training rows stand in for held-out ones too few."""
    scores = found.scores(sample)
    others = scores[:0] if held is None else found.scores(held)
    enough = len(others) >= FEWEST
    calibration = Calibration.of(others if enough else scores)
    threshold = fence(calibration.scores)
    if contamination is not None:
        threshold = quantile(torch.cat([scores, others]), 1 - contamination)
    facts = {**found.facts, "calibrated": "held-out rows" if enough else "training rows"}
    facts["contamination"] = "auto" if contamination is None else contamination
    return replace(found, calibration=calibration, threshold=threshold, facts=facts).part()
