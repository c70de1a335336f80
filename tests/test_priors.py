"""Code priors: densities that integrate to one, draws that follow them, inverses, and choices by codes held out."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from narrows.errors import ModelFileError, SettingError
from narrows.fitted import Part, load
from narrows.model.flow import REACH, Flow, spline
from narrows.model.latents import Deterministic, Gaussian
from narrows.model.mixture import Mixture
from narrows.model.priors import Own
from narrows.model.sequence import Sequence
from narrows.schema import Batch
from narrows.tasks.prior import codes_of, keep_prior, learn_prior, prior_of
from narrows.tasks.priorfits import Codes, fit_mixture, fit_prior, mean_log_prob
from small_models import small_model


def grid(size, reach=8.0, steps=400):
    """Points of an even grid over [-reach, reach]^size, and the volume of a cell."""
    line = (torch.arange(steps) + 0.5) / steps * 2 * reach - reach
    return torch.cartesian_prod(*[line] * size).view(-1, size), (2 * reach / steps) ** size


def random_mixture(size, components=3, full=True, seed=0):
    torch.manual_seed(seed)
    prior = Mixture(size, components, full)
    prior.log_weights.copy_(torch.randn(components).log_softmax(0))
    prior.means.copy_(torch.randn(components, size))
    if full:
        noise = 0.3 * torch.randn(components, size, size)
        prior.factors.copy_(noise.tril(-1) + torch.diag_embed(0.4 + torch.rand(components, size)))
    else:
        prior.factors.copy_(0.4 + torch.rand(components, size))
    return prior


def bent_flow(size=2, seed=0):
    """A flow far from where it starts."""
    torch.manual_seed(seed)
    flow = Flow(size, layers=4, hidden=16, bins=6)
    with torch.no_grad():
        for weight in flow.networks.parameters():
            weight.add_((0.05 if weight.ndim > 1 else 0.5) * torch.randn_like(weight))
        flow.center.copy_(0.3 * torch.randn(size))
        flow.factor.copy_(torch.eye(size) + 0.2 * torch.randn(size, size).tril())
    return flow.double()


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_a_mixture_integrates_to_one(size, full):
    points, volume = grid(size)
    total = random_mixture(size, full=full).log_prob(points.double()).exp().sum() * volume
    assert float(total) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("full", [True, False])
def test_a_mixture_is_that_of_torch(full):
    prior = random_mixture(3, full=full)
    factors = prior.factors if full else torch.diag_embed(prior.factors)
    theirs = MixtureSameFamily(
        Categorical(logits=prior.log_weights), MultivariateNormal(prior.means, scale_tril=factors)
    )
    z = 2 * torch.randn(50, 3)
    torch.testing.assert_close(prior.log_prob(z), theirs.log_prob(z), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_draws_of_a_mixture_have_its_moments(full):
    prior = random_mixture(2, full=full)
    weights = prior.log_weights.exp()
    factors = prior.factors if full else torch.diag_embed(prior.factors)
    mean = weights @ prior.means
    second = factors @ factors.mT + prior.means.unsqueeze(2) * prior.means.unsqueeze(1)
    covariance = (weights[:, None, None] * second).sum(0) - torch.outer(mean, mean)
    torch.manual_seed(1)
    z = prior.sample(100_000)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(z.T.cov(), covariance, rtol=0, atol=0.04)
    cold = prior.sample(1_000, temperature=1e-6)
    assert torch.cdist(cold, prior.means).min(1).values.max() < 1e-2


def test_a_flow_integrates_to_one():
    points, volume = grid(2, reach=12.0, steps=600)
    with torch.no_grad():
        total = bent_flow().log_prob(points.double()).exp().sum() * volume
    assert float(total) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_a_flow_goes_both_ways(size):
    flow = bent_flow(size)
    z = 2 * torch.randn(200, size, dtype=torch.float64)
    with torch.no_grad():
        x, _ = flow.to_normal(z)
        torch.testing.assert_close(flow.from_normal(x), z, rtol=0, atol=1e-7)
        again = flow.float().from_normal(flow.to_normal(z.float())[0])
    torch.testing.assert_close(again, z.float(), rtol=0, atol=1e-2)


def test_a_flow_grows_volumes_by_the_determinant_of_its_jacobian():
    flow = bent_flow(3)
    z = torch.randn(6, 3, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.to_normal(row[None])[0][0]))(z)
    torch.testing.assert_close(flow.to_normal(z)[1], jacobian.det().abs().log())


def test_draws_of_a_flow_follow_its_density():
    flow = bent_flow()
    points, volume = grid(2, reach=12.0, steps=240)
    with torch.no_grad():
        chances = (flow.log_prob(points.double()).exp() * volume).view(24, 10, 24, 10).sum((1, 3))
    torch.manual_seed(0)
    z = flow.float().sample(60_000)
    places = ((z + 12) / 24 * 24).long().clamp(0, 23)
    found = torch.bincount(places[:, 0] * 24 + places[:, 1], minlength=576).view(24, 24) / len(z)
    torch.testing.assert_close(found.double(), chances, rtol=0, atol=5 * math.sqrt(0.25 / len(z)))


def test_a_fresh_flow_is_the_normal_distribution_of_the_codes_it_whitened():
    torch.manual_seed(0)
    z = torch.randn(5_000, 3) @ torch.tensor([[1.0, 0.5, 0], [0, 2, 1], [0, 0, 0.1]]) + 4
    flow = Flow(3)
    flow.whiten(z)
    normal = MultivariateNormal(z.mean(0), z.T.cov() + 1e-4 * z.T.cov().diagonal().mean() * torch.eye(3))
    torch.testing.assert_close(flow.log_prob(z[:50]), normal.log_prob(z[:50]), rtol=1e-3, atol=1e-3)


def test_splines_are_monotone_and_straight_beyond_their_reach():
    torch.manual_seed(0)
    x = torch.linspace(-2 * REACH, 2 * REACH, 2_000, dtype=torch.float64).view(-1, 1).requires_grad_()
    parameters = (2 * torch.randn(1, 1, 14, dtype=torch.float64)).expand(len(x), 1, -1)
    y, slope = spline(x, parameters)
    assert (y.diff(dim=0) > 0).all()
    beyond = x.abs() >= REACH
    assert torch.equal(y[beyond], x[beyond]) and not slope[beyond].any()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0].log(), slope)
    back, down = spline(y.detach(), parameters, inverse=True)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(down, -slope)


def sequences(positions, symbols):
    return torch.cartesian_prod(*[torch.arange(symbols)] * positions).view(-1, positions)


@pytest.mark.parametrize("positions", [1, 2, 4])
def test_probabilities_of_all_sequences_sum_to_one(positions):
    torch.manual_seed(0)
    prior = Sequence(positions, 3, 2, units=8, layers=1).eval()
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
        prior.entries.normal_()
        every = sequences(positions, 3)
        chances = prior.log_chances(every).exp()
        torch.testing.assert_close(chances.sum(), torch.tensor(1.0))
        drawn = prior.symbols_of(prior.sample(20_000))
    places = (drawn * 3 ** torch.arange(positions - 1, -1, -1)).sum(1)
    found = torch.bincount(places, minlength=3**positions) / 20_000
    torch.testing.assert_close(found, chances, rtol=0, atol=0.02)


def test_a_sequence_learns_what_follows_what(monkeypatch):
    """A position repeats the one before it nine times of ten: the best nats are those of that chain."""
    monkeypatch.setattr("narrows.tasks.priorfits.STEPS", 300)
    torch.manual_seed(0)
    symbols = torch.randint(0, 3, (3_000, 5))
    for at in range(1, 5):
        same = torch.rand(3_000) < 0.9
        symbols[:, at] = torch.where(same, symbols[:, at - 1], symbols[:, at])
    entries = torch.tensor([[-1.0, 0], [0, 1], [1, 1]])
    fitted = fit_prior(Codes(entries[symbols].flatten(1), symbols, 3))
    stay = 0.9 + 0.1 / 3
    best = math.log(1 / 3) + 4 * (stay * math.log(stay) + (1 - stay) * math.log((1 - stay) / 2))
    assert fitted.held_out["sequence"] == pytest.approx(best, abs=0.15)
    drawn = fitted.prior.symbols_of(fitted.prior.sample(2_000))
    assert float((drawn[:, 1:] == drawn[:, :-1]).float().mean()) == pytest.approx(stay, abs=0.02)


def test_an_entry_that_was_never_seen_is_never_drawn():
    torch.manual_seed(0)
    entries, symbols = torch.randn(5, 2), torch.randint(0, 3, (200, 4))
    prior = Sequence.over(entries[symbols].flatten(1), symbols, 5).eval()
    assert prior.entries.shape == (1, 5, 2)
    assert torch.equal(prior.symbols_of(prior.sample(500)).unique(), torch.arange(3))
    with torch.no_grad():
        seen = prior.log_chances(sequences(4, 3)).exp().sum()
        assert prior.log_chances(torch.tensor([[0, 1, 4, 0]])).isneginf().all()
    torch.testing.assert_close(seen, torch.tensor(1.0))


def test_positions_may_have_entries_of_their_own():
    torch.manual_seed(0)
    entries, symbols = torch.randn(3, 4, 2), torch.randint(0, 4, (300, 3))
    z = entries[torch.arange(3), symbols].flatten(1)
    prior = Sequence.over(z, symbols, 4)
    assert prior.entries.shape == (3, 4, 2)
    assert torch.equal(prior.symbols_of(z + 0.01 * torch.randn_like(z)), symbols)
    with pytest.raises(SettingError, match="not made of their entries"):
        Sequence.over(torch.randn(300, 6), symbols, 4)


def test_own_priors():
    z = torch.randn(9, 3)
    normal = MultivariateNormal(torch.zeros(3), torch.eye(3))
    for latent in (Gaussian(3), Deterministic(3, normal=True)):
        prior = Own(latent)
        torch.testing.assert_close(prior.log_prob(z), normal.log_prob(z))
        torch.manual_seed(0)
        once = prior.sample(5)
        torch.manual_seed(0)
        assert torch.equal(prior.sample(5, 0.5), 0.5 * once) and once.shape == (5, 3)
    assert Own(Gaussian(3), members=2).sample(4).shape == (4, 6)
    with pytest.raises(SettingError, match="has none"):
        Own(Deterministic(3))


def ring(rows=4_000, seed=0):
    torch.manual_seed(seed)
    angle = 2 * math.pi * torch.rand(rows)
    return torch.stack([angle.cos(), angle.sin()], 1) * (1 + 0.05 * torch.randn(rows, 1))


def test_a_mixture_takes_as_many_components_as_pay():
    torch.manual_seed(0)
    normal, twice = torch.randn(3_000, 3), torch.cat([torch.randn(1_500, 1) - 5, torch.randn(1_500, 1) + 5])
    twice = twice[torch.randperm(3_000)]
    assert len(fit_mixture(normal[:2_500], normal[2_500:]).means) == 1
    assert len(fit_mixture(twice[:2_500], twice[2_500:]).means) == 2
    assert len(fit_mixture(ring()[:3_500], ring()[3_500:]).means) >= 8


def test_a_flow_learns_what_codes_look_like():
    """Held-out codes of a ring: the best density there is has 0.5 + ln(2 pi) + ln(0.05 sqrt(2 pi)) nats to pay."""
    fitted = fit_prior(Codes(ring(1_500)), "flow")
    normal = mean_log_prob(fit_prior(Codes(ring(2_000)[:, :1].repeat(1, 2)), "mixture").prior, ring(500, 1))
    best = -(math.log(2 * math.pi) + math.log(0.05 * math.sqrt(2 * math.pi)) + 0.5)
    assert fitted.held_out["flow"] > best - 0.6
    assert fitted.held_out["flow"] > normal
    length = torch.linalg.vector_norm(fitted.prior.sample(2_000), dim=1)
    assert ((length - 1).abs() < 0.2).float().mean() > 0.85


def test_the_same_codes_and_seed_give_the_same_prior():
    codes = Codes(ring(300))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = (fit_prior(codes, "auto", seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.held_out == second.held_out
    for one, other in zip(first.prior.state_dict().values(), second.prior.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "z",
    [torch.zeros(40, 3), torch.randn(40, 3).relu(), torch.ones(2, 1), torch.ones(1, 3), torch.randn(30, 50)],
    ids=["all alike", "half zeros", "two rows", "one row", "wider than many"],
)
def test_awkward_codes_have_a_prior_too(z):
    prior = fit_prior(Codes(z)).prior
    assert prior.sample(5).isfinite().all() and prior.log_prob(z).isfinite().all()


def test_kinds_that_do_not_suit():
    with pytest.raises(SettingError, match="not discrete"):
        fit_prior(Codes(ring(50)), "sequence")
    with pytest.raises(SettingError, match="one of auto, mixture, flow, sequence"):
        fit_prior(Codes(ring(50)), "diffusion")
    with pytest.raises(SettingError, match="at least 2"):
        fit_prior(Codes(ring(50)[:, :1]), "flow")


DATA = np.random.default_rng(0).normal(size=(300, 4)).cumsum(1)


@pytest.mark.parametrize("recipe", ["plain", "vae", "vq:levels=6,dim=1", "fsq:levels=4", "hierarchical", "topk:k=1"])
@pytest.mark.parametrize("members", [None, 2])
def test_a_prior_is_kept_with_the_model(recipe, members, tmp_path, monkeypatch):
    monkeypatch.setattr("narrows.tasks.priorfits.STEPS", 50)
    try:
        model = small_model(DATA, recipe, members=members, steps=30, baseline=False)
    except SettingError:
        pytest.skip("no ensembles of this recipe")
    model.facts |= {"validation_rows": 0, "best": None, "records": []}
    keep_prior(model, DATA)
    part = model.parts["prior"]
    assert part.facts["rows"] == 300 and part.facts["kind"] in ("mixture", "flow", "sequence")
    model.save(tmp_path / "m.narrows")
    again = prior_of(load(tmp_path / "m.narrows"))
    torch.manual_seed(0)
    z = prior_of(model).sample(6)
    torch.manual_seed(0)
    assert torch.equal(again.sample(6), z) and z.shape == (6, model.code_size)
    codes = torch.from_numpy(model.encode(DATA[:5]))
    assert (
        torch.equal(again.log_prob(codes), prior_of(model).log_prob(codes)) and again.log_prob(codes).isfinite().all()
    )


def test_codes_are_drawn_from_their_posterior():
    model = small_model(DATA, "vae", steps=30, baseline=False)
    batches = [batch for _, batch in model.batches(DATA)]
    drawn, again, best = codes_of(model, iter(batches)).z, codes_of(model, iter(batches)).z, model.encode(DATA)
    assert torch.equal(drawn, again) and len(drawn) == 300
    assert drawn.var(0).sum() > best.var(0).sum() + 0.1


def test_rows_of_no_weight_have_no_say():
    model = small_model(DATA, steps=30, baseline=False)
    batch = Batch.concat([batch for _, batch in model.batches(DATA)])
    weight = (torch.arange(300) < 40).float()
    codes = codes_of(model, iter([replace(batch, weight=weight)])).z
    assert len(codes) == 300 and set(map(tuple, codes.tolist())) <= set(map(tuple, model.encode(DATA[:40]).tolist()))


def test_what_is_no_prior_is_refused():
    model = small_model(DATA, steps=5, baseline=False)
    with pytest.raises(SettingError, match=r"a plain model without a code prior.*--learn"):
        prior_of(model)
    with pytest.raises(SettingError, match="no rows"):
        learn_prior(model, iter([]))
    keep_prior(model, DATA)
    good = model.parts["prior"]
    broken = [
        Part({**good.facts, "kind": "pickle"}, good.tensors),
        Part({**good.facts, "settings": {**good.facts["settings"], "components": 10**9}}, good.tensors),
        Part({**good.facts, "settings": {"sides": 3}}, good.tensors),
        Part(good.facts, {**good.tensors, "means": good.tensors["means"] * math.nan}),
        Part(good.facts, {}),
    ]
    for part in broken:
        model.parts["prior"] = part
        with pytest.raises(ModelFileError, match="part prior"):
            prior_of(model)
