"""From statistics to decisions: the kind of each column, its levels, and the plan for its number cells.

A user's word goes first; what contradicts the data is refused. The rules by default: text, dictionaries and flags
are categories, binary where they have two levels (flags always have both); numbers with exactly two distinct values,
each there more than once, are binary too; dates are dates; tensors of two or more dimensions are images, lists are
series, maps are bags. What the source says of a column comes before these rules, and after the user.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from narrows.errors import DataError, DataWarning, SettingError
from narrows.prepare.arrow import Cells, Values
from narrows.prepare.arrow_types import Nature, canonical, is_text, level_type
from narrows.prepare.bags import WORDS, Items, Tally, learn_items, tally_words
from narrows.prepare.categories import FEW_LEVELS, Levels, choose_levels, dealt
from narrows.prepare.dates import PARTS, PARTS_WITHOUT_CLOCK
from narrows.prepare.ragged import read_lists
from narrows.prepare.series import Series, SeriesBlock, plan_series, series_of, with_floor
from narrows.prepare.statistics import ColumnStatistics, Statistics
from narrows.prepare.tokens import Vocabulary, learn_vocabulary
from narrows.prepare.transforms import LIMIT, Plan, plan_date, plan_image, plan_numbers
from narrows.prepare.words import ANY, ANY_SERIES, FITTING, IMPLIED, TRANSFORMS
from narrows.schema import KINDS, Column, Kind

POSSIBLE: dict[Nature, tuple[Kind, ...]] = {
    "number": ("number", "count", "binary", "category"),
    "flag": ("number", "count", "binary", "category"),
    "date": ("date", "binary", "category"),
    "text": ("binary", "category", "tokens", "bag"),
    "map": ("bag",),
    "ragged": ("series", "audio"),
    "empty": KINDS,
}
TENSORS: tuple[tuple[Kind, ...], ...] = (
    ("number",),
    ("number", "count", "series", "audio"),
    ("image", "number", "count", "series", "audio"),
    ("image", "number", "count"),
)


Layout = Levels | Series | Vocabulary | Items
"""How the values of a column lie in cells, where its type does not say it."""


@dataclass(frozen=True)
class Learnt:
    """What was decided about one column: its entry in the schema, how its values lie in cells, what is done to them.

    All are None for a column that nothing can be learnt of.
    """

    column: Column
    layout: Layout | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Wishes:
    """What the user asked for, by column name; a transform of `*` is for every column of numbers without a wish."""

    kinds: Mapping[str, Kind]
    transforms: Mapping[str, str]
    max_levels: int

    def check(self, names: list[str]) -> None:
        """Refuses names that are no columns, and words that are no kinds or transforms."""
        for wishes, words in ((self.kinds, KINDS), (self.transforms, TRANSFORMS)):
            for name, word in wishes.items():
                if name not in names and not (name in (ANY, ANY_SERIES) and words is TRANSFORMS):
                    raise SettingError(f"no column {name!r}", f"one of {', '.join(names)}")
                if word not in words:
                    raise SettingError(f"column {name!r}: {word!r}", f"one of {', '.join(words)}")
        if self.max_levels < 2:
            raise SettingError(f"max_levels={self.max_levels}", "2 or more")


def learn_columns(statistics: Statistics, wishes: Wishes) -> list[Learnt]:
    """Decides about every column.

    Raises:
        DataError: where there were no rows.
        SettingError: where a wish cannot be met.
    """
    if statistics.rows == 0:
        raise DataError("no rows to learn from", "at least one row")
    wishes.check(list(statistics.columns))
    return [_learn(name, column, statistics, wishes) for name, column in statistics.columns.items()]


def _learn(name: str, column: ColumnStatistics, statistics: Statistics, wishes: Wishes) -> Learnt:
    word = wishes.transforms.get(name)
    wish = wishes.kinds.get(name) or IMPLIED.get(word or "")
    kind = _kind(name, column, wish)
    if not (word or wish or column.hints.kind) and _of_numbers(column):
        word = wishes.transforms.get(ANY)
        kind = "number" if word else kind
    if not word and kind == "series":
        word = wishes.transforms.get(ANY_SERIES)
        word = "joint" if word and _of_one_size(column) else word
    if word and word not in FITTING.get(kind, ()):
        known = " or ".join(FITTING.get(kind, ())) or "none: leave it out"
        raise SettingError(f"column {name!r} is of kind {kind}: no transform {word!r} for it", known)
    entry = Column(name, kind, str(canonical(column.type)), column.shape, holes=column.missing > 0)
    if _without_values(column, statistics.rows):
        return Learnt(_filled(entry, width=0))
    if not (wish or column.hints.kind) and column.nature == "text" and _differs_in_every_row(column):
        lost = column.counts.lost if column.counts else 0
        text = (
            "has more values than can be counted, none of them frequent" if lost else "has another value in every row"
        )
        text = f"{text}, so nothing can be learnt of it: left out, it comes back empty"
        _warn(f"column {name!r} {text} (kind 'category' keeps it; kind 'tokens' or 'bag' reads it as text)")
        return Learnt(_filled(entry, width=0))
    if kind in ("binary", "category"):
        levels = _levels(name, column, kind, statistics.rows, wishes.max_levels)
        return Learnt(_filled(entry, width=0, levels=len(levels), **dealt(len(levels))), levels)
    if kind == "tokens":
        return _learn_tokens(entry, column, word or FITTING[kind][0])
    if kind == "bag":
        return _learn_bag(entry, column, statistics.rows, word or FITTING[kind][0])
    if kind in ("series", "audio"):
        return _learn_series(entry, statistics, word or FITTING[kind][0])
    plan = _plan(name, kind, statistics, word)
    return Learnt(_filled(entry, width=len(plan.center), bounded=plan.bounded, grid=grid_of(entry)), plan=plan)


def _learn_series(entry: Column, statistics: Statistics, transform: str) -> Learnt:
    """A series or sound: how it lies in cells, and one plan a channel."""
    column = statistics.columns[entry.name]
    series = series_of(entry.name, column, transform)
    moments = column.moments if series.ragged else column.moments.pooled(series.channels)
    some = read_lists(column.examples.values()) if column.examples else statistics.sample.cells(entry.name)
    if transform == "own":
        series = with_floor(series, SeriesBlock(series, some))
    plan = plan_series(series, moments, column.lengths, SeriesBlock(series, some))
    facts = {"holes": entry.holes or series.ragged, "grid": series.grid, "rate": column.hints.rate}
    return Learnt(_filled(entry, width=len(plan.center), bounded=plan.bounded, **facts), series, plan)


def _learn_tokens(entry: Column, column: ColumnStatistics, method: str) -> Learnt:
    """A text: its vocabulary."""
    known = learn_vocabulary(method, _texts(entry, column), column.longest[method == "bytes"])
    value = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    facts = {"type": str(value), "levels": known.levels, "grid": (known.length,), "holes": True}
    return Learnt(_filled(entry, width=0, **facts), known)


def _learn_bag(entry: Column, column: ColumnStatistics, rows: int, transform: str) -> Learnt:
    """A bag, or a text as a bag of its words: the items to keep."""
    if column.nature == "map" and column.counts is not None:
        names, often = column.counts.ranked()
        moments = column.moments
        sums = float(moments.mean[0] * moments.count[0])
        tally = Tally(names, often, rows, sums, bool(moments.whole[0]), float(moments.high[0]))
    else:
        tally = tally_words(_texts(entry, column))
        entry = _filled(entry, type=str(WORDS))
    items = learn_items(tally, transform, column.hints.items if column.nature == "map" else 0)
    return Learnt(_filled(entry, width=items.size, holes=False), items if items.size else None)


def _texts(entry: Column, column: ColumnStatistics) -> Values:
    """The sampled texts of a column.

    Raises:
        SettingError: where its values are no texts.
    """
    if not is_text(level_type(column.type)) or column.examples is None:
        raise SettingError(f"column {entry.name!r} of type {column.type} cannot be of kind {entry.kind!r}", "texts")
    return column.examples.values()


def grid_of(entry: Column) -> tuple[int, ...]:
    """Rows, columns and channels of an image, or of counts in a plane."""
    plane = entry.kind in ("image", "count") and len(entry.shape) in (2, 3)
    return (*entry.shape, 1)[:3] if plane else ()


def _filled(entry: Column, **facts: Any) -> Column:
    return Column(**{**vars(entry), **facts})


def _without_values(column: ColumnStatistics, rows: int) -> bool:
    return column.missing == rows if column.nature in ("text", "empty") else not column.moments.count.any()


def _differs_in_every_row(column: ColumnStatistics) -> bool:
    """Whether a column names its rows instead of describing them: many values, of which at most one came twice."""
    counts = column.counts.ranked()[1] if column.counts else np.zeros(0)
    return len(counts) > FEW_LEVELS and int((counts > 1).sum()) <= 1


def possible_kinds(values: Nature, shape: tuple[int, ...]) -> tuple[Kind, ...]:
    """The kinds that values of this nature can be, the default of tensors and dates first."""
    return TENSORS[min(len(shape), 3)] if values == "tensor" else POSSIBLE[values]


def _of_one_size(column: ColumnStatistics) -> bool:
    """Whether the greatest values of all channels that are not 0 are within a factor of ten of each other.

    They are taken to be of one unit then, and a channel that hardly moves is not blown up to the size of the others.
    """
    channels = column.moments.pooled(column.shape[1]) if len(column.shape) == 2 else column.moments
    greatest = np.fmax(np.abs(channels.low), np.abs(channels.high))
    greatest = greatest[greatest > 0]
    return bool(len(greatest) and greatest.max() <= 10 * greatest.min())


def _of_numbers(column: ColumnStatistics) -> bool:
    """Whether a column holds plain numbers, one a row or several."""
    return column.nature == "number" or (column.nature == "tensor" and len(column.shape) < 2)


def _kind(name: str, column: ColumnStatistics, wish: Kind | None) -> Kind:
    """The kind wished for, where possible; else the one that the source says, or that fits."""
    possible = possible_kinds(column.nature, column.shape)
    if wish is not None and wish not in possible:
        what = f"tensors of shape {column.shape}" if column.shape else f"{column.nature}s of type {column.type}"
        raise SettingError(f"column {name!r} cannot be of kind {wish!r}: it holds {what}", " or ".join(possible))
    wish = wish or next((kind for kind in possible if kind == column.hints.kind), None)
    if wish is not None:
        return wish
    if column.nature in ("tensor", "date", "ragged", "map"):
        return possible[0]
    counts = column.counts.ranked()[1] if column.counts else np.zeros(0)
    two = len(counts) == 2 and (column.nature != "number" or counts.min() > 1)
    if column.nature == "flag" or (two and column.nature != "empty"):
        return "binary"
    return "category" if column.nature == "text" else "number"


def _levels(name: str, column: ColumnStatistics, kind: Kind, rows: int, max_levels: int) -> Levels:
    counts = column.counts
    if counts is None or not counts.counting:
        raise SettingError(f"column {name!r} has too many distinct values for a category", "text, or another kind")
    values, often = counts.ranked()
    if counts.overflowed:
        kept = "only the most frequent were counted" + (f", at most {counts.lost:,} too low" if counts.lost else "")
        _warn(f"column {name!r} has more than {counts.limit:,} levels: {kept}")
    if kind == "binary" and len(values) > 2:
        raise SettingError(f"column {name!r} has {len(values):,} levels", "two for kind 'binary'", "kind 'category'")
    if column.nature == "flag":
        absent = [flag for flag in (False, True) if flag not in values.to_pylist()]
        values = pa.concat_arrays([values, pa.array(absent, pa.bool_())])
    if pa.types.is_dictionary(column.type):
        max_levels = min(max_levels, 2 ** (column.type.index_type.bit_width - 1))
    levels = choose_levels(values, often, max_levels)
    rest = 1 - int(often[: len(levels)].sum()) / (rows - column.missing)
    if rest > 0.5:
        kept = f"its {len(levels)} most frequent levels of {len(values):,} cover under half of its rows"
        hint = " (kind 'tokens' or 'bag' reads it as text)" if column.nature == "text" else ""
        _warn(f"column {name!r}: {kept}; the others share one code and come back as one of these{hint}")
    return Levels(_in_order(levels, column.order), rest, dealt(len(levels)).get("strange", 1))


def _in_order(levels: Values, order: Values | None) -> Values:
    """Levels in the order of an ordered dictionary, where the column has one."""
    if order is None:
        return levels
    ranks = pc.index_in(levels, value_set=order.cast(levels.type))
    return levels.take(pc.sort_indices(ranks))


def _plan(name: str, kind: Kind, statistics: Statistics, transform: str | None) -> Plan:
    column = statistics.columns[name]
    moments = column.moments
    if kind == "date":
        timeless = moments.low[5] == moments.high[5] == 0 and moments.low[6] == 1
        return plan_date(moments.first(PARTS_WITHOUT_CLOCK if timeless else PARTS))
    if kind == "count":
        _require_counts(name, column, statistics.sample.cells(name) if column.sampled else np.zeros((0, 1)))
        return plan_numbers(moments, np.zeros((0, 0)), "none")
    in_bytes = bool(pa.types.is_uint8(column.type))
    if kind == "image" or (transform is None and len(column.shape) == 1 and (in_bytes or _fractions(column))):
        return plan_image(moments, in_bytes, transform)
    sample = statistics.sample.cells(name) if column.sampled else np.zeros((0, len(moments.mean)))
    return plan_numbers(moments, sample, transform)


def _require_counts(name: str, column: ColumnStatistics, sample: Cells) -> None:
    """Checks that all values are whole numbers from 0 up, few enough for float32."""
    low, high = float(np.nanmin(column.moments.low)), float(np.nanmax(column.moments.high))
    if low < 0 or high > LIMIT or not column.moments.whole.all():
        fractions = sample[~np.isnan(sample) & (sample != np.rint(sample))]
        bad = low if low < 0 else high if high > LIMIT else fractions[0] if len(fractions) else None
        got = "values that are not whole" if bad is None else f"a value of {bad:.9g}"
        got = f"column {name!r} cannot be of kind 'count': it has {got}"
        raise SettingError(got, f"whole numbers from 0 to {LIMIT:,.0f}", "kind 'number'")


def _fractions(column: ColumnStatistics) -> bool:
    """Whether all values are floats within [0, 1]."""
    floats = pa.types.is_floating(column.type)
    return bool(floats and np.nanmin(column.moments.low) >= 0 and np.nanmax(column.moments.high) <= 1)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=2)
