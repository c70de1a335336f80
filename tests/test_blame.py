"""What a fitted detector promises: false alarms by the beta-binomial law, and the planted cell blamed before others."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor

from narrows.fitted import Model
from narrows.tasks.calibration import Calibration
from narrows.tasks.detect import PART, Detector
from odd_rows import blamed_columns, contaminated, correlated, fitted, mixed, planted, prepared

RATES = (0.01, 0.05, 0.1)


def promised_law(held: int, new: int, rate: float) -> stats.rv_discrete:
    """Alarms among new rows, over draws of so many held-out ones (Vovk 2012)."""
    allowed = math.floor((held + 1) * rate + 1e-9)
    return stats.betabinom(new, allowed, held + 1 - allowed)


def uniform(alarms: list[int], law: stats.rv_discrete, rng: np.random.Generator) -> np.ndarray:
    """What is uniform on (0, 1) if alarms follow a law: their ranks in it, ties broken at random."""
    counts = np.array(alarms)
    return law.cdf(counts - 1) + rng.random(len(counts)) * law.pmf(counts)


@pytest.fixture(scope="module")
def pool() -> Tensor:
    """Scores of many new clean rows by one fit."""
    model = fitted(correlated(600))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Detector.of(model).scores(prepared(model, correlated(50 * 499, 11)))


@pytest.mark.parametrize("rate", RATES)
def test_false_alarms_over_fifty_splits_follow_the_law(pool, rate):
    rng = np.random.default_rng(0)
    alarms = []
    for split in torch.split(pool, 499):
        threshold = Calibration.of(split[:199]).threshold(rate)
        alarms.append(int((split[199:] > threshold).sum()))
    law = promised_law(199, 300, rate)
    assert stats.kstest(uniform(alarms, law, rng), "uniform").pvalue > 0.01
    assert abs(np.mean(alarms) - law.mean()) < 4 * law.std() / math.sqrt(50)


@pytest.mark.filterwarnings("ignore")  # of networks left out in small fits, and of rows outside of training
def test_false_alarms_of_many_fits_with_rows_of_their_own_follow_the_law():
    rng, ranks = np.random.default_rng(0), {rate: [] for rate in RATES[1:]}
    for seed in range(25):
        model = fitted(correlated(250, seed, columns=4), seed=seed)
        detector = Detector.of(model)
        held = len(detector.calibration.scores)
        assert detector.facts["calibrated"] == "held-out rows" and 30 < held < 75
        scores = detector.scores(prepared(model, correlated(400, 1000 + seed, columns=4)))
        for rate, found in ranks.items():
            alarms = int((scores > detector.calibration.threshold(rate)).sum())
            assert alarms == int((detector.calibration.p_values(scores) <= rate).sum())
            found.append(uniform([alarms], promised_law(held, 400, rate), rng)[0])
    for rate, found in ranks.items():
        assert stats.kstest(found, "uniform").pvalue > 0.01, rate


def test_anomalies_among_the_training_rows_make_fewer_alarms_not_more():
    model = fitted(contaminated(correlated(1500), 0.1))
    detector = Detector.of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = detector.scores(prepared(model, correlated(3000, 5)))
    for rate in RATES[1:]:
        assert (scores > detector.calibration.threshold(rate)).double().mean() < rate


# blame


@pytest.fixture(scope="module", params=["correlated", "mixed", "normal rows"])
def model(request) -> Model:
    make = mixed if request.param == "mixed" else correlated
    if request.param == "normal rows":
        return fitted(make(2000), all_normal=True)
    return fitted(contaminated(make(2000)))


def found_rows(model: Model, clean: pd.DataFrame, wrong: pd.DataFrame) -> tuple[Detector, Tensor, Tensor]:
    """The detector, blame of each column in wrong rows, and which of these were found: not odd before, odd now."""
    detector = Detector.of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = prepared(model, clean), prepared(model, wrong)
    found = (detector.scores(before) <= detector.threshold) & (detector.scores(after) > detector.threshold)
    return detector, blamed_columns(detector, after), found


def test_the_planted_cell_is_blamed_first(model):
    clean = (mixed if "kind" in model.schema.names else correlated)(1500, 21)
    wrong, columns = planted(clean, 22)
    _, blame, found = found_rows(model, clean, wrong)
    first = blame.argmax(1) == torch.from_numpy(columns)
    assert found.sum() > 150
    assert first[found].double().mean() > 0.9
    share = blame[found].amax(1) / blame[found].sum(1)
    assert share.median() > 0.4, "blame is spread over all cells"


def test_a_value_of_another_row_is_among_the_first_two():
    """One wrong value contradicts others that are right: where few columns hang together, any of them may be wrong."""
    model = fitted(correlated(2000))
    clean = correlated(3000, 21)
    wrong, columns = planted(clean, 23, swap=True)
    detector, blame, _ = found_rows(model, clean, wrong)
    threshold = detector.calibration.threshold(0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = (detector.scores(prepared(model, frame)) for frame in (clean, wrong))
    found = (before <= threshold) & (after > threshold)
    ranks = (blame > blame.gather(1, torch.from_numpy(columns)[:, None])).sum(1)[found]
    assert found.sum() > 50
    assert (ranks < 2).double().mean() > 0.75


def test_expected_values_lie_nearer_to_what_was_there_than_the_planted_ones():
    model = fitted(correlated(2000))
    clean = correlated(400, 21)
    wrong, columns = planted(clean, 22)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, after = prepared(model, clean), prepared(model, wrong)
    place = torch.from_numpy(columns)[:, None]
    told = Detector.of(model).expected(after)[0].gather(1, place)
    truth, planted_ = before.numbers.gather(1, place), after.numbers.gather(1, place)
    assert ((told - truth).abs() < (planted_ - truth).abs()).double().mean() > 0.95


def test_the_ordinary_row_that_is_shown_is_one_of_training_and_near():
    frame = contaminated(correlated(1000))
    model = fitted(frame)
    detector = Detector.of(model)
    rows = prepared(model, frame)
    shown = detector.normal(rows[:50])
    everything = {tuple(row) for row in rows.numbers.tolist()}
    assert all(tuple(row) in everything for row in shown.numbers.tolist())
    far = (detector.known.numbers - rows.numbers[:50, None]).norm(dim=2)
    near = (shown.numbers - rows.numbers[:50]).norm(dim=1)
    torch.testing.assert_close(near, far.amin(1))
    assert (detector.scores(detector.known) <= detector.threshold).all(), "an anomaly is shown as an ordinary row"
    assert set(model.parts) >= {PART}
