"""Data without noise as it lies on disk: pictures of any size, sounds and series whole, however they were cut to train.

    picture files      each in its own size, unless the model scales images
    sound files        each whole, where training cut them into windows
    table of steps     the same table, its channels cleaned, where training cut it into windows
    anything else      row by row, as `denoise` does

One picture, sound file or table is in memory at a time. What this file does not know: how tiles are put together.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from narrows.errors import DataError, DataWarning
from narrows.fitted import Model
from narrows.prepare.alignment import refuse_other_signals
from narrows.prepare.arrow import tensors, to_dtype
from narrows.schema import Column
from narrows.sources.arrays import flat
from narrows.sources.paths import IMAGES, File, find
from narrows.sources.pixels import decoded, ignoring_pillow
from narrows.sources.reading import Reading, asides, field
from narrows.sources.source import naming, open_source
from narrows.sources.survey import Roles
from narrows.tasks.denoise import Rows, cleaned_schema, denoise_whole, denoised, gridded
from narrows.tasks.tiles import Array


@dataclass(frozen=True)
class Cleaned:
    """Rows without noise, to be read once.

    Args:
        aside: the columns of the raw rows that stand aside: paths, labels, starts.
        schema: of the clean rows; pictures have their own heights and widths, here those of the first.
        rows: raw and clean ones.
    """

    aside: list[pa.Field]
    schema: pa.Schema
    rows: Rows


def cleaned(model: Model, data: str, reading: Reading, fill: bool = True) -> Cleaned:
    """Data without its noise.

    Args:
        model: see `denoise`.
        data: a file, glob, folder or URL.
        reading: what is to be said of the file at hand.
        fill: give what was missing too.

    Raises:
        DataError: for data that does not fit the model.
    """
    column, asked = gridded(model), model.reading.of_file(reading)
    if column and column.kind == "image" and asked.size is None and (files := _pictures(data)):
        return _clean_pictures(model, column, files, asked)
    if column and column.kind == "series" and asked.window is not None:
        return _clean_steps(model, column, data, asked, fill)
    if column and column.kind == "audio" and asked.window is not None:
        source = open_source(data, reading=replace(asked, window=None, stride=None))
    else:
        source = model.source(data, reading)
    return Cleaned(asides(source.schema), cleaned_schema(model, source), denoised(model, source, fill))


def _pictures(data: str) -> list[File]:
    """The image files that data stands for; none where it is something else."""
    files = [] if data == "digits" else find(data)
    return files if all(PurePosixPath(file.path).suffix.lower() in IMAGES for file in files) else []


def _clean_pictures(model: Model, column: Column, files: list[File], reading: Reading) -> Cleaned:
    """Each picture by itself; what cannot be read is left out with a warning, unless the reading is strict."""
    path = field("path", pa.string(), aside=True)

    def rows() -> Rows:
        for file in files:
            try:
                with ignoring_pillow():
                    pixels: Array = decoded(file, column.grid[-1])
            except DataError as error:
                if reading.strict:
                    raise
                warnings.warn(f"left out: {error}", DataWarning, stacklevel=3)
                continue
            clean = denoise_whole(model, pixels.reshape(*pixels.shape[:2], *column.shape[2:]))
            image = tensors(flat(clean), pa.uint8(), clean.shape)
            yield pa.RecordBatch.from_arrays([pa.array([file.name])], schema=pa.schema([path])), _lone(column, image)

    every = rows()
    first = next(every, None)
    if first is None:
        raise DataError(f"none of {len(files)} pictures can be read", "at least one that is whole")
    return Cleaned([path], first[1].schema, _before(first, every))


def _before(first: tuple[pa.RecordBatch, pa.RecordBatch], rest: Rows) -> Rows:
    yield first
    yield from rest


def _lone(column: Column, values: pa.Array) -> pa.RecordBatch:
    """One column of the model's name and kind."""
    return pa.RecordBatch.from_arrays([values], schema=pa.schema([field(column.name, values.type, kind=column.kind)]))


def _clean_steps(model: Model, column: Column, data: str, reading: Reading, fill: bool) -> Cleaned:
    """A table of consecutive rows with its channels cleaned, series by series; other columns stay as they are."""
    table = open_source(data, reading=replace(reading, form="auto", window=None, stride=None, stamp=None, series=None))
    with naming(table):
        roles = Roles.of(table, reading)
        channels = field(column.name, pa.null(), kind="series", channels=roles.names)
        refuse_other_signals(pa.schema([channels]), model.preparer.arrow_schema)

    def rows() -> Rows:
        for _, pieces in table.stretches:
            batches = [batch for piece in pieces for _, batch in table.read(piece)]
            for part in _series(pa.Table.from_batches(batches, table.schema), roles):
                with naming(table):
                    clean = _clean_channels(model, column, part, roles, fill)
                yield part.slice(0, 0).select([]), clean

    return Cleaned([], table.schema, rows())


def _series(rows: pa.Table, roles: Roles) -> Iterator[pa.RecordBatch]:
    """The rows of each series."""
    whole = rows.combine_chunks().to_batches()
    labels = rows.column(roles.series).to_pylist() if roles.series else []
    cuts = [i for i in range(1, len(labels)) if labels[i] != labels[i - 1]]
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        if whole and stop > start:
            yield whole[0].slice(start, stop - start)


def _clean_channels(model: Model, column: Column, rows: pa.RecordBatch, roles: Roles, fill: bool) -> pa.RecordBatch:
    values = roles.values(rows)
    steps = denoise_whole(model, values.reshape(len(values), *column.shape[1:]), fill=fill).reshape(values.shape)
    start = 0
    for entry in roles.channels:
        tensor = isinstance(entry.type, pa.FixedShapeTensorType)
        width = int(np.prod(entry.type.shape)) if tensor else 1
        block = steps[:, start : start + width]
        written = _tensors(entry.type, block) if tensor else _numbers(entry.type, block[:, 0])
        rows = rows.set_column(rows.schema.get_field_index(entry.name), entry, written)
        start += width
    return rows


def _numbers(kind: pa.DataType, values: Array) -> pa.Array:
    """Numbers of a type, missing ones as nulls; whole numbers are rounded."""
    if pa.types.is_integer(kind):
        return pa.array(to_dtype(values, np.dtype(kind.to_pandas_dtype())), kind, mask=np.isnan(values))
    return pa.array(values, mask=np.isnan(values)).cast(kind, safe=False)


def _tensors(kind: pa.DataType, values: Array) -> pa.Array:
    cells = values.reshape(-1)
    return tensors(
        pa.array(to_dtype(cells, np.dtype(kind.value_type.to_pandas_dtype()))), kind.value_type, tuple(kind.shape)
    )
