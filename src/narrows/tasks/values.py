"""Restored values as numbers to compute with, and the units that people read their errors in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from narrows.metrics import Floats
from narrows.schema import Column

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def as_floats(array: pa.Array) -> Floats:
    """(B, D) float64 values of a restored number, date or array column; points and spans of time in seconds."""
    kind = array.type
    if isinstance(kind, pa.FixedShapeTensorType):
        flat: npt.NDArray[Any] = array.storage.flatten().to_numpy(zero_copy_only=False)
        return flat.astype(np.float64).reshape(len(array), -1)
    factor = 1.0
    if pa.types.is_date(kind):
        array, factor = array.cast(pa.date32()).cast(pa.int32()), 86_400.0
    elif pa.types.is_temporal(kind):
        width = pa.int32() if pa.types.is_time32(kind) else pa.int64()
        array, factor = array.cast(width), _SECONDS[kind.unit]
    elif pa.types.is_decimal(kind):
        return np.array([[np.nan if value is None else float(value)] for value in array.to_pylist()]).reshape(-1, 1)
    floats: Floats = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return (floats * factor).reshape(-1, 1)


def unit_of(column: Column, typical: float) -> tuple[str, float]:
    """Name and size of the unit for a column's errors: time in days, hours or seconds, by what the mean misses."""
    if column.kind == "date":
        by_day = column.type.startswith("date") or typical > 2 * 86_400
        return ("days", 86_400.0) if by_day else ("hours", 3_600.0)
    return ("seconds", 1.0) if column.type.startswith(("time", "duration")) else ("", 1.0)
