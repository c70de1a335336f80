"""Incoming rows to the columns a model was trained on: by name, or a matrix for a table of numbers and back.

Knows names, types and widths, never values.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow as pa

from narrows.errors import DataError
from narrows.prepare.arrow import Values, read_numbers, read_tensors, tensors
from narrows.prepare.arrow_types import is_plain_number, is_tensor
from narrows.schema import Column, Schema
from narrows.sources.reading import ASIDE, CHANNELS, RATE, fact

SHOWN = 8  # names in a message
SIGNALS = (
    (CHANNELS, "channels", "the same columns in the same order"),
    (RATE, "samples per second:", "sounds resampled to that rate"),
)


def align(rows: pa.RecordBatch, schema: Schema, types: list[pa.DataType]) -> tuple[list[Values], list[str]]:
    """The columns of the schema, in its order, and the names of columns that are not in it.

    A lone tensor column stands for a table of as many number columns, or for the lone tensor column of another name
    but the same width that the model was trained on; a table of numbers stands for a lone matrix column. Columns that
    stand aside are passed over.

    Args:
        rows: the rows as they came.
        schema: the columns the model was trained on.
        types: their Arrow types.

    Raises:
        DataError: where columns are missing, stand twice, or have another width.
    """
    known = set(schema.names)
    rows = rows.select([i for i, entry in enumerate(rows.schema) if entry.name in known or not fact(entry, ASIDE)])
    names = list(rows.schema.names)
    lone = schema.columns[0] if len(schema) == 1 else None
    if lone is not None and lone.shape:
        if lone.name in names and is_tensor(rows.schema.field(lone.name).type):
            return [_same_width(rows.column(lone.name), lone)], [name for name in names if name != lone.name]
        if len(names) == 1 and is_tensor(rows.schema.types[0]):
            return [_same_width(rows.column(0), lone)], []
        return [_as_matrix(rows, lone)], []
    if len(names) == 1 and is_tensor(rows.schema.types[0]) and not any(column.shape for column in schema):
        return _as_columns(rows.column(0), schema, types), []
    return _by_name(rows, schema), [name for name in names if name not in known]


def refuse_other_signals(rows: pa.Schema, trained: pa.Schema) -> None:
    """Checks that series come with the channels, and sounds with the rate, that they had in training.

    Only where both sides say so: arrays have neither.

    Raises:
        DataError: naming the column and both.
    """
    for column in trained:
        entry = rows.field(column.name) if column.name in rows.names else column
        for key, what, hint in SIGNALS:
            got, wanted = fact(entry, key), fact(column, key)
            if got and wanted and got != wanted:
                raise DataError(f"column {column.name!r} with {what} {got}", f"{what} {wanted}, as in training", hint)


def _by_name(rows: pa.RecordBatch, schema: Schema) -> list[Values]:
    names = Counter(rows.schema.names)
    missing = [name for name in schema.names if name not in names]
    if missing:
        came = f"the rows have {_listed(rows.schema.names)}"
        raise DataError(f"no column {_listed(missing)}: {came}", f"the {len(schema)} columns of the training rows")
    twice = [name for name in schema.names if names[name] > 1]
    if twice:
        raise DataError(f"column {_listed(twice)} stands twice in the rows", "each column once")
    return [_same_width(rows.column(column.name), column) for column in schema]


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "none"


def _same_width(array: Values, column: Column) -> Values:
    """Checks that a column holds tensors of as many cells as in training, or no tensors."""
    if is_tensor(array.type) != bool(column.shape):
        raise DataError(f"column {column.name!r} came as {array.type}", _wanted(column))
    if column.shape and math.prod(array.type.shape) != math.prod(column.shape):
        raise DataError(f"column {column.name!r} came with shape {tuple(array.type.shape)}", _wanted(column))
    return array


def _wanted(column: Column) -> str:
    return f"shape {column.shape}, as in training" if column.shape else f"{column.type}, as in training"


def _as_matrix(rows: pa.RecordBatch, column: Column) -> Values:
    """A table of numbers as the lone matrix column of the model."""
    width = math.prod(column.shape)
    if any(is_tensor(arrow) for arrow in rows.schema.types):
        raise DataError(f"columns {_listed(rows.schema.names)}", f"one column of tensors: {_wanted(column)}")
    if rows.num_columns != width:
        raise DataError(f"rows of {rows.num_columns} columns", f"rows of {width} numbers, as in training")
    pairs = zip(rows.schema.names, rows.columns, strict=True)
    blocks = [read_numbers(array, pa.float64(), name) for name, array in pairs]
    return tensors(pa.array(np.stack(blocks, axis=1).reshape(-1)), pa.float64(), column.shape)


def _as_columns(array: Values, schema: Schema, types: list[pa.DataType]) -> list[Values]:
    """The elements of a lone matrix column as the number columns of the model, in their order."""
    if any(not is_plain_number(arrow) for arrow in types):
        other = next(c.name for c, arrow in zip(schema, types, strict=True) if not is_plain_number(arrow))
        raise DataError("rows without column names", f"named columns: {other!r} is not of numbers")
    cells = read_tensors(array)
    if cells.shape[1] != len(schema):
        raise DataError(f"rows of {cells.shape[1]} numbers", f"rows of {len(schema)}, as in training")
    return [pa.array(np.ascontiguousarray(cells[:, i])) for i in range(len(schema))]
