"""Arrow columns as what text formats can hold: texts for CSV, and numbers, texts, lists and objects for JSON.

A missing value and NaN are one, null, as they mean the same; infinity has no place in JSON and is refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import DataError


def shape_of(field: pa.Field) -> tuple[int, ...] | None:
    """The shape of one value of a tensor column; None for other columns."""
    return tuple(field.type.shape) if isinstance(field.type, pa.FixedShapeTensorType) else None


def as_json(field: pa.Field, column: pa.Array) -> list[Any]:
    """Cells as `json.dumps` takes them: tensors and lists nest, maps and structs are objects, dates are texts.

    Raises:
        DataError: for infinite values, and types that no text can tell, such as binary.
    """
    shape, kind = shape_of(field), column.type
    if shape is not None:
        size = int(np.prod(shape))
        flat = as_json(pa.field(field.name, field.type.value_type), column.storage.flatten())
        return _spread(column, [_nested(flat[i : i + size], shape) for i in range(0, len(flat), size)])
    if pa.types.is_dictionary(kind):
        return as_json(field, column.dictionary_decode())
    if pa.types.is_map(kind):
        return [_object(field.name, bag) for bag in column.to_pylist()]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _lists(field, column)
    if pa.types.is_struct(kind):
        parts = [as_json(kind.field(index), part) for index, part in enumerate(column.flatten())]
        names = [kind.field(index).name for index in range(kind.num_fields)]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*parts, strict=True)]
        return [row if known else None for row, known in zip(rows, column.is_valid().to_pylist(), strict=True)]
    return _scalars(field.name, column)


def as_text(name: str, column: pa.Array) -> pa.Array:
    """Cells as texts.

    Raises:
        DataError: of a column whose type, or whose dates, no text can tell.
    """
    try:
        texts = column.cast(pa.string())
    except pa.ArrowException as error:
        raise DataError(f"column {name!r} of type {column.type} cannot be text", hint="a .parquet file") from error
    # Instead of failing, Arrow writes these words where the years have more than five digits.
    if pa.types.is_temporal(column.type) and pc.any(pc.starts_with(texts, "<value out of range")).as_py():
        raise DataError(f"column {name!r} has dates that texts cannot tell", hint="a .parquet file")
    return texts


def _scalars(name: str, column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_floating(kind):
        return [_finite(name, value) for value in column.to_pylist()]
    if pa.types.is_duration(kind):
        return list(column.cast(pa.int64()).to_pylist())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return list(column.to_pylist())
    return list(as_text(name, column).to_pylist())


def _finite(name: str, value: float | None) -> float | None:
    if value is not None and math.isinf(value):
        raise DataError(f"column {name!r} has an infinite value, which JSON cannot hold", hint="a .parquet file")
    return None if value is None or math.isnan(value) else value


def _lists(field: pa.Field, column: pa.Array) -> list[Any]:
    flat = iter(as_json(pa.field(field.name, column.type.value_type), column.flatten()))
    lengths = pc.list_value_length(column).to_pylist()
    return [None if length is None else [next(flat) for _ in range(length)] for length in lengths]


def _object(name: str, bag: list[tuple[Any, Any]] | None) -> dict[str, Any] | None:
    """An object of a map's entries; those of one key are summed, as JSON has each key once."""
    if bag is None:
        return None
    entries = dict[str, Any]()
    for key, value in bag:
        number = _finite(name, value) if isinstance(value, float) else value
        entries[str(key)] = entries[str(key)] + number if str(key) in entries else number
    return entries


def _spread(column: pa.Array, rows: list[Any]) -> list[Any]:
    """The rows that are there, with None between them."""
    known = iter(rows)
    return [next(known) if there else None for there in column.is_valid().to_pylist()]


def _nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0]
    return [_nested(flat[i : i + step], shape[1:]) for i in range(0, len(flat), step)]
