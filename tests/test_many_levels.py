"""Categories with many levels: exact probabilities in two steps, unseen levels by hash, counts, files and verbs."""

from __future__ import annotations

import subprocess
import sys
from math import ceil, sqrt

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.stats import chisquare

from narrows import load
from narrows.errors import DataError, DataWarning, ModelFileError
from narrows.fitted import Model
from narrows.fitting import Plan, fit
from narrows.model.categorical import Categorical
from narrows.model.draws import drawn
from narrows.model.embed import STRANGERS, with_strangers
from narrows.model.factored import Classes, Factored
from narrows.networks.dense import Dense
from narrows.networks.transformer import Transformer
from narrows.prepare.categories import Counts, dealt, hashed
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.schema import Batch
from narrows.tasks.detect import Detector
from narrows.tasks.evaluate import evaluate
from narrows.tasks.generate import generate
from narrows.tasks.judges import Histograms
from narrows.tasks.purposes import purpose_of
from narrows.train.settings import Training

MEMBERS = [None, 3]


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narrows.prepare.categories.MANY", 8)


def shops(rows: int = 400, levels: int = 30) -> pd.DataFrame:
    """A shop, its town and what it takes: the shop follows from the other two."""
    draw = np.random.default_rng(0)
    shop = draw.integers(0, levels, rows)
    town = np.array(["Bern", "Oslo", "Rome"])[shop % 3]
    return pd.DataFrame({"shop": [f"shop {s}" for s in shop], "town": town, "takes": shop + draw.normal(0, 0.1, rows)})


def table_of(told: Factored, outputs: torch.Tensor) -> torch.Tensor:
    """(n, levels + 1) log probabilities from the definition, level by level; of the first member."""
    classes, vector = outputs.double().split([told.shape.classes + 1, told.shape.vector], dim=-1)
    vectors = told.vectors.weight.double().view(-1, told.shape.fellows, told.shape.vector)
    biases, rows = told.biases.weight.double(), []
    for i in range(len(outputs)):
        first = classes[i].softmax(0)
        chances = []
        for level in range(told.shape.levels):
            group, place = divmod(level, told.shape.fellows)
            there = min(told.shape.fellows, told.shape.levels - group * told.shape.fellows)
            logits = torch.stack([vectors[group, f] @ vector[i] + biases[group, f] for f in range(there)])
            chances.append(first[group] * logits.softmax(0)[place])
        rows.append(torch.stack([*chances, first[-1]]).log())
    return torch.stack(rows)


def factored(levels: int, members: int | None = None, vector: int = 3) -> Factored:
    torch.manual_seed(levels)
    fellows = ceil(sqrt(levels) / 2)
    told = Factored(Classes(levels, ceil(levels / fellows), vector), members)
    torch.nn.init.normal_(told.biases.weight)
    return told


@pytest.mark.parametrize("levels", [1, 2, 7, 25, 53])
def test_probabilities_sum_to_one_and_are_those_of_the_table(levels):
    told = factored(levels)
    outputs = 2 * torch.randn(6, told.shape.outputs)
    table = table_of(told, outputs)
    torch.testing.assert_close(table.exp().sum(1), torch.ones(6).double())
    torch.testing.assert_close(told.log_chances(outputs).double(), table, atol=1e-5, rtol=1e-5)
    for level in range(levels + 1):
        codes = torch.full((6,), level)
        torch.testing.assert_close(told.log_prob(outputs, codes).double(), table[:, level], atol=1e-5, rtol=1e-5)
    beyond = told.log_prob(outputs, torch.full((6,), levels + 9))  # whichever code an unseen level has
    torch.testing.assert_close(beyond.double(), table[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tried", [1, 3, 16])
@pytest.mark.parametrize("sure", [0.0, 1.0, 6.0])
def test_the_mode_is_that_of_the_table_however_flat_it_is(sure, tried, monkeypatch):
    monkeypatch.setattr("narrows.model.factored.TRIED", tried)
    told = factored(53)
    outputs = sure * torch.randn(200, told.shape.outputs)
    assert torch.equal(told.mode(outputs), told.log_chances(outputs)[:, :-1].argmax(1))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_come_as_often_as_they_are_probable(temperature):
    told = factored(12)
    outputs = torch.randn(1, told.shape.outputs)
    torch.manual_seed(0)
    drawn_ = told.sample(outputs.expand(20_000, -1), temperature)
    wanted = (told.log_chances(outputs)[0, :-1] / temperature).softmax(0).double()
    found = torch.bincount(drawn_, minlength=12).numpy()
    assert chisquare(found, 20_000 * (wanted / wanted.sum()).detach().numpy()).pvalue > 0.001


@pytest.mark.parametrize("members", MEMBERS)
def test_gradients_are_those_of_a_softmax_over_all_levels(members):
    told = factored(23, members)
    outputs = torch.randn(2, *([members] if members else []), 5, told.shape.outputs, requires_grad=True)
    codes = torch.tensor([0, 22, 7, 23, 7])
    cost = -told.log_prob(outputs, codes).sum()
    weights = [outputs, told.vectors.weight, told.biases.weight]
    fast = torch.autograd.grad(cost, weights)
    slow_cost = torch.zeros(())
    for member in range(members or 1):
        theirs = outputs[:, member] if members else outputs
        every = told.log_chances(theirs.flatten(0, 1), member)
        slow_cost = slow_cost - every.gather(1, codes.repeat(2).unsqueeze(1)).sum()
    torch.testing.assert_close(cost, slow_cost)
    for ours, wanted in zip(fast, torch.autograd.grad(slow_cost, weights), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)


def test_members_are_networks_of_their_own():
    told = factored(23, 3)
    outputs = torch.randn(2, 3, 40, told.shape.outputs)
    for member in range(3):
        every = told.log_chances(outputs[:, member].flatten(0, 1), member)[:, :-1]
        assert torch.equal(told.mode(outputs)[:, member].flatten(), every.argmax(1))
    assert told.sample(outputs).shape == told.sample(outputs, 0.5).shape == (2, 3, 40)


def test_cells_of_few_and_of_many_levels_stand_side_by_side():
    levels, many = (5, 40, 3, 60), {1: Classes(40, 10, 4), 3: Classes(60, 12, 5)}
    torch.manual_seed(0)
    cells = Categorical(levels, many)
    outputs = torch.randn(2, 7, cells.outputs)
    codes = torch.stack([torch.randint(0, count + 1, (7,)) for count in levels], dim=1)
    found, mode = cells.log_prob(outputs, codes), cells.mode(outputs)
    parts = outputs.split([6, many[1].outputs, 4, many[3].outputs], dim=-1)
    for cell, told in zip((1, 3), cells.factored, strict=True):
        torch.testing.assert_close(found[..., cell], told.log_prob(parts[cell], codes[:, cell]))
        assert torch.equal(mode[..., cell], told.mode(parts[cell]))
    for cell in (0, 2):
        wanted = parts[cell].log_softmax(-1).gather(-1, codes[:, cell].expand(2, 7).unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(found[..., cell], wanted)
    assert cells.sample(outputs).shape == (2, 7, 4)
    only = Categorical((40,), {0: many[1]})
    assert only.mode(torch.randn(3, only.outputs)).shape == (3, 1)


def test_minus_infinity_is_never_drawn():
    logits = torch.tensor([0.0, float("-inf"), 0.0]).expand(1000, 3)
    assert set(drawn(logits).tolist()) == {0, 2}


# codes


def test_few_levels_are_told_as_ever_and_many_in_classes_that_hold_them():
    assert dealt(256) == {}
    for levels in (257, 1000, 2000, 99_999, 100_000, 1 << 17):
        facts = dealt(levels)
        fellows = ceil(levels / facts["classes"])
        assert (facts["classes"] - 1) * fellows < levels <= facts["classes"] * fellows and facts["vector"] <= 64
    assert dealt(300)["vector"] == round(1.6 * 300**0.56)


def test_hashes_are_the_same_in_another_process_and_for_ever():
    values = pa.array(["a", "b", "a", "Ærø", ""])
    here = hashed(values, 64).tolist()
    assert here == [0, 4, 0, 12, 36]  # what was trained by these codes relies on them
    assert hashed(pa.array([3, 4]), 64).tolist() == hashed(pa.array([3.0, 4.0]), 64).tolist()
    code = (
        "import pyarrow as pa; from narrows.prepare.categories import hashed;"
        "print(hashed(pa.array(['a', 'b', 'a', 'Ærø', '']), 64).tolist())"
    )
    where = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"}
    told = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", code], env=where, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == str(here)


def prepared(rows: pd.DataFrame) -> Preparer:
    batch = pa.RecordBatch.from_pandas(rows, preserve_index=False)
    statistics = Statistics(batch.schema)
    statistics.update(batch, 0)
    return Preparer.learn(statistics)


@pytest.mark.usefixtures("few_are_many")
def test_unseen_levels_differ_and_missing_ones_are_none():
    preparer = prepared(shops())
    column = preparer.schema["shop"]
    assert (column.levels, column.strange) == (30, 64) and preparer.schema["town"].strange == 1
    new = pa.RecordBatch.from_pydict({"shop": ["new", "other", None, "new"], "town": ["Bern"] * 4, "takes": [1.0] * 4})
    with pytest.warns(DataWarning, match="'shop' has levels not kept in training, such as 'new': they share 64 codes"):
        batch = preparer.prepare(new)
    codes = batch.codes[:, 0].tolist()
    assert codes[0] == codes[3] != codes[1] and codes[2] == 30 and min(codes[:2]) >= 30 and max(codes) < 94
    assert batch.seen is not None and batch.seen[:, -2].tolist() == [True, True, False, True]
    assert preparer.restore(batch.numbers, batch.codes).column("shop").null_count == 4


def test_numbers_that_are_to_be_categories_are_counted_however_many(monkeypatch):
    monkeypatch.setattr("narrows.prepare.categories.OTHER_LEVELS", 50)
    zips = pd.DataFrame({"zip": np.repeat(np.arange(1000, 1400), 3), "x": np.arange(1200.0)})
    model = fit(zips, Plan(columns={"zip": "category"}, latent=2, epochs=1))
    assert model.schema["zip"].levels == pytest.approx(400, abs=20) and model.schema["zip"].classes
    assert set(model.reconstruct(zips[:50]).column("zip").to_pylist()) <= set(zips["zip"])


@pytest.mark.usefixtures("few_are_many")
def test_nan_in_a_category_is_a_missing_value_and_no_level():
    zips = pd.DataFrame({"zip": [*np.repeat(np.arange(100.0, 130.0), 4), np.nan, np.nan], "x": np.arange(122.0)})
    model = fit(zips, Plan(columns={"zip": "category"}, latent=2, epochs=1, network=Dense(hidden=(4,))))
    batch = model.preparer.prepare(pa.RecordBatch.from_pandas(zips[-3:], preserve_index=False))
    assert model.schema["zip"].classes and model.schema["zip"].holes and model.schema["zip"].levels <= 30
    assert batch.seen is not None and batch.seen[:, -1].tolist() == [True, False, False]
    assert model.reconstruct(zips[-2:]).column("zip").null_count == 0


def test_a_few_chances_are_shown_as_each_of_the_unseen_codes():
    torch.manual_seed(0)
    codes = with_strangers(torch.zeros(400_000, dtype=torch.long), 9, 4)
    found = torch.bincount(codes, minlength=13)
    assert found[1:9].sum() == 0 and found[0] > 390_000
    assert chisquare(found[9:].numpy()).pvalue > 0.001 and abs(int(found[9:].sum()) / 400_000 - STRANGERS) < 1e-3


# counts


def test_what_becomes_frequent_late_is_not_lost_and_counts_are_off_by_no_more_than_is_said():
    counts = Counts(pa.string(), limit=50)
    truth: dict[str, int] = {}
    for part in range(120):
        often = ["late"] * 40 if part >= 60 else ["early"] * 10
        block = often + [f"rare {part} {i}" for i in range(400)] + [f"some {i}" for i in range(30)]
        counts.add(pa.array(block))
        for value in block:
            truth[value] = truth.get(value, 0) + 1
    values, found = counts.ranked()
    rows = sum(truth.values())
    kept = dict(zip(values.to_pylist(), found.tolist(), strict=True))
    assert counts.overflowed and len(kept) <= 50 and counts.lost <= rows / 51
    assert {value for value, count in truth.items() if count > counts.lost} <= set(kept) and values[0].as_py() == "late"
    assert all(truth[value] - counts.lost <= count <= truth[value] for value, count in kept.items())


def test_merged_counts_keep_the_promise():
    parts, truth = [], {}
    for which in range(3):
        counts = Counts(pa.string(), limit=40)
        for part in range(40):
            block = [f"often {which}"] * 30 + ["all"] * 8 + [f"{which} {part} {i}" for i in range(300)]
            counts.add(pa.array(block))
            for value in block:
                truth[value] = truth.get(value, 0) + 1
        parts.append(counts)
    whole = parts[0]
    for other in parts[1:]:
        whole.merge(other)
    values, found = whole.ranked()
    kept = dict(zip(values.to_pylist(), found.tolist(), strict=True))
    assert {value for value, count in truth.items() if count > whole.lost} <= set(kept)
    assert "all" in kept and all(truth[v] - whole.lost <= count <= truth[v] for v, count in kept.items())


# models


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("network", [Dense(hidden=(32,)), Dense(hidden=(16,), members=2), Transformer(width=16)])
def test_a_model_learns_levels_and_its_file_gives_the_same_answers(network, tmp_path):
    rows = shops()
    epochs = 60 if network == Dense(hidden=(32,)) else 2
    model = fit(rows, Plan(latent=3, network=network, epochs=epochs, lr=0.01))
    path = tmp_path / "m.narrows"
    model.save(path)
    again = load(path)
    assert again.schema == model.schema and np.array_equal(again.score(rows), model.score(rows))
    assert again.reconstruct(rows).equals(model.reconstruct(rows))
    if epochs == 60:
        errors = {column.name: column.errors for column in evaluate(again, rows).columns}
        assert errors["shop"].model < 0.2 < 0.5 < errors["shop"].pca


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("recipe", ["vae", "masked", "contractive", "iwae:samples=3", "vq:levels=8"])
def test_every_kind_of_recipe_takes_them(recipe):
    rows = shops(120)
    rows.loc[3, "shop"] = None
    model = fit(rows, Plan(recipe=recipe, latent=4, network=Dense(hidden=(8,)), epochs=2))
    assert np.isfinite(model.score(rows)).all() and model.reconstruct(rows).column("shop").null_count == 0


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.filterwarnings("ignore:column 'shop' has levels not kept")
def test_rows_are_generated_with_given_levels_and_without():
    plan = Plan(latent=3, network=Dense(hidden=(16,)), epochs=3)
    purpose = purpose_of("generate")
    model = fit(shops(), purpose.settle(plan), learn=purpose.learn)
    made = generate(model, 20)
    assert set(made.column("shop").to_pylist()) <= set(shops()["shop"])
    given = generate(model, 5, where={"shop": "shop 4"})
    assert given.column("shop").to_pylist() == ["shop 4"] * 5
    with pytest.raises(DataError, match="'new' in column 'shop', a level that training did not have"):
        generate(model, 5, where={"shop": "new"})


@pytest.mark.usefixtures("few_are_many")
def test_anomalies_are_told_and_unseen_levels_are_the_rarest():
    purpose = purpose_of("detect")
    plan = Plan(latent=3, network=Dense(hidden=(16,)), epochs=3, training=Training(validation=0.2))
    model = fit(shops(), purpose.settle(plan), learn=purpose.learn, core=purpose.core)
    detector = Detector.of(model)
    batch = model.preparer.prepare(pa.RecordBatch.from_pandas(shops()[:20], preserve_index=False))
    rarity = Histograms.learn(model.schema, batch)
    costs = [rarity(Batch(batch.numbers, batch.codes.clamp(max=1) + code)).cells[:, -2] for code in (28, 31, 92)]
    assert torch.isfinite(detector.blame(batch).cells).all()
    assert torch.equal(costs[1], costs[2]) and (costs[1] >= costs[0]).all()


# files


def saved(model: Model, path, change) -> None:
    """A model file whose preparer was changed in memory before writing."""
    original = model.preparer.to_file

    def to_file():
        facts, tensors = original()
        change(facts, tensors)
        return facts, tensors

    model.preparer.to_file = to_file
    model.save(path)


def renamed(tensors):
    tensors["levels.7.text"] = tensors.pop("levels.0.text")


DAMAGE = {
    "length": lambda facts, tensors: tensors.update({"levels.0.lengths": tensors["levels.0.lengths"] + 1}),
    "missing": lambda facts, tensors: tensors.pop("levels.0.text"),
    "another's": lambda facts, tensors: renamed(tensors),
    "twice": lambda facts, tensors: tensors.update({"levels.0.text": torch.zeros_like(tensors["levels.0.text"])}),
    "not text": lambda facts, tensors: tensors["levels.0.text"].fill_(255),
    "classes": lambda facts, tensors: facts["columns"][0].update(classes=29),
    "no vector": lambda facts, tensors: facts["columns"][0].update(vector=0),
    "no codes": lambda facts, tensors: facts["columns"][0].update(strange=0),
    "of numbers": lambda facts, tensors: facts["columns"][2].update(classes=2, vector=2),
    "of few": lambda facts, tensors: facts["columns"][1].update(vector=2),
}


@pytest.mark.usefixtures("few_are_many")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_levels_are_refused(damage, tmp_path):
    model = fit(shops(90), Plan(latent=2, network=Dense(hidden=(4,)), epochs=1))
    saved(model, tmp_path / "bad.narrows", DAMAGE[damage])
    with pytest.raises(ModelFileError):
        load(tmp_path / "bad.narrows")


@pytest.mark.usefixtures("few_are_many")
def test_names_of_levels_are_bytes_in_the_file_and_few_ones_json():
    facts, tensors = prepared(shops()).to_file()
    assert facts["levels"]["shop"]["values"] is None and facts["levels"]["town"]["values"]
    assert bytes(tensors["levels.0.text"].tolist()).startswith(b"shop ")
    numbers, tensors = prepared(shops().assign(takes=lambda f: pd.Categorical(f["shop"].str[5:].astype(int)))).to_file()
    assert numbers["levels"]["takes"]["values"] is None and tensors["levels.2.numbers"].dtype == torch.int64
    assert "classes" not in facts["columns"][1]  # files without such columns are as they always were
