"""The loop: what it learns, why it stops, what it keeps, and what it leaves as it found it."""

from __future__ import annotations

import io
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import Tensor, nn

from narrows.errors import DataError, FitWarning, SettingError, TrainingError
from narrows.schema import Batch
from narrows.train.devices import choose_device, choose_precision, gains_by_bfloat16, has_bfloat16, threads_for
from narrows.train.loop import LONG, train
from narrows.train.optimizers import half_way, rate_share
from narrows.train.randomness import mix
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.stops import History, stop_reason
from small_run import rows_of_rank, small_module

CONSTANT = {"schedule": "constant", "patience": None}


@dataclass(frozen=True)
class Cells:
    """A loss by cell."""

    nll: Tensor
    opposing = None

    def total(self) -> Tensor:
        return self.nll.sum(1).mean()

    def broken(self) -> list[int]:
        return (~self.nll.isfinite().all(0)).nonzero().flatten().tolist()


class Mean(nn.Module):
    """Learns the mean of each column; the loss of the true mean is the variance."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width))
        self.seen: list[Tensor] = []

    def forward(self, batch: Batch) -> Cells:
        return Cells((batch.numbers - self.mean).square())


class Noisy(Mean):
    """Remembers what was drawn in training and in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[bool, list[float]] = {True: [], False: []}

    def forward(self, batch: Batch) -> Cells:
        self.drawn[self.training].append(torch.rand(()).item())
        return super().forward(batch)


def batch(numbers) -> Batch:
    numbers = torch.as_tensor(numbers, dtype=torch.float32)
    return Batch(numbers, torch.zeros(len(numbers), 0, dtype=torch.long))


def normal(rows: int = 64, mean: float = 2.0, seed: int = 0) -> Batch:
    return batch(mean + torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed)))


def fit(module: nn.Module, rows: Batch | None = None, validation: Batch | None = None, **options):
    rows = normal() if rows is None else rows
    named = {name: options.pop(name) for name in ("epochs", "lr", "seed", "watch") if name in options}
    training = Training(**{"optimizer": "sgd", "batch_size": 16, **CONSTANT, **options})
    held_out = None if validation is None else Resident(validation, 100, shuffle=False)
    stream = Resident(rows, training.step_rows(len(rows)), seed=named.get("seed", 0))
    return train(module, stream, held_out, training, **{"epochs": 5, "lr": 0.1, **named})


# what it learns


def test_gradient_descent_is_the_closed_form():
    rows, module = normal(), Mean()
    history = fit(module, rows, optimizer="gd", batch_size=None, clip=None, epochs=7, lr=0.1)
    target = rows.numbers.mean(0)
    torch.testing.assert_close(module.mean.detach(), target * (1 - 0.8**7))  # each step goes 2 * lr of the way
    losses = [(rows.numbers - target * (1 - 0.8**k)).square().sum(1).mean().item() for k in range(7)]
    assert [record["loss"] for record in history.records] == pytest.approx(losses, rel=1e-5)
    assert [record["step"] for record in history.records] == list(range(1, 8))


def test_a_linear_autoencoder_reaches_the_error_of_pca():
    rows = rows_of_rank(400, rank=6)
    rows.numbers.sub_(rows.numbers.mean(0))
    module = small_module("linear", latent=4)
    fit(module, rows, optimizer="adamw", schedule="one-cycle", epochs=80, lr=0.02, batch_size=32)
    values = torch.linalg.svdvals(rows.numbers)
    best = values[4:].square().sum().item() / len(rows)
    assert best <= module(rows).total().item() < 1.01 * best


def test_row_weights_count_in_the_epoch_loss():
    class Weighted(Mean):
        def forward(self, batch: Batch) -> Cells:
            return Cells(super().forward(batch).nll * (batch.weight / batch.weight.mean())[:, None])

    rows = normal()
    weighted = Batch(rows.numbers, rows.codes, None, torch.rand(64) + 0.1)
    history = fit(Weighted(), weighted, weighted, epochs=1, lr=1e-12)
    expected = (rows.numbers.square().sum(1) * weighted.weight).sum() / weighted.weight.sum()
    assert history.records[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert history.records[0]["val_loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_after_step_is_called_after_every_step():
    class Counting(Mean):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1

    module = Counting()
    assert fit(module).records[-1]["step"] == module.steps == 20


# randomness


def test_draws_are_a_function_of_seed_and_step_and_validation_draws_are_always_the_same():
    one, two, other = Noisy(), Noisy(), Noisy()
    torch.manual_seed(1)
    fit(one, validation=normal(seed=1), seed=3)
    torch.manual_seed(2)
    fit(two, validation=normal(seed=1), seed=3)
    fit(other, validation=normal(seed=1), seed=4)
    assert one.drawn == two.drawn
    assert one.drawn[True] != other.drawn[True]
    assert len(set(one.drawn[True])) == 20 and len(set(one.drawn[False])) == 1


def test_the_same_seed_gives_the_same_weights_and_history():
    runs = [small_module("vae", dropout=0.2) for _ in range(3)]
    facts = [fit(m, rows_of_rank(90), optimizer="adamw", seed=s).facts() for m, s in zip(runs, (1, 1, 2), strict=True)]
    states = [torch.cat([w.flatten() for w in run.parameters()]) for run in runs]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    assert facts[0] == facts[1] != facts[2]
    assert "seconds" not in json.dumps(facts)


def test_what_is_around_is_left_as_it_was():
    torch.manual_seed(11)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    module = Noisy()
    module.mean.grad = torch.full((3,), math.nan)
    fit(module)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads
    assert (torch.full((100_000,), 1e-40) * 1.0).all()  # denormal numbers are numbers again
    assert not module.training and module.mean.grad is None


def test_denormals_count_as_zero_in_every_thread_while_training():
    class Tiny(Mean):
        flushed = 0

        def forward(self, batch: Batch) -> Cells:
            torch.set_num_threads(2)
            self.flushed += int((torch.full((1_000_000,), 1e-40) * 1.0).count_nonzero())
            return super().forward(batch)

    torch.set_num_threads(2)
    assert (torch.full((1_000_000,), 1e-40) * 1.0).all()  # the threads exist already
    module = Tiny()
    fit(module)
    assert module.flushed == 0


@given(st.integers(0, 2**63), st.integers(0, 2**40))
def test_mix_separates_seeds_and_steps(seed, step):
    assert len({mix(seed, step), mix(seed, step + 1), mix(seed + 1, step), mix(step, seed + 7)}) == 4
    assert 0 <= mix(seed, step) < 2**64


# why it stops


def test_it_stops_after_the_last_epoch():
    history = fit(Mean(), epochs=3)
    assert history.reason == "epochs" and [record["epoch"] for record in history.records] == [1, 2, 3]
    assert history.records[-1]["rows"] == 3 * 64


def test_it_stops_at_a_loss():
    whole = fit(Mean(), epochs=10).records
    history = fit(Mean(), epochs=10, stop_loss=whole[3]["loss"])
    assert history.reason == "loss" and len(history.records) == 4
    held_out = fit(Mean(), validation=normal(seed=1), epochs=10).records
    history = fit(Mean(), validation=normal(seed=1), epochs=10, stop_loss=held_out[2]["val_loss"])
    assert history.reason == "loss" and len(history.records) == 3


def test_it_stops_when_the_loss_converges():
    losses = [record["loss"] for record in fit(Mean(), optimizer="gd", batch_size=None, epochs=60).records]
    changes = [abs(after - before) / abs(before) for before, after in pairwise(losses)]
    first = next(i for i, change in enumerate(changes) if change < 1e-3)
    history = fit(Mean(), optimizer="gd", batch_size=None, epochs=60, tolerance=1e-3)
    assert history.reason == "converged" and len(history.records) == first + 2


def test_it_stops_when_the_weights_converge():
    class Restless(Mean):
        steps = 0

        def forward(self, batch: Batch) -> Cells:
            self.steps += 1
            return Cells(super().forward(batch).nll * (1 + 9 * (self.steps % 2)))

    # Steps of the same length, clipped: the (k + 1)th changes the weights by the share 1 / k.
    history = fit(Restless(), optimizer="gd", batch_size=None, clip=1e-3, lr=1e-3, epochs=60, tolerance=0.0501)
    assert history.reason == "converged" and len(history.records) == 21
    assert history.records[-1]["change"] == pytest.approx(1 / 20, rel=1e-3)


def test_it_stops_when_patience_is_out_and_keeps_the_best():
    module = Mean()  # the rows ahead lie beyond the held-out ones: their loss falls, then rises
    kept: list[Tensor] = []
    watch = Watch(callbacks=[lambda record: kept.append(module.mean.detach().clone())])
    rows, held_out = normal(mean=2.0), normal(mean=1.0, seed=1)
    history = fit(module, rows, held_out, epochs=50, lr=0.02, patience=4, watch=watch, clip=None)
    losses = [record["val_loss"] for record in history.records]
    best = losses.index(min(losses))
    assert history.reason == "patience" and 0 < best == history.best and len(losses) == best + 5
    assert torch.equal(module.mean.detach(), kept[best])
    assert history.best_record == history.records[best]


def test_without_validation_patience_waits_for_nothing_and_the_last_weights_stay():
    module = Mean()
    history = fit(module, epochs=8, patience=1, lr=0.9)
    assert history.reason == "epochs" and history.best == 7


@given(st.sampled_from(["constant", "cosine", "one-cycle"]), st.integers(1, 8), st.integers(2, 40))
def test_patience_counts_from_half_the_rate(schedule, patience, epochs):
    history, training = History(), Training(schedule=schedule, patience=patience)
    for epoch in range(1, epochs + 1):
        history.records.append({"epoch": epoch, "loss": 1.0, "val_loss": float(epoch), "lr": 1.0})
        history.best = 0
        reason = stop_reason(history, training, epochs)
        assert (reason == "patience") == (epoch - max(1, math.floor(half_way(schedule) * epochs)) >= patience)


def test_it_stops_when_time_is_out_within_an_epoch():
    history = fit(Mean(), rows=normal(20_000), batch_size=1, epochs=1000, time_limit=0.15)
    assert history.reason == "time" and history.records[-1]["seconds"] >= 0.15
    assert history.records[-1]["step"] % 20_000 and history.best == len(history.records) - 1


def test_the_rate_falls_with_the_time_where_that_is_ahead_of_the_rows():
    class Slow(Mean):
        def forward(self, batch: Batch) -> Cells:
            time.sleep(0.002)
            return super().forward(batch)

    history = fit(Slow(), schedule="cosine", epochs=1000, lr=1.0, time_limit=0.2)
    times = [record["seconds"] / 0.2 for record in history.records]
    assert history.reason == "time"
    for record, before, after in zip(history.records[1:], times, times[1:], strict=False):
        assert rate_share("cosine", after) <= record["lr"] <= rate_share("cosine", before)


def test_a_time_limit_that_is_far_off_changes_nothing():
    near, far = (fit(Mean(), schedule="one-cycle", time_limit=limit).facts() for limit in (None, 1e9))
    assert near == far


def test_a_callback_stops_it_and_every_callback_is_told():
    told: list[int] = []
    watch = Watch(callbacks=[lambda record: record["epoch"] == 2, lambda record: told.append(record["epoch"])])
    assert fit(Mean(), watch=watch).reason == "callback" and told == [1, 2]


def test_long_epochs_are_judged_within():
    history = fit(Mean(), normal(LONG + 500), batch_size=1, epochs=1)
    assert [(record["epoch"], record["step"]) for record in history.records] == [(1, LONG), (1, LONG + 500)]
    assert history.reason == "epochs"


# what goes wrong


def interrupt_at(step: int) -> type[Mean]:
    class Interrupted(Mean):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1
            if self.steps == step:
                os.kill(os.getpid(), signal.SIGINT)

    return Interrupted


def test_ctrl_c_keeps_the_best_model_and_says_so():
    module, held_out = interrupt_at(10)(), normal(mean=0.1, seed=1)  # held-out rows that only the start fits
    with pytest.warns(FitWarning, match=r"interrupted in epoch 3, after step \d+; the best .* of epoch 1,"):
        history = fit(module, validation=held_out, epochs=50)
    assert history.reason == "interrupted" and history.best == 0
    score = module(held_out).total().item()
    assert score == pytest.approx(history.records[0]["val_loss"], rel=1e-5)


def test_ctrl_c_at_the_first_step_keeps_the_present_weights(tmp_path):
    module = interrupt_at(1)()
    with pytest.warns(FitWarning, match="the present weights are kept"):
        history = fit(module, watch=Watch(folder=tmp_path))
    assert history.reason == "interrupted" and history.best is None and history.records == []
    assert module.mean.isfinite().all() and module.mean.any()
    assert json.loads((tmp_path / "run.json").read_text())["reason"] == "interrupted"


def broken_rows(start: int) -> Batch:
    rows = normal(64)
    rows.numbers[start:, 1] = math.nan
    return rows


class Later(Mean):
    """Breaks at a step of its own."""

    def __init__(self, step: int, value: float, gradient_only: bool = False) -> None:
        super().__init__()
        self.left, self.value, self.gradient_only = step, value, gradient_only

    def forward(self, batch: Batch) -> Cells:
        nll = super().forward(batch).nll
        self.left -= self.training
        if self.left == 0 and not self.gradient_only:
            nll = nll + torch.tensor([0.0, self.value, 0.0])
        if self.left == 0 and self.gradient_only:
            nll = nll + (self.mean * 0).sqrt()  # 0, with an infinite slope
        return Cells(nll)


class Steep(Mean):
    """A finite loss with finite gradients whose squares are not."""

    def forward(self, batch: Batch) -> Cells:
        return Cells(super().forward(batch).nll + 1e30 * (self.mean - self.mean.detach()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_loss_before_an_epoch_is_over_is_an_error_that_names_step_and_column(value):
    module = Later(3, value)
    wanted = (
        rf"the loss became {value} at step 3 \(epoch 1\), in size; wanted: finite numbers; try: a lower lr \(now 0.1"
    )
    with pytest.raises(TrainingError, match=wanted):
        fit(module, watch=Watch(cells=["age", "size", "sex"]))
    assert module.mean.isfinite().all() and not module.training


def test_a_broken_loss_later_keeps_the_best_weights_with_a_warning():
    module, kept = Later(11, math.nan), []
    watch = Watch(callbacks=[lambda record: kept.append(module.mean.detach().clone())])
    with pytest.warns(FitWarning, match=r"nan at step 11 \(epoch 3\), in cell 1; the best .* epoch 2, are kept; try:"):
        history = fit(module, watch=watch)
    assert history.reason == "diverged" and history.best == 1
    assert torch.equal(module.mean.detach(), kept[1])


def test_a_broken_gradient_does_not_reach_the_weights():
    module = Later(2, 0.0, gradient_only=True)
    with pytest.raises(TrainingError, match=r"the gradient became (nan|inf) at step 2 \(epoch 1\), in mean;"):
        fit(module)
    assert module.mean.isfinite().all() and module.mean.any()


def test_broken_validation_rows_are_named():
    watch = Watch(cells=["age", "size", "sex"])
    with pytest.raises(TrainingError, match=r"validation loss became nan at step 4 \(epoch 1\), in size;"):
        fit(Mean(), validation=broken_rows(40), watch=watch)


def test_broken_weights_are_named_with_the_last_step():
    class Bursting(Mean):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1
            if self.steps == 8:
                self.mean.data[1] = -math.inf

    with pytest.warns(FitWarning, match=r"the weights became inf at step 8 \(epoch 2\), in mean; the best .* epoch 1,"):
        history = fit(Bursting())
    assert history.reason == "diverged"


def test_of_many_broken_gradients_the_one_nearest_the_loss_comes_first():
    class Both(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.later = nn.Parameter(torch.zeros(3))

        def forward(self, batch: Batch) -> Cells:
            return Cells(super().forward(batch).nll + (self.mean * self.later).sqrt())

    with pytest.raises(TrainingError, match=r"the gradient became nan at step 1 \(epoch 1\), in later, mean;"):
        fit(Both())


def test_a_norm_of_finite_gradients_may_be_infinite():
    with pytest.raises(TrainingError, match=r"the norm of the gradient became inf at step 1 \(epoch 1\); wanted"):
        fit(Steep())


def test_a_rate_that_explodes_is_caught():
    module = Mean()
    with pytest.warns(FitWarning, match="try: a lower lr"):
        history = fit(module, clip=None, lr=30.0, epochs=20)
    assert history.reason == "diverged" and module.mean.isfinite().all()


def test_empty_streams_are_refused():
    with pytest.raises(DataError, match="no training rows"):
        fit(Mean(), normal(0))
    with pytest.raises(DataError, match="no validation rows"):
        fit(Mean(), validation=normal(0))


def test_gradient_descent_refuses_to_be_cut_into_batches():
    with pytest.raises(SettingError, match="optimizer='gd' on rows that came in several"):
        train(Mean(), Resident(normal(), 10), None, Training(optimizer="gd"), epochs=1)


@pytest.mark.parametrize(("options", "wanted"), [({"epochs": 0}, "epochs=0"), ({"epochs": 1, "lr": -1.0}, "lr=-1.0")])
def test_plans_out_of_range_are_refused(options, wanted):
    with pytest.raises(SettingError, match=wanted):
        train(Mean(), Resident(normal(), 10), None, Training(), **options)


# settings

BAD = {
    "batch_size": [0, 1.5, True, "32"],
    "optimizer": ["Adam", None],
    "schedule": ["step"],
    "weight_decay": [-1, math.nan, "0.1"],
    "clip": [0, math.inf],
    "patience": [0, 2.5],
    "stop_loss": [math.nan, "1"],
    "tolerance": [0, -1],
    "time_limit": [0],
    "validation": [-0.1, 1.0, True],
    "group": [3],
    "balance": [3],
    "balance_power": [0, 1.5, None],
    "time": [0.5],
    "budget": [-1],
    "precision": ["float16"],
    "checkpoint_every": [-1, None],
    "sync": ["sometimes", "local", "local:0", "every:2", "async:x", None],
}


def test_every_setting_is_checked_by_name():
    assert set(BAD) == set(Training().get_params())
    Training().check()
    for name, values in BAD.items():
        for value in values:
            with pytest.raises(SettingError, match=f"training setting {name}={value!r}"):
                Training(**{name: value}).check()
    with pytest.raises(SettingError, match="batch_size=8 with optimizer='gd'"):
        Training(optimizer="gd", batch_size=8).check()


def test_settings_speak_scikit_learn():
    training = Training(batch_size=7, optimizer="muon")
    copy = clone(training)
    assert copy == training and copy is not training
    assert copy.set_params(clip=None).clip is None
    with pytest.raises(SettingError, match="no training setting 'momentum'"):
        copy.set_params(clip=2.0, momentum=0.9)
    assert copy.clip is None


@given(st.integers(1, 10**9), st.integers(1, 10**4))
def test_step_rows_follow_the_rows_and_few_epochs_are_of_smaller_steps(rows, epochs):
    size, smaller = Training().step_rows(rows), Training().step_rows(rows, epochs)
    assert smaller & (smaller - 1) == 0 and 32 <= smaller <= size
    assert smaller == 32 or epochs * rows >= 150 * smaller
    assert smaller == size or epochs * rows < 150 * 2 * smaller
    assert Training(batch_size=9).step_rows(rows, 1) == 9
    assert 32 <= size <= 1024 and size & (size - 1) == 0
    assert Training().step_rows(None) == 512 and Training(batch_size=9).step_rows(rows) == 9
    assert Training(optimizer="gd").step_rows(rows) == rows


def test_an_unknown_number_of_rows_needs_a_constant_rate():
    class Unknown(Resident):
        def __init__(self) -> None:
            super().__init__(normal(), 16)
            self.rows = None

    with pytest.raises(SettingError, match="unknown number of rows"):
        train(Mean(), Unknown(), None, Training(), epochs=1)
    history = train(Mean(), Unknown(), None, Training(schedule="constant"), epochs=2)
    assert history.records[-1]["rows"] == 128
    with pytest.raises(SettingError, match="unknown number of rows"):
        train(Mean(), Unknown(), None, Training(schedule="constant", optimizer="gd"), epochs=1)


# rows in memory


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 5), st.booleans())
def test_resident_gives_every_row_once_an_epoch_and_goes_on_from_any_position(rows, size, epoch, shuffle):
    numbers = torch.arange(rows, dtype=torch.float32).reshape(rows, 1)
    codes, seen = torch.arange(rows).reshape(rows, 1), torch.arange(2 * rows).reshape(rows, 2) % 3 == 0
    stream = Resident(Batch(numbers, codes, seen, numbers[:, 0]), size, seed=3, shuffle=shuffle)
    items = list(stream.epoch(epoch))
    assert [len(batch) for batch, _ in items] == [min(size, rows - start) for start in range(0, rows, size)]
    order = [int(code) for batch, _ in items for code in batch.codes]
    assert sorted(order) == list(range(rows))
    if not shuffle:
        assert order == list(range(rows))
    for part, _ in items:
        assert torch.equal(part.numbers[:, 0], part.weight) and torch.equal(part.seen, seen[part.codes[:, 0]])
    for at, (_, position) in enumerate(items):
        rest = [int(code) for batch, _ in stream.epoch(epoch, position) for code in batch.codes]
        assert rest == order[(at + 1) * size :]


def test_resident_shuffles_every_epoch_anew():
    stream = Resident(batch(torch.arange(100.0)[:, None]), 100 - 1)
    orders = [torch.cat([part.numbers for part, _ in stream.epoch(n)]).flatten().tolist() for n in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    with pytest.raises(SettingError, match="batch_size=0"):
        Resident(normal(), 0)


# devices


def test_devices_are_chosen_or_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type == choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:97", "quantum", "meta:"):
        with pytest.raises(SettingError, match=f"device '{name}'"):
            choose_device(name)


def test_precision_follows_sizes_and_settings():
    wide, small, cpu = nn.Linear(1000, 1000), nn.Linear(10, 10), torch.device("cpu")
    expected = torch.bfloat16 if gains_by_bfloat16(cpu) else None
    assert choose_precision(wide, 512, cpu, "auto") is expected
    assert choose_precision(wide, 32, cpu, "auto") is None
    assert choose_precision(small, 512, cpu, "auto") is None
    assert choose_precision(wide, 512, cpu, "float32") is None
    assert choose_precision(small, 1, cpu, "bfloat16") is torch.bfloat16


@pytest.mark.parametrize(
    ("features", "has", "gains"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, True, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True, True),
        ({"cpu_name": "AMD EPYC", "avx2": True}, False, False),
        ({"architecture": "aarch64"}, False, False),
    ],
)
def test_bfloat16_is_for_processors_that_gain_by_it(features, has, gains, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    cpu = torch.device("cpu")
    assert (has_bfloat16(cpu), gains_by_bfloat16(cpu)) == (has, gains)
    chosen = choose_precision(nn.Linear(1000, 1000), 512, cpu, "auto")
    assert chosen is (torch.bfloat16 if gains else None)


def test_bfloat16_learns_what_float32_learns():
    losses = {}
    for precision in ("float32", "bfloat16"):
        history = fit(small_module(), rows_of_rank(300), optimizer="adamw", lr=0.01, epochs=15, precision=precision)
        losses[precision] = history.records[-1]["loss"]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


def test_small_work_gets_one_thread():
    torch.set_num_threads(2)
    with threads_for(nn.Linear(100, 10), 32):
        assert torch.get_num_threads() == 1
    with threads_for(nn.Linear(1000, 1000), 512):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2


KEPT = """
import resource
import torch
from narrows.train.devices import memory_kept

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.empty(1 << 21).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
without = new_pages()
with memory_kept():
    new_pages()
    print(without, new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_a_step_frees_is_used_again():
    told = subprocess.run([sys.executable, "-c", KEPT], check=True, capture_output=True, text=True).stdout
    without, kept = map(int, told.split())
    assert without > 1000 and kept < 50


# what is shown


def test_nothing_is_printed_without_a_terminal(capfd):
    fit(Mean(), watch=Watch(verbose=1))
    fit(Mean(), watch=Watch(verbose=0))
    assert capfd.readouterr() == ("", "")


def test_a_line_an_epoch(capfd):
    fit(Mean(), validation=normal(seed=1), epochs=3, watch=Watch(verbose=2))
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 3
    assert lines[0].startswith("epoch 1/3  loss ") and " val " in lines[0]


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    watch = Watch(verbose=1)
    fit(Mean(), normal(4000), normal(seed=1), batch_size=1, epochs=2, watch=watch)
    import sys

    text = sys.stderr.getvalue()
    assert "epoch 2/2" in text and "loss" in text and "val" in text and "rows/s" in text
