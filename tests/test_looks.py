"""Snapshots leave training as it was and outlive a kill; what the page shows of a network's inside is what is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from narrows.fitting import SHOWN_CELLS, Plan, fit
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.snapshots import Snapshots, wanted
from small_run import FailingAt, rows_of_rank, small_module

pytestmark = pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")


def watched_run(folder=None, resume=False, fail_at=0, snapshots=True, epochs=9):
    """A run with noise, dropout, batch statistics and validation, and what was kept of it on the way."""
    module, rows = small_module("denoising:noise=0.1,mask=0.2", dropout=0.1), rows_of_rank(5, seed=3)
    kept = Snapshots(lambda: module.decode(module.encode(rows).z).numbers()[0].detach()) if snapshots else None
    watch = Watch(folder=folder, resume=resume, snapshots=kept)
    stream = FailingAt(fail_at) if fail_at else Resident(rows_of_rank(100), 16, seed=5)
    training = Training(batch_size=16, optimizer="muon", checkpoint_every=0.0)
    held = Resident(rows_of_rank(40, seed=1), 16, shuffle=False)
    train(module, stream, held, training, epochs=epochs, seed=7, watch=watch)
    return module, kept


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_is_the_same_with_and_without_snapshots():
    watched, kept = watched_run()
    unwatched, _ = watched_run(snapshots=False)
    assert same(watched.state_dict(), unwatched.state_dict())
    assert list(kept.taken) == wanted(9) == [0, 1, 2, 4, 6]
    rows = rows_of_rank(5, seed=3)
    fresh = small_module("denoising:noise=0.1,mask=0.2", dropout=0.1).eval()
    torch.testing.assert_close(kept.taken[0], fresh.decode(fresh.encode(rows).z).numbers()[0].detach())
    assert not torch.equal(kept.taken[4], kept.taken[6])


@pytest.mark.parametrize("step", [1, 2, 8, 9, 15, 29, 50])
def test_snapshots_of_a_run_that_broke_down_go_on_where_they_were(tmp_path, step):
    _, whole = watched_run()
    with pytest.raises(ConnectionError):
        watched_run(tmp_path, fail_at=step)
    _, resumed = watched_run(tmp_path, resume=True)
    assert same(whole.tensors(), resumed.tensors())


@pytest.mark.parametrize("epochs", [1, 2, 5, 10, 57, 200, 4000])
def test_looks_are_few_and_lie_before_the_end(epochs):
    looks = wanted(epochs)
    assert looks[0] == 0 and len(looks) <= 6 and max(looks) < epochs and looks == sorted(set(looks))
    if epochs >= 5:
        assert len(looks) >= 4


def test_a_fit_keeps_how_rows_held_out_came_back():
    data = np.random.default_rng(0).normal(size=(200, 5)).cumsum(1)
    model = fit(data, Plan("vae", 2, epochs=6))
    part = model.parts["snapshots"]
    assert (
        part.facts["epochs"][0] == 0
        and part.facts["epochs"][-1] == model.facts["records"][model.facts["best"]]["epoch"]
    )
    assert part.tensors["cells"].shape == (len(part.facts["epochs"]), 8, 5)
    wide = np.zeros((30, SHOWN_CELLS + 1), np.float32)
    assert "snapshots" not in fit(wide, Plan("linear", 1, epochs=1)).parts
    assert "snapshots" not in fit(data, Plan("linear", 1, epochs=1, training=Training(validation=0))).parts
