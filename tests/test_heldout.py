"""Whether evaluated rows are new: the loss of validation is that of evaluation, and rows learnt by heart are told."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from narrows.fitted import Model
from narrows.fitting import Plan, fit
from narrows.networks.dense import Dense
from narrows.report.page import report
from narrows.tasks.baseline import learn_baseline
from narrows.tasks.evaluate import evaluate
from narrows.tasks.evaluation import Evaluation
from narrows.tasks.heldout import HeldOut
from narrows.train.settings import Training
from small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")
CAUTION = "But these rows fit better than rows held out from training"


def rows(count: int, seed: int, columns: int = 20) -> pd.DataFrame:
    """Noise, which can be learnt by heart and in no other way."""
    draws = np.random.default_rng(seed).normal(size=(count, columns))
    return pd.DataFrame(draws, columns=[f"c{i}" for i in range(columns)])


@pytest.fixture(scope="module")
def by_heart() -> Model:
    training = Training(patience=None, validation=0.2, precision="float32")
    plan = Plan(latent=16, network=Dense(hidden=(256,)), epochs=60, training=training)
    return fit(rows(120, 0), plan, learn={"baseline": learn_baseline})


@pytest.mark.parametrize("recipe", ["plain", "linear", "denoising", "vae", "vae:beta=4", "wae", "tcvae"])
@pytest.mark.parametrize("members", [None, 3])
def test_the_loss_of_validation_rows_is_that_of_training(recipe, members):
    held = rows(200, 1, 4).assign(word=np.random.default_rng(0).choice(["a", "b"], 200))
    train = rows(100, 2, 4).assign(word=["a", "b"] * 50)
    network = Dense(hidden=None if recipe == "linear" else (8,), members=members)
    plan = Plan(recipe, 2, network, Training(precision="float32"), epochs=3)
    model = fit(train, plan, validation=held)
    found = evaluate(model, held)
    records, best = model.facts["records"], model.facts["best"]
    told = found.to_json()
    assert told["validation_loss"] == pytest.approx(records[best]["val_loss"] / (members or 1))
    # one draw of each code or corruption, others than in training: batches are cut elsewhere
    drawn = recipe not in ("plain", "linear")
    assert told["evaluated_loss"] == pytest.approx(told["validation_loss"], rel=0.1 if drawn else 1e-4)
    assert (told["evaluated_loss"] == pytest.approx(told["loss_per_row"]["total"], rel=1e-6)) == (not drawn)
    assert not found.held.caution


def test_rows_learnt_by_heart_are_told_from_new_ones(by_heart, tmp_path):
    known, new = rows(120, 0), rows(120, 7)
    found = evaluate(by_heart, known)
    assert CAUTION in found.verdict and found.to_json()["verdict"] == found.verdict
    assert "they are probably the training rows, or the model over-fits" in found.verdict
    assert CAUTION not in evaluate(by_heart, new).verdict
    for data in (known, new):
        result = evaluate(by_heart, data)
        console = Console(width=200, file=io.StringIO())
        console.print(result.table())
        assert result.held.sentence in " ".join(console.file.getvalue().split())
        report(by_heart, data, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text("utf-8").replace("&#39;", "'")
        assert result.held.sentence in page and (CAUTION in page) == (data is known)


def test_few_rows_and_rows_with_new_holes_prove_nothing(by_heart):
    known = rows(120, 0)
    assert CAUTION not in evaluate(by_heart, known[:1]).verdict
    hollow = rows(120, 7).mask(np.random.default_rng(0).random((120, 20)) < 0.7)
    assert CAUTION not in evaluate(by_heart, hollow).verdict
    assert CAUTION not in evaluate(by_heart, hollow * np.nan).verdict
    assert evaluate(by_heart, hollow).held.here < by_heart.facts["records"][by_heart.facts["best"]]["val_loss"]


def test_a_random_state_is_given_back(by_heart):

    model = small_model(rows(60, 0, 4), "vae", 2, steps=2)
    model.facts |= {"best": 1}
    torch.manual_seed(5)
    evaluate(model, rows(60, 1, 4))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert (torch.rand(3) == drawn).all()


@pytest.mark.parametrize(
    ("validation", "here", "error", "said"),
    [
        (0.58, 0.29, 0.01, True),
        (0.58, 0.50, 0.001, False),
        (0.58, 0.29, 0.2, False),
        (0.58, 0.90, 0.0, False),
        (-2.0, -3.0, 0.1, True),
        (-2.0, -2.1, 0.01, False),
        (0.0, 0.0, 0.0, False),
        (0.5, float("nan"), 0.1, False),
        (0.5, 0.1, float("inf"), False),
        (0.5, 0.1, float("nan"), False),
    ],
)
def test_a_fifth_better_and_no_accident(validation, here, error, said):
    held = HeldOut(validation, here, error)
    assert bool(held.caution) == said
    assert isinstance(held.sentence, str)


def test_a_model_that_tells_no_validation_loss_is_not_compared():
    model = small_model(rows(60, 0, 4), latent=2, steps=2)
    assert "best" not in model.facts
    found: Evaluation = evaluate(model, rows(60, 0, 4))
    assert found.held is None and found.to_json()["validation_loss"] is None
