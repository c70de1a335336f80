"""The diagnosis: each finding provoked and told, none of a healthy model, the same in every face and file."""

from __future__ import annotations

import json
from math import exp, log

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from command import narrows
from narrows import Autoencoder, ModelFileError, Plan, Training, learn_baseline, load, write_report
from narrows import fit as fit_diagnosed
from narrows.findings import Finding
from narrows.fitted import Model, Part
from narrows.model.latents import Code, Posterior
from narrows.networks.dense import Dense
from narrows.tasks.diagnosis import learn_diagnosis
from narrows.tasks.evaluate import evaluate
from narrows.tasks.inside import dead_entries, dead_numbers, posterior_collapse, vanishing_gradients
from small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")
FLOAT32 = {"precision": "float32"}


def curved(rows: int, columns: int = 10, seed: int = 0) -> np.ndarray:
    """Rows on a bent surface of two dimensions, which PCA of two components cannot follow."""
    mixing = np.random.default_rng(5).normal(size=(2, columns))
    return np.cos(np.random.default_rng(seed).normal(size=(rows, 2)) @ mixing).astype(np.float32)


def noise(rows: int, columns: int = 10, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def fitted(rows, validation=None, training=None, **plan) -> Model:
    plan = {"latent": 2, "network": Dense(hidden=(64, 32)), "epochs": 20, **plan}
    training = Training(**{**FLOAT32, **(training or {})})
    return fit_diagnosed(
        rows, Plan(training=training, **plan), validation=validation, learn={"baseline": learn_baseline}
    )


def problems(model: Model) -> dict[str, Finding]:
    return {finding.name: finding for finding in model.diagnosis if finding.problem}


@pytest.fixture(scope="module")
def healthy() -> Model:
    return fitted(curved(2000), epochs=30)


# every finding, provoked


def test_a_healthy_model_has_no_problems(healthy) -> None:
    found = {finding.name: finding for finding in healthy.diagnosis}
    assert not problems(healthy)
    names = {"over-fitting", "dead units", "dead code numbers", "vanishing gradients", "beside PCA"}
    assert set(found) == names | {"beside the untrained net"}
    assert found["beside PCA"].figure < 0.7 and found["beside the untrained net"].figure < 0.5
    assert all(finding.sentence and not finding.advice for finding in found.values())


@pytest.mark.parametrize("recipe", ["vae", "denoising"])
def test_healthy_models_of_other_recipes_have_none_either(recipe) -> None:
    mixed = np.tanh(noise(1500, 3) @ noise(3, 12, 1)) + 0.05 * noise(1500, 12, 2)
    assert not problems(fitted(mixed, recipe=recipe, latent=3, epochs=25))


@pytest.mark.filterwarnings("ignore:column 'x' has values far outside")
def test_five_rows_are_learnt_by_heart() -> None:
    found = problems(fitted(noise(5), validation=noise(200, seed=1), epochs=100))["over-fitting"]
    assert found.figure > 0.5 and "more rows" in found.advice


def test_a_large_beta_empties_the_code() -> None:
    found = problems(fitted(curved(600), recipe="vae:beta=50", latent=4))["posterior collapse"]
    assert found.figure == 1 and "4 of 4" in found.sentence and "beta" in found.advice


def test_a_learning_rate_far_too_high_kills_rectifiers() -> None:
    network = Dense(hidden=(64, 64), activation="relu")
    found = problems(fitted(curved(600), network=network, lr=30.0, training={"optimizer": "adam", "clip": None}))
    assert found["dead units"].figure > 0.25 and "lower lr" in found["dead units"].advice
    assert "no better than PCA" in found


def test_gradients_vanish_in_twenty_layers_of_sigmoids() -> None:
    network = Dense(hidden=(16,) * 20, decoder=(16,), activation="sigmoid")
    found = problems(fitted(curved(300), network=network, epochs=3))["vanishing gradients"]
    assert found.figure < 1e-6 and "residual" in found.advice


def test_a_deep_network_of_residual_layers_is_well() -> None:
    network = Dense(hidden=(16,) * 20, decoder=(16,), activation="silu", residual=True)
    assert "vanishing gradients" not in problems(fitted(curved(300), network=network, epochs=3))


def test_noise_is_no_better_than_by_pca() -> None:
    found = problems(fitted(noise(2000), recipe="vae", epochs=5))["no better than PCA"]
    assert found.figure >= 1 and "PCA with 2 components" in found.sentence


def test_a_net_that_learnt_nothing_is_no_better_than_untrained() -> None:
    found = problems(fitted(noise(500), epochs=1, lr=1e-12))["no better than the untrained net"]
    assert found.figure == pytest.approx(1, abs=1e-4)


# figures


def test_collapse_counts_numbers_by_their_divergence() -> None:
    mean, scale = torch.randn(50, 6), torch.rand(50, 6) + 0.5
    mean[:, :3], scale[:, :3] = 0.01, 1.0
    code = Code(mean[None], posterior=Posterior(mean, 2 * scale.log()))
    nats = kl_divergence(Normal(mean, scale), Normal(0.0, 1.0)).mean(0)
    assert (nats < 0.01).sum() == 3
    assert posterior_collapse(code).figure == 0.5 and posterior_collapse(code).problem
    assert posterior_collapse(Code(mean[None])) is None


def test_collapse_is_told_level_by_level() -> None:
    terms = {"kl1": torch.full((1, 9), 3.0), "kl2": torch.full((1, 9), 0.02)}
    found = posterior_collapse(Code(torch.zeros(1, 9, 2), terms))
    assert found.figure == 0.5 and "kl2 0.0200" in found.sentence


def test_entries_are_counted_and_their_perplexity_is_that_of_the_shares() -> None:
    symbols = torch.tensor([0] * 60 + [1] * 30 + [2] * 10).view(1, 50, 2)
    found = dead_entries(Code(torch.zeros(1, 50, 2), symbols=symbols), 10)
    perplexity = exp(-sum(p * log(p) for p in (0.6, 0.3, 0.1)))
    assert found.figure == pytest.approx(0.7) and found.problem and f"{perplexity:.1f}" in found.sentence
    assert dead_entries(Code(torch.zeros(1, 50, 2), symbols=symbols), 11) is None  # too few choices to tell
    assert not dead_entries(Code(torch.zeros(1, 50, 2), symbols=symbols % 2), 2).problem


def test_numbers_of_a_sparse_code_that_never_fire_are_dead_where_rows_are_enough() -> None:
    codes = torch.zeros(400, 8)
    codes[torch.arange(400), torch.arange(400) % 5] = 1.0
    assert dead_numbers(codes, Code(codes[None])).figure == pytest.approx(3 / 8)
    assert dead_numbers(codes[:40], Code(codes[None, :40])) is None


@pytest.mark.parametrize("members", [None, 3])
def test_the_gradient_of_layers_is_that_of_the_loss(members) -> None:
    model = small_model(curved(100), members=members, steps=5)
    (_, batch), *_ = model.batches(curved(100))
    model.module.zero_grad()
    model.module(batch).total().backward()
    matrices = [weight.grad for weight in model.module.encoder.parameters() if weight.ndim - bool(members) > 1]
    first, last = (grad.square().mean().sqrt() for grad in (matrices[0], matrices[-1]))
    found = vanishing_gradients(model.module, batch)
    assert members or found.figure == pytest.approx(float(first / last), rel=1e-4)


def test_the_figure_beside_pca_is_that_of_evaluation(healthy) -> None:
    told = next(finding for finding in healthy.diagnosis if finding.name == "beside PCA")
    total = evaluate(healthy, curved(2000)).total
    assert told.figure == pytest.approx(total.model / total.pca, rel=0.15)


# every fit


@pytest.mark.parametrize(
    ("rows", "plan"),
    [
        (pd.DataFrame({"town": ["a", "b", "c"] * 40, "size": np.arange(120.0)}), {}),
        (pd.DataFrame({"size": [1.0, None] * 60, "x": np.arange(120.0)}), {"latent": 1}),
        (
            pd.DataFrame({"t": ["the cat sat on it", "a dog ran far"] * 40}),
            {"columns": {"t": "chars"}, "network": None},
        ),
        (np.random.default_rng(0).integers(0, 255, (60, 8, 8)).astype(np.uint8), {"network": "conv"}),
        (curved(90), {"network": "transformer"}),
        (curved(90), {"network": Dense(hidden=(8,), members=3)}),
        (curved(90), {"recipe": "linear", "network": None}),
        (curved(90), {"recipe": "topk:k=2", "latent": 6}),
        (curved(90), {"recipe": "vq:levels=8,dim=1"}),
        (curved(90), {"recipe": "hierarchical"}),
        (curved(90), {"recipe": "aae"}),
        (curved(3), {}),
    ],
)
def test_every_kind_of_model_is_looked_at(rows, plan, tmp_path) -> None:
    model = fitted(rows, **{"epochs": 2, **plan})
    assert model.diagnosis and all(np.isfinite(finding.figure) for finding in model.diagnosis)
    model.save(tmp_path / "m.narrows")
    assert load(tmp_path / "m.narrows").diagnosis == model.diagnosis


def test_a_user_s_own_networks_are_looked_at_too() -> None:
    modules = {"encoder": nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)), "decoder": nn.Linear(2, 10)}
    model = fit_diagnosed(curved(300), Plan(latent=2, epochs=2), modules=modules)
    assert {"dead units", "vanishing gradients"} <= {finding.name for finding in model.diagnosis}


def test_streamed_rows_are_looked_at(tmp_path) -> None:
    pd.DataFrame(curved(3000)).rename(columns=str).to_parquet(tmp_path / "x.parquet")
    model = fitted(tmp_path / "x.parquet", epochs=3, training={"budget": 0})
    assert {"over-fitting", "beside PCA"} <= {finding.name for finding in model.diagnosis}


def test_a_diagnosis_is_repeated_to_the_byte_and_leaves_randomness_and_weights_alone(tmp_path) -> None:
    for name in ("a", "b"):
        fitted(curved(200), epochs=3, recipe="vae").save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    model = load(tmp_path / "a")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    learn_diagnosis(model, (batch for _, batch in model.batches(curved(200))))
    assert (torch.rand(2) == expected).all() and not model.module.training
    assert all((tensor == before[name]).all() for name, tensor in model.module.state_dict().items())
    assert all(weight.grad is None for weight in model.module.parameters())


# faces


def test_the_estimator_and_the_page_tell_it(healthy, tmp_path) -> None:
    estimator = Autoencoder(latent=2, hidden=(8,), epochs=2, random_state=0).fit(curved(200))
    assert {"over-fitting", "beside PCA"} & {finding.name for finding in estimator.model_.diagnosis}
    write_report(estimator.model_, curved(200), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert all(finding.sentence in page for finding in estimator.model_.diagnosis if "'" not in finding.sentence)
    write_report(small_model(curved(100)), curved(100), tmp_path / "r.html")
    assert "Diagnosis" not in (tmp_path / "r.html").read_text()


def test_the_command_line_tells_problems_alone(tmp_path) -> None:
    pd.DataFrame(noise(300)).rename(columns="c{}".format).to_csv(tmp_path / "x.csv", index=False)
    words = ("fit", "x.csv", "--latent", 2, "--hidden", 8, "--epochs", 1, "--lr", "1e-9", "--out", "m.narrows")
    said = narrows(*words, cwd=tmp_path).stdout
    assert "no better than the untrained net: squared error" in said and "dead units" not in said
    assert "no better than PCA" in narrows("info", "m.narrows", cwd=tmp_path).stdout
    told = json.loads(narrows("info", "m.narrows", "--json", cwd=tmp_path).stdout)["diagnosis"]
    assert {finding["name"] for finding in told if finding["problem"]} >= {"no better than PCA"}


def test_models_without_a_diagnosis_and_with_a_broken_one(healthy) -> None:
    assert small_model(curved(50), steps=1).diagnosis == []
    kept = healthy.parts["diagnosis"]
    good = kept.facts["findings"][0]
    for broken in (3, {**good, "problem": "yes"}, {**good, "more": 1}, {**good, "figure": "high"}, "all well"):
        healthy.parts["diagnosis"] = Part({"findings": [broken]})
        with pytest.raises(ModelFileError, match="finding of the diagnosis"):
            _ = healthy.diagnosis
    healthy.parts["diagnosis"] = kept
