"""Steps that are queued, not waited for: how a GPU trains.

The host asks for one step after the other and looks at what they gave now and then: at a record, at a checkpoint, ten
times a second for the bar. Between two looks nothing is read from the GPU. Loss, clipping and the question whether all
is finite stay there (see `Ledger`); from the first step that broke on, weights stay as they were, so the step can be
taken once more at the look, waited for, to say what broke. Averages that layers keep of their batches are not guarded.

The numbers are those of a `Stepper` but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from narrows import world
from narrows.schema import Batch, Stream
from narrows.train.graphs import Act, Replayed, recorded
from narrows.train.ledger import Ledger
from narrows.train.optimizers import Optimizer
from narrows.train.randomness import VALIDATION
from narrows.train.settings import Training
from narrows.train.state import Heard
from narrows.train.step import Broken, Stepper, objective
from narrows.train.sync import Alone


class Queued:
    """A stepper that does not wait for its steps.

    Args:
        stepper: whose steps they are.
        record: makes of an act one that repeats it, for modules that repeat (see `Replayed`); None for none.
    """

    def __init__(self, stepper: Stepper, record: Callable[[Act], Act] | None) -> None:
        self._stepper, self.device = stepper, stepper.device
        self._optimizer = stepper.optimizer
        self._rate = torch.zeros((), device=self.device)
        self._ledger = Ledger(self.device)
        self._judged = torch.zeros(2, dtype=torch.float64, device=self.device)  # mass and loss of validation rows
        self._optimizer.heed(self._ledger.halted)
        repeats = getattr(stepper.module, "repeats", False)
        telling = partial(_telling, stepper.optimizer, record) if record and repeats else None
        self._moves, self._judgments = Replayed(telling), Replayed(telling)

    def step(self, batch: Batch, number: int, lr: float, done: float = 1.0) -> Heard:
        """Queue what `Stepper.step` does; of its loss nothing is heard before `settle`."""
        self._stepper.prepare(batch, number, done)
        self._rate.fill_(lr)
        self._moves.act(self._queue, batch if batch.numbers.device == self.device else batch.to(self.device))
        return Heard(0.0, 0.0, len(batch))

    def settle(self, step: int) -> tuple[float, float]:
        """Mass and loss, each summed over rows, of the steps since the last look. Waits for them.

        Args:
            step: steps taken in all.

        Raises:
            Broken: when one of them broke: without names, see `retake`; the weights are those before it.
        """
        sums = self._ledger.read()
        if sums.spoilt:
            what, value = ("norm of the gradient", sums.norm) if math.isfinite(sums.loss) else ("loss", sums.loss)
            raise Broken(what, value, step - sums.spoilt + 1)
        return sums.mass, sums.loss

    def retake(self, batch: Batch, number: int, done: float = 1.0) -> None:
        """As `Stepper.retake`, waiting for it."""
        self._stepper.retake(batch, number, done)

    def validate(self, stream: Stream, steps: int) -> float:
        """As `Stepper.validate`, waiting only for the mean."""
        module = self._stepper.module
        self._judged.zero_()
        module.eval()
        for number, (batch, _) in enumerate(stream.epoch(0)):
            self._stepper.seed_for(batch, VALIDATION + number)
            self._judgments.act(self._weigh, batch if batch.numbers.device == self.device else batch.to(self.device))
        module.train()
        mass, loss = self._judged.tolist()
        # what is wrong is for the one that waits to say
        return loss / mass if mass and math.isfinite(loss) else self._stepper.validate(stream, steps)

    def _queue(self, batch: Batch) -> None:
        """One step; what it reads and writes is on the device, so that it can be recorded."""
        self._optimizer.forget()
        loss, total = self._stepper.loss(batch, self._stepper.module)
        objective(loss, total).backward()  # type: ignore[no-untyped-call]
        norm = self._optimizer.shorten(self._stepper.clip)
        self._ledger.enter(_mass(batch), total, norm)
        self._optimizer.step(self._rate)
        self._stepper.finish()

    @torch.no_grad()
    def _weigh(self, batch: Batch) -> None:
        """The loss of some validation rows."""
        total = self._stepper.loss(batch, self._stepper.module)[1].double()
        mass = _mass(batch)
        self._judged += torch.stack([mass, mass * total])


def _telling(optimizer: Optimizer, record: Callable[[Act], Act], act: Act) -> Act:
    """Record an act, and tell the optimizer so."""
    with optimizer.recording():
        return record(act)


def _mass(batch: Batch) -> Tensor:
    """() float64 what a batch counts for in a mean over batches, as `mass_of` has it, where the batch is."""
    if batch.weight is None:
        return torch.full((), float(len(batch)), dtype=torch.float64, device=batch.numbers.device)
    return batch.weight.sum().double()


def make_stepper(
    module: nn.Module, optimizer: Optimizer, training: Training, rows: int, seed: int, sync: Alone | None = None
) -> Stepper | Queued:
    """The stepper for the device where the module is: one that queues on a GPU, one that waits elsewhere.

    Of several processes each waits for its steps: what they exchange in each is a number on the host.
    """
    stepper = Stepper(module, optimizer, training, rows, seed, sync)
    return Queued(stepper, recorded) if stepper.device.type == "cuda" and world.size() == 1 else stepper
