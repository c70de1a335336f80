"""Where in a row blame lies: maps of images, steps of series and sounds, tokens of texts, elements of arrays.

    blame of cells (B, cells) -> a tensor as large as the picture or array | a list as long as the series or text
                              -> beside the picture itself, as a picture to look at

Channels of a pixel or step are added up. Cells that have no place, such as a ragged series' length, are left out here.
What this file does not know: whether there is anything to see in a map; that of an ordinary row is dark.
"""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.prepare.arrow import tensors
from narrows.schema import Batch, Column, Schema
from narrows.sources.reading import field
from narrows.tasks.detect import Detector

Floats = npt.NDArray[np.float64]
RED, DIM = np.array([1.0, 0.1, 0.0]), 0.6  # of what is to blame, and how bright the gray beneath it is
HOT = 10.0  # times the blame that each pixel has where a score at the threshold is shared evenly


def heat_type(column: Column) -> pa.DataType | None:
    """The Arrow type of a column's heat; None where it has no elements: scalars and bags."""
    if not column.cells or column.kind in ("bag", "date") or not (column.shape or column.grid):
        return None
    if len(column.grid) == 3:
        return pa.fixed_shape_tensor(pa.float32(), plane(column))
    return pa.list_(pa.float32()) if column.grid else pa.fixed_shape_tensor(pa.float32(), column.shape)


def plane(column: Column) -> tuple[int, int]:
    """Height and width of an image column."""
    first, second, third = column.grid
    return (second, third) if _channels_first(column) else (first, second)


def _channels_first(column: Column) -> bool:
    first, _, third = column.grid
    return first in (1, 3) and third not in (1, 3)


def heat(column: Column, cells: Tensor, rows: Batch, schema: Schema) -> pa.Array:
    """The heat of rows.

    Args:
        column: one that has it.
        cells: (B, cells) blame of the column's cells.
        rows: the prepared rows: of ragged series and texts the heat ends where they do.
        schema: of the rows.
    """
    if not column.grid:
        return tensors(pa.array(cells.flatten().float().numpy()), pa.float32(), column.shape)
    places = on_grid(column, cells)
    if len(column.grid) == 3:
        return tensors(pa.array(places.flatten().float().numpy()), pa.float32(), plane(column))
    ends = _ends(column, rows, schema)
    within = torch.arange(places.shape[1]) < ends[:, None]
    offsets = np.concatenate([[0], ends.cumsum(0).numpy()])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(places[within].float().numpy()))


def on_grid(column: Column, cells: Tensor) -> Tensor:
    """(B, height, width) or (B, steps) blame of each position."""
    values = cells[:, : prod(column.grid)].reshape(-1, *column.grid)
    if len(column.grid) == 3:
        return values.sum(1 if _channels_first(column) else 3)
    return values.sum(2) if len(column.grid) == 2 else values


def _ends(column: Column, rows: Batch, schema: Schema) -> Tensor:
    """(B,) steps of each row; those behind the end of a ragged one were not seen."""
    steps = column.grid[0]
    if column.shape or rows.seen is None:
        return torch.full((len(rows),), steps)
    seen = rows.dense().mask()[:, schema.spans[column.name]][:, : prod(column.grid)]
    there = seen.reshape(len(rows), steps, -1).any(2)
    return (there * torch.arange(1, steps + 1)).amax(1)


def hottest(column: Column, cells: Tensor) -> list[str]:
    """The place of most blame in each row, in words; all are counted from 0."""
    places = on_grid(column, cells).flatten(1).argmax(1).tolist()
    if len(column.grid) == 3:
        width = plane(column)[1]
        return [f"around row {place // width}, column {place % width}" for place in places]
    word = "token" if column.categorical else "step"
    return [f"around {word} {place}" for place in places]


def pictured(model: Model) -> Column | None:
    """The image column of a model that has one and no more, or None."""
    found = [column for column in model.schema if column.kind == "image" and len(column.grid) == 3]
    return found[0] if len(found) == 1 else None


def picture_field(column: Column) -> pa.Field:
    """The Arrow field of pictures beside their heat."""
    height, width = plane(column)
    return field(column.name, pa.fixed_shape_tensor(pa.uint8(), (height, 2 * width, 3)), kind="image")


def pictures(detector: Detector, column: Column, rows: Batch) -> pa.RecordBatch:
    """Rows as pictures, each beside its heat: all red is ten times the even share of a score at the threshold."""
    span = detector.model.schema.spans[column.name]
    numbers = rows.numbers[:, span].double()
    if not column.bounded:
        scaling = detector.model.preparer.scaling
        low, high = scaling.low[span].min(), scaling.high[span].max()
        numbers = (numbers - low) / (high - low).clamp_min(1e-9)
    values = numbers[:, : prod(column.grid)].reshape(-1, *column.grid)
    values = values.movedim(1, 3) if _channels_first(column) else values
    blame = on_grid(column, detector.blame(rows).cells[:, span])
    full = HOT * max(detector.threshold, 1.0) / blame[0].numel()
    pixels = [beside(_color(picture.numpy()), hot.numpy(), full) for picture, hot in zip(values, blame, strict=True)]
    entry = picture_field(column)
    shown = tensors(pa.array(np.stack(pixels).reshape(-1)), pa.uint8(), tuple(entry.type.shape))
    return pa.RecordBatch.from_arrays([shown], schema=pa.schema([entry]))


def _color(picture: Floats) -> Floats:
    """(H, W, 3) of (H, W, channels); other channels than three as one gray."""
    gray = picture.mean(2, keepdims=True)
    return picture if picture.shape[2] == 3 else np.repeat(gray, 3, axis=2)


def beside(picture: Floats, blame: Floats, full: float) -> npt.NDArray[np.uint8]:
    """(H, 2W, 3) a picture (H, W, 3) in [0, 1], and in gray with its blame (H, W), from 0 to `full`, in red."""
    strength = (blame / full).clip(0, 1)[..., None]
    gray = DIM * picture.mean(2, keepdims=True)
    heated = gray * (1 - strength) + RED * strength
    return np.asarray(np.rint(np.concatenate([picture, heated], axis=1).clip(0, 1) * 255), dtype=np.uint8)
