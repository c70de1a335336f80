"""Incoming rows to the columns a model was trained on: by name, or a matrix for a table of numbers and back.

Knows names, types and widths, never values.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from narrows.errors import DataError
from narrows.prepare.arrow import Values, missing_tensors, place, read_numbers, read_tensors, tensors
from narrows.prepare.arrow_types import Type, is_list, is_plain_number, is_tensor, is_text
from narrows.prepare.ragged import as_lists, as_tensors
from narrows.schema import Column, Schema
from narrows.sources.reading import ASIDE, CHANNELS, KIND, RATE, fact

SHOWN = 8  # names in a message
SIGNALS = (
    (CHANNELS, "channels", "the same columns in the same order"),
    (RATE, "samples per second:", "sounds resampled to that rate"),
)


def align(
    rows: pa.RecordBatch, schema: Schema, types: list[pa.DataType], first_row: int = 0
) -> tuple[list[Values], list[str]]:
    """The columns of the schema, in its order, and the names of columns that are not in it.

    A lone tensor column stands for a table of as many number columns, or for the lone tensor column of another name
    but the same width that the model was trained on; a table of numbers stands for a lone matrix column. Lists that
    all have the length of training stand for tensors, and tensors for lists: a JSON file does not say which it means.
    Columns that stand aside are passed over.

    Args:
        rows: the rows as they came.
        schema: the columns the model was trained on.
        types: their Arrow types.
        first_row: as in `place`, for messages.

    Raises:
        DataError: where columns are missing, stand twice, or have another width.
    """
    known = set(schema.names)
    rows = rows.select([i for i, entry in enumerate(rows.schema) if entry.name in known or not fact(entry, ASIDE)])
    rows = _as_trained(rows, schema, types, first_row)
    names = list(rows.schema.names)
    lone = schema.columns[0] if len(schema) == 1 else None
    if lone is not None and lone.shape:
        if lone.name in names and is_tensor(rows.schema.field(lone.name).type):
            return [_same_width(rows.column(lone.name), lone)], [name for name in names if name != lone.name]
        if len(names) == 1 and is_tensor(rows.schema.types[0]):
            return [_same_width(rows.column(0), lone)], []
        return [_as_matrix(rows, lone)], []
    plain = all(is_plain_number(arrow) for arrow in types) or (names == ["x"] and not fact(rows.schema.field(0), KIND))
    if len(names) == 1 and is_tensor(rows.schema.types[0]) and plain and not any(column.shape for column in schema):
        return _as_columns(rows.column(0), schema, types), []
    return _by_name(rows, schema), [name for name in names if name not in known]


def refuse_other_signals(rows: pa.Schema, trained: pa.Schema) -> None:
    """Checks that series come with the channels, and sounds with the rate, that they had in training.

    Only where both sides say so: arrays have neither.

    Raises:
        DataError: naming the column and both.
    """
    for column in trained:
        if not column.metadata:  # it says nothing of a signal
            continue
        entry = rows.field(column.name) if column.name in rows.names else column
        for key, what, hint in SIGNALS:
            got, wanted = fact(entry, key), fact(column, key)
            if got and wanted and got != wanted:
                raise DataError(f"column {column.name!r} with {what} {got}", f"{what} {wanted}, as in training", hint)


def _as_trained(rows: pa.RecordBatch, schema: Schema, types: list[Type], first_row: int) -> pa.RecordBatch:
    """The rows with lists where training had lists, and tensors where it had tensors, as far as they are alike."""
    names = list(rows.schema.names)
    for column, arrow in zip(schema, types, strict=True):
        if names.count(column.name) != 1 or not (column.shape or is_list(arrow)):
            continue
        at = names.index(column.name)
        array = rows.column(at)
        if is_text(array.type) or (pa.types.is_list(array.type) and not is_list(array.type)):
            _refuse_unlike(array, column, arrow, first_row)
        elif column.shape and pa.types.is_null(array.type):
            array = missing_tensors(len(array), arrow, column.shape)
        elif column.shape and is_list(array.type):
            array = as_tensors(array, column.shape, column.name, first_row)
        elif not column.shape and is_tensor(array.type) and len(array.type.shape) < 3:
            array = as_lists(array)
        rows = rows.set_column(at, rows.schema.field(at).with_type(array.type), array)
    return rows


def _refuse_unlike(array: Values, column: Column, arrow: Type, first_row: int) -> None:
    """Refuse what is no numbers in lists by its first row that is none: that one made texts of all of a JSON file."""
    depth = 0 if column.shape else 2 if pa.types.is_fixed_size_list(arrow.value_type) else 1
    for row, value in enumerate(array.to_pylist()):
        shape = None if value is None else _shape_of(value)
        if shape is not None and (shape != column.shape if column.shape else len(shape) != depth):
            got = f"column {column.name!r}, {place(first_row, row)}: {str(value)[:40]!r}"
            raise DataError(got, _wanted(column))


def _shape_of(value: Any) -> tuple[int, ...]:
    """The shape of lists of numbers, or of a text that spells them; of anything else ()."""
    try:
        cells = np.asarray(json.loads(value) if isinstance(value, str) else value, dtype=object)
    except ValueError:
        return ()
    numbers = all(cell is None or type(cell) in (int, float) for cell in cells.flat)
    return cells.shape if numbers else ()


def _by_name(rows: pa.RecordBatch, schema: Schema) -> list[Values]:
    names = Counter(rows.schema.names)
    missing = [name for name in schema.names if name not in names]
    if missing:
        came = f"the rows have {_listed(rows.schema.names)}"
        wanted = f"the {len(schema)} columns of the training rows" if len(schema) > 1 else "the column of training"
        raise DataError(f"no column {_listed(missing)}: {came}", wanted)
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
        hint = "scaling them; a model that was trained with size= (--size) scales by itself"
        got = f"column {column.name!r} came with shape {tuple(array.type.shape)}"
        raise DataError(got, _wanted(column), hint if column.kind == "image" else "")
    return array


def _wanted(column: Column) -> str:
    return f"shape {column.shape}, as in training" if column.shape else f"{column.type}, as in training"


def _as_matrix(rows: pa.RecordBatch, column: Column) -> Values:
    """A table of numbers as the lone matrix column of the model."""
    width = math.prod(column.shape)
    if any(is_tensor(arrow) for arrow in rows.schema.types):
        raise DataError(f"columns {_listed(rows.schema.names)}", f"one column of tensors: {_wanted(column)}")
    if rows.num_columns != width:
        wanted = f"column {column.name!r} of shape {column.shape}, or {width} columns of numbers, as in training"
        raise DataError(f"rows with {_listed(rows.schema.names)}", wanted)
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
