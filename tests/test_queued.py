"""Steps that nobody waits for, on a CPU: what they learn, what they tell, and what a recording of them may not miss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import narrows.train.loop as loop
from narrows.errors import FitWarning, TrainingError
from narrows.model.building import build
from narrows.model.quantized import UNUSED, VectorQuantized
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import Batch, Column, Schema, Sparse
from narrows.train.graphs import FIRST, Replayed
from narrows.train.ledger import Ledger
from narrows.train.members import clip_members, shorten_members
from narrows.train.optimizers import clip, make_optimizer, shorten
from narrows.train.queued import Queued
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.step import Stepper
from small_run import rows_of_rank, small_module
from tape import taped

CPU = torch.device("cpu")
HEEDING = ["momentum", "adam", "adamw", "muon"]  # on a CPU: its plain SGD is not fused


def on_a_tape(*arguments):
    return Queued(Stepper(*arguments), taped)


@pytest.fixture
def queued(monkeypatch):
    """Makes training queue its steps, recorded as far as the module allows."""
    return lambda: monkeypatch.setattr(loop, "make_stepper", on_a_tape)


def trained(module, rows, held=None, epochs=3, lr=0.01, batch=16, **options):
    watch = options.pop("watch", None)
    training = Training(**{"optimizer": "adamw", "batch_size": batch, "patience": None, **options})
    validation = None if held is None else Resident(held, batch, shuffle=False)
    return loop.train(module, Resident(rows, batch, 5), validation, training, epochs=epochs, lr=lr, seed=3, watch=watch)


def same(one: nn.Module, other: nn.Module, atol: float = 2e-5) -> None:
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        if name.endswith("known.bias"):  # of attention: a softmax does not see it, so it moves with rounding errors
            continue
        torch.testing.assert_close(tensor, theirs[name], atol=atol, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def alike(history, other) -> None:
    assert history.reason == other.reason and len(history.records) == len(other.records)
    for record, wanted in zip(history.records, other.records, strict=True):
        for key in wanted.keys() - {"seconds"}:
            assert record[key] == pytest.approx(wanted[key], rel=1e-4), key


# what they learn


@pytest.mark.parametrize("optimizer", HEEDING)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_queued_steps_are_those_that_are_waited_for(queued, optimizer, clip):
    runs = []
    for how in (lambda: None, queued):
        how()
        module = module_of(NUMBERS, "denoising:noise=0.1,mask=0.2", Dense(hidden=(16,), dropout=0.1))
        options = {"optimizer": optimizer, "clip": clip, "weight_decay": 0.01, "tolerance": 1e-9}
        runs.append((module, trained(module, rows_of_rank(100), rows_of_rank(40, seed=1), **options)))
    same(runs[1][0], runs[0][0])
    alike(runs[1][1], runs[0][1])


NUMBERS = Schema((Column("x", "number", "float", shape=(12,), width=12),))
TABLE = Schema(
    (
        Column("size", "number", "double", holes=True),
        Column("visits", "count", "int64"),
        Column("share", "number", "double", bounded=True),
        Column("color", "category", "string", levels=4, width=0, holes=True),
        Column("town", "category", "string", levels=9, width=0),
    )
)


def table(rows: int = 72, seed: int = 0, weight: bool = False) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.rand(rows, 3, generator=draw)
    numbers[:, 1] = (5 * numbers[:, 1]).round()
    codes = torch.stack([torch.randint(0, n + 1, (rows,), generator=draw) for n in (4, 9)], dim=1)
    seen = torch.ones(rows, 5, dtype=torch.bool)
    seen[:, [0, 3]] = torch.rand(rows, 2, generator=draw) > 0.2
    return Batch(numbers, codes, seen, torch.rand(rows, generator=draw) if weight else None)


RECIPES = [
    "plain",
    "plain:likelihood=student",
    "denoising:noise=0.1,mask=0.2",
    "denoising:salt=0.2",
    "masked",
    "vae:warm_up=0.6",
    "vae:beta=2,warm_up=0.5,cycles=2,free_bits=0.1",
    "iwae:samples=3",
    "hierarchical:free_bits=0.1",
    "sparse",
    "sparse:penalty=kl",
    "topk:k=2",
    "vq:levels=8,dim=2",
    "fsq",
    "contractive",
    "wae",
    "tcvae:warm_up=0.5",
]


def module_of(schema: Schema, recipe: str, network) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build(Recipe.parse(recipe), schema, 4, Network.of(network))


def both(queued, schema, recipe, network, rows, held, **options):
    """The module trained step by step, and from a tape."""
    plain, again = (module_of(schema, recipe, network) for _ in range(2))
    wanted = trained(plain, rows, held, **options)
    queued()
    assert again.repeats
    alike(trained(again, rows, held, **options), wanted)
    same(again, plain)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_recorded_and_learns_the_same(queued, recipe, monkeypatch):
    def revive(self, places):
        """As on a GPU, which is not asked whether an entry is dead."""
        self._replace(self.counts < UNUSED * places.shape[-2] / self.symbols, places)

    monkeypatch.setattr(VectorQuantized, "_revive", revive)
    both(queued, TABLE, recipe, Dense(hidden=(8,)), table(weight=True), table(40, seed=1))


@pytest.mark.parametrize(
    "network", [Dense(hidden=(8,), norm="layer"), Dense(hidden=(8,), members=3), Transformer(8, 1)]
)
def test_networks_over_tables_can_be_recorded(queued, network):
    both(queued, TABLE, "vae", network, table(), table(40, seed=1), optimizer="muon")


@pytest.mark.parametrize("network", [Conv(channels=(4,)), Recurrent(units=8), Transformer(8, 1)])
def test_networks_over_series_can_be_recorded(queued, network):
    schema = Schema((Column("x", "series", "float", shape=(12, 2), width=24, grid=(12, 2), holes=True),))
    rows, held = (
        Batch(r.numbers, r.codes, r.numbers < 0.9) for r in (rows_of_rank(72, width=24), rows_of_rank(40, width=24))
    )
    both(queued, schema, "denoising:mask=0.2", network, rows, held)


def test_texts_that_are_told_word_by_word_can_be_recorded(queued):
    schema = Schema((Column("x", "tokens", "string", width=0, levels=7, grid=(6,), holes=True),))
    codes = torch.randint(0, 8, (72, 6), generator=torch.Generator().manual_seed(0))
    rows = Batch(torch.zeros(72, 0), codes, codes < 7)
    both(queued, schema, "vae", Recurrent(units=8, word_dropout=0.2, autoregressive=True), rows, rows[:40])


def test_images_that_are_moved_can_be_recorded(queued):
    schema = Schema((Column("x", "image", "uint8", shape=(6, 6), width=36, grid=(6, 6, 1), bounded=True),))
    rows = Batch(torch.rand(72, 36, generator=torch.Generator().manual_seed(0)), torch.zeros(72, 0, dtype=torch.long))
    both(queued, schema, "vae:augment=shift(1)+flip+binarize", Conv(channels=(4,)), rows, rows[:40])


def test_what_does_not_repeat_is_not_recorded():
    assert not module_of(NUMBERS, "aae", Dense(hidden=(8,))).repeats
    assert not module_of(NUMBERS, "vaegan", Dense(hidden=(8,))).repeats

    class Own(nn.Linear):
        """A user's layer."""

    modules = {"encoder": Own(12, 4), "decoder": nn.Linear(4, 12)}
    assert not build(Recipe.parse("plain"), NUMBERS, 4, Network.of(Dense()), modules).repeats


@pytest.mark.parametrize("recipe", ["aae", "vaegan"])
def test_what_is_not_recorded_is_queued_all_the_same(queued, recipe):
    runs = []
    for how in (lambda: None, queued):
        how()
        module = module_of(NUMBERS, recipe, Dense(hidden=(16,)))
        runs.append((module, trained(module, rows_of_rank(100))))
    same(runs[1][0], runs[0][0], atol=1e-4)
    alike(runs[1][1], runs[0][1])


def test_bags_are_queued(queued):
    schema = Schema((Column("words", "bag", "map<string, int64>", width=9),))
    dense = torch.poisson(torch.full((72, 9), 0.5), generator=torch.Generator().manual_seed(0))
    rows, cells = dense.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), (dense > 0).sum(1).cumsum(0)])
    bags = Sparse(offsets, cells, dense[rows, cells], 9)
    batch = Batch(torch.zeros(72, 0), torch.zeros(72, 0, dtype=torch.long), sparse=bags)
    assert torch.equal(bags.dense(), dense)
    both(queued, schema, "plain:likelihood=auto", Dense(hidden=(8,)), batch, batch[:40])


def test_batch_statistics_are_queued(queued):
    runs = []
    for how in (lambda: None, queued):
        how()
        module = small_module("vae")
        runs.append((module, trained(module, rows_of_rank(100), rows_of_rank(40), optimizer="momentum")))
    same(runs[1][0], runs[0][0])
    alike(runs[1][1], runs[0][1])


def test_no_entry_moves_where_none_is_dead():
    latent = VectorQuantized(4, levels=8, dim=2)
    before = latent.entries.clone()
    latent._replace(torch.zeros(8, dtype=torch.bool), torch.randn(20, 2))
    assert torch.equal(latent.entries, before) and not latent.counts.any()


def test_a_run_of_queued_steps_goes_on_from_its_checkpoint(queued, tmp_path):
    queued()
    whole, expected = small_module("vae"), None
    expected = trained(whole, rows_of_rank(100), rows_of_rank(40))

    class Failing(Resident):
        """Rows whose source breaks down at the 12th batch."""

        left = 12

        def epoch(self, number, position=None):
            for item in super().epoch(number, position):
                Failing.left -= 1
                if not Failing.left:
                    raise ConnectionError("gone")
                yield item

    settings_ = Training(optimizer="adamw", batch_size=16, patience=None, checkpoint_every=0.0)
    module, held, watch = small_module("vae"), Resident(rows_of_rank(40), 16, shuffle=False), Watch(folder=tmp_path)
    again = {"epochs": 3, "lr": 0.01, "seed": 3}
    with pytest.raises(ConnectionError):
        loop.train(module, Failing(rows_of_rank(100), 16, 5), held, settings_, watch=watch, **again)
    module = small_module("vae")
    rows = Resident(rows_of_rank(100), 16, 5)
    history = loop.train(module, rows, held, settings_, watch=replace(watch, resume=True), **again)
    same(module, whole)
    alike(history, expected)


# what broke


@dataclass(frozen=True)
class Cells:
    nll: Tensor
    opposing = None

    def total(self) -> Tensor:
        return self.nll.sum(1).mean()

    def broken(self) -> list[int]:
        return (~self.nll.isfinite().all(0)).nonzero().flatten().tolist()


class Mean(nn.Module):
    """Learns means; the gradient is not finite where a row's first cell is 9, the loss where one is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3))

    def forward(self, batch: Batch) -> Cells:
        nine = (batch.numbers[:, :1] == 9).any().float()
        return Cells((batch.numbers.clamp_max(1e30) - self.mean).square() + (1 - nine + 0 * self.mean).sqrt())


def rows_with(at: int, value: float, column: int) -> Batch:
    numbers = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    numbers[at, column] = value
    return Batch(numbers, torch.zeros(64, 0, dtype=torch.long))


@pytest.mark.parametrize(("value", "column"), [(math.nan, 1), (math.inf, 2), (9.0, 0)])
@pytest.mark.parametrize("at", [0, 20, 63])
def test_what_broke_is_named_as_if_it_had_been_waited_for(queued, value, column, at):
    told, modules = [], []
    for how in (lambda: None, queued):
        how()
        module = Mean()
        with pytest.raises(TrainingError) as error:
            trained(module, rows_with(at, value, column), watch=Watch(cells=["age", "size", "sex"]), lr=0.1)
        told.append(str(error.value))
        modules.append(module)
    assert told[0] == told[1] and ("gradient" in told[0]) == (value == 9.0)
    same(modules[1], modules[0])


def test_a_later_epoch_that_breaks_leaves_the_best_weights(queued):
    class Bursting(Mean):
        """Its loss overflows once the mean is near."""

        def forward(self, batch: Batch) -> Cells:
            return Cells(super().forward(batch).nll / (self.mean.sum() < 0.6).float())

    rows = Batch(
        1 + torch.rand(64, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 0, dtype=torch.long)
    )
    told, modules = [], []
    for how in (lambda: None, queued):
        how()
        module = Bursting()
        with pytest.warns(FitWarning, match="the best weights so far, of epoch") as warned:
            history = trained(module, rows, optimizer="momentum", epochs=20, lr=0.01)
        assert history.reason == "diverged"
        told.append(str(warned[0].message))
        modules.append(module)
    assert told[0] == told[1]
    same(modules[1], modules[0])


@settings(deadline=None)
@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=12), st.data())
def test_the_ledger_adds_up_and_counts_from_the_first_that_broke(losses, data):
    ledger, mass = Ledger(CPU), 0.1
    broken = data.draw(st.none() | st.integers(0, len(losses) - 1))
    bad = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    total = 0.0
    for place, loss in enumerate(losses):
        value = torch.tensor(bad if place == broken else loss)
        ledger.enter(torch.tensor(mass, dtype=torch.float64), value, torch.tensor(1.0))
        total += mass * value.item()
        assert ledger.halted.item() == (broken is not None and place >= broken)
    sums = ledger.read()
    assert sums.spoilt == (0 if broken is None else len(losses) - broken)
    assert sums.loss == total or (broken is not None and not math.isfinite(sums.loss))
    assert ledger.read().mass == 0.0


@pytest.mark.parametrize("name", HEEDING)
def test_a_step_that_broke_moves_nothing(name):
    module = small_module()
    optimizer, broken, rate = make_optimizer(module, Training(optimizer=name)), torch.zeros(()), torch.tensor(0.1)
    optimizer.heed(broken)
    for value, halt in ((1.0, 0.0), (math.nan, 1.0)):
        before = [weight.detach().clone() for weight in optimizer.weights]
        for weight in optimizer.weights:
            weight.grad = torch.full_like(weight, value)
        broken.fill_(halt)
        optimizer.step(rate)
        unmoved = [torch.equal(now, then) for now, then in zip(optimizer.weights, before, strict=True)]
        assert all(unmoved) if halt else not any(unmoved)


@pytest.mark.parametrize("limit", [0.5, 1e9, None])
def test_shortening_is_clipping(limit):
    for one, other, shape in ((clip, shorten, (4, 5)), (clip_members, shorten_members, (4, 1, 5))):
        gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        copies = [gradient.clone() for gradient in gradients]
        assert other(copies, limit).item() == pytest.approx(one(gradients, limit))
        for gradient, copy in zip(gradients, copies, strict=True):
            torch.testing.assert_close(copy, gradient, rtol=1e-6, atol=0)


# what is replayed


def numbered(rows: int, at: int = 0) -> Batch:
    return Batch(torch.arange(at, at + rows).float()[:, None], torch.zeros(rows, 0, dtype=torch.long))


def test_rows_of_the_commonest_shape_are_replayed_and_all_are_worked_on():
    seen: list[list[float]] = []
    recordings = []

    def record(act):
        recordings.append(act)
        return act

    replayed = Replayed(record)
    batches = [numbered(rows, 10 * at) for at, rows in enumerate([4, 2] * (FIRST + 3))]
    for batch in batches:
        replayed.act(lambda rows: seen.append(rows.numbers.flatten().tolist()), batch)
        batch.numbers.zero_()  # the memory of a batch may be used again
    wanted = [numbered(rows, 10 * at).numbers.flatten().tolist() for at, rows in enumerate([4, 2] * (FIRST + 3))]
    assert seen == wanted and len(recordings) == 1


def test_what_cannot_be_recorded_is_told_once_and_done_all_the_same():
    done: list[int] = []

    def record(act):
        raise RuntimeError("operation not permitted\nand more")

    def act(batch):
        done.append(len(batch))

    replayed = Replayed(record)
    for _ in range(FIRST):
        replayed.act(act, numbered(4))
    with pytest.warns(FitWarning, match=r"CUDA graph \(operation not permitted\); training goes on"):
        replayed.act(act, numbered(4))
    replayed.act(act, numbered(4))
    assert done == [4] * (FIRST + 2)


def test_a_step_that_asks_the_device_is_no_recording(queued):
    class Asking(nn.Module):
        repeats = True

        def __init__(self) -> None:
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(3))

        def forward(self, batch: Batch) -> Cells:
            return Cells((batch.numbers - self.mean).square() * batch.numbers.abs().mean().item())

    queued()
    with pytest.warns(FitWarning, match="_local_scalar_dense would wait"):
        history = trained(Asking(), rows_with(0, 1.0, 0), epochs=6)
    assert history.records[-1]["step"] == 24
