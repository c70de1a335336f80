"""Data and a plan to a model: which rows train, where they are kept, and what training reaches with its defaults."""

import numpy as np
import pandas as pd
import pytest
import torch

from narrows import Plan, Training, fit, open_source
from narrows.errors import DataError, FitWarning, SettingError
from narrows.fitting import default_epochs, default_latent
from narrows.prepare.gathered import Thinned
from narrows.rows import Rows
from narrows.schema import Batch, Column, Schema
from narrows.train.optimizers import step_work

CPU = torch.device("cpu")


def table(count=500, holes=True):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": np.arange(count),
            "x": generator.normal(size=count),
            "group": generator.integers(0, 20, count).astype(str),
        }
    )
    if holes:
        frame.loc[::7, "x"] = np.nan
    return frame


def rows_of(frame, validation=0.2, seed=0, **training):
    rows = Rows(open_source(frame), validation, Training(**training), seed, {"id": "none"})
    return rows, *rows.streams(CPU)


def ids(stream, epoch=0):
    """The `id` of every row of an epoch; it is left as it came."""
    batches = [batch for batch, _ in stream.epoch(epoch)]
    return torch.cat([batch.numbers[:, 0] for batch in batches]).round().int().tolist()


@pytest.mark.parametrize("budget", [1e9, 0], ids=["resident", "streamed"])
def test_every_row_trains_or_validates_once_an_epoch(budget):
    _, train, held = rows_of(table(), budget=budget)
    first, second, kept = ids(train, 0), ids(train, 1), ids(held)
    assert sorted(first + kept) == list(range(500)) and 50 < len(kept) < 150
    assert sorted(first) == sorted(second) and first != second
    assert ids(train, 0) == first and kept == sorted(kept)


def test_memory_and_stream_hold_the_same_rows():
    (resident, train, held), (_, train_, held_) = rows_of(table()), rows_of(table(), budget=0)
    assert sorted(ids(train)) == sorted(ids(train_)) and ids(held) == ids(held_)
    whole = Batch.concat([batch for batch, _ in train.epoch(0)])
    streamed = Batch.concat([batch for batch, _ in train_.epoch(0)])
    order, order_ = whole.numbers[:, 0].argsort(), streamed.numbers[:, 0].argsort()
    assert torch.equal(whole.numbers[order], streamed.numbers[order_])
    assert torch.equal(whole.seen[order], streamed.seen[order_])
    assert torch.equal(whole.codes[order], streamed.codes[order_])
    prepared = Batch.concat(list(resident.prepared()))
    assert torch.equal(prepared.numbers, whole.numbers[order])


def test_a_stream_goes_on_behind_any_batch():
    _, train, _ = rows_of(table(), budget=0, batch_size=32)
    whole = list(train.epoch(3))
    for stop in (0, 4, len(whole) - 1):
        _, position = whole[stop]
        rest = list(train.epoch(3, position))
        assert len(rest) == len(whole) - stop - 1
        assert all(torch.equal(a.numbers, b.numbers) for (a, _), (b, _) in zip(rest, whole[stop + 1 :], strict=True))


@pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning")
def test_statistics_are_of_the_training_rows_alone():
    frame = table(holes=False)
    frame.loc[frame["group"] == "3", "x"] = 1e6
    sides = set()
    for seed in range(12):
        rows, train, held = rows_of(frame, validation=0.4, seed=seed, group="group")
        training, validating = ({frame["group"][i] for i in ids(stream)} for stream in (train, held))
        assert not training & validating
        spread = float(rows.preparer.scaling.scale[1])
        assert spread > 1000 if "3" in training else spread < 10
        sides.add("3" in training)
    assert sides == {True, False}


def test_time_holds_out_what_came_last():
    _, train, held = rows_of(table(), validation=0.1, time="id")
    assert ids(held) == list(range(450, 500)) and max(ids(train)) == 449


def test_few_rows_are_all_trained_on():
    rows, train, held = rows_of(table(15))
    assert held is None and rows.count == 15 and len(ids(train)) == 15


def test_thinning_keeps_every_nth_row():
    thinned = Thinned(limit=100)
    for start in range(0, 1000, 37):
        part = torch.arange(start, min(start + 37, 1000)).float().unsqueeze(1)
        thinned.add(Batch(part, torch.zeros(len(part), 0, dtype=torch.long)))
    kept = thinned.batch().numbers.flatten().tolist()
    assert kept == [float(i) for i in range(0, 1000, 16)]
    assert Thinned(5).batch() is None


def test_row_weights_follow_their_rows():
    frame = table()
    for budget in (1e9,):
        rows = Rows(open_source(frame), 0.2, Training(budget=budget), 0, {"id": "none"})
        train, held = rows.streams(CPU, np.arange(500, dtype=np.float32))
        for stream in (train, held):
            for batch, _ in stream.epoch(0):
                assert torch.equal(batch.weight, batch.numbers[:, 0].round())
    with pytest.raises(SettingError, match="budget"):
        Rows(open_source(frame), 0.2, Training(budget=0), 0).streams(CPU, np.ones(500))


def test_expected_counts_stay_near_those_of_training():
    counts = np.random.default_rng(0).poisson(3, (300, 6))
    model = fit(counts, Plan("vae", 2, epochs=2, columns={"x": "count"}))
    far = model.decode(np.full((1, 2), 1e4)).column("x").chunk(0).to_numpy_ndarray()
    assert (far <= 2 * counts.max(0) + 1).all()


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows"):
        fit(table(5).iloc[:0])


def test_defaults_grow_with_the_data():
    schema = Schema(tuple(Column(f"c{i}", "number", "double") for i in range(10)))
    assert default_latent(schema) == 5
    assert default_latent(Schema(schema.columns * 10)) == 16 and default_latent(Schema(schema.columns[:1])) == 1
    small, wide = torch.nn.Linear(10, 10), torch.nn.Linear(3000, 1000)
    assert default_epochs(step_work(small, 32, "muon"), 30, 32) == 200
    assert default_epochs(step_work(small, 256, "muon"), 20_000, 256) == 77
    assert default_epochs(step_work(wide, 512, "adamw"), 60_000, 512) == 51
    assert default_epochs(step_work(wide, 512, "muon"), 60_000, 512) == 44
    assert default_epochs(step_work(small, 1024, "adamw"), 10**9, 1024) == 10


def test_codes_that_can_copy_are_warned_of():
    x = np.random.default_rng(0).normal(size=(60, 3))
    with pytest.warns(FitWarning, match="copy"):
        fit(x, Plan(latent=3, epochs=1))
    fit(x, Plan("vae", latent=3, epochs=1))
    fit(x, Plan("denoising", latent=3, epochs=1))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_linear_recipe_trains_to_the_subspace_of_pca(optimizer):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(1000, 6)) * [4, 3, 2, 1, 0.5, 0.3] @ np.linalg.qr(generator.normal(size=(6, 6)))[0]
    plan = Plan("linear", 2, columns={"x": "none"}, training=Training(validation=0, optimizer=optimizer))
    learnt = np.linalg.qr(fit(x, plan).module.decoder[0].weight.detach().numpy())[0]
    principal = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:2].T
    assert np.arccos(np.clip(np.linalg.svd(learnt.T @ principal)[1], -1, 1)).max() < 1e-2


def test_the_baseline_is_scikit_learns_pca():
    from sklearn.decomposition import PCA

    from narrows.tasks.baseline import learn_baseline

    x = np.random.default_rng(0).normal(size=(300, 5)) @ np.diag([3, 2, 1, 1, 1])
    plan = Plan(latent=2, epochs=1, columns={"x": "none"}, training=Training(validation=0))
    model = fit(x, plan, learn={"baseline": learn_baseline})
    components = model.parts["baseline"].tensors["components"].numpy()
    ours, theirs = components.T @ components, PCA(2).fit(x).components_
    np.testing.assert_allclose(ours, theirs.T @ theirs, atol=1e-4)
