"""Code sizes: the one-standard-error rule by its definition, the search by trying all, and known factors found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from command import narrows
from narrows.errors import DataError, SettingError
from narrows.estimators import Autoencoder
from narrows.fitted import load
from narrows.fitting import Plan, fit
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.report.page import report
from narrows.schema import Batch
from narrows.sizing import ALIKE, PART, Judge, judged, one_standard_error, search


def rows_of(factors, columns=24, rows=1500, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, factors)) @ draw.normal(size=(factors, columns)) / np.sqrt(factors)
    return (x + 0.2 * draw.normal(size=x.shape)).astype(np.float32)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("narrows.sizing.STEPS", 150)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_one_standard_error_by_its_definition(seed):
    draw = np.random.default_rng(seed)
    sizes = draw.choice(np.arange(1, 40), 6, replace=False)
    floor, hard = draw.integers(1, 40), draw.exponential(size=50)
    costs = {int(s): hard + max(0, floor - s) * 0.05 + 0.05 * draw.normal(size=50) for s in sizes}
    best = min(costs, key=lambda s: costs[s].mean())
    chosen = []
    for size in sorted(costs):
        gaps = [a - b for a, b in zip(costs[size], costs[best], strict=True)]
        mean = sum(gaps) / 50
        error = (sum((gap - mean) ** 2 for gap in gaps) / 49 / 50) ** 0.5
        chosen += [size] if mean <= max(error, ALIKE * abs(costs[best].mean())) else []
    assert one_standard_error(costs) == chosen[0]


def test_hard_rows_do_not_blur_what_is_better():
    hard = np.random.default_rng(0).exponential(size=200) * 10
    assert one_standard_error({1: hard + 2.0, 2: hard}) == 2


def test_sizes_without_a_finite_cost_are_never_taken():
    assert one_standard_error({1: np.array([np.nan, 0.0]), 3: np.ones(2)}) == 3
    with pytest.raises(SettingError, match="finite"):
        one_standard_error({1: np.array([np.inf])})


@pytest.mark.parametrize("start", [1, 2, 5, 9, 16, 31, 40])
@pytest.mark.parametrize("floor", [1, 2, 7, 16, 33])
def test_the_search_finds_what_trying_all_finds_with_few_fits(start, floor):
    def cost(size):
        return np.full(30, 1.0 + max(0, floor - size))

    every = {size: cost(size) for size in range(1, 41)}
    known = search(cost, start, 40)
    assert one_standard_error(known) == one_standard_error(every) == floor
    assert len(known) <= 14


def test_hidden_cells_are_not_seen():
    """A judge's costs cannot be those of a copy: a module told everything it is asked still costs what is hidden."""
    schema_rows = rows_of(2, 6, 200)
    model = fit(schema_rows, Plan("linear", latent=3, epochs=1))
    batch = next(batch for _, batch in model.batches(schema_rows))
    module = build(judged(Recipe.parse("plain")), model.schema, 3, Network())
    first, again = (Judge(batch, Recipe.parse("plain")).costs(module) for _ in range(2))
    assert first.shape == (200,) and (first == again).all()  # the same cells each time
    changed = Batch(batch.numbers + 100.0, batch.codes)
    assert Judge(changed, Recipe.parse("plain")).costs(module).mean() > 1000 * first.mean()


def test_auto_finds_known_factors_and_the_page_shows_how(tmp_path):
    x = rows_of(4, 16, 800)
    model = fit(x, Plan(latent="auto", network=Dense(hidden=(32,)), epochs=1))
    assert abs(model.latent - 4) <= 1
    model.save(tmp_path / "m.narrows")
    facts = load(tmp_path / "m.narrows").parts[PART].facts
    assert facts["latent"] == model.latent and len(facts["trials"]) >= 3 and facts["measure"] == "hidden cells"
    report(model, x[:100], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "How the code size was chosen" in page and f"a code of {model.latent}, chosen from" in page


def test_auto_by_the_bound_and_from_the_command_line(tmp_path):
    np.save(tmp_path / "x.npy", rows_of(2, 8, 400))
    words = ["--latent", "auto", "--recipe", "vae", "--epochs", "1", "--out", "m.narrows", "--verbose", "0", "--json"]
    narrows("fit", "x.npy", *words, cwd=tmp_path)
    told = json.loads(narrows("info", "m.narrows", "--json", cwd=tmp_path).stdout)
    assert 1 <= told["code"] <= 4 and PART in told["parts"]


def test_what_auto_refuses():
    with pytest.raises(DataError, match="quarter of them held out"):
        Autoencoder(latent="auto", epochs=1).fit(rows_of(2, 6, 60))
    with pytest.raises(SettingError, match="or auto"):
        Plan(latent="many").check()
    modules = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    with pytest.raises(SettingError, match="the user's own"):
        Autoencoder(latent="auto", network=modules, epochs=1).fit(rows_of(2, 6, 200))
