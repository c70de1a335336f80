"""A model and its data on one page: what it is, how well it does, how it was trained, what it makes of single rows.

    model, rows -> evaluation, sample, worst rows -> sections -> page.html.jinja -> one HTML file

The page stands alone: styles, charts and images lie inside it, and it asks for no script and no network. It reads the
rows twice, holds a batch and a few chosen rows, and stays below a few megabytes whatever came in.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from narrows import __version__
from narrows.errors import SettingError
from narrows.files import atomic
from narrows.fitted import Model
from narrows.report.anomalies import anomalies
from narrows.report.cards import card_lists
from narrows.report.cells import View
from narrows.report.comparison import column_errors, introduction, notes
from narrows.report.copies import copies
from narrows.report.gather import gather
from narrows.report.looks import looks
from narrows.report.sections import about, code_map, diagnosis, training_curves
from narrows.report.tuning import tuning
from narrows.report.worst import bad_rows, in_gallery
from narrows.tasks.baseline import Baseline
from narrows.tasks.evaluate import measure
from narrows.tasks.figures import figure


def report(model: Model, data: Any, path: str | Path, *, rows: int = 12, worst: int = 8) -> None:
    """Write one self-contained HTML page about a model and some rows, best ones it was not trained on.

    Args:
        model: a fitted model.
        data: anything `open_source` takes, with the columns of the training data.
        path: of the page; written whole or not at all.
        rows: shown beside their reconstructions; twelve fill the width of a screen.
        worst: rows of the highest scores, with what is to blame.

    Raises:
        DataError: for no rows, or rows that do not fit the model.
        SettingError: for less than one row.
        NarrowsError: when the page cannot be written.
    """
    if min(rows, worst) < 1:
        raise SettingError(f"rows={rows}, worst={worst}", "at least 1")
    source = model.source(data)
    baseline = Baseline.of(model, source)
    evaluation = measure(model, source, baseline)
    gathered = gather(model, baseline, source, rows, worst)
    view, bad = View(model, gathered.sample), bad_rows(model, gathered)
    html = _template().render(
        version=__version__,
        figure=figure,
        source=source.name.rstrip("/").rsplit("/", 1)[-1],  # where it lies is nobody else's business
        about=about(model),
        anomalies=anomalies(model, source, worst),
        evaluation=evaluation,
        headline=evaluation.headline,
        introduction=introduction(evaluation),
        columns=column_errors(evaluation),
        notes=notes(evaluation),
        curves=training_curves(model),
        diagnosis=diagnosis(model),
        tuning=tuning(model),
        copies=copies(model, source),
        shown=view.shown(),
        cards=card_lists(view),
        codes=code_map(gathered),
        looks=looks(model, gathered),
        bad=bad,
        gallery=in_gallery(bad),
        median=figure(float(gathered.scores.median())),
    )
    with atomic(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _template() -> jinja2.Template:
    """The page's template; it escapes whatever is not marked as safe, and stops at names it does not know."""
    text = files("narrows.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    settings = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return settings.from_string(text)
