"""-log p(x) by importance sampling: against the closed form, and how it behaves."""

import json
import math

import numpy as np
import pytest
import torch

from command import narrows
from narrows.errors import DataError, SettingError
from narrows.fitting import Plan, fit
from narrows.tasks.likelihood import log_likelihood
from small_models import as_linear_gaussian, small_model

RNG = np.random.default_rng(0)
ROWS = (RNG.normal(size=(400, 2)) @ RNG.normal(size=(2, 4)) + 0.5 * RNG.normal(size=(400, 4))).astype(np.float32)


def linear_gaussian(wide: float = 1.0):
    """A model that is p(z) = N(0, 1), p(x|z) = N(wz + b, s^2), its posterior `wide` times as wide as the true one."""
    model = small_model(ROWS, "vae:likelihood=gaussian", latent=1, steps=1, hidden=())
    torch.manual_seed(0)
    normal = as_linear_gaussian(model.module, wide=wide)
    prepared = next(batch for _, batch in model.batches(ROWS))
    return model, -normal.log_prob(prepared.numbers).double()


def test_at_the_true_posterior_a_single_draw_is_exact():
    model, truth = linear_gaussian()
    found = log_likelihood(model, ROWS, samples=1)
    assert found.nats == pytest.approx(float(truth.mean()), abs=1e-4)
    assert found.rows == 400
    assert found.error == pytest.approx(float(truth.std()) / math.sqrt(400), rel=1e-3)


def test_with_another_posterior_many_draws_come_to_the_truth():
    model, truth = linear_gaussian(wide=1.5)
    found = log_likelihood(model, ROWS, samples=2000)
    assert abs(found.nats - float(truth.mean())) < 4 * found.noise
    assert found.noise < 5e-3
    assert 500 < found.effective < 2000
    few = [log_likelihood(model, ROWS, samples=k).nats for k in (1, 5, 50)]
    assert few[0] > few[1] > few[2] > found.nats - 1e-3  # bounds, tighter with every draw


def test_the_stated_noise_is_what_other_seeds_change():
    model, _ = linear_gaussian(wide=1.5)
    found = [log_likelihood(model, ROWS, samples=50, seed=seed) for seed in range(30)]
    spread = np.std([each.nats for each in found], ddof=1)
    assert 0.6 < spread / np.mean([each.noise for each in found]) < 1.6


def test_the_same_seed_gives_the_same_figures_and_leaves_the_generator_alone():
    model, _ = linear_gaussian(wide=1.5)
    state = torch.random.get_rng_state()
    assert log_likelihood(model, ROWS, samples=10) == log_likelihood(model, ROWS, samples=10)
    assert log_likelihood(model, ROWS, samples=10) != log_likelihood(model, ROWS, samples=10, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_members_are_a_mixture():
    model = small_model(ROWS, "vae", latent=1, members=3)
    found = log_likelihood(model, ROWS, samples=200)
    with torch.no_grad():
        weights = model.module.likelihoods(next(batch for _, batch in model.batches(ROWS)), 200)
    each = math.log(200) - torch.logsumexp(weights, 0)  # (members, rows)
    best, least = float(each.mean(1).min()), float(each.min(0).values.mean())
    assert least - 0.05 < found.nats < best + math.log(3)  # of each row between its best member, and a third of any


@pytest.mark.parametrize(
    ("recipe", "words"), [("plain", "draws codes: vae"), ("vae:likelihood=mse", "vae:likelihood=auto")]
)
def test_models_without_a_likelihood_are_refused(recipe, words):
    with pytest.raises(SettingError, match=words):
        log_likelihood(small_model(ROWS, recipe, steps=1), ROWS)


def test_no_rows_and_no_samples_are_refused():
    model = small_model(ROWS, "vae", steps=1)
    with pytest.raises(DataError, match="no rows"):
        log_likelihood(model, ROWS[:0])
    with pytest.raises(SettingError, match="from 1 to"):
        log_likelihood(model, ROWS, samples=0)


def test_the_command_line_prints_it(tmp_path):
    fit(ROWS, Plan("vae", latent=1, epochs=1)).save(tmp_path / "m.narrows")
    np.save(tmp_path / "rows.npy", ROWS)
    done = narrows("evaluate", "m.narrows", "rows.npy", "--likelihood", 20, cwd=tmp_path)
    assert "-log p(x) = " in done.stdout + done.stderr
    assert "400 rows, 20 draws each" in done.stdout + done.stderr
    done = narrows("evaluate", "m.narrows", "rows.npy", "--likelihood", 20, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["likelihood"]["rows"] == 400
