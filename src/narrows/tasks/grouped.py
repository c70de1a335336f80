"""The errors of each group of rows beside those of all: figures, a sentence, and the same as JSON or as a table.

A mean over all rows is that of the largest groups. What a model makes of a rare one shows only where it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

from narrows.tasks.figures import figure

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 30  # groups in a table


class Figures(NamedTuple):
    """The headline's error of some rows, and column -> its error."""

    rows: int
    error: float
    columns: dict[str, float]


@dataclass(frozen=True)
class GroupErrors:
    """How well the rows of one group come back.

    Args:
        name: of the group, a value of the column as text; `(missing)` for rows without one.
        rows: of it.
        error: the headline of the evaluation for these rows alone: squared error a row, in prepared units, or what
            stands in its place where rows are texts or bags.
        ratio: of this error to that of all rows.
        columns: column -> its error in this group, in the measure and unit that it has among all rows; NaN where no
            cell was seen.
        worst: the column whose error is most above that of all rows; empty where none is.
        worst_ratio: of that error to that of all rows.
    """

    name: str
    rows: int
    error: float
    ratio: float
    columns: dict[str, float]
    worst: str = ""
    worst_ratio: float = nan


@dataclass(frozen=True)
class ByGroup:
    """The errors of the groups of a column.

    Args:
        column: whose equal values are a group.
        words: what `error` is.
        error: of all rows.
        columns: column -> its error among all rows.
        groups: the one of the largest error first.
    """

    column: str
    words: str
    error: float
    columns: dict[str, float]
    groups: tuple[GroupErrors, ...]

    @classmethod
    def of(cls, column: str, words: str, whole: Figures, parts: dict[str, Figures]) -> ByGroup:
        """The comparison of groups with the whole.

        Args:
            column: that groups are values of.
            words: what is compared.
            whole: of all rows.
            parts: of the rows of each group.
        """
        groups = [_group(name, part, whole) for name, part in parts.items()]
        ordered = sorted(groups, key=lambda group: (-group.error if isfinite(group.error) else 1.0, group.name))
        return cls(column, words, whole.error, whole.columns, tuple(ordered))

    @property
    def worst(self) -> dict[str, GroupErrors]:
        """Column -> the group in which it comes back worst."""
        found = {}
        for name in self.columns:
            told = [group for group in self.groups if isfinite(group.columns[name])]
            if told:
                found[name] = max(told, key=lambda group: group.columns[name])
        return found

    @property
    def sentence(self) -> str:
        """Which group comes back worst."""
        first = self.groups[0]
        if len(self.groups) < 2:
            return f"All rows are of one group of {self.column}, {first.name}."
        rows = f"{first.rows:,} row{'' if first.rows == 1 else 's'}"
        times = f", {first.ratio:.2f} times that of all" if isfinite(first.ratio) else ""
        return (
            f"Of the {len(self.groups)} groups by {self.column}, {first.name} ({rows}) comes back worst: {self.words} "
            f"{figure(first.error)}{times}."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; None where a figure does not exist."""
        return {
            "column": self.column,
            "measure": self.words,
            "error": _known(self.error),
            "groups": [
                {
                    "name": group.name,
                    "rows": group.rows,
                    "error": _known(group.error),
                    "ratio": _known(group.ratio),
                    "worst_column": group.worst or None,
                    "columns": {name: _known(error) for name, error in group.columns.items()},
                }
                for group in self.groups
            ],
            "worst_group": {name: group.name for name, group in self.worst.items()},
        }

    def lines(self) -> list[list[str]]:
        """Group, rows, error, ratio and worst column as text; the groups of largest error."""
        lines = []
        for group in self.groups[:SHOWN]:
            worst = f"{group.worst} ({group.worst_ratio:.2g} x)" if group.worst else ""
            ratio = f"{group.ratio:.2f}" if isfinite(group.ratio) else "-"
            lines.append([group.name, f"{group.rows:,}", figure(group.error), ratio, worst])
        return lines

    def table(self) -> Table:
        """A table for the terminal."""
        from rich.table import Table
        from rich.text import Text

        more = len(self.groups) - SHOWN
        caption = f"and {more:,} more groups, which --json lists" if more > 0 else None
        title = f"Error by group of {self.column}"
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
        table.add_column(self.column, overflow="fold")
        for heading in ("rows", self.words, "to all"):
            table.add_column(heading, justify="right")
        table.add_column("worst column", overflow="fold")
        for name, *texts, worst in self.lines():
            table.add_row(Text(name), *texts, Text(worst))
        return table


def _group(name: str, part: Figures, whole: Figures) -> GroupErrors:
    pairs = {column: (own, whole.columns[column]) for column, own in part.columns.items()}
    ratios = {column: own / usual for column, (own, usual) in pairs.items() if usual > 0 and isfinite(own)}
    worst = max(ratios, key=lambda column: ratios[column], default="")
    above = worst if worst and ratios[worst] > 1 else ""
    ratio = part.error / whole.error if whole.error > 0 else nan
    return GroupErrors(name, part.rows, part.error, ratio, part.columns, above, ratios.get(above, nan))


def _known(value: float) -> float | None:
    return value if isfinite(value) else None
