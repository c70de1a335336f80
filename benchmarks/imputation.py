"""Imputation of tables beside scikit-learn's imputers and HyperImpute, on rows that no imputer was fitted on.

    python benchmarks/imputation.py --data DIR                             all tables, 30 % missing at random, one seed
    python benchmarks/imputation.py letter wine --data DIR --rates 0.1 0.5 --kinds MCAR MNAR --seeds 0 1 2
    python benchmarks/imputation.py --data DIR --peers mean mice forest --hyperimpute PYTHON

Rows are split 70/30. Cells are hidden in both parts: MCAR with one chance for all; MAR by a logistic model on the 30 %
of columns that stay observed; MNAR by a logistic model on the cell's own value (categories by the rank of their level's
frequency). Imputers are fitted on the 70 and judged on the 30: root mean squared error of the numbers after min-max
scaling by the training part, share of categories told right, seconds of fit and transform. `coverage` is that of our
intervals at 90 %, on the same cells. Peers get categories one-hot and give back the level of the largest cell, as
scikit-learn's users do. `forest` is IterativeImputer with 20 extra-trees a column and four rounds, the missForest of
Stekhoven & Buehlmann (2012) in scikit-learn's words. HyperImpute runs under PYTHON, an interpreter that has it (see
`hyperimpute.txt`). All on as many threads as torch takes. Ranks are those of the error of numbers and of the share of
wrong categories, averaged over all tables. Results are kept in `results/imputation.json`, each figure as it ends.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata
from sklearn import datasets
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from kept import kept
from narrows import Imputer, impute

RESULTS = Path(__file__).parent / "results" / "imputation.json"
PACKAGES = ("narrows", "torch", "numpy", "scikit-learn")
SHARE, OBSERVED, LEVEL = 0.7, 0.3, 0.9
MOST = 8_000  # rows of a table
Imputed = tuple[pd.DataFrame, float]

HEADLESS = {"adult-train", "winequality-red", "winequality-white", "horse-colic"}
FILES = {
    "adult": "adult-train",
    "california": "california_housing",
    "german": "german_credit",
    "hypothyroid": "hypothyroid",
    "letter": "letter",
    "nursery": "nursery",
    "pollution": "pollution",
    "red wine": "winequality-red",
    "white wine": "winequality-white",
    "covtype": "covtype_first10k",
}
SCIKIT: dict[str, Callable[..., Any]] = {
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "wine": datasets.load_wine,
}


def table(name: str, data: Path) -> pd.DataFrame:
    """A table with numbers as floats and levels as words, at most 8,000 rows, without columns of one value."""
    if name in SCIKIT:
        found = SCIKIT[name](as_frame=True)
        frame = found.data.assign(target=found.target)
        if name != "diabetes":
            frame["target"] = frame["target"].astype(str)
    else:
        file = FILES[name]
        path = data / "tabular" / f"{file}.csv.gz"
        header = None if file in HEADLESS else 0
        frame = pd.read_csv(
            path, header=header, na_values=["?", "NA"], skipinitialspace=True, sep=None, engine="python"
        )
        frame.columns = [str(column) for column in frame.columns]
        types = path.with_name(f"{file}.types.json")
        nominal = (
            [c for c, kind in json.loads(types.read_text()).items() if kind == "nominal"] if types.exists() else []
        )
        for column in nominal:
            frame[column] = frame[column].astype(str).where(frame[column].notna(), None)
        if name == "pollution":
            frame = frame.drop(columns=["No"], errors="ignore")
    if len(frame) > MOST:
        frame = frame.iloc[np.linspace(0, len(frame) - 1, MOST).astype(int)]
    frame = frame.loc[:, frame.nunique() > 1].reset_index(drop=True)
    numbers = frame.select_dtypes("number").columns
    return frame.astype(dict.fromkeys(numbers, float)).astype(dict.fromkeys(frame.columns.difference(numbers), object))


def ranked(column: pd.Series) -> np.ndarray:
    """Values between 0 and 1: of levels by how frequent they are."""
    if column.dtype == object:
        column = column.map(column.value_counts(normalize=True))
    return np.asarray(column.rank(pct=True).fillna(0.5))


def hidden(frame: pd.DataFrame, kind: str, rate: float, draw: np.random.Generator) -> np.ndarray:
    """(n, d) which cells are to be hidden."""
    rows, columns = frame.shape
    if kind == "MCAR":
        return draw.random((rows, columns)) < rate
    ranks = np.stack([ranked(frame[name]) for name in frame], axis=1) * 2 - 1
    shown = draw.permutation(columns)[: max(1, round(OBSERVED * columns))] if kind == "MAR" else np.arange(0)
    scores = np.empty((rows, columns))
    for column in range(columns):
        pull = (
            ranks[:, shown] @ draw.normal(size=len(shown))
            if kind == "MAR"
            else 2 * draw.choice([-1, 1]) * ranks[:, column]
        )
        scores[:, column] = pull / max(pull.std(), 1e-9)
    chances = np.empty_like(scores)
    for column in range(columns):  # an offset that makes the mean chance the rate, by bisection
        low, high = -30.0, 30.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if (1 / (1 + np.exp(-scores[:, column] - middle))).mean() < rate else (low, middle)
            )
        chances[:, column] = 1 / (1 + np.exp(-scores[:, column] - low))
    found = draw.random((rows, columns)) < chances
    found[:, shown] = False
    return found


def holed(frame: pd.DataFrame, cells: np.ndarray) -> pd.DataFrame:
    """The rows without these cells."""
    return frame.mask(pd.DataFrame(cells, columns=frame.columns))


class Hot:
    """Numbers beside one-hot levels, as scikit-learn's imputers want them."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.numbers = list(frame.select_dtypes("number").columns)
        self.levels = {c: sorted(frame[c].dropna().unique()) for c in frame.columns.difference(self.numbers)}

    def array(self, frame: pd.DataFrame) -> np.ndarray:
        """(n, numbers + levels), NaN where missing."""
        blocks = [frame[self.numbers].to_numpy(float)]
        for name, levels in self.levels.items():
            hot = (frame[name].to_numpy()[:, None] == np.array(levels, dtype=object)).astype(float)
            hot[frame[name].isna().to_numpy()] = np.nan
            blocks.append(hot)
        return np.hstack(blocks)

    def frame(self, cells: np.ndarray, like: pd.DataFrame) -> pd.DataFrame:
        """Rows filled by cells."""
        filled, at = like.copy(), len(self.numbers)
        for place, name in enumerate(self.numbers):
            filled[name] = like[name].fillna(pd.Series(cells[:, place]))
        for name, levels in self.levels.items():
            best = np.array(levels, dtype=object)[cells[:, at : at + len(levels)].argmax(1)]
            filled[name] = like[name].where(like[name].notna(), best)
            at += len(levels)
        return filled


def by_scikit(imputer: Any) -> Callable[[pd.DataFrame, pd.DataFrame], Imputed]:
    """An imputer of scikit-learn, between one-hot cells."""

    def filled(train: pd.DataFrame, test: pd.DataFrame) -> Imputed:
        hot, began = Hot(train), time.perf_counter()
        imputer.fit(hot.array(train))
        cells = imputer.transform(hot.array(test))
        return hot.frame(cells, test), time.perf_counter() - began

    return filled


def by_mode(train: pd.DataFrame, test: pd.DataFrame) -> Imputed:
    """Mean of numbers, most frequent level."""
    began, filled = time.perf_counter(), test.copy()
    for name in train:
        value = train[name].mean() if train[name].dtype == float else train[name].mode().iloc[0]
        filled[name] = test[name].where(test[name].notna(), value)
    return filled, time.perf_counter() - began


def by_hyperimpute(python: str) -> Callable[[pd.DataFrame, pd.DataFrame], Imputed]:
    """HyperImpute (Jarrett et al. 2022) of another Python, between one-hot cells."""

    def filled(train: pd.DataFrame, test: pd.DataFrame) -> Imputed:
        hot = Hot(train)
        with tempfile.TemporaryDirectory() as folder:
            np.savez(Path(folder) / "arrays.npz", train=hot.array(train), test=hot.array(test))
            script = Path(__file__).parent / "hyper_impute.py"
            done = subprocess.run([python, script, folder], check=True, stdout=subprocess.PIPE, text=True)
            cells = np.load(Path(folder) / "filled.npy")
        return hot.frame(cells, test), json.loads(done.stdout.strip().splitlines()[-1])["seconds"]

    return filled


def forest() -> IterativeImputer:
    """missForest in scikit-learn's words."""
    trees = ExtraTreesRegressor(20, min_samples_leaf=2, max_features=0.5, random_state=0, n_jobs=-1)
    return IterativeImputer(trees, max_iter=4, random_state=0, skip_complete=True, keep_empty_features=True)


PEERS: dict[str, Callable[[pd.DataFrame, pd.DataFrame], Imputed]] = {
    "mean": by_mode,
    "median": by_scikit(SimpleImputer(strategy="median", keep_empty_features=True)),
    "knn": by_scikit(KNNImputer(keep_empty_features=True)),
    "mice": by_scikit(IterativeImputer(random_state=0, skip_complete=True, keep_empty_features=True)),
    "forest": by_scikit(forest()),
}


def judged(filled: pd.DataFrame, truth: pd.DataFrame, cells: np.ndarray, train: pd.DataFrame) -> dict[str, float]:
    """Errors in the cells that were hidden and are known."""
    errors, wrong = [], []
    for place, name in enumerate(truth):
        here = cells[:, place] & truth[name].notna().to_numpy()
        if truth[name].dtype == float:
            width = train[name].max() - train[name].min()
            if not width:  # of one value in training: nothing to scale by
                continue
            errors.append(((filled[name][here].astype(float) - truth[name][here]) / width) ** 2)
        else:
            wrong.append(filled[name][here].astype(str) != truth[name][here].astype(str))
    figures = {}
    if errors:
        figures["rmse"] = float(np.sqrt(np.concatenate(errors).mean()))
    if wrong:
        figures["wrong"] = float(np.concatenate(wrong).mean())
    return figures


def ours(train: pd.DataFrame, holes: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, float, pd.DataFrame]:
    """Rows filled by us, seconds, and the same with intervals."""
    began = time.perf_counter()
    imputer = Imputer(random_state=seed).fit(train)
    filled = imputer.transform(holes)
    seconds = time.perf_counter() - began
    return filled, seconds, impute(imputer.model_, holes, interval=LEVEL).to_pandas()


def covered(told: pd.DataFrame, truth: pd.DataFrame, cells: np.ndarray) -> dict[str, float]:
    """Share of hidden numbers that lie in their interval."""
    inside = []
    for place, name in enumerate(truth):
        here = cells[:, place] & truth[name].notna().to_numpy()
        if f"{name}_low" in told:
            low, high = told[f"{name}_low"][here], told[f"{name}_high"][here]
            slack = 1e-6 * (truth[name].max() - truth[name].min())
            inside.append((low - slack <= truth[name][here]) & (truth[name][here] <= high + slack))
    return {"coverage": float(np.concatenate(inside).mean())} if inside else {}


def measured(name: str, data: Path, kind: str, rate: float, seed: int, peers: list[str]) -> dict[str, Any]:
    """Every imputer's figures on one table with one pattern of holes."""
    frame, draw = table(name, data), np.random.default_rng(seed)
    order = draw.permutation(len(frame))
    cut = round(SHARE * len(frame))
    parts = [frame.iloc[rows].reset_index(drop=True) for rows in (order[:cut], order[cut:])]
    masks = [hidden(part, kind, rate, draw) for part in parts]
    train, test = (holed(part, cells) for part, cells in zip(parts, masks, strict=True))
    filled, seconds, told = ours(train, test, seed)
    found = {"Narrows": judged(filled, parts[1], masks[1], parts[0]) | {"seconds": round(seconds, 2)}}
    found["Narrows"] |= covered(told, parts[1], masks[1])
    for peer in peers:
        filled, seconds = PEERS[peer](train, test)
        found[peer] = judged(filled, parts[1], masks[1], parts[0]) | {"seconds": round(seconds, 2)}
    return found


def ranks(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Mean rank of each imputer over all tables and measures that all of them have; 1 is best."""
    systems = [name for name in ("Narrows", *PEERS) if all(name in run for run in runs.values())]
    places = []
    for run in runs.values():
        for measure in ("rmse", "wrong"):
            figures = [run[name].get(measure) for name in systems]
            places += [] if None in figures else [rankdata(figures)]
    return {name: round(float(mean(place)), 2) for name, place in zip(systems, zip(*places, strict=True), strict=True)}


def shown(runs: dict[str, dict[str, Any]]) -> Table:
    """A line a table: errors and seconds of each imputer."""
    systems = list(next(iter(runs.values())))
    board = Table("table", *systems, title="RMSE of numbers / wrong categories, seconds")
    for name, run in runs.items():
        figures = (run.get(system, {}) for system in systems)
        texts = [
            f"{f.get('rmse', float('nan')):.4f} / {f.get('wrong', float('nan')):.3f}, {f.get('seconds', 0):.1f} s"
            for f in figures
        ]
        board.add_row(name, *texts)
    return board


def main() -> None:
    """Measure what was asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*FILES, *SCIKIT]
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(every)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.3], help="shares of the cells to hide")
    parser.add_argument("--kinds", nargs="+", default=["MCAR"], choices=["MCAR", "MAR", "MNAR"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the split, the holes and the training")
    parser.add_argument("--peers", nargs="*", default=["mean", "knn", "mice", "forest"], choices=list(PEERS))
    parser.add_argument("--hyperimpute", default="", help="a Python that has it, for one more peer")
    asked = parser.parse_args()
    peers = [*asked.peers]
    if asked.hyperimpute:
        PEERS["hyperimpute"] = by_hyperimpute(asked.hyperimpute)
        peers.append("hyperimpute")
    warnings.simplefilter("ignore")
    runs: dict[str, dict[str, Any]] = {}
    for name in asked.tables or every:
        for kind in asked.kinds:
            for rate in asked.rates:
                for seed in asked.seeds:
                    label = f"{name}, {kind} {rate:g}, seed {seed}"
                    runs[label] = measured(name, asked.data, kind, rate, seed, peers)
                    print(label, json.dumps(runs[label]), flush=True)
                    with kept(RESULTS, {"runs": {}}, PACKAGES) as results:
                        results["runs"][label] = results["runs"].get(label, {}) | runs[label]
    console = Console(width=160)
    console.print(shown(runs))
    console.print("mean ranks:", ranks(runs))
    inside = [run["Narrows"]["coverage"] for run in runs.values() if "coverage" in run["Narrows"]]
    console.print(f"coverage of intervals at {LEVEL:.0%}: {mean(inside):.1%}")


if __name__ == "__main__":
    main()
