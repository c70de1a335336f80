"""Whether new rows are like those that a model keeps: every column, the codes as a whole, the score; and what moved.

    new rows -> a sample -> columns: KS, chi-square, missing rate   |
                            codes and what they miss: MMD           | -> weighted Holm -> adjusted p-values, a sentence
                            score: KS                               |

The three families share the allowed false alarms alike, so that hundreds of columns do not drown the codes, which see
what no column shows by itself: that columns go together otherwise. What the codes of a row miss of it says that best: a
linear code has no room for a pair that never went together, and misses more of it. What this file does not know: why.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from narrows.errors import DataError, SettingError
from narrows.fitted import Model
from narrows.tasks.figures import figure
from narrows.tasks.moved import change, of_levels, of_numbers, of_scores
from narrows.tasks.reference import Look, Reference, Watched, look, most_of, sampled, watched
from narrows.tasks.twosample import (
    Answer,
    discrepancy,
    holm,
    in_bins,
    kolmogorov_smirnov,
    same_shares,
    stability,
    whitened,
)
from narrows.train.randomness import generator

if TYPE_CHECKING:
    from rich.table import Table

NEW = 5  # times as many rows as the reference has at most are compared
FEWEST = 10  # rows
POINTS = 1_000  # of either sample whose distances are taken
PERMUTATIONS, MOST_PERMUTATIONS = 400, 20_000
FEW_VALUES = 10  # distinct numbers in both samples that are compared as levels
NAMED = 3  # columns in a sentence
Family = Literal["column", "codes", "score"]
FIELDS = ("family", "name", "what", "test", "statistic", "psi", "p", "adjusted", "drift", "moved")


@dataclass(frozen=True)
class Tested:
    """One comparison.

    Args:
        family: `column`, `codes` or `score`.
        name: of the column; of the others the family's.
        what: `values` or `missing` of a column.
        test: what was done.
        statistic: how far apart: the largest distance of distribution functions, Cramer's V, squared MMD.
        p: of this test alone.
        moved: what changed, from what to what.
        psi: population stability index of a column's values.
        adjusted: p-value among all tests: at most `alpha` where this is drift.
    """

    family: Family
    name: str
    what: str
    test: str
    statistic: float
    p: float
    moved: str
    psi: float | None = None
    adjusted: float = 1.0


@dataclass(frozen=True)
class Drift:
    """What new rows are beside usual ones.

    Args:
        tests: all of them: columns in order, codes, score.
        alpha: probability of any false alarm.
        rows: new ones that came.
        compared: of them.
        reference: usual rows they were compared with.
        origin: of these: `held-out rows`, `training rows`, `given rows`.
        skipped: columns that were empty in training.
    """

    tests: list[Tested]
    alpha: float
    rows: int
    compared: int
    reference: int
    origin: str
    skipped: list[str] = field(default_factory=list)

    @property
    def found(self) -> list[Tested]:
        """The comparisons that are drift, the surest first."""
        return sorted((test for test in self.tests if self._is(test)), key=lambda test: (test.adjusted, test.p))

    def __bool__(self) -> bool:
        """Whether anything drifted."""
        return bool(self.found)

    def _is(self, test: Tested) -> bool:
        return test.adjusted <= self.alpha

    def __str__(self) -> str:
        some = f"{self.compared:,} rows"
        if self.compared < self.rows:
            some = f"{self.compared:,} of {self.rows:,} rows, drawn at random,"
        against = f"{some} against {self.reference:,} {self.origin}"
        if self:
            said = " ".join([*self._columns(), *self._others()])
            return f"Drift at {self.alpha:.3g}: {said} Compared: {against}.{self._left_out()}"
        least = min((test.adjusted for test in self.tests), default=1.0)
        return f"No drift at {self.alpha:.3g}: {against}, least adjusted p {figure(least)}.{self._left_out()}"

    def _columns(self) -> list[str]:
        """A sentence on the columns that moved, if any."""
        parts = [(test.name, test.moved) for test in self.found if test.family == "column"]
        if not parts:
            return []
        of = len({test.name for test in self.tests if test.family == "column"})
        more = f"; and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
        told = "; ".join(f"{name} {how}" for name, how in parts[:NAMED])
        return [f"{len(dict(parts))} of {of} columns moved: {told}{more}."]

    def _others(self) -> list[str]:
        """A sentence each on codes and score, where they moved."""
        said, columns = [], self._columns()
        for test in self.found:
            if test.family == "codes":
                first = "The codes moved too" if columns else "No column moved by itself, but how they go together did"
                said.append(f"{first}{f': {test.moved}' if test.moved else ''}.")
            elif test.family == "score":
                said.append(f"The score is {test.moved}.")
        return said

    def _left_out(self) -> str:
        notes = ""
        if self.skipped:
            notes += f" Not compared, since empty in training: {', '.join(self.skipped)}."
        if self.origin == "training rows":
            notes += " Errors and scores are not compared: of training rows they say too little."
        return notes

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        facts = {name: getattr(self, name) for name in ("alpha", "rows", "compared", "reference", "origin", "skipped")}
        return {**facts, "drift": bool(self), "said": str(self), "tests": self._lines()}

    def to_arrow(self) -> pa.Table:
        """A row for each comparison."""
        kinds = {"statistic": pa.float64(), "psi": pa.float64(), "p": pa.float64(), "adjusted": pa.float64()}
        kinds |= {"drift": pa.bool_()}
        return pa.Table.from_pylist(
            self._lines(), schema=pa.schema([(name, kinds.get(name, pa.string())) for name in FIELDS])
        )

    def _lines(self) -> list[dict[str, Any]]:
        return [{name: ({**asdict(test), "drift": self._is(test)})[name] for name in FIELDS} for test in self.tests]

    def table(self, most: int = 20) -> Table:
        """The comparisons for a terminal, the surest first."""
        from rich.table import Table
        from rich.text import Text

        names = ("", "test", "apart", "PSI", "p", "adjusted", "from usual to new rows")
        table = Table(*names, title="drift", title_justify="left")
        for column in table.columns[2:6]:
            column.justify = "right"
        shown = sorted(self.tests, key=lambda test: (test.adjusted, test.p))
        for test in shown[:most]:
            name = f"{test.name}, missing" if test.what == "missing" else test.name
            figures = [figure(test.statistic), "" if test.psi is None else figure(test.psi)]
            figures += [figure(test.p), figure(test.adjusted)]
            cells = [name, test.test, *figures, test.moved]
            table.add_row(*map(Text, cells), style="bold" if self._is(test) else "")
        if len(shown) > most:
            table.caption = f"and {len(shown) - most:,} more, which --json and --out list"
        return table


def drift(model: Model, rows: Any, *, reference: Any = None, alpha: float = 0.05, seed: int = 0) -> Drift:
    """Compare new rows with usual ones.

    Where new rows are like the usual ones, the probability of any alarm is at most `alpha`: it holds over draws of both
    samples. Against one reference, alarms of several new samples hang together.

    Args:
        model: of `narrows fit --for drift`; any other with `reference`.
        rows: new ones, anything `open_source` takes. A sample of five times the reference is compared of more.
        reference: usual rows, best such that the model was not trained on; None takes those that it keeps.
        alpha: probability of any false alarm.
        seed: of the samples and of the permutations. The order of rows does not matter where all are compared.

    Raises:
        SettingError: for a model that keeps no rows, and an alpha that is no probability.
        DataError: for rows that do not fit the model, or fewer than ten.
    """
    if not 0 < alpha < 1:
        raise SettingError(f"alpha={alpha!r}", "a probability, such as 0.05")
    usual = Reference.of(model) if reference is None else Reference.given(model, reference, seed)
    return compared(model, usual, rows, alpha, seed)


def compared(model: Model, usual: Reference, rows: Any, alpha: float = 0.05, seed: int = 0) -> Drift:
    """`drift`, with a reference at hand."""
    most = NEW * most_of(model.schema)
    batch, met = sampled(model, (batch for _, batch in model.batches(rows)), most, seed)
    if batch is None or met < FEWEST:
        raise DataError(f"{met} rows to look for drift in", f"at least {FEWEST}")
    new = look(model, batch)
    tests = weighed(comparisons(model, usual, new, alpha, seed))
    skipped = [column.name for column in model.schema if not column.cells]
    return Drift(tests, float(alpha), met, len(new), len(usual.look), usual.origin, skipped)


def comparisons(model: Model, usual: Reference, new: Look, alpha: float = 0.05, seed: int = 0) -> list[Tested]:
    """All comparisons, each by itself."""
    tests: list[Tested] = []
    for at, cell in enumerate(watched(model.schema)):
        tests += _column(model, cell, at, usual.look, new)
    tests.append(_codes(model, usual, new, alpha, seed))
    if usual.new:
        before, after = usual.look.scores.numpy(), new.scores.numpy()
        found = kolmogorov_smirnov(before, after)
        tests.append(_tested("score", "score", "values", found, of_scores(before, after)))
    return tests


def weighed(tests: list[Tested]) -> list[Tested]:
    """The comparisons with adjusted p-values: each family has the same weight, shared among its tests."""
    families = [test.family for test in tests]
    adjusted = holm([test.p for test in tests], [1 / families.count(family) for family in families])
    return [Tested(**{**vars(test), "adjusted": p}) for test, p in zip(tests, adjusted, strict=True)]


def _tested(family: Family, name: str, what: str, found: Answer, told: str, psi: float | None = None) -> Tested:
    return Tested(family, name, what, found.test, found.statistic, found.p, told, psi)


def _column(model: Model, cell: Watched, at: int, usual: Look, new: Look) -> list[Tested]:
    """The values of a cell, and where any are missing how many."""
    there = [side.seen[:, at].numpy() for side in (usual, new)]
    before, after = (side.cells[:, at].double().numpy()[seen] for side, seen in zip((usual, new), there, strict=True))
    tests = [_values(model, cell, before, after)] if len(before) and len(after) else []
    counts = [np.array([(~seen).sum(), seen.sum()]) for seen in there]
    if counts[0][0] or counts[1][0]:
        shares = (float(count[0] / count.sum()) for count in counts)
        told = f"missing: {change(*shares)}"
        tests.append(_tested("column", cell.name, "missing", same_shares(*counts), told))
    return tests


def _values(model: Model, cell: Watched, before: NDArray[np.float64], after: NDArray[np.float64]) -> Tested:
    """The values of a cell that are there: as levels where there are few."""
    if cell.kind == "level":
        levels = model.schema[cell.column].levels + 1
        counts = [np.bincount(values.astype(np.int64), minlength=levels) for values in (before, after)]
        told = of_levels(model, cell, *counts)
        return _tested("column", cell.name, "values", same_shares(*counts), told, stability(*counts))
    told = of_numbers(model, cell, before, after)
    values, inverse = np.unique(np.concatenate([before, after]), return_inverse=True)
    if len(values) <= FEW_VALUES:
        sides = inverse[: len(before)], inverse[len(before) :]
        counts = [np.bincount(side, minlength=len(values)) for side in sides]
        return _tested("column", cell.name, "values", same_shares(*counts), told, stability(*counts))
    psi = stability(*in_bins(before, after))
    return _tested("column", cell.name, "values", kolmogorov_smirnov(before, after), told, psi)


def _codes(model: Model, usual: Reference, new: Look, alpha: float, seed: int) -> Tested:
    """Codes, and beside them what they miss of each cell where that may be compared."""
    sides = []
    for number, side in enumerate((usual.look, new)):
        order = torch.randperm(len(side), generator=generator(seed, number))[:POINTS]
        few = side[order.sort().values]
        sides.append(torch.cat([few.codes, few.misses], dim=1) if usual.new else few.codes)
    draws = min(MOST_PERMUTATIONS, max(PERMUTATIONS, ceil(10 / alpha)))
    found = discrepancy(*whitened(*sides), draws, seed)
    return _tested("codes", "codes", "values", found, _misses(model, usual, new) if usual.new else "")


def _misses(model: Model, usual: Reference, new: Look) -> str:
    """The columns of which codes miss another share than before, if any."""
    found = []
    for at, cell in enumerate(watched(model.schema)):
        pair = [side.misses[:, at].abs().double().numpy() for side in (usual.look, new)]
        answer = kolmogorov_smirnov(*pair)
        worse = pair[1].mean() > pair[0].mean()
        found.append((answer.p, -answer.statistic, cell.name, worse))
    named = [name for p, _, name, worse in sorted(found)[:NAMED] if p < 0.01 / len(found) and worse]
    listed = " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))
    return f"the model tells {listed} worse than before" if named else ""
