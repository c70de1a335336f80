"""Going on from a fitted model: what stays, what is learnt anew, which rows are refused, and that it helps."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from command import narrows
from narrows import AnomalyDetector, Autoencoder, Denoiser, Dense, Generator, Imputer, Plan, Training, load
from narrows.errors import DataError, DataWarning, FitWarning, SettingError
from narrows.fitting import fit
from narrows.tasks.purposes import FEWEST_STEPS, FILLED_ROWS, going_on, purpose_of


def homes(count, seed, rate=1_000.0):
    """Rent follows size; a third are in each town."""
    chance = np.random.default_rng(seed)
    size = chance.normal(70, 20, count)
    return pd.DataFrame(
        {
            "size": size,
            "rent": rate + 15 * size + chance.normal(0, 5, count),
            "rooms": (size / 20).round() + chance.integers(0, 2, count),
            "town": chance.choice(["Bern", "Oslo", "Rome"], count),
        }
    )


OLD, NEW = homes(400, 0), homes(300, 1, rate=1_400.0)


@pytest.fixture(scope="module")
def model():
    purpose = purpose_of("drift")
    return fit(OLD, purpose.settle(Plan("vae", epochs=20, latent=2)), learn=purpose.learn)


def went_on(model, rows, **settings):
    purpose = going_on(model)
    return fit(rows, purpose.settle(Plan(start=model, **settings)), learn=purpose.learn)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def test_it_goes_on_from_the_weights_and_leaves_the_first_as_it_was(model):
    before = weights(model)
    still = went_on(model, NEW, epochs=1, lr=1e-9)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(model).items())
    for name, tensor in weights(still).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=1e-4)
    assert (str(still.recipe), still.latent, still.network) == (str(model.recipe), 2, model.network)
    assert still.preparer is model.preparer
    assert still.facts["before"] == {"rows": model.facts["rows"], "epochs": 20}
    again = went_on(still, NEW, epochs=1)
    assert again.facts["before"]["epochs"] == 21


def test_it_learns_the_new_rows(model):
    after = went_on(model, NEW, epochs=15)
    fresh = homes(300, 2, rate=1_400.0)
    assert after.score(fresh).mean() < model.score(fresh).mean()


def test_what_was_learnt_is_learnt_anew_from_the_new_rows(model):
    after = went_on(model, NEW, epochs=1)
    assert after.parts.keys() == model.parts.keys()
    assert after.parts["drift"].facts["rows"] != model.parts["drift"].facts["rows"]
    with pytest.warns(FitWarning, match="left out, since not learnt anew from these rows: baseline, diagnosis, drift"):
        bare = fit(NEW, Plan(start=model, epochs=1))
    assert set(bare.parts) == {"snapshots"}


def test_unseen_levels_stay_unseen_and_new_holes_are_holes(model):
    rows = NEW.assign(town="Paris", rent=NEW["rent"].where(NEW.index % 2 > 0))
    with pytest.warns(DataWarning, match="Paris"):
        after = went_on(model, rows, epochs=1)
    assert after.schema == model.schema
    assert set(after.decode(np.zeros((1, 2)))["town"].to_pylist()) <= {"Bern", "Oslo", "Rome", None}


REFUSED = {
    "missing": (NEW.drop(columns="rent"), "has no column 'rent'"),
    "new": (NEW.assign(floor=1), "does not know: 'floor'"),
    "text": (NEW.assign(size="large"), "'size' came as .*text.*wanted: double"),
    "date": (NEW.assign(size=pd.Timestamp("2024-01-01")), "'size' came as timestamp.*date"),
    "shape": (np.zeros((20, 3)), "rows of 3 numbers|named columns"),
}


@pytest.mark.parametrize(("rows", "said"), REFUSED.values(), ids=REFUSED)
def test_other_columns_are_refused(model, rows, said):
    with pytest.raises(DataError, match=said):
        fit(rows, Plan(start=model))


def test_a_column_empty_at_fit_stays_empty_and_one_empty_now_is_missing():
    first = fit(OLD.assign(rent=np.nan), Plan(epochs=1, latent=1))
    after = went_on(first, NEW, epochs=1)
    assert after.decode(np.zeros((1, 1)))["rent"].to_pylist() == [None]
    assert np.isfinite(went_on(first, NEW.assign(size=np.nan), epochs=1).score(NEW)).all()


def test_nan_among_levels_is_a_missing_cell(model):
    after = went_on(model, NEW.assign(town=NEW["town"].where(NEW.index % 3 > 0, np.nan)), epochs=1)
    assert after.facts["reason"] == "epochs"


def test_mixed_time_zones_are_refused_with_the_value():
    dated = OLD.assign(seen=pd.Timestamp("2024-01-01") + pd.to_timedelta(OLD.index, "h"))
    first = fit(dated, Plan(epochs=1, latent=1))
    mixed = NEW.assign(seen=["2024-01-01 00:00+01:00", "2024-07-01 00:00+02:00"] * 150)
    with pytest.raises(DataError, match=r"'seen', row 0.*dates, as in training"):
        fit(mixed, Plan(start=first))


@pytest.mark.parametrize("wish", [{"recipe": "plain:code=tanh"}, {"latent": 3}, {"network": "transformer"}])
def test_what_the_model_has_settled_is_not_set_again(model, wish):
    with pytest.raises(SettingError, match=f"{next(iter(wish))}=.*to go on from"):
        Plan(start=model, **wish).check()
    Plan(start=model, recipe="vae", latent=2).check()


def test_partial_fit_fits_and_then_goes_on():
    ae = Autoencoder(latent=2, hidden=(8,), epochs=5, random_state=0)
    whole = Autoencoder(latent=2, hidden=(8,), epochs=5, random_state=0).fit(OLD)
    assert ae.partial_fit(OLD) is ae
    np.testing.assert_array_equal(ae.transform(OLD), whole.transform(OLD))
    before, preparer = -ae.score(NEW), ae.model_.preparer
    ae.partial_fit(NEW).partial_fit(NEW)
    assert -ae.score(NEW) < before and ae.model_.preparer is preparer
    assert ae.model_.facts["before"]["epochs"] == 10 and ae.n_features_in_ == 4
    with pytest.raises(SettingError, match="latent"):
        ae.set_params(latent=3).partial_fit(NEW)


def test_partial_fit_of_arrays_weights_and_width():
    x = np.random.default_rng(0).normal(size=(100, 4))
    ae = Autoencoder(latent=2, hidden=(8,), epochs=2, random_state=0).partial_fit(x)
    ae.partial_fit(x, sample_weight=np.ones(100))
    with pytest.raises(ValueError, match="X has 3 features, but Autoencoder is expecting 4 features"):
        ae.partial_fit(x[:, :3])


def test_detectors_and_generators_go_on():
    found = AnomalyDetector(random_state=0).partial_fit(OLD).partial_fit(NEW)
    assert len(found.decision_scores_) == len(NEW) and found.model_.parts["detect"].facts["share"] == 0.5
    assert found.model_.facts["records"][-1]["step"] <= 110
    made = Generator(latent=2, recipe="vae", epochs=2, random_state=0).partial_fit(OLD).partial_fit(NEW)
    assert len(made.sample(5)) == 5 and made.model_.parts["prior"].facts["rows"] < 300
    cells = Generator(latent=8, hidden=(16,), epochs=2, random_state=0).partial_fit(OLD)
    bins = [family.center.clone() for family in cells.model_.module.likelihood.families]
    cells.partial_fit(NEW)  # the preparer stays as it was, and so do the bins of its numbers
    assert all(map(torch.equal, bins, [family.center for family in cells.model_.module.likelihood.families]))
    assert len(cells.sample(5)) == 5


@pytest.mark.parametrize("face", [Imputer(epochs=3, random_state=0), Denoiser(epochs=3, random_state=0)])
def test_faces_over_an_autoencoder_go_on(face):
    whole = clone(face).fit(OLD)
    assert face.partial_fit(OLD) is face
    np.testing.assert_array_equal(face.model_.encode(OLD), whole.model_.encode(OLD))
    before = face.model_
    face.set_params(epochs=2).partial_fit(NEW)
    assert face.model_.preparer is before.preparer and face.model_.parts.keys() == before.parts.keys()
    assert face.model_.facts["before"]["epochs"] == 3 and face.model_.facts["epochs"] == 2
    assert face.transform(NEW).shape == NEW.shape
    with pytest.raises(SettingError, match="latent"):
        face.set_params(latent=3).partial_fit(NEW)


def test_imputing_goes_on_as_it_began():
    imputer = Imputer(random_state=0, network=Dense(hidden=(8,)), latent=8).fit(OLD)
    imputer.partial_fit(NEW)
    settings = imputer.model_.facts["settings"]
    assert settings["optimizer"] == "adamw" and settings["batch_size"] == FILLED_ROWS
    assert imputer.model_.facts["records"][-1]["step"] <= FEWEST_STEPS + FILLED_ROWS


def test_the_command_says_what_stays_and_what_begins_anew(tmp_path, model):
    model.save(tmp_path / "m.narrows")
    NEW.to_csv(tmp_path / "new.csv", index=False)
    words = ("fit", "--continue", "m.narrows", "new.csv", "--epochs", 2, "--out", "n.narrows")
    said = narrows(*words, cwd=tmp_path).stdout
    assert said.startswith("Going on from m.narrows: columns, recipe, network and code stay as they are")
    assert "optimizer begins anew" in said and "Learnt anew from these rows: baseline, diagnosis, drift" in said
    assert f"after {model.facts['rows']} rows before" in said
    assert load(tmp_path / "n.narrows").facts["before"] == {"rows": model.facts["rows"], "epochs": 20}
    resumed = narrows(*words, "--resume", cwd=tmp_path).stdout
    assert resumed.splitlines()[1] == said.splitlines()[1]
    for more in (("--latent", 3), ("--recipe", "plain"), ("--for", "detect"), ("--network", "conv")):
        error = narrows(*words, *more, cwd=tmp_path, code=1).stderr
        assert f"{more[0]} for a model to go on from" in error
    error = narrows("fit", "--continue", "m.narrows", "new.csv", "--out", "m.narrows", cwd=tmp_path, code=1).stderr
    assert "which is read here" in error


def test_streamed_rows_go_on_alike(model):
    after = went_on(model, NEW, epochs=2, training=Training(budget=0))
    assert after.facts["rows"] + after.facts["validation_rows"] == 300
