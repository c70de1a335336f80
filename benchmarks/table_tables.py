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
    """Errors and seconds of each imputer, a line a table; then mean ranks."""
    runs = results["runs"]
    systems = list(dict.fromkeys(name for run in runs.values() for name in run))
    rows = []
    for label, run in runs.items():
        best = {key: min(run[name].get(key, 9e9) for name in run) for key in MEASURES}
        rows.append([label, *(_errors(run.get(name), best) for name in systems)])
    told = [table(["table", *systems], rows)]
    ranks, seconds = defaultdict(list), defaultdict(list)
    for run in runs.values():
        for key in MEASURES:
            figures = [run.get(name, {}).get(key) for name in systems]
            for name, place in zip(systems, rankdata(figures) if None not in figures else [], strict=False):
                ranks[name].append(float(place))
        for name in run:
            seconds[name].append(run[name]["seconds"])
    means = [["mean rank", *(f"{mean(ranks[name]):.2f}" if ranks[name] else "-" for name in systems)]]
    means.append(["seconds in all", *(f"{sum(seconds[name]):.0f}" for name in systems)])
    told.append(table(["", *systems], means))
    inside = [run["Narrows"]["coverage"] for run in runs.values() if "coverage" in run["Narrows"]]
    told.append(f"Intervals at 90 % held {mean(inside):.1%} of the missing numbers.")
    return "\n\n".join(told)


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
    """Sizes that were chosen beside the number of factors that made the data."""
    rows = []
    for found in results["factors"]:
        chosen = ", ".join(map(str, found["chosen"]))
        rows.append([found["kind"], str(found["factors"]), chosen, f"{found['hits']} of {len(found['chosen'])}"])
    return table(["data", "factors", "chosen, try by try", "within 1"], rows)
