"""Bags to sparse cells and back: which items a row holds and how much of each, or the words of a text, counted.

    map or text -> entries (row, cell, value), known items only -> `Sparse`        shares (B, I) -> map

Bags are never dense here: a row costs what it holds, whatever the number of items. What comes back is a guess: a model
says which share of a bag each item has, and a bag is taken to hold as much as those of training do on average.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from narrows.errors import DataError
from narrows.prepare.arrow import Floats, Values, place, plain, to_dtype
from narrows.prepare.arrow_types import Type, is_map, is_text, level_type
from narrows.prepare.categories import Codes, found_in, surprising
from narrows.schema import Sparse

KNOWN = 20_000  # items: more than most catalogs' items or texts' words that occur in more than a handful of bags
LEAST = 0.5  # count from which an item comes back
FALLBACK = 10  # items that come back where none has such a count
WORD = re.compile(r"\b\w\w+\b")  # as scikit-learn's CountVectorizer
WORDS = pa.map_(pa.string(), pa.float32())

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Entries:
    """What B bags hold, one entry for each item of each; a missing bag is an empty one.

    Args:
        rows: (E,) rising.
        keys: (E,) items.
        values: (E,) float64, above 0.
    """

    rows: Places
    keys: Values
    values: Floats


@dataclass(frozen=True)
class Items:
    """The known items of a bag column.

    Args:
        transform: counts or tfidf.
        size: I, known items.
        names: of the items by cell, those in most bags first; empty where they are the numbers from 0.
        total: mean sum of the known items of a training bag, as counts.
        entries: mean number of known items in a training bag.
        rest: share of the entries of training whose items are not known.
        whole: whether all values of training were whole numbers, so that counts come back rounded.
        most: greatest value of training, beyond which no count comes back: 1 where items are in a bag or are not.
        weights: (I,) inverse document frequencies, for tfidf; empty otherwise.
    """

    transform: str
    size: int
    names: tuple[str | int, ...] = ()
    total: float = 0.0
    entries: float = 0.0
    rest: float = 0.0
    whole: bool = True
    most: float = 1.0
    weights: tuple[float, ...] = ()

    def read(self, array: Values, trained: Type, column: str, first_row: int = 0) -> tuple[Sparse, int]:
        """A column of maps, or of texts, as sparse cells; and how many entries of unknown items were dropped.

        The number is 0 where training had as many.

        Raises:
            DataError: for other types, negative, missing or infinite values, and item numbers beyond the known ones.
        """
        entries = read_entries(array, trained, column, first_row, 0 if self.names else self.size)
        cells = self._cells(entries.keys)
        known = cells < self.size
        rows, cells, values = _summed(entries.rows[known], cells[known], entries.values[known], self.size)
        dropped = len(known) - int(known.sum())
        if self.transform == "tfidf":
            values = values * self._weights[cells]
            norms = np.sqrt(np.bincount(rows, values * values, minlength=len(array)))
            values = values / norms[rows]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(array)))])
        places, where = torch.from_numpy(offsets), torch.from_numpy(cells)
        bag = Sparse(places, where, torch.from_numpy(values.astype(np.float32)), self.size)
        return bag, dropped if surprising(self.rest, dropped, len(known)) else 0

    def _cells(self, keys: Values) -> Codes:
        """(E,) the cell of each item, `size` where unknown."""
        return found_in(keys, self._names(keys.type)) if self.names else np.asarray(keys.to_numpy(), dtype=np.int64)

    def _names(self, arrow: Type) -> Values:
        return pa.array(self.names, arrow)

    @cached_property
    def _weights(self) -> Floats:
        return np.array(self.weights)

    def write(self, shares: Floats, arrow: Type) -> Values:
        """Shares (B, I) of a bag, which sum to 1, as a column of maps.

        Those of tfidf are first divided by the weights of the items. An item comes back where its count, the share of
        the mean total of training, is 0.5 or more; where no item has that, the ten greatest do. No count is greater
        than those of training; they are rounded where those were whole numbers, but not with tfidf.
        """
        shares = np.maximum(np.nan_to_num(shares), 0)
        if self.transform == "tfidf":
            shares = shares / self._weights
            shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
        counts = np.minimum(shares * self.total, self.most)
        kept = counts >= LEAST
        few = np.flatnonzero(~kept.any(axis=1))
        best = np.argsort(-counts[few], axis=1, kind="stable")[:, :FALLBACK]
        kept[few[:, None], best] = counts[few[:, None], best] > 0
        rows, cells = np.nonzero(kept)
        values = counts[rows, cells]
        rounded = self.whole and self.transform == "counts"
        values = np.where(values >= LEAST, np.rint(np.maximum(values, 1)), values) if rounded else values
        offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
        return self._maps(offsets, cells, values, arrow)

    def _maps(self, offsets: Places, cells: Places, values: Floats, arrow: Type) -> Values:
        keys = self._names(level_type(arrow.key_type)).take(pa.array(cells)) if self.names else pa.array(cells)
        numbers = pa.array(to_dtype(values, np.dtype(arrow.item_type.to_pandas_dtype())), arrow.item_type)
        return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), keys.cast(arrow.key_type), numbers).cast(arrow)

    def check(self, arrow: Type) -> None:
        """Checks that the parts belong together, and to a column of this type.

        Raises:
            ValueError: where they do not.
        """
        figures = (self.total, self.entries, self.most, *self.weights)
        numbers = all(np.isfinite(figure) and figure >= 0 for figure in figures) and 0 <= self.rest <= 1
        weighed = (len(self.weights) == self.size and min(self.weights) > 0) if self.transform == "tfidf" else True
        named = len(self.names) == self.size == len(set(self.names)) if self.names else not is_text(arrow.key_type)
        if not (numbers and weighed and named and self.size > 0 and self.transform in ("counts", "tfidf")):
            raise ValueError("the items of a bag do not fit together")
        self._names(level_type(arrow.key_type)).cast(arrow.key_type)


def read_entries(array: Values, trained: Type, column: str, first_row: int = 0, numbered: int = 0) -> Entries:
    """What the bags of a column hold.

    Args:
        array: maps, or texts, whose words are counted in lower case.
        trained: the map type of training: keys come in its key type.
        column: its name, for messages.
        first_row: id of the first row, for messages.
        numbered: how many items there are, where they are numbers from 0; 0 where they are not.

    Raises:
        DataError: for other types, negative, missing or infinite values, and item numbers beyond `numbered`.
    """
    if pa.types.is_null(array.type):
        return Entries(np.zeros(0, np.int64), pa.array([], level_type(trained.key_type)), np.zeros(0))
    if not is_map(array.type):
        if not (is_text(plain(array[:0]).type) and is_text(trained.key_type)):
            raise DataError(f"column {column!r} came as {array.type}", f"{trained}, as in training")
        return _words(plain(array))
    rows, at = _places(array)
    keys = _keys(array.keys.take(at), trained, column)
    values = np.asarray(array.items.take(at).cast(pa.float64()).to_numpy(zero_copy_only=False))
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        got = f"column {column!r}, {place(first_row, int(rows[bad[0]]))}: a value of {values[bad[0]]:g}"
        raise DataError(got, "numbers from 0 up for the items of a bag")
    if numbered:
        _refuse_beyond(np.asarray(keys.to_numpy(), dtype=np.int64), rows, numbered, column, first_row)
    there = values > 0
    return (
        Entries(rows, keys, values)
        if there.all()
        else Entries(rows[there], keys.filter(pa.array(there)), values[there])
    )


def _keys(keys: Values, trained: Type, column: str) -> Values:
    """The items in the type of training."""
    try:
        return plain(keys).cast(level_type(trained.key_type))
    except pa.ArrowInvalid as error:
        raise DataError(f"column {column!r}: {error}", f"{trained}, as in training") from error


def _refuse_beyond(keys: Codes, rows: Places, numbered: int, column: str, first_row: int) -> None:
    bad = np.flatnonzero((keys < 0) | (keys >= numbered))
    if len(bad):
        got = f"column {column!r}, {place(first_row, int(rows[bad[0]]))}: item {keys[bad[0]]}"
        raise DataError(got, f"item numbers from 0 to {numbered - 1:,}, as in training")


def _places(array: Values) -> tuple[Places, Values]:
    """Row of each entry of a column of maps, and where it stands among all keys."""
    offsets = np.asarray(array.offsets.to_numpy(), dtype=np.int64)
    counts = np.where(np.asarray(array.is_valid()), np.diff(offsets), 0)
    rows = np.repeat(np.arange(len(array)), counts)
    starts = offsets[:-1] - (np.cumsum(counts) - counts)
    return rows, pa.array(np.arange(len(rows)) + starts[rows])


def _words(texts: Values) -> Entries:
    """The words of each text with how often it has them."""
    bags = [Counter(WORD.findall(text.lower())) if text else Counter[str]() for text in texts.to_pylist()]
    rows = np.repeat(np.arange(len(bags)), [len(bag) for bag in bags])
    keys = pa.array([word for bag in bags for word in bag], pa.large_string())
    return Entries(rows, keys, np.array([count for bag in bags for count in bag.values()], np.float64))


def _summed(rows: Places, cells: Places, values: Floats, size: int) -> tuple[Places, Places, Floats]:
    """Entries by row and cell, those of the same cell of the same row added."""
    at, inverse = np.unique(rows * size + cells, return_inverse=True)
    sums: Floats = np.bincount(inverse.reshape(-1), values, minlength=len(at)).astype(np.float64)
    return at // size, at % size, sums


def side_by_side(bags: list[Sparse]) -> Sparse:
    """The bags of several columns as one: their cells follow each other."""
    if len(bags) == 1:
        return bags[0]
    rows = torch.cat([torch.arange(len(bag)).repeat_interleave(bag.offsets.diff()) for bag in bags])
    starts = [sum(bag.width for bag in bags[:i]) for i in range(len(bags))]
    cells = torch.cat([bag.cells + start for bag, start in zip(bags, starts, strict=True)])
    order = torch.argsort(rows, stable=True)
    offsets = sum((bag.offsets for bag in bags[1:]), bags[0].offsets)
    values = torch.cat([bag.values for bag in bags])
    return Sparse(offsets, cells[order], values[order], sum(bag.width for bag in bags))


@dataclass
class Tally:
    """What training bags held: from statistics of maps, or gathered from sampled texts.

    Args:
        names: distinct items, those in the most bags first.
        often: (k,) in how many bags each was.
        bags: how many there were.
        sums: sum of all values.
        whole: whether all values are whole numbers.
        most: greatest value.
    """

    names: Values
    often: Codes
    bags: int
    sums: float
    whole: bool
    most: float


def tally_words(texts: Values) -> Tally:
    """The words of sampled texts."""
    often, sums, most = Counter[str](), 0, 0
    for text in texts.to_pylist():
        words = Counter(WORD.findall(text.lower()))
        often.update(words.keys())
        sums += words.total()
        most = max(most, *words.values()) if words else most
    names = sorted(often, key=lambda word: (-often[word], word))
    counts = np.array([often[word] for word in names], np.int64)
    return Tally(pa.array(names, pa.large_string()), counts, len(texts), float(sums), True, float(most))


def learn_items(tally: Tally, transform: str, numbered: int) -> Items:
    """The items to keep: those in the most bags, at most 20,000, or all where they are numbered.

    The weights of tfidf are those of scikit-learn's TfidfTransformer by default: ln((1 + bags) / (1 + often)) + 1.

    Args:
        tally: what training bags held.
        transform: counts or tfidf.
        numbered: how many items there are, where they are numbers from 0; 0 where they are not.
    """
    often = tally.often[:KNOWN]
    names: tuple[Any, ...] = () if numbered else tuple(tally.names[:KNOWN].to_pylist())
    if numbered:
        often = np.zeros(numbered, np.int64)
        often[np.asarray(tally.names.to_numpy(), dtype=np.int64)] = tally.often
    kept, entries = int(often.sum()), max(1, int(tally.often.sum()))
    weights = np.log((1 + tally.bags) / (1 + often)) + 1 if transform == "tfidf" else np.zeros(0)
    bags = max(1, tally.bags)
    rest = 1 - kept / entries
    learnt = Items(transform, len(often), names, tally.sums * (1 - rest) / bags, kept / bags, rest)
    return replace(learnt, whole=tally.whole, most=tally.most, weights=tuple(weights.tolist()))
