"""Generated rows: their frequencies, moments and conditions, what makes them the same again, and what is refused."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as csv
import pytest
import torch

from command import narrows
from narrows import Autoencoder, Generator, Plan, fit, generate, interpolate, keep_prior, learn_prior, load
from narrows.errors import DataError, DataWarning, SettingError
from narrows.fitted import BLOCK
from narrows.networks.dense import Dense
from narrows.tasks.generate import Generation, between
from small_models import small_model

ROWS = 1_500


def people(rows=ROWS, seed=0):
    """Columns that hang together: schooling and age raise pay, pay decides what is rich, age the number of children."""
    draw = np.random.default_rng(seed)
    sex = draw.choice(["man", "woman"], rows, p=[0.67, 0.33])
    school = draw.choice(["high", "college", "doctor"], rows, p=[0.6, 0.3, 0.1])
    age = (np.clip(draw.gamma(6, 6, rows) + 17, 17, 90)).round()
    pay = np.exp(9.5 + (school == "college") * 0.5 + (school == "doctor") + 0.01 * age + 0.3 * draw.normal(size=rows))
    children = draw.poisson(1 + (age > 45))
    columns = {"sex": sex, "school": school, "age": age, "pay": pay, "children": children, "rich": pay > 40_000}
    return pa.table(columns)


@pytest.fixture(scope="module")
def learnt():
    """A variational autoencoder of people, with a code prior."""
    plan = Plan("vae:beta=0.3", latent=4, network=Dense(hidden=(64,)), epochs=40, columns={"children": "count"})
    return fit(people(), plan, learn={"prior": partial(learn_prior, kind="mixture")})


@pytest.fixture(scope="module")
def many(learnt):
    return generate(learnt, 6_000, seed=1).to_pandas()


def test_rows_have_the_columns_and_types_of_training(learnt):
    rows, data = generate(learnt, 10), people(10)
    assert rows.num_rows == 10 and rows.schema.names == data.schema.names and rows.schema.types == data.schema.types
    assert not any(column.null_count for column in rows.columns)


def test_frequencies_and_moments_are_those_of_training(many):
    data = people().to_pandas()
    for column in ("sex", "school", "rich"):
        found, wanted = (frame[column].value_counts(normalize=True) for frame in (many, data))
        assert (found - wanted).abs().max() < 0.05, column
    for column in ("age", "pay", "children"):
        assert many[column].mean() == pytest.approx(data[column].mean(), rel=0.06), column
        # how counts scatter is learnt from far off: after so few epochs they still scatter too much
        off = 0.35 if column == "children" else 0.2
        assert many[column].std() == pytest.approx(data[column].std(), rel=off), column


def test_columns_hang_together_as_in_training(many):
    data = people().to_pandas()
    pay = [np.log(frame["pay"]).groupby(frame["school"]).mean() for frame in (many, data)]
    assert (pay[0] - pay[1]).abs().max() < 0.12
    correlation = [np.corrcoef(np.log(frame["pay"]), frame["age"])[0, 1] for frame in (many, data)]
    assert correlation[0] == pytest.approx(correlation[1], abs=0.12)
    assert ((many["pay"] > 40_000) == many["rich"]).mean() > 0.85


def test_numbers_stay_within_the_range_of_training(many):
    data = people().to_pandas()
    for column in ("age", "pay", "children"):
        assert many[column].min() >= data[column].min() * (1 - 1e-4)
        assert many[column].max() <= data[column].max() * (1 + 1e-4)
    assert (many["children"] == many["children"].round()).all() and many["children"].dtype.kind == "i"


def test_the_same_seed_gives_the_same_rows(learnt, tmp_path):
    state = torch.get_rng_state()
    once, again, other = (generate(learnt, 300, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert once.equals(again) and not once.equals(other)
    learnt.save(tmp_path / "m.narrows")
    assert generate(load(tmp_path / "m.narrows"), 300, seed=5).equals(once)


def test_the_first_rows_of_many_are_those_of_few(learnt):
    few, most = generate(learnt, 40, seed=2), generate(learnt, BLOCK + 40, seed=2)
    assert most[:40].equals(few)
    assert not most[BLOCK:].equals(few)


def test_given_values_are_held_and_the_rest_follows_them(learnt, many):
    """Rows that hold values are those that hold them among all rows: importance resampling against rejection."""
    given = generate(learnt, 4_000, seed=3, where={"school": "doctor", "sex": "man"}).to_pandas()
    assert set(given["school"]) == {"doctor"} and set(given["sex"]) == {"man"}
    among = generate(learnt, 40_000, seed=4).to_pandas()
    among = among[(among["school"] == "doctor") & (among["sex"] == "man")]
    assert len(among) > 800
    for column in ("age", "pay", "children", "rich"):
        error = math.hypot(among[column].std() / len(among) ** 0.5, given[column].std() / 1_000**0.5)
        assert abs(given[column].mean() - among[column].mean()) < 5 * error, column


def test_numbers_may_be_given(learnt):
    young, old = (generate(learnt, 500, where={"age": age}).to_pandas() for age in (25, "75"))
    assert set(young["age"]) == {25.0} and set(old["age"]) == {75.0}
    assert old["children"].mean() > young["children"].mean() + 0.4
    exact = generate(learnt, 3, where={"pay": 23_456.789, "rich": "false"}).to_pandas()
    assert set(exact["pay"]) == {23_456.789} and not exact["rich"].any()


def test_how_much_codes_are_worth_is_told(learnt):
    made = Generation(learnt, where={"sex": "woman"})
    assert made.chosen is None
    rows = list(made.batches(200))
    assert sum(map(len, rows)) == 200
    assert 200 <= made.chosen.effective <= made.chosen.drawn
    narrow = Generation(learnt, where={"age": 40.0, "pay": 30_000.0, "children": 1, "school": "high"})
    next(narrow.batches(1))
    assert narrow.chosen.effective / narrow.chosen.drawn < made.chosen.effective / made.chosen.drawn


def test_what_is_rare_is_warned_of(learnt, monkeypatch):
    monkeypatch.setattr("narrows.tasks.conditions.MOST", 1)
    with pytest.warns(DataWarning, match=r"4,096 codes from the prior are worth .* alike in groups"):
        generate(learnt, 100_000, where={"school": "doctor"})


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"school": "none"}, r"'none' in column 'school', a level that training did not have; wanted: one of .*doctor"),
        ({"shoes": 43}, "no column 'shoes'"),
        ({"age": None}, "no value for column 'age'"),
        ({"age": float("nan")}, "no value for column 'age'"),
        ({"age": 900}, "no code of .* makes age=900 likely"),
        ({"pay": 20_000, "rich": True, "school": "high"}, "occur together"),
        ({"age": "old"}, "'old'"),
    ],
)
def test_conditions_that_no_row_fulfils(learnt, where, message):
    with pytest.raises(DataError, match=message):
        generate(learnt, 5, where=where)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows=0"),
        ({"rows": 2.5}, "rows=2.5"),
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"seed": "now"}, "seed='now'"),
    ],
)
def test_settings_out_of_range(learnt, settings, message):
    with pytest.raises(SettingError, match=message):
        generate(learnt, **{"rows": 5, **settings})


def test_cold_rows_are_more_alike(learnt):
    warm, cold = (generate(learnt, 400, temperature=t).to_pandas() for t in (1.0, 0.3))
    for column in ("age", "pay"):
        assert cold[column].std() < 0.85 * warm[column].std()


def test_the_most_probable_cells_are_not_drawn(learnt):
    table = generate(learnt, 2_000, sample_cells=False)
    drawn = generate(learnt, 2_000)
    noise = drawn.to_pandas()["pay"] - table.to_pandas()["pay"]  # of the same codes
    assert 0 < noise.std() < table.to_pandas()["pay"].std()
    assert generate(learnt, 2_000, sample_cells=False).equals(table)


DATA = np.random.default_rng(0).normal(size=(200, 4)).cumsum(1)


def test_a_model_without_a_prior_says_what_to_do():
    model = small_model(DATA, steps=5, baseline=False)
    with pytest.raises(SettingError, match=r"--learn.*keep_prior.*vae"):
        generate(model, 3)
    keep_prior(model, DATA)
    assert generate(model, 3).num_rows == 3


def test_squared_errors_take_no_condition():
    model = small_model(pa.table({"a": DATA[:, 0], "b": DATA[:, 1]}), steps=5, baseline=False)
    keep_prior(model, pa.table({"a": DATA[:, 0], "b": DATA[:, 1]}))
    with pytest.raises(SettingError, match="likelihood mse is no density"):
        generate(model, 3, where={"a": 0.5})


def test_arrays_take_no_condition():
    model = small_model(DATA, "vae", steps=5, baseline=False)
    with pytest.raises(SettingError, match="'x' of kind number; wanted: one of single numbers"):
        generate(model, 3, where={"x": [0, 0, 0, 0]})


@pytest.mark.parametrize("recipe", ["vae", "plain", "hierarchical", "vq:levels=6,dim=1", "wae"])
def test_ensembles_and_every_prior_generate(recipe, monkeypatch):
    monkeypatch.setattr("narrows.tasks.priorfits.STEPS", 50)
    for members in (None, 2):
        model = small_model(DATA, recipe, members=members, steps=20, baseline=False)
        if not model.module.latent.has_prior:
            keep_prior(model, DATA)
        rows = generate(model, 7)
        assert rows.num_rows == 7 and generate(model, 7).equals(rows)
    if recipe == "vae":
        with pytest.raises(SettingError, match="ensemble of 2"):
            generate(model, 3, where={"x": 1})


@pytest.mark.parametrize("recipe", ["hierarchical"])
def test_a_prior_of_its_own_kind_has_one_temperature(recipe):
    model = small_model(DATA, recipe, steps=5, baseline=False)
    with pytest.raises(SettingError, match=r"temperature=0\.5 with this recipe's own prior"):
        generate(model, 3, temperature=0.5)


def texts(rows=200):
    draw = np.random.default_rng(1)
    words = np.array(["anna", "otto", "bob"])
    return pa.table({"text": [" ".join(draw.choice(words, 2)) for _ in range(rows)], "n": draw.normal(size=rows)})


def test_texts_are_drawn_letter_by_letter():
    plan = Plan("vae:beta=0.1", latent=4, epochs=40, columns={"text": "chars"}, seed=1)
    model = fit(texts(), plan)
    made = generate(model, 200, seed=1)
    pairs = [text.split(" ") for text in made["text"].to_pylist()]
    assert np.mean([len(pair) == 2 and set(pair) <= {"anna", "otto", "bob"} for pair in pairs]) > 0.5
    assert len({tuple(pair) for pair in pairs}) > 4
    assert generate(model, 200, seed=1).equals(made)


def images(rows=60):
    return np.random.default_rng(2).integers(0, 256, (rows, 6, 5), dtype=np.uint8)


def test_pixels_are_not_drawn_one_by_one():
    model = small_model(images(), "vae", steps=20, baseline=False)
    drawn, still = generate(model, 8), generate(model, 8, sample_cells=False)
    assert drawn.equals(still)


def test_bags_are_filled_with_as_many_items_as_training_had():
    draw = np.random.default_rng(3)
    bags = [{int(i): 1.0 for i in draw.integers(0, 30, 9)} for _ in range(80)]
    data = pa.table({"bag": pa.array([list(bag.items()) for bag in bags], pa.map_(pa.int64(), pa.float64()))})
    model = small_model(data, "vae", steps=20, baseline=False)
    made = generate(model, 300)
    totals = np.array([sum(count for _, count in bag) for bag in made["bag"].to_pylist()])
    assert totals.mean() == pytest.approx(np.mean([sum(bag.values()) for bag in bags]), rel=0.15)
    assert len({str(bag) for bag in made["bag"].to_pylist()}) > 50


@pytest.mark.parametrize("spherical", [True, False])
def test_ways_between_codes(spherical):
    """Against a loop over points; lengths along an arc between codes of one length stay what they are."""
    codes = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    path = between(codes, 5, spherical).reshape(3, 5, 3)
    for way in range(3):
        start, end = codes[way].astype(float), codes[way + 1].astype(float)
        angle = np.arccos(start @ end / np.linalg.norm(start) / np.linalg.norm(end))
        for step, share in enumerate(np.linspace(0, 1, 5)):
            first, second = 1 - share, share
            if spherical:
                first, second = np.sin(first * angle) / np.sin(angle), np.sin(second * angle) / np.sin(angle)
            np.testing.assert_allclose(path[way, step], first * start + second * end, rtol=1e-5, atol=1e-6)
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    if spherical:
        np.testing.assert_allclose(np.linalg.norm(between(unit, 7, True), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("pair", [[[0, 0], [1, 2]], [[1, 2], [1, 2]], [[1, 2], [-1, -2]], [[1, 2], [2, 4]]], ids=str)
def test_where_no_arc_leads_the_way_is_straight(pair):
    codes = np.array(pair, dtype=np.float32)
    np.testing.assert_allclose(between(codes, 4, True), between(codes, 4, False), atol=1e-6)


def test_rows_between_rows(learnt):
    data = people(3)
    rows = interpolate(learnt, data, steps=4)
    assert rows.num_rows == 8
    ends = learnt.reconstruct(data)
    assert rows[0:1].equals(ends[0:1]) and rows[3:4].equals(ends[1:2]) and rows[7:8].equals(ends[2:3])
    assert rows[4:5].equals(rows[3:4])
    with pytest.raises(SettingError, match="steps=1"):
        interpolate(learnt, data, steps=1)
    with pytest.raises(DataError, match="1 rows to go between"):
        interpolate(learnt, people(1))


def test_the_estimator_gives_rows_in_their_container(monkeypatch):
    monkeypatch.setattr("narrows.tasks.priorfits.STEPS", 50)
    frame = people(300).to_pandas()
    frame["school"] = frame["school"].astype("category")
    maker = Generator(2, hidden=(16,), recipe="vae", prior="mixture", epochs=5, random_state=0).fit(frame)
    made = maker.sample(12)
    assert isinstance(made, pd.DataFrame) and made.shape == (12, 6) and dict(made.dtypes) == dict(frame.dtypes)
    assert made.equals(maker.sample(12)) and not made.equals(maker.sample(12, random_state=1))
    assert set(maker.sample(5, where={"sex": "woman"})["sex"]) == {"woman"}
    assert maker.transform(frame).shape == (300, 2) and "prior" in maker.model_.parts
    array = Generator(2, hidden=(8,), prior="flow", recipe="plain", epochs=3, random_state=0).fit(DATA)
    assert array.sample(4).shape == (4, 4) and array.sample(4).dtype == DATA.dtype
    assert isinstance(array, Autoencoder) and array.get_params()["prior"] == "flow"


def run(words, **settings):
    """A command in words."""
    return narrows(*words.split(), **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with people.csv and a model of them."""
    place = tmp_path_factory.mktemp("generate")
    csv.write_csv(people(400), place / "people.csv")
    words = "fit people.csv --for generate --recipe vae --latent 3 --hidden 16 --epochs 5 --out m.narrows"
    run(words, cwd=place)
    narrows(
        *["fit", "people.csv", "--latent", "3", "--hidden", "16", "--epochs", "2", "--out", "plain.narrows"], cwd=place
    )
    return place


def test_fit_for_generate_learns_where_codes_lie(folder, monkeypatch):
    monkeypatch.setattr("narrows.tasks.priorfits.STEPS", 50)
    model = load(folder / "m.narrows")
    assert model.recipe.name == "vae" and "prior" in model.parts
    assert load(folder / "plain.narrows").recipe.name == "plain"
    run("fit people.csv --for generate --recipe fsq --epochs 1 --out f.narrows", cwd=folder)
    assert load(folder / "f.narrows").parts["prior"].facts["kind"] == "sequence"
    done = run("fit people.csv --for supper --out f.narrows", cwd=folder, code=1)
    assert "fit for 'supper'; wanted: one of " in done.stderr


def test_the_command_line_generates(folder):
    done = run("generate m.narrows --rows 30 --seed 2 --out a.csv", cwd=folder)
    assert done.stdout == "a.csv: 30 rows\n"
    assert csv.read_csv(folder / "a.csv").num_rows == 30
    words = "generate m.narrows --rows 7 --where sex=woman age=30 --out b.parquet"
    done = run(words, cwd=folder)
    assert "7 rows; 4,096 codes were worth" in done.stdout
    rows = pd.read_parquet(folder / "b.parquet")
    assert set(rows["sex"]) == {"woman"} and set(rows["age"]) == {30}
    done = narrows(
        *["generate", "m.narrows", "--between", "people.csv", "--steps", "3", "--out", "c.jsonl"], cwd=folder
    )
    assert done.stdout == "c.jsonl: 1,197 rows\n"


def test_a_prior_is_learnt_and_kept_by_the_command_line(folder):
    before = (folder / "plain.narrows").read_bytes()
    done = run("generate plain.narrows --out d.csv", cwd=folder, code=1)
    assert "narrows generate M --learn" in done.stderr
    run("generate plain.narrows --learn people.csv --out d.csv", cwd=folder)
    assert (folder / "plain.narrows").read_bytes() == before
    run("generate plain.narrows --learn people.csv --keep --out e.csv", cwd=folder)
    assert (folder / "e.csv").read_bytes() == (folder / "d.csv").read_bytes()
    run("generate plain.narrows --out f.csv", cwd=folder)
    assert (folder / "f.csv").read_bytes() == (folder / "d.csv").read_bytes()
    assert "prior" in narrows("info", "plain.narrows", cwd=folder).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--where sex", "COLUMN=VALUE"),
        ("--where sex=man sex=woman", "each column once"),
        ("--where sex=none", "a level that training did not have"),
        ("--rows 0", "rows=0"),
        ("--between people.csv --rows 3", "--between with --rows"),
        ("--keep", "--keep with nothing learnt"),
        ("--out m.narrows", "which is read here"),
    ],
)
def test_mistakes_on_the_command_line(folder, words, message):
    given = words.split() if "--out" in words else [*words.split(), "--out", "never.csv"]
    done = narrows("generate", "m.narrows", *given, cwd=folder, code=1)
    assert message in done.stderr
    assert not (folder / "never.csv").exists()
