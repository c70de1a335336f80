"""AnomalyDetector: scikit-learn's own checks, signs and shares, explanations of every kind of rows, and poor data."""

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from narrows import AnomalyDetector, Dense, Plan, Training, detect, fit, load
from narrows.errors import DataError, DataWarning, FitWarning, SettingError
from narrows.tasks.detect import PART, Detector

UNEQUAL = "weights enter the loss; a repeated row also changes what is ordinary, so training is alike, not equal"
EXPECTED = {f"check_sample_weight_equivalence_on_{form}_data": UNEQUAL for form in ("dense", "sparse")}
LEFT_OUT = pytest.mark.filterwarnings("ignore:.*scores go without it")  # by the guard, as it should be


@parametrize_with_checks([AnomalyDetector(epochs=2, random_state=0)], expected_failed_checks=lambda _: EXPECTED)
@pytest.mark.filterwarnings("default")  # as for `Autoencoder`; and checks fit few rows, which we warn of
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def people(rows=400, seed=0):
    """Columns that hang together, and two rows where they do not."""
    draw = np.random.default_rng(seed)
    age = draw.integers(20, 65, rows)
    pay = (age * 1000 * np.exp(draw.normal(0, 0.1, rows))).round()
    town = draw.choice(["Bern", "Oslo", "Ulm"], rows)
    frame = pd.DataFrame(
        {"age": age, "pay": pay, "town": town, "member": draw.random(rows) > 0.5}, index=range(5, rows + 5)
    )
    frame.loc[8, "pay"] = 450_000.0
    frame.loc[12, ["age", "pay"]] = [21, 64_000.0]
    frame.loc[20, "age"] = 44
    return frame


@pytest.fixture(scope="module")
def found():
    """A detector of people."""
    return AnomalyDetector(random_state=0).fit(people())


def test_signs_are_scikit_learns_and_pyods(found):
    frame = people()
    scores = found.score_samples(frame)
    np.testing.assert_array_equal(found.decision_scores_, -scores)
    np.testing.assert_array_equal(found.decision_function(frame), scores - found.offset_)
    assert found.threshold_ == -found.offset_
    np.testing.assert_array_equal(found.predict(frame), np.where(found.decision_scores_ > found.threshold_, -1, 1))
    np.testing.assert_array_equal(found.labels_, (found.predict(frame) == -1).astype(int))
    assert found.decision_scores_.argmax() == 3 and found.labels_[3] == 1


def test_planted_rows_stand_out_of_new_ones(found):
    new = people(600, seed=1)
    odd = np.isin(new.index, [8, 12])
    assert roc_auc_score(odd, -found.score_samples(new)) > 0.9
    p, held = found.p_values(new), len(Detector.of(found.model_).calibration.scores)
    assert 50 <= held <= 110 and p.max() <= 1
    assert p.min() == p[3] <= 2 / (held + 1)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.37, 0.5])
def test_a_contamination_flags_that_share_of_all_training_rows(share, tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 4)) @ np.random.default_rng(1).normal(size=(4, 4))
    found = AnomalyDetector(contamination=share, epochs=3, random_state=0).fit(x)
    assert found.labels_.sum() == round(share * 300)
    assert (found.predict(x) == -1).sum() == round(share * 300)
    found.save(tmp_path / "m.narrows")
    told = detect(load(tmp_path / "m.narrows"), x)
    np.testing.assert_array_equal(told["score"].to_numpy(), found.decision_scores_)
    np.testing.assert_array_equal(told["anomaly"].to_numpy(), found.labels_ == 1)


def test_fit_predict_is_predict_of_the_training_rows():
    frame = people()
    told = AnomalyDetector(contamination=0.05, random_state=0).fit_predict(frame)
    assert (told == -1).sum() == 20 and set(told) == {-1, 1}


def test_parameters_reach_the_fit():
    settings = {"latent": 3, "network": Dense(hidden=(16,)), "contamination": 0.1, "epochs": 2, "random_state": 1}
    found = clone(AnomalyDetector(columns={"pay": "quantile"}, all_normal=True, **settings)).fit(people())
    assert found.model_.latent == 3 and found.model_.members is None and len(found.history_) == 2
    facts = found.model_.parts[PART].facts
    assert (facts["share"], facts["contamination"]) == (1.0, 0.1)
    given = AnomalyDetector(epochs=1, random_state=0).fit(people(), validation=people(90, seed=3))
    assert len(Detector.of(given.model_).calibration.scores) == 90
    assert found.get_params()["recipe"].startswith("masked:") and found.model_.recipe.name == "masked"


def parts(table):
    """Scores, and what should add up to them."""
    blamed = [table[name].to_numpy() for name in table.schema.names if name.startswith("blame.")]
    return table["score"].to_numpy(), sum(blamed) + table["remainder"].to_numpy()


def test_an_explanation_is_a_frame_with_the_index_and_types_of_the_rows(found):
    frame = people()
    told = found.explain(frame)
    assert (told.index == frame.index).all()
    columns = ["age", "pay", "town", "member"]
    words = [f"{word}.{name}" for word in ("blame", "expected", "normal") for name in columns]
    words.insert(4, "remainder")
    assert list(told) == ["score", "p_value", "anomaly", "why", *words]
    np.testing.assert_array_equal(told["score"], found.decision_scores_)
    assert told["anomaly"].sum() == found.labels_.sum() and (told["p_value"] == found.p_values(frame)).all()
    np.testing.assert_allclose(*parts(pa.Table.from_pandas(told)), rtol=1e-12, atol=1e-12)
    for word in ("expected", "normal"):
        assert [told[f"{word}.{name}"].dtype.kind for name in columns] == ["i", "f", "O", "b"]
        assert set(told[f"{word}.town"]) <= {"Bern", "Oslo", "Ulm"}
    assert told.loc[8, "why"].startswith("pay 450,000 in place of ")
    assert told.loc[8, "blame.pay"] == told.loc[8, [f"blame.{name}" for name in columns]].max()
    assert told.loc[8, "expected.pay"] < 90_000
    assert (told.loc[told["score"] <= 0, "why"] == "").all() and (told.loc[told["anomaly"], "why"] != "").all()


def test_the_words_add_what_the_columns_say(found):
    told = found.explain(people())
    row = told.loc[told["score"].idxmax()]
    for phrase in row["why"].split("; "):
        name, adds = phrase.split(" ")[0], float(phrase.rpartition("(+")[2].rstrip(")"))
        assert adds == pytest.approx(row[f"blame.{name}"], abs=0.0501)


def test_a_level_never_met_is_called_by_its_name(found):
    frame = people()[:30].assign(town="Atlantis")
    with pytest.warns(DataWarning, match="Atlantis"):
        told = found.explain(frame)
    assert told["why"].str.contains("town Atlantis in place of (?:Bern|Oslo|Ulm)").mean() > 0.9


def test_alarms_move_the_threshold(found):
    frame = people(600, seed=2)
    strict, loose = (found.explain(frame, alarms=rate) for rate in (0.05, 0.3))
    for told, rate in ((strict, 0.05), (loose, 0.3)):
        np.testing.assert_array_equal(told["anomaly"], found.p_values(frame) <= rate)
    assert strict["anomaly"].sum() < loose["anomaly"].sum()
    with pytest.raises(SettingError, match=r"false alarms of 0\.001, promised by"):
        found.explain(frame, alarms=0.001)
    for rate in (0, 1, -0.1, np.nan):
        with pytest.raises(SettingError, match="false alarms of"):
            found.explain(frame, alarms=rate)


def waves(channels=None):
    draw = np.random.default_rng(0)
    phase = draw.random((150, 1)) * 6
    x = np.sin(np.arange(20) / 3 + phase) + draw.normal(0, 0.05, (150, 20))
    x = x if channels is None else np.stack([x, x[::-1]], axis=2)
    x[7, 11] = 4.0
    return x


KINDS = {
    "matrix": (lambda draw: draw.normal(size=(150, 4)) + 9 * (np.arange(150) == 7)[:, None], {}, (4,)),
    "series": (lambda _: waves(), {"x": "series"}, (20,)),
    "series of two": (lambda _: waves(2), {"x": "series"}, (20,)),
    "pictures": (lambda draw: (draw.random((150, 6, 5, 3)) * 255).astype(np.uint8), {}, (6, 5)),
    "ragged": (
        lambda draw: pa.table(
            {"x": [list(np.sin(np.arange(4 + i % 5))) for i in range(150)], "y": draw.normal(size=150)}
        ),
        {},
        None,
    ),
    "texts": (lambda _: pa.table({"x": [f"hello {'abc' * (i % 3)}" for i in range(150)]}), {"x": "chars"}, None),
    "bags": (lambda draw: sparse.random(150, 12, 0.3, format="csr", random_state=0), {}, None),
    "polars": (lambda draw: polars.DataFrame({"x": ["u", "v", "v"] * 50, "y": draw.normal(size=150)}), {}, None),
}


@LEFT_OUT
@pytest.mark.filterwarnings("ignore:.*far outside its training range")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_rows_is_explained(name):
    make, columns, shape = KINDS[name]
    rows = make(np.random.default_rng(0))
    found = AnomalyDetector(columns=columns, epochs=3, random_state=0).fit(rows)
    told = found.explain(rows)
    assert isinstance(told, polars.DataFrame if name == "polars" else pa.Table)
    table = told.to_arrow() if name == "polars" else told
    scores, added = parts(table)
    np.testing.assert_array_equal(scores, found.decision_scores_)
    np.testing.assert_allclose(added, scores, rtol=1e-9, atol=1e-9)
    if shape:
        heat = np.array(table["heat.x"].to_pylist()).reshape(len(scores), *shape)
        np.testing.assert_allclose(
            heat.reshape(len(scores), -1).sum(1), table["blame.x"].to_numpy(), rtol=1e-4, atol=1e-4
        )
    if name.startswith("series"):
        assert scores.argmax() == 7 and heat[7].argmax() == 11 and "x around step 11" in table["why"][7].as_py()
    if name in ("ragged", "texts"):
        lengths = [len(value) for value in rows["x"].to_pylist()]
        kept = [len(value) for value in table["heat.x"].to_pylist()]
        texts = name == "texts"  # the end mark of one is a token, where there is room for it
        assert kept == [min(length + texts, max(lengths)) for length in lengths]
    if name != "polars":  # whose own types come back, but as others of Arrow's
        assert table["expected.x"].type == found.model_.preparer.arrow_schema.field("x").type


def test_missing_cells_are_never_to_blame_and_nothing_seen_is_nothing_odd():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(300, 1)) + draw.normal(0, 0.3, (300, 4))
    x[draw.random(x.shape) < 0.15] = np.nan
    found = AnomalyDetector(random_state=0).fit(x)
    heat = np.array(found.explain(x)["heat.x"].to_pylist())
    assert (heat[np.isnan(x)] == 0).all()
    nothing = found.explain(np.full((2, 4), np.nan))
    assert nothing["score"].to_pylist() == [0, 0] and not any(nothing["anomaly"].to_pylist())
    assert (found.predict(np.full((2, 4), np.nan)) == 1).all()


def test_what_never_varied_is_expected_as_it_was():
    frame = people().assign(planet="Earth", moons=1.5)
    found = AnomalyDetector(random_state=0).fit(frame)
    odd = frame[:1].assign(moons=2.5)
    with pytest.warns(DataWarning, match="far outside"):
        told = found.explain(odd)
    assert told["expected.moons"].tolist() == [1.5] and told["expected.planet"].tolist() == ["Earth"]
    assert "moons 2.50 in place of 1.50" in told["why"].iloc[0]


def test_a_stream_and_a_table_in_memory_are_judged_alike():
    x = np.random.default_rng(0).normal(size=(2_000, 1)) + np.random.default_rng(1).normal(0, 0.5, (2_000, 3))
    whole, streamed = (
        AnomalyDetector(training=Training(budget=budget), random_state=0).fit(x) for budget in (2e9, 1_000)
    )
    assert len(streamed.decision_scores_) == 2_000
    assert np.corrcoef(whole.decision_scores_, streamed.decision_scores_)[0, 1] > 0.95
    table = pa.table({"a": x[:, 0], "b": x[:, 1]})
    once = pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    assert len(AnomalyDetector(epochs=1, random_state=0).fit(once).labels_) == 2_000


# poor data


def test_few_rows_are_warned_of_and_a_lone_one_is_refused():
    x = np.random.default_rng(0).normal(size=(12, 3))
    x[4] += 40
    with pytest.warns(FitWarning, match="12 rows say little"):
        found = AnomalyDetector(random_state=0).fit(x)
    assert found.decision_scores_.argmax() == 4 and found.labels_[4] == 1
    with pytest.raises(DataError, match="1 sample"):
        AnomalyDetector().fit(x[:1])


@LEFT_OUT
def test_rows_all_alike_make_another_one_odd():
    frame = pd.DataFrame({"a": [1.0] * 80, "b": ["x"] * 80})
    found = AnomalyDetector(random_state=0).fit(frame)
    assert not found.labels_.any() and (found.decision_scores_ == 0).all()
    with pytest.warns(DataWarning):
        told = found.predict(pd.DataFrame({"a": [1.0, 2.0, 1.0], "b": ["x", "x", "y"]}))
    assert told.tolist() == [1, -1, -1]


def test_infinite_values_are_refused():
    x = np.random.default_rng(0).normal(size=(100, 1)) * np.ones((1, 3))
    found = AnomalyDetector(random_state=0).fit(x)
    x[3, 1] = np.inf
    for work in (found.predict, found.explain, AnomalyDetector().fit):
        with pytest.raises(ValueError, match="infinity"):
            work(x)
    with pytest.raises(DataError, match=r"row 3 .*infinite"):
        detect(found.model_, x)


def test_columns_may_come_in_another_order(found):
    frame = people()[:50]
    told = detect(found.model_, frame[["town", "member", "pay", "age"]], explain=True)
    assert told.equals(detect(found.model_, frame, explain=True))


@pytest.mark.parametrize("share", [0, -0.1, 0.51, 1, np.nan, True, None, "many"])
def test_a_contamination_out_of_range_is_refused(share):
    with pytest.raises(SettingError, match="contamination="):
        AnomalyDetector(contamination=share).fit(people())


def test_a_model_of_another_job_is_refused():
    model = fit(people(), Plan(latent=2, epochs=1))
    with pytest.raises(SettingError, match="not fitted to detect"):
        detect(model, people())
