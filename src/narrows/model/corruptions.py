"""What is done to a batch before the encoder sees it. The loss still counts the uncorrupted cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.schema import Batch, Schema


class Corruption(nn.Module, ABC):
    """Batch -> Batch, drawn from torch's global generator; the rows that came are left as they are.

    Attributes:
        hides: whether cells are hidden, so that the network needs a flag for each.
    """

    hides = False

    def suit(self, schema: Schema) -> None:
        """Settle on the columns of this schema.

        Raises:
            SettingError: where it has none to work on.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> Batch:
        """The batch, corrupted."""


class GaussianNoise(Corruption):
    """Normal noise on every number cell that is not a count (Vincent et al. 2010).

    Args:
        scale: standard deviation in prepared units: 1 is a column's own spread where it was standardized, and the
            whole range where it lies in [0, 1].
    """

    counted: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        if not scale > 0:
            raise SettingError(f"noise={scale!r}", "a standard deviation above 0")
        self.scale = scale
        self.register_buffer("counted", torch.zeros(0, dtype=torch.long), persistent=False)

    def suit(self, schema: Schema) -> None:
        """Leave the counts of this schema as they are: noise would drown a bag's few items among its many zeros."""
        self.counted = torch.tensor(schema.cells_where(kind="count") + schema.cells_where(kind="bag"), dtype=torch.long)

    def forward(self, batch: Batch) -> Batch:
        """The batch with noisy numbers."""
        noise = self.scale * torch.randn_like(batch.numbers)
        if len(self.counted):
            noise.index_fill_(1, self.counted, 0.0)
        return replace(batch, numbers=batch.numbers + noise)


class Masking(Corruption):
    """Hides each cell, number or category, with the same chance (Vincent et al. 2008, with a flag for what is hidden).

    Args:
        rate: chance for a cell to be hidden, between 0 and 1.
    """

    hides = True

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise SettingError(f"mask={rate!r}", "a share between 0 and 1")
        self.rate = rate

    def forward(self, batch: Batch) -> Batch:
        """The batch with fewer cells seen."""
        cells = batch.numbers.shape[1] + batch.codes.shape[1]
        shown = torch.rand(len(batch), cells, device=batch.numbers.device) >= self.rate
        return batch.with_seen(shown if batch.seen is None else shown & batch.seen)
