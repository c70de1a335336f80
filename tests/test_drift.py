"""Drift between the rows that a model keeps and new ones: what is found, what is said, and what is not an alarm."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binomtest, ks_2samp

from command import narrows
from narrows import Autoencoder, Plan, drift, load
from narrows.errors import DataError, DataWarning, ModelFileError, SettingError
from narrows.fitted import Part
from narrows.fitting import fit
from narrows.schema import Batch
from narrows.tasks.drift import comparisons, weighed
from narrows.tasks.purposes import purpose_of
from narrows.tasks.reference import PART, Reference, look


def people(count, seed):
    """Pay follows age; a tenth of the towns are missing."""
    chance = np.random.default_rng(seed)
    age = chance.integers(20, 65, count)
    town = chance.choice(["Bern", "Oslo", "Rome"], count, p=[0.5, 0.3, 0.2])
    return pd.DataFrame(
        {
            "age": age,
            "pay": (900 * age * np.exp(chance.normal(0, 0.1, count))).round(),
            "town": np.where(chance.random(count) < 0.1, None, town),
            "member": chance.random(count) < 0.4,
            "since": pd.Timestamp("2024-01-01") + pd.to_timedelta(chance.integers(0, 700, count), "D"),
            "empty": np.full(count, np.nan),
        }
    )


NEW = people(600, 1)


@pytest.fixture(scope="module")
def model():
    purpose = purpose_of("drift")
    plan = purpose.settle(Plan(epochs=8))
    return fit(people(3_000, 0), plan, learn=purpose.learn)


@pytest.fixture(scope="module")
def place(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("drift")
    model.save(folder / "m.narrows")
    NEW.to_csv(folder / "same.csv", index=False)
    NEW.assign(age=NEW["age"] + 9).to_csv(folder / "older.csv", index=False)
    return folder


def test_rows_alike_are_no_drift(model):
    found = drift(model, NEW)
    assert not found and not found.found and min(test.adjusted for test in found.tests) > 0.05
    assert str(found).startswith("No drift at 0.05: 600 rows against ")
    assert "held-out rows" in str(found) and "empty in training: empty" in str(found)
    assert {test.family for test in found.tests} == {"column", "codes", "score"}
    age = next(test for test in found.tests if test.name == "age")
    usual = Reference.of(model).look
    assert age.p == pytest.approx(
        ks_2samp(usual.cells[:, 0].numpy(), look(model, rows_of(model, NEW)).cells[:, 0].numpy(), method="asymp").pvalue
    )


def rows_of(model, frame):
    return Batch.concat([batch for _, batch in model.batches(frame)])


def shuffled(frame, *names):
    chance = np.random.default_rng(3)
    return frame.assign(**{name: chance.permutation(frame[name].to_numpy()) for name in names})


SHIFTS = {
    "mean": (NEW.assign(age=NEW["age"] + 5), "age", "age higher: median 4"),
    "variance": (NEW.assign(pay=(38_000 + 2.5 * (NEW["pay"] - 38_000)).round()), "pay", "pay more spread: middle half"),
    "date": (NEW.assign(since=NEW["since"] + pd.Timedelta(90, "D")), "since", "since later: median 2024-"),
    "level": (NEW.assign(town=NEW["town"].where(NEW.index % 4 > 0, "Rome")), "town", "town Rome "),
    "flag": (NEW.assign(member=True), "member", "member "),
    "missing": (NEW.assign(pay=NEW["pay"].where(NEW.index % 12 > 0)), "pay", "pay missing: 0.0% → 8.3%"),
}


@pytest.mark.parametrize(("frame", "column", "said"), SHIFTS.values(), ids=SHIFTS)
def test_what_moved_is_said(model, frame, column, said):
    found = drift(model, frame)
    assert found and column in {test.name for test in found.found if test.family == "column"}
    assert said in str(found) and "of 5 columns moved" in str(found)


def test_a_new_level_is_drift_and_not_an_error(model):
    with pytest.warns(DataWarning, match="Paris"):
        found = drift(model, NEW.assign(town=NEW["town"].where(NEW.index % 10 > 0, "Paris")))
    assert "levels not kept in training 0.0% →" in str(found)


def test_correlation_alone_is_seen_by_the_codes(model):
    """Every column keeps exactly the values it had, so no column's test can tell."""
    found = drift(model, shuffled(NEW, "age", "pay"))
    assert {test.family for test in found.found} == {"codes", "score"}
    assert "No column moved by itself, but how they go together did: the model tells" in str(found)
    assert "age" in str(found) and "fit worse" in str(found)


def test_a_saved_model_and_shuffled_rows_give_the_same_answer(model, place):
    frame = SHIFTS["variance"][0]
    first = drift(model, frame).to_json()
    assert first == drift(load(place / "m.narrows"), frame.sample(frac=1, random_state=5)).to_json()


def test_many_rows_are_sampled_and_counted(model):
    found = drift(model, people(12_000, 4))
    assert (found.rows, found.compared) == (12_000, 10_000)
    assert "10,000 of 12,000 rows, drawn at random" in str(found)
    assert found.to_json() == drift(model, people(12_000, 4)).to_json()


def test_any_model_compares_with_given_rows(model):
    bare = replace(model, parts={})
    with pytest.raises(SettingError, match=r"keeps no rows.*--for drift.*--reference"):
        drift(bare, NEW)
    found = drift(bare, NEW.assign(age=NEW["age"] + 9), reference=people(900, 8))
    assert found and found.origin == "given rows" and found.reference == 900
    with pytest.raises(DataError, match="9 rows to compare new ones with"):
        drift(bare, NEW, reference=NEW[:9])


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan")])
def test_an_alpha_that_is_no_probability_is_refused(model, alpha):
    with pytest.raises(SettingError, match="alpha"):
        drift(model, NEW, alpha=alpha)


def test_unfit_rows_are_refused_in_a_sentence(model):
    for frame, said in {
        "missing": (NEW.drop(columns="pay"), "no column 'pay'"),
        "text": (NEW.assign(pay="much"), "'pay', row 0.*'much'.*a number"),
        "few": (NEW[:9], "9 rows to look for drift in"),
        "mixed": (
            NEW.assign(since=["2024-01-01 00:00+01:00", "2024-07-01 00:00+02:00"] * 300),
            "'since', row 0.*dates",
        ),
    }.values():
        with pytest.raises(DataError, match=said):
            drift(model, frame)
    with pytest.warns(DataWarning, match="ignored: 'more'"):
        assert not drift(model, NEW.assign(more=1))


def test_nan_among_levels_is_a_missing_cell(model):
    found = drift(model, NEW.assign(town=NEW["town"].where(NEW.index % 3 > 0, np.nan)))
    assert [test.what for test in found.found if test.name == "town"] == ["missing"]


def test_training_rows_stand_in_where_too_few_were_held_out():
    purpose = purpose_of("drift")
    model = fit(people(120, 0), purpose.settle(Plan(epochs=2)), learn=purpose.learn)
    assert model.parts[PART].facts["origin"] == "training rows"
    found = drift(model, NEW)
    assert {test.family for test in found.tests} == {"column", "codes"} and "say too little" in str(found)
    with pytest.raises(DataError, match="at least 50"):
        fit(people(40, 0), purpose.settle(Plan(epochs=1)), learn=purpose.learn)


def test_a_matrix_and_pictures_are_compared():
    chance = np.random.default_rng(0)
    for shape, columns in (((4,), 4), ((6, 6), 0)):
        rows = chance.random((400, *shape)).astype(np.float32)
        purpose = purpose_of("drift")
        plan = purpose.settle(Plan(epochs=2, latent=2))
        model = fit(rows, plan, learn=purpose.learn)
        found = drift(model, chance.random((200, *shape)).astype(np.float32), alpha=0.001)
        assert sum(test.family == "column" for test in found.tests) == columns and not found
        assert drift(model, rows[:200] ** 3)


@pytest.mark.slow
def test_false_alarms_over_draws_of_both_samples(model):
    """Of 150 unshifted resamples at 5 %, no more alarm than chance allows."""
    pool, alarms = look(model, rows_of(model, people(4_000, 9))), 0
    for run in range(150):
        order = torch.from_numpy(np.random.default_rng(run).permutation(4_000))
        usual = Reference(pool[order[:300]], "held-out rows")
        tests = weighed(comparisons(model, usual, pool[order[300:500]], seed=run))
        alarms += min(test.adjusted for test in tests) <= 0.05
    assert binomtest(alarms, 150, 0.05, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, tensors: facts.update(rows=3),
        lambda facts, tensors: facts.update(origin="hearsay"),
        lambda facts, tensors: facts.update(more=1),
        lambda facts, tensors: tensors.pop("codes"),
        lambda facts, tensors: tensors.update(seen=tensors["seen"].float()),
        lambda facts, tensors: tensors.update(scores=tensors["scores"] * np.nan),
    ],
)
def test_a_part_that_is_none_is_refused(model, change):
    facts, tensors = dict(model.parts[PART].facts), dict(model.parts[PART].tensors)
    change(facts, tensors)
    with pytest.raises(ModelFileError, match="part drift"):
        drift(replace(model, parts={PART: Part(facts, tensors)}), NEW)


def test_the_command_ends_with_3_where_rows_moved(place):
    words = narrows("drift", "m.narrows", "same.csv", cwd=place).stdout
    assert "No drift" in words and "MMD" in words
    done = narrows("drift", "m.narrows", "older.csv", "--out", "t.csv", cwd=place, code=3)
    assert "age higher" in " ".join(done.stdout.split()) and done.stdout.strip().split("\n")[-1].startswith("t.csv: ")
    table = pd.read_csv(place / "t.csv")
    assert table.loc[table["name"] == "age", "drift"].item() and set(table["test"]) >= {"KS", "MMD", "chi-square"}
    found = json.loads(narrows("drift", "m.narrows", "older.csv", "--json", cwd=place, code=3).stdout)
    assert found["drift"] and found["said"].startswith("Drift at 0.05") and len(found["tests"]) == len(table)
    narrows("drift", "m.narrows", "older.csv", "--reference", "older.csv", "--alpha", 0.01, cwd=place)
    error = narrows("drift", "m.narrows", "older.csv", "--out", "older.csv", cwd=place, code=1).stderr
    assert "which is read here" in error


def test_an_estimators_model_takes_a_reference():
    frame = NEW.drop(columns=["empty", "since"])
    ae = Autoencoder(epochs=2, random_state=0, latent=2).fit(frame[:300])
    assert not drift(ae.model_, frame[300:], reference=people(300, 11).drop(columns=["empty", "since"]))
