"""Each member of an ensemble trains as if alone: same losses, same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from narrows.model.autoencoder import AutoencoderModule
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense, MemberLinear
from narrows.schema import Batch, Column, Schema
from narrows.train.loop import train
from narrows.train.members import clip_members, find_stacks
from narrows.train.optimizers import make_optimizer
from narrows.train.resident import Resident
from narrows.train.settings import Training
from small_run import WIDTH, rows_of_rank

OPTIMIZERS = ("muon", "adamw", "sgd")
CLIP = 1.0


def autoencoder(members: int | None, seed: int = 0, recipe: str = "plain:likelihood=gaussian") -> AutoencoderModule:
    """One hidden layer and a learnt scale for each cell."""
    schema = Schema((Column("x", "number", "float", shape=(WIDTH,), width=WIDTH),))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(Recipe.parse(recipe), schema, 4, Network.of(Dense(hidden=(16,), members=members)))


def slices(ensemble: nn.Module, member: int) -> dict[str, Tensor]:
    """The weights of a member, as a single network keeps them."""
    stacks = find_stacks(ensemble)
    assert all(weight in stacks for weight in ensemble.parameters())
    return {
        name: weight.detach()[member].T if weight in stacks.matrices else weight.detach()[member, 0]
        for name, weight in ensemble.named_parameters()
    }


def singles_of(ensemble: AutoencoderModule, members: int, **options: str) -> list[AutoencoderModule]:
    """Single networks that start from the weights of each member."""
    singles = [autoencoder(None, **options) for _ in range(members)]
    for member, single in enumerate(singles):
        for name, weight in single.named_parameters():
            weight.data.copy_(slices(ensemble, member)[name])
    return singles


def learn(module: nn.Module, optimizer: str, epochs: int = 6) -> list[float]:
    """The loss of every epoch."""
    training = Training(optimizer=optimizer, clip=CLIP, weight_decay=0.1, batch_size=16, precision="float32")
    stream = Resident(rows_of_rank(100), 16, seed=5)
    return [record["loss"] for record in train(module, stream, None, training, epochs=epochs, lr=0.02).records]


@pytest.mark.parametrize("recipe", ["plain:likelihood=gaussian", "vae"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_ensemble_of_one_is_the_single_network(optimizer, recipe):
    ensemble = autoencoder(1, recipe=recipe)
    (single,) = singles_of(ensemble, 1, recipe=recipe)
    assert learn(ensemble, optimizer) == pytest.approx(learn(single, optimizer), rel=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_member_goes_the_way_it_would_go_alone(optimizer):
    ensemble = autoencoder(3)
    with torch.no_grad():
        for weight in find_stacks(ensemble).matrices:
            weight[1] *= 3  # a member with gradients far longer than the others'
    singles = singles_of(ensemble, 3)
    together, alone = learn(ensemble, optimizer), [learn(single, optimizer) for single in singles]
    assert together == pytest.approx([sum(losses) for losses in zip(*alone, strict=True)], rel=1e-3)
    for member, single in enumerate(singles):
        mine = slices(ensemble, member)
        for name, weight in single.named_parameters():
            torch.testing.assert_close(mine[name], weight.detach(), atol=2e-3, rtol=2e-3)


def test_clipping_shortens_the_members_that_are_long_and_tells_what_is_not_finite():
    gradients = [torch.randn(4, 3, 5), torch.randn(4, 1, 5)]
    for gradient in gradients:
        gradient *= torch.tensor([0.01, 1.0, 30.0, 0.0])[:, None, None]
    before = [gradient.clone() for gradient in gradients]
    norms = [math.hypot(*(gradient[member].norm().item() for gradient in before)) for member in range(4)]
    assert clip_members(gradients, CLIP) == pytest.approx(math.hypot(*norms), rel=1e-5)
    for now, then in zip(gradients, before, strict=True):
        shares = [min(1.0, CLIP / norm) if norm else 1.0 for norm in norms]
        torch.testing.assert_close(now, then * torch.tensor(shares)[:, None, None])
        assert torch.equal(now[0], then[0])
    gradients[0][1, 0, 0] = math.nan
    left = gradients[0][2].clone()
    assert math.isnan(clip_members(gradients, 0.5)) and torch.equal(gradients[0][2], left)


class Shared(nn.Module):
    """An ensemble behind a layer that its members share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(WIDTH, 5), MemberLinear(5, 2, 3)
        for weight in self.parameters():
            nn.init.ones_(weight)

    def forward(self, batch: Batch) -> Tensor:
        return self.rest(self.first(batch.numbers)).square().sum()


def test_shared_weights_are_clipped_apart():
    module = Shared()
    optimizer = make_optimizer(module, Training(optimizer="muon"))
    module(rows_of_rank(50)).backward()
    assert optimizer.clip(CLIP) > CLIP
    shared = math.hypot(*(weight.grad.norm().item() for weight in module.first.parameters()))
    stacked = [math.hypot(*(w.grad[member].norm().item() for w in module.rest.parameters())) for member in range(3)]
    assert [shared, *stacked] == pytest.approx([CLIP] * 4)


def test_staggered_members_use_all_of_their_code_half_of_it_and_a_quarter():
    schema = Schema((Column("x", "number", "float", shape=(WIDTH,), width=WIDTH),))
    network = Network.of(Dense(hidden=(16,), members=5))
    module = build(Recipe.parse("masked:rate=0.5,patch=1,stagger=true"), schema, 6, network).eval()
    code = module.encode(rows_of_rank(40)).z[0]
    used = (code != 0).any(1)
    assert used.tolist() == [[place < width for place in range(6)] for width in (6, 3, 2, 6, 3)]
    alone = build(Recipe.parse("masked:rate=0.5,patch=1,stagger=true"), schema, 6, Network.of(Dense(hidden=(16,))))
    assert (alone.eval().encode(rows_of_rank(40)).z != 0).all()
