"""The yardstick against scikit-learn's PCA, and `evaluate` against figures computed the slow way."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer

from narrows.errors import DataError, FitWarning, ModelFileError
from narrows.fitted import Model, Part
from narrows.fitted import load as load_model
from narrows.fitting import Plan, fit
from narrows.report.page import report
from narrows.schema import Batch
from narrows.sources.source import open_source
from narrows.tasks import baseline as baselines
from narrows.tasks.baseline import Baseline, learn_baseline
from narrows.tasks.evaluate import evaluate
from narrows.tasks.figures import figure
from narrows.tasks.keep import Keep
from narrows.tasks.values import as_floats
from small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")


def table(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "a": a,
            "b": 2 * a + 0.1 * rng.normal(size=rows),
            "count": rng.integers(0, 50, rows),
            "side": np.where(a > 0, "left", "right"),
            "level": rng.choice(list("pqrs"), rows),
            "day": pd.date_range("2020-01-01", periods=rows, freq="7h"),
            "nothing": pd.Series([None] * rows, dtype="float64"),
        }
    )
    frame.loc[3:40, "b"] = np.nan
    frame.loc[30:60, "level"] = None
    return frame


@pytest.fixture(scope="module")
def mixed() -> Model:
    return small_model(table(), "plain", 3)


def prepared(model: Model, data: object) -> Batch:
    return Batch.concat([batch for _, batch in model.batches(data)])


def slow_features(model: Model, batch: Batch) -> np.ndarray:
    """Numbers and one-hot categories with NaN for holes, cell by cell."""
    rows = []
    for i in range(len(batch)):
        seen = batch.mask()[i].tolist()
        row = [float(x) if s else np.nan for x, s in zip(batch.numbers[i], seen, strict=False)]
        for j, levels in enumerate(model.schema.levels):
            known = seen[model.schema.numbers + j]
            row += [float(batch.codes[i, j] == level) if known else np.nan for level in range(levels)]
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("cut", [7, 64, 1000])
def test_baseline_is_scikit_learns_pca_of_mean_filled_rows(mixed, cut):
    batch = prepared(mixed, table())
    blocks = (batch[start : start + cut] for start in range(0, len(batch), cut))
    part = learn_baseline(mixed, blocks)
    filled = SimpleImputer().fit_transform(slow_features(mixed, batch))
    pca = PCA(3).fit(filled)
    np.testing.assert_allclose(part.tensors["mean"], pca.mean_, atol=1e-5)
    cosines = np.linalg.svd(part.tensors["components"].numpy() @ pca.components_.T)[1]
    np.testing.assert_allclose(cosines, 1.0, atol=1e-5)
    numbers, codes = Baseline(mixed.schema, **part.tensors, origin="").cells(batch)
    expected = pca.inverse_transform(pca.transform(filled))
    np.testing.assert_allclose(numbers, expected[:, : mixed.schema.numbers], atol=1e-4)
    start = mixed.schema.numbers
    for j, levels in enumerate(mixed.schema.levels):
        assert (codes[:, j].numpy() == expected[:, start : start + levels].argmax(1)).mean() > 0.99
        start += levels


def test_baseline_of_pixels_without_holes():
    model = small_model("digits", latent=8, steps=1)
    batch = prepared(model, "digits")
    pca = PCA(8, svd_solver="full").fit(batch.numbers.numpy())
    expected = pca.inverse_transform(pca.transform(batch.numbers.numpy()))
    numbers, _ = Baseline.of(model, open_source("digits")).cells(batch)
    np.testing.assert_allclose(numbers, expected, atol=1e-4)
    assert model.parts["baseline"].facts == {"components": 8, "rows": 1797}


@pytest.mark.parametrize(
    "change",
    [
        lambda mean, components: {},
        lambda mean, components: {"mean": mean},
        lambda mean, components: {"mean": mean, "components": components, "more": mean},
        lambda mean, components: {"mean": mean[:-1], "components": components},
        lambda mean, components: {"mean": mean.unsqueeze(0), "components": components},
        lambda mean, components: {"mean": mean, "components": components[:, :-1]},
        lambda mean, components: {"mean": mean, "components": components[0]},
        lambda mean, components: {"mean": mean, "components": components.repeat(3, 1)},
        lambda mean, components: {"mean": mean, "components": torch.tensor(1.0)},
        lambda mean, components: {"mean": mean * torch.nan, "components": components},
        lambda mean, components: {"mean": mean, "components": components / 0},
        lambda mean, components: {"mean": mean.double(), "components": components},
        lambda mean, components: {"mean": mean.long(), "components": components},
    ],
)
def test_a_baseline_that_is_none_is_refused_even_where_its_file_is_sealed(mixed, tmp_path, change):
    part = mixed.parts["baseline"]
    facts = {**mixed.facts, "validation_rows": 0, "best": None}
    changed = Part({}, change(part.tensors["mean"], part.tensors["components"]))
    wrong = replace(mixed, facts=facts, parts={"baseline": changed})
    wrong.save(tmp_path / "m.narrows")
    model = load_model(tmp_path / "m.narrows")
    with pytest.raises(ModelFileError, match="part baseline"):
        evaluate(model, table())
    with pytest.raises(ModelFileError, match="part baseline"):
        report(model, table(), tmp_path / "page.html")


def test_fewer_components_than_numbers_in_the_code_are_a_baseline(mixed):
    tensors = mixed.parts["baseline"].tensors
    few = replace(mixed, parts={"baseline": Part({}, {**tensors, "components": tensors["components"][:0].clone()})})
    found = evaluate(few, table())
    assert found.components == 0 and found.total.pca == pytest.approx(found.total.mean)


ODD = [None, -1, 1.5, "x", [], {}, True, 10**400, float("nan"), [None], [{}], [{"epoch": 1}], [{"loss": 10**400}]]
ODD += [
    [{"epoch": "x", "loss": []}],
    [{"epoch": 1, "loss": 2.0, "val_loss": None}],
    [{"epoch": float("inf"), "loss": 1}],
]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["rows", "validation_rows", "epochs", "reason", "best", "records", "seed"]),
        st.sampled_from([*ODD, 0, 3]),
    )
)
def test_odd_facts_of_training_break_neither_figures_nor_page(mixed, facts):
    model = replace(mixed, facts=facts)
    found = evaluate(model, table(40))
    assert found.held is None or np.isfinite(found.held.validation)
    with tempfile.TemporaryDirectory() as folder:
        report(model, table(40), f"{folder}/page.html", rows=2, worst=1)


def test_only_linear_networks_are_called_linear():
    data = table()[["a", "b", "count"]]
    modules = {"encoder": torch.nn.Linear(4, 2), "decoder": torch.nn.Linear(2, 3)}
    for recipe, own, linear in (("linear", None, True), ("plain", None, False), ("linear", modules, False)):
        assert evaluate(fit(data, Plan(recipe, 2, epochs=1), modules=own), data).linear == linear


def test_wide_rows_get_randomized_pca_that_is_nearly_as_good(mixed, monkeypatch):
    monkeypatch.setattr(baselines, "EXACT", 10)
    batch = prepared(mixed, table())
    part = learn_baseline(mixed, iter([batch[:100], batch[100:]]))
    filled = SimpleImputer().fit_transform(slow_features(mixed, batch))
    cosines = np.linalg.svd(part.tensors["components"].numpy() @ PCA(3).fit(filled).components_.T)[1]
    assert cosines.min() > 0.99


@pytest.mark.parametrize(("recipe", "members"), [("plain", None), ("vae", None), ("plain", 3)])
def test_evaluate_against_brute_force(recipe, members):
    data = table()
    model = small_model(data, recipe, 3, members, steps=60)
    found = evaluate(model, data).to_json()
    back = model.reconstruct(data).to_pandas()
    for name in ("a", "b", "count"):
        error = (data[name] - back[name])[data[name].notna()]
        column = found["columns"][name]
        assert column["model"] == pytest.approx(float((error**2).mean() ** 0.5), rel=1e-3)
        assert column["r2"] == pytest.approx(float(1 - (error**2).mean() / data[name].var(ddof=0)), abs=1e-3)
        assert column["seen"] == int(data[name].notna().sum())
    for name in ("side", "level"):
        known = data[name].notna()
        assert found["columns"][name]["model"] == pytest.approx((data[name] != back[name])[known].mean())
        most = data[name].value_counts(normalize=True).max()
        assert found["columns"][name]["mean"] == pytest.approx(1 - most)
    days = (data["day"] - back["day"]).dt.total_seconds() / 86_400
    assert found["columns"]["day"]["unit"] == "days"
    assert found["columns"]["day"]["model"] == pytest.approx(float((days**2).mean() ** 0.5), rel=1e-2)
    assert found["columns"]["nothing"]["model"] is None
    assert found["loss_per_row"]["total"] == pytest.approx(model.score(data).mean(), rel=1e-4)
    assert ("kl" in found["loss_per_row"]) == (recipe == "vae")
    json.dumps(found, allow_nan=False)


def test_totals_are_squared_errors_in_prepared_units(mixed):
    batch = prepared(mixed, table())
    numbers, codes = mixed.cells(mixed.codes(batch))
    mask, split = batch.mask(), mixed.schema.numbers
    total = ((numbers - batch.numbers) ** 2)[mask[:, :split]].sum() + 2 * (codes != batch.codes)[mask[:, split:]].sum()
    assert evaluate(mixed, table()).total.model == pytest.approx(float(total) / len(batch), rel=1e-5)


def test_figures_do_not_depend_on_blocks(mixed, monkeypatch):
    whole = evaluate(mixed, table())
    monkeypatch.setattr("narrows.tasks.evaluate.BLOCK", 17)
    parts = evaluate(mixed, table())
    for a, b in zip(whole.columns, parts.columns, strict=True):
        assert a.errors.model == pytest.approx(b.errors.model, rel=1e-5, nan_ok=True)
        assert a.r2 == pytest.approx(b.r2, rel=1e-5, nan_ok=True)


def test_one_row_no_rows_and_levels_never_seen(mixed):
    assert evaluate(mixed, table()[:1]).rows == 1
    with pytest.raises(DataError):
        evaluate(mixed, table()[:0])
    strange = table()[:20].assign(side="up")
    with pytest.warns(match="side"):
        result = evaluate(mixed, strange)
    assert result.unseen_levels == {"side": 20}
    assert result.to_json()["columns"]["side"]["model"] == 1.0


def test_only_categories_and_a_single_number():
    words = pd.DataFrame({"x": list("abcabc") * 20, "y": list("uvwuvw") * 20})
    model = small_model(words, latent=1, steps=200)
    assert evaluate(model, words).total.model < evaluate(model, words).total.mean
    assert evaluate(small_model(table()[["a"]], latent=1, steps=5), table()[["a"]]).lossless


def test_array_columns_are_one_line_with_their_cells_in_json():
    model = small_model("digits", latent=8, steps=5)
    result = evaluate(model, "digits")
    (column,) = result.to_json()["columns"].values()
    cells = np.array([np.nan if cell is None else cell for cell in column["cells"]["model"]])
    assert cells.shape == (64,)
    assert column["model"] == pytest.approx(float((cells**2).mean() ** 0.5))


def test_a_model_without_the_part_is_compared_with_the_rows_themselves():
    model = small_model(table(), latent=2, steps=1, baseline=False)
    alone = evaluate(model, table())
    assert alone.baseline == "the evaluated rows"
    model.parts["baseline"] = learn_baseline(model, iter([prepared(model, table())]))
    assert evaluate(model, table()).total.pca == pytest.approx(alone.total.pca, rel=1e-5)


def test_warns_of_a_model_that_learnt_nothing_and_is_content_with_one_that_did():
    with pytest.warns(FitWarning, match="No better than"):
        evaluate(small_model("digits", latent=8, steps=1), "digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(small_model("digits", latent=4, steps=400), "digits")
    assert result.verdict.startswith("Better than PCA of 4 components")


def test_table_prints_hostile_names_as_they_are():
    data = table()[["a", "b"]].rename(columns={"a": "[bold]x[/]", "b": "[/red]"})
    console = Console(width=120, file=io.StringIO())
    console.print(evaluate(small_model(data, latent=1, steps=5), data).table())
    text = console.file.getvalue()
    assert "[bold]x[/]" in text and "[/red]" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (0.1234, "0.123"), (0.00123, "0.00123"), (12.345, "12.35"), (float("nan"), "-")],
)
def test_figures_are_for_people(value, text):
    assert figure(value) == text


def test_time_becomes_seconds():
    for kind, value in [(pa.date32(), 2), (pa.timestamp("ms"), 172_800_000), (pa.duration("us"), 172_800_000_000)]:
        assert as_floats(pa.array([value], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)) == [[172_800]]


@settings(max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.integers(1, 10), st.integers(1, 20))
def test_keep_holds_the_largest_keys(keys, size, cut):
    kept = Keep(size)
    for start in range(0, len(keys), cut):
        part = torch.tensor(keys[start : start + cut], dtype=torch.float64)
        kept.offer(part, {"key": part, "index": torch.arange(start, start + len(part))})
    assert kept.rows["key"].tolist() == sorted(keys, reverse=True)[:size]
    assert [keys[i] for i in kept.rows["index"]] == kept.rows["key"].tolist()


def test_a_code_of_which_few_numbers_are_used_is_held_against_as_many_components():
    rows = np.random.default_rng(0).normal(size=(200, 8))
    assert evaluate(small_model(rows, "topk:k=3", latent=6, steps=1), rows).components == 3
    assert evaluate(small_model(rows, "plain", latent=6, steps=1), rows).components == 6
