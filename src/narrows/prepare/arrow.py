"""The Arrow half of preparing: columns to raw float64 cells, and raw cells back to columns.

Everything is vectorized over rows, and for tensors over their cells too. A missing value, null or NaN, is NaN among
the raw cells. Integers beyond 2**53 lose their last digits here, as float64 does. Dates have a file of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import DataError
from narrows.prepare.arrow_types import Type, is_clock, is_plain_number, is_tensor, is_text

Cells = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Values = Any  # pa.Array; pyarrow carries no annotations

DAY_UNITS = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def plain(array: Values) -> Values:
    """The array with dictionaries decoded, text as `large_string`, half floats as floats."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_float16(array.type):
        return array.cast(pa.float32())
    return array.cast(pa.large_string()) if is_text(array.type) else array


def place(first_row: int, row: int) -> str:
    """A row in words.

    Args:
        first_row: id of a batch's first row: 2**40 times its piece of the source, plus the row within the piece.
        row: within the batch.
    """
    piece, at = divmod(first_row + row, 1 << 40)
    return f"row {at} of piece {piece} (both counted from 0)" if piece else f"row {at} (the first is row 0)"


def cast_all(array: Values, target: Type, column: str, wanted: str, first_row: int = 0) -> Values:
    """The array cast to another type; `first_row` as in `place`.

    Raises:
        DataError: where a value cannot be cast, naming the column, the first such value and its row.
    """
    trimmed = pc.utf8_trim_whitespace(array) if is_text(array.type) else array
    try:
        return trimmed.cast(target)
    except pa.ArrowNotImplementedError as error:
        raise DataError(f"column {column!r} came as {array.type}", wanted, f"cast it to {target}") from error
    except pa.ArrowInvalid as error:
        row = _first_bad(trimmed, target)
        got = f"column {column!r}, {place(first_row, row)}: {array[row].as_py()!r}"
        raise DataError(got, wanted, "mending it, or leaving it empty") from error


def _first_bad(array: Values, target: Type) -> int:
    """The first row that does not cast, found by halving: casting tells only that some row of a slice is bad."""
    good, bad = 0, len(array)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            array[good:middle].cast(target)
            good = middle
        except pa.ArrowInvalid:
            bad = middle
    return good


def read_numbers(array: Values, trained: Type, column: str, first_row: int = 0) -> Cells:
    """A scalar column as (B,) float64, NaN where missing; float32 without holes stays as it is, and is not copied.

    Args:
        array: the column as it came; any numeric type will do, and text where every value parses.
        trained: the type the column had in training: durations and times of day come in its unit.
        column: its name, for messages.
        first_row: as in `place`, for messages.

    Raises:
        DataError: where values are not numbers.
    """
    array = plain(array)
    if pa.types.is_float32(array.type) and not array.null_count:
        return flat(array)
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if is_clock(trained):
        array = cast_all(array, trained, column, f"values of type {trained}, as in training", first_row)
        array = array.view(pa.int64() if trained.bit_width == 64 else pa.int32())
    elif is_text(array.type):
        array = cast_all(array, pa.float64(), column, "a number, as in training", first_row)
    elif not is_plain_number(array.type):
        raise DataError(f"column {column!r} came as {array.type}", "numbers, as in training")
    return flat(array.cast(pa.float64(), safe=False))


def flat(numbers: Values) -> Cells:
    """Numbers as they lie in memory, NaN where missing.

    By the DLPack protocol: Arrow's own way loads Pandas, where that is installed, which takes a quarter of a second.
    """
    cells: Cells = np.from_dlpack(numbers.fill_null(np.nan) if numbers.null_count else numbers)
    return cells


def read_tensors(array: Values) -> Cells:
    """A tensor column as (B, cells) in its own number type (a view where nothing is missing), NaN where missing."""
    rows, storage = len(array), array.storage
    width = storage.type.list_size
    values = storage.values.slice(storage.offset * width, rows * width)
    if values.null_count or pa.types.is_boolean(values.type):
        values = values.cast(pa.float64() if values.null_count else pa.uint8())
    cells = flat(values).reshape(rows, width)
    if array.null_count:
        cells = np.where(np.asarray(array.is_null())[:, None], np.nan, cells)
    return cells


def refuse_infinite(cells: Cells, column: str, first_row: int = 0) -> None:
    """Checks that no cell is infinite.

    Args:
        cells: (B, ...) numbers.
        column: the column's name.
        first_row: as in `place`.

    Raises:
        DataError: naming column and row.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if cells.dtype.kind != "f" or np.isfinite(cells.sum(dtype=np.float64 if cells.itemsize < 4 else None)):
            return
    rows = np.flatnonzero(np.isinf(cells).reshape(len(cells), -1).any(axis=1))
    if len(rows):
        got = f"column {column!r}, {place(first_row, int(rows[0]))}: an infinite value"
        raise DataError(got, "finite numbers", "leaving it empty (missing cells are welcome), or a large finite number")


def refuse_uncountable(cells: Cells, column: str, first_row: int = 0) -> None:
    """Checks that all cells (B, ...) are whole numbers from 0 up, or missing; `first_row` as in `place`.

    Raises:
        DataError: naming column, row and value.
    """
    bad = (cells < 0) | (cells != np.rint(cells)) & ~np.isnan(cells) if cells.dtype.kind == "f" else cells < 0
    if bad.any():
        at = np.argwhere(bad)[0]
        got = f"column {column!r}, {place(first_row, int(at[0]))}: {cells[tuple(at)]:g}"
        raise DataError(got, "whole numbers from 0 up, as in training", "mending it, or leaving it empty")


def write_numbers(values: Floats, arrow: Type) -> Values:
    """(B,) float64 as a column of a numeric type: rounded where it holds whole numbers, kept within its range.

    NaN becomes null.
    """
    missing = np.isnan(values)
    if pa.types.is_floating(arrow):
        numbers = pa.array(to_dtype(values, np.dtype(arrow.to_pandas_dtype())), mask=missing)
        return numbers.cast(arrow)
    if pa.types.is_boolean(arrow):
        return pa.array(values > 0.5, mask=missing)
    if pa.types.is_decimal(arrow):
        limit = 10.0 ** (arrow.precision - arrow.scale)
        edge = min(limit - 10.0**-arrow.scale, limit * (1 - 2.0**-50))  # the latter where float64 cannot tell the first
        return pa.array(np.clip(values, -edge, edge), mask=missing).cast(arrow)
    if is_clock(arrow):
        return _write_clock(values, missing, arrow)
    return pa.array(to_dtype(values, np.dtype(arrow.to_pandas_dtype())), mask=missing, type=arrow)


def _write_clock(values: Floats, missing: npt.NDArray[np.bool_], arrow: Type) -> Values:
    if pa.types.is_time(arrow):
        values = np.clip(values, 0, DAY_UNITS[arrow.unit] - 1)
    counts = to_dtype(values, np.dtype(f"int{arrow.bit_width}"))
    return pa.array(counts, mask=missing).view(arrow)


def to_dtype(values: Cells, dtype: np.dtype[Any]) -> Cells:
    """Numbers as another numpy type: rounded for integers, kept within the type's range; NaN stays or becomes 0."""
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        return np.asarray(np.clip(values, -limit, limit), dtype=dtype)
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    ceiling = float(high) if int(float(high)) <= high else float(np.nextafter(float(high), 0))
    return np.asarray(np.clip(np.nan_to_num(np.rint(values)), float(low), ceiling), dtype=dtype)


def write_tensors(cells: Floats, value: Type, shape: tuple[int, ...]) -> Values:
    """(B, cells) float64 as a column of tensors of this value type and shape."""
    if pa.types.is_boolean(value):
        values = pa.array((cells > 0.5).reshape(-1))
    else:
        values = pa.array(to_dtype(cells.reshape(-1), np.dtype(value.to_pandas_dtype())), type=value)
    return tensors(values, value, shape)


def tensors(values: Values, value: Type, shape: tuple[int, ...]) -> Values:
    """Flat values as a column of tensors."""
    arrow = pa.fixed_shape_tensor(value, shape)
    return pa.ExtensionArray.from_storage(arrow, pa.FixedSizeListArray.from_arrays(values, type=arrow.storage_type))


def missing_tensors(rows: int, value: Type, shape: tuple[int, ...]) -> Values:
    """A tensor column whose every row is null."""
    arrow = pa.fixed_shape_tensor(value, shape)
    return pa.ExtensionArray.from_storage(arrow, pa.nulls(rows, arrow.storage_type))


def column_type(value: Type, shape: tuple[int, ...]) -> Type:
    """Arrow type of a column whose values have this type and shape."""
    return pa.fixed_shape_tensor(value, shape) if shape else value


def value_type(arrow: Type) -> tuple[Type, tuple[int, ...]]:
    """Type of one number of a column, and the shape of one value."""
    return (arrow.value_type, tuple(arrow.shape)) if is_tensor(arrow) else (arrow, ())
