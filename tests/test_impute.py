"""Imputing: what is known of normal data, what must never change, draws and their pooling, faces and errors."""

from __future__ import annotations

import json
from math import inf

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from pyarrow import csv
from scipy import stats
from sklearn.utils.estimator_checks import parametrize_with_checks

from command import narrows
from narrows import DataError, Dense, Imputer, Plan, Pooled, Training, fit, generate, impute, load, pooled_means
from narrows.errors import SettingError
from narrows.schema import Batch
from narrows.tasks.hidden import mixed
from narrows.tasks.holes import Holes
from narrows.tasks.importance import Latent
from narrows.tasks.intervals import quantile
from narrows.tasks.normal import Normal
from narrows.tasks.purposes import PURPOSES

SMALL = Dense(hidden=(64, 64), residual=True)
MIX = np.array([[1.0, 0.8, 0.0, 0.5], [0.0, 0.6, 0.5, -0.5], [0.0, 0.0, 0.8, 0.5]])


def normal_rows(rows=3_000, seed=0):
    """Four columns that hang together, and their covariance."""
    return np.random.default_rng(seed).normal(size=(rows, 3)) @ MIX + 2.0, MIX.T @ MIX


def holed(rows, rate=0.3, seed=1):
    """Rows with holes at random."""
    return np.where(np.random.default_rng(seed).random(rows.shape) < rate, np.nan, rows)


def people(rows=1_200, seed=0, rate=0.2):
    """A table of mixed types, with holes."""
    draw = np.random.default_rng(seed)
    town = draw.choice(["Basel", "Bern", "Chur"], rows)
    age = draw.integers(18, 80, rows)
    pay = 1_000.0 + 30 * age + 500 * (town == "Basel") - 300 * (town == "Chur") + draw.normal(0, 50, rows)
    hide = draw.random((4, rows)) < rate
    columns = {"town": pa.array(town, mask=hide[0]), "age": pa.array(age, mask=hide[1])}
    columns |= {"pay": pa.array(pay, mask=hide[2]), "rich": pa.array(pay > 2_500, mask=hide[3])}
    return pa.table(columns)


def planned(**more):
    """As `fit --for impute` plans, but smaller."""
    purpose = PURPOSES["impute"]
    given = {"latent": 32, "network": SMALL, "epochs": 25} | more
    return purpose.settle(Plan("conditional", **given)), purpose.learn


@pytest.fixture(scope="module")
def gauss():
    plan, learn = planned()
    return fit(pd.DataFrame(holed(normal_rows()[0]), columns=list("abcd")), plan, learn=learn)


@pytest.fixture(scope="module")
def model():
    plan, learn = planned()
    return fit(people(), plan, learn=learn)


def conditional(covariance, seen, row, mean=2.0):
    """Mean and variance of what was not seen, by the textbook's formula."""
    hidden = ~seen
    solved = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, hidden)])
    expected = mean + (row[seen] - mean) @ solved
    return expected, np.diag(covariance[np.ix_(hidden, hidden)] - covariance[np.ix_(hidden, seen)] @ solved)


def test_expectation_maximization_finds_mean_and_covariance():
    rows, covariance = normal_rows(4_000)
    found = Normal.learn(torch.from_numpy(holed(rows, 0.4)))
    assert np.abs(found.mean.numpy() - 2).max() < 0.1
    assert np.abs(found.covariance.numpy() - covariance).max() < 0.15


def test_what_is_given_is_the_textbooks():
    rows, covariance = normal_rows(40)
    covariance = covariance + 0.1 * np.eye(4)
    normal = Normal(torch.full((4,), 2.0, dtype=torch.float64), torch.from_numpy(covariance))
    seen = np.random.default_rng(0).random(rows.shape) < 0.5
    means, variances = normal.given(torch.from_numpy(rows), torch.from_numpy(seen))
    for row in range(40):
        if seen[row].any() and not seen[row].all():
            wanted, variance = conditional(covariance, seen[row], rows[row])
            assert np.allclose(means[row].numpy()[~seen[row]], wanted)
            assert np.allclose(variances[row].numpy()[~seen[row]], variance)
        assert np.allclose(means[row].numpy()[seen[row]], rows[row][seen[row]])


def test_one_feature_and_constant_features_are_no_trouble():
    rows = torch.stack([torch.ones(50), torch.arange(50) % 3.0, torch.arange(50) % 3.0], dim=1).double()
    found = Normal.learn(rows)
    assert found.covariance.isfinite().all()
    assert found.given(rows, torch.zeros(50, 3, dtype=torch.bool))[0].isfinite().all()


def test_guesses_of_normal_data_are_nearly_the_best_there_are(gauss):
    rows, covariance = normal_rows(1_000, seed=5)
    holes = holed(rows, seed=6)
    filled = impute(gauss, holes).to_pandas().to_numpy()  # a matrix for a table of numbers
    seen = ~np.isnan(holes)
    best, own = [], []
    for row in range(len(rows)):
        if not seen[row].all():
            expected = conditional(covariance + 1e-9 * np.eye(4), seen[row], rows[row])[0]
            best.append((expected - rows[row][~seen[row]]) ** 2)
            own.append((filled[row][~seen[row]] - rows[row][~seen[row]]) ** 2)
    best, own, spread = (np.sqrt(np.concatenate(errors).mean()) for errors in (best, own, [rows.var(0)]))
    assert own < best + 0.15 * (spread - best)
    assert np.array_equal(filled[seen], holes[seen])  # bit for bit


def test_intervals_hold_what_they_promise(gauss):
    rows = normal_rows(1_000, seed=7)[0]
    holes = holed(rows, seed=8)
    frame = pd.DataFrame(holes, columns=list("abcd"))
    table = impute(gauss, frame, interval=0.9).to_pandas()
    inside = []
    for place, name in enumerate("abcd"):
        missing = np.isnan(holes[:, place])
        assert table[f"{name}_low"].notna().to_numpy().tolist() == missing.tolist()
        between = (table[f"{name}_low"] <= rows[:, place]) & (rows[:, place] <= table[f"{name}_high"])
        inside.append(between[missing])
    assert 0.85 < np.concatenate(inside).mean() < 0.95


def test_draws_hang_together_as_the_data_do(gauss):
    torch.manual_seed(0)
    empty = Batch(
        torch.zeros(3_000, 4), torch.zeros(3_000, 0, dtype=torch.long), torch.zeros(3_000, 4, dtype=torch.bool)
    )
    drawn = gauss.preparer.scaling.inverse(Holes(gauss).draw(empty, 3).numbers).numpy()
    wanted = np.corrcoef(normal_rows()[0].T)
    assert np.abs(np.corrcoef(drawn.T) - wanted).max() < 0.12
    assert np.abs(drawn.mean(0) - 2).max() < 0.15


def test_the_normal_distribution_is_left_out_where_it_does_not_help(gauss, monkeypatch):
    assert float(gauss.parts["normal"].tensors["weight"].mean()) > 0.3  # the data are normal
    draw = np.random.default_rng(0)
    rings = draw.choice([-1.0, 1.0], (2_000, 2)) * np.array([5.0, 3.0]) + 0.01 * draw.normal(size=(2_000, 2))
    plan, learn = planned(epochs=15)
    rings = np.column_stack([rings, rings[:, 0] * rings[:, 1]])  # the product of two signs: uncorrelated with each
    weight = fit(rings, plan, learn=learn).parts["normal"].tensors.get("weight", torch.zeros(3))
    assert float(weight.mean()) < 0.2


def test_shares_of_a_mixture_are_found():
    draw = np.random.default_rng(0)
    second = draw.random(20_000) < 0.3
    values = np.where(second, draw.normal(3, 1, 20_000), draw.normal(0, 1, 20_000))
    chances = torch.from_numpy(np.stack([stats.norm.pdf(values), stats.norm.pdf(values, 3)], axis=1))[:, :, None]
    share = mixed(chances, torch.ones(20_000, 1, dtype=torch.bool), torch.tensor(0.5, dtype=torch.float64))
    assert float(share[0]) == pytest.approx(0.3, abs=0.015)


def test_quantiles_of_bins_are_where_their_chances_say():
    from narrows.model.binned import Bins

    family = Bins(1, 4)
    family.learn(torch.arange(400.0)[:, None])
    even = torch.full((1, 1, 4), 0.25, dtype=torch.float64)
    for share in (0.05, 0.3, 0.5, 0.95):
        assert float(quantile(family, even, share)) == pytest.approx(share * 400, abs=2)


def test_what_was_there_stays_and_what_comes_is_of_its_kind(model):
    rows = people(300, seed=3)
    whole = impute(model, rows)
    assert whole.schema.names == rows.schema.names and whole.schema.types == rows.schema.types
    assert not any(column.null_count for column in whole.columns)
    for name in rows.schema.names:
        there = rows.column(name).is_valid().to_numpy()
        assert whole.column(name).filter(pa.array(there)).to_pylist() == rows.column(name).drop_null().to_pylist()
    assert set(whole.column("town").to_pylist()) == {"Basel", "Bern", "Chur"}
    assert min(whole.column("age").to_pylist()) >= 18 and max(whole.column("age").to_pylist()) < 80
    truth = people(300, seed=3, rate=0.0).to_pandas()
    missing = rows.column("pay").is_null().to_numpy() & rows.column("age").is_valid().to_numpy()
    error = (whole.to_pandas()["pay"] - truth["pay"])[missing]
    assert np.sqrt((error**2).mean()) < 0.5 * truth["pay"].std()


def test_a_row_alone_is_filled_as_among_others_and_order_does_not_matter(model):
    rows = people(40, seed=4)
    whole = impute(model, rows)
    assert impute(model, rows.slice(7, 1)).equals(whole.slice(7, 1).combine_chunks())
    back = impute(model, rows.take(np.arange(40)[::-1]))
    assert back.take(np.arange(40)[::-1]).to_pylist() == whole.to_pylist()


def test_a_level_that_training_did_not_have_stays(model):
    rows = people(5, seed=5).to_pandas()
    rows.loc[0, "town"] = "Zug"
    with pytest.warns(UserWarning, match="Zug"):
        assert impute(model, rows).to_pandas().loc[0, "town"] == "Zug"


def test_rows_of_nothing_but_holes_are_filled(model):
    rows = people(3).slice(0, 2)
    empty = pa.table({name: pa.nulls(2, kind) for name, kind in zip(rows.schema.names, rows.schema.types, strict=True)})
    assert not any(column.null_count for column in impute(model, empty).columns)


def test_draws_come_table_after_table_and_differ(model, tmp_path):
    rows = people(50, seed=6)
    drawn = impute(model, rows, draws=3, seed=2)
    assert drawn.column("draw").to_pylist() == [0] * 50 + [1] * 50 + [2] * 50
    first, second = (drawn.slice(50 * i, 50).drop(["draw"]) for i in range(2))
    assert not first.equals(second) and impute(model, rows, draws=3, seed=2).equals(drawn)
    assert not impute(model, rows, draws=3, seed=3).equals(drawn)
    there = rows.column("pay").is_valid()
    for table in (first, second):
        assert table.column("pay").filter(there).to_pylist() == rows.column("pay").drop_null().to_pylist()
    model.save(tmp_path / "m.narrows")
    assert impute(load(tmp_path / "m.narrows"), rows, draws=3, seed=2).equals(drawn)


def test_pooling_is_rubins():
    estimates, variances = [1.0, 1.2, 0.9, 1.1, 1.3], [0.04, 0.05, 0.04, 0.045, 0.05]
    pooled = Pooled.of(estimates, variances, 0.95)
    between, within = np.var(estimates, ddof=1), np.mean(variances)
    total = within + 1.2 * between
    freedom = 4 * (1 + within / (1.2 * between)) ** 2  # Rubin (1987), 3.1.6
    assert pooled.estimate == pytest.approx(1.1) and pooled.error == pytest.approx(np.sqrt(total))
    assert pooled.freedom == pytest.approx(freedom)
    assert pooled.high - pooled.estimate == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(total))
    few = Pooled.of(estimates, variances, 0.95, complete=20)
    assert few.freedom < min(freedom, 20)
    same = Pooled.of([2.0, 2.0], [0.1, 0.1])
    assert same.freedom == inf and same.unknown == 0
    with pytest.raises(SettingError, match="1 estimates with 1 variances; wanted: two or more"):
        Pooled.of([1.0], [1.0])


def test_pooled_means_hold_the_truth_more_often_than_one_table_says(model):
    rows = people(200, seed=8, rate=0.5)
    pooled = pooled_means(impute(model, rows, draws=5))
    assert set(pooled) == {"age", "pay"} and 0 < pooled["pay"].unknown < 1
    one = impute(model, rows).column("pay").to_numpy()
    assert pooled["pay"].error > one.std(ddof=1) / np.sqrt(len(one)) * 0.95
    with pytest.raises(SettingError, match="column `draw`"):
        pooled_means(rows)


def test_a_variational_model_imputes_by_importance():
    rows = normal_rows(1_500)[0]
    model = fit(holed(rows), Plan("vae", 3, SMALL, Training(), epochs=30))
    new = normal_rows(400, seed=9)[0]
    holes = holed(new, seed=10)
    seen = ~np.isnan(holes)
    batch = next(iter(model.batches(holes)))[1]
    latent = Latent(model)
    guess = model.preparer.scaling.inverse(latent.guess(batch).numbers).numpy()
    error, spread = np.sqrt(((guess - new)[~seen] ** 2).mean()), np.sqrt(new.var(0).mean())
    assert error < 0.85 * spread
    low, high = (
        model.preparer.scaling.inverse(ends).numpy() for ends in (latent.guess(batch).low, latent.guess(batch).high)
    )
    assert 0.8 < ((low <= new) & (new <= high))[~seen].mean() < 0.97
    first, again, other = (latent.draw(batch, seed).numbers for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[torch.from_numpy(seen)], batch.numbers[torch.from_numpy(seen)])


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"draws": 0}, "draws=0"),
        ({"draws": True}, "draws=True"),
        ({"interval": 1.0}, "interval=1.0"),
        ({"interval": 0.9, "draws": 2}, "interval with draws"),
        ({"seed": "x"}, "seed='x'"),
    ],
)
def test_bad_settings_are_refused(model, settings, error):
    with pytest.raises(SettingError, match=error):
        impute(model, people(5), **settings)


def test_a_model_that_cannot_tell_holes_is_refused():
    model = fit(normal_rows(100)[0], Plan("plain", 2, SMALL, Training(), epochs=1))
    with pytest.raises(SettingError, match="a plain model asked for cells that are missing"):
        impute(model, normal_rows(5)[0])


def test_rows_that_do_not_fit_are_refused(model):
    frame = people(5).to_pandas()
    with pytest.raises(DataError, match="pay"):
        impute(model, frame.drop(columns=["pay"]))
    with pytest.raises(DataError, match="age"):
        impute(model, frame.assign(age=["old"] * 5))


def test_a_column_that_was_all_missing_comes_back_empty():
    table = people(200).append_column("void", pa.nulls(200, pa.float64()))
    plan, learn = planned(epochs=1)
    model = fit(table, plan, learn=learn)
    whole = impute(model, table)
    assert whole.column("void").null_count == 200 and whole.column("pay").null_count == 0


def test_generated_rows_hang_together_and_keep_what_is_given(model):
    rows = generate(model, 800, seed=1).to_pandas()
    assert rows.notna().all().all() and set(rows["town"]) == {"Basel", "Bern", "Chur"}
    assert np.corrcoef(rows["age"], rows["pay"])[0, 1] > 0.7
    basel = generate(model, 300, where={"town": "Basel", "age": 30}).to_pandas()
    assert set(basel["town"]) == {"Basel"} and set(basel["age"]) == {30}
    assert basel["pay"].mean() == pytest.approx(2_400, abs=150)
    assert generate(model, 20, seed=1).to_pandas().equals(rows.head(20))
    with pytest.raises(DataError, match="all but impossible"):
        generate(model, 5, where={"age": 20, "town": "Chur", "pay": 3_800})
    with pytest.raises(SettingError, match="cell by cell"):
        generate(model, 5, sample_cells=False)
    cold = generate(model, 800, temperature=0.3).to_pandas()
    assert np.corrcoef(cold["age"], cold["pay"])[0, 1] > np.corrcoef(rows["age"], rows["pay"])[0, 1]


def fast(**more):
    return Imputer(latent=8, network=Dense(hidden=(16,)), epochs=2, random_state=0, **more)


@parametrize_with_checks([fast()])
def test_scikit_learn_is_content(estimator, check):
    check(estimator)


def test_the_estimator_gives_the_container_it_got():
    frame = people(150).to_pandas().set_index(pd.RangeIndex(5, 155))
    imputer = fast().fit(frame)
    whole = imputer.transform(frame.head(20))
    assert list(whole.columns) == list(frame.columns) and whole.index.equals(frame.head(20).index)
    assert whole.notna().all().all()
    marked = fast(add_indicator=True).fit(frame)
    table = marked.transform(frame.head(20))
    assert list(table.columns) == [*frame.columns, *(f"{name}_missing" for name in frame.columns)]
    assert list(marked.get_feature_names_out()) == list(table.columns)
    assert table["pay_missing"].tolist() == frame.head(20)["pay"].isna().tolist()
    drawn = imputer.draw(frame.head(20), 2, random_state=1)
    assert len(drawn) == 2 and not drawn[0].equals(drawn[1]) and drawn[0].index.equals(frame.head(20).index)
    array = holed(normal_rows(100)[0])
    filled = fast(add_indicator=True).fit(array).transform(array)
    assert filled.shape == (100, 8) and np.array_equal(filled[:, 4:], np.isnan(array).astype(float))
    assert fast().fit(array.astype(np.float32)).transform(array.astype(np.float32)).dtype == np.float32
    polars = pl.from_arrow(people(150))
    assert isinstance(fast(add_indicator=True).fit(polars).transform(polars), pl.DataFrame)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("impute")
    csv.write_csv(people(400), place / "people.csv")
    words = "fit people.csv --for impute --latent 8 --hidden 16 --epochs 3 --out m.narrows"
    narrows(*words.split(), cwd=place)
    return place


def test_the_command_line_imputes(folder):
    assert load(folder / "m.narrows").recipe.name == "conditional"
    words = "impute m.narrows people.csv --interval 0.8 --indicator --out a.parquet"
    done = narrows(*words.split(), cwd=folder)
    assert done.stdout.startswith("a.parquet: 400 rows, ")
    names = pd.read_parquet(folder / "a.parquet").columns
    assert {"pay_missing", "pay_low", "age_high"} <= set(names) and "town_low" not in names
    done = narrows(*["impute", "m.narrows", "people.csv", "--draws", "2", "--out", "d.csv", "--json"], cwd=folder)
    said = json.loads(done.stdout)
    assert said["rows"] == 400 and said["filled"]["pay"] > 0 and said["means"]["pay"]["error"] > 0
    assert csv.read_csv(folder / "d.csv").num_rows == 800
    done = narrows(*["impute", "m.narrows", "people.csv", "--draws", "2", "--out", "d.csv"], cwd=folder)
    assert "means over the draws" in done.stdout
    done = narrows(*["impute", "m.narrows", "people.csv", "--draws", "0", "--out", "d.csv"], cwd=folder, code=1)
    assert "draws=0" in done.stderr
