"""The answer of `evaluate`: figures, a verdict in words, and the same as JSON or as a table for a terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite, isnan, nan, prod
from typing import TYPE_CHECKING, Any

from narrows.tasks.figures import figure
from narrows.tasks.grouped import ByGroup
from narrows.tasks.heldout import HeldOut

if TYPE_CHECKING:
    from rich.table import Table

GUESSES = ("model", "pca", "mean")
NAME = 48  # characters of a column's name in a table
TEXTS = 3  # columns of texts that a verdict on other columns names


@dataclass(frozen=True)
class Errors:
    """One figure for each of the three guesses; lower is better, NaN where no cell was seen."""

    model: float = nan
    pca: float = nan
    mean: float = nan


@dataclass(frozen=True)
class ColumnErrors:
    """How well one column comes back.

    Args:
        name: of the column.
        kind: of the column.
        measure: `rmse`; `wrong`, the share of rows with another category; `bits` a token of a text, of which the model
            knows those before where its decoder reads them; `perplexity` an item of a bag, whose total is given.
        unit: of the errors, where it is not that of the values: days, hours or seconds; `std`, training deviations, of
            ragged series, series scaled row by row and spectra (`range` where these lie in [0, 1]); of bits: character,
            byte, word or token, the end mark of a text being one.
        seen: cells compared; of bags the items that rows hold.
        errors: of model, PCA and mean. "Mean" is the mean of the prepared numbers, the most frequent level, or the
            unigram: the share of each token or item in training. PCA does not read texts.
        r2: 1 - squared error / squared deviation from the evaluated cells' own means; NaN but for numbers.
        shape: of one value; `()` for a scalar.
        cells: guess -> RMSE of each cell of an array column, flat.
        wrong: of a text: share of tokens that come back as others from the code alone, at the same place.
    """

    name: str
    kind: str
    measure: str = "rmse"
    unit: str = ""
    seen: int = 0
    errors: Errors = field(default_factory=Errors)
    r2: float = nan
    shape: tuple[int, ...] = ()
    cells: dict[str, list[float]] = field(default_factory=dict)
    wrong: Errors = field(default_factory=Errors)

    @property
    def words(self) -> str:
        """What is measured, in words."""
        named = {"rmse": f"RMSE {self.unit}".strip(), "bits": f"bits a {self.unit}"}
        return named.get(self.measure, self.measure)


@dataclass(frozen=True)
class Headline:
    """The one comparison that a verdict rests on.

    Args:
        words: what is compared, such as "squared error per row".
        errors: of model, PCA and mean; PCA's is NaN where there are only texts.
        usual: what the mean is called.
    """

    words: str
    errors: Errors
    usual: str = "the mean"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        rows: evaluated.
        seen: cells that were there, over all rows.
        unseen_levels: column -> cells with a category the model does not know; they count as wrong.
        code: numbers in the model's code.
        components: of the PCA; fewer than `code` where there were not as many features or rows.
        lossless: whether that PCA keeps everything, because the code is as wide as the data.
        linear: whether the model is one linear map each way, for which PCA is the best that can be.
        baseline: which rows PCA and mean were learnt from.
        columns: errors of each.
        total: squared error a row in prepared units: summed over the numbers of a row (pixels in [0, 1], standardized
            columns), plus 2 for each wrong category, the squared distance of two one-hot codes. Shares of a bag are
            compared as counts, times the row's own total. Texts are left out, since PCA does not read them: NaN where
            there is nothing else.
        loss: the model's own loss a row, in nats for likelihoods, by part; `reconstruction` is that of the cells.
        held: that loss on rows held out from training, where the model tells it.
        groups: errors of each group of rows, where asked for.
    """

    rows: int
    seen: int
    unseen_levels: dict[str, int]
    code: int
    components: int
    lossless: bool
    linear: bool
    baseline: str
    columns: tuple[ColumnErrors, ...]
    total: Errors
    loss: dict[str, float]
    held: HeldOut | None = None
    groups: ByGroup | None = None

    @property
    def verdict(self) -> str:
        """In plain words: is the model better than PCA of the same size, and than the mean? And are these rows new?"""
        caution = self.held.caution if self.held and self.seen else ""
        return f"{self._comparison} {caution}".rstrip()

    @property
    def headline(self) -> Headline:
        """Squared error, where rows are more than texts or bags; else bits a token, or perplexity an item."""
        return headline_of(self.columns, self.total)

    @property
    def _comparison(self) -> str:
        """The headline, and what texts add to it that stand beside other columns."""
        if not self.seen:
            return "Every cell of these rows is missing: there is nothing to compare."
        exact = self.total.model == 0 or isnan(self.total.model)
        if exact and all(column.wrong.model == 0 for column in self.columns if column.measure == "bits"):
            return "Every row came back exactly."
        texts = [c for c in self.columns if c.measure == "bits" and c.seen] if self.total.model >= 0 else []
        beside = "; ".join(_of_text(column) for column in texts[:TEXTS])
        return f"{self._verdict} And {beside}." if beside else self._verdict

    @property
    def _verdict(self) -> str:
        headline = self.headline
        ours, pca, mean = headline.errors.model, headline.errors.pca, headline.errors.mean
        figures = f"{headline.words} {figure(ours)} against {figure(pca)}"
        components = f"{self.components} component{'' if self.components == 1 else 's'}"
        wide = "the columns beside texts" if any(c.measure == "bits" for c in self.columns) else "the data"
        if not ours < mean and mean > 0:
            return (
                f"No better than {headline.usual}: {headline.words} {figure(ours)} against {figure(mean)}; "
                f"try more epochs, a lower learning rate or a larger code."
            )
        if isnan(pca):
            return f"Better than the unigram: {headline.words} {figure(ours)} against {figure(mean)}."
        if self.lossless:
            return (
                f"A code of {self.code} is as wide as {wide}, so PCA of that size loses nothing; the model's "
                f"{headline.words} is {figure(ours)}, {headline.usual}'s {figure(mean)}."
            )
        if self.linear and ours < 1.05 * pca:
            return f"As good as PCA of {components}, the best a linear model can be: {figures}."
        if not ours < pca:
            return (
                f"No better than PCA of {components}: {figures}; "
                f"try more epochs, wider hidden layers or more training rows."
            )
        return f"Better than PCA of {components}: {figures} ({1 - ours / pca:.0%} less)."

    @property
    def warning(self) -> str:
        """The verdict, where it is one that a user would want to be warned of; else empty."""
        return self.verdict if self.verdict.startswith("No better") else ""

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; None where a figure does not exist."""
        columns = {
            c.name: {
                "kind": c.kind,
                "measure": c.measure,
                "unit": c.unit,
                "seen": c.seen,
                "r2": _known(c.r2),
                **_by_guess(c.errors),
                **({"wrong": _by_guess(c.wrong)} if c.measure == "bits" else {}),
                **({"cells": {name: list(map(_known, cells)) for name, cells in c.cells.items()}} if c.cells else {}),
            }
            for c in self.columns
        }
        return {
            "rows": self.rows,
            "cells_seen": self.seen,
            "unseen_levels": self.unseen_levels,
            "code": self.code,
            "pca_components": self.components,
            "baseline": self.baseline,
            "columns": columns,
            "squared_error_per_row": _by_guess(self.total),
            "loss_per_row": {"total": sum(self.loss.values()), **self.loss},
            "validation_loss": self.held and _known(self.held.validation),
            "evaluated_loss": self.held and _known(self.held.here),
            "verdict": self.verdict,
            **({"groups": self.groups.to_json()} if self.groups else {}),
        }

    def table(self, limit: int = 40) -> Table:
        """A table for the terminal, the better of model and PCA in bold.

        Args:
            limit: columns shown, those that the model gives back worst; a screen and a half by default.
        """
        from rich.table import Table
        from rich.text import Text

        shown = worst_columns(self.columns, limit)
        title = f"Error of each column over {self.rows:,} row{'' if self.rows == 1 else 's'}"
        notes = [f"PCA and mean learnt from {self.baseline}", *([self.held.sentence] if self.held else [])]
        if any(column.measure in ("bits", "perplexity") for column in shown):
            notes.insert(1, "the mean of texts and bags is the unigram")
        if len(shown) < len(self.columns):
            notes.insert(0, f"the {len(shown)} of {len(self.columns)} columns that come back worst")
        table = Table(title=title, caption="; ".join(notes), caption_justify="left", title_justify="left")
        table.add_column("column", overflow="fold")
        table.add_column("error")
        for heading in ("model", f"PCA {self.components or ''}".rstrip(), "mean", "R2"):
            table.add_column(heading, justify="right", no_wrap=True)
        for column in shown:
            r2 = "" if isnan(column.r2) else f"{column.r2:.3f}" if column.r2 > -1000 else figure(column.r2)
            table.add_row(Text(_short(column.name)), column.words, *_marked(column.errors, column.measure), r2)
            if column.measure == "bits":
                table.add_row("", "wrong", *_marked(column.wrong, "wrong"), "")
        if not isnan(self.total.model):
            table.add_section()
            table.add_row("all", "squared, a row", *_marked(self.total, "rmse"), "")
        return table


def headline_of(columns: tuple[ColumnErrors, ...], total: Errors) -> Headline:
    """The comparison that stands for all columns: see `Evaluation.headline`."""
    told = [column for column in columns if column.seen]
    for measure, words in (("bits", "bits"), ("perplexity", "perplexity")):
        if told and all(column.measure == measure for column in told):
            units = {column.unit for column in told}
            unit = units.pop() if len(units) == 1 else "token"
            return Headline(f"{words} per {unit}", _pooled(told), "the unigram")
    return Headline("squared error per row", total)


def worst_columns(columns: tuple[ColumnErrors, ...], limit: int) -> list[ColumnErrors]:
    """At most `limit` columns, in order: those whose error is largest beside the mean's."""

    def relative(column: ColumnErrors) -> float:
        share = column.errors.model / column.errors.mean if column.errors.mean else column.errors.model
        return share if isfinite(share) else -1.0

    chosen = sorted(range(len(columns)), key=lambda i: -relative(columns[i]))[:limit]
    return [columns[i] for i in sorted(chosen)]


def _short(name: str) -> str:
    """A name on one line, cut where it would fill the table."""
    name = " ".join(name.split())
    return name if len(name) <= NAME else f"{name[: NAME - 1]}…"


def _pooled(columns: list[ColumnErrors]) -> Errors:
    """The mean over columns of one measure, each counted by its cells; of perplexities the geometric one."""
    if len(columns) == 1:
        return columns[0].errors
    weights = [column.seen / sum(other.seen for other in columns) for column in columns]
    geometric = columns[0].measure == "perplexity"

    def pooled(name: str) -> float:
        values: list[float] = [getattr(column.errors, name) for column in columns]
        pairs = list(zip(values, weights, strict=True))
        return prod(value**weight for value, weight in pairs) if geometric else sum(v * weight for v, weight in pairs)

    return Errors(*(pooled(name) for name in GUESSES))


def _of_text(column: ColumnErrors) -> str:
    ours, usual = figure(column.errors.model), figure(column.errors.mean)
    return f"{_short(column.name)}: {ours} {column.words} against {usual} of the unigram"


def better(errors: Errors) -> int:
    """Place of the lower of model and PCA, or of model and mean where PCA has no say; -1 where there is nothing."""
    if isnan(errors.model):
        return -1
    other = 2 if isnan(errors.pca) else 1
    return other if getattr(errors, GUESSES[other]) < errors.model else 0


def _marked(errors: Errors, measure: str) -> list[str]:
    """The three figures, the better one in bold."""
    cells = [figure(getattr(errors, name), measure) for name in GUESSES]
    best = better(errors)
    return [f"[bold]{cell}[/]" if i == best else cell for i, cell in enumerate(cells)]


def _known(value: float) -> float | None:
    return value if isfinite(value) else None


def _by_guess(errors: Errors) -> dict[str, float | None]:
    return {name: _known(getattr(errors, name)) for name in GUESSES}
