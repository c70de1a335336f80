"""The slots against theory: densities, KL, ELBO, PCA's subspace, ensembles, and what a hole may change."""

from itertools import product
from math import log, pi

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from narrows.errors import SettingError
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.building import build
from narrows.model.categorical import Categorical as Categories
from narrows.model.categorical import groups_alike
from narrows.model.corruptions import GaussianNoise
from narrows.model.families import Multinomial, NegativeBinomial, Poisson
from narrows.model.recipe import Recipe
from narrows.model.recipes import RECIPES
from narrows.networks.choice import Network
from narrows.networks.dense import ACTIVATIONS, Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import Batch, Column, Schema, Sparse
from small_models import as_linear_gaussian

MIXED = Schema(
    (
        Column("age", "number", "int64", holes=True),
        Column("job", "category", "string", width=0, levels=3, holes=True),
        Column("share", "number", "double", bounded=True),
        Column("empty", "number", "double", width=0),
        Column("sex", "binary", "string", width=0, levels=2),
        Column("when", "date", "timestamp[us]", width=3),
    )
)
NUMBERS = Schema((Column("x", "number", "float", (4,), width=4),))
CODES = Schema((Column("a", "category", "string", width=0, levels=5), Column("b", "binary", "bool", width=0, levels=2)))


def rows_of(schema, count=7, holes=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = [torch.randint(0, k + 1, (count,), generator=generator) for k in schema.levels]
    numbers = torch.rand(count, schema.numbers, generator=generator)
    seen = torch.rand(count, schema.cells, generator=generator) > 0.4 if holes else None
    return Batch(numbers, torch.stack(codes, 1) if codes else torch.zeros(count, 0, dtype=torch.long), seen)


def made(recipe="plain", schema=MIXED, latent=2, seed=0, **network):
    torch.manual_seed(seed)
    return build(Recipe.parse(recipe), schema, latent, Network.of(Dense(**{"hidden": (8,), **network})))


def hidden_of(recipe):
    return {"hidden": None} if recipe == "linear" else {}


def test_cells_stand_numbers_first():
    assert (MIXED.numbers, MIXED.levels, MIXED.cells) == (5, (3, 2), 7)
    assert MIXED.spans["job"] == slice(5, 6) and MIXED.spans["when"] == slice(2, 5)
    assert MIXED.spans["empty"] == slice(2, 2)
    assert MIXED.cell_names == ["age", "share", "when0", "when1", "when2", "job", "sex"]
    assert Schema.from_json(MIXED.to_json()) == MIXED


@pytest.mark.parametrize(("recipe", "schema"), [*product(RECIPES, (MIXED, NUMBERS, CODES))])
@pytest.mark.parametrize("members", [None, 3])
def test_every_recipe_keeps_its_promises(recipe, schema, members):
    try:
        module = made(recipe, schema, members=members, **hidden_of(recipe)).train()
    except SettingError:
        pytest.skip("refused, as test_promises.py has it")
    for batch in (rows_of(schema), rows_of(schema, holes=True), rows_of(schema, count=1)):
        module.zero_grad()
        loss = module(batch)
        ensemble = [members] if members else []
        assert loss.nll.shape == (module.objective.samples, *ensemble, len(batch), schema.cells)
        assert loss.total().isfinite() and not loss.broken()
        loss.total().backward()
    module.zero_grad()
    loss = module(rows_of(schema, count=64))
    (loss.total() if loss.opposing is None else loss.total() + loss.opposing).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, f"{name} has no gradient"
    module.eval()
    hidden = rows_of(schema).with_seen(torch.zeros(7, schema.cells, dtype=torch.bool))
    assert module.score(hidden).nll.abs().sum() == 0
    assert module.encode(hidden).z.isfinite().all()


def test_joined_likelihood_is_torch_distributions():
    module = made("vae")
    assert module.likelihood.width == 5 + 4 + 3
    batch, outputs = rows_of(MIXED, holes=True), torch.randn(2, 7, 12)
    got = module.likelihood(outputs).log_prob(batch)
    gaussian = [0, 2, 3, 4]  # `share` lies in [0, 1] and is Bernoulli; it stands first among the outputs
    located = {cell: outputs[..., i] for i, cell in enumerate([1, *gaussian])}
    scale = module.likelihood.families[1].scale()
    for i, cell in enumerate(gaussian):
        want = Normal(located[cell], scale[i]).log_prob(batch.numbers[:, cell])
        torch.testing.assert_close(got[..., cell], want.masked_fill(~batch.seen[:, cell], 0.0))
    want = Bernoulli(logits=located[1], validate_args=False).log_prob(batch.numbers[:, 1])
    torch.testing.assert_close(got[..., 1], want.masked_fill(~batch.seen[:, 1], 0.0))
    for m, logits in enumerate((outputs[..., 5:9], outputs[..., 9:12])):
        want = Categorical(logits=logits).log_prob(batch.codes[:, m].expand(2, 7))
        torch.testing.assert_close(got[..., 5 + m], want.masked_fill(~batch.seen[:, 5 + m], 0.0))


@pytest.mark.parametrize("levels", [(3,), (8, 16, 7, 41, 2), (2,) * 300 + (256,), (256, 2, 2, 250, 20, 2, 2, 2)])
def test_columns_of_unlike_sizes_are_softmaxes_without_much_padding(levels):
    groups = groups_alike(levels)
    assert sorted(column for group in groups for column in group) == list(range(len(levels)))
    assert sum((max(levels[c] for c in g) + 1) * len(g) for g in groups) <= 4 * (sum(levels) + len(levels))
    module = Categories(levels)
    outputs = torch.randn(2, 5, module.outputs)
    codes = torch.stack([torch.randint(0, count + 1, (5,)) for count in levels], dim=1)
    got, mode = module.log_prob(outputs, codes), module.mode(outputs)
    for i, logits in enumerate(outputs.split([count + 1 for count in levels], dim=-1)):
        torch.testing.assert_close(got[..., i], Categorical(logits=logits).log_prob(codes[:, i].expand(2, 5)))
        assert torch.equal(mode[..., i], logits[..., :-1].argmax(-1))


def test_the_mode_is_a_known_level_even_where_others_are_likelier():
    module = made("plain", CODES)
    outputs = torch.zeros(1, 1, 9)
    outputs[..., 5] = 50.0  # "another level" of the first column
    outputs[..., 3] = 1.0
    assert module.likelihood(outputs).codes().tolist() == [[[3, 0]]]


def test_mse_is_the_gaussian_of_variance_one_half_without_its_constant():
    batch, outputs = rows_of(NUMBERS), torch.randn(1, 7, 4)
    squared = made("plain", NUMBERS).likelihood(outputs).log_prob(batch)
    normal = Normal(outputs, 0.5**0.5).log_prob(batch.numbers)
    torch.testing.assert_close(squared - 0.5 * log(pi), normal)


def test_bernoulli_scores_rise_with_the_distance_outside_its_range():
    schema = Schema((Column("p", "number", "double", bounded=True),))
    p = made("vae", schema, latent=1).likelihood(torch.tensor([[[3.0]]]).expand(1, 6, 1))
    cells = torch.tensor([[0.9], [1.0], [1.5], [2.0], [3.0], [100.0]])
    costs = -p.log_prob(Batch(cells, torch.zeros(6, 0, dtype=torch.long))).flatten()
    assert (costs[1:].diff() > 0).all() and costs[1] < costs[0]


def test_likelihoods_are_chosen_by_column():
    recipe = Recipe.parse("plain:likelihood.age=gaussian(0.25),likelihood.when=mse,code=tanh")
    assert Recipe.parse(str(recipe)) == recipe
    batch, outputs = rows_of(MIXED), torch.randn(1, 7, 12)
    module = build(recipe, MIXED, 2, Network.of(Dense(hidden=(4,))))
    costs = module.likelihood(outputs).log_prob(batch)
    centers = module.likelihood(outputs).numbers()
    torch.testing.assert_close(costs[..., 0], Normal(centers[..., 0], 0.25).log_prob(batch.numbers[:, 0]))
    torch.testing.assert_close(costs[..., 2:5], -(centers[..., 2:] - batch.numbers[:, 2:]).square())
    assert Bernoulli(probs=centers[..., 1]).log_prob(batch.numbers[:, 1].round()).isfinite().all()
    assert module.encode(batch).z.abs().max() < 1
    with pytest.raises(SettingError, match="job"):
        made("plain:likelihood.job=mse")


def test_squared_errors_of_bounded_columns_stay_in_range():
    module = made("plain")
    guess = module.likelihood(20 * torch.randn(1, 50, 12)).numbers()
    assert guess[..., 1].min() >= 0 and guess[..., 1].max() <= 1  # `share` lies in [0, 1]
    assert guess[..., 0].abs().max() > 1
    batch = rows_of(MIXED, count=50)
    outputs = torch.randn(1, 50, 12)
    p = module.likelihood(outputs)
    torch.testing.assert_close(p.log_prob(batch)[..., :5], -(p.numbers() - batch.numbers).square())


def test_kl_is_that_of_torch_distributions():
    latent = made("vae", NUMBERS, latent=3).latent
    features = 3 * torch.randn(50, 6)
    code = latent(features, samples=4)
    assert code.z.shape == (4, 50, 3)
    mean, log_variance = features.chunk(2, dim=-1)
    posterior, prior = Normal(mean, (log_variance / 2).exp()), Normal(torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(code.terms["kl"][0], kl_divergence(posterior, prior).sum(-1))
    torch.testing.assert_close(latent(features, samples=0).z[0], mean)
    draws = latent(features[:1], samples=200_000).z[:, 0]
    torch.testing.assert_close(draws.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(draws.std(0), posterior.scale[0], atol=0.05, rtol=0.01)


def test_elbo_is_the_closed_form_on_a_linear_gaussian_model():
    """p(z) = N(0, I), p(x|z) = N(Wz + b, s^2 I): at the exact posterior of one code the ELBO is log p(x)."""
    torch.manual_seed(0)
    module = made("vae:likelihood=gaussian", NUMBERS, latent=1, hidden=())
    normal = as_linear_gaussian(module)
    batch = rows_of(NUMBERS)
    often = batch[torch.arange(7).repeat(100_000)]  # every row with many draws of its code
    elbo = -module(often).per_row().view(-1, 7).mean(0)
    evidence = normal.log_prob(batch.numbers)
    torch.testing.assert_close(elbo, evidence, atol=2e-2, rtol=0)
    torch.testing.assert_close(-module(often).total(), evidence.mean(), atol=2e-2, rtol=0)


def test_members_are_the_networks_they_are_made_of():
    """Each member's loss and gradients are those of a single network with its weights."""
    ensemble = made("plain", MIXED, members=3, norm="layer", residual=True, hidden=(8, 8))
    batch = rows_of(MIXED, holes=True)
    ensemble(batch).total().backward()
    for member in range(3):
        single = made("plain", MIXED, norm="layer", residual=True, hidden=(8, 8))
        pairs = list(zip(single.named_parameters(), ensemble.named_parameters(), strict=True))
        for (name, one), (_, many) in pairs:
            value = many[member].detach()
            one.data.copy_(value.T if name.endswith("weight") else value.squeeze(0))
        single(batch).total().backward()
        for (name, one), (_, many) in pairs:
            grad = many.grad[member]
            want = grad.T if name.endswith("weight") else grad.squeeze(0)
            torch.testing.assert_close(one.grad, want, atol=1e-5, rtol=1e-4)
        z = ensemble.encode(batch).z[0, member]
        torch.testing.assert_close(single.encode(batch).z[0], z)


@pytest.mark.parametrize("recipe", ["plain", "denoising", "vae"])
def test_a_hole_changes_only_what_depends_on_its_cell(recipe):
    """Other rows keep everything; the row's own loss is that of a row where the value was anything else."""
    module = made(recipe).eval()
    batch = rows_of(MIXED)
    seen = torch.ones(7, 7, dtype=torch.bool)
    seen[2, 0] = seen[2, 5] = False
    holed = batch.with_seen(seen)
    other = Batch(batch.numbers.clone(), batch.codes.clone(), seen)
    other.numbers[2, 0], other.codes[2, 0] = 123.0, (batch.codes[2, 0] + 1) % 4
    whole, first, second = module.score(batch), module.score(holed), module.score(other)
    torch.testing.assert_close(first.per_row(), second.per_row(), atol=0, rtol=0)
    rest = torch.arange(7) != 2
    torch.testing.assert_close(whole.nll[:, rest], first.nll[:, rest], atol=0, rtol=0)
    assert first.nll[0, 2, 0] == 0 == first.nll[0, 2, 5]


def test_an_unseen_cell_is_told_from_a_zero():
    embed = made("denoising").embed
    zero = Batch(torch.zeros(1, 5), torch.full((1, 2), 3), None)
    hidden = zero.with_seen(torch.zeros(1, 7, dtype=torch.bool))
    assert (embed(zero) != embed(hidden)).sum() == 7


@pytest.mark.parametrize("members", [None, 2])
def test_row_weights_are_repetitions(members):
    module = made("vae", NUMBERS, members=members).eval()
    batch = rows_of(NUMBERS, count=4)
    weighted = Batch(batch.numbers, batch.codes, None, torch.tensor([2.0, 0.0, 1.0, 3.0]))
    repeated = batch[torch.tensor([0, 0, 2, 3, 3, 3])]
    torch.testing.assert_close(module.score(weighted).total(), module.score(repeated).total())
    nothing = Batch(batch.numbers, batch.codes, None, torch.zeros(4))
    assert module.score(nothing).total() == 0


def test_training_meets_unknown_levels_and_inference_takes_rows_as_they_are():
    torch.manual_seed(0)
    module, batch = made("plain", CODES), rows_of(CODES, count=20_000)
    known = (batch.codes < torch.tensor([5, 2])).sum()
    shown = module.train().embed(batch).sum()
    assert 0.985 < shown / known < 0.995
    assert module.eval().embed(batch).sum() == known
    assert (module(batch).nll > 0).all()  # the loss counts the levels that were there


def test_masking_hides_the_stated_share_and_the_loss_still_counts_it():
    torch.manual_seed(0)
    module = made("denoising:noise=0,mask=0.3").train()
    batch = rows_of(MIXED, count=4000)
    shown = module.corrupt(batch).seen.float().mean()
    assert abs(shown - 0.7) < 0.01
    assert (module(batch).nll != 0).float().mean() > 0.99


def test_linear_recipe_reaches_the_subspace_of_pca():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 4, generator=generator) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    x = (x - x.mean(0)) @ torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    module = made("linear", NUMBERS, latent=2, hidden=None)
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")
    batch = Batch(x, torch.zeros(500, 0, dtype=torch.long))

    def closure():
        optimizer.zero_grad()
        loss = module(batch).total()
        loss.backward()
        return loss

    optimizer.step(closure)
    learnt = torch.linalg.qr(module.decoder[0].weight).Q
    principal = torch.linalg.svd(x, full_matrices=False).Vh[:2].T
    cosines = torch.linalg.svdvals(learnt.T @ principal).clamp(max=1.0)
    assert cosines.acos().max() < 1e-2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_an_argument(name):
    module = made("plain", MIXED, activation=name, dropout=0.1)
    assert module(rows_of(MIXED)).total().isfinite()


def test_batch_norm_is_torch_batch_norm_over_all_rows():
    module = made("plain", NUMBERS, norm="batch", hidden=(6, 6), residual=True).train()
    assert module(rows_of(NUMBERS)).total().isfinite()
    assert module(rows_of(NUMBERS, count=1)).total().isfinite()
    norm = module.encoder[0][1]
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(norm(x).view(15, 6), torch.nn.BatchNorm1d(6)(x.view(15, 6)))


def test_users_own_networks_take_the_places_of_the_dense_ones():
    encoder, decoder = torch.nn.Linear(4, 2), torch.nn.Linear(2, 4)
    module = build(Recipe.parse("plain"), NUMBERS, 2, Network(), {"encoder": encoder, "decoder": decoder})
    assert isinstance(module, AutoencoderModule) and module.encoder is encoder
    torch.testing.assert_close(module.encode(rows_of(NUMBERS)).z[0], encoder(rows_of(NUMBERS).numbers))


def test_recipes_are_written_as_name_and_arguments():
    arguments = Recipe.parse("vae:beta=4").arguments
    assert arguments["beta"] == 4.0 and arguments["likelihood"] == "auto"
    again = Recipe.parse(str(Recipe.parse("denoising:mask=0.5")))
    assert again == Recipe.of("denoising", {"mask": 0.5})
    weights = made("vae:beta=4", NUMBERS).weights
    assert weights == {"kl": 4.0}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("veo", "recipe 'veo'"),
        ("vae:gamma=1", "no argument 'gamma'"),
        ("vae:beta=much", "a float"),
        ("vae:beta=-1", "0 or more"),
        ("denoising:mask=0,noise=0", "above 0"),
        ("denoising:mask=1.5", "between 0 and 1"),
        ("plain:code=swish", "activation 'swish'"),
        ("plain:likelihood=poisson", "likelihood 'poisson'"),
        ("plain:likelihood=bce", "in [0, 1]"),
        ("plain:likelihood=gaussian(0)", "above 0"),
        ("plain:likelihood=gaussian(x)", "gaussian(0.1)"),
        ("linear", "hidden=(8,)"),
    ],
)
def test_impossible_recipes_are_refused_with_what_was_wanted(recipe, said):
    with pytest.raises(SettingError) as refused:
        made(recipe)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "weight"},
        {"dropout": 1},
        {"members": 0},
        {"hidden": (0,)},
        {"dropout": "a"},
        {"members": 2.0},
        {"members": 2, "norm": "batch"},
    ],
)
def test_impossible_networks_are_refused(settings):
    with pytest.raises(SettingError):
        made("plain", NUMBERS, **settings)


COUNTS = Schema((Column("n", "count", "int64", (6,), width=6), Column("bag", "bag", "map<int32, float>", width=5)))
LARGE = torch.tensor([[0.0, 1.0, 7.0, 300.0, 40_000.0, 9_000_000.0]])


def test_counts_are_as_likely_as_scipy_says_however_large_they_are():
    from scipy import stats

    outputs = (LARGE + 0.5).log() + torch.tensor([[0.3], [-0.2]]).unsqueeze(0)
    means = outputs.double().exp().numpy()
    assert Poisson().log_prob(outputs, LARGE).numpy() == pytest.approx(
        stats.poisson.logpmf(LARGE.double().numpy(), means), rel=1e-5, abs=1e-5
    )
    family = NegativeBinomial(6)
    for dispersion in (0.02, 1.0, 30.0, 9_000.0):
        torch.nn.init.constant_(family.log_dispersion, log(dispersion))
        r = family.log_dispersion.double().exp().detach().numpy()
        wanted = stats.nbinom.logpmf(LARGE.double().numpy(), r, r / (r + means))
        assert family.log_prob(outputs, LARGE).detach().numpy() == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        # the variance that the class promises
        assert stats.nbinom.var(r, r / (r + means)) == pytest.approx(means + means**2 / r)


def test_the_gradient_of_a_count_vanishes_where_its_mean_is_the_count():
    family = NegativeBinomial(6)
    outputs = LARGE.clamp_min(1.0).log().requires_grad_()
    family.log_prob(outputs, LARGE.clamp_min(1.0)).sum().backward()
    r = 1.0
    # d/d log m = r (n - m) / (r + m)
    assert outputs.grad.abs().max() < 1e-3 * r and family.log_dispersion.grad.isfinite().all()


def test_a_bag_costs_what_scipy_says_without_the_coefficient():
    from scipy import stats
    from scipy.special import gammaln

    counts = torch.tensor([[0.0, 3.0, 1.0, 0.0, 9.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    outputs = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    totals = counts.sum(1).numpy()
    whole = stats.multinomial.logpmf(counts.numpy(), totals, outputs.double().softmax(1).numpy())
    coefficient = gammaln(totals + 1) - gammaln(counts.numpy() + 1).sum(1)
    ours = Multinomial().log_prob(outputs, counts).sum(1)
    assert ours.numpy() == pytest.approx(whole - coefficient, rel=1e-5)


def test_a_model_of_counts_and_bags_adds_their_families_up():
    module = build(Recipe.parse("vae"), COUNTS, 2, Network.of(Dense(hidden=(8,)))).eval()
    cells = torch.cat([LARGE, torch.tensor([[0.0, 2.0, 0.0, 1.0, 4.0]])], dim=1)
    batch = Batch(cells, torch.zeros(1, 0, dtype=torch.long))
    loss = module.score(batch)
    outputs = module.decoder(module.encode(batch).z)[..., module.likelihood.back]
    wanted = [
        NegativeBinomial(6).log_prob(outputs[..., :6], LARGE),
        Multinomial().log_prob(outputs[..., 6:], cells[:, 6:]),
    ]
    assert torch.allclose(loss.nll, -torch.cat(wanted, dim=-1), rtol=1e-5)


def test_noise_leaves_counts_and_bags_as_they_are():
    noise = GaussianNoise(0.5)
    schema = Schema((Column("x", "number", "double"), *COUNTS))
    noise.suit(schema)
    rows = Batch(torch.ones(40, schema.numbers), torch.zeros(40, 0, dtype=torch.long))
    changed = noise(rows).numbers != rows.numbers
    assert changed[:, 0].all() and not changed[:, 1:].any()


@pytest.mark.parametrize("which", ["positions", "flags", "slice"])
def test_rows_of_bags_are_those_of_the_table_they_stand_for(which):
    dense = torch.poisson(torch.full((30, 7), 0.6), generator=torch.Generator().manual_seed(2))
    rows, cells = dense.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), (dense > 0).sum(1).cumsum(0)])
    bags = Sparse(offsets, cells, dense[rows, cells], 7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))[:11]
    chosen = {"positions": order, "flags": dense[:, 0] > 0, "slice": slice(5, 40, 3)}[which]
    assert torch.equal(bags[chosen].dense(), dense[chosen])
    assert torch.equal(Sparse.concat([bags[:4], bags[4:4], bags[4:]]).dense(), dense)


@pytest.mark.parametrize("network", [Recurrent(units=8), Transformer(width=8, layers=1, heads=2)])
def test_what_is_fed_back_is_what_is_said(network):
    schema = Schema((Column("t", "tokens", "string", width=0, levels=5, holes=True, grid=(6,)),))
    torch.manual_seed(0)
    module = build(Recipe.parse("plain"), schema, 3, Network.of(network)).eval()
    with torch.no_grad():
        module.decoder.trunks[0].said.bias[-1] += 5.0  # unknown tokens are likely, but none can be said
        z = 3 * torch.randn(1, 9, 3)
        said = module.decode(z).codes()[0]
        told = module.embed(Batch(torch.zeros(9, 0), said))
        assert torch.equal(module.likelihood(module.decoder(z, told)).codes()[0], said)
        assert said.max() < 5 and len(said.unique()) > 1
