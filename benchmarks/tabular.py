"""Tables made anew: how well a booster does on real rows when it learns from generated ones, and how many are copies.

    python benchmarks/tabular.py --data DIR                     adult and California housing, three seeds
    python benchmarks/tabular.py adult --data DIR --seeds 0

Narrows is fitted on the training rows as `fit --for generate` does, and makes as many rows. Beside it a Gaussian copula
(ranks to normal scores, their covariance, and back by quantiles; levels by thresholds of their shares) and rows halfway
between a training row and one of its five nearest (SMOTE, Chawla et al. 2002, with levels of either). A
HistGradientBoosting of scikit-learn learns from the rows of each and from the real ones, and is judged on the real test
rows: macro F1 and ROC-AUC of adult's incomes, R2 of California's house values. `gap` is what is lost against real rows.
`near` is the share of generated rows that are nearer to a training row than all but a twentieth of test rows are: an
honest level is 5 %. Results are kept in `results/tabular.json`, each run as it ends.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from kept import kept
from narrows import Generator, Model
from narrows.schema import Batch
from narrows.tasks.privacy import NEAR, SAME, nearest, points

RESULTS = Path(__file__).parent / "results" / "tabular.json"
PACKAGES = ("narrows", "torch", "numpy", "scikit-learn")
NAMES = ["age", "work", "weight", "education", "years", "marital", "job", "relation", "race", "sex"]
NAMES += ["gain", "loss", "hours", "country", "income"]
COMPARED = 2_000  # rows whose nearest are looked for
Parts = tuple[pd.DataFrame, pd.DataFrame]


def adult(data: Path) -> Parts:
    """People of the census and whether they earn more than 50,000, as the set was split by its makers."""
    read = {"header": None, "names": NAMES, "skipinitialspace": True}
    parts = [pd.read_csv(data / "tabular" / f"adult-{part}.csv.gz", **read) for part in ("train", "test")]
    parts[1]["income"] = parts[1]["income"].str.removesuffix(".")
    return parts[0], parts[1]


def california(data: Path) -> Parts:
    """Blocks of houses; a fifth, drawn by seed 0, is the test part."""
    frame = pd.read_csv(data / "tabular" / "california_housing.csv.gz").astype(float)
    order = np.random.default_rng(0).permutation(len(frame))
    cut = len(frame) * 4 // 5
    return frame.iloc[order[:cut]].reset_index(drop=True), frame.iloc[order[cut:]].reset_index(drop=True)


TABLES: dict[str, tuple[Callable[[Path], Parts], str]] = {
    "adult": (adult, "income"),
    "california": (california, "medianHouseValue"),
}


def copula(train: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows of a Gaussian copula."""
    draw, scores = np.random.default_rng(seed), []
    for name in train:
        values = train[name] if train[name].dtype != object else train[name].map(codes_of(train[name]))
        ranks = (values.rank(method="first") - 0.5) / len(values)
        scores.append(norm.ppf(draw.permutation(ranks) if ranks.isna().any() else ranks))
    made = draw.multivariate_normal(np.zeros(len(scores)), np.corrcoef(scores), len(train))
    columns = {}
    for place, name in enumerate(train):
        shares = norm.cdf(made[:, place])
        if train[name].dtype == object:
            levels = train[name].value_counts(normalize=True)
            columns[name] = levels.index.to_numpy()[np.searchsorted(levels.cumsum(), shares).clip(0, len(levels) - 1)]
        else:
            columns[name] = np.quantile(train[name], shares, method="inverted_cdf")
    return pd.DataFrame(columns)


def codes_of(column: pd.Series) -> dict[Any, int]:
    """Level -> its place, the most frequent first."""
    return {level: place for place, level in enumerate(column.value_counts().index)}


def smote(train: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Rows between a training row and one of its five nearest."""
    draw, blocks = np.random.default_rng(seed), []
    for name in train:
        if train[name].dtype == object:
            blocks.append(0.5 * pd.get_dummies(train[name]).to_numpy(float))
        else:
            blocks.append(((train[name] - train[name].mean()) / train[name].std()).to_numpy()[:, None])
    cells = np.hstack(blocks)
    near = NearestNeighbors(n_neighbors=6).fit(cells).kneighbors(cells, return_distance=False)
    others = train.iloc[near[np.arange(len(train)), draw.integers(1, 6, len(train))]].reset_index(drop=True)
    share, made = draw.random(len(train)), train.reset_index(drop=True).copy()
    for name in train:
        if train[name].dtype == object:
            made[name] = made[name].where(share < 0.5, others[name])
        else:
            mixed = made[name] + share * (others[name] - made[name])
            made[name] = mixed.round() if train[name].dtype.kind == "i" else mixed
    return made


def judged(made: pd.DataFrame, parts: Parts, target: str) -> dict[str, float]:
    """What a booster that learnt from rows does on the real test part."""
    train, test = parts
    words = [c for c in train if train[c].dtype == object and c != target]
    levels = {c: pd.CategoricalDtype(sorted({*train[c].dropna(), *test[c].dropna()})) for c in words}
    x, real = made.drop(columns=target).astype(levels), test.drop(columns=target).astype(levels)
    if train[target].dtype == object:
        model = HistGradientBoostingClassifier(random_state=0, categorical_features="from_dtype").fit(x, made[target])
        chances, top = model.predict_proba(real)[:, 1], model.classes_[1]
        return {
            "F1": float(f1_score(test[target], model.predict(real), average="macro")),
            "ROC-AUC": float(roc_auc_score(test[target] == top, chances)),
        }
    model = HistGradientBoostingRegressor(random_state=0, categorical_features="from_dtype").fit(x, made[target])
    return {"R2": float(r2_score(test[target], model.predict(real)))}


def near_copies(model: Model, made: pd.DataFrame, parts: Parts) -> dict[str, float]:
    """How near rows are to training rows, beside test rows."""

    def placed(frame: pd.DataFrame) -> torch.Tensor:
        return points(model, Batch.concat([batch for _, batch in model.batches(frame)]))

    training = placed(parts[0])
    found, real = nearest(placed(made.head(COMPARED)), training), nearest(placed(parts[1].head(COMPARED)), training)
    near = float((found < real.quantile(NEAR).clamp_min(SAME)).double().mean())
    return {
        "near": near,
        "copies": float((found <= SAME).double().mean()),
        "real copies": float((real <= SAME).double().mean()),
    }


def measured(name: str, data: Path, seed: int) -> dict[str, dict[str, float]]:
    """Every way's figures on one table."""
    read, target = TABLES[name]
    parts = tuple(part.astype(dict.fromkeys(part.select_dtypes(["object", "string"]), object)) for part in read(data))
    began = time.perf_counter()
    generator = Generator(random_state=seed).fit(parts[0])
    fitted = time.perf_counter() - began
    ours = generator.sample(len(parts[0]), random_state=seed)
    ways = {"real": parts[0], "Narrows": ours.astype(parts[0].dtypes)}
    made = time.perf_counter() - began - fitted
    ways |= {"copula": copula(parts[0], seed), "SMOTE-like": smote(parts[0], seed)}
    found = {way: judged(rows, parts, target) for way, rows in ways.items()}
    for way, rows in ways.items():
        if way != "real":
            found[way] |= near_copies(generator.model_, rows, parts)
            found[way]["gap"] = next(iter(found["real"].values())) - next(iter(found[way].values()))
    found["Narrows"] |= {"fit seconds": round(fitted, 1), "sample seconds": round(made, 1)}
    return found


def main() -> None:
    """Measure what was asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training and draws")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in asked.tables or TABLES:
        for seed in asked.seeds:
            found = measured(name, asked.data, seed)
            print(name, seed, json.dumps(found), flush=True)
            measures = list(dict.fromkeys(measure for figures in found.values() for measure in figures))
            board = Table(name, *measures, title=f"seed {seed}")
            for way, figures in found.items():
                board.add_row(way, *(f"{figures[m]:.4g}" if m in figures else "" for m in measures))
            Console(width=140).print(board)
            with kept(RESULTS, {"runs": {}}, PACKAGES) as results:
                results["runs"][f"{name}, seed {seed}"] = found


if __name__ == "__main__":
    main()
