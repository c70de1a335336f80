"""Noisy rows to clean ones: what a model makes of them, and the same for images and series of any size.

A model that was trained to reconstruct what noise was added to (the recipe `denoising`) takes noise away; any other
keeps what its code has room for, which is less of the detail and less of the noise. An image larger than the model's,
or a series longer, goes through in overlapping tiles (see `tasks.tiles`).
What this file does not know: how strong the noise is. A model takes away what it was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from narrows.errors import DataError, SettingError
from narrows.fitted import Model
from narrows.prepare.arrow import read_tensors, tensors, to_dtype
from narrows.prepare.arrow_types import is_list
from narrows.prepare.ragged import number_of, read_lists
from narrows.schema import Batch, Column
from narrows.sources.arrays import flat
from narrows.sources.reading import modeled
from narrows.sources.source import Source, naming
from narrows.tasks.tiles import Array, in_tiles

Rows = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]


def denoise(model: Model, rows: Any, *, fill: bool = True) -> pa.Table:
    """Rows without their noise, with the columns of the training data.

    Args:
        model: best of the recipe `denoising`, with noise as strong as that of the rows.
        rows: anything `open_source` takes. Images may be of another size than those of training, series and sounds
            longer: they come back in their own size.
        fill: give what was missing too, in place of leaving it missing.

    Raises:
        DataError: for rows that do not fit.
    """
    source = model.source(rows)
    return pa.Table.from_batches([clean for _, clean in denoised(model, source, fill)], cleaned_schema(model, source))


def denoised(model: Model, source: Source, fill: bool = True) -> Rows:
    """Raw rows and clean ones, as `denoise` gives them, in order; `cleaned_schema` is the schema of the latter."""
    if resized(model, source):
        schema = cleaned_schema(model, source)
        for _, raw in source.batches():
            with naming(source):
                clean = _in_own_size(model, raw.column(schema.names[0]), fill)
            yield raw, pa.RecordBatch.from_arrays([clean], schema=schema)
        return
    for raw, batch in model.batches(source):
        clean = model.rows(model.codes(batch))
        yield raw, clean if fill else with_holes(model, clean, batch)


def denoise_whole(model: Model, array: Array, *, fill: bool = True) -> Array:
    """One image, series or sound of any size without its noise.

    Args:
        model: of rows that are one image, series or sound of one length.
        array: (H, W) or (H, W, channels), (T,) or (T, channels), with the channels of training and in its units.
        fill: give what was missing (NaN) too.

    Returns:
        The same shape and dtype; whole numbers are rounded and kept within their type.

    Raises:
        DataError: for an array of other channels, or without elements.
        SettingError: for a model of other rows.
    """
    column = gridded(model)
    if column is None:
        got = "a model whose rows are not one image, series or sound of one length"
        raise SettingError(got, hint="denoise(model, rows)")
    axes = len(column.grid) - 1
    wanted = ("any",) * axes + column.shape[axes:]
    if array.ndim != len(wanted) or array.shape[axes:] != wanted[axes:] or not array.size:
        said = f"({', '.join(map(str, wanted))}), since a row of training has {column.shape}"
        raise DataError(f"an array of shape {array.shape}", f"shape {said}")
    clean: Array = in_tiles(array, column.shape[:axes], lambda tiles: _told(model, column, tiles))
    if array.dtype.kind in "iu":
        return to_dtype(clean, array.dtype)
    return (clean if fill else np.where(np.isnan(array), np.nan, clean)).astype(array.dtype)


def gridded(model: Model) -> Column | None:
    """The column of a model whose rows are one image, series or sound of one length and nothing else, or None."""
    column = model.schema.columns[0]
    fits = len(model.schema) == 1 and column.grid and column.shape and not column.categorical
    return column if fits else None


def resized(model: Model, source: Source) -> bool:
    """Whether a source has images, series or sounds of another size than the model's, which go through in tiles."""
    column, entries = gridded(model), modeled(source.schema)
    if column is None or len(entries) != 1:
        return False
    kind = entries[0].type
    if not isinstance(kind, pa.FixedShapeTensorType):
        return is_list(kind)
    return len(kind.shape) == len(column.shape) and prod(kind.shape) != prod(column.shape)


def cleaned_schema(model: Model, source: Source) -> pa.Schema:
    """The schema of clean rows: that of training, or of the source where these have another size."""
    trained = model.preparer.arrow_schema
    if not resized(model, source):
        return trained
    entry = modeled(source.schema)[0]
    return pa.schema([entry if entry.metadata else entry.with_metadata(trained.field(0).metadata)])


def _told(model: Model, column: Column, tiles: Array) -> Array:
    """What a model makes of tiles (n, *shape of a row)."""
    rows = tensors(flat(tiles), pa.from_numpy_dtype(tiles.dtype), column.shape)
    batch = model.preparer.prepare(pa.RecordBatch.from_arrays([rows], [column.name]))
    return read_tensors(model.rows(model.codes(batch)).column(0)).reshape(tiles.shape)


def _in_own_size(model: Model, column: pa.Array, fill: bool) -> pa.Array:
    """A column of tensors or lists without noise; missing and empty rows stay as they are.

    Raises:
        DataError: as `denoise_whole`.
    """
    tensor = isinstance(column, pa.FixedShapeTensorArray)
    gone = np.asarray(column.is_null())
    rows = list(read_tensors(column).reshape(-1, *column.type.shape)) if tensor else _series(model, column)
    pairs = zip(rows, gone, strict=True)
    clean = [row if lost or not row.size else denoise_whole(model, row, fill=fill) for row, lost in pairs]
    cells = _numbers([row.reshape(-1) for row in clean], column.type.value_type if tensor else number_of(column.type))
    if tensor:
        stored = pa.FixedSizeListArray.from_arrays(cells, type=column.type.storage_type, mask=pa.array(gone))
        return pa.ExtensionArray.from_storage(column.type, stored)
    if pa.types.is_fixed_size_list(column.type.value_type):
        cells = pa.FixedSizeListArray.from_arrays(cells, type=column.type.value_type)
    large = pa.types.is_large_list(column.type)
    places = pa.array(np.cumsum([0, *map(len, clean)]), pa.int64() if large else pa.int32())
    made = pa.LargeListArray if large else pa.ListArray
    return made.from_arrays(places, cells, type=column.type, mask=pa.array(gone))


def _numbers(parts: list[Array], number: pa.DataType) -> pa.Array:
    """Numbers as Arrow values of a type; what is missing is NaN among floats, null among whole numbers."""
    values, dtype = np.concatenate([np.zeros(0), *parts]), np.dtype(number.to_pandas_dtype())
    return pa.array(to_dtype(values, dtype), number, mask=None if dtype.kind == "f" else np.isnan(values))


def _series(model: Model, column: pa.Array) -> list[Array]:
    """Lists of steps as arrays (T,) or (T, channels), as the model's rows are."""
    ragged, trained = read_lists(column), gridded(model)
    values = ragged.values[:, 0] if trained and len(trained.shape) == 1 else ragged.values
    return np.split(values, ragged.offsets[1:-1])


def with_holes(model: Model, clean: pa.RecordBatch, batch: Batch) -> pa.RecordBatch:
    """Clean rows without what was missing of them: cells of arrays, else whole values."""
    if batch.seen is None:
        return clean
    seen = batch.dense().mask()
    columns = [
        _hollow(array, entry, seen[:, model.schema.spans[entry.name]])
        for entry, array in zip(model.schema, clean.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=clean.schema)


def _hollow(array: pa.Array, column: Column, seen: torch.Tensor) -> pa.Array:
    """Values of a column, missing where their cells (B, cells) were not seen; where one has several, none of them."""
    if not seen.shape[1] or bool(seen.all()):
        return array
    as_they_stand = column.grid in ((), (*column.shape, 1)[: len(column.grid)])  # no spectra
    if column.shape and as_they_stand and column.cells == prod(column.shape):
        cells = np.where(seen.numpy(), read_tensors(array), np.nan)
        stored = pa.FixedSizeListArray.from_arrays(
            _numbers([cells.reshape(-1)], array.type.value_type), type=array.type.storage_type
        )
        return pa.ExtensionArray.from_storage(array.type, stored)
    return array.take(pa.array(np.arange(len(array)), mask=~seen.any(1).numpy()))
