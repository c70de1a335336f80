"""Does `latent="auto"` find a known number of factors, and what does tuning gain on real tables?

    python benchmarks/tune.py [--quick] [--tables FOLDER] [--out benchmarks/results/tune.json]

Rows of six columns a factor are made from 4, 8 or 16 normal factors: `linear`, x = W z + noise, and `bent`,
x = W2 tanh(W1 z) + noise, where W1 z has a variance of 1 and twice as many
numbers as there are factors. A try is a hit within 1. The rule of `auto` was settled with the seeds below 100 in view;
tries take those from 100.
With --tables, the cost of hidden cells on a quarter of the rows of three tables, that neither a fit by defaults nor
`tune` with as many trials as --trials saw.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from kept import kept
from narrows.fitting import Plan
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.rows import Rows
from narrows.sizing import Sizing, start_size
from narrows.sources.source import open_source
from narrows.train.settings import Training

PACKAGES = ("narrows", "torch", "numpy", "optuna")
FACTORS, KINDS = (4, 8, 16), ("linear", "bent")
FIRST = 100  # seed
ROWS, COLUMNS, NOISE = 4_000, 6, 0.2
TABLES = ("winequality-white", "california_housing", "letter")


def made(factors: int, kind: str, seed: int) -> np.ndarray:
    """(4000, 6 factors) float32 rows."""
    draw = np.random.default_rng([seed, factors, KINDS.index(kind)])
    z, columns = draw.normal(size=(ROWS, factors)), COLUMNS * factors
    if kind == "bent":
        z = np.tanh(z @ draw.normal(size=(factors, 2 * factors)) / np.sqrt(factors))
    x = z @ draw.normal(size=(z.shape[1], columns)) / np.sqrt(z.shape[1])
    return (x / x.std(0) + NOISE * draw.normal(size=x.shape)).astype(np.float32)


def chosen(x: np.ndarray, seed: int) -> tuple[int, int, list[tuple[int, float]]]:
    """The size that `auto` takes, the one that it starts from, and (size, cost) of what it looked at."""
    rows = Rows(open_source(x), 0.0, Training(), seed, {})
    stream, _ = rows.streams(torch.device("cpu"))
    sizing = Sizing(rows.preparer.schema, Recipe.parse("plain"), Network(), Training(), seed=seed)
    size, facts = sizing.choose(stream.batch, None)
    tried = [(trial["latent"], trial["score"]) for trial in facts["trials"]]
    return size, start_size(stream.batch, x.shape[1]), tried


def factors(tries: int, keep: Callable[[list[dict]], None]) -> list[dict]:
    """A line for each setting, kept as soon as a try is over."""
    lines = {
        (kind, k): {"kind": kind, "factors": k, "chosen": [], "linear": [], "seconds": []}
        for kind in KINDS
        for k in FACTORS
    }
    for seed in range(FIRST, FIRST + tries):
        for (kind, k), line in lines.items():
            began = time.perf_counter()
            size, linear, tried = chosen(made(k, kind, seed), seed)
            line["chosen"].append(size)
            line["linear"].append(linear)
            line["seconds"].append(round(time.perf_counter() - began, 1))
            line["hits"] = sum(abs(size - k) <= 1 for size in line["chosen"])
            hits = f"{line['hits']} of {len(line['chosen'])}"
            print(f"{kind:6} {k:2} factors: {line['chosen']} within 1: {hits}; looked at {tried}", flush=True)
            keep(list(lines.values()))
    return list(lines.values())


def gains(folder: Path, trials: int, keep: Callable[[list[dict]], None]) -> list[dict]:
    """Cost of hidden cells on rows that neither saw: defaults against what `tune` chose."""
    import pandas as pd

    from narrows.fitting import fit
    from narrows.sizing import Judge, judged
    from narrows.tasks.tune import tune

    lines = []
    for name in TABLES:
        path = folder / f"{name}.csv.gz"
        if not path.exists():
            continue
        table = pd.read_csv(path).sample(frac=1.0, random_state=0).head(6_000)
        cut = len(table) * 3 // 4
        learn, test = table[:cut], table[cut:]
        plan, costs = Plan(judged(Recipe.parse("plain"))), {}
        with TemporaryDirectory() as place:
            tuned = tune(learn, plan, trials=trials, folder=place)
        for what, model in (("defaults", fit(learn, plan)), ("tuned", tuned)):
            rows = next(batch for _, batch in model.batches(test))
            each = Judge(rows, model.recipe).costs(model.module)
            costs[what] = {"cost": float(each.mean()), "latent": model.latent}
        lines.append({"table": name, **costs, "gain": 1 - costs["tuned"]["cost"] / costs["defaults"]["cost"]})
        print(lines[-1], flush=True)
        keep(lines)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tries a setting, and no tables")
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--trials", type=int, default=20, help="of a study on a table")
    parser.add_argument("--only", choices=("factors", "tables"))
    parser.add_argument("--tables", type=Path, help="folder of the tables, as CSV")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tune.json")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")

    def keep(what: str, lines: list[dict]) -> None:
        with kept(asked.out, {}, PACKAGES) as results:
            results[what] = lines

    if asked.only != "tables":
        factors(2 if asked.quick else asked.tries, lambda lines: keep("factors", lines))
    if asked.tables and not asked.quick and asked.only != "factors":
        gains(asked.tables, asked.trials, lambda lines: keep("tables", lines))


if __name__ == "__main__":
    main()
