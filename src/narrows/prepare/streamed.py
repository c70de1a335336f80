"""Training rows read from a source anew in each epoch: shuffled in windows, prepared, cut into batches.

A thread reads and prepares the next window while the batches of this one are trained on, reading a part while the one
before it is prepared:

    reader    | window 1 | window 2 |   | window 3 | ...
    training             | batches of 1 | batches of 2 | ...

The trade-off: an epoch costs reading and preparing again, and memory holds three windows (see `Streamed`) instead of
all rows. Where training takes every core, the reader has none to itself, and windows are read between trainings: beside
them they would hold up one of the threads that share products, and with it all (see `core_to_spare`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from narrows.balance import evened
from narrows.errors import DataWarning
from narrows.prepare.groups import Groups
from narrows.prepare.preparer import Preparer
from narrows.schema import Batch
from narrows.sources.shuffle import End, Shuffle
from narrows.stopwatch import spent, timed

AHEAD = 2  # parts that are read and not yet prepared
FEW_LANES, MANY_WINDOWS = 4, 16  # from where on rows that are read in order are worth a warning


class _Window(NamedTuple):
    """Prepared rows as they were read, the order to give them in, and the position behind them."""

    rows: Batch
    order: Tensor
    behind: dict[str, int]


def core_to_spare(device: torch.device) -> bool:
    """Whether a reader would not take a core from training: it is done on a GPU, or in fewer threads than cores.

    On two cores and in two threads, 32 numbers a row were trained on at 320,000 rows a second with a reader beside, and
    at 355,000 with reading between, which takes 0.3 microseconds of a row's 2.8.
    """
    return device.type != "cpu" or torch.get_num_threads() < (os.cpu_count() or 1)


def _worker(name: str) -> ThreadPoolExecutor:
    """A thread for work beside this one, whose products have no threads of their own.

    GNU's OpenMP lets threads sleep, not wait, as soon as there are more of them in a process than cores, whether they
    have work or not: that alone made a training step beside a reader 9 ms of 2.3.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, name, torch.set_num_threads, (1,))
    pool.submit(int).result()  # it has begun
    torch.set_num_threads(threads)  # what threads to come take over
    return pool


def _ahead(windows: Iterator[_Window], closed: Event) -> Iterator[_Window]:
    """The windows, each read by a thread while the one before it is in use."""
    with _worker("narrows-reader") as reader:
        try:
            ahead = reader.submit(next, windows, None)
            while (window := ahead.result()) is not None:
                ahead = reader.submit(next, windows, None)
                yield window
        finally:
            closed.set()


class Streamed:
    """The `Stream` of a source's training rows.

    Args:
        shuffle: gives raw rows and their order by (seed, epoch).
        preparer: raw rows -> Batch.
        batch_size: rows a batch; the last of a window may have fewer, so windows are multiples of it.
        rows: in an epoch, where known.
        device: where training is done. Batches are in the CPU's memory; for a GPU, training uploads them.
        groups: that are to be met equally often, counted over all rows: of each window as many rows of a group are
            given as its rate says, so that windows are longer or shorter, and an epoch about as long as before. None
            for all rows once.

    Memory: the window in training, and the next as its parts and, for a moment, as a whole: 3 x window rows x bytes of
    a prepared row. To that comes what `Shuffle` needs to read.
    """

    def __init__(
        self,
        shuffle: Shuffle,
        preparer: Preparer,
        batch_size: int,
        rows: int | None,
        device: torch.device,
        groups: Groups | None = None,
    ) -> None:
        self.shuffle, self.preparer, self.batch_size, self.groups = shuffle, preparer, batch_size, groups
        self.rows, self.device, self.common = rows, device, False
        if shuffle.lanes < FEW_LANES and (rows or 0) > MANY_WINDOWS * shuffle.window:
            places = "one place" if shuffle.lanes == 1 else f"{shuffle.lanes} places"
            text = f"{shuffle.source.name} is read from {places} at a time, so rows change places only within windows"
            hint = "if they are sorted by anything, try `narrows reshard`: small row groups are read in any order"
            warnings.warn(f"{text} of {shuffle.window:,}; {hint}", DataWarning, stacklevel=4)

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches of an epoch; a position is that of the window they stand in, and the batch within it.

        What goes wrong in reading or preparing is raised here, as it was raised there. The thread has ended when the
        epoch has, or is closed.
        """
        before = dict(position or {})
        done = before.pop("batch", 0)
        closed = Event()
        windows = self._windows(number, before or None, closed)
        for window in _ahead(windows, closed) if core_to_spare(self.device) else windows:
            yield from self._batches(window, before, done)
            before, done = window.behind, 0

    def _windows(self, number: int, position: Mapping[str, int] | None, closed: Event) -> Iterator[_Window]:
        """Prepared windows, until nobody wants more; a part is prepared while the next is read."""
        with _worker("narrows-preparer") as preparer:
            parts: list[Future[tuple[Batch, Tensor | None]]] = []
            for raw, end in timed("read", self.shuffle.parts(number, position)):
                if closed.is_set():
                    return
                if len(parts) > AHEAD:
                    parts[-AHEAD].result()
                parts.append(preparer.submit(self._prepared, raw))
                if end is not None:
                    done = [part.result() for part in parts]
                    parts, rows = [], Batch.concat([batch for batch, _ in done])
                    order = self._balanced(torch.from_numpy(end.order), [groups for _, groups in done], number, end)
                    yield _Window(rows, order, end.position)

    def _prepared(self, raw: pa.RecordBatch) -> tuple[Batch, Tensor | None]:
        with spent("prepare"):
            return self.preparer.prepare(raw), None if self.groups is None else self.groups.of(raw)

    def _balanced(self, order: Tensor, groups: list[Tensor | None], number: int, end: End) -> Tensor:
        """The order with each group as often as its rate says, rounded up or down by chance."""
        if self.groups is None:
            return order
        there = torch.cat([part for part in groups if part is not None])[order]
        draws = torch.Generator().manual_seed(self.shuffle.draw(number, end.position["windows"]))
        rates = self.groups.rates
        wanted = torch.bincount(there, minlength=len(rates)) * rates
        quotas = (wanted + torch.rand(len(rates), generator=draws, dtype=torch.float64)).floor().long()
        return evened(order, there, quotas, draws)

    def _batches(self, window: _Window, before: dict[str, int], done: int) -> Iterator[tuple[Batch, dict[str, int]]]:
        """The batches of a window behind the first `done`."""
        for start in range(done * self.batch_size, len(window.order), self.batch_size):
            stop = start + self.batch_size
            last = stop >= len(window.order)
            here = window.behind | {"batch": 0} if last else before | {"batch": stop // self.batch_size}
            yield window.rows[window.order[start:stop]], here
