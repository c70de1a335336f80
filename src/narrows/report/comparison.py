"""The section of errors: what is compared, in words, and the table of columns with their bars."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, isnan

from narrows.tasks.evaluation import GUESSES, Errors, Evaluation, better, worst_columns
from narrows.tasks.figures import figure

ERRORS = 60  # columns in the table of errors
NOTES = {
    "rmse": "RMSE is in the column's own units, or in standard deviations of the training rows (std).",
    "wrong": "Wrong is the share of rows with another category.",
    "bits": "Bits are what the next token of a text costs the model; wrong is the share of tokens that come back as "
    "others from the code alone. Mean is the unigram: how often each token came, whatever the row.",
    "perplexity": "Perplexity: an item of a bag is as hard to guess as one of so many equally likely ones. Mean is the "
    "unigram: how often each item came, whatever the row.",
}


def introduction(evaluation: Evaluation) -> str:
    """What the three large figures are, and where they come from."""
    headline, measures = evaluation.headline, {column.measure for column in evaluation.columns if column.seen}
    if measures in ({"bits"}, {"perplexity"}):
        text = f"{headline.words.capitalize()}; the unigram"
    else:
        units = "numbers standardized or in [0, 1], a wrong category counts 2"
        left = ", texts are left out" if "bits" in measures else ""
        text = f"Squared error per row in prepared units: {units}{left}. PCA and mean"
    verb = "was" if measures == {"bits"} else "were"
    both = " and PCA" if measures == {"perplexity"} else ""
    held = f"; {evaluation.held.sentence}" if evaluation.held else ""
    return f"{text}{both} {verb} learnt from {evaluation.baseline}{held}."


def notes(evaluation: Evaluation) -> str:
    """What the words of the table mean, those that it uses, and what it leaves out."""
    measures = {column.measure for column in evaluation.columns if column.seen}
    parts = [note for measure, note in NOTES.items() if measure in measures]
    parts.append("Holes are left out.")
    if len(evaluation.columns) > ERRORS:
        parts.append(f"Shown are the {ERRORS} of {len(evaluation.columns)} columns that come back worst.")
    if evaluation.unseen_levels:
        unknown = ", ".join(f"{name} ({count:,})" for name, count in evaluation.unseen_levels.items())
        parts.append(f"Categories and tokens the model does not know: {unknown}.")
    return " ".join(parts)


@dataclass(frozen=True)
class ErrorRow:
    """A column's errors as text, as bars in percent of the longest of the three, and which of model or PCA is best."""

    name: str
    measure: str
    figures: list[str]
    bars: list[float]
    best: int
    r2: str


def column_errors(evaluation: Evaluation) -> list[ErrorRow]:
    """Rows of the table of errors: at most 60 columns, the worst ones where there are more; of texts two rows each."""
    rows = []
    for column in worst_columns(evaluation.columns, ERRORS):
        r2 = "" if isnan(column.r2) else f"{column.r2:.3f}"
        rows.append(_error_row(column.name, column.words, column.measure, column.errors, r2))
        if column.measure == "bits":
            rows.append(_error_row(column.name, "wrong", "wrong", column.wrong, ""))
    return rows


def _error_row(name: str, words: str, measure: str, errors: Errors, r2: str) -> ErrorRow:
    values = [getattr(errors, guess) for guess in GUESSES]
    longest = max((value for value in values if isfinite(value)), default=0.0) or 1.0
    bars = [round(100 * value / longest, 1) if isfinite(value) else -1.0 for value in values]
    return ErrorRow(name, words, [figure(value, measure) for value in values], bars, better(errors), r2)
