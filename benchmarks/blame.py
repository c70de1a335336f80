"""Which cell is to blame: one cell of each row is made wrong; of the rows found, is it the one that is blamed first?

    python benchmarks/blame.py --data DIR                    all tables
    python benchmarks/blame.py adult 26_optdigits --data DIR

Tables of mixed columns, and the normal rows of sets of ADBench, at most 4,000 rows of each. An `AnomalyDetector` with
its defaults learns from one half, one row in twenty of which has a wrong cell too. In each row of the other half one
cell is wrong: `shifted`, a number 4 to 6 standard deviations off or another level; `swapped`, another row's value.
A row is found if its p-value is above 0.05 as it was and not as it is, so that rows that are odd of themselves do not
count. Beside it what a look at each column alone would blame: the number most standard deviations from its mean, the
level most as a column of flags. Writes `results/blame.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from narrows import AnomalyDetector

RESULTS = Path(__file__).parent / "results" / "blame.json"
TABLES = {
    "adult": "adult-train",
    "california": "california_housing",
    "german_credit": "german_credit",
    "hypothyroid": "hypothyroid",
    "letter": "letter",
    "wine": "winequality-white",
}
SETS = ("4_breastw", "6_cardio", "7_Cardiotocography", "19_landsat", "22_magic.gamma", "26_optdigits", "27_PageBlocks")
SETS += ("30_satellite", "38_thyroid", "41_Waveform")
MOST, ALARMS = 4_000, 0.05
HOW, KEYS = ("shifted", "swapped"), ("found", "blamed", "column alone")
Places = NDArray[np.int64]


def read(data: Path, name: str) -> pd.DataFrame:
    """The rows of a table, without holes; of a set with labels the normal ones."""
    if name in SETS:
        with np.load(data / "adbench" / f"{name}.npz") as arrays:
            frame = pd.DataFrame(arrays["X"][arrays["y"] == 0]).rename(columns=str)
    else:
        path = data / "tabular" / f"{TABLES[name]}.csv.gz"
        header = None if name == "adult" else "infer"
        frame = pd.read_csv(path, header=header, na_values="?", skipinitialspace=True).rename(columns=str)
        frame = frame.dropna(axis=1, thresh=len(frame) // 2).dropna()
    frame = frame.sample(min(len(frame), MOST), random_state=0).reset_index(drop=True)
    frame = frame.loc[:, frame.nunique() > 1]
    return frame.astype(dict.fromkeys(frame.select_dtypes("number"), float))


def spoiled(frame: pd.DataFrame, how: str, seed: int) -> tuple[pd.DataFrame, Places]:
    """A frame with one wrong cell in each row, and the place of its column."""
    rng, wrong = np.random.default_rng(seed), frame.copy()
    columns = rng.integers(0, frame.shape[1], len(frame))
    for place, name in enumerate(frame.columns):
        values, rows = frame[name].to_numpy(), np.flatnonzero(columns == place)
        far = rng.choice([-1, 1], len(rows)) * rng.uniform(4, 6, len(rows))
        if how == "shifted" and values.dtype.kind == "f":
            wrong.iloc[rows, place] = values[rows] + far * values.std()
            continue
        for row in rows:
            others = values[values != values[row]]
            wrong.iloc[row, place] = rng.choice(others) if len(others) else values[row]
    return wrong, columns


def alone(train: pd.DataFrame, rows: pd.DataFrame) -> Places:
    """(n,) the column of each row that is oddest by itself."""
    found = []
    for name in train:
        if train[name].dtype.kind == "f":
            found.append(((rows[name] - train[name].mean()) / train[name].std()).abs().to_numpy())
        else:
            share = rows[name].map(train[name].value_counts(normalize=True)).fillna(0.5 / len(train)).to_numpy(float)
            found.append(np.sqrt((1 - share) / share))
    return np.stack(found, axis=1).argmax(1)


def study(frame: pd.DataFrame, seed: int = 1) -> dict[str, dict[str, float]]:
    """Of each kind of wrong cells: the share of rows found, and of these the share whose cell is blamed first."""
    half, results = len(frame) // 2, {}
    train, new = frame.iloc[:half].copy(), frame.iloc[half:].reset_index(drop=True)
    odd = np.random.default_rng(seed).choice(half, half // 20, replace=False)
    train.iloc[odd] = spoiled(train.iloc[odd], "shifted", seed)[0]
    detector = AnomalyDetector(random_state=seed).fit(train)
    ordinary = detector.p_values(new) > ALARMS
    for how in HOW:
        wrong, columns = spoiled(new, how, seed + 1)
        found = ordinary & (detector.p_values(wrong) <= ALARMS)
        if not found.any():
            continue
        told = detector.explain(wrong[found])
        blame = np.stack([told[f"blame.{name}"] for name in frame], axis=1).argmax(1)
        shares = {"blamed": blame == columns[found], "column alone": alone(train, wrong[found]) == columns[found]}
        results[how] = {"rows": int(found.sum()), "found": float(found.mean())}
        results[how] |= {name: float(first.mean()) for name, first in shares.items()}
    return results


def shown(results: dict[str, dict[str, dict[str, float]]]) -> Table:
    """All figures, for a terminal."""
    table = Table(title="rows found with a wrong cell, and those of them whose cell is blamed first, in %")
    keys = [(how, key) for how in HOW for key in KEYS]
    for name in ("table", *(f"{how}: {key}" for how, key in keys)):
        table.add_column(name, justify="left" if name == "table" else "right")
    for name, found in results.items():
        figures = [found.get(how, {}).get(key) for how, key in keys]
        table.add_row(name, *("-" if figure is None else f"{100 * figure:.0f}" for figure in figures))
    return table


def mean(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the tables with at least ten rows found."""
    enough = {how: [kinds[how] for kinds in results.values() if kinds.get(how, {}).get("rows", 0) >= 10] for how in HOW}
    return {how: {key: float(np.mean([kind[key] for kind in enough[how]])) for key in KEYS} for how in HOW}


def keep(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Write the figures, with what they were measured on."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {package: version(package) for package in ("narrows", "torch", "numpy", "pandas")}
    kept = {"machine": machine, "versions": versions, "date": datetime.now(UTC).date().isoformat(), "tables": results}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, *SETS, []], help="by default all")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # of rows far outside of training, which is what is planted
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in asked.tables or [*TABLES, *SETS]:
        results[name] = study(read(asked.data, name))
        print(name, results[name], flush=True)
    Console(width=140).print(shown({**results, "mean": mean(results)} if len(results) > 1 else results))
    if not asked.tables:
        keep(results | {"mean": mean(results)})


if __name__ == "__main__":
    main()
