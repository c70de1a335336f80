"""Batches that are made in the CPU's memory and trained on by a GPU: each is uploaded beside the steps before it.

    this thread   | gather and pin 2 | queue step 1 | gather and pin 3 | queue step 2 | ...
    copies                           | upload 2                        | upload 3 ...
    GPU                                | step 1                          | step 2 ...

Nobody waits but the GPU, for a batch that its next step reads. It costs two batches of memory on the GPU, where holding
all rows there would cost all of it. What it does not know: where batches come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from narrows.schema import Batch, Stream
from narrows.train.devices import fits


class Uploaded:
    """A `Stream` whose batches are on a device, one ahead of the training; those that are there already pass by.

    Args:
        stream: of batches, mostly in the CPU's memory.
        device: where they are wanted. On a CPU nothing is pinned, and copies are plain.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self.stream, self.device = stream, device
        self.rows: int | None = stream.rows
        self.common = stream.common
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def epoch(self, number: int, position: Mapping[str, int] | None = None) -> Iterator[tuple[Batch, dict[str, int]]]:
        """The stream's batches, in its order and with its positions."""
        ahead: tuple[Batch, torch.cuda.Event | None] | None = None
        behind: dict[str, int] = {}
        for batch, here in self.stream.epoch(number, position):
            ready, place = ahead, behind
            ahead, behind = self._sent(batch), here
            if ready is not None:
                yield self._received(*ready), place
        if ahead is not None:
            yield self._received(*ahead), behind

    def _sent(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """The batch on its way, and what happens when it is there."""
        if self._side is None or batch.numbers.device == self.device:
            return batch.to(self.device), None
        with torch.cuda.stream(self._side):
            return batch.to(self.device, wait=False), self._side.record_event()

    def _received(self, batch: Batch, sent: torch.cuda.Event | None) -> Batch:
        """The batch, for what is queued from now on."""
        if sent is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(sent)
            for tensor in batch.tensors():  # its memory is not given back before the steps on it are done
                tensor.record_stream(here)
        return batch


def placed(rows: Batch, device: torch.device) -> Batch:
    """Rows that training is to have in memory: on the device if they fit, else where they are, to be uploaded.

    Bags stay with the CPU, which must count the entries of the rows that it takes.
    """
    return rows.to(device) if rows.sparse is None and fits(rows.nbytes, device) else rows


def uploaded(stream: Stream, device: torch.device) -> Stream:
    """The stream for training on a device: itself on a CPU."""
    return Uploaded(stream, device) if device.type == "cuda" else stream
