"""Codes of every kind against closed forms, torch.distributions, brute force and slow loops."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Bernoulli, Normal, kl_divergence

from narrows.errors import SettingError
from narrows.fitting import Plan, fit
from narrows.model.building import build
from narrows.model.hierarchy import Hierarchical, level_sizes
from narrows.model.latents import Code, Deterministic, Gaussian
from narrows.model.objectives import Objective
from narrows.model.quantized import DECAY, FiniteScalar, VectorQuantized
from narrows.model.recipe import Recipe
from narrows.model.sparse import START, L1Sparse, RateSparse, TopK
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.schema import Batch, Column, Schema
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from small_models import as_linear_gaussian
from small_run import FailingAt, rows_of_rank, small_module

NUMBERS = Schema((Column("x", "number", "float", (4,), width=4),))


def made(recipe, latent=1, hidden=(), members=None):
    torch.manual_seed(0)
    return build(Recipe.parse(recipe), NUMBERS, latent, Network.of(Dense(hidden=hidden, members=members)))


# the Gaussian code and its bounds


def test_ratio_is_that_of_torch_distributions_and_its_mean_the_divergence():
    torch.manual_seed(0)
    latent, features = Gaussian(3), torch.randn(5, 6)
    code = latent(features, samples=100_000, ratio=True)
    posterior = Normal(code.posterior.mean, (0.5 * code.posterior.log_variance).exp())
    want = (posterior.log_prob(code.z) - Normal(0.0, 1.0).log_prob(code.z)).sum(-1)
    torch.testing.assert_close(code.terms["kl"], want, atol=1e-4, rtol=1e-4)
    closed = latent(features, samples=1).terms["kl"][0]
    torch.testing.assert_close(code.terms["kl"].mean(0), closed, atol=0.03, rtol=0)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 2), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_free_bits_are_what_their_definition_says(free, rows, size, seed):
    torch.manual_seed(seed)
    latent, features = Gaussian(size, free).train(), torch.randn(rows, 2 * size)
    code = latent(features, samples=1)
    mean, log_variance = features.chunk(2, dim=-1)
    each = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).mean(0)
    paid = code.terms["kl"].mean() + code.scalars.get("free", 0.0)
    torch.testing.assert_close(paid, torch.stack([max(kl, torch.tensor(free)) for kl in each]).sum())
    assert not latent.eval()(features, samples=1).scalars, "free nats are no part of what validation judges"


def test_free_bits_weigh_as_the_divergence_does_and_rise_with_it():
    module = made("vae:beta=4,free_bits=0.5,warm_up=0.5,cycles=2", 2).train()
    module.before_step(0.125)
    assert module.weights == {"kl": 2.0, "free": 2.0}
    module.before_step(0.99)
    assert module.weights == {"kl": 4.0, "free": 4.0}
    assert made("hierarchical:depth=3,free_bits=1,beta=2", 3).weights == {"kl1": 2, "kl2": 2, "kl3": 2, "free": 2}


def linear_gaussian(recipe):
    """p(z) = N(0, 1), p(x|z) = N(wz + b, s^2 I) with a posterior that is off; the module, rows and their log p(x)."""
    module = made(f"{recipe}:likelihood=gaussian").double().train()
    torch.manual_seed(1)
    normal = as_linear_gaussian(module, aim=0.7, wide=2**0.5)
    rows = 0.5 * torch.randn(5, 4)
    evidence = normal.log_prob(rows.double())
    return module.float(), Batch(rows, torch.zeros(5, 0, dtype=torch.long)), evidence.float()


def test_the_importance_weighted_bound_rises_with_samples_to_the_likelihood():
    module, batch, evidence = linear_gaussian("iwae")
    often = batch[torch.arange(5).repeat(20_000)]
    bounds = []
    with torch.no_grad():
        for samples in (1, 2, 5, 20):
            module.objective = Objective(samples=samples, importance=True)
            bounds.append(-module(often).per_row().view(-1, 5).mean(0))
        module.objective = Objective()
        elbo = -module(often).per_row().view(-1, 5).mean(0)
        long = torch.logsumexp(module.likelihoods(batch, 200_000), dim=0) - log(200_000)
    torch.testing.assert_close(bounds[0], elbo, atol=0.05, rtol=0)
    for lower, higher in zip(bounds, [*bounds[1:], evidence], strict=True):
        assert bool((higher > lower).all())
    torch.testing.assert_close(long, evidence, atol=0.02, rtol=0)
    assert bool((evidence - bounds[-1] < 0.3 * (evidence - elbo)).all())


# levels


def test_levels_are_those_of_torch_distributions_and_ratios_average_to_divergences():
    torch.manual_seed(0)
    latent, features = Hierarchical(7, depth=3), torch.randn(4, 14)
    with torch.no_grad():
        for network in (*latent.priors, *latent.posteriors):
            network[-1].weight *= 3
        closed, ratios = latent(features, 50_000), latent(features, 50_000, ratio=True)
    assert latent.sizes == [1, 2, 4] and list(closed.terms) == ["kl3", "kl2", "kl1"]
    for index, (name, start, size) in enumerate([("kl3", 0, 1), ("kl2", 1, 2), ("kl1", 3, 4)]):
        own = torch.cat([features[:, start : start + size], features[:, 7 + start : 7 + start + size]], -1)
        prior, posterior = level(latent, index, own, ratios.z[..., :start])
        z = ratios.z[..., start : start + size]
        want = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1)
        torch.testing.assert_close(ratios.terms[name], want, atol=2e-3, rtol=1e-3)
        divergence = kl_divergence(*reversed(level(latent, index, own, closed.z[..., :start]))).sum(-1)
        torch.testing.assert_close(closed.terms[name], divergence.expand(50_000, 4), atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(ratios.terms[name].mean(0), closed.terms[name].mean(0), atol=0.1, rtol=0.02)


def level(latent, index, own, above):
    """Prior and posterior of a level given those above, each as it is written in the literature."""
    size = own.shape[-1] // 2
    mean, scale, own = torch.zeros(size), torch.ones(size), own.expand(*above.shape[:-1], 2 * size)
    if index:
        own = own + latent.posteriors[index - 1](torch.cat([own, above], -1))
        mean, log_variance = latent.priors[index - 1](above).chunk(2, -1)
        scale = (0.5 * log_variance).exp()
    return Normal(mean, scale), Normal(mean + scale * own[..., :size], scale * (0.5 * own[..., size:]).exp())


def test_prior_draws_come_from_the_top_down_and_the_best_guess_is_a_mean():
    torch.manual_seed(0)
    latent = Hierarchical(5, depth=2)
    with torch.no_grad():
        latent.priors[0][-1].weight *= 10
        z = latent.sample(40_000)
        prior, _ = level(latent, 1, torch.zeros(8), z[:, :1])
        standard = torch.cat([z[:, :1], (z[:, 1:] - prior.mean) / prior.stddev], -1)
        features = torch.randn(3, 10)
        guess, quiet = latent(features, 0).z[0], features.clone()
        quiet[:, 5:] = -12.0
    torch.testing.assert_close(standard.mean(0), torch.zeros(5), atol=0.03, rtol=0)
    torch.testing.assert_close(standard.T.cov(), torch.eye(5), atol=0.03, rtol=0)
    torch.testing.assert_close(guess[:, 0], features[:, 0])
    torch.testing.assert_close(latent(features, 0).z[0], guess, atol=0, rtol=0)


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(0, 3000))
def test_levels_share_the_code_and_the_bottom_has_most(depth, more):
    sizes = level_sizes(depth + more, depth)
    assert sum(sizes) == depth + more and len(sizes) == depth and min(sizes) >= 1
    assert sizes == sorted(sizes)


def test_members_of_a_hierarchy_have_priors_of_their_own():
    module = made("hierarchical", 4, hidden=(6,), members=2)
    assert not module.latent.has_prior
    with pytest.raises(SettingError, match="no prior"):
        module.latent.sample(3)


# sparse codes


def test_the_sparsity_of_a_row_is_its_slow_double_loop_and_no_scaling_changes_it():
    torch.manual_seed(0)
    latent, features = L1Sparse(4, "identity").train(), torch.randn(6, 4)
    z = features + START
    want = [sum(abs(z[i, j]) / sqrt(sum(z[k, j] ** 2 for k in range(6)) / 6) for j in range(4)) for i in range(6)]
    cost = latent(features, 1).terms["sparsity"][0]
    torch.testing.assert_close(cost, torch.stack(want), atol=0.05, rtol=0.01)  # numbers are measured by a floor, too
    scales = torch.tensor([1.0, 1.5, 0.7, 1.2])
    torch.testing.assert_close(latent(z * scales - START, 1).terms["sparsity"][0], cost, atol=0.02, rtol=0.01)
    torch.testing.assert_close(latent(z * 1e6 - START, 1).terms["sparsity"][0], cost)
    z.requires_grad_()
    latent(z - START, 1).terms["sparsity"].sum().backward()
    pulls = z.detach() * z.grad
    assert float(pulls.sum(0).abs().max()) < 0.1 * float(pulls.abs().sum(0).max()), "the code gains by shrinking"


def test_a_number_that_few_rows_use_costs_less_than_one_that_all_use():
    latent = L1Sparse(2).train()
    z = torch.ones(100, 2)
    z[25:, 0] = 0.0
    latent(z - START, 1)
    for column, most in ((0, 0.5), (1, 1.0)):
        alone = z.clone()
        alone[:, 1 - column] = 0.0
        cost = latent(alone - START, 1).terms["sparsity"].mean()
        assert float(cost) == pytest.approx(most, rel=0.01)


def test_scoring_measures_sparsity_by_the_averages_of_training():
    torch.manual_seed(0)
    latent = L1Sparse(3).train()
    squares = []
    for step in range(150):
        code = latent(torch.randn(64, 3) * torch.tensor([1.0, 2.0, 3.0]), 1)
        latent.update(code)
        square = code.z[0].square().mean(0)
        squares.append(square if not squares else squares[-1] + max(1 / (step + 1), 0.01) * (square - squares[-1]))
    torch.testing.assert_close(latent.mean_square[0], squares[-1])
    latent.eval()
    rows = torch.randn(9, 3)
    alone = torch.cat([latent(rows[i : i + 1], 0).terms["sparsity"] for i in range(9)], 1)
    torch.testing.assert_close(latent(rows, 0).terms["sparsity"], alone)


def test_the_divergence_from_a_rate_is_that_of_bernoulli_distributions():
    torch.manual_seed(0)
    latent, features = RateSparse(3, 0.1), torch.randn(50, 3)
    means = features.sigmoid().mean(0)
    want = kl_divergence(Bernoulli(torch.tensor(0.1)), Bernoulli(means)).sum()
    torch.testing.assert_close(latent(features, 1).scalars["sparsity"], want)
    wild = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    cost = latent(wild, 1).scalars["sparsity"]
    cost.backward()
    assert bool(cost.isfinite()) and bool(wild.grad.isfinite().all())


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.data())
def test_exactly_the_k_largest_stay(size, data):
    k, seed = data.draw(st.integers(1, size)), data.draw(st.integers(0, 99))
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(6, size, generator=draw)
    if data.draw(st.booleans()):
        features = features.round()  # ties
    z = TopK(size, k)(features, 0).z[0]
    raised = features + START
    for row, values in zip(z, raised, strict=True):
        positive = int((values > 0).sum())
        assert int((row != 0).sum()) == min(k, positive)
        largest = values.sort(descending=True).values[:k].relu()
        torch.testing.assert_close(row.sort(descending=True).values[:k], largest)
        assert bool(((row == 0) | (row == values)).all())


def dictionary(patience, units=24, dead=12):
    """Training on rows that are each 2 of 20 directions, with dead units; the loss, and how many fire at last."""
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(20, 16), dim=1)
    module = build(
        Recipe.parse(f"topk:k=2,patience={patience}"),
        Schema((Column("x", "number", "float", (16,), width=16),)),
        units,
        Network.of(Dense(hidden=())),
    ).train()
    with torch.no_grad():
        module.encoder[0].bias[:dead] = -5.0
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for step in range(800):
        torch.manual_seed(step)
        on = torch.rand(64, 20).topk(2, dim=1).indices
        rows = torch.zeros(64, 20).scatter(1, on, 1 + torch.rand(64, 2)) @ directions
        loss = module(Batch(rows, torch.zeros(64, 0, dtype=torch.long))).total()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.after_step()
    module.eval()
    fired = (module.encode(Batch(rows, torch.zeros(64, 0, dtype=torch.long))).z[0] != 0).any(0)
    return loss.item(), int(fired[:dead].sum())


def test_dead_units_come_back_and_lower_the_loss():
    left, none = dictionary(patience=0)
    assert none == 0
    revived, fired = dictionary(patience=20)
    assert fired >= 8 and revived < 0.7 * left


# discrete codes


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 9), st.sampled_from([(), (3,)]), st.integers(0, 99))
def test_the_nearest_entry_is_that_of_brute_force(positions, dim, levels, members, seed):
    torch.manual_seed(seed)
    latent = VectorQuantized(positions * dim, levels, dim)
    latent.suit(members[0] if members else None)
    features = torch.randn(*members, 5, positions * dim)
    code = latent.eval()(features, 0)
    assert code.symbols.shape == (1, *members, 5, positions)
    for member in range(3 if members else 1):
        entries = latent.entries[member] if members else latent.entries
        for row, symbols, z, cost in zip(
            *(x[member] if members else x for x in (features, code.symbols[0], code.z[0], code.terms["commitment"][0])),
            strict=True,
        ):
            distances = [[float((part - entry).square().sum()) for entry in entries] for part in row.view(-1, dim)]
            for symbol, each in zip(symbols.tolist(), distances, strict=True):
                assert each[symbol] == pytest.approx(min(each), abs=1e-5)
            assert float(cost) == pytest.approx(sum(min(each) for each in distances), abs=1e-4)
            torch.testing.assert_close(z, entries[symbols].flatten(), atol=0, rtol=0)
    torch.testing.assert_close(latent.look_up(code.symbols[0]), code.z[0], atol=0, rtol=0)


def test_gradients_pass_discrete_codes_as_if_they_were_not_there():
    torch.manual_seed(0)
    slope, x = torch.randn(5, 6), torch.randn(5, 6, requires_grad=True)
    learnt = VectorQuantized(6, 8, 3)
    learnt.counts.fill_(1.0)
    for latent, want in ((learnt, slope), (FiniteScalar(6, 4), slope * (1 - x.detach().tanh() ** 2))):
        (gradient,) = torch.autograd.grad((latent.train()(x, 1).z[0] * slope).sum(), x)
        torch.testing.assert_close(gradient, want)
    code = learnt(x, 1)
    torch.testing.assert_close(code.z[0], learnt.look_up(code.symbols[0]))
    placed = VectorQuantized(6, 8, 3).train()
    torch.testing.assert_close(placed(x, 1).z[0], x, msg="quantized by a codebook that has not met the data")


def test_a_codebook_follows_the_averages_of_a_hand_written_loop():
    torch.manual_seed(0)
    latent = VectorQuantized(4, 3, 2).train()
    latent.counts.fill_(5.0)
    entries, counts = latent.entries.tolist(), latent.counts.tolist()
    for _ in range(4):
        code = latent(torch.randn(10, 4), 1)
        latent.update(Code(code.z, features=code.features, symbols=code.symbols))
        parts, symbols = code.features.view(-1, 2).tolist(), code.symbols.flatten().tolist()
        for j in range(3):
            mine = [part for part, symbol in zip(parts, symbols, strict=True) if symbol == j]
            sums = [DECAY * counts[j] * entries[j][d] + (1 - DECAY) * sum(part[d] for part in mine) for d in range(2)]
            counts[j] = DECAY * counts[j] + (1 - DECAY) * len(mine)
            entries[j] = [total / counts[j] for total in sums]
    torch.testing.assert_close(latent.entries, torch.tensor(entries))
    torch.testing.assert_close(latent.counts, torch.tensor(counts))


def test_a_codebook_is_placed_on_the_data_and_finds_every_cluster():
    torch.manual_seed(0)
    centers = 5 * torch.randn(16, 4)
    latent = VectorQuantized(4, 32, 4).train()
    for step in range(400):
        rows = centers[torch.randint(16, (64,))] + 0.05 * torch.randn(64, 4)
        code = latent(rows, 1)
        latent.update(code)
        if step == 0:
            assert sum(bool((entry == rows).all(1).any()) for entry in latent.entries) >= 24
    code = latent.eval()(rows, 0)
    assert float(code.terms["commitment"].mean()) < 0.02
    assert float(torch.cdist(centers, latent.entries).amin(1).max()) < 0.2


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 17), st.integers(0, 99))
def test_finite_scalars_are_those_of_a_naive_loop(levels, seed):
    torch.manual_seed(seed)
    features = 2 * torch.randn(6, 3)
    code = FiniteScalar(3, levels).eval()(features, 0)
    grid = [2 * i / (levels - 1) - 1 for i in range(levels)]
    for value, z, symbol in zip(features.flatten(), code.z.flatten(), code.symbols.flatten().tolist(), strict=True):
        distances = [abs(float(value.tanh()) - point) for point in grid]
        assert distances[symbol] == pytest.approx(min(distances), abs=1e-6)
        assert float(z) == pytest.approx(grid[symbol], abs=1e-6)
    torch.testing.assert_close(FiniteScalar(3, levels).look_up(code.symbols[0]), code.z[0])


# together with the rest

STATEFUL = ["sparse", "topk:k=2", "vq:levels=8,dim=2"]


@pytest.mark.parametrize("maker", [lambda: L1Sparse(4), lambda: TopK(4, 2), lambda: VectorQuantized(4, 5, 2)])
def test_members_learn_what_they_would_alone(maker):
    torch.manual_seed(0)
    together, alone = maker(), [maker() for _ in range(3)]
    together.suit(3)
    if isinstance(together, VectorQuantized):
        together.counts.fill_(3.0)
    for member, single in enumerate(alone):
        single.load_state_dict({k: v[member] if v.ndim else v for k, v in together.state_dict().items()})
    for _ in range(5):
        features = torch.randn(3, 7, 4)
        code, codes = together(features, 1), [single(part, 1) for single, part in zip(alone, features, strict=True)]
        together.update(code)
        for member, (single, own) in enumerate(zip(alone, codes, strict=True)):
            single.update(own)
            torch.testing.assert_close(code.z[0, member], own.z[0])
            for name, term in own.terms.items():
                torch.testing.assert_close(code.terms[name][0, member], term[0])
    for name, tensor in together.state_dict().items():
        torch.testing.assert_close(
            tensor, torch.stack([s.state_dict()[name] for s in alone]) if tensor.ndim else tensor
        )


@pytest.mark.parametrize("recipe", STATEFUL)
def test_what_is_learnt_beside_gradients_survives_a_kill(tmp_path, recipe):
    def run(folder, fail_at=0, resume=False):
        module = small_module(recipe)
        stream = FailingAt(fail_at) if fail_at else Resident(rows_of_rank(100), 16, seed=5)
        training = Training(batch_size=16, checkpoint_every=0.0)
        train(module, stream, None, training, epochs=4, seed=7, watch=Watch(folder=folder, resume=resume))
        return module.state_dict()

    whole = run(None)
    with pytest.raises(ConnectionError):
        run(tmp_path / "run", fail_at=11)
    again = run(tmp_path / "run", resume=True)
    assert set(whole) == set(again) and all(torch.equal(whole[name], again[name]) for name in whole)
    fresh = small_module(recipe).state_dict()
    assert any("latent" in name and not torch.equal(whole[name], fresh[name]) for name in whole)


@pytest.mark.parametrize("recipe", ["vae", "iwae", "hierarchical", *STATEFUL, "sparse:penalty=kl", "fsq"])
def test_codes_are_made_in_float32_where_products_are_not(recipe):
    module = made(recipe, 4, hidden=(6,)).train()
    batch = Batch(100 * torch.randn(8, 4), torch.zeros(8, 0, dtype=torch.long))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(batch)
        assert bool(loss.total().isfinite())
        code = module.encode(batch)
    assert code.z.dtype == torch.float32
    loss.total().backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in module.parameters())


@pytest.mark.parametrize(
    ("recipe", "latent", "said"),
    [
        ("topk:k=5", 4, "k=5 for a code of 4 numbers"),
        ("topk:k=0", 4, "1 or more"),
        ("topk:patience=-1", 4, "patience=-1"),
        ("vq:dim=3", 7, "a code of 6 or 9 numbers"),
        ("vq:dim=8", 4, "a code of 8 numbers"),
        ("vq:dim=0", 4, "dim=0"),
        ("vq:levels=1", 4, "levels=1"),
        ("vq:beta=-1", 4, "commitment"),
        ("fsq:levels=1", 4, "levels=1"),
        ("hierarchical:depth=1", 4, "the recipe `vae`"),
        ("hierarchical:depth=3", 2, "at least 3 numbers"),
        ("hierarchical:depth=10000000000", 2, "from 2 to 64 levels"),
        ("hierarchical:beta=-1", 2, "hierarchical:beta"),
        ("vae:free_bits=-1", 2, "free_bits=-1"),
        ("vae:warm_up=2", 2, "warm_up"),
        ("vae:cycles=3", 2, "a warm_up above 0"),
        ("iwae:samples=0", 2, "samples=0"),
        ("sparse:penalty=kl,activation=relu", 4, "sigmoid"),
        ("sparse:penalty=kl,rate=1", 4, "rate=1"),
        ("sparse:penalty=l2", 4, "l1 or kl"),
        ("sparse:activation=swish", 4, "activation 'swish'"),
        ("topk:k=few", 4, "int or auto"),
    ],
)
def test_impossible_codes_are_refused_with_what_was_wanted(recipe, latent, said):
    with pytest.raises(SettingError) as refused:
        made(recipe, latent)
    assert said in str(refused.value)


def test_a_codebook_larger_than_the_data_is_refused_before_training():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    with pytest.raises(SettingError, match="at most"):
        fit(rows, Plan(recipe="vq:levels=256", latent=2))
    model = fit(rows, Plan(recipe="vq:levels=8", latent=2, epochs=2))
    assert len({tuple(code) for code in model.encode(rows)}) <= 8


def test_what_has_no_symbols_looks_none_up():
    with pytest.raises(SettingError, match="not discrete"):
        Deterministic(2).look_up(torch.zeros(1, 2, dtype=torch.long))
