"""The section of the rows that fit worst: what each looks like, and which columns are to blame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from markupsafe import Markup

from narrows.fitted import Model
from narrows.report.cards import Cards
from narrows.report.cells import Drawing, View, drawing, worst_cells
from narrows.report.gather import Gathered
from narrows.schema import Column
from narrows.tasks.evaluate import terms
from narrows.tasks.figures import figure

BLAMED = 4  # columns named for a bad row
CARDS = 2  # columns drawn for a bad row


@dataclass(frozen=True)
class Blame:
    """A column's part in a bad score: what it cost beyond the average row, and what stood there."""

    name: str
    excess: str
    share: float
    original: str
    model: str
    cells: str


@dataclass(frozen=True)
class BadRow:
    """A row that fits badly."""

    index: int
    score: str
    blames: list[Blame]
    pictures: list[tuple[str, str]]
    cards: list[tuple[Drawing, Markup]]


def bad_rows(model: Model, gathered: Gathered) -> list[BadRow]:
    """The rows of the highest scores, worst first, each with the columns to blame, where there is more than one."""
    view = View(model, gathered.worst)
    cards = Cards(view, titled=False)
    return [_bad_row(model, view, cards, row) for row in range(len(gathered.worst.index))]


def in_gallery(rows: list[BadRow]) -> bool:
    """Whether bad rows are nothing but drawings, which stand side by side; texts need the width of the page."""
    first = rows[0]
    return bool(first.pictures or first.cards) and not first.blames and all(way != "text" for way, _ in first.cards)


def _bad_row(model: Model, view: View, cards: Cards, row: int) -> BadRow:
    images = [column for column in model.schema if drawing(column) == "picture"][:1]
    drawn = [column for column in model.schema if drawing(column) not in ("picture", "cell")][:CARDS]
    kinds = (("original", "original"), ("model", "model"), ("cost", "cost"))
    pictures = [(label, view.picture(column, row, which)) for column in images for label, which in kinds]
    shown = [(drawing(column), cards.card(column, row)) for column in drawn]
    score = figure(float(view.rows.score[row]))
    return BadRow(int(view.rows.index[row]), score, _blames(model, view, row), pictures, shown)


def _blames(model: Model, view: View, row: int) -> list[Blame]:
    """The columns and terms that cost most; none where a drawing of the only column says it all."""
    columns, excess = list(model.schema), view.rows.excess[row]
    costs = [excess[model.schema.spans[column.name]].sum() for column in columns]
    costs += list(excess[model.schema.cells :])
    if len(costs) == 1 and drawing(columns[0]) != "cell":
        return []
    longest = max(float(max(costs)), 1e-30)
    blames = []
    for i in worst_cells(torch.stack(costs), BLAMED):
        cost = float(costs[i])
        if i < len(columns):
            blames.append(_blame(view, columns[i], row, cost, 100 * cost / longest))
        else:
            name = f"{terms(model)[i - len(columns)]} of the code"
            blames.append(Blame(name, figure(cost), 100 * cost / longest, "", "", ""))
    return blames


def _blame(view: View, column: Column, row: int, cost: float, share: float) -> Blame:
    if drawing(column) == "cell" and not column.shape:
        values = view.value(column, row), view.value(column, row, "model")
        return Blame(column.name, figure(cost), share, *values, "")
    cells, names = view.rows.excess[row, view.schema.spans[column.name]], column.cell_names()
    top = ", ".join(names[i] for i in worst_cells(cells, 3)) if len(column.shape) == 1 and not column.grid else ""
    return Blame(column.name, figure(cost), share, "", "", top)
