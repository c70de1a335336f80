"""A preparer as plain JSON and tensors, and the checks that make one of them again, whatever a file claims.

Nothing is allocated by what the JSON says: widths and levels must agree with the tensors and lists that are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pydantic
import torch
from torch import Tensor

from narrows.errors import ModelFileError, NarrowsError, SettingError
from narrows.prepare.arrow import column_type
from narrows.prepare.arrow_types import is_list, is_map, is_text, nature, parse_type
from narrows.prepare.bags import Items
from narrows.prepare.categories import Levels, levels_from_json, levels_to_json
from narrows.prepare.compact import values_from_tensors, values_to_tensors
from narrows.prepare.dates import PARTS, PARTS_WITHOUT_CLOCK
from narrows.prepare.learning import Layout, grid_of, possible_kinds
from narrows.prepare.ragged import channels_of
from narrows.prepare.series import Series
from narrows.prepare.tokens import Vocabulary
from narrows.prepare.transforms import KNOTS, LIMIT, Scaling
from narrows.prepare.words import FITTING
from narrows.schema import Column, Schema
from narrows.tensorfile import under

MISSING_CELLS = 1 << 22  # most cells believed of a bag, or of a column that was all missing: no tensor backs them
MOST_NUMBERS = 1 << 16  # of a level's vector, and codes of unseen levels
LEVELS = "levels."  # what the names of tensors with levels begin with, before the column's place
LONGEST_FRAME = 1 << 16  # samples of a spectrum's: a window of that many is allocated
ROOMS: dict[type, str] = {Series: "series", Vocabulary: "texts", Items: "bags"}


class StoredLevels(pydantic.BaseModel):
    """The JSON of one category column's `Levels`; of many texts or whole numbers the values are tensors instead."""

    model_config = pydantic.ConfigDict(extra="forbid")
    values: list[Any] | None
    rest: float = pydantic.Field(ge=0, le=1)


class Facts(pydantic.BaseModel):
    """The JSON half: the columns in order, and by name the levels of categories, the layouts of other columns."""

    model_config = pydantic.ConfigDict(extra="forbid")
    columns: list[Column]
    levels: dict[str, StoredLevels]
    series: dict[str, Series] = {}
    texts: dict[str, Vocabulary] = {}
    bags: dict[str, Items] = {}


def to_stored(
    schema: Schema, layouts: Mapping[str, Layout], scaling: Scaling
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON and tensors of a preparer's parts."""
    facts: dict[str, Any] = {"columns": schema.to_json(), "levels": {}, **{room: {} for room in ROOMS.values()}}
    tensors: dict[str, Tensor] = {}
    for place, column in enumerate(schema):
        layout = layouts.get(column.name)
        if isinstance(layout, Levels):
            values = levels_to_json(layout.values)
            many = values_to_tensors(values) if column.classes else {}
            tensors |= {f"{LEVELS}{place}.{key}": tensor for key, tensor in many.items()}
            facts["levels"][column.name] = {"values": None if many else values, "rest": layout.rest}
        elif layout is not None:
            facts[ROOMS[type(layout)]][column.name] = asdict(layout)
    return facts, dict(scaling.state_dict()) | tensors


def from_stored(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Schema, dict[str, Layout], Scaling]:
    """The parts that `to_stored` wrote.

    Raises:
        ModelFileError: where JSON and tensors are not those of a preparer, or do not fit each other.
    """
    try:
        checked = Facts.model_validate(dict(facts))
        schema = Schema(tuple(_with_grid(column) for column in checked.columns))
        _require(len(schema) > 0 and len(set(schema.names)) == len(schema), "column names")
        for column in schema:
            _check_column(column)
        of_levels = {name: tensor for name, tensor in tensors.items() if name.startswith(LEVELS)}
        layouts = _checked_levels(schema, checked.levels, of_levels) | _checked_series(schema, checked.series)
        layouts |= _checked_texts(schema, checked.texts) | _checked_bags(schema, checked.bags)
        others = {name: tensor for name, tensor in tensors.items() if name not in of_levels}
        return schema, layouts, _checked_scaling(schema.dense, others)
    except (ModelFileError, SettingError):  # the latter where a library is not installed
        raise
    except (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException, NarrowsError) as error:
        raise ModelFileError(f"the preparer in this file is damaged: {_words(error)}") from error


def _with_grid(column: Column) -> Column:
    """The column with the grid that files of older versions leave out."""
    return replace(column, grid=grid_of(column)) if column.width and column.kind == "image" else column


def _checked_levels(
    schema: Schema, stored: Mapping[str, StoredLevels], tensors: Mapping[str, Tensor]
) -> dict[str, Layout]:
    _require(
        set(stored) == {c.name for c in schema if c.categorical and c.kind != "tokens"}, "names of the category columns"
    )
    levels: dict[str, Layout] = {}
    left = set(tensors)
    for place, column in enumerate(schema):
        if column.name not in stored:
            continue
        known, values = stored[column.name], stored[column.name].values
        if values is None:
            many = under(f"{LEVELS}{place}.", tensors)
            values, left = values_from_tensors(many), left - {f"{LEVELS}{place}.{key}" for key in many}
        found = levels_from_json(values, parse_type(column.type))
        _require(len(found) == column.levels, "numbers of levels")
        levels[column.name] = Levels(found, known.rest, column.strange)
    _require(not left, "tensors of levels")
    return levels


def _checked_series(schema: Schema, stored: Mapping[str, Series]) -> dict[str, Layout]:
    expected = {column.name for column in schema if column.kind in ("series", "audio") and column.width}
    _require(set(stored) == expected, "names of the series")
    for name, series in stored.items():
        column, arrow = schema[name], parse_type(schema[name].type)
        counts = series.steps > 0 and series.channels > 0 and series.transform in FITTING[column.kind]
        floor = (0, series.channels)[series.transform == "own"]
        counts = counts and (series.transform == "spectra") == (series.spectra is not None) and series.unit > 0
        counts = counts and (series.spectra is None or series.spectra.frame <= LONGEST_FRAME)
        counts = counts and len(series.floor) == floor and all(0 < least < math.inf for least in series.floor)
        _require(counts and column.grid == series.grid and column.side == series.side, f"steps of {name!r}")
        ragged = is_list(arrow) and channels_of(arrow) == series.channels
        fixed = column.shape in ((series.steps,) * (series.channels == 1), (series.steps, series.channels))
        _require(ragged if series.ragged else fixed, f"type and steps of {name!r}")
    return dict(stored)


def _checked_texts(schema: Schema, stored: Mapping[str, Vocabulary]) -> dict[str, Layout]:
    _require(set(stored) == {c.name for c in schema if c.categorical and c.kind == "tokens"}, "names of the texts")
    for name, known in stored.items():
        fits = known.levels == schema[name].levels and schema[name].grid == (known.length,)
        _require(fits and is_text(parse_type(schema[name].type)), f"tokens of {name!r}")
        known.check()
    return dict(stored)


def _checked_bags(schema: Schema, stored: Mapping[str, Items]) -> dict[str, Layout]:
    _require(set(stored) == {c.name for c in schema if c.kind == "bag" and c.width}, "names of the bags")
    for name, items in stored.items():
        arrow = parse_type(schema[name].type)
        _require(items.size == schema[name].width <= MISSING_CELLS and is_map(arrow), f"items of {name!r}")
        items.check(arrow)
    return dict(stored)


def _words(error: Exception) -> str:
    """One line of what an error says."""
    if isinstance(error, pydantic.ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).partition("\n")[0]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ModelFileError(f"the preparer in this file is damaged: its {what} do not fit together")


def _check_column(column: Column) -> None:
    """Checks that kind, type, shape, width and levels of a column can belong together."""
    arrow = parse_type(column.type)
    if pa.types.is_timestamp(arrow) and arrow.tz:
        pc.local_timestamp(pa.array([0]).view(arrow))  # fails where the zone is unknown
    sized = all(0 <= side < 2**31 for side in column.shape)
    _require(sized and math.prod(column.shape) <= max(column.width, MISSING_CELLS), f"sizes of {column.name!r}")
    kind = nature(column_type(arrow, column.shape), column.name)
    fits = column.kind in possible_kinds(kind, column.shape) and (kind != "empty" or column.cells == 0)
    _require(fits, f"kind and type of {column.name!r}")
    if column.kind in ("binary", "category"):
        most = 2 ** (arrow.index_type.bit_width - 1) if pa.types.is_dictionary(arrow) else 2**31
        plain = column.width == 0 and not column.shape and not column.grid
        _require(plain and 0 <= column.levels <= most, f"levels of {column.name!r}")
        _check_classes(column)
        return
    _require(not column.classes and not column.vector and column.strange == 1, f"classes of {column.name!r}")
    if column.kind == "tokens":  # further checked by the vocabulary
        _require(column.width == 0 and bool(column.levels) == bool(column.grid), f"tokens of {column.name!r}")
        return
    _require(column.levels == 0 and 0 <= column.rate < 2**31, f"cells of {column.name!r}")
    if column.kind in ("series", "audio"):  # further checked by what is known of the series
        inside = column.width == math.prod(column.grid) + column.side and column.side >= 0
        _require(not column.width or (inside and all(side > 0 for side in column.grid)), f"cells of {column.name!r}")
        return
    if column.kind == "bag":  # further checked by its items
        _require(not column.grid and column.width >= 0, f"cells of {column.name!r}")
        return
    widths = {0, math.prod(column.shape)} if column.kind != "date" else {0, PARTS_WITHOUT_CLOCK, PARTS}
    fits = column.width in widths and column.grid == (grid_of(column) if column.width else ())
    _require(fits, f"cells of {column.name!r}")


def _check_classes(column: Column) -> None:
    """Checks that the classes of a category hold its levels, none of them empty."""
    if not column.classes:
        _require(not column.vector and column.strange == 1, f"classes of {column.name!r}")
        return
    inside = 0 < column.classes <= column.levels
    inside = inside and (column.classes - 1) * column.fellows < column.levels
    sized = 0 < column.vector <= MOST_NUMBERS and 0 < column.strange <= MOST_NUMBERS
    _require(inside and sized, f"classes of {column.name!r}")


def _checked_scaling(width: int, tensors: Mapping[str, Tensor]) -> Scaling:
    """The module of these tensors, each of the right shape and sort, finite, and invertible."""
    _require(set(tensors) == set(Scaling.__annotations__), "tensor names")
    curved = tensors["curved"]
    _require(curved.ndim == 1 and curved.dtype == torch.int64, "curved cells")
    for name, tensor in tensors.items():
        if name == "curved":
            continue
        shape = (len(curved), KNOTS) if name in ("knots", "scores") else (width,)
        _require(tensor.dtype == torch.float64 and tuple(tensor.shape) == shape, f"numbers in {name!r}")
        _require(bool(tensor.isfinite().all()), f"values in {name!r}")
        _require(name not in ("knots", "scores") or bool((tensor.diff(dim=1) > 0).all()), f"values in {name!r}")
    inside = bool(((curved >= 0) & (curved < width)).all()) and bool((curved.diff() > 0).all())
    _require(inside and bool((tensors["scale"] > 0).all()), "cells and scales")
    _require(bool((tensors["fill"].abs() <= LIMIT).all()), "training means")
    return Scaling({name: tensor.clone() for name, tensor in tensors.items()})
