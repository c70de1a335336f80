"""Whole steps as CUDA graphs: recorded once, then replayed with one call for their hundreds of kernels.

A graph repeats the operations that it was recorded with, on the same memory. So what changes between steps must lie in
tensors: rows are copied into a batch that stays, the learning rate and weights that rise through training are filled
in from the host, and draws follow the seed that torch's own generator has at a replay. What is no operation on the GPU
happens once, at the recording.

Rows of another shape, as the last of an epoch mostly are, run as they would without a graph. So does everything where a
step is not the same operations each time: with bags, whose entries differ in number, with opponents that train against
the rest, and with modules that do not say of themselves that they repeat (`repeats`). A recording that fails all the
same gives a warning, and training goes on without.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from narrows.errors import FitWarning
from narrows.schema import Batch

Act = Callable[[], None]
FIRST = 3  # times that an act runs before it is recorded: libraries and optimizers set themselves up in the first ones


class Replayed:
    """Something that is done to batches, by replay where a batch has the shape of the recorded one.

    Args:
        record: makes of an act another that repeats it; None never records.
    """

    def __init__(self, record: Callable[[Act], Act] | None) -> None:
        self._record = record
        self._met: Counter[object] = Counter()  # batches by their shape, until one is recorded
        self._shape: object = None
        self._inputs: list[Tensor] = []
        self._again: Act | None = None

    def act(self, act: Callable[[Batch], None], batch: Batch) -> None:
        """Do it to a batch.

        Args:
            act: what is done, always the same. It reads and writes nothing but the batch and tensors that stay where
                they are.
            batch: of rows.
        """
        shape = _shape(batch)
        if self._record is None or batch.sparse is not None or (self._again and shape != self._shape):
            act(batch)
        elif self._again is None and self._met[shape] < FIRST:
            self._met[shape] += 1
            act(batch)
        else:
            again = self._again or self._recorded(act, batch, self._record)
            for inside, given in zip(self._inputs, batch.tensors(), strict=True):
                inside.copy_(given, non_blocking=True)
            again()

    def _recorded(self, act: Callable[[Batch], None], batch: Batch, record: Callable[[Act], Act]) -> Act:
        """The act, recorded on rows like these; or, where that fails, as it is on these, this once."""
        inputs = batch.copy()
        self._inputs, self._shape = inputs.tensors(), _shape(batch)
        try:
            self._again = record(lambda: act(inputs))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            text = f"steps could not be recorded as a CUDA graph ({reason}); training goes on without, more slowly"
            warnings.warn(FitWarning(text), stacklevel=2)
            self._record = None
            return lambda: act(inputs)
        return self._again


def recorded(act: Act) -> Act:
    """An act on the current CUDA device as a graph: what repeats it. It is not done by recording it.

    The current stream must not be the default one. Other threads may go on using the GPU meanwhile.

    Raises:
        RuntimeError: where it is nothing that can be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            act()
    except RuntimeError:
        # a generator that a recording broke off with refuses to draw; a copy of it does not
        generator = torch.cuda.default_generators[stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay


def _shape(batch: Batch) -> object:
    """What two batches must share to be interchangeable."""
    return tuple((tensor.shape, tensor.dtype) for tensor in batch.tensors())
