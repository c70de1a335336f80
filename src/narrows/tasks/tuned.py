"""What the part `tune` says for people: a sentence, a table of trials with the best first, a curve over code sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from rich.table import Table

from narrows.tasks.figures import figure

KEPT, USUAL = "tuned", "defaults"  # what was fitted whole at last
SHOWN = 20  # trials of a table
OWN = ("trial", "state", "latent", "score", "error")  # columns that every trial has; the others are settings
MEASURES = {"hidden cells": "cost of a hidden cell", "bound": "negative bound a row"}


def ranked(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials, those of the least cost first, those without one last."""
    return sorted(facts["trials"], key=lambda trial: trial.get("score", inf))


def settings_of(trial: Mapping[str, Any]) -> str:
    """The settings of a trial but its size, in words."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.items()
        if name not in OWN
    )


def curve(facts: Mapping[str, Any]) -> list[tuple[int, float, float]]:
    """(size, least cost, its standard error) by size."""
    best: dict[int, tuple[float, float]] = {}
    for trial in reversed(ranked(facts)):
        if "score" in trial:
            best[int(trial["latent"])] = float(trial["score"]), float(trial["error"])
    return [(size, *best[size]) for size in sorted(best)]


def sentence(facts: Mapping[str, Any]) -> str:
    """What was chosen, of what, and why."""
    count = len(facts["trials"])
    of = f"{count} {'trial' if facts['how'] == 'tune' else 'size'}{'' if count == 1 else 's'}"
    measure = MEASURES[facts["measure"]]
    on = f"{of} on {facts['rows']:,} rows and {facts['held']:,} held out"
    fitted = facts.get("fitted", {})
    if fitted and fitted[USUAL] < fitted[KEPT]:
        costs = f"{measure} {figure(fitted[USUAL])} against {figure(fitted[KEPT])}"
        return f"a code of {facts['latent']} by the defaults: fitted whole they beat what {on} had chosen ({costs})"
    chosen = f"a code of {facts['latent']}, chosen from {on}: the smallest within one standard error of the best by "
    costs = f"; fitted whole {figure(fitted[KEPT])}, the defaults {figure(fitted[USUAL])}" if fitted else ""
    return f"{chosen}{measure}{costs}"


def table(facts: Mapping[str, Any]) -> Table:
    """The trials, best first, for the terminal."""
    shown = Table("latent", MEASURES[facts["measure"]], "standard error", "settings", "ended", title="Trials")
    for column in shown.columns[:3]:
        column.justify = "right"
    for trial in ranked(facts)[:SHOWN]:
        score, error = (figure(trial[name]) if name in trial else "" for name in ("score", "error"))
        chosen = " (chosen)" if trial.get("trial") == facts.get("chosen") else ""
        shown.add_row(str(trial["latent"]), score, error, settings_of(trial), trial.get("state", "complete") + chosen)
    return shown
