"""The scikit-learn face: its own checks, then what they do not cover: containers, holes, words, search, weights."""

import pickle

import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from narrows import Autoencoder, Dense, Training, load
from narrows.errors import DataError, DataWarning, NarrowsError, SettingError
from narrows.networks.transformer import Transformer

UNEQUAL = "weights enter the loss; a repeated row also changes which rows a step draws, so training is alike, not equal"
EXPECTED = {f"check_sample_weight_equivalence_on_{form}_data": UNEQUAL for form in ("dense", "sparse")}


def quick(**settings):
    return Autoencoder(**{"latent": 2, "hidden": (8,), "epochs": 2, "random_state": 0, **settings})


@parametrize_with_checks(
    [Autoencoder(hidden=(8,), epochs=3, random_state=0)], expected_failed_checks=lambda _: EXPECTED
)
@pytest.mark.filterwarnings(
    "default"
)  # dok matrices cannot be checked for NaN, and scikit-learn's checks fit codes as wide as the data, which we warn of
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def mixed(count=80):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": pd.array(generator.integers(18, 90, count), dtype="Int64"),
            "pay": generator.lognormal(3, 1, count),
            "job": generator.choice(["cook", "judge", "smith"], count),
            "member": generator.random(count) > 0.5,
            "since": pd.date_range("2020-01-01", periods=count, freq="D", tz="Europe/Zurich"),
            "team": pd.Categorical(generator.choice(["a", "b"], count)),
        }
    )
    frame.loc[3, "age"] = pd.NA
    frame.loc[4, "pay"] = np.nan
    frame.loc[5, "job"] = None
    return frame


def test_data_frames_come_back_with_their_names_and_types():
    frame = mixed()
    ae = quick().fit(frame)
    back = ae.inverse_transform(ae.transform(frame))
    assert list(back.columns) == list(frame.columns) == list(ae.feature_names_in_)
    assert back["age"].dtype.kind == "i" and back["member"].dtype == bool
    assert str(back["since"].dtype).endswith("Europe/Zurich]")
    assert set(back["job"]) <= {"cook", "judge", "smith"} and set(back["team"]) <= {"a", "b"}
    assert back.notna().all().all() and len(back) == len(frame)
    pd.testing.assert_frame_equal(ae.reconstruct(frame), back)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: x, np.ndarray),
        (lambda x: x.astype(np.float32).reshape(-1, 2, 3), np.ndarray),
        (lambda x: torch.from_numpy(x), torch.Tensor),
        (lambda x: pa.table({f"c{i}": x[:, i] for i in range(6)}), pa.Table),
        (lambda x: polars.DataFrame({f"c{i}": x[:, i] for i in range(6)}), polars.DataFrame),
        (lambda x: x.tolist(), np.ndarray),
        (lambda x: np.array([["u", "v"][int(v > 0)] for v in x[:, 0]] + ["w"] * 0, dtype=object)[:, None], np.ndarray),
    ],
)
def test_rows_come_back_in_the_container_they_came_in(make, kind):
    rows = make(np.random.default_rng(0).normal(size=(60, 6)))
    ae = quick(latent=1).fit(rows)
    codes = ae.transform(rows)
    back = ae.inverse_transform(codes)
    assert isinstance(back, kind) and codes.shape == (60, 1)
    assert getattr(back, "shape", None) == getattr(rows, "shape", (60, 6))
    if hasattr(rows, "dtype"):
        assert back.dtype == rows.dtype


def test_signs_are_scikit_learns():
    x = np.random.default_rng(0).normal(size=(300, 5)) @ np.diag([1, 1, 0.1, 0.1, 0.1])
    ae = quick(epochs=40).fit(x)
    odd = x[:1] + 8
    with pytest.warns(DataWarning, match="kept, not clipped"):
        assert ae.score_samples(odd)[0] < ae.score_samples(x).min()
    assert ae.model_.score(odd)[0] > ae.model_.score(x).max()
    assert ae.score(x) == pytest.approx(ae.score_samples(x).mean())


def test_answers_do_not_depend_on_neighbors():
    x = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32)
    ae = quick(recipe="vae").fit(x)
    whole, scores = ae.transform(x), ae.score_samples(x)
    others = x[::-1].copy()
    others[300] = x[300]
    np.testing.assert_array_equal(ae.transform(others)[300], whole[300])
    np.testing.assert_array_equal(ae.score_samples(others)[300], scores[300])
    # a row's place in a block may decide which of a processor's instructions round it, and nothing more
    for rows in (slice(3, 4), slice(0, 300), slice(600, 700)):
        np.testing.assert_allclose(ae.transform(x[rows]), whole[rows], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ae.score_samples(x[rows]), scores[rows], rtol=1e-5)


def test_members_widen_the_code_and_come_back():
    x = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    ae = quick(network=Dense(members=3)).fit(x)
    assert ae.transform(x).shape == (100, 6) and ae.inverse_transform(ae.transform(x)).shape == x.shape
    assert ae.score_samples(x).shape == (100,)


def test_settings_reach_a_search_and_a_pipeline():
    x = np.random.default_rng(0).normal(size=(90, 4))
    search = GridSearchCV(
        quick(training=Training()), {"training__batch_size": [16, 32], "latent": [1, 2]}, cv=2, error_score="raise"
    ).fit(x)
    assert search.best_params_["latent"] in (1, 2)
    piped = make_pipeline(StandardScaler(), quick().set_output(transform="pandas")).fit_transform(x)
    assert list(piped.columns) == ["autoencoder0", "autoencoder1"]
    again = clone(quick(training=Training(clip=0.5), network=Dense(dropout=0.1)))
    assert again.training.clip == 0.5 and again.network == Dense(dropout=0.1)


def test_row_weights_count():
    """Rows of weight 0 train nothing: the fit ends where the others alone would draw it."""
    generator = np.random.default_rng(0)
    x = np.vstack(
        [generator.normal(0, 1, (200, 4)), generator.normal(0, 1, (200, 4)) @ generator.normal(size=(4, 4)) * 3]
    )
    near = np.repeat([1.0, 0.0], 200)
    ae, plain = (quick(epochs=60, training=Training(validation=0)) for _ in range(2))
    weighted, flat = ae.fit(x, sample_weight=near), plain.fit(x)
    gain = weighted.score_samples(x[:200]).mean() - flat.score_samples(x[:200]).mean()
    loss = weighted.score_samples(x[200:]).mean() - flat.score_samples(x[200:]).mean()
    assert gain > 0 > loss


def test_weights_of_files_and_tables_are_counted_by_their_rows(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.save(tmp_path / "x.npy", x)
    weight = np.linspace(0, 1, 60)
    wanted = quick().fit(x, sample_weight=weight).transform(x)
    for rows in (str(tmp_path / "x.npy"), tmp_path / "x.npy"):
        np.testing.assert_array_equal(quick().fit(rows, sample_weight=weight).transform(rows), wanted)
    for rows in (x, str(tmp_path / "x.npy"), pd.DataFrame(x), pa.table({"a": x[:, 0], "b": x[:, 1]})):
        for wrong in (weight[1:], weight[:, None], 1.0, -weight, np.zeros(60), ["heavy"] * 60):
            with pytest.raises(SettingError, match="weight"):
                quick(latent=1).fit(rows, sample_weight=wrong)


def test_a_run_goes_on_where_it_stopped(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 4))
    whole = quick(epochs=6).fit(x)
    seconds = Training(checkpoint_every=0)
    met = []
    with pytest.raises(ZeroDivisionError):
        quick(epochs=6, training=seconds).fit(
            x, run=tmp_path, callbacks=[lambda record: met.append(record) or (len(met) == 3 and 1 / 0)]
        )
    ae = quick(epochs=6, training=seconds).fit(x, run=tmp_path, resume=True, callbacks=[met.append])
    assert len(met) < 3 + 6 and len(ae.history_) == 6
    np.testing.assert_array_equal(ae.transform(x), whole.transform(x))
    with pytest.raises(SettingError, match="without a run"):
        quick().fit(x, resume=True)


def test_validation_rows_and_callbacks():
    x = np.random.default_rng(0).normal(size=(100, 4))
    met = []
    ae = quick(epochs=10).fit(x, validation=x[:20], callbacks=[lambda record: met.append(record) or len(met) == 3])
    assert len(met) == 3 == len(ae.history_) and "val_loss" in met[0]
    assert (ae.model_.facts["rows"], ae.model_.facts["validation_rows"]) == (100, 20)
    assert ae.model_.facts["reason"] == "callback"


def test_files_and_seeds(tmp_path):
    frame = mixed()
    frame.to_parquet(tmp_path / "a.parquet")
    ae = quick().fit(str(tmp_path / "*.parquet"))
    same = quick().fit(frame)
    np.testing.assert_array_equal(ae.transform(frame), same.transform(frame))
    assert (ae.transform(frame) != quick(random_state=1).fit(frame).transform(frame)).any()
    ae.save(tmp_path / "m.narrows")
    np.testing.assert_array_equal(load(tmp_path / "m.narrows").encode(frame), ae.transform(frame))
    again = pickle.loads(pickle.dumps(ae))
    np.testing.assert_array_equal(again.transform(frame), ae.transform(frame))


def test_mistakes_are_told():
    x = np.random.default_rng(0).normal(size=(50, 4))
    with pytest.raises(NotFittedError):
        quick().transform(x)
    ae = quick().fit(x)
    with pytest.raises(ValueError, match="3 features"):
        ae.transform(x[:, :3])
    with pytest.raises(DataError, match=r"wanted: numbers of shape \(n, 2\)"):
        ae.inverse_transform(np.zeros((3, 5)))
    with pytest.raises(DataError, match="NaN"):
        ae.inverse_transform(np.full((3, 2), np.nan))
    for wrong in ({"latent": 0}, {"epochs": 0}, {"lr": -1.0}, {"recipe": "x"}, {"network": 3}, {"device": "abacus"}):
        with pytest.raises(SettingError):
            quick(**wrong).fit(x)
    with pytest.raises(SettingError, match="half"):
        quick(training=Training(precision="half")).fit(x)
    frame = mixed()
    ae = quick().fit(frame)
    with pytest.raises((NarrowsError, ValueError), match="pay"):
        ae.transform(frame.drop(columns="pay"))
    with pytest.raises(DataError, match="age"):
        ae.transform(frame.assign(age="old"))


def baskets(count=60, items=40):
    generator = np.random.default_rng(0)
    return sparse.csr_array(generator.poisson(generator.gamma(0.3, 1, (count, items))))


@pytest.mark.parametrize("form", ["csr", "coo"])
@pytest.mark.parametrize("make", [sparse.csr_array, sparse.csr_matrix])
def test_sparse_rows_are_bags_and_come_back_sparse(form, make):
    rows = make(baskets()).asformat(form)
    ae = quick(network=Dense(hidden=(8,), members=2)).fit(rows, sample_weight=np.arange(60) % 3)
    assert ae.n_features_in_ == 40 and ae.model_.schema["x"].kind == "bag"
    again = ae.reconstruct(rows)
    assert type(again) is type(rows) and again.shape == rows.shape and again.dtype == rows.dtype
    wanted = [{i: int(n) for i, n in bag if n >= 1} for bag in ae.model_.reconstruct(rows)["x"].to_pylist()]
    assert [{i: row[i] for i in np.flatnonzero(row)} for row in again.toarray()] == wanted
    assert again.nnz == sum(map(len, wanted)) > 0
    codes = ae.transform(rows)
    assert np.array_equal(pickle.loads(pickle.dumps(ae)).transform(rows), codes)
    assert np.array_equal(ae.transform(rows.toarray()), codes)
    assert ae.inverse_transform(codes[:0]).shape == (0, 40)
    with pytest.raises(ValueError, match="40 features"):
        ae.transform(rows.tocsr()[:, :12])


def test_a_model_of_tables_reads_sparse_rows_as_tables():
    rows = np.random.default_rng(0).normal(size=(50, 5)) * (np.arange(5) != 2)
    ae = quick().fit(rows)
    assert np.array_equal(ae.transform(sparse.csr_array(rows)), ae.transform(rows))


@pytest.mark.parametrize("make", [pd.DataFrame, polars.DataFrame])
def test_a_text_read_as_a_bag_comes_back_as_its_words(make):
    texts = [f"apples and pears {'again ' * (i % 3)}" for i in range(40)]
    frame = make({"text": texts, "n": np.arange(40.0)})
    again = quick(columns={"text": "bag"}).fit(frame).reconstruct(frame)
    assert {"apples", "and", "pears"} <= set(again["text"][3]) <= {"apples", "and", "pears", "again"}


def test_a_transformer_reads_the_cells_of_a_table():
    frame = mixed()
    settings = Transformer(width=8, layers=1, heads=2)
    ae = quick(network=settings).fit(frame)
    assert list(ae.reconstruct(frame).columns) == list(frame.columns)
    assert ae.model_.network.kind == "transformer"


def test_modules_of_the_users_own_may_need_several_rows():
    encoder = torch.nn.Sequential(
        torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    decoder = torch.nn.Linear(2, 5)
    rows = np.random.default_rng(0).normal(size=(50, 5))
    assert quick(network=(encoder, decoder)).fit(rows).transform(rows).shape == (50, 2)
