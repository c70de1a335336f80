"""Drift on real tables: false alarms over 400 unshifted resamples, and how often shifts of known size are found.

    python benchmarks/drift.py --data DIR                   three tables, in about ten minutes on one core
    python benchmarks/drift.py wine --data DIR --resamples 50 --repeats 10

A model is fitted once to a part of each table, as `narrows fit --for drift` does. Its reference and the new rows are
then drawn anew for every resample, without replacement, from the rows that took no part in the fit: the promised rate
is one over draws of both. A shift is made of all those rows at once: `mean` adds 0.3 standard deviations to a column,
`variance` spreads one by 1.4 about its mean, `category rate` gives a tenth of the rows another level, `missing rate`
takes 5 % of a column's cells, and `correlation` shuffles two columns each by itself, so that every column keeps exactly
the values it had. Results are kept in `results/drift.json`, a table as it ends.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from kept import kept
from narrows import Model, Plan
from narrows.fitting import fit
from narrows.schema import Batch
from narrows.tasks.drift import comparisons, weighed
from narrows.tasks.purposes import purpose_of
from narrows.tasks.reference import Look, Reference, look

RESULTS = Path(__file__).parent / "results" / "drift.json"
PACKAGES = {"narrows", "torch", "numpy", "scipy"}
ALPHA = 0.05
SIZES = (200, 1_000)  # new rows
REFERENCE, TRAINED = 2_000, 8_000  # rows at most
ADULT = ["age", "work", "weight", "education", "years", "marital", "job", "relation", "race", "sex"]
ADULT += ["gain", "loss", "hours", "country", "income"]


@dataclass(frozen=True)
class Source:
    """A table. Args: read: folder -> frame. moved: the column of numbers that is shifted. levels: the column whose
    levels are, and the level that becomes more. pair: the columns that are shuffled."""

    read: Callable[[Path], pd.DataFrame]
    moved: str
    pair: tuple[str, str]
    levels: tuple[str, Any] | None = None


def wine(data: Path) -> pd.DataFrame:
    """White wines: eleven measures and a grade."""
    frame = pd.read_csv(data / "winequality-white.csv.gz", sep=None, engine="python", header=None)
    if not str(frame.iloc[0, 0]).replace(".", "").isdigit():
        frame = frame.iloc[1:].astype(float)
    return frame.set_axis([f"c{i}" for i in range(frame.shape[1])], axis=1)


def adult(data: Path) -> pd.DataFrame:
    """People: six numbers, nine categories, holes."""
    rows = pd.read_csv(data / "adult-train.csv.gz", header=None, names=ADULT, skipinitialspace=True)
    return rows.replace("?", None)


TABLES = {
    "wine": Source(wine, "c8", ("c7", "c10"), ("c11", 5)),
    "adult": Source(adult, "age", ("age", "marital"), ("sex", "Female")),
    "california": Source(
        lambda data: pd.read_csv(data / "california_housing.csv.gz"),
        "medianIncome",
        ("medianIncome", "medianHouseValue"),
    ),
}


def shifted(rows: pd.DataFrame, source: Source) -> dict[str, pd.DataFrame]:
    """The rows under each shift."""
    draw, column = np.random.default_rng(1), rows[source.moved].astype(float)
    made = {
        "mean": rows.assign(**{source.moved: column + 0.3 * column.std()}),
        "variance": rows.assign(**{source.moved: column.mean() + 1.4 * (column - column.mean())}),
        "missing rate": rows.assign(**{source.moved: column.where(draw.random(len(rows)) >= 0.05)}),
        "correlation": rows.assign(**{name: draw.permutation(rows[name].to_numpy()) for name in source.pair}),
    }
    if source.levels:
        name, level = source.levels
        made["category rate"] = rows.assign(**{name: rows[name].where(draw.random(len(rows)) >= 0.1, level)})
    return made


def looked(model: Model, rows: pd.DataFrame) -> Look:
    """What is compared of rows."""
    return look(model, Batch.concat([batch for _, batch in model.batches(rows)]))


def alarms(model: Model, usual: Look, new: Look, size: int, runs: int, seed: int) -> Counter[str]:
    """How often each family of tests, and any, gave an alarm on new rows of this number."""
    found: Counter[str] = Counter()
    reference = min(REFERENCE, (len(usual) - size) * 4 // 5)
    for run in track(range(runs), description=f"{size} rows", transient=True):
        order = torch.from_numpy(np.random.default_rng((seed, size, run)).permutation(len(usual)))
        kept_rows = Reference(usual[order[:reference]], "held-out rows")
        tests = weighed(comparisons(model, kept_rows, new[order[reference : reference + size]], ALPHA, seed=run))
        families = {test.family for test in tests if test.adjusted <= ALPHA}
        found.update({*families, *(["any"] if families else [])})
    return found


def measured(name: str, data: Path, resamples: int, repeats: int) -> dict[str, Any]:
    """All figures of a table."""
    source, began = TABLES[name], time.perf_counter()
    rows = source.read(data / "tabular").sample(frac=1, random_state=0).reset_index(drop=True)
    cut = min(TRAINED, len(rows) // 2)
    purpose = purpose_of("drift")
    model = fit(rows[:cut], purpose.settle(Plan(purpose.recipe)), learn=purpose.learn)
    pool = rows[cut:].reset_index(drop=True)
    usual = looked(model, pool)
    each = resamples // len(SIZES)
    false = {size: alarms(model, usual, usual, size, each, seed=0) for size in SIZES}
    figures: dict[str, Any] = {"columns": len(model.schema), "rows": len(pool), "resamples": each * len(SIZES)}
    figures["false alarms"] = {str(size): found["any"] / each for size, found in false.items()}
    figures["false alarms"]["all"] = sum(found["any"] for found in false.values()) / (each * len(SIZES))
    power: dict[str, Any] = {}
    for shift, moved in shifted(pool, source).items():
        new = looked(model, moved)
        for size in SIZES:
            found = alarms(model, usual, new, size, repeats, seed=2)
            shares = {family: found[family] / repeats for family in ("any", "column", "codes", "score")}
            power.setdefault(shift, {})[str(size)] = shares
    return {**figures, "power": power, "repeats": repeats, "seconds": round(time.perf_counter() - began)}


def show(name: str, figures: dict[str, Any]) -> None:
    """Print a table's figures."""
    table = Table("shift", *(f"{size} rows" for size in SIZES), "by codes", "by score", title=name)
    table.add_row("none", *(f"{figures['false alarms'][str(size)]:.1%}" for size in SIZES))
    for shift, found in figures["power"].items():
        last = found[str(SIZES[-1])]
        ends = [f"{last[family]:.0%}" for family in ("codes", "score")]
        table.add_row(shift, *(f"{found[str(size)]['any']:.0%}" for size in SIZES), *ends)
    Console().print(table, f"{figures['seconds']} s")


def main() -> None:
    """Fit, resample, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--resamples", type=int, default=400, help="without a shift; fewer are printed and not kept")
    parser.add_argument("--repeats", type=int, default=50, help="of each shift and size")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of values out of range, which are the point here
    for name in arguments.tables or TABLES:
        figures = measured(name, arguments.data, arguments.resamples, arguments.repeats)
        show(name, figures)
        if arguments.resamples >= 400 and arguments.repeats >= 50:
            with kept(RESULTS, {"tables": {}, "alpha": ALPHA}, PACKAGES) as results:
                results["tables"][name] = figures


if __name__ == "__main__":
    main()
