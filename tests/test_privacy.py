"""How near generated rows are to training rows: distances by brute force, copies, the section of the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from narrows import DataError, Dense, Generator, Plan, Training, fit, privacy, write_report
from narrows.errors import SettingError
from narrows.schema import Batch
from narrows.tasks.privacy import nearest, points


def people(rows, seed):
    draw = np.random.default_rng(seed)
    town = draw.choice(["Basel", "Bern"], rows)
    age = draw.normal(40, 10, rows)
    return pd.DataFrame({"town": town, "age": age, "pay": 100 * age + draw.normal(0, 200, rows)})


@pytest.fixture(scope="module")
def model():
    return Generator(8, hidden=(16,), epochs=5, random_state=0).fit(people(400, 0)).model_


def batch_of(model, frame):
    return Batch.concat([batch for _, batch in model.batches(frame)])


def test_distances_are_gowers(model):
    frame = people(30, 1)
    frame.loc[3, "age"] = np.nan
    found = points(model, batch_of(model, frame))
    training = people(400, 0)
    width = {name: training[name].max() - training[name].min() for name in ("age", "pay")}
    for one, other in ((0, 1), (4, 9), (20, 21)):
        wanted = float(frame.town[one] != frame.town[other])
        wanted += sum(abs(frame[name][one] - frame[name][other]) / width[name] for name in width)
        assert float((found[one] - found[other]).abs().sum()) == pytest.approx(wanted, abs=0.02)
    assert float((found[3] - found[0]).abs().sum()) > 0.9  # what is missing is far from what is there
    slow = torch.stack([(found - row).abs().sum(1) for row in found])
    slow.fill_diagonal_(torch.inf)
    assert torch.allclose(nearest(found, found, own=torch.arange(30)).float(), slow.min(1).values, atol=1e-5)


def test_copies_are_counted_and_honest_rows_are_not(model, monkeypatch):
    training, held = people(400, 0), people(300, 5)
    honest = privacy(model, training, held, count=300)
    assert honest.copies == 0 and honest.held and "of held-out rows" in str(honest)
    alone = privacy(model, training, count=300)
    assert not alone.held and alone.real_median > 0
    copied = batch_of(model, training)

    def cells(self, start):
        return copied.numbers[start : start + 256], copied.codes[start : start + 256]

    monkeypatch.setattr("narrows.tasks.generate.Generation.cells", cells)
    found = privacy(model, training, held, count=300)
    assert found.copies == 300 and found.near == 1 and found.median < 1e-6
    assert "300 of 300 generated rows equal a training row (100.0%)" in str(found)


def test_what_cannot_be_compared_is_refused(model):
    with pytest.raises(SettingError, match="count=0"):
        privacy(model, people(10, 0), count=0)
    with pytest.raises(DataError, match="1 training rows"):
        privacy(model, people(1, 0))
    images = fit(np.random.default_rng(0).random((40, 4, 4)), Plan("vae", 2, Dense(hidden=(8,)), Training(), epochs=1))
    with pytest.raises(SettingError, match="images"):
        privacy(images, np.random.default_rng(0).random((40, 4, 4)))


def test_the_report_of_a_model_that_makes_tables_has_the_section(model, tmp_path):
    write_report(model, people(100, 2), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "<h2>Privacy</h2>" in page and "equal to a row of the data" in page
    plain = fit(people(100, 2), Plan("plain", 1, Dense(hidden=(8,)), Training(), epochs=1))
    write_report(plain, people(100, 2), tmp_path / "b.html")
    assert "<h2>Privacy</h2>" not in (tmp_path / "b.html").read_text()
