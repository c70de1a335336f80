"""Detectors: scores that add up, hold after saving and in any company, for every kind of table; and the guard."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from narrows.errors import DataError, FitWarning, SettingError
from narrows.fitted import Model, load
from narrows.fitting import Plan, fit
from narrows.rows import Core, Rows
from narrows.schema import Batch
from narrows.sources.source import open_source
from narrows.tasks.detect import PART, Detector
from narrows.tasks.detecting import learn_detector
from narrows.train.settings import Training
from odd_rows import contaminated, correlated, fitted, mixed, planted, prepared


@pytest.fixture(scope="module", params=["correlated", "mixed"])
def model(request) -> Model:
    frame = {"correlated": correlated, "mixed": mixed}[request.param](1500)
    return fitted(contaminated(frame))


@pytest.fixture(scope="module")
def detector(model: Model) -> Detector:
    return Detector.of(model)


def fresh(model: Model, rows: int = 300) -> pd.DataFrame:
    """New rows like those that a model was fitted to, half of them with a wrong cell."""
    frame = (mixed if "kind" in model.schema.names else correlated)(rows, 3)
    half = rows // 2
    return pd.concat([frame.iloc[:half], planted(frame.iloc[half:], 4)[0]], ignore_index=True)


@pytest.fixture(scope="module")
def rows(model: Model) -> Batch:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values far outside of those of training: they were planted
        return prepared(model, fresh(model))


def test_cells_and_a_remainder_add_up_to_the_score(detector, rows):
    blame = detector.blame(rows)
    torch.testing.assert_close(blame.cells.sum(1) + blame.remainder, blame.scores, rtol=0, atol=1e-12)
    assert torch.equal(blame.scores, detector.scores(rows))
    assert blame.cells.shape == (300, detector.model.schema.cells) and (blame.cells >= 0).all()


def test_a_score_is_the_weighed_sum_of_bent_evidence(detector, rows):
    wanted = np.zeros(len(rows))
    for place, judge in enumerate(detector.judges):
        total = judge(rows).total.double().numpy()
        own = float(detector.weights[place])
        wanted += own * np.arcsinh((total - float(detector.centers[place])) / float(detector.scales[place]))
    np.testing.assert_allclose(detector.scores(rows), wanted, rtol=1e-5, atol=1e-5)


def test_blame_is_shared_by_what_exceeds_the_usual(detector, rows):
    wanted = np.zeros((len(rows), detector.model.schema.cells))
    for place, judge in enumerate(detector.judges):
        evidence = judge(rows)
        unit = (evidence.total.double() - detector.centers[place]) / detector.scales[place]
        adds = (detector.weights[place] * torch.asinh(unit)).numpy()
        mean, spread = detector.usual[:, place].double().numpy()
        over = (evidence.cells.double().numpy() - mean) / spread
        for row in range(len(rows)):
            above = np.maximum(over[row], 0)
            if adds[row] > 0 and above.sum() > 0:
                wanted[row] += adds[row] * above / above.sum()
    np.testing.assert_allclose(detector.blame(rows).cells, wanted, rtol=1e-3, atol=1e-4)


def test_wrong_cells_are_found_and_the_middle_of_training_scores_is_near_zero(model, detector, rows):
    scores = detector.scores(rows).numpy()
    odd = np.arange(300) >= 150
    better = (scores[odd][:, None] > scores[~odd]).mean()
    assert better > (0.95 if len(detector.model.schema.levels) == 0 else 0.8)  # a wrong level may be likely too
    assert abs(np.median(scores[~odd])) < 2


def test_a_saved_detector_says_the_same(model, detector, rows, tmp_path):
    model.save(tmp_path / "m.narrows")
    again = Detector.of(load(tmp_path / "m.narrows"))
    blame, told = detector.blame(rows), again.blame(rows)
    assert torch.equal(blame.scores, told.scores) and torch.equal(blame.cells, told.cells)
    assert again.threshold == detector.threshold and again.facts == detector.facts
    assert torch.equal(again.calibration.scores, detector.calibration.scores)
    before, after = detector.normal(rows), again.normal(rows)
    assert torch.equal(before.numbers, after.numbers) and torch.equal(before.codes, after.codes)
    for one, two in zip(detector.expected(rows), again.expected(rows), strict=True):
        assert torch.equal(one, two)


def test_a_second_fit_is_the_same_and_another_seed_is_not():
    frame = contaminated(correlated(600))
    one, two, other = (fitted(frame, seed=seed).parts[PART] for seed in (1, 1, 2))
    assert one.facts == two.facts
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert not torch.equal(one.tensors["calibration"], other.tensors["calibration"])


@pytest.mark.parametrize("count", [1, 2, 15, 17, 257])
def test_a_row_scores_the_same_in_any_company(detector, rows, count):
    whole = detector.blame(rows)
    torch.testing.assert_close(detector.scores(rows[:count]), whole.scores[:count], rtol=1e-5, atol=1e-5)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    mixed_up = detector.blame(rows[order])
    torch.testing.assert_close(mixed_up.scores, whole.scores[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed_up.cells, whole.cells[order], rtol=1e-4, atol=1e-4)


def test_no_rows_have_no_scores(detector, rows):
    blame = detector.blame(rows[:0])
    assert blame.scores.shape == (0,) and blame.cells.shape == (0, detector.model.schema.cells)


def test_the_order_of_columns_does_not_matter(model, detector):
    frame = fresh(model, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (prepared(model, each) for each in (frame, frame[frame.columns[::-1]]))
    assert torch.equal(detector.scores(one), detector.scores(two))


@pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning")
def test_unseen_cells_have_no_blame_and_a_row_of_nothing_has_no_score(model, detector):
    frame = fresh(model, 200)
    holes = np.random.default_rng(0).random(frame.shape) < 0.3
    holes[:5] = True
    rows = prepared(model, frame.astype(object).mask(holes))
    blame = detector.blame(rows)
    assert blame.scores.isfinite().all() and (blame.cells[~rows.mask()] == 0).all()
    assert (blame.scores[:5] == 0).all() and (blame.remainder[:5] == 0).all()
    p = detector.calibration.p_values(blame.scores[:5])
    assert (p > 0.05).all(), "nothing speaks against a row of nothing"


@pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning")
def test_training_rows_may_have_holes():
    frame = mixed(800)
    frame = frame.astype({"a": float}).mask(np.random.default_rng(0).random(frame.shape) < 0.2)
    model = fitted(frame)
    detector = Detector.of(model)
    odd = pd.DataFrame({"a": [0.1, 12.0], "b": [None, None], "kind": ["middle", None], "c": [0.0, 0.0]})
    odd = odd.assign(d=[1.0, 1.0], sort=["x", "x"])
    usual, far = detector.scores(prepared(model, odd)).tolist()
    assert far > usual and far > detector.threshold


@pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning")
def test_unknown_levels_are_odd(model, detector):
    if "kind" not in model.schema.names:
        return
    frame = mixed(50, 8)
    strange = frame.assign(kind="never met")
    one, two = (detector.scores(prepared(model, each)) for each in (frame, strange))
    assert (two > one).double().mean() > 0.95


def test_sparse_rows_are_judged():
    rng = np.random.default_rng(0)
    topics = rng.integers(0, 3, 600)
    counts = rng.poisson(np.where(topics[:, None] == np.arange(30) % 3, 3.0, 0.05))
    model = fitted(scipy.sparse.csr_matrix(counts.astype(np.float32)))
    detector = Detector.of(model)
    strange = rng.poisson(3.0, (40, 30))  # all topics at once
    usual, odd = (scipy.sparse.csr_matrix(each.astype(np.float32)) for each in (counts[:100], strange))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual, odd = (detector.scores(prepared(model, each)) for each in (usual, odd))
    assert odd.median() > usual.quantile(0.95)
    assert (odd > detector.threshold).double().mean() > 0.9


def test_rows_beyond_the_budget_are_streamed():
    frame = contaminated(correlated(3000))
    model = fitted(frame, training=Training(budget=0))
    whole = fitted(frame)
    rows = prepared(model, frame)
    odd = torch.arange(3000) >= 2850
    for each in (model, whole):
        detector = Detector.of(each)
        scores = detector.scores(rows)
        assert (scores[odd][:, None] > scores[~odd]).double().mean() > 0.95
        assert detector.facts["calibrated"] == "held-out rows"


def test_rows_to_choose_from_are_no_more_than_the_budget_bears():
    """Where rows are wide; else a quarter of the budget, or 4,096 rows."""
    values, offered = np.random.default_rng(0).normal(size=(3000, 3000)).astype(np.float32), []

    def choose(_, rows):
        offered.append(rows.numbers.nbytes)
        return torch.arange(len(rows)) < 10

    rows = Rows(open_source(values), 0.1, Training(budget=0), 0)
    stream, _ = rows.streams(torch.device("cpu"), core=Core(choose, 65_536))
    assert stream.rows == 10 and 8e6 < offered[0] < 33e6


# the guard


def test_the_network_judges_where_columns_hang_together(detector):
    assert "telling" in [judge.name for judge in detector.judges]
    assert detector.facts["network"] == "used" and detector.facts["why"] == ""
    errors = detector.facts["errors"]
    assert errors["trained"] < min(errors["columns"], errors["untrained"])


def test_the_network_is_left_out_where_columns_do_not_hang_together():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(1500, 8)), columns=list("abcdefgh"))
    with pytest.warns(FitWarning, match=r"no better than .*: scores go without it"):
        model = fitted(frame)
    detector = Detector.of(model)
    assert [judge.name for judge in detector.judges] == ["distance", "rarity"]
    assert detector.facts["network"] == "left out" and "no better than" in detector.facts["why"]
    far = frame.head(50) + 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        far, near = (detector.scores(prepared(model, each)) for each in (far, frame.head(200)))
    assert far.min() > near.max()


# thresholds


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_a_contamination_sets_the_threshold_by_training_rows(share):
    frame = contaminated(correlated(1200))
    model = fitted(frame, contamination=share)
    detector = Detector.of(model)
    flagged = (detector.scores(prepared(model, frame)) > detector.threshold).double().mean()
    assert abs(flagged - share) < 0.02
    assert detector.facts["contamination"] == share


def test_few_rows_calibrate_themselves():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        model = fitted(correlated(40))
    assert Detector.of(model).facts["calibrated"] == "training rows"


# who is refused


def test_a_model_that_was_not_fitted_to_detect_is_refused():
    model = fit(correlated(60), Plan(epochs=1, latent=2))
    with pytest.raises(SettingError, match=r"not fitted to detect.*--for detect"):
        Detector.of(model)


def test_no_rows_are_refused(model):
    with pytest.raises(DataError, match="no rows"):
        learn_detector(model, iter([]))
