"""What every part promises, alone and with every other it may be combined with: enumerated, not sampled.

A new recipe, network or kind of column joins by existing: recipes come from `RECIPES`, networks from `choice.WORDS`,
kinds from `schema.KINDS`, which must all have a schema here.
"""

from contextlib import suppress
from itertools import product
from math import prod

import pytest
import torch

from narrows.errors import SettingError
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.model.recipes import RECIPES
from narrows.networks.choice import WORDS, Network
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import KINDS, Batch, Column, Schema, Sparse

ROWS = 7
TYPES = {"tokens": "string", "category": "string", "binary": "bool", "date": "date32[day]", "bag": "map<string, float>"}


def column(kind, name="c", **facts):
    return Column(name, kind, TYPES.get(kind, "double"), **facts)


COLUMNS = {
    "number": column("number"),
    "matrix": column("number", shape=(5,), width=5),
    "holes": column("number", holes=True),
    "bounded": column("number", bounded=True),
    "count": column("count"),
    "count grid": column("count", shape=(3, 4), width=12, grid=(3, 4, 1)),
    "binary": column("binary", width=0, levels=2),
    "category": column("category", width=0, levels=4, holes=True),
    "date": column("date", width=5),
    "image": column("image", shape=(5, 6), width=30, grid=(5, 6, 1), bounded=True),
    "color": column("image", shape=(6, 5, 3), width=90, grid=(6, 5, 3), bounded=True, holes=True),
    "series": column("series", shape=(9, 2), width=18, grid=(9, 2)),
    "ragged": column("series", width=8, grid=(7, 1), holes=True),
    "own scale": column("series", shape=(9, 2), width=22, grid=(9, 2)),
    "audio": column("audio", shape=(16,), width=16, grid=(16, 1), rate=8000),
    "tokens": column("tokens", width=0, levels=5, grid=(6,), holes=True),
    "bag": column("bag", width=11),
    "empty": column("number", width=0),
}
SCHEMAS = {name: Schema((entry,)) for name, entry in COLUMNS.items() if entry.cells}
SCHEMAS["everything"] = Schema(tuple(Column(**{**vars(c), "name": name}) for name, c in COLUMNS.items()))

SMALL = {
    "conv": Conv(channels=(4, 8)),
    "recurrent": Recurrent(units=6),
    "transformer": Transformer(width=8, heads=2, layers=1),
    "dense": Dense(hidden=(6,)),
}


def network(word, recipe="plain"):
    return Network(kind=word, **{kind: net for kind, net in SMALL.items() if (recipe, kind) != ("linear", "dense")})


def rows_of(schema, rows=ROWS, seed=0):
    """Random prepared rows, with holes where the columns have them."""
    draw = torch.Generator().manual_seed(seed)
    numbers, codes = torch.randn(rows, schema.dense, generator=draw), torch.zeros(rows, len(schema.levels), dtype=int)
    seen = torch.ones(rows, schema.dense + len(schema.levels), dtype=bool)
    bags = torch.zeros(rows, schema.numbers - schema.dense)
    for entry in schema:
        span = schema.spans[entry.name]
        shape = (rows, entry.cells)
        if entry.kind == "bag":
            bags[:, span.start - schema.dense : span.stop - schema.dense] = torch.poisson(
                torch.ones(shape), generator=draw
            )
            continue
        if entry.categorical:
            here = slice(span.start - schema.numbers, span.stop - schema.numbers)
            codes[:, here] = torch.randint(entry.levels + 1, shape, generator=draw)
            span = slice(here.start + schema.dense, here.stop + schema.dense)
        elif entry.kind == "count":
            numbers[:, span] = torch.poisson(torch.full(shape, 3.0), generator=draw)
        elif entry.bounded:
            numbers[:, span] = torch.rand(shape, generator=draw)
        if entry.kind in ("tokens",) or (entry.grid and not entry.shape):  # padded behind a length of its own
            lengths = torch.randint(1, prod(entry.grid) + 1, (rows, 1), generator=draw)
            inside = torch.arange(entry.cells) < lengths
            inside[:, prod(entry.grid) :] = True
            seen[:, span] = inside
        elif entry.holes:
            seen[:, span] = torch.rand(shape, generator=draw) < 0.7
    holes = any(entry.holes for entry in schema)
    return Batch(numbers, codes, seen if holes else None, None, to_sparse(bags) if bags.shape[1] else None)


def to_sparse(bags):
    rows, cells = bags.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(bags))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Sparse(offsets, cells, bags[rows, cells], bags.shape[1])


def made(recipe, schema, net, latent=3, seed=0):
    """The module, or None where the parts may not be combined."""
    torch.manual_seed(seed)
    with suppress(SettingError):
        return build(Recipe.parse(recipe), schema, latent, net)
    return None


def every(choose):
    for recipe, schema, word in product(RECIPES, SCHEMAS, WORDS):
        net = choose(word, recipe)
        if made(recipe, SCHEMAS[schema], net) is not None:
            yield pytest.param(recipe, SCHEMAS[schema], net, id=f"{recipe}-{schema}-{word}")


PAIRS = list(every(network))


VARIANTS = {
    "members": Network("dense", dense=Dense(hidden=(6,), members=2)),
    "conv none": Network("conv", conv=Conv(channels=(4, 8), norm="none", depth=2)),
    "conv spatial": Network("conv", conv=Conv(channels=(4, 8), spatial=True)),
    "lstm said": Network("recurrent", recurrent=Recurrent(cell="lstm", units=6, layers=2, autoregressive=True)),
    "gru at once": Network("recurrent", recurrent=Recurrent(units=6, bidirectional=False, autoregressive=False)),
    "transformer said": Network("transformer", transformer=Transformer(8, layers=1, heads=2, autoregressive=True)),
    "transformer at once": Network("transformer", transformer=Transformer(8, layers=1, heads=2, autoregressive=False)),
    "dense joins": Network("auto", dense=Dense(hidden=(6, 5)), conv=SMALL["conv"], recurrent=SMALL["recurrent"]),
}
LIKELIHOODS = (
    *("mse", "huber", "huber(0.1)", "gaussian", "gaussian(0.1)", "student", "student(5)"),
    *("bernoulli", "poisson", "negative_binomial", "multinomial", "auto"),
)
PAIRS += [
    pytest.param("vae", schema, net, id=f"vae-{name}-{variant}")
    for (name, schema), (variant, net) in product(SCHEMAS.items(), VARIANTS.items())
    if made("vae", schema, net) is not None and net.members is None
]
PAIRS += [
    pytest.param(f"{recipe}:likelihood={word}", schema, network("dense"), id=f"{recipe}-{word}-{name}")
    for (name, schema), word, recipe in product(SCHEMAS.items(), LIKELIHOODS, ("plain", "vae"))
    if made(f"{recipe}:likelihood={word}", schema, network("dense")) is not None
]


def test_every_kind_of_column_is_enumerated():
    assert {entry.kind for entry in COLUMNS.values()} == set(KINDS)


def needs(recipe, schema):
    """Whether a recipe asks for more than the columns have."""
    if recipe == "contractive":
        return not schema.numbers
    return recipe == "vaegan" and any(entry.categorical or entry.kind == "bag" for entry in schema)


def test_what_may_not_be_combined():
    refused = {
        (recipe, schema, word)
        for recipe, schema, word in product(RECIPES, SCHEMAS, WORDS)
        if made(recipe, SCHEMAS[schema], network(word, recipe)) is None
    }
    grids = {name for name, entry in COLUMNS.items() if entry.grid} | {"everything"}
    lines = {name for name, entry in COLUMNS.items() if len(entry.grid) - (not entry.categorical) == 1} | {"everything"}
    for recipe, schema, word in product(RECIPES, SCHEMAS, WORDS):
        linear = recipe == "linear" and word not in ("auto", "dense")
        nothing = (word == "conv" and schema not in grids) or (word == "recurrent" and schema not in lines)
        bag = word == "transformer" and schema == "bag"
        unfit = needs(recipe, SCHEMAS[schema])
        numbers = any(entry.kind in ("number", "count") for entry in SCHEMAS[schema])  # a transformer tells no bins
        binned = recipe == "conditional" and word == "transformer" and numbers and schema not in grids
        expected = linear or nothing or bag or unfit or binned
        assert ((recipe, schema, word) in refused) == expected, (recipe, schema, word)
    for recipe, schema, word in refused:
        with pytest.raises(SettingError) as refusal:
            build(Recipe.parse(recipe), SCHEMAS[schema], 3, network(word, recipe))
        assert refusal.value.wanted, "a refusal that does not say what is wanted"


@pytest.mark.parametrize(("recipe", "schema", "net"), PAIRS)
def test_shapes_finite_values_and_a_gradient_for_every_weight(recipe, schema, net):
    module, batch = made(recipe, schema, net), rows_of(schema)
    if not bool(module.encode(batch).z.any()):  # few rectified units may all be dead at first; they are revived later
        module = made(recipe, schema, net, seed=1)
    module.train()
    loss = module(batch)
    samples = module.objective.samples
    assert loss.nll.shape == (samples, ROWS, schema.cells)
    assert all(term.shape == (samples, ROWS) for term in loss.terms.values())
    assert bool(loss.total().isfinite())
    # drawn again where chance may have hidden a weight's whole input
    for _ in range(3):
        loss = module(batch)
        (loss.total() if loss.opposing is None else loss.total() + loss.opposing).backward()
    idle = [name for name, w in module.named_parameters() if w.numel() and (w.grad is None or not bool(w.grad.any()))]
    if net.kind == "transformer" and schema.cells == 1:
        # of a single position there is nothing to choose, and a row without its only cell costs nothing
        idle = [name for name in idle if not {"asked", "queries", "missing"} & set(name.split("."))]
    assert not idle
    assert all(bool(w.grad.isfinite().all()) for w in module.parameters() if w.grad is not None)
    module.eval()
    with torch.no_grad():
        code = module.encode(batch)
        assert code.z.shape == (1, ROWS, 3) and bool(code.z.isfinite().all())
        p = module.decode(code.z)
        assert p.numbers().shape == (1, ROWS, schema.numbers) and bool(p.numbers().isfinite().all())
        assert p.codes().shape == (1, ROWS, len(schema.levels))
        assert bool((p.codes() <= torch.tensor(schema.levels, dtype=int)).all())
        seen = batch.dense().mask()
        assert not bool(module.score(batch).nll[0][~seen].any()), "an unseen cell costs something"


@pytest.mark.parametrize(("recipe", "schema", "net"), PAIRS)
def test_alone_in_company_reloaded_and_with_nothing_seen(recipe, schema, net):
    module, batch = made(recipe, schema, net).eval(), rows_of(schema)
    with torch.no_grad():
        whole = module.score(batch).per_row()
        each = torch.cat([module.score(batch[i : i + 1]).per_row() for i in range(ROWS)])
        torch.testing.assert_close(each, whole, rtol=1e-4, atol=1e-4)
        with torch.device("meta"):
            promised = made(recipe, schema, net)  # how a file's shapes are checked before anything is allocated
        again = made(recipe, schema, net, seed=1).eval()
        assert {k: v.shape for k, v in promised.state_dict().items()} == {
            k: v.shape for k, v in again.state_dict().items()
        }
        if not module.latent.symbols:  # coarse codes of unlike networks may well agree
            assert not torch.equal(again.encode(batch).z, module.encode(batch).z)
        again.load_state_dict(module.state_dict())
        torch.testing.assert_close(again.encode(batch).z, module.encode(batch).z, rtol=0, atol=0)
        torch.testing.assert_close(again.score(batch).nll, module.score(batch).nll, rtol=0, atol=0)
        dense = batch.dense()
        nothing = dense.with_seen(torch.zeros_like(dense.mask()))
        loss, code = module.score(nothing), module.encode(nothing)
        assert not bool(loss.nll.any()) and bool(loss.per_row().isfinite().all())
        assert bool(code.z.isfinite().all())
        assert bool(module.decode(code.z).numbers().isfinite().all())


@pytest.mark.parametrize(("recipe", "schema", "net"), list(every(lambda word, recipe: Network(kind=word))))
def test_defaults_take_a_step_that_helps(recipe, schema, net):
    """The parts with their own defaults: short steps against the gradient lower the loss, draws being equal."""
    module, batch = made(recipe, schema, net).train(), rows_of(schema)

    def loss():
        torch.manual_seed(0)
        return module(batch).total()

    before = loss().item()
    for _ in range(3):
        weights = [weight for weight in module.parameters() if weight.numel()]
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
        length = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 1e-2 * gradient / length
    assert loss().item() < before
