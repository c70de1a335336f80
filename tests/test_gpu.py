"""On a GPU: graphs, uploads and the queue give what they give without, and nobody waits for a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import narrows.train.loop as loop
from narrows.errors import TrainingError
from narrows.fitting import Plan, fit
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.schema import Batch, Column, Schema
from narrows.train.devices import fits, own_stream, tensor_float
from narrows.train.graphs import FIRST, recorded
from narrows.train.optimizers import make_optimizer
from narrows.train.queued import Queued
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.step import Stepper
from narrows.train.upload import Uploaded
from small_run import rows_of_rank
from test_queued import NUMBERS, RECIPES, TABLE, Cells, Mean, alike, module_of, rows_with, same, table

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIMIZERS = ["sgd", "momentum", "adam", "adamw", "muon"]
SERIES = Schema((Column("x", "series", "float", shape=(12, 2), width=24, grid=(12, 2), holes=True),))


def gpu() -> torch.device:
    return torch.device("cuda", 0)


def unrecorded(*arguments):
    return Queued(Stepper(*arguments), None)


def trained(module: nn.Module, rows: Batch, held: Batch | None = None, device: str = "cuda", **options):
    """Train on a device; rows stay where they are given."""
    watch, epochs = options.pop("watch", None), options.pop("epochs", 3)
    settings = {"optimizer": "adamw", "batch_size": 16, "patience": None, "precision": "float32", **options}
    validation = None if held is None else Resident(held, 16, shuffle=False)
    stream = Resident(rows, 16, 5)
    where = {"epochs": epochs, "lr": 0.01, "seed": 3, "watch": watch}
    return loop.train(module.to(device), stream, validation, Training(**settings), **where)


def three_ways(monkeypatch, make, rows, held=None, **options) -> None:
    """Recorded as graphs, queued without, and waited for: the same weights and records."""
    runs = []
    for maker in (loop.make_stepper, unrecorded, Stepper):
        monkeypatch.setattr(loop, "make_stepper", maker)
        module = make()
        runs.append((module, trained(module, rows.to("cuda"), held and held.to("cuda"), **options)))
    for module, history in runs[1:]:
        alike(history, runs[0][1])
        same(module, runs[0][0], atol=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_graphs_and_the_queue_change_nothing(monkeypatch, optimizer, clip):
    def make():
        return module_of(NUMBERS, "denoising:noise=0.1,mask=0.2", Dense(hidden=(16,), dropout=0.1))

    options = {"optimizer": optimizer, "clip": clip, "weight_decay": 0.01, "tolerance": 1e-9}
    three_ways(monkeypatch, make, rows_of_rank(100), rows_of_rank(40, seed=1), **options)


@pytest.mark.parametrize("recipe", [*RECIPES, "aae"])
def test_every_recipe_learns_the_same_from_a_graph(monkeypatch, recipe):
    # a recording that failed would warn, and warnings are errors
    three_ways(monkeypatch, lambda: module_of(TABLE, recipe, Dense(hidden=(8,))), table(weight=True), table(40, seed=1))


@pytest.mark.parametrize("network", [Conv(channels=(4,)), Recurrent(units=8), Recurrent("lstm", 8), Transformer(8, 1)])
def test_every_network_learns_the_same_from_a_graph(monkeypatch, network):
    rows = rows_of_rank(72, width=24)
    rows = Batch(rows.numbers, rows.codes, rows.numbers < 0.9)
    three_ways(monkeypatch, lambda: module_of(SERIES, "denoising:mask=0.2", network), rows, rows[:40])


def test_bfloat16_is_recorded_too(monkeypatch):
    losses = []
    for maker in (loop.make_stepper, Stepper):
        monkeypatch.setattr(loop, "make_stepper", maker)
        module = module_of(NUMBERS, "vae", Dense(hidden=(64,)))
        losses.append(trained(module, rows_of_rank(300).to("cuda"), precision="bfloat16").records[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_gpu_learns_what_a_cpu_learns():
    histories = [
        trained(module_of(NUMBERS, "plain", Dense(hidden=(16,))), rows_of_rank(100).to(device), device=device)
        for device in ("cpu", "cuda")
    ]
    for cpu, cuda in zip(*(history.records for history in histories), strict=True):
        assert cuda["loss"] == pytest.approx(cpu["loss"], rel=1e-3)


def test_uploaded_rows_teach_what_resident_ones_teach():
    modules = [module_of(TABLE, "vae", Dense(hidden=(8,))) for _ in range(2)]
    histories = [
        trained(m, table(weight=True).to(d), table(40).to(d)) for m, d in zip(modules, ("cpu", "cuda"), strict=True)
    ]
    alike(*histories)
    same(*modules)


@pytest.mark.parametrize(("value", "column"), [(float("nan"), 1), (float("inf"), 2), (9.0, 0)])
def test_what_broke_is_named_as_on_a_cpu(value, column):
    told = []
    for device in ("cpu", "cuda"):
        rows, watch = rows_with(20, value, column).to(device), Watch(cells=["age", "size", "sex"])
        with pytest.raises(TrainingError) as error:
            trained(Mean(), rows, device=device, watch=watch)
        told.append(str(error.value))
    assert told[0] == told[1]


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    class Failing(Resident):
        left = 12

        def epoch(self, number, position=None):
            for item in super().epoch(number, position):
                Failing.left -= 1
                if not Failing.left:
                    raise ConnectionError("gone")
                yield item

    def run(stream, watch):
        module = module_of(NUMBERS, "vae", Dense(hidden=(16,))).cuda()
        settings = Training(optimizer="muon", batch_size=16, patience=None, checkpoint_every=0.0)
        return module, loop.train(module, stream, None, settings, epochs=3, lr=0.01, seed=3, watch=watch)

    rows = rows_of_rank(100).to("cuda")
    whole, expected = run(Resident(rows, 16, 5), None)
    with pytest.raises(ConnectionError):
        run(Failing(rows, 16, 5), Watch(folder=tmp_path))
    resumed, history = run(Resident(rows, 16, 5), Watch(folder=tmp_path, resume=True))
    alike(history, expected)
    same(resumed, whole)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever would wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("record", [recorded, None])
@pytest.mark.parametrize("where", ["cuda", "cpu"])
@pytest.mark.parametrize("recipe", ["vae:warm_up=0.5", "vq:levels=8,dim=2", "sparse:penalty=kl", "aae"])
def test_no_step_is_waited_for(record, where, recipe):
    module = module_of(NUMBERS, recipe, Dense(hidden=(16,))).cuda()
    training = Training(optimizer="muon", batch_size=16)
    stepper = Queued(Stepper(module, make_optimizer(module, training), training, 16, 0), record)
    stream = Uploaded(Resident(rows_of_rank(400).to(where), 16, 5), gpu())
    module.train()
    with own_stream(gpu()):
        for number, (batch, _) in enumerate(stream.epoch(0)):
            stepper.step(batch, number, 0.01, number / 25)
            if number == FIRST:
                stepper.settle(number + 1)
                break
        with no_waiting():
            for number, (batch, _) in enumerate(stream.epoch(1), FIRST + 1):
                stepper.step(batch, number, 0.01, number / 25)
        mass, loss = stepper.settle(FIRST + 1 + 25)
    assert mass == 400 and 0 < loss < float("inf")


def test_draws_of_a_replay_follow_the_seed():
    class Drawing(nn.Module):
        repeats = True

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.drawn = nn.Parameter(torch.zeros(3)), nn.Buffer(torch.zeros(8, 4))

        def forward(self, batch: Batch):
            self.drawn.copy_(torch.randn(8, 4, device="cuda"))
            return Cells((batch.numbers - self.weight).square())

    drawn = []
    for record in (recorded, None):
        module = Drawing().cuda()
        training = Training(optimizer="adamw")
        stepper = Queued(Stepper(module, make_optimizer(module, training), training, 16, 7), record)
        rows, seen = rows_with(0, 1.0, 0).to("cuda"), []
        with own_stream(gpu()):
            for number in range(FIRST + 4):
                stepper.step(rows, number, 0.01)
                seen.append(module.drawn.clone())
        drawn.append(torch.stack(seen))
    assert torch.equal(drawn[0], drawn[1])
    assert len({float(step[0, 0]) for step in drawn[0]}) == FIRST + 4


def test_what_cannot_be_recorded_leaves_the_generator_usable():
    class Asking(Mean):
        repeats = True

        def forward(self, batch: Batch):
            torch.rand(3, device="cuda")
            batch.numbers.sum().item()
            return super().forward(batch)

    with pytest.warns(match="could not be recorded as a CUDA graph"):
        history = trained(Asking(), rows_with(0, 1.0, 0).to("cuda"))
    assert history.records[-1]["step"] == 12 and torch.rand(3, device="cuda").isfinite().all()


def test_rows_fit_into_half_of_what_is_free():
    free = torch.cuda.mem_get_info(gpu())[0]
    assert fits(1 << 20, gpu()) and not fits(free, gpu())


def test_the_precision_of_products_is_given_back():
    before = torch.backends.cuda.matmul.allow_tf32
    with tensor_float(gpu(), not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_a_model_fitted_on_a_gpu_is_as_good():
    scores = []
    for device in ("cpu", "cuda"):
        plan = Plan(recipe="vae", latent=4, epochs=20, device=device)
        model = fit(rows_of_rank(600).numbers.numpy(), plan)
        scores.append(model.facts["records"][-1]["val_loss"])
    assert scores[0] == pytest.approx(scores[1], rel=0.05, abs=0.2)
