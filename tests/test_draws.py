"""What likelihoods draw: means, spreads and frequencies of many draws against the distributions they are said to be."""

import math

import pytest
import torch
from scipy.stats import t as student_t

from narrows.model.categorical import Categorical, drawn
from narrows.model.families import (
    Bernoulli,
    Gaussian,
    Huber,
    Multinomial,
    NegativeBinomial,
    Poisson,
    SquaredError,
    Student,
)
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import Batch, Column, Schema
from test_promises import SCHEMAS, made, rows_of

MANY = 40_000


def many(family, outputs, temperature=1.0):
    torch.manual_seed(0)
    with torch.no_grad():
        return family.sample(torch.tensor(outputs).expand(MANY, -1), temperature)


def near(value, wanted, error):
    """Within five standard errors."""
    torch.testing.assert_close(value, torch.as_tensor(wanted).to(value), rtol=0, atol=5 * error)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_normal_draws(temperature):
    family = Gaussian(2)
    with torch.no_grad():
        family.log_scale.copy_(torch.tensor([0.0, math.log(3.0)]))
    rows = many(family, [1.0, -2.0], temperature)
    scale = temperature * family.scale().detach()
    for cell in range(2):
        near(rows[:, cell].mean(), [1.0, -2.0][cell], float(scale[cell]) / MANY**0.5)
        near(rows[:, cell].std(), scale[cell], float(scale[cell]) / (2 * MANY) ** 0.5)
    rows = many(Gaussian(1, 0.5), [4.0])
    near(rows.std(), 0.5, 0.5 / (2 * MANY) ** 0.5)


@pytest.mark.parametrize("freedom", [None, 3.0])
def test_draws_of_student_have_its_quantiles(freedom):
    family = Student(1, freedom)
    with torch.no_grad():
        family.log_scale.fill_(math.log(0.5))
    rows = many(family, [2.0]).flatten()
    with torch.no_grad():
        theirs = student_t(float(family.freedom()), 2.0, float(family.scale()))
    for share in (0.05, 0.25, 0.5, 0.9):
        near((rows < theirs.ppf(share)).double().mean(), share, math.sqrt(share * (1 - share) / MANY))


def test_counts_are_drawn_as_often_as_their_probabilities_say():
    negative = NegativeBinomial(1)
    with torch.no_grad():
        negative.log_dispersion.fill_(math.log(2.0))
    for family in (Poisson(), negative):
        outputs = [math.log(3.0)]
        rows = many(family, outputs).flatten()
        assert torch.equal(rows, rows.round()) and rows.min() >= 0
        counts = torch.arange(12.0).unsqueeze(1)
        chances = family.log_prob(torch.tensor(outputs), counts).exp().detach()
        for count, chance in zip(counts.flatten(), chances.flatten(), strict=True):
            near((rows == count).double().mean(), chance, math.sqrt(chance * (1 - chance) / MANY))


def test_what_is_no_distribution_is_not_drawn():
    outputs = torch.randn(5, 3)
    for family in (SquaredError("sigmoid"), Huber(), Bernoulli(), Multinomial()):
        assert torch.equal(family.sample(outputs, 0.7), family.mean(outputs))


@pytest.mark.parametrize("levels", [(3,), (2, 5), (3, 2, 300, 2)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_levels_are_drawn_as_often_as_their_logits_say(levels, temperature):
    torch.manual_seed(1)
    categorical = Categorical(levels)
    logits = torch.randn(categorical.outputs)
    codes = categorical.sample(logits.expand(20_000, -1), temperature)
    assert codes.shape == (20_000, len(levels))
    start = 0
    for cell, count in enumerate(levels):
        chances = (logits[start : start + count] / temperature).softmax(0)  # "another level" is never drawn
        found = torch.bincount(codes[:, cell], minlength=count) / 20_000
        torch.testing.assert_close(found, chances, rtol=0, atol=0.02)
        assert codes[:, cell].max() < count
        start += count + 1


def test_what_is_impossible_is_never_drawn():
    logits = torch.tensor([0.0, -math.inf, 1.0]).expand(10_000, -1)
    assert set(drawn(logits).tolist()) == {0, 2}


@pytest.mark.parametrize("name", ["everything", "tokens", "image", "matrix"])
@pytest.mark.parametrize("members", [None, 2])
def test_draws_have_the_shape_and_range_of_cells(name, members):
    schema = SCHEMAS[name]
    net = Network("dense", dense=Dense(hidden=(6,), members=members))
    module = made("vae", schema, net).eval()
    batch = rows_of(schema)
    with torch.no_grad():
        p = module.decode(module.encode(batch).z)
        numbers, codes = p.sample()
    lead = (1, 7) if members is None else (1, members, 7)
    assert numbers.shape == (*lead, schema.numbers) and codes.shape == (*lead, len(schema.levels))
    assert numbers.isfinite().all()
    assert (codes >= 0).all() and (codes < torch.tensor(schema.levels)).all()


TELLERS = [Recurrent(units=6, autoregressive=True), Transformer(8, layers=1, heads=2, autoregressive=True)]


@pytest.mark.parametrize("settings", TELLERS, ids=["recurrent", "transformer"])
def test_a_text_is_drawn_token_by_token(settings):
    """Drawn at once and drawn freely, a text of two tokens has the probability that teacher forcing gives it."""
    schema = Schema((Column("c", "tokens", "string", width=0, levels=2, grid=(2,)),))
    word = "recurrent" if isinstance(settings, Recurrent) else "transformer"
    module = made("vae", schema, Network(word, **{word: settings}), latent=2).eval()
    torch.manual_seed(3)
    z = torch.randn(1, 1, 2)
    with torch.no_grad():
        for weight in module.decoder.parameters():
            weight.mul_(2.0)
        torch.manual_seed(4)
        numbers, codes = module.decode(z.expand(1, 4_000, 2), temperature=1.0).sample()
        assert numbers.shape == (1, 4_000, 0)
        found = torch.bincount(2 * codes[0, :, 0] + codes[0, :, 1], minlength=4) / 4_000
        pairs = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        batch = Batch(torch.zeros(4, 0), pairs)
        outputs = module.decoder(z.expand(1, 4, 2), module.embed(batch)).view(4, 2, 3)[..., :2]
        chances = outputs.log_softmax(-1).gather(-1, pairs.unsqueeze(-1)).squeeze(-1).sum(1).exp()
    torch.testing.assert_close(chances.sum(), torch.tensor(1.0))
    torch.testing.assert_close(found, chances, rtol=0, atol=0.04)
    assert chances.max() - chances.min() > 0.05


def test_decoding_without_a_temperature_is_what_it_was():
    schema = SCHEMAS["tokens"]
    module = made("vae", schema, Network("recurrent", recurrent=TELLERS[0])).eval()
    with torch.no_grad():
        z = torch.randn(1, 5, 3)
        p = module.decode(z)
        assert not p.told and torch.equal(p.codes(), module.decode(z).codes())
        cold = module.decode(z, temperature=1e-6)
        assert torch.equal(cold.sample(1e-6)[1], p.codes())
