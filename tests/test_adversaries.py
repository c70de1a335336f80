"""Two sides in one loop: against a game written by hand, each side's gradient its own, killed and gone on with."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.adversaries import SURE, CodeCritic, RowCritic, fooled, steepness, told
from narrows.model.building import build
from narrows.model.divergences import mmd
from narrows.model.penalties import Pass, frozen
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense, MemberLinear
from narrows.schema import Batch, Column, Schema
from narrows.train.loop import train
from narrows.train.optimizers import DEFAULT_RATES, OPPONENTS_RATE, make_optimizer
from narrows.train.randomness import seed_step
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from small_run import WIDTH, FailingAt, rows_of_rank

SCHEMA = Schema((Column("x", "number", "float", shape=(WIDTH,), width=WIDTH),))
GAMES = ("aae", "vaegan")
LR = 2e-3


def module_of(recipe: str, members: int | None = None, schema: Schema = SCHEMA, latent: int = 3):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Network.of(Dense(hidden=(16,), members=members))
        return build(Recipe.parse(recipe), schema, latent, network).train()


@dataclass
class Game:
    """The losses of both sides."""

    own: Tensor
    opposing: Tensor

    def total(self) -> Tensor:
        return self.own

    def broken(self) -> list[int]:
        return []


class Gan(nn.Module):
    """A generator of points in the plane, and a critic."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.generator = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, WIDTH))
        self.critic = nn.Sequential(nn.Linear(WIDTH, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def opponents(self) -> list[nn.Parameter]:
        return list(self.critic.parameters())

    def forward(self, batch: Batch) -> Game:
        made = self.generator(torch.randn(len(batch), 3))
        return Game(
            fooled(frozen(self.critic, made)).mean(),
            told(self.critic(batch.numbers), self.critic(made.detach())).mean(),
        )


def by_hand(gan: Gan, stream: Resident, epochs: int, seed: int) -> None:
    """The textbook's loop: a critic's step and a generator's, from the same draws, both before either has moved."""
    generating = torch.optim.Adam(gan.generator.parameters(), lr=LR)
    judging = torch.optim.Adam(
        gan.critic.parameters(), lr=LR * OPPONENTS_RATE / DEFAULT_RATES["adam"], betas=(0.5, 0.99)
    )
    step = 0
    for epoch in range(epochs):
        for batch, _ in stream.epoch(epoch):
            seed_step(seed, step, torch.device("cpu"))
            made = gan.generator(torch.randn(len(batch), 3))
            yes = torch.ones(len(batch), 1)
            judging.zero_grad()
            real, fake = gan.critic(batch.numbers), gan.critic(made.detach())
            of_real = F.binary_cross_entropy_with_logits(real, SURE * yes)
            (of_real + F.binary_cross_entropy_with_logits(fake, 0 * yes)).backward()
            wanted = [weight.grad.clone() for weight in gan.critic.parameters()]
            generating.zero_grad()
            F.binary_cross_entropy_with_logits(gan.critic(made), yes).backward()
            for weight, gradient in zip(gan.critic.parameters(), wanted, strict=True):
                weight.grad = gradient
            generating.step()
            judging.step()
            step += 1


def test_two_optimizers_in_one_loop_are_a_game_written_by_hand():
    ours, theirs = Gan(), Gan()
    before = [weight.detach().clone() for weight in ours.parameters()]
    training = Training(optimizer="adam", schedule="constant", clip=None, precision="float32", batch_size=16)
    stream = Resident(rows_of_rank(96), 16, seed=5)
    train(ours, stream, None, training, epochs=5, lr=LR, seed=9)
    by_hand(theirs, stream, 5, seed=9)
    for (name, mine), other, old in zip(ours.named_parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6, msg=name)
        assert (mine - old).abs().max() > 1e-3, name


@pytest.mark.parametrize("optimizer", ["gd", "sgd", "momentum", "adamw", "muon"])
def test_opponents_move_by_adam_at_a_rate_of_their_own_whatever_moves_the_rest(optimizer):
    gan = Gan()
    made = make_optimizer(gan, Training(optimizer=optimizer, weight_decay=0.5))
    (judging,) = [part for part in made.parts if gan.critic[0].weight in set(part.param_groups[0]["params"])]
    assert isinstance(judging, torch.optim.AdamW)
    assert judging.param_groups[0]["weight_decay"] == 0 and judging.param_groups[0]["betas"] == (0.5, 0.99)
    assert sum(len(group["params"]) for part in made.parts for group in part.param_groups) == 8
    gan(rows_of_rank(8)).opposing.backward()
    made.step(0.5 * DEFAULT_RATES[optimizer])
    assert judging.param_groups[0]["lr"] == pytest.approx(0.5 * OPPONENTS_RATE)


def test_each_side_and_each_member_of_it_is_clipped_apart():
    module = module_of("aae", members=3)
    optimizer = make_optimizer(module, Training(optimizer="adamw"))
    critic = module.penalties[0].critic
    for weight in module.parameters():
        weight.grad = torch.full_like(weight, 1e-3)
    for weight in critic.parameters():
        weight.grad[1] *= 1e4
    small = [weight.grad.clone() for weight in module.encoder.parameters()]
    lengths = [sum(float(w.grad[e].square().sum()) for w in critic.parameters()) ** 0.5 for e in range(3)]
    optimizer.clip(1.0)
    clipped = [sum(float(w.grad[e].square().sum()) for w in critic.parameters()) ** 0.5 for e in range(3)]
    assert clipped == pytest.approx([min(length, 1.0) for length in lengths])
    assert lengths[1] > 1000
    assert all(torch.equal(w.grad, old) for w, old in zip(module.encoder.parameters(), small, strict=True))


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("recipe", GAMES)
def test_no_gradient_of_one_side_reaches_the_other(recipe, bfloat16):
    module, batch = module_of(recipe), rows_of_rank(32)
    theirs = dict.fromkeys(module.opponents())
    assert theirs and len(theirs) == len(list(module.penalties.parameters()))
    for side in ("total", "opposing"):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = module(batch)
            value = loss.total() if side == "total" else loss.opposing
        module.zero_grad()
        value.backward()
        for name, weight in module.named_parameters():
            moved = weight.grad is not None and bool(weight.grad.any())
            assert moved == ((weight in theirs) == (side == "opposing")), (side, name)


def test_what_the_encoder_hears_of_the_critic_of_rows_is_how_rows_look_alone():
    """As in the source: the verdict on what was made trains the decoder."""
    module, batch = module_of("vaegan"), rows_of_rank(16)
    penalty = module.penalties[0]
    gradients = []
    for cost in (penalty.forward, penalty.unlike):
        torch.manual_seed(0)
        code = module.latent(module.encoder(module.embed(batch)), 1)
        p = module.likelihood(module.decoder(code.z))
        value = cost(Pass(batch, batch, code, p, module.decode)).mean()
        gradients.append(torch.autograd.grad(value, [*module.encoder.parameters(), *module.decoder.parameters()]))
    inner = len(list(module.encoder.parameters()))
    for index, (whole, looks) in enumerate(zip(*gradients, strict=True)):
        assert torch.allclose(whole, looks, atol=1e-7) == (index < inner)


def test_a_perfect_copy_looks_alike():
    module, batch = module_of("vaegan:likelihood=mse"), rows_of_rank(16)
    code = module.latent(module.encoder(module.embed(batch)), 1)
    for shift in (0.0, 1.0):
        p = module.likelihood((batch.numbers + shift).unsqueeze(0))
        cost = module.penalties[0].unlike(Pass(batch, batch, code, p, module.decode))
        assert bool((cost > 1e-4).all()) if shift else cost.abs().max() == 0


def test_losses_are_cross_entropies_and_the_gradient_is_that_of_each_row():
    torch.manual_seed(0)
    real, made = torch.randn(2, 5, 1), torch.randn(2, 5, 1)

    def entropy(logits: Tensor, target: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="none").squeeze(-1)

    torch.testing.assert_close(fooled(made), entropy(made, 1.0))
    torch.testing.assert_close(told(real, made), entropy(real, SURE) + entropy(made, 0.0))
    critic = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    rows = torch.randn(5, 4, requires_grad=True)
    slopes = [torch.autograd.functional.jacobian(critic, row).square().sum() / 2 for row in rows.detach()]
    torch.testing.assert_close(steepness(critic(rows), rows), torch.stack(slopes))


def test_members_have_critics_that_do_not_hear_of_each_other():
    module, batch = module_of("aae", members=3), rows_of_rank(20)
    critic = module.penalties[0].critic

    def gradients() -> list[Tensor]:
        torch.manual_seed(4)
        loss = module(batch)
        return list(torch.autograd.grad(loss.total() + loss.opposing, list(module.parameters())))

    before = gradients()
    with torch.no_grad():
        for layer in critic:
            if isinstance(layer, MemberLinear):
                layer.weight[1] *= 2
    for name, old, new in zip(dict(module.named_parameters()), before, gradients(), strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]]), name
        assert not torch.equal(old[1], new[1]) or "encoder" not in name


@pytest.mark.parametrize("recipe", GAMES)
def test_a_game_whose_source_fails_goes_on_exactly(tmp_path, recipe):
    def run(folder=None, fail_at=0, resume=False):
        module = module_of(recipe)
        training = Training(batch_size=16, optimizer="muon", checkpoint_every=0)
        stream = FailingAt(fail_at) if fail_at else Resident(rows_of_rank(100), 16, seed=5)
        validation = Resident(rows_of_rank(40, seed=1), 16, shuffle=False)
        watch = Watch(folder=folder, resume=resume)
        history = train(module, stream, validation, training, epochs=4, seed=7, watch=watch)
        return module.state_dict(), history

    whole, expected = run()
    for step in (2, 9, 26):
        with pytest.raises(ConnectionError):
            run(tmp_path / str(step), step)
        resumed, history = run(tmp_path / str(step), resume=True)
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items()), step
        assert history.facts() == expected.facts()
    begun = module_of(recipe).state_dict()
    assert all(not torch.equal(whole[name], begun[name]) for name in whole if "weight" in name)


def test_opponents_do_not_judge():
    for recipe in GAMES:
        module, batch = module_of(recipe), rows_of_rank(20)
        assert "adversary" in module(batch).scalars
        loss = module.eval()(batch)
        assert "adversary" not in loss.scalars and loss.opposing is None


def test_codes_of_the_adversarial_autoencoder_become_normal_and_can_be_drawn():
    rows, far = rows_of_rank(400), {}
    for recipe in ("plain", "aae"):
        module = module_of(recipe, latent=2)
        train(module, Resident(rows, 50, seed=1), None, Training(optimizer="adamw"), epochs=60, seed=3)
        with torch.no_grad():
            z = module.encode(rows).z[0]
            far[recipe] = float(mmd(z, torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))))
            if recipe == "aae":
                assert module.latent.has_prior
                made = module.decode(module.latent.sample(300).unsqueeze(0)).numbers()[0]
                error = (module.decode(z.unsqueeze(0)).numbers()[0] - rows.numbers).square().mean()
    assert far["aae"] < 0.1 and 3 * far["aae"] < far["plain"]
    assert error < 0.5 * rows.numbers.var(0).mean()
    assert bool((made.mean(0) - rows.numbers.mean(0)).abs().max() < 0.15)
    torch.testing.assert_close(made.std(0), rows.numbers.std(0), rtol=0.6, atol=0.05)


NUMBER, PIXELS = Column("n", "number", "double"), Column("i", "image", "u1", (4, 4), 16, grid=(4, 4, 1), bounded=True)
CATEGORY = Column("c", "category", "string", width=0, levels=3)


@pytest.mark.parametrize("entry", [CATEGORY, Column("b", "bag", "map<string, float>", width=4)])
def test_rows_that_are_not_numbers_alone_have_no_critic(entry):
    with pytest.raises(SettingError, match=f"column '{entry.name}' of kind {entry.kind}.*aae"):
        module_of("vaegan", schema=Schema((NUMBER, entry)))
    assert isinstance(module_of("aae", schema=Schema((NUMBER, entry))).penalties[0], CodeCritic)


def test_ensembles_and_critics_without_features_are_refused():
    with pytest.raises(SettingError, match=r"members=2.*one member.*aae"):
        module_of("vaegan", members=2)
    with pytest.raises(SettingError, match="features=0"):
        module_of("vaegan:features=0")
    assert isinstance(module_of("vaegan", schema=Schema((NUMBER, PIXELS))).penalties[0], RowCritic)
