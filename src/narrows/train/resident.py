"""The stream over rows that are all in memory: one permutation an epoch, one gather a batch.

The fastest way to feed a step, at the price of holding every prepared row. Batches are made on the device where the
rows are; whether they fit there is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from narrows.errors import SettingError
from narrows.schema import Batch
from narrows.train.randomness import generator


class Resident:
    """A `Stream` of batches from rows in memory.

    Args:
        batch: all rows.
        batch_size: rows of a batch; the last of an epoch has what is left. With as many as there are rows or more,
            every epoch is the one whole batch, as it is.
        seed: decides, with the number of the epoch, the order.
        shuffle: False keeps the order of the rows; batches are then views.

    Raises:
        SettingError: for a batch size below 1.
    """

    def __init__(self, batch: Batch, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size}", "at least 1")
        self.batch, self.batch_size, self.seed = batch, batch_size, seed
        self.rows: int | None = len(batch)
        self.shuffle = shuffle and batch_size < len(batch)

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches of epoch `number`, each with the count of batches behind it."""
        rows, size = len(self.batch), self.batch_size
        order = torch.randperm(rows, generator=generator(self.seed, number)) if self.shuffle else None
        device = self.batch.numbers.device
        if order is not None and device.type == "cuda":
            order = order.pin_memory().to(device, non_blocking=True)  # no step in flight is waited for
        for index in range((position or {}).get("batch", 0), -(-rows // size)):
            span = slice(index * size, (index + 1) * size)
            yield self.batch[span if order is None else order[span]], {"batch": index + 1}
