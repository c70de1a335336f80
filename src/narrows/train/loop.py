"""The one training loop: batches and a module in, the best weights in the module and a history out.

It trains anything whose `forward(batch)` gives a loss that can be totaled. Every draw is a function of (seed, step)
and the state is whole between any two steps, so a run that was killed goes on bit for bit as if it had not been (on
one kind of CPU, and without a time limit, which lets the clock set the rate). What it does not know: what the module
is, and where the rows come from.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from torch import nn

from narrows import world
from narrows.errors import DataError, FitWarning, SettingError, TrainingError
from narrows.schema import Stream
from narrows.stopwatch import spent, timed
from narrows.train.averaging import make_sync
from narrows.train.checkpoint import FREE, RunFolder, shared
from narrows.train.devices import denormals_as_zero, memory_kept, own_stream, tensor_float, threads_for
from narrows.train.optimizers import default_rate, make_optimizer, rate_share, settled
from narrows.train.progress import Bar
from narrows.train.queued import make_stepper
from narrows.train.randomness import kept
from narrows.train.settings import Record, Training, Watch
from narrows.train.state import State
from narrows.train.step import Broken
from narrows.train.stops import FINISHED, History, stop_reason
from narrows.train.sync import SAVE, STOP
from narrows.train.upload import uploaded

LONG = 10_000  # steps after which an epoch that is not over yet is recorded, validated and judged
BLINK = 0.1  # seconds between two looks at what goes by the clock: the bar, the checkpoint, the time limit


def train(
    module: nn.Module,
    stream: Stream,
    validation: Stream | None,
    training: Training,
    *,
    epochs: int,
    lr: float | None = None,
    seed: int = 0,
    watch: Watch | None = None,
) -> History:
    """Train a module on the device where it is, and leave the best weights in it, in eval mode.

    Best means the lowest validation loss, or without validation rows the last. Ctrl-C ends training as if it were
    over, with a warning; so does a loss or gradient that is not finite, once an epoch was finished. The caller's
    random state, number of threads and treatment of denormal numbers are given back as they were. In the body of
    `world.together` all processes call it alike and train one module, by what `Training.sync` says.

    Args:
        module: `module(batch)` gives a `Loss`; if it has methods `before_step(done)` and `after_step()`, they are
            called around every step.
        stream: of training rows; see `Training.step_rows` for the batch size that it should give.
        validation: of rows held out; its epoch 0 is read after every epoch.
        training: how to train.
        epochs: to train at most.
        lr: peak learning rate; None takes the optimizer's own, see `default_rate`.
        seed: decides every draw.
        watch: folder, progress and callbacks; None for none.

    Raises:
        SettingError: for settings out of range, or other than those of the run to go on with.
        DataError: when a stream is empty.
        TrainingError: when the loss is not finite before an epoch was finished; the weights are those before.
    """
    training.check()
    if epochs < 1:
        raise SettingError(f"epochs={epochs}", "at least 1")
    if lr is not None and not 0 < lr < math.inf:
        raise SettingError(f"lr={lr}", "a number above 0, or None")
    rate = None if lr is None else float(lr)
    training = settled(training, module, training.step_rows(stream.rows, epochs))
    with spent("set up"):
        run = _Run(module, (stream, validation), training.plain(), int(epochs), rate, int(seed), watch or Watch())
    with run.settled():
        warning = run.run()
    if warning:
        warnings.warn(FitWarning(warning), stacklevel=2)
    return run.state.history


class _Run:
    """One call of `train`: its state, and the clock."""

    def __init__(
        self,
        module: nn.Module,
        streams: tuple[Stream, Stream | None],
        training: Training,
        epochs: int,
        lr: float | None,
        seed: int,
        watch: Watch,
    ) -> None:
        (self.stream, self.validation), self.training, self.watch = streams, training, watch
        self.epochs, self.rows = epochs, self.stream.rows
        if self.rows is None and training.schedule != "constant":
            raise SettingError(f"schedule={training.schedule!r} on an unknown number of rows", "schedule='constant'")
        self.state = State(module, make_optimizer(module, training), snapshots=self.watch.snapshots)
        self.sync = make_sync(module, training.sync)
        rows = training.step_rows(self.rows, self.epochs)
        self.peak = lr if lr is not None else default_rate(training.optimizer, module, rows)
        self.stepper = make_stepper(module, self.state.optimizer, training, rows, seed, self.sync)
        self.stream = uploaded(self.stream, self.stepper.device)
        self.validation = self.validation and uploaded(self.validation, self.stepper.device)
        self.looked: tuple[int, dict[str, int] | None] = 0, None  # step and position when its losses were last asked
        first = world.rank() == 0
        self.folder = RunFolder(watch.folder, self._identity(seed)) if watch.folder and first else None
        self.bar = Bar(watch.verbose if first else 0, epochs, self.rows)
        self.began = self.due = self.wake = 0.0

    def _identity(self, seed: int) -> dict[str, Any]:
        """What a run that goes on with this one must share."""
        settings = {name: value for name, value in self.training.get_params().items() if name not in FREE}
        rows = {"rows": self.rows, "validation_rows": self.validation and self.validation.rows}
        return {**settings, **rows, "epochs": self.epochs, "lr": self.peak, "seed": seed, **self.watch.about}

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Everything around the run that training changes: changed, and changed back."""
        with ExitStack() as stack:
            stack.callback(self.state.module.eval)
            stack.callback(self.state.optimizer.forget)
            stack.enter_context(kept(self.stepper.device))
            stack.enter_context(threads_for(self.state.module, self.training.step_rows(self.rows, self.epochs)))
            stack.enter_context(denormals_as_zero())
            stack.enter_context(memory_kept())
            stack.enter_context(own_stream(self.stepper.device))
            stack.enter_context(tensor_float(self.stepper.device, self.training.precision != "float32"))
            stack.enter_context(self.bar)
            self.state.optimizer.forget()
            yield

    def run(self) -> str:
        """Train to the end; what the user should be warned of, or nothing."""
        self._begin()
        warning = ""
        try:
            self._train()
            self._save()
        except KeyboardInterrupt:
            if world.size() > 1:  # the others wait for a step that will not come
                raise
            warning = self._interrupted()
        except Broken as broken:
            if not self.sync.unanimous:  # the others know nothing of it, and go on until this process is gone
                raise TrainingError(f"the {broken.what} became {broken.value} at step {broken.step}") from None
            warning = self._diverged(broken)
        finally:
            self.bar.show(self.state.place)
            if self.folder:
                self.folder.finish(self.state.history.reason or "failed")
        if self.validation is not None or self.state.history.reason == "diverged":
            self.state.restore_best()
        self.sync.close()
        self.state.history = self.state.history.shared()
        return warning

    def _begin(self) -> None:
        if self.watch.folder:
            resume = any(world.sums(self.watch.resume))  # a launcher may tell only some that it started them again
            with world.agreed():
                found = self.folder.read() if self.folder and resume else None
            found = shared(found)
            if found:
                self.state.load(*found, self.stream.common)
                if self.state.history.reason not in FINISHED:
                    self.state.history.reason = ""
            with world.agreed():
                if self.folder:
                    self.folder.open(self.state.history.records, resumed=found is not None)
        now = time.monotonic()
        self.began, self.due = now - self.state.place.seconds, now + self.training.checkpoint_every
        self.looked = self.state.place.step, self.state.place.position
        self.state.module.train()
        self._snap()

    def _train(self) -> None:
        place, history = self.state.place, self.state.history
        while not history.reason:
            for batch, position in timed("batches", self.sync.epoch(self.stream, place.epoch, place.position)):
                done = self._done()
                place.lr = self.sync.pace * self.peak * rate_share(self.training.schedule, done)
                place.advance(position, self.stepper.step(batch, place.step, place.lr, done))
                if place.steps >= LONG:
                    self._record()
                if time.monotonic() >= self.wake:
                    self._look_up()
                self._heed()
                if history.reason:
                    break
            else:
                self._close_epoch()
        if place.steps:  # out of time within an epoch
            self._record()

    def _done(self) -> float:
        """Share of the planned rows that has been seen, or of the time limit that is used up, whichever is more.

        Where neither is known the rate is constant, and weights that rise have risen.
        """
        place, limit = self.state.place, self.training.time_limit
        if self.rows is None and limit is None:
            return 1.0
        rows = (place.epoch + place.epoch_rows / self.rows) / self.epochs if self.rows else 0.0
        return rows if limit is None else max(rows, self.sync.clock(time.monotonic() - self.began) / limit)

    def _close_epoch(self) -> None:
        """Record what is not yet recorded of the epoch, and go to the next or stop."""
        place, history = self.state.place, self.state.history
        if not place.epoch_rows:
            raise DataError("no training rows", "at least one")
        if self.training.optimizer == "gd" and place.step > place.epoch + 1:
            raise SettingError("optimizer='gd' on rows that came in several batches", "all rows in one", "sgd")
        if place.steps:
            self._record()
        place.close_epoch()
        self.looked = place.step, None
        self._snap()
        if not history.reason and place.epoch >= self.epochs:
            history.reason = "epochs"
        if time.monotonic() >= self.wake:
            self._look_up()
        self._heed()

    def _record(self) -> None:
        """Validate, write down how training stands, keep the weights if they are the best, and judge."""
        self._settle()
        place, history = self.state.place, self.state.history
        if not (self.sync.leads or self.sync.marches):
            place.close_record()
            return
        self.sync.settle()
        if broken := self.state.optimizer.broken():
            raise Broken("weights", next(iter(broken.values())), place.step, weights=list(broken))
        record: Record = {"epoch": place.epoch + 1, "step": place.step, "rows": place.rows}
        loss, mass = self.sync.recorded(place.loss, place.mass)
        record |= {"loss": loss / mass, "lr": place.lr}
        if self.validation is not None:
            with self.sync.looking(), spent("validate"):
                record["val_loss"] = self.stepper.validate(self.validation, place.step)
        if self.training.tolerance is not None and (change := self.state.change()) is not None:
            record["change"] = change
        record["seconds"] = place.seconds = time.monotonic() - self.began
        self.state.close_record(record)
        self._publish(record)
        history.reason = history.reason or stop_reason(history, self.training, self.epochs)

    def _settle(self) -> None:
        """Count what the steps since the last look gave, where nobody waited for it."""
        place = self.state.place
        try:
            place.add(*self.stepper.settle(place.step))
        except Broken as broken:
            self._retake(broken.step - 1)
            raise
        self.looked = place.step, place.position

    def _retake(self, number: int) -> None:
        """Take a step that broke once more, and wait for it, to learn what broke: no weight has moved since."""
        step, position = self.looked
        for batch, _ in islice(self.stream.epoch(self.state.place.epoch, position), number - step, number - step + 1):
            self.stepper.retake(batch, number, self._done())

    def _publish(self, record: Record) -> None:
        self.bar.record(record)
        if self.folder:
            self.folder.record(record)
        answers = [bool(callback(record)) for callback in self.watch.callbacks]
        if self.watch.callbacks and any(self.sync.sums(any(answers))):
            self.state.history.reason = "callback"

    def _snap(self) -> None:
        """Take the snapshot between epochs that is due."""
        place, snapshots = self.state.place, self.state.snapshots
        if snapshots is not None and not place.epoch_rows:
            snapshots.offer(self.state.module, place.epoch, self.epochs)

    def _look_up(self) -> None:
        """See to what goes by the clock: the bar, the checkpoint, the time limit; of several, rank 0's."""
        self._settle()
        now, place = time.monotonic(), self.state.place
        place.seconds = now - self.began
        self.bar.show(place)
        limit = self.training.time_limit
        over = limit is not None and place.seconds >= limit
        self.sync.say(SAVE * (now >= self.due) | STOP * over, place.seconds)
        left = math.inf if limit is None else max(limit - place.seconds, 0.0)
        self.wake = now + min(BLINK, self.training.checkpoint_every, left)

    def _heed(self) -> None:
        """Do what the clock said, at the same step in all processes."""
        said = self.sync.heed()
        if said & SAVE:
            self._save()
        if said & STOP and not self.state.history.reason:
            self.state.history.reason = "time"

    def _save(self) -> None:
        if not self.watch.folder:
            return
        began = time.monotonic()
        self.sync.settle()
        positions = self.sync.positions(self.state.place.position)
        if self.folder:
            with spent("write"):
                self.folder.save(self.state.facts(positions), self.state.tensors())
        now, every = time.monotonic(), self.training.checkpoint_every
        # A large state takes seconds to write: no more than a twentieth of the time is spent on that.
        self.due = now + (max(every, 19 * (now - began)) if every else 0.0)

    def _interrupted(self) -> str:
        self.state.history.reason = "interrupted"
        place, best = self.state.place, self.state.history.best_record
        kept_weights = "the present weights are kept"
        if self.validation is not None and best is not None:
            kept_weights = f"the best weights so far, of epoch {best['epoch']}, are kept"
        return f"training was interrupted in epoch {place.epoch + 1}, after step {place.step}; {kept_weights}"

    def _diverged(self, broken: Broken) -> str:
        """Say what broke, where and what to try; as an error where no epoch was finished."""
        self.state.history.reason = "diverged"
        best, epoch = self.state.history.best_record, self.state.place.epoch + 1
        cells = [self.watch.cells[cell] if cell < len(self.watch.cells) else f"cell {cell}" for cell in broken.cells]
        where = _listed([*cells, *broken.weights])
        got = f"the {broken.what} became {broken.value} at step {broken.step} (epoch {epoch}){where}"
        limit = f"a smaller clip (now {self.training.clip})" if self.training.clip else "clip=1.0"
        hint = f"a lower lr (now {self.peak:g}), {limit}, or precision='float32'"
        if best is None:
            raise TrainingError(got, "finite numbers", hint)
        return f"{got}; the best weights so far, of epoch {best['epoch']}, are kept; try: {hint}"


def _listed(names: list[str]) -> str:
    """Where it happened: the first three names, and how many more."""
    if not names:
        return ""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f", in {', '.join(names[:3])}{rest}"
