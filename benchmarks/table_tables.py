"""Results on tables in Markdown: holes filled, rows made anew, code sizes chosen; functions of what the files hold."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean
from typing import Any

from scipy.stats import rankdata

from standings import table

Results = dict[str, Any]
MEASURES = ("rmse", "wrong")


def imputation(results: Results) -> str:
    """Errors of each imputer by table and pattern of holes, means over seeds; then ranks, seconds and coverage."""
    runs: dict[str, Results] = results["runs"]
    systems = list(dict.fromkeys(name for run in runs.values() for name in run))
    patterns: dict[str, list[Results]] = defaultdict(list)
    for label, run in runs.items():
        patterns[label.rpartition(", seed")[0]].append(run)
    rows = []
    for label, found in patterns.items():
        means = {name: _means([run[name] for run in found if name in run]) for name in systems}
        best = {key: min(figures.get(key, 9e9) for figures in means.values()) for key in MEASURES}
        rows.append([label, str(len(found)), *(_errors(means[name], best) for name in systems)])
    told = [table(["table", "seeds", *systems], rows, left=1)]
    everywhere = [name for name in systems if all(name in run for run in runs.values())]
    told.append(_standing("all of these", list(runs.values()), everywhere))
    for name in set(systems) - set(everywhere):
        some = [run for run in runs.values() if name in run]
        told.append(_standing(f"where {name} ran", some, [s for s in systems if all(s in run for run in some)]))
    inside: dict[str, list[float]] = defaultdict(list)
    for label, run in runs.items():
        if "coverage" in run["Narrows"]:
            inside[label.split(", ")[1]].append(run["Narrows"]["coverage"])
    shares = [f"{kind} {mean(found):.1%}, from {min(found):.1%} to {max(found):.1%}" for kind, found in inside.items()]
    told.append(f"Share of the missing numbers that intervals at 90 % held: {'; '.join(shares)}.")
    return "\n\n".join(told)


def _means(found: list[Results]) -> Results:
    """Each figure's mean over runs."""
    return {key: mean(run[key] for run in found) for key in (found[0] if found else {})}


def _standing(what: str, runs: list[Results], systems: list[str]) -> str:
    """Mean ranks of imputers over all measures of runs, and their seconds."""
    ranks: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for key in MEASURES:
            if key in run[systems[0]]:
                for name, place in zip(systems, rankdata([run[name][key] for name in systems]), strict=True):
                    ranks[name].append(float(place))
    lines = [["mean rank", *(f"{mean(ranks[name]):.2f}" for name in systems)]]
    lines.append(["seconds", *(f"{sum(run[name]['seconds'] for run in runs):.0f}" for name in systems)])
    return table([f"{what}: {len(runs)} runs", *systems], lines)


def _errors(figures: Results | None, best: dict[str, float]) -> str:
    """Root mean squared error of numbers and share of wrong categories, the best of each bold."""
    if not figures:
        return "-"
    told = [f"**{figures[k]:.4f}**" if figures[k] <= best[k] else f"{figures[k]:.4f}" for k in MEASURES if k in figures]
    return " / ".join(told)


def tabular(results: Results) -> str:
    """Means over seeds of each way of making rows."""
    runs: dict[str, list[Results]] = defaultdict(list)
    for label, run in results["runs"].items():
        runs[label.partition(",")[0]].append(run)
    parts = []
    for name, found in runs.items():
        measures = list(dict.fromkeys(key for run in found for figures in run.values() for key in figures))
        rows = []
        for way in found[0]:
            figures = [[run[way][key] for run in found if key in run[way]] for key in measures]
            rows.append([way, *(f"{mean(values):.3f}" if values else "-" for values in figures)])
        parts.append(table([f"{name}, {len(found)} seeds", *measures], rows))
    return "\n\n".join(parts)


def million(results: Results) -> str:
    """Seconds and memory of each command."""
    rows = []
    for label, run in results["runs"].items():
        rows += [[label, verb, f"{found['seconds']:.0f}", f"{found['peak MB']:,}"] for verb, found in run.items()]
    return table(["table", "command", "seconds", "peak MB"], rows, left=2)


def tune(results: Results) -> str:
    """Sizes that were chosen beside the number of factors that made the data; then what tuning gained on tables."""
    rows = []
    for found in results["factors"]:
        chosen = ", ".join(map(str, found["chosen"]))
        rows.append([found["kind"], str(found["factors"]), chosen, f"{found['hits']} of {len(found['chosen'])}"])
    told = [table(["data", "factors", "chosen, try by try", "within 1"], rows)]
    lines = []
    for found in results.get("tables", []):
        costs = [f"{found[what]['cost']:.4f} ({found[what]['latent']})" for what in ("defaults", "tuned")]
        lines.append([found["table"], *costs, f"{found['gain']:.1%}"])
    if lines:
        told.append(table(["cost of hidden cells (code size)", "defaults", "tuned", "less by"], lines))
    return "\n\n".join(told)
