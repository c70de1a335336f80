"""The page's section of anomalies: what it says is what the detector says, for tables, series, pictures and bags."""

from __future__ import annotations

import base64
import html
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from narrows.report.anomalies import anomalies, score_chart
from narrows.report.charts import BOTTOM, HEIGHT, TOP
from narrows.tasks.detect import Detector
from narrows.tasks.figures import figure
from odd_rows import contaminated, correlated, fitted, mixed, prepared
from small_models import small_model
from test_report import HOSTILE, page_of

pytestmark = pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning")


def section(text: str) -> str:
    return html.unescape(re.search(r"<h2>Anomalies</h2>.*?</section>", text, re.DOTALL)[0])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return contaminated(mixed(600)).rename(columns={"a": HOSTILE})


@pytest.fixture(scope="module")
def model(frame):
    return fitted(frame)


def test_the_oddest_rows_are_those_of_the_highest_scores(model, frame, tmp_path):
    text, page = page_of(model, frame, tmp_path / "page.html", worst=5)
    shown = section(text)
    detector = Detector.of(model)
    scores = detector.scores(prepared(model, frame))
    top = scores.argsort(descending=True, stable=True)[:5].tolist()
    assert [int(row) for row in re.findall(r"<b>row ([\d,]+)</b>", shown)] == top
    assert re.findall(r"score ([\d.]+)", shown) == [figure(float(scores[row])) for row in top]
    p = detector.calibration.p_values(scores)
    assert re.findall(r"<br>p ([\d.]+)", shown) == [figure(float(p[row])) for row in top]
    count = int((scores > detector.threshold).sum())
    assert f"{count:,} of 600 rows are anomalies" in " ".join(page.words.split())
    assert "reconstructs less well than others is on purpose" in page.words


def test_suspects_are_the_columns_of_most_blame_with_what_stands_there(model, frame):
    found = anomalies(model, model.source(frame), 6)
    detector, rows = Detector.of(model), prepared(model, frame)
    blame, normal = detector.blame(rows), detector.normal(rows)
    for odd in found.rows:
        by_column = {c.name: float(blame.cells[odd.index, model.schema.spans[c.name]].sum()) for c in model.schema}
        by_column["the row as a whole"] = float(blame.remainder[odd.index])
        most = sorted(by_column, key=by_column.get, reverse=True)[:4]
        assert [each.name for each in odd.suspects] == most[: len(odd.suspects)]
        assert [each.adds for each in odd.suspects] == [figure(by_column[each.name]) for each in odd.suspects]
        assert odd.suspects[0].share == pytest.approx(100)
        for each in odd.suspects:
            if each.name in ("kind", "sort"):
                assert each.value == frame[each.name][odd.index]
                place = model.schema.spans[each.name].start - model.schema.numbers
                known = model.preparer.restore(normal.numbers, normal.codes).column(each.name)
                assert each.ordinary == known[odd.index].as_py() and normal.codes[odd.index, place] >= 0


def test_the_section_says_who_judged_and_by_what(model, frame):
    found = anomalies(model, model.source(frame), 1)
    errors = Detector.of(model).facts["errors"]
    assert "how badly the network tells its cells (4)" in found.judges
    for name in ("trained", "columns", "untrained"):
        assert figure(errors[name]) in found.judges


def test_models_that_detect_nothing_have_no_such_section(tmp_path):
    rows = correlated(80)
    text, page = page_of(small_model(rows), rows, tmp_path / "page.html")
    assert "<h2>Anomalies</h2>" not in text and "on purpose" not in page.words


def test_a_network_that_was_left_out_is_told(tmp_path):
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 6)), columns=list("abcdef"))
    with pytest.warns(match="go without it"):
        model = fitted(rows)
    text, _ = page_of(model, rows, tmp_path / "page.html")
    assert "so scores go without it" in text and "how badly the network tells" not in section(text)


# the chart


def bars(chart: str) -> tuple[int, float]:
    """How many bars there are below and above the threshold, and what share of rows they stand for."""
    paths = dict(re.findall(r'<path class="(low|high)" d="([^"]*)"', chart))
    tops = [float(top) for path in paths.values() for top in re.findall(r"V([\d.]+)H", path)]
    counts = [len(re.findall("M", paths[name])) for name in ("low", "high")]
    return counts, tops


def test_bars_stand_for_the_rows_on_their_side_of_the_threshold():
    rng = np.random.default_rng(0)
    scores, held = rng.normal(size=2000), rng.normal(size=300)
    threshold = 1.5
    chart, beyond = score_chart(scores, held, threshold)
    (low, high), tops = bars(chart)
    assert beyond == "" and 20 < low < 60 and 5 < high < 40
    most = max(np.histogram(scores, 40)[0].max() / 2000, np.histogram(held, 40)[0].max() / 300)
    share_a_pixel = 1.08 * most / (HEIGHT - BOTTOM - TOP)
    total = sum(HEIGHT - BOTTOM - top for top in tops) * share_a_pixel
    assert total == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([1.0, 1.0, 1.0], 1.0), ([1.0, 1.0], 5.0), ([0.0] * 9 + [1e9], 1.0), ([3.0], 1.0), ([-5.0, -4.0], -4.5)],
)
def test_odd_scores_are_drawn_too(scores, threshold):
    values = np.array(scores)
    chart, beyond = score_chart(values, values, threshold)
    (low, high), tops = bars(chart)
    assert low + high >= 1 and np.isfinite(tops).all()
    assert (high > 0) == bool((values > threshold).any()) or (values == threshold).any()
    assert ("last bar" in beyond) == (max(scores) > 1e6)


# other kinds of rows


def test_series_are_drawn_with_what_was_expected_and_tinted_where_they_are_odd(tmp_path):
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(40) / 4 + rng.uniform(0, 6, (300, 1))) + 0.05 * rng.normal(size=(300, 40))
    waves[11, 20:24] += 2
    model = fitted(waves, columns={"x": "series"}, epochs=3)
    text, _ = page_of(model, waves, tmp_path / "page.html", worst=2)
    shown = section(text)
    first = anomalies(model, model.source(waves), 1).rows[0]
    assert first.index == 11 and len(first.charts) == 1
    assert [len(re.findall(f"line {name}", first.charts[0])) for name in ("original", "model", "pca")] == [1, 1, 1]
    strengths = [float(how) for how in re.findall(r'class="hot" opacity="([\d.]+)"', first.charts[0])]
    assert max(strengths) == 1.0
    assert re.search(r"around step 2[0-3]", shown)


def test_pictures_stand_beside_their_heat(tmp_path):
    rng = np.random.default_rng(0)
    images = np.kron(rng.random((200, 2, 2)), np.ones((4, 4))).astype(np.float32)
    images[5, 2:5, 2:5] = 1 - images[5, 2:5, 2:5].round()
    model = fitted(images, columns={"x": "image"}, epochs=3)
    text, _ = page_of(model, images, tmp_path / "page.html", worst=2)
    labels = [label for label, _ in anomalies(model, model.source(images), 1).rows[0].pictures]
    assert labels == ["as it came", "to blame", "expected"]
    uris = re.findall(r'<img alt="to blame" src="data:image/png;base64,([^"]+)"', section(text))
    assert len(uris) == 2 and all(base64.b64decode(uri).startswith(b"\x89PNG") for uri in uris)


def test_items_and_elements_are_named(tmp_path):
    values = contaminated(correlated(400)).to_numpy()
    model = fitted(values)
    named = anomalies(model, model.source(values), 3).rows[0].suspects
    assert re.fullmatch(r"x\d", named[0].name) and named[0].value and named[0].expected
    assert torch.tensor([each.share for each in named]).diff().le(0).all()
    words = [" ".join(np.random.default_rng(i).choice(["ape", "bee", "cat", "dog", "eel"], 6)) for i in range(200)]
    frame = pd.DataFrame({"text": [*words, "ape ape ape ape ape ape ape ape ape ape"] * 2})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bags = fitted(frame, columns={"text": "bag"})
    odd = anomalies(bags, bags.source(frame), 3).rows
    assert any(each.name.startswith("text: ") and each.value in ("in it", "not in it") for each in odd[0].suspects)
