"""The groups that a column parts rows into, counted in one pass, and how much oftener than it comes each must be met.

    raw rows -> a label for each row, None where the column is missing -> counts of groups -> rates, or weights

Missing values are a group of their own, as they are where rows are held out by group. Any column will do that stands in
the data, those that stand aside from what is modeled among them.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from narrows import world
from narrows.balance import Balance, quotas_of, shares
from narrows.errors import DataError, FitWarning
from narrows.prepare.categories import without_nan

MOST_GROUPS = 1_000
MOST_REPEATS = 20  # of a row in an epoch: on adult, 24 made rare groups come back worse, square roots of it better
MISSING = "(missing)"  # what people are shown in place of None


def labels_of(rows: pa.RecordBatch, column: str) -> tuple[list[str | None], NDArray[np.int64]]:
    """The distinct values of a column as text, None for missing ones; and (B,) which of them each row has.

    Raises:
        DataError: for no such column, one whose values are not single, or more than 1,000 values.
    """
    if column not in rows.schema.names:
        raise DataError(f"no column {column!r} to group by", f"one of {', '.join(rows.schema.names)}")
    values = rows.column(column)
    if pa.types.is_nested(values.type) or isinstance(values.type, pa.BaseExtensionType):
        raise DataError(f"groups by column {column!r} of type {values.type}", "a column of single values")
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    encoded = without_nan(values).dictionary_encode(null_encoding="encode")
    refuse_many(len(encoded.dictionary), column)
    labels = [None if value is None else str(value) for value in encoded.dictionary.to_pylist()]
    return labels, encoded.indices.to_numpy().astype(np.int64)


def refuse_many(groups: int, column: str) -> None:
    """Refuses a column with too many values to be groups.

    Raises:
        DataError: for more than 1,000.
    """
    if groups > MOST_GROUPS + 1:  # missing ones are a group beside them
        got = f"groups by column {column!r}, which has more than {MOST_GROUPS:,} values"
        raise DataError(got, "a column of fewer", "numbers in ranges, or rare values under one name")


class Groups:
    """How many rows each group has.

    Args:
        column: whose equal values are a group.
        power: 1 to meet all groups equally often, less to leave frequent ones more frequent (see `balance.shares`).

    Attributes:
        counts: label -> rows, None for missing values.
    """

    def __init__(self, column: str, power: float = 1.0) -> None:
        self.column, self.power = column, power
        self.counts: Counter[str | None] = Counter()

    def add(self, rows: pa.RecordBatch) -> None:
        """Count rows.

        Raises:
            DataError: as `labels_of`.
        """
        labels, codes = labels_of(rows, self.column)
        for label, count in zip(labels, np.bincount(codes, minlength=len(labels)).tolist(), strict=True):
            self.counts[label] += count
        refuse_many(len(self.counts), self.column)

    def settle(self) -> None:
        """Add the counts of other processes, and check that there is something to balance.

        Raises:
            DataError: for rows of one group, or more than 1,000.
        """
        pairs = [json.loads(word) for word in world.gathered(json.dumps(list(self.counts.items())).encode())]
        whole: Counter[str | None] = Counter()
        for label, count in (pair for told in pairs for pair in told if pair[1]):
            whole[label] += count
        named = sorted(whole, key=lambda label: (label is None, label or ""))  # the same in every process
        self.counts = Counter({label: whole[label] for label in named})
        refuse_many(len(named), self.column)
        if len(named) < 2:
            only = "no value at all" if not named or named[0] is None else f"one value, {named[0]!r},"
            got = f"balance by column {self.column!r}, which has {only} in the training rows"
            raise DataError(got, "at least two", "another column, or no balance")
        self._warn_of_repeats()

    def _warn_of_repeats(self) -> None:
        """Says so where rows of a group come so often that they are learnt by heart."""
        rates = self.rates[:-1]
        if float(rates.max()) <= MOST_REPEATS:
            return
        label = [*self.counts][int(rates.argmax())]
        text = f"a row of {MISSING if label is None else label!r} comes {float(rates.max()):.0f} times an epoch"
        hint = "try balance_power=0.5" if self.power > 0.5 else "try a lower balance_power, or rare values as one"
        warnings.warn(f"{text}, and may be learnt by heart; {hint}", FitWarning, stacklevel=2)

    def of(self, rows: pa.RecordBatch) -> Tensor:
        """(B,) int64 the group of each row, in the order of `counts`; their number for a group that was not counted."""
        labels, codes = labels_of(rows, self.column)
        place = {label: i for i, label in enumerate(self.counts)}
        groups = np.array([place.get(label, len(place)) for label in labels], dtype=np.int64)
        return torch.from_numpy(groups[codes] if len(codes) else codes)

    def balance(self, groups: Tensor) -> Balance:
        """How often the groups of rows (n,) are to be met, where these are all rows."""
        return Balance(groups, quotas_of(torch.bincount(groups, minlength=len(self.counts)), self.power))

    @property
    def rates(self) -> Tensor:
        """(G + 1,) float64 how often a row of each group is met while all rows are read once; 1 for other groups."""
        counts = torch.tensor([*self.counts.values()])
        rates = shares(counts, self.power) * counts.sum() / counts
        return torch.cat([rates, torch.ones(1, dtype=torch.float64)])
