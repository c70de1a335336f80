"""Rows of numbers and levels for judges, prepared by hand, and how closely what they say is compared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from narrows.schema import Batch, Column, Schema

LEVELS = (3, 2)
SCHEMA = Schema(
    (
        Column("a", "number", "double", holes=True),
        Column("kind", "category", "string", width=0, levels=3, holes=True),
        Column("b", "number", "double", holes=True),
        Column("flag", "binary", "bool", width=0, levels=2, holes=True),
    )
)
BAG = Schema((Column("a", "number", "double"), Column("words", "bag", "map<string, int64>", width=4)))


def table(rows: int, seed: int = 0, holes: float = 0.0) -> Batch:
    """Rows of `SCHEMA`; levels of unequal frequency, unknown ones among them."""
    rng = np.random.default_rng(seed)
    numbers = torch.from_numpy(rng.normal(size=(rows, 2)).astype(np.float32))
    codes = torch.from_numpy(np.stack([rng.choice(4, rows, p=[0.6, 0.3, 0.07, 0.03]), rng.integers(0, 2, rows)], 1))
    if not holes:
        return Batch(numbers, codes)
    seen = torch.from_numpy(rng.random((rows, 4)) >= holes)
    codes = torch.where(seen[:, 2:], codes, torch.tensor(LEVELS))
    return Batch(numbers * seen[:, :2], codes, seen)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def tight(found: Tensor, wanted: object, rtol: float = 2e-4, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.double().numpy(), np.asarray(wanted, dtype=np.float64), rtol=rtol, atol=atol)
