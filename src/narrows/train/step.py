"""One step on one batch, and one pass over validation rows: the only code that runs the module.

Each step asks whether loss and gradient are finite before it moves the weights, so no bad batch can poison them. On a
GPU that would wait for the step to end: there steps are queued (see `narrows.train.queued`). What it does not know:
epochs, stops and files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from narrows.errors import DataError
from narrows.schema import Batch, Stream
from narrows.train.devices import choose_precision
from narrows.train.optimizers import Optimizer
from narrows.train.randomness import VALIDATION, seed_step
from narrows.train.settings import Training
from narrows.train.state import mass_of


class Loss(Protocol):
    """What a module's forward pass gives."""

    def total(self) -> Tensor:
        """The one number to minimize: summed over cells, averaged over weighted rows."""
        ...

    def broken(self) -> list[int]:
        """Positions of the cells that made it NaN or infinite."""
        ...

    @property
    def opposing(self) -> Tensor | None:
        """What weights that train against the rest are to minimize, in the same step; None without such."""
        ...


class Broken(Exception):
    """A number that is not finite.

    Args:
        what: it is.
        value: NaN or infinite.
        step: that made it, counted from 1.
        cells: positions of those it came from.
        weights: names of those it was met in.
    """

    def __init__(
        self, what: str, value: float, step: int, cells: Sequence[int] = (), weights: Sequence[str] = ()
    ) -> None:
        super().__init__(what, value, step, cells, weights)
        self.what, self.value, self.step, self.cells, self.weights = what, value, step, cells, weights


class Stepper:
    """Takes steps with a module and its optimizer.

    Args:
        module: `module(batch)` gives a `Loss`; if it has methods `before_step(done)` and
            `after_step()`, they are called around every step.
        optimizer: of its weights.
        training: `clip` and `precision` are used.
        rows: of a usual step; decides with the sizes of the weights whether bfloat16 repays.
        seed: decides, with the number of the step, every draw in it.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, training: Training, rows: int, seed: int) -> None:
        self.module, self.optimizer, self.clip, self.seed = module, optimizer, training.clip, seed
        self.device = optimizer.weights[0].device
        self.precision = choose_precision(module, rows, self.device, training.precision)
        self._before: Callable[[float], None] | None = getattr(module, "before_step", None)
        self._after: Callable[[], None] | None = getattr(module, "after_step", None)

    def step(self, batch: Batch, number: int, lr: float, done: float = 1.0) -> float:
        """Move the weights by a step with this number (from 0) and learning rate; the loss before it.

        `done` is the share of training that went before, where that is known.

        Raises:
            Broken: when the loss or the gradient is not finite; the weights have not moved then.
        """
        value = self.learn(batch, number, done)
        self.optimizer.step(lr)
        self.finish()
        return value

    def settle(self, step: int) -> tuple[float, float]:
        """Mass and loss of steps that were not waited for: there are none."""
        return 0.0, 0.0

    def retake(self, batch: Batch, number: int, done: float = 1.0) -> None:
        """Take a step that broke once more, as far as to the weights.

        Raises:
            Broken: naming what did; not where it happens to be finite now.
        """
        self.optimizer.forget()
        self.learn(batch, number, done)
        self.optimizer.forget()

    def prepare(self, number: int, done: float) -> None:
        """Seed the draws of a step with this number, and tell the module."""
        seed_step(self.seed, number, self.device)
        if self._before is not None:
            self._before(done)

    def learn(self, batch: Batch, number: int, done: float = 1.0) -> float:
        """What a step does as far as to the weights: leave them their gradients; the loss.

        Raises:
            Broken: as `step`.
        """
        self.prepare(number, done)
        total, value = self._loss(batch, "loss", number + 1)
        total.backward()  # type: ignore[no-untyped-call]
        norm = self.optimizer.clip(self.clip)
        if not math.isfinite(norm):
            broken = self.optimizer.broken(gradients=True)
            what, value = ("gradient", next(iter(broken.values()))) if broken else ("norm of the gradient", norm)
            raise Broken(what, value, number + 1, weights=list(broken))
        return value

    def finish(self) -> None:
        """Tell the module that its weights have moved."""
        if self._after is not None:
            self._after()

    def loss(self, batch: Batch) -> tuple[Loss, Tensor]:
        """What the module says of a batch, and the () total of it."""
        if batch.numbers.device != self.device:
            batch = batch.to(self.device)
        with self._autocast():
            loss: Loss = self.module(batch)
            return loss, loss.total()

    def validate(self, stream: Stream, steps: int) -> float:
        """Mean loss over the rows of a stream, with draws that are the same each time.

        Args:
            stream: its epoch 0 is read.
            steps: taken so far, to be named if the loss is broken.

        Raises:
            Broken: when it is not finite.
            DataError: when there are no rows.
        """
        loss = mass = 0.0
        seed_step(self.seed, VALIDATION, self.device)
        self.module.eval()
        with torch.no_grad():
            for batch, _ in stream.epoch(0):
                share = mass_of(batch)
                loss, mass = loss + share * self._loss(batch, "validation loss", steps)[1], mass + share
        self.module.train()
        if not mass:
            raise DataError("no validation rows", "at least one", "validation=0 to train without")
        return loss / mass

    def _loss(self, batch: Batch, what: str, step: int) -> tuple[Tensor, float]:
        loss, total = self.loss(batch)
        value = total.item()
        if not math.isfinite(value):
            raise Broken(what, value, step, cells=loss.broken())
        return (total if loss.opposing is None else total + loss.opposing), value

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)
