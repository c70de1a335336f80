"""Evaluation of texts, bags, series and sounds against figures computed the slow way, and PCA of sparse rows."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import sparse
from sklearn.decomposition import PCA

from narrows.errors import FitWarning, ModelFileError
from narrows.fitted import Model, Part, load
from narrows.fitting import Plan, fit
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.schema import Batch, Column, Schema, Sparse
from narrows.tasks import baseline as baselines
from narrows.tasks import features as blocks
from narrows.tasks.baseline import Baseline, learn_baseline
from narrows.tasks.evaluate import evaluate
from narrows.tasks.evaluation import ColumnErrors, Errors, Evaluation
from narrows.tasks.features import in_blocks
from narrows.tasks.keep import Keep
from narrows.tasks.principal import fit_exactly, fit_sample, principal
from narrows.tasks.shares import Unigram, as_shares
from narrows.train.settings import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning"),
    pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning"),
]
WORDS = ("the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "by", "and", "one", "bird", "sang", "tunes")
NOTHING = Errors()


def texts(rows: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in range(rows)]


def counts(rows: int, items: int, seed: int = 0) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(items, 0.3), 3)[rng.integers(0, 3, rows)]
    return sparse.csr_array(rng.poisson(shares * 12).astype(np.float32))


def trained(data: Any, epochs: int = 2, network: Any = None, recipe: str = "plain", **columns: str) -> Model:
    plan = Plan(recipe, 3, network or Dense(hidden=(16,)), Training(optimizer="adamw"), epochs=epochs, columns=columns)
    return fit(data, plan, learn={"baseline": learn_baseline})


def prepared(model: Model, data: Any) -> Batch:
    return Batch.concat([batch for _, batch in model.batches(data)]).dense()


@pytest.fixture(scope="module")
def writer() -> Model:
    network = Recurrent(units=16, autoregressive=True)
    return trained(pd.DataFrame({"text": texts(120)}), network=network, text="chars")


@pytest.fixture(scope="module")
def shopper() -> Model:
    return trained(counts(150, 40), epochs=5)


def test_bits_are_the_likelihood_of_tokens_beside_how_often_each_came_in_training(writer):
    train, new = texts(120), [*texts(30, 1), "zebra"]
    frame = pd.DataFrame({"text": new})
    found = evaluate(writer, frame)
    (column,) = found.columns
    tokens = sum(len(text) + (len(text) < writer.schema["text"].cells) for text in new)
    assert (column.measure, column.unit, column.seen) == ("bits", "character", tokens)
    assert column.errors.model == pytest.approx(writer.score(frame).sum() / tokens / np.log(2), rel=1e-4)
    assert np.isnan(column.errors.pca)
    length = writer.schema["text"].cells
    part = learn_baseline(writer, iter([batch for _, batch in writer.batches(pd.DataFrame({"text": train}))]))
    seen = Counter(char for text in train for char in [*text, *(["end"] if len(text) < length else [])])
    vocabulary = [*writer.preparer.layouts["text"].tokens, "end", "unknown"]
    total = seen.total() + 0.5 * len(vocabulary)
    chances = {char: (seen[char] + 0.5) / total for char in vocabulary}
    assert part.tensors["unigram"].tolist() == pytest.approx([chances[char] for char in vocabulary], rel=1e-5)
    writer = replace(writer, parts={"baseline": part})
    bits = [-np.log2(chances.get(char, chances["unknown"])) for text in new for char in text]
    bits += [-np.log2(chances["end"])] * (tokens - len(bits))
    (column,) = evaluate(writer, frame).columns
    assert column.errors.mean == pytest.approx(np.mean(bits), rel=1e-5)


def test_wrong_tokens_are_those_of_the_free_running_model(writer):
    new = pd.DataFrame({"text": texts(40, 2)})
    batch = prepared(writer, new)
    guess = writer.cells(writer.codes(batch))[1]
    (column,) = evaluate(writer, new).columns
    assert column.wrong.model == pytest.approx(float((guess != batch.codes)[batch.mask()].float().mean()))
    most = baselines.Baseline.of(writer, writer.source(new)).typical()[1]
    assert len(set(most[0].tolist())) == 1
    assert column.wrong.mean == pytest.approx(float((most != batch.codes)[batch.mask()].float().mean()))


def test_texts_alone_are_judged_by_bits(writer):
    found = evaluate(writer, pd.DataFrame({"text": texts(50, 3)}))
    better = found.columns[0].errors.model < found.columns[0].errors.mean
    assert found.verdict.startswith("Better than the unigram: bits per character" if better else "No better than the")
    told = json.dumps(found.to_json(), allow_nan=False)
    assert '"squared_error_per_row": {"model": null' in told
    console = Console(width=120, file=io.StringIO())
    console.print(found.table())
    assert "bits a character" in console.file.getvalue() and "wrong" in console.file.getvalue()


def test_bags_are_judged_by_perplexity_against_brute_force(shopper):
    train, new = counts(150, 40), counts(60, 40, 1)
    found = evaluate(shopper, new)
    (column,) = found.columns
    rows = new.toarray().astype(np.float64)
    with torch.no_grad():
        batch = prepared(shopper, new)
        outputs = shopper.module.decode(shopper.module.encode(batch).z).outputs[0].double()
    ours = np.exp(-(rows * outputs.log_softmax(-1).numpy()).sum() / rows.sum())
    assert column.errors.model == pytest.approx(ours, rel=1e-4)
    assert column.errors.model == pytest.approx(np.exp(shopper.score(new).sum() / rows.sum()), rel=1e-4)
    assert (column.measure, column.seen) == ("perplexity", new.nnz)
    part = learn_baseline(shopper, (batch for _, batch in shopper.batches(train)))
    whole = train.toarray()
    shares = whole.sum(0) + 0.5 * whole.sum() / train.nnz
    shares = shares / shares.sum()
    np.testing.assert_allclose(part.tensors["unigram"], shares, rtol=1e-5)
    pca = PCA(3, svd_solver="full").fit(whole)
    back = np.maximum(pca.inverse_transform(pca.transform(rows)), 1e-30)
    mixed = 0.9 * back / back.sum(1, keepdims=True) + 0.1 * shares
    (column,) = evaluate(replace(shopper, parts={"baseline": part}), new).columns
    assert column.errors.mean == pytest.approx(np.exp(-(rows * np.log(shares)).sum() / rows.sum()), rel=1e-5)
    assert column.errors.pca == pytest.approx(np.exp(-(rows * np.log(mixed)).sum() / rows.sum()), rel=1e-3)
    assert "perplexity per item" in found.verdict


def test_bags_in_the_total_are_shares_times_the_rows_own_total(shopper):
    new = counts(60, 40, 1)
    shares = shopper.cells(shopper.codes(prepared(shopper, new)))[0].numpy()
    rows = new.toarray()
    total = ((as_shares(torch.from_numpy(shares)).numpy() * rows.sum(1, keepdims=True) - rows) ** 2).sum() / len(rows)
    assert evaluate(shopper, new).total.model == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", ["bags", "texts"])
def test_figures_do_not_depend_on_blocks(writer, shopper, kind, monkeypatch):
    model, new = (shopper, counts(60, 40, 1)) if kind == "bags" else (writer, pd.DataFrame({"text": texts(60, 1)}))
    whole = evaluate(model, new)
    monkeypatch.setattr(blocks, "CELLS", 7 * model.schema.cells)
    parts = evaluate(model, new)
    for a, b in zip(whole.columns, parts.columns, strict=True):
        assert a.errors.model == pytest.approx(b.errors.model, rel=1e-5)
        assert a.errors.mean == pytest.approx(b.errors.mean, rel=1e-5)
        assert a.seen == b.seen
    assert whole.to_json()["loss_per_row"]["total"] == pytest.approx(parts.to_json()["loss_per_row"]["total"], rel=1e-5)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 40), st.integers(1, 60))
def test_blocks_hold_all_rows_in_order_and_none_is_too_large(sizes, most, cells):
    schema = Schema((Column("a", "number", "double"), Column("b", "number", "double")))
    numbers = torch.arange(2.0 * sum(sizes)).view(-1, 2)
    starts = np.cumsum([0, *sizes])
    batches = [Batch(numbers[a:b], torch.zeros(b - a, 0, dtype=torch.long)) for a, b in pairwise(starts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CELLS", cells)
        found = list(in_blocks(batches, schema, most))
    assert all(0 < len(block) <= max(1, min(most, cells // 2)) for block in found)
    joined = torch.cat([block.numbers for block in found]) if found else numbers[:0]
    assert torch.equal(joined, numbers)


def mixed_bag_table(rows: int = 90) -> pa.Table:
    """A number with holes, a category, a text and a bag."""
    rng = np.random.default_rng(0)
    bags = [[(str(k), float(rng.integers(1, 5))) for k in rng.choice(6, 3, replace=False)] for _ in range(rows)]
    bags[4] = []
    numbers = pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.1)
    return pa.table(
        {
            "number": numbers,
            "word": rng.choice(["red", "green"], rows),
            "note": texts(rows),
            "bag": pa.array(bags, pa.map_(pa.string(), pa.float32())),
        }
    )


@pytest.fixture(scope="module")
def mixed() -> Model:
    return trained(mixed_bag_table(), note="chars")


def test_a_table_of_all_kinds(mixed):
    data = mixed_bag_table()
    found = evaluate(mixed, data)
    measures = {column.name: column.measure for column in found.columns}
    assert measures == {"number": "rmse", "word": "wrong", "note": "bits", "bag": "perplexity"}
    assert "And note: " in found.verdict and "squared error per row" in found.verdict
    back = mixed.reconstruct(data)
    known = np.array(data["number"].is_valid())
    gap = (data["number"].to_numpy() - back["number"].to_numpy())[known]
    assert found.columns[0].errors.model == pytest.approx(float((gap**2).mean() ** 0.5), rel=1e-3)
    assert found.columns[1].errors.model == pytest.approx(
        np.mean([a != b for a, b in zip(data["word"].to_pylist(), back["word"].to_pylist(), strict=True)])
    )
    batch = prepared(mixed, data)
    numbers, codes = mixed.cells(mixed.codes(batch))
    bag, seen = mixed.schema.spans["bag"], batch.mask()
    word = mixed.schema.spans["word"].start
    total = ((numbers - batch.numbers)[:, :1] ** 2)[seen[:, :1]].sum()
    total += 2 * ((codes[:, 0] != batch.codes[:, 0]) & seen[:, word]).sum()
    total += ((numbers[:, bag] * batch.numbers[:, bag].sum(1, keepdim=True) - batch.numbers[:, bag]) ** 2).sum()
    assert found.total.model == pytest.approx(float(total) / len(batch), rel=1e-4)
    tokens = sum(len(text) + (len(text) < mixed.schema["note"].cells) for text in data["note"].to_pylist())
    entries = sum(len(bag) for bag in data["bag"].to_pylist())
    assert found.seen == int(known.sum()) + len(data) + tokens + entries


def test_the_part_survives_the_file_and_a_broken_one_is_refused(mixed, tmp_path):
    data = mixed_bag_table()
    mixed.save(tmp_path / "m.narrows")
    again = load(tmp_path / "m.narrows")
    assert evaluate(again, data).to_json() == evaluate(mixed, data).to_json()
    tensors = mixed.parts["baseline"].tensors
    unigram = tensors["unigram"]
    assert float(unigram.sum()) == pytest.approx(2.0)
    for change in ({"unigram": unigram[:-1]}, {"unigram": -unigram}, {"unigram": unigram * torch.nan}, {}):
        kept = {name: tensor for name, tensor in tensors.items() if name != "unigram"} | change
        with pytest.raises(ModelFileError, match="part baseline"):
            evaluate(replace(mixed, parts={"baseline": Part({}, kept)}), data)


def test_pca_of_sparse_rows_with_holes_is_that_of_dense_ones(mixed, monkeypatch):
    batch = Batch.concat([batch for _, batch in mixed.batches(mixed_bag_table())])
    assert batch.sparse is not None
    exact = learn_baseline(mixed, iter([batch[:50], batch[50:]]))
    monkeypatch.setattr(baselines, "EXACT", 1)
    sampled = learn_baseline(mixed, iter([batch[:50], batch[50:]]))
    dense = learn_baseline(mixed, iter([batch.dense()]))
    for other in (sampled, dense):
        np.testing.assert_allclose(other.tensors["mean"], exact.tensors["mean"], atol=1e-5)
        np.testing.assert_allclose(other.tensors["unigram"], exact.tensors["unigram"], rtol=1e-5)
        cosines = np.linalg.svd((other.tensors["components"] @ exact.tensors["components"].T).numpy())[1]
        assert cosines.min() > 0.999


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 40), st.integers(1, 12), st.integers(0, 4))
def test_randomized_directions_are_orthonormal_and_as_good_as_the_best(seed, rows, width, size, rank):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, width)) + 3).astype(np.float32)
    mean = values.mean(0)
    for form in (values, sparse.csr_array(values)):
        found = principal(form, mean, size)
        assert found.shape == (min(size, rows, width), width)
        np.testing.assert_allclose(found @ found.T, np.eye(len(found)), atol=1e-4)
        centered = values - mean
        left = np.square(centered - centered @ found.T @ found).sum()
        best = np.square(np.linalg.svd(centered.astype(np.float64), compute_uv=False)[len(found) :]).sum()
        assert left <= best + 1e-4 * (np.square(centered).sum() + 1)


def test_rows_without_any_feature_for_pca_and_without_rows(writer):
    schema = writer.schema
    batch = prepared(writer, pd.DataFrame({"text": texts(9)}))
    for rows, found in ((9, fit_exactly(schema, 3, iter([batch]))), (0, fit_exactly(schema, 3, iter([])))):
        assert found[0] == rows and found[1].shape == (0,) and found[2].shape == (0, 0)
    assert fit_sample(schema, 3, iter([]))[0] == 0


@settings(max_examples=30)
@given(st.lists(st.integers(0, 40), max_size=4), st.booleans())
def test_unigrams_do_not_depend_on_batches_nor_on_how_bags_are_held(mixed, cuts, dense):
    batch = Batch.concat([batch for _, batch in mixed.batches(mixed_bag_table(40))])
    whole, parts = Unigram(mixed.schema), Unigram(mixed.schema)
    whole.add(batch)
    edges = [0, *sorted(cuts), 40]
    for start, stop in pairwise(edges):
        parts.add(batch[start:stop].dense() if dense else batch[start:stop])
    np.testing.assert_allclose(parts.shares(), whole.shares(), rtol=1e-5)


def waves(rows: int, steps: int = 24) -> list[list[float]]:
    rng = np.random.default_rng(0)
    phases = rng.uniform(0, 6, rows)
    return [np.sin(np.arange(rng.integers(5, steps)) / 3 + phase).tolist() for phase in phases]


@pytest.mark.parametrize("word", ["series", "series own"])
def test_ragged_series_are_measured_in_training_deviations(word):
    data = pa.table({"x": pa.array(waves(80), pa.list_(pa.float64()))})
    model = trained(data, x=word)
    found = evaluate(model, data)
    (column,) = found.columns
    batch = prepared(model, data)
    numbers, _ = model.cells(model.codes(batch))
    grid = model.schema["x"].grid[0]
    seen = batch.mask()[:, :grid]
    gaps = (numbers - batch.numbers)[:, :grid][seen]
    assert (column.measure, column.unit, column.seen) == ("rmse", "std", sum(map(len, data["x"].to_pylist())))
    assert column.errors.model == pytest.approx(float(gaps.square().mean().sqrt()), rel=1e-4)
    assert column.r2 < 1 and not column.cells


def test_series_of_one_length_and_counts_are_measured_in_their_own_units():
    rng = np.random.default_rng(0)
    series = 5 + 100 * np.cumsum(rng.normal(size=(90, 12)), axis=1)
    model = trained(series, x="series")
    (column,) = evaluate(model, series).columns
    back = np.asarray(model.reconstruct(series)["x"].combine_chunks().to_numpy_ndarray())
    assert column.errors.model == pytest.approx(float(np.sqrt(np.square(series - back).mean())), rel=1e-4)
    assert column.unit == "" and len(column.cells["model"]) == 12
    frame = pd.DataFrame({"n": rng.poisson(7, 90), "m": rng.poisson(2, 90)})
    model = trained(frame, n="count", m="count")
    found = evaluate(model, frame)
    back = model.reconstruct(frame).to_pandas()
    for column in found.columns:
        gap = frame[column.name] - back[column.name]
        assert column.errors.model == pytest.approx(float(np.sqrt((gap**2).mean())), rel=1e-4)


def told(columns: list[ColumnErrors], total: Errors = NOTHING, **facts: Any) -> Evaluation:
    usual: dict[str, Any] = {"rows": 5, "seen": 9, "code": 4, "components": 3, "lossless": False, "linear": False}
    usual |= {"unseen_levels": {}, "baseline": "the training rows", "loss": {}} | facts
    return Evaluation(columns=tuple(columns), total=total, **usual)


def text(model: float, mean: float, wrong: float = 0.5, name: str = "t", unit: str = "character") -> ColumnErrors:
    return ColumnErrors(name, "tokens", "bits", unit, 7, Errors(model, mean=mean), wrong=Errors(wrong, mean=0.9))


def bag(model: float, pca: float, mean: float, seen: int = 7) -> ColumnErrors:
    return ColumnErrors("b", "bag", "perplexity", "item", seen, Errors(model, pca, mean))


NUMBER = ColumnErrors("n", "number", seen=7, errors=Errors(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (told([text(2.9, 4.3)]), "Better than the unigram: bits per character 2.90 against 4.30."),
        (told([text(4.4, 4.3)]), "No better than the unigram: bits per character 4.40 against 4.30; try more"),
        (told([text(0.1, 4.3, wrong=0.0)]), "Every row came back exactly."),
        (told([text(2.0, 4.0), text(3.0, 5.0, unit="byte")]), "Better than the unigram: bits per token 2.50 against"),
        (told([bag(90, 100, 200)], Errors(9, 1, 2)), "Better than PCA of 3 components: perplexity per item 90.00"),
        (told([bag(120, 100, 200)], Errors(1, 2, 3)), "No better than PCA of 3 components: perplexity per item 120.0"),
        (told([bag(210, 100, 200)], Errors(1, 2, 3)), "No better than the unigram: perplexity per item 210.0"),
        (
            told([bag(4, 9, 16), bag(9, 9, 16)], Errors(1, 2, 3)),
            "Better than PCA of 3 components: perplexity per item",
        ),
        (
            told([NUMBER, text(2.9, 4.3)], Errors(1, 2, 3)),
            "Better than PCA of 3 components: squared error per row 1.00 against 2.00 (50% less). "
            "And t: 2.90 bits a character against 4.30 of the unigram.",
        ),
        (
            told([NUMBER, text(2.9, 4.3)], Errors(0, 0, 3)),
            "No better than PCA of 3 components: squared error per row 0",
        ),
        (told([NUMBER, bag(1, 2, 3)], Errors(1, 2, 3)), "Better than PCA of 3 components: squared error per row 1.00"),
        (told([text(1, 2), NUMBER], seen=0), "Every cell of these rows is missing"),
    ],
)
def test_verdicts(found, verdict):
    assert found.verdict.startswith(verdict)
    assert bool(found.warning) == verdict.startswith("No better")


def test_a_verdict_of_no_use_is_warned_of(writer):
    part = writer.parts["baseline"]
    shares = torch.full_like(part.tensors["unigram"], 1e-6)
    spaces = writer.preparer.layouts["text"].tokens.index(" ")
    shares[spaces] = 1.0
    certain = replace(writer, parts={"baseline": Part({}, {**part.tensors, "unigram": shares})})
    with pytest.warns(FitWarning, match="No better than the unigram"):
        evaluate(certain, pd.DataFrame({"text": [" " * 20] * 3}))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=40, unique=True), st.integers(1, 8), st.integers(1, 20))
def test_kept_rows_keep_their_bags(keys, size, cut):
    bags = Sparse(torch.arange(len(keys) + 1), torch.tensor(keys), torch.tensor(keys).float() + 1, 100)
    batch = Batch(torch.tensor(keys).float()[:, None], torch.zeros(len(keys), 0, dtype=torch.long), sparse=bags)
    kept = Keep(size)
    for start in range(0, len(keys), cut):
        part = torch.tensor(keys[start : start + cut], dtype=torch.float64)
        kept.offer(part, {}, batch[start : start + cut])
    best = sorted(keys, reverse=True)[:size]
    assert kept.batch.numbers[:, 0].tolist() == best
    assert torch.equal(kept.batch.sparse.dense(), torch.diag(torch.arange(100.0) + 1)[best])


def test_a_baseline_of_rows_without_texts_or_bags_is_as_in_format_1():
    frame = pd.DataFrame({"a": np.arange(30.0), "b": list("xyz") * 10})
    model = trained(frame)
    assert set(model.parts["baseline"].tensors) == {"mean", "components"}
    assert Baseline.of(model, model.source(frame)).unigram.shape == (0,)
