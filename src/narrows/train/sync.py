"""How several processes train one module: what they exchange in a step, and what is said between steps.

    loss of own rows -> backward -> [ gradients, loss, rows, rank 0's clock: summed over processes ] -> one step of all

`Alone` is one process, for which all of this is nothing. `Every` is data-parallel training by torch's
DistributedDataParallel (Li et al. 2020): the mean over the rows of all processes, however uneven their shares, so that
two processes take the steps that one would take with the same batch. The trade-off: every step waits for the slowest.
`averaging.py` has those that do not. What this file does not know: epochs, records and files.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from narrows import world
from narrows.errors import WorldError
from narrows.schema import Batch, Stream, weightless
from narrows.train.state import Heard, mass_of

SAVE, STOP = 1, 2  # what rank 0's clock may say, as flags: a checkpoint is due, the time is up


class Alone:
    """One process.

    Args:
        module: that is trained.

    Attributes:
        leads: whether this process validates, records and writes.
        marches: whether all processes take the same steps at the same time.
        unanimous: whether a step that breaks for one breaks for all.
        pace: how many times as long as otherwise a step is.
    """

    leads = True
    marches = True
    unanimous = True
    pace = 1.0

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._word, self._seconds = 0, 0.0

    def epoch(
        self, stream: Stream, number: int, position: Mapping[str, int] | None
    ) -> Iterator[tuple[Batch, dict[str, int]]]:
        """The batches of an epoch that fall to this process, and positions behind them."""
        return stream.epoch(number, position)

    def seeds(self, seed: int, batch: Batch) -> int:
        """The seed of this process's draws: of rows that all draw for, the common one."""
        return seed

    def drawing(self, batch: Batch) -> AbstractContextManager[None]:
        """Around whatever draws for the rows of a batch."""
        return world.drawing(None)

    def forward(self, batch: Batch) -> Any:
        """The module's loss."""
        return self.module(batch)

    def backward(self, total: Tensor, value: float, batch: Batch) -> Heard:
        """Leave in the weights the gradient of the mean over the rows of all.

        Args:
            total: loss of the own rows, with what opponents want.
            value: of the loss alone.
            batch: the own rows.
        """
        total.backward()  # type: ignore[no-untyped-call]
        return Heard(value, mass_of(batch), len(batch))

    def stepped(self) -> None:
        """Told after each step."""

    def settle(self) -> None:
        """Make the weights of all processes one, before they are looked at."""

    def looking(self) -> AbstractContextManager[None]:
        """Around looks at validation rows."""
        return nullcontext()

    def recorded(self, loss: float, mass: float) -> tuple[float, float]:
        """Training loss and rows since the last record, of all processes."""
        return loss, mass

    def positions(self, own: dict[str, int] | None) -> list[dict[str, int] | None]:
        """Where each process stands in its stream, by rank; as far as they can go on from there."""
        return [own]

    def sums(self, *numbers: float) -> list[float]:
        """Sums over the processes that look at the same thing."""
        return [*numbers]

    def say(self, word: int, seconds: float) -> None:
        """What rank 0's clock has to say: flags, and the seconds of training."""
        self._word, self._seconds = self._word | word, seconds

    def heed(self) -> int:
        """The flags that all are to heed now, each once."""
        word, self._word = self._word, 0
        return word

    def clock(self, own: float) -> float:
        """The seconds of training that all go by."""
        return own

    def close(self) -> None:
        """Let all processes end with rank 0's weights."""


class Several(Alone):
    """What all ways of several processes share."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.leads = world.rank() == 0
        self.over = False

    def epoch(
        self, stream: Stream, number: int, position: Mapping[str, int] | None
    ) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Own batches; of a stream that others may have more of, then weightless ones until all have ended."""
        self.over = stream.common
        at, last = dict(position or {}), None
        for batch, at in stream.epoch(number, position):
            last = weightless(batch) if last is None else last
            yield batch, at
        while not self.over:
            if last is None:
                raise no_rows(number)
            yield last, at

    def seeds(self, seed: int, batch: Batch) -> int:
        """Of rows that are this process's own affair, one of its own."""
        return seed if self._draws_for_all(batch) else seed + 0x9E3779B9 * world.rank()

    def drawing(self, batch: Batch) -> AbstractContextManager[None]:
        """Draws for all rows of a common batch, of which the own ones are used, where that is affordable."""
        return world.drawing(batch.span if self._draws_for_all(batch) else None)

    def _draws_for_all(self, batch: Batch) -> bool:
        return batch.span is not None and world.size() <= world.MOST_DRAWN

    def sums(self, *numbers: float) -> list[float]:
        """Over all processes."""
        return world.sums(*numbers)

    def positions(self, own: dict[str, int] | None) -> list[dict[str, int] | None]:
        """Of all processes."""
        return [json.loads(word) for word in world.gathered(json.dumps(own).encode())]

    def close(self) -> None:
        """Rank 0's weights and buffers for all."""
        for tensor in self.module.state_dict().values():
            world.same(tensor)


def no_rows(epoch: int) -> WorldError:
    """What a process says that has nothing to train on, in an epoch counted from 0."""
    got = f"rank {world.rank()} of {world.size()} has no rows in epoch {epoch + 1}"
    return WorldError(got, "rows for each", "fewer processes, or more and smaller files")


class Every(Several):
    """Gradients are averaged in every step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._ledger = _Ledger(module)
        with warnings.catch_warnings():
            # torch 2.13 has a new name for it, which 2.11 does not know
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated")
            # constant buffers need no sending, and the others are few: `stepped` sees to them
            self._parallel = DistributedDataParallel(self._ledger, broadcast_buffers=False)
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        names = module.state_dict().keys() - dict(module.named_parameters()).keys()
        self._buffers = [buffer for name, buffer in sorted(module.named_buffers()) if name in names]
        self._saying, self._heard_seconds = 0, 0.0

    def forward(self, batch: Batch) -> Any:
        """The loss, in a pass whose gradients will be averaged."""
        return self._parallel(batch)

    def backward(self, total: Tensor, value: float, batch: Batch) -> Heard:
        """The gradient of the mean over all rows; with it go loss, rows and clock."""
        mass = mass_of(batch)
        words = (float(self._saying), self._seconds) if self.leads else (0.0, 0.0)
        entries = total.new_tensor([mass, mass * value, len(batch) * (mass > 0), *words], dtype=torch.float32)
        (mass * total + self._ledger.entries @ entries).backward()  # type: ignore[no-untyped-call]
        count = world.size()
        mass, summed, rows, word, self._heard_seconds = (count * self._ledger.taken()).tolist()
        self._word, self._saying = round(word), 0
        self.over = self.over or mass == 0
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        torch._foreach_mul_(gradients, count / mass if mass else 0.0)
        return Heard(summed / mass if mass else 0.0, mass, round(rows))

    def say(self, word: int, seconds: float) -> None:
        """Kept until the next exchange brings it to all."""
        self._saying, self._seconds = self._saying | word, seconds

    def stepped(self) -> None:
        """What a latent learnt besides gradients is rank 0's: counts of use, a codebook, running means."""
        for buffer in self._buffers:
            world.same(buffer)

    def clock(self, own: float) -> float:
        """Rank 0's, as of the last step."""
        return self._heard_seconds


class _Ledger(nn.Module):
    """A module, and beside its weights a few numbers whose gradients are what processes tell each other.

    The gradient of `entries @ told` by the entries is what was told: it is summed with all gradients, at no exchange of
    its own.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.entries = nn.Parameter(torch.zeros(5, device=next(module.parameters()).device))

    def forward(self, batch: Batch) -> Any:
        """The module's."""
        return self.module(batch)

    def taken(self) -> Tensor:
        """What was told, averaged; forgotten here."""
        told, self.entries.grad = self.entries.grad, None
        if told is None:
            raise WorldError("a step that told nothing")
        return told
