"""Arrow lists of any length to flat values and offsets, and back.

A list is a ragged series: of numbers, or of steps with so many channels each (lists of fixed-size lists). Slices and
nulls are read in place; a missing list has length 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import DataError
from narrows.prepare.arrow import Cells, Floats, Values, place, refuse_infinite, tensors, to_dtype
from narrows.prepare.arrow_types import Type

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """B series of different lengths.

    Args:
        values: (steps, ch) of all series together, NaN where missing.
        offsets: (B + 1,) where each begins; the last is `steps`.
        missing: (B,) which series are not there at all; None where all are.
    """

    values: Cells
    offsets: npt.NDArray[np.int64]
    missing: Mask | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(B,) steps of each."""
        return np.diff(self.offsets)

    def padded(self, start: int, stop: int, steps: int) -> Floats:
        """(stop - start, steps, ch) float64 of some series, NaN behind their ends; longer ones are cut."""
        lengths = self.lengths[start:stop]
        cells = np.full((len(lengths), steps, self.values.shape[1]), np.nan)
        places = np.arange(steps)
        within = places < lengths[:, None]
        at = (self.offsets[start:stop, None] + places)[within]
        cells[within] = self.values[at]
        return cells

    def __getitem__(self, rows: Any) -> Ragged:
        """The series at these places (k,)."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        return Ragged(self.values[at], offsets, None if self.missing is None else self.missing[rows])


def channels_of(arrow: Type) -> int:
    """Channels of each step of a list type."""
    inner = arrow.value_type
    return int(inner.list_size) if pa.types.is_fixed_size_list(inner) else 1


def number_of(arrow: Type) -> Type:
    """The number type of a list type."""
    inner = arrow.value_type
    return inner.value_type if pa.types.is_fixed_size_list(inner) else inner


def read_lists(array: Values) -> Ragged:
    """A column of lists as flat values."""
    lengths = np.asarray(pc.list_value_length(array).fill_null(0).to_numpy(), dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    missing = np.asarray(array.is_null()) if array.null_count else None
    return Ragged(_flat(array.flatten(), channels_of(array.type)), offsets, missing)


def _flat(inner: Values, channels: int) -> Cells:
    """(steps, ch) numbers of the steps of all lists."""
    if not pa.types.is_fixed_size_list(inner.type):
        return _numbers(inner)[:, None]
    cells = _numbers(inner.values.slice(inner.offset * channels, len(inner) * channels)).reshape(-1, channels)
    return np.where(np.asarray(inner.is_null())[:, None], np.nan, cells) if inner.null_count else cells


def _numbers(values: Values) -> Cells:
    if values.null_count or pa.types.is_boolean(values.type):
        values = values.cast(pa.float64() if values.null_count else pa.uint8())
    return np.asarray(values.to_numpy(zero_copy_only=False))


def as_tensors(array: Values, shape: tuple[int, ...], column: str, first_row: int = 0) -> Values:
    """Lists that are all of one length as tensors of this shape, missing numbers as NaN.

    Raises:
        DataError: where one is longer or shorter, naming its row, or steps have other channels.
    """
    if (channels_of(array.type),) != (shape[1:] or (1,)):
        raise DataError(f"column {column!r} came as {array.type}", f"shape {shape}, as in training")
    ragged = read_lists(array)
    wrong = ragged.lengths != shape[0]
    if ragged.missing is not None:
        wrong &= ~ragged.missing
    if wrong.any():
        row = int(wrong.argmax())
        got = f"column {column!r}, {place(first_row, row)}: {ragged.lengths[row]} steps"
        raise DataError(
            got, f"{shape[0]}, as in training", "a model of rows that are not all of one length, or window="
        )
    return tensors(pa.array(ragged.padded(0, len(ragged), shape[0]).reshape(-1)), pa.float64(), shape)


def as_lists(array: Values) -> Values:
    """Tensors (B, T) or (B, T, ch) as lists."""
    steps, *channels = array.type.shape
    values = array.storage.flatten()  # without those of missing rows
    if channels:
        values = pa.FixedSizeListArray.from_arrays(values, channels[0])
    missing = np.asarray(array.is_null())
    offsets = np.concatenate([[0], np.cumsum(np.where(missing, 0, steps))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=pa.array(missing))


def refuse_ragged(ragged: Ragged, column: str, first_row: int = 0) -> None:
    """Checks that no step is infinite; as `refuse_infinite`."""
    if ragged.values.dtype.kind == "f" and not np.isfinite(ragged.values.sum(dtype=np.float64)):
        bad = np.flatnonzero(np.isinf(ragged.values).any(axis=1))
        if len(bad):
            row = int(np.searchsorted(ragged.offsets, bad[0], "right")) - 1
            refuse_infinite(np.array([[np.inf]]), column, first_row + row)


def write_lists(cells: Floats, lengths: npt.NDArray[np.int64], arrow: Type) -> Values:
    """(B, T, ch) cells as lists of these lengths (B,), rounded where they hold whole numbers."""
    kept = cells[np.arange(cells.shape[1]) < lengths[:, None]].reshape(-1)
    number = number_of(arrow)
    flags = pa.types.is_boolean(number)
    values = pa.array(kept > 0.5 if flags else to_dtype(kept, np.dtype(number.to_pandas_dtype())), type=number)
    if pa.types.is_fixed_size_list(arrow.value_type):
        values = pa.FixedSizeListArray.from_arrays(values, type=arrow.value_type)
    large = pa.types.is_large_list(arrow)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64() if large else pa.int32())
    return (pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, values, type=arrow)
