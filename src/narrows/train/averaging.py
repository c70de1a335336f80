"""Several processes that train copies of a module and average them now and then, where steps in common cost too much.

`Local` takes steps of its own and averages all copies every few steps (local SGD, Stich 2019): as many times fewer
messages, and all still wait for the slowest. `Elastic` waits for nobody: every few steps a process pulls its copy and a
center towards each other (elastic averaging, Zhang, Choromanska & LeCun 2015), which rank 0 keeps in a thread and
validates; fast processes take more of the rows. The trade-off of both: copies drift apart between meetings, so the same
rows make fewer good steps. Optimizers keep averages of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import count
from threading import Lock, Thread

import torch
from torch import Tensor, nn

from narrows import world
from narrows.errors import WorldError
from narrows.schema import Batch, Stream
from narrows.train.settings import sync_of
from narrows.train.state import Heard, mass_of
from narrows.train.sync import STOP, Alone, Every, Several, no_rows

PULL = 0.9  # share of the way that all copies together pull the center each time, as in the source


def make_sync(module: nn.Module, words: str) -> Alone:
    """The way that the settings name, for the processes there are.

    Args:
        module: to train.
        words: see `Training.sync`.
    """
    if world.size() == 1:
        return Alone(module)
    way, steps = sync_of(words)
    for tensor in module.state_dict().values():
        world.same(tensor)
    return Every(module) if way == "every" else {"local": Local, "async": Elastic}[way](module, steps)


class _Copies(Several, ABC):
    """What both ways share: the copy as one vector, and steps of one's own.

    Args:
        module: that is trained.
        steps: between two meetings.
    """

    unanimous = False

    def __init__(self, module: nn.Module, steps: int) -> None:
        super().__init__(module)
        self._every, self._steps = steps, 0
        self._fresh = self._owed = 0  # rows: by this process since the last meeting; by others, and not yet told
        state = module.state_dict()
        self._tensors = [tensor for tensor in state.values() if tensor.is_floating_point()]

    def backward(self, total: Tensor, value: float, batch: Batch) -> Heard:
        """The gradient of the own rows; of others' rows only their number, once it is known."""
        rows, mass = self._owed, mass_of(batch)
        self._owed = 0
        if not mass:
            return Heard(0.0, 0.0, rows)
        total.backward()  # type: ignore[no-untyped-call]
        self._fresh += len(batch)
        return Heard(value, mass, rows + len(batch))

    def stepped(self) -> None:
        """Meet, when it is time."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._meet()

    @abstractmethod
    def _meet(self) -> None:
        """What is done every few steps."""

    def _copy(self) -> Tensor:
        """(W,) float32, on the CPU."""
        return torch.cat([tensor.flatten().float().cpu() for tensor in self._tensors])

    def _take(self, vector: Tensor) -> None:
        """Put a vector into the weights."""
        with torch.no_grad():
            parts = torch.split(vector, [tensor.numel() for tensor in self._tensors])
            for tensor, part in zip(self._tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


class Local(_Copies):
    """Steps of one's own; all copies are averaged every few of them."""

    def __init__(self, module: nn.Module, steps: int) -> None:
        super().__init__(module, steps)
        self._saying, self._heard_seconds, self._weighty = 0, 0.0, 0

    def backward(self, total: Tensor, value: float, batch: Batch) -> Heard:
        """The gradient of the own rows; of others' rows only their number, once it is known."""
        heard = super().backward(total, value, batch)
        self._weighty += heard.mass > 0
        return heard

    def _meet(self) -> None:
        """Average, and tell who has seen how many rows, and rank 0's clock."""
        words = (self._saying, self._seconds) if self.leads else (0, 0.0)
        rows, weighty, word, self._heard_seconds = world.sums(self._fresh, self._weighty, *words)
        self._owed, self._fresh = self._owed + round(rows) - self._fresh, 0
        self._word, self._saying, self._weighty = round(word), 0, 0
        self.over = self.over or not weighty
        self.settle()

    def settle(self) -> None:
        """The mean of all copies for all."""
        self._take(world.added(self._copy()) / world.size())

    def recorded(self, loss: float, mass: float) -> tuple[float, float]:
        """Sums over all processes."""
        loss, mass = world.sums(loss, mass)
        return loss, mass

    def say(self, word: int, seconds: float) -> None:
        """Kept until the next meeting brings it to all."""
        self._saying, self._seconds = self._saying | word, seconds

    def clock(self, own: float) -> float:
        """Rank 0's, as of the last meeting."""
        return self._heard_seconds


class Elastic(_Copies):
    """Steps of one's own; the copy and a center pull at each other every few of them, whenever that is.

    An epoch ends when all together have seen its rows, whoever saw them. Rank 0 alone validates and records, and takes
    the center for its copy then.
    """

    marches = False

    def __init__(self, module: nn.Module, steps: int) -> None:
        super().__init__(module, steps)
        self.pace = pace(world.size())
        self._line = world.Line()
        self._center = _Center(self._copy(), self._line) if self.leads else None
        self._batches: Iterator[tuple[Batch, dict[str, int]]] | None = None
        self._seen = 0  # rows, by all, as far as is known

    def epoch(
        self, stream: Stream, number: int, position: Mapping[str, int] | None
    ) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Own batches, for as long as all together have not seen the rows of an epoch; positions are not kept."""
        if self._batches is None:
            self._batches = _endless(stream, number)
        wanted = (number + 1) * (stream.rows or 1)
        self._seen = max(self._seen, number * (stream.rows or 1))
        while self._seen < wanted:
            batch, _ = next(self._batches)
            yield batch, {}

    def backward(self, total: Tensor, value: float, batch: Batch) -> Heard:
        """The gradient of the own rows; of others' rows only their number, once it is known."""
        before = self._fresh
        heard = super().backward(total, value, batch)
        self._seen += self._fresh - before
        return heard

    def _meet(self) -> None:
        copy = self._copy()
        others, over, pulled = self._asked(copy)
        self._take(copy - pulled)
        self._seen, self._owed = self._seen + others, self._owed + others
        if over:
            self._word |= STOP

    def _asked(self, copy: Tensor, goodbye: bool = False) -> tuple[int, bool, Tensor]:
        """Rows that others have seen since this was last asked, whether all is over, and how the copy is pulled."""
        fresh, self._fresh = self._fresh, 0
        if self._center is not None:
            return self._center.pulled(0, fresh, copy)
        self._line.send(torch.cat([torch.tensor([fresh, float(goodbye)]), copy]), 0)
        answer = torch.empty(len(copy) + 2)
        self._line.receive(answer, 0)
        return int(answer[0]), bool(answer[1]), answer[2:]

    def settle(self) -> None:
        """The center, for rank 0."""
        if self._center is not None:
            self._take(self._center.weights())

    def looking(self) -> AbstractContextManager[None]:
        """Rank 0 validates all rows by itself."""
        return world.alone()

    def sums(self, *numbers: float) -> list[float]:
        """One's own: the others are elsewhere."""
        return [*numbers]

    def positions(self, own: dict[str, int] | None) -> list[dict[str, int] | None]:
        """None that another run could go on from: it begins the epoch anew."""
        return []

    def say(self, word: int, seconds: float) -> None:
        """Rank 0's clock is heeded by rank 0, which then tells the others that all is over."""
        if self.leads:
            super().say(word, seconds)

    def close(self) -> None:
        """Part from the others, once all know that it is over; the weights of rank 0 are those of all."""
        if self._center is not None:
            self._center.finish()
        else:
            self._asked(self._copy(), goodbye=True)
        super().close()


def _endless(stream: Stream, number: int) -> Iterator[tuple[Batch, dict[str, int]]]:
    """The batches of epochs from `number` on, one after the other."""
    for epoch in count(number):
        met = False
        for each in stream.epoch(epoch):
            met = True
            yield each
        if not met:
            raise no_rows(epoch)


class Spring:
    """A center, and the force between it and copies.

    Args:
        weights: (W,) where the center begins.
        copies: how many there are.
    """

    def __init__(self, weights: Tensor, copies: int) -> None:
        self.weights, self._share = weights.clone(), PULL / copies

    def pull(self, copy: Tensor) -> Tensor:
        """Move the center towards a copy; by how much the copy is to come nearer."""
        pull = (copy - self.weights) * self._share
        self.weights += pull
        return pull


def pace(copies: int) -> float:
    """How many times as long steps need to be for the center to get as far as by steps in common.

    Being held back costs way: where all go one way, the center and N copies together get N / (N + 1) as far as free
    copies would, however strong the pull and whoever is fast.
    """
    return 1 + 1 / copies


class _Center(Thread):
    """The center of elastic averaging, which answers processes one at a time.

    Args:
        weights: (W,) where it begins.
        line: to the others.
    """

    def __init__(self, weights: Tensor, line: world.Line) -> None:
        super().__init__(name="narrows-center", daemon=True)
        self._processes = world.size()
        self._spring, self._line, self._lock = Spring(weights, self._processes), line, Lock()
        self._rows, self._known = 0, [0] * self._processes
        self._over, self._failure = False, ""
        self.start()

    def run(self) -> None:
        """Answer until all others have said goodbye."""
        message, parted = torch.empty(len(self._spring.weights) + 2), 0
        try:
            while parted < self._processes - 1:
                other = self._line.receive(message)
                rows, over, pulled = self.pulled(other, int(message[0]), message[2:])
                self._line.send(torch.cat([torch.tensor([rows, float(over)]), pulled]), other)
                parted += bool(message[1])
        except Exception as error:
            self._failure = str(error)

    def pulled(self, who: int, fresh: int, copy: Tensor) -> tuple[int, bool, Tensor]:
        """Take in a copy and the rows it has seen; what `Elastic` asks for."""
        if self._failure:
            raise WorldError(f"the center of elastic averaging: {self._failure}")
        with self._lock:
            pull = self._spring.pull(copy)
            self._rows += fresh
            others = self._rows - self._known[who] - fresh
            self._known[who] = self._rows
            return others, self._over, pull

    def weights(self) -> Tensor:
        """(W,) as they are now."""
        with self._lock:
            return self._spring.weights.clone()

    def finish(self) -> None:
        """Tell all that come that it is over, and wait until all came."""
        self._over = True
        self.join()
        if self._failure:
            raise WorldError(f"the center of elastic averaging: {self._failure}")
