"""The section on how the code size was chosen: a curve of cost against size, and the trials, best first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from narrows.fitted import Model
from narrows.report.charts import curves
from narrows.sizing import PART
from narrows.tasks.figures import figure
from narrows.tasks.tuned import MEASURES, SHOWN, curve, ranked, sentence, settings_of


@dataclass(frozen=True)
class Tuning:
    """What the section shows.

    Args:
        sentence: what was chosen, and why.
        chart: cost against size.
        measure: what the cost is.
        trials: (size, cost, standard error, settings, whether chosen) of each, best first.
    """

    sentence: str
    chart: Markup
    measure: str
    trials: list[tuple[str, str, str, str, bool]]


def tuning(model: Model) -> Tuning | None:
    """How the size of the code was chosen; None where it was given, or the part is none."""
    facts = model.parts[PART].facts if PART in model.parts else {}
    try:
        sizes = curve(facts)
        if not sizes:
            return None
        x, y, error = (np.array(each, dtype=np.float64) for each in zip(*sizes, strict=True))
        chart = curves(
            [("loss", x, y), ("held", x, y + error), ("held", x, y - error)], "code size", MEASURES[facts["measure"]]
        )
        lines = [
            (
                str(trial["latent"]),
                figure(trial["score"]),
                figure(trial["error"]),
                settings_of(trial),
                _chosen(facts, trial),
            )
            for trial in ranked(facts)[:SHOWN]
            if "score" in trial
        ]
        return Tuning(sentence(facts), chart, MEASURES[facts["measure"]], lines)
    except (KeyError, TypeError, ValueError):  # a foreign part of this name
        return None


def _chosen(facts: dict[str, object], trial: dict[str, object]) -> bool:
    return trial.get("trial") == facts["chosen"] if "chosen" in facts else trial["latent"] == facts["latent"]
