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

from narrows.prepare.arrow import tensors
from narrows.schema import Batch, Column, Schema

Floats = npt.NDArray[np.float64]


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


def beside(picture: Floats, blame: Floats, full: float) -> npt.NDArray[np.uint8]:
    """(H, 2W, 3) a picture, and the same in gray with its blame in red.

    Args:
        picture: (H, W) or (H, W, 3) in [0, 1].
        blame: (H, W) from 0 up.
        full: blame that is all red.
    """
    color = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    strength = (blame / full).clip(0, 1)[..., None]
    gray = np.repeat(color.mean(2, keepdims=True), 3, axis=2) * 0.6
    heated = gray * (1 - strength) + np.array([1.0, 0.1, 0.0]) * strength
    pixels = np.concatenate([color, heated], axis=1)
    return np.asarray(np.rint(pixels.clip(0, 1) * 255), dtype=np.uint8)
