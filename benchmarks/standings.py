"""Who stands where: means, ranks and paired tests of systems over data sets, and the tables that show them.

Only cases, a set with a seed, that all systems have run are compared. Seeds are averaged first: the sets are what is
drawn from a population, so n of a test is the number of sets. Knows figures alone, neither data nor detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon

OURS = "Narrows"
MEASURES = ("ROC", "PR")
STEPS = ("fit", "score")
Runs = dict[str, dict[str, dict[str, dict[str, float]]]]  # set, system, seed, measure


@dataclass(frozen=True)
class Figures:
    """The cases that all systems share: means (sets, systems) over seeds of each measure, seconds (systems,) in all.

    `broken` are the sets on which some of a system's scores were not finite.
    """

    systems: list[str]
    cases: dict[str, list[str]]
    means: dict[str, NDArray[np.float64]]
    seconds: dict[str, NDArray[np.float64]]
    broken: dict[str, list[str]]


def compared(runs: Runs) -> Figures:
    """The runs of one variant; ours first, then by the mean ROC-AUC."""
    systems = sorted({system for found in runs.values() for system in found})
    cases = {name: shared(found, systems) for name, found in runs.items()}
    cases = {name: cases[name] for name in sorted(cases, key=number) if cases[name]}

    def over_seeds(name: str, system: str, key: str) -> list[float]:
        return [runs[name][system][seed][key] for seed in cases[name]]

    systems.sort(key=lambda system: (system != OURS, -sum(np.mean(over_seeds(name, system, "ROC")) for name in cases)))
    means = {
        key: np.array([[np.mean(over_seeds(name, s, key)) for s in systems] for name in cases]) for key in MEASURES
    }
    seconds = {key: np.array([sum(sum(over_seeds(name, s, key)) for name in cases) for s in systems]) for key in STEPS}
    broken = {s: [name for name in cases if any(over_seeds(name, s, "not finite"))] for s in systems}
    return Figures(systems, cases, means, seconds, {system: found for system, found in broken.items() if found})


def shared(found: dict[str, dict[str, dict[str, float]]], systems: list[str]) -> list[str]:
    """Seeds that every system has run on a set."""
    return sorted(set.intersection(*(set(found.get(system, {})) for system in systems)))


def number(name: str) -> int:
    """The number that a set's name begins with."""
    return int(name.split("_")[0])


def holm(chances: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values of a family of tests, corrected so that the chance of any false finding is kept (Holm 1979)."""
    order = np.argsort(chances)
    raised = np.maximum.accumulate(chances[order] * np.arange(len(chances), 0, -1))
    return np.minimum(raised, 1)[np.argsort(order)]


def duels(values: NDArray[np.float64]) -> list[dict[str, float]]:
    """The first column against each other one: sets won and lost, and p of Wilcoxon's signed-rank test, by Holm."""
    ours, peers = values[:, :1], values[:, 1:]
    chances = np.array([wilcoxon(ours[:, 0], theirs).pvalue for theirs in peers.T])
    found = zip((ours > peers).sum(0), (ours < peers).sum(0), holm(chances), strict=True)
    return [{"won": int(won), "lost": int(lost), "p": float(f"{chance:.2g}")} for won, lost, chance in found]


def standing(figures: Figures) -> dict[str, Any]:
    """Each system's means, mean ranks (1 is best), seconds in all and, where ours has run, how ours did against it."""
    facts: dict[str, dict[str, Any]] = {system: {} for system in figures.systems}
    for measure, values in figures.means.items():
        ranks = rankdata(-values, axis=1).mean(0)
        for place, system in enumerate(figures.systems):
            facts[system] |= {measure: round(values[:, place].mean(), 4), f"{measure} rank": round(ranks[place], 2)}
        if figures.systems[0] == OURS:
            for system, duel in zip(figures.systems[1:], duels(values), strict=True):
                facts[system][f"{OURS} in {measure}"] = duel
    for step, values in figures.seconds.items():
        for system, spent in zip(figures.systems, values, strict=True):
            facts[system][step] = round(float(spent), 1)
    return {"sets": len(figures.cases), "runs": sum(map(len, figures.cases.values())), "systems": facts}


def markdown(variants: dict[str, Figures], speed: dict[str, Any]) -> str:
    """All tables: for each variant the standings and every set, then the seconds on large sets."""
    parts = [part for name, found in variants.items() if found.cases for part in (summary(name, found), by_set(found))]
    return "\n\n".join(parts + ([seconds(speed)] if speed else [])) + "\n"


def table(heading: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A table in Markdown, its first columns to the left and all others to the right."""
    lines = [heading, [*["---"] * left, *["---:"] * (len(heading) - left)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def summary(variant: str, figures: Figures) -> str:
    """Means, ranks, duels and seconds."""
    facts = standing(figures)
    heading = ["", "ROC-AUC", "PR-AUC", "rank, ROC", "rank, PR", "fit, s", "score, s"]
    rows = [
        [system, *(f"{row[key]:.3f}" for key in MEASURES), *(f"{row[f'{key} rank']:.2f}" for key in MEASURES)]
        + [f"{row[step]:.1f}" for step in STEPS]
        for system, row in facts["systems"].items()
    ]
    if figures.systems[0] == OURS:
        heading += [f"{OURS} won : lost, {measure} (p)" for measure in MEASURES]
        rows[0] += ["", ""]
        for row in rows[1:]:
            row += [duel(facts["systems"][row[0]][f"{OURS} in {measure}"]) for measure in MEASURES]
    title = f"**{variant.capitalize()}**: {facts['sets']} sets, {facts['runs']} runs of each system."
    return f"{title}\n\n{table(heading, rows)}"


def duel(found: dict[str, float]) -> str:
    """Sets won, sets lost, and how likely that much difference is by chance."""
    return f"{found['won']} : {found['lost']} ({found['p']:.2g})"


def by_set(figures: Figures) -> str:
    """ROC-AUC / PR-AUC of every set; where ours has run, bold is a peer's figure that is above ours."""
    led = figures.systems[0] == OURS
    rows = []
    for place, name in enumerate(figures.cases):
        pairs = np.array([figures.means[measure][place] for measure in MEASURES])
        above = (pairs > pairs[:, :1]) & led
        rows.append([name, *(" / ".join(map(figure, *column)) for column in zip(pairs.T, above.T, strict=True))])
    title = f"ROC-AUC / PR-AUC of each set, the mean over seeds{'; bold: above Narrows' if led else ''}."
    broken = [f"{system} on {', '.join(found)}" for system, found in figures.broken.items()]
    note = f"\n\nScores that were not finite, and so ties: {'; '.join(broken)}." if broken else ""
    return f"{title}\n\n{table(['', *figures.systems], rows)}{note}"


def figure(value: float, bold: bool) -> str:
    """A share with three digits."""
    return f"**{value:.3f}**" if bold else f"{value:.3f}"


def seconds(speed: dict[str, Any]) -> str:
    """Fit and score of all rows of large sets."""
    rows = []
    for name, facts in speed.items():
        sides = [f"{facts[system]['fit']:.1f} + {facts[system]['score']:.1f}" for system in (OURS, "AutoEncoder")]
        rows.append([name, *sides, f"{facts['times sooner']:.1f}"])
    heading = ["fit + score, s", OURS, "PyOD's AutoEncoder", "times sooner"]
    return f"All rows of large sets, in a process each.\n\n{table(heading, rows)}"
