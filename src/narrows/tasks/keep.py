"""Keeps few of many streamed rows: those with the largest keys, whatever size the batches come in.

Keys drawn at random make it an even sample; scores make it the worst rows. Holds at most twice `size` rows and one
batch; rows of equal keys are kept first come, first served.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from narrows.schema import Batch


@dataclass
class Keep:
    """The `size` rows with the largest keys among all that were offered, largest first.

    Args:
        size: rows to keep.
        rows: name -> (n, ...) what is kept of the rows; empty until the first offer.
        batch: the prepared rows themselves, where they were offered; bags stay sparse.
    """

    size: int
    rows: dict[str, Tensor] = field(default_factory=dict)
    batch: Batch | None = None
    _keys: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def offer(self, keys: Tensor, rows: dict[str, Tensor], batch: Batch | None = None) -> None:
        """Rows that stand for keeping: keys (B,), tensors (B, ...) by name, prepared rows; NaN is the largest key."""
        keys = keys.double().nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf"))
        near = keys.argsort(descending=True, stable=True)[: self.size]
        merged = torch.cat([self._keys, keys[near]])
        best = merged.argsort(descending=True, stable=True)[: self.size]
        kept = self.rows or {name: tensor[:0] for name, tensor in rows.items()}
        self.rows = {name: torch.cat([kept[name], rows[name][near]])[best] for name in rows}
        if batch is not None:
            self.batch = (batch[near] if self.batch is None else Batch.concat([self.batch, batch[near]]))[best]
        self._keys = merged[best]
