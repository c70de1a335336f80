"""Training rows read from a source anew in each epoch: shuffled in windows, prepared, cut into batches.

The trade-off: an epoch costs reading and preparing again, and memory holds one window instead of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from narrows.prepare.preparer import Preparer
from narrows.schema import Batch
from narrows.sources.shuffle import Shuffle


class Streamed:
    """The `Stream` of a source's training rows.

    Args:
        shuffle: gives windows of raw rows in the order of (seed, epoch).
        preparer: raw rows -> Batch.
        batch_size: rows a batch; the last of a window may have fewer, so windows are multiples of it.
        rows: in an epoch, where known.
        device: where the batches go.
    """

    def __init__(
        self, shuffle: Shuffle, preparer: Preparer, batch_size: int, rows: int | None, device: torch.device
    ) -> None:
        self.shuffle, self.preparer, self.batch_size = shuffle, preparer, batch_size
        self.rows, self.device = rows, device

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """Batches of an epoch; a position is that of the window they stand in, and the batch within it."""
        window = dict(position or {})
        done = window.pop("batch", 0)
        for raw, behind in self.shuffle.windows(number, window or None):
            rows = self.preparer.prepare(raw)
            for start in range(done * self.batch_size, len(rows), self.batch_size):
                stop = start + self.batch_size
                last = stop >= len(rows)
                here = behind | {"batch": 0} if last else window | {"batch": stop // self.batch_size}
                yield rows[start:stop].to(self.device), here
            window, done = behind, 0
