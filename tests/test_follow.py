"""Steps followed one by one: the scores of a file read whole, and those of a run that was never stopped."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import narrows.tasks.follow as follow
from narrows import tensorfile
from narrows.errors import DataError, ModelFileError, SettingError
from narrows.fitting import Plan, fit
from narrows.sources.reading import Reading
from narrows.sources.source import open_source
from narrows.tasks.follow import Follower
from narrows.tasks.points import by_channel, over_steps
from narrows.train.settings import Training

WINDOW, CHANNELS = 6, 2


def wave(steps, seed=0):
    times = np.arange(steps)[:, None] + seed
    return np.sin(times / [3, 5]) + 0.1 * np.random.default_rng(seed).normal(size=(steps, CHANNELS))


def cut(steps):
    table = pa.table({"load": steps[:, 0], "heat": steps[:, 1]})
    return open_source(table, reading=Reading(form="series", window=WINDOW, stride=1))


@pytest.fixture(scope="module")
def model():
    return fit(cut(wave(80)), Plan(latent=2, epochs=1, training=Training(validation=0)))


@pytest.fixture(scope="module")
def score(model):
    def costs(batch):
        cells = model.costs(batch)[:, : model.schema.cells]
        return cells, -0.5 * cells.sum(1)  # a remainder that is not 0

    return costs


def heard(follower, steps, series=None):
    return [follower.hear(step, series) for step in steps]


def settled(found, left=()):
    return torch.cat([part.values for each in found for part in each.settled] + [part.values for part in left])


def test_a_stream_scores_as_the_file_does(model, score):
    steps = wave(50, seed=3)
    steps[20, 1] = np.nan
    follower = Follower(model.preparer, score)
    assert follower.channels == ["load", "heat"]
    found = heard(follower, steps)
    left = list(follower.finish())
    batches = [(raw, by_channel(model.schema["x"], *score(batch))) for raw, batch in model.batches(cut(steps))]
    at_once = torch.cat([values for _, values in batches])
    assert [each.score for each in found[: WINDOW - 1]] == [None] * (WINDOW - 1)
    assert torch.allclose(torch.stack([each.adds for each in found[WINDOW - 1 :]]), at_once.double())
    (whole,) = _whole(batches, model.reading)
    assert torch.allclose(settled(found, left), whole)
    assert found[WINDOW - 1].score == pytest.approx(float(at_once[0].sum()))
    assert [each.settled[0].first for each in found[WINDOW - 1 :]] == list(range(50 - WINDOW + 1))
    assert not list(follower.finish())


def _whole(batches, reading):
    found: dict = {}
    for part in over_steps(batches, reading):
        found.setdefault(part.series, []).append(part.values)
    return [torch.cat(parts) for parts in found.values()]


@pytest.mark.parametrize("stop", [0, 2, WINDOW - 1, WINDOW, 17])
def test_stopping_and_going_on_gives_the_scores_of_never_stopping(model, score, stop, tmp_path):
    steps = {"a": wave(30, 1), None: wave(30, 2), 7: wave(30, 3)}

    def mixed(follower, first, last):
        return [follower.hear(steps[name][at], name) for at in range(first, last) for name in steps]

    never, before, after = (Follower(model.preparer, score) for _ in range(3))
    expected = mixed(never, 0, 30)
    found = mixed(before, 0, stop)
    before.save(tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 5_000
    after.restore(tmp_path / "state")
    found += mixed(after, stop, 30)
    assert [each.score for each in found] == [each.score for each in expected]
    assert [(each.series, each.step) for each in found] == [(each.series, each.step) for each in expected]
    assert torch.equal(settled(found, after.finish()), settled(expected, never.finish()))


def test_series_do_not_touch_each_other(model, score):
    mixed, alone = Follower(model.preparer, score), Follower(model.preparer, score)
    steps = wave(20, 4)
    found = [mixed.hear(step, name) for step in steps for name in ("a", "b")]
    expected = heard(alone, steps)
    for name in ("a", "b"):
        own = [each for each in found if each.series == name]
        assert [each.score for each in own] == [each.score for each in expected]
    assert [part.series for part in mixed.finish()] == ["a", "b"]


def test_of_too_many_series_the_one_silent_longest_ends(model, score, monkeypatch):
    monkeypatch.setattr(follow, "SERIES", 2)
    follower = Follower(model.preparer, score)
    heard(follower, wave(8), "a")
    heard(follower, wave(8), "b")
    heard(follower, wave(1), "a")
    (ended,) = follower.hear(wave(1)[0], "c").settled
    assert (ended.series, ended.first, len(ended.values)) == ("b", 3, 5)
    assert follower.hear(wave(1)[0], "b").step == 0  # begins anew, as the longest silent, a, has ended


def test_what_does_not_fit_is_refused(model, score, tmp_path):
    follower = Follower(model.preparer, score)
    with pytest.raises(DataError, match="2 numbers"):
        follower.hear(np.zeros(3))
    heard(follower, wave(9))
    follower.save(tmp_path / "state")
    for change in ({"window": 5}, {"steps": [3]}, {"series": []}, {"steps": ["x"]}):
        facts, tensors = tensorfile.read(tmp_path / "state", "follow")
        tensorfile.write(tmp_path / "other", "follow", facts | change, tensors)
        with pytest.raises(ModelFileError):
            Follower(model.preparer, score).restore(tmp_path / "other")
    with pytest.raises(ModelFileError, match="no file"):
        follower.restore(tmp_path / "none")
    table = fit(wave(40), Plan(latent=1, epochs=1, training=Training(validation=0)))
    with pytest.raises(SettingError, match="windows of a series"):
        Follower(table.preparer, score)
