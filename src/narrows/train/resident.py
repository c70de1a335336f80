"""The stream over rows that are all in memory: one permutation an epoch, one gather a batch.

The fastest way to feed a step, at the price of holding every prepared row. Batches are made on the device where the
rows are; whether they fit there is for the caller to know. Where several processes train, each holds the rows of all,
and of every batch gets its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from narrows.balance import Balance, evened
from narrows.errors import SettingError
from narrows.schema import Batch, weightless
from narrows.train.randomness import generator
from narrows.world import size, span_of


class Resident:
    """A `Stream` of batches from rows in memory.

    Args:
        batch: all rows.
        batch_size: rows of a batch; the last of an epoch has what is left. With as many as there are rows or more,
            every epoch is the one whole batch, as it is.
        seed: decides, with the number of the epoch, the order.
        shuffle: False keeps the order of the rows; batches are then views.
        common: whether all processes hold these same rows.
        balance: groups of the rows, and how often each is to be met: a row of a rare group may come several times an
            epoch, others not in every one. None for every row once.

    Raises:
        SettingError: for a batch size below 1.
    """

    def __init__(
        self,
        batch: Batch,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        common: bool = True,
        balance: Balance | None = None,
    ) -> None:
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size}", "at least 1")
        self.batch, self.batch_size, self.seed = batch, batch_size, seed
        self.rows: int | None = len(batch)
        self.common = common
        self.shuffle = shuffle and (batch_size < len(batch) or balance is not None)
        self.balance = balance

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches of epoch `number`, each with the count of batches behind it."""
        rows, step = len(self.batch), self.batch_size
        order = self._order(number) if self.shuffle else None
        device = self.batch.numbers.device
        if order is not None and device.type == "cuda":
            order = order.pin_memory().to(device, non_blocking=True)  # no step in flight is waited for
        for index in range((position or {}).get("batch", 0), -(-rows // step)):
            start, stop = index * step, min((index + 1) * step, rows)
            yield self._own(order, start, stop), {"batch": index + 1}

    def _order(self, number: int) -> Tensor:
        """(n,) the rows of an epoch, the same in every process."""
        draws = generator(self.seed, number)
        order = torch.randperm(len(self.batch), generator=draws)
        if self.balance is None:
            return order
        return evened(order, self.balance.groups[order], self.balance.quotas, draws)

    def _own(self, order: Tensor | None, start: int, stop: int) -> Batch:
        """The rows from `start` to `stop` of an order; of several processes each its own, or two of no weight."""
        if size() == 1 or not self.common:
            return self.batch[slice(start, stop) if order is None else order[start:stop]]
        own = span_of(stop - start)
        span = slice(start + own.start, start + own.stop)
        if own.start == own.stop:
            return weightless(self.batch)
        rows = self.batch[span if order is None else order[span]]
        return replace(rows, span=(own.start, len(rows), stop - start))
