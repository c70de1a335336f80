"""Penalties against autograd's Jacobian, slow double loops and closed forms; robust likelihoods against torch's."""

from __future__ import annotations

from math import log

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.building import build
from narrows.model.divergences import SCALES, mmd, total_correlation
from narrows.model.families import Huber, Student
from narrows.model.latents import Posterior
from narrows.model.likelihoods import Likelihood
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import Batch, Column, Schema
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training
from small_run import rows_of_rank

MIXED = Schema(
    (
        Column("n", "number", "double", holes=True),
        Column("k", "count", "int64"),
        Column("c", "category", "string", width=0, levels=3),
        Column("x", "number", "float", shape=(4,), width=4),
    )
)
NUMBERS = Schema((Column("x", "number", "float", shape=(4,), width=4),))
IMAGE = Schema((Column("i", "image", "u1", (5, 6), 30, grid=(5, 6, 1), bounded=True),))
SERIES = Schema((Column("s", "series", "double", (6, 2), 12, grid=(6, 2)),))
BAG = Schema((Column("n", "number", "double"), Column("b", "bag", "map<string, float>", width=6)))


def rows_of(schema: Schema, count: int, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.rand(count, schema.numbers, generator=draw) * 2
    codes = torch.randint(4, (count, len(schema.levels)), generator=draw)
    seen = None
    if any(column.holes for column in schema):
        seen = torch.ones(count, schema.cells, dtype=torch.bool)
        seen[::2, 0] = False
    return Batch(numbers, codes, seen)


def made(recipe: str, schema: Schema = NUMBERS, network: Network | None = None, members: int | None = None, **facts):
    torch.manual_seed(0)
    network = network or Network.of(Dense(**({"hidden": (8,), "members": members} | facts)))
    return build(Recipe.parse(recipe), schema, 3, network)


def jacobian_norms(module, batch: Batch) -> Tensor:
    """([E,] B) by autograd's own Jacobian, row by row."""

    def codes(numbers: Tensor, row: int) -> Tensor:
        one = batch[row : row + 1]
        return module.encode(Batch(numbers.unsqueeze(0), one.codes, one.seen)).z.squeeze(0).squeeze(-2)

    norms = [
        torch.autograd.functional.jacobian(lambda n, row=row: codes(n, row), batch.numbers[row]).square().sum((-1, -2))
        for row in range(len(batch))
    ]
    return torch.stack(norms, -1)


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("code", ["identity", "sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize("schema", [NUMBERS, MIXED])
def test_of_one_layer_the_norm_is_exact(schema, code, members):
    module, batch = made(f"contractive:code={code}", schema, members=members, hidden=()).eval(), rows_of(schema, 5)
    (penalty,) = module.penalties
    assert penalty.exact
    torch.testing.assert_close(penalty.norm(batch), jacobian_norms(module, batch))


DEEP = {
    "dense": (MIXED, Network.of(Dense(hidden=(8, 6)))),
    "members": (MIXED, Network.of(Dense(hidden=(8,), members=2))),
    "one layer": (NUMBERS, Network.of(Dense(hidden=()))),
    "bag": (BAG, Network.of(Dense(hidden=()))),
    "conv": (IMAGE, Network("conv", conv=Conv(channels=(4,)))),
    "recurrent": (SERIES, Network("recurrent", recurrent=Recurrent(units=5))),
    "patches": (IMAGE, Network("transformer", transformer=Transformer(width=8, heads=2, layers=1))),
    "cells": (MIXED, Network("transformer", transformer=Transformer(width=8, heads=2, layers=1))),
}


@pytest.mark.parametrize("kind", DEEP)
def test_random_projections_have_the_norm_as_their_mean(kind):
    schema, network = DEEP[kind]
    module, rows = made("contractive:code=tanh,draws=3", schema, network).eval(), rows_of(schema, 2)
    (penalty,) = module.penalties
    assert penalty.exact == (kind == "one layer")
    exact, draws = jacobian_norms(module, rows), 1500
    torch.manual_seed(1)
    each = penalty.estimate(rows[torch.arange(2).repeat_interleave(draws)]).unflatten(-1, (2, draws))
    assert each.shape == (*exact.shape, draws)
    error = each.std(-1) / draws**0.5
    assert bool(((each.mean(-1) - exact).abs() < 5 * error).all())
    assert bool((error < 0.1 * exact).all())


def test_the_norm_is_asked_of_training_alone_and_of_each_row_by_its_weight():
    module, batch = made("contractive:weight=2", hidden=()).train(), rows_of(NUMBERS, 6)
    weight = torch.tensor([0.0, 1, 2, 0, 3, 1])
    loss = module(Batch(batch.numbers, batch.codes, None, weight))
    norms = module.penalties[0].norm(batch)
    torch.testing.assert_close(loss.scalars["contractive"], (norms * weight).sum() / 7)
    plain = (loss.per_row() * weight).sum() / 7
    torch.testing.assert_close(loss.total(), plain + 2 * loss.scalars["contractive"])
    with torch.no_grad():
        assert "contractive" not in module.eval()(batch).scalars


def test_rows_without_numbers_and_no_draws_are_refused():
    codes = Schema((Column("c", "category", "string", width=0, levels=3),))
    with pytest.raises(SettingError, match=r"contractive.*a column of numbers.*denoising"):
        made("contractive", codes)
    with pytest.raises(SettingError, match="draws=0"):
        made("contractive:draws=0")


def curve(count: int, seed: int = 0) -> Batch:
    """Rows near a line bent through four numbers."""
    draw = torch.Generator().manual_seed(seed)
    t = 4 * torch.rand(count, 1, generator=draw)
    numbers = torch.cat([t.sin(), t.cos(), t / 2 - 1, (2 * t).sin()], 1)
    return Batch(numbers + 0.02 * torch.randn(numbers.shape, generator=draw), torch.zeros(count, 0, dtype=torch.long))


def learn(recipe: str, rows: Batch, epochs: int = 30, seed: int = 0, **facts):
    module = made(recipe, **({"hidden": (32,)} | facts))
    train(
        module, Resident(rows, 50, seed=1), None, Training(optimizer="adamw", batch_size=50), epochs=epochs, seed=seed
    )
    return module


def test_a_contracted_code_moves_less_for_its_size():
    rows, moved = curve(300), {}
    for recipe in ("plain", "contractive"):
        module = learn(recipe, rows)
        with torch.no_grad():
            spread = module.encode(rows).z[0].var(0).sum()
        moved[recipe] = jacobian_norms(module, rows[:50]).mean() / spread
    assert moved["contractive"] < 0.8 * moved["plain"]


def slow_mmd(x: Tensor, y: Tensor, kernel: str) -> float:
    def k(a: Tensor, b: Tensor) -> float:
        square = float((a - b).square().sum())
        cs = [2 * len(a) * scale for scale in SCALES]
        return sum(c / (c + square) if kernel == "imq" else float(torch.tensor(-square / c).exp()) for c in cs)

    def among(rows: Tensor) -> float:
        pairs = [k(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    return among(x) + among(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 6), m=st.integers(2, 6), size=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_discrepancy_is_that_of_a_slow_double_loop(kernel, n, m, size, seed):
    draw = torch.Generator().manual_seed(seed)
    x, y = 3 * torch.randn(2, n, size, generator=draw) + 1, torch.randn(2, m, size, generator=draw)
    want = torch.tensor([slow_mmd(one, other, kernel) for one, other in zip(x, y, strict=True)])
    torch.testing.assert_close(mmd(x, y, kernel), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["imq", "rbf"])
def test_the_discrepancy_is_nothing_between_equals_and_grows_with_the_shift(kernel):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 32, 4, generator=draw), torch.randn(400, 32, 4, generator=draw)
    each = mmd(x, y, kernel)
    assert abs(float(each.mean())) < 4 * float(each.std()) / 20
    assert bool((each < 0).any()), "an estimate that never falls below 0 is biased"
    values = [float(mmd(x + shift, y, kernel).mean()) for shift in (0.0, 0.3, 1.0, 3.0)]
    values += [float(mmd(x * scale, y, kernel).mean()) for scale in (1.0, 2.0)]
    assert values[:4] == sorted(values[:4]) and values[1] > 10 * abs(values[0]) and values[5] > 0.05


def test_a_lone_row_has_no_discrepancy_and_members_are_summed():
    for members in (None, 2):
        module = made("wae", members=members).train()
        loss = module(rows_of(NUMBERS, 1))
        assert loss.scalars["mmd"].item() == 0
        loss.total().backward()
    batch = rows_of(NUMBERS, 9)
    torch.manual_seed(5)
    loss = module(batch)
    z = module.encode(batch).z.detach()
    torch.manual_seed(5)
    normal = torch.randn_like(z)
    want = sum(slow_mmd(z[0, e], normal[0, e], "imq") for e in range(2))
    assert loss.scalars["mmd"].item() == pytest.approx(want, abs=1e-4)


def test_the_discrepancy_judges_and_training_lowers_it():
    rows = curve(300)
    normal = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0))
    far = {}
    for recipe in ("plain", "wae", "wae:kernel=rbf"):
        module = learn(recipe, rows)
        with torch.no_grad():
            assert ("mmd" in module(rows).scalars) == (recipe != "plain")
            far[recipe] = float(mmd(module.encode(rows).z[0], normal))
    assert max(far["wae"], far["wae:kernel=rbf"]) < 0.3 * far["plain"]
    assert module.latent.sample(5).shape == (5, 3)
    with pytest.raises(SettingError, match="kernel=cauchy"):
        made("wae:kernel=cauchy")


def slow_total_correlation(z: Tensor, mean: Tensor, log_variance: Tensor, rows: int) -> Tensor:
    """As Chen et al. write it, each mixture divided by its draws and by the rows of the training set."""
    count, size = z.shape
    values = []
    for i in range(count):
        each = torch.stack(
            [
                torch.stack(
                    [
                        torch.distributions.Normal(mean[j, d], (0.5 * log_variance[j, d]).exp()).log_prob(z[i, d])
                        for d in range(size)
                    ]
                )
                for j in range(count)
            ]
        )
        joint = each.sum(1).logsumexp(0) - log(count * rows)
        values.append(joint - sum(each[:, d].logsumexp(0) - log(count * rows) for d in range(size)))
    return torch.stack(values)


def test_total_correlation_is_the_authors_but_for_a_constant_that_no_gradient_sees():
    draw = torch.Generator().manual_seed(0)
    mean, log_variance, noise = (torch.randn(6, 3, generator=draw).requires_grad_() for _ in range(3))
    z = mean + (0.5 * log_variance).exp() * noise.detach()
    ours, theirs = (
        total_correlation(z.unsqueeze(0), Posterior(mean, log_variance))[0],
        slow_total_correlation(z, mean, log_variance, rows=1000),
    )
    torch.testing.assert_close(ours + (3 - 1) * log(1000), theirs, rtol=1e-5, atol=1e-4)
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), (mean, log_variance), retain_graph=True),
        torch.autograd.grad(theirs.sum(), (mean, log_variance)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_total_correlation_of_correlated_normals_is_the_closed_form():
    draw, found = torch.Generator().manual_seed(0), []
    for rho in (0.0, 0.5, 0.8, 0.95):
        variance = 0.02  # of each posterior; what is left is that of their means
        covariance = torch.tensor([[1.0, rho], [rho, 1.0]]) - variance * torch.eye(2)
        mean = torch.randn(2000, 2, generator=draw) @ torch.linalg.cholesky(covariance).T
        z = mean + variance**0.5 * torch.randn(2000, 2, generator=draw)
        log_variance = torch.full_like(mean, log(variance))
        found.append(float(total_correlation(z.unsqueeze(0), Posterior(mean, log_variance)).mean()))
        assert found[-1] == pytest.approx(-0.5 * log(1 - rho**2), abs=0.06)
    assert found == sorted(found)


def test_total_correlation_comes_on_top_of_the_divergence():
    batch, one, four = rows_of(NUMBERS, 8), made("tcvae:beta=1").train(), made("tcvae:beta=4").train()
    vae = made("vae").train()
    for seed in range(2):
        losses = []
        for module in (vae, one, four):
            torch.manual_seed(seed)
            losses.append(module(batch))
        torch.testing.assert_close(losses[1].total(), losses[0].total())
        torch.testing.assert_close(losses[2].total(), losses[0].total() + 3 * losses[2].scalars["tc"])
    assert made("tcvae").train()(batch[:1]).scalars["tc"].item() == pytest.approx(0.0, abs=1e-5)
    for beta in ("0.5", "inf"):
        with pytest.raises(SettingError, match=f"beta={beta}.*1 or more"):
            made(f"tcvae:beta={beta}")


RECIPES = ("contractive", "contractive:code=sigmoid", "wae", "wae:kernel=rbf", "tcvae", "aae", "vaegan", "vae")


@pytest.mark.parametrize("word", ["auto", "huber", "student", "student(5)"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_under_bfloat16_are_near_those_without(recipe, word):
    spelled = f"{recipe}{',' if ':' in recipe else ':'}likelihood={word}"
    module, batch = made(spelled).train(), rows_of(NUMBERS, 64)
    totals = []
    for enabled in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = module(batch)
            total = loss.total() if loss.opposing is None else loss.total() + loss.opposing
        module.zero_grad()
        total.backward()
        assert total.dtype == torch.float32
        assert all(w.grad is not None and bool(w.grad.isfinite().all()) for w in module.parameters())
        totals.append(total.item())
    assert totals[1] == pytest.approx(totals[0], rel=0.03, abs=0.1)


@pytest.mark.parametrize("members", [None, 2])
def test_student_is_torch_distributions(members):
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(*([3, members] if members else [3]), 7, 5, generator=draw)
    cells = 4 * torch.randn(7, 5, generator=draw)
    for freedom in (None, 0.5, 3.0, 300.0):
        family = Student(5, freedom, members=members)
        with torch.no_grad():
            family.log_scale.normal_(generator=draw)
            if freedom is None:
                family.log_freedom.uniform_(-6, 6.9, generator=draw)
        want = torch.distributions.StudentT(family.freedom().double(), outputs.double(), family.scale().double())
        got = family.log_prob(outputs, cells)
        torch.testing.assert_close(got.double(), want.log_prob(cells.double()), rtol=1e-5, atol=2e-5)
        assert torch.equal(family.mean(outputs), outputs) and got.dtype == torch.float32
        got.sum().backward()
        assert all(bool((w.grad != 0).all()) for w in family.parameters())
    low, high = Student(1), Student(1)
    with torch.no_grad():
        low.log_freedom.fill_(-99.0), high.log_freedom.fill_(99.0), low.log_scale.fill_(-99.0)
    assert 1 < low.freedom().item() < 1.001 and 1000 < high.freedom().item() < 1200
    assert low.scale().item() == pytest.approx(low.floor)
    zero = torch.zeros(1, 1)
    torch.testing.assert_close(
        high.log_prob(zero, zero + 0.7), torch.distributions.Normal(zero, 1.0).log_prob(zero + 0.7), rtol=0, atol=2e-3
    )


def test_student_draws_what_its_density_says():
    family = Student(2, 5.0)
    torch.manual_seed(0)
    drawn = family.sample(torch.tensor([1.0, -2.0]).expand(100_000, 2)).detach()
    torch.testing.assert_close(drawn.mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), torch.full((2,), 5 / 3), rtol=0.05, atol=0)


@settings(deadline=None, max_examples=50)
@given(delta=st.floats(0.01, 10), error=st.floats(-30, 30))
def test_huber_is_the_squared_error_within_delta_and_linear_beyond(delta, error):
    outputs, cell = torch.zeros(1, 1), torch.tensor([[error]])
    got = -Huber(delta).log_prob(outputs, cell)
    want = error**2 if abs(error) <= delta else 2 * delta * abs(error) - delta**2
    assert float(got) == pytest.approx(want, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(got, 2 * F.huber_loss(outputs, cell, reduction="none", delta=delta))


def test_robust_words_choose_families_links_and_columns():
    schema = Schema((Column("p", "number", "double", bounded=True), Column("q", "number", "double")))
    bounded, free = Likelihood(schema, "huber").families
    assert (bounded.delta, free.delta) == (1.0, 1.0)
    outputs = torch.full((1, 1), 3.0)
    assert {float(f.mean(outputs)) for f in (bounded, free)} == {3.0, float(outputs.sigmoid())}
    (family,) = Likelihood(schema, "huber(.25)", link="identity").families
    assert family.delta == 0.25 and float(family.mean(outputs)) == 3.0
    (family,) = Likelihood(schema, "student(4.5)").families
    assert family.freedom().item() == 4.5 and not hasattr(family, "link")
    kinds = [type(f).__name__ for f in Likelihood(schema, {"p": "huber", "q": "student"}).families]
    assert sorted(kinds) == ["Huber", "Student"]
    counts = Schema((Column("k", "count", "int64"), *schema))
    assert [type(f).__name__ for f in Likelihood(counts, "student").families] == ["NegativeBinomial", "Student"]


@pytest.mark.parametrize("word", ["huber(0)", "student(0)", "huber(-1)", "student()", "huber(1.2.3)", "hubert"])
def test_words_that_make_no_sense_are_refused(word):
    with pytest.raises(SettingError, match=word.replace("(", r"\(").replace(")", r"\)")):
        Likelihood(NUMBERS, word)


def test_one_wild_cell_in_ten_throws_a_robust_model_off_less():
    clean, held, errors = rows_of_rank(800), rows_of_rank(300, seed=1), {}
    draw = torch.Generator().manual_seed(2)
    wild = torch.rand(clean.numbers.shape, generator=draw) < 0.1
    thrown = clean.numbers + torch.where(wild, 10 * torch.randn(clean.numbers.shape, generator=draw), 0.0)
    schema = Schema((Column("x", "number", "float", shape=(12,), width=12),))
    for word in ("mse", "huber(0.3)", "student", "student(3)"):
        module = learn(f"plain:likelihood={word}", Batch(thrown, clean.codes), schema=schema)
        with torch.no_grad():
            again = module.decode(module.encode(held).z).numbers()[0]
        errors[word] = float((again - held.numbers).abs().median())
    assert max(error for word, error in errors.items() if word != "mse") < 0.5 * errors["mse"], errors
