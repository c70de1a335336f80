"""Anomalies in tables: ROC-AUC and PR-AUC on sets of ADBench beside seven detectors of PyOD, and seconds.

    python benchmarks/anomalies.py --data DIR               all systems, all sets, seeds 1 2 3
    python benchmarks/anomalies.py Narrows IForest --data DIR --variant clean --sets 45_wine 14_glass --seeds 1
    python benchmarks/anomalies.py speed --data DIR         seconds on two large sets, beside PyOD's AutoEncoder

All systems have their defaults and see the same arrays. `contaminated` is ADBench's unsupervised setting (Han et al.
2022), in its order: sets below 1,000 rows are drawn with replacement up to 1,000, sets above 10,000 are cut to 10,000,
70 % train without labels and 30 % test, split by class, min-max is learnt on the training part. One thing differs: the
cut is by class too, or of 30 anomalies in 95,156 rows a draw could leave none. As in ADBench, copies of a small set's
rows stand on both sides. `clean` trains on half of the normal rows and tests on all other rows; there no row is drawn
twice, as a detector would be asked about copies of what it was trained on. Scores that are not finite, as PyOD's PCA
gives where columns are collinear, count as ties: infinite ones at the top, those that are no number at the bottom.

A run is a system on a set with a seed. Each is kept in `results/anomalies.json` as it ends and not done again without
`--again`, so a killed command goes on where it was, and several may work at once. Imports and compilation are not in
the seconds: each system is fitted to a few random rows first. Prints the tables, which `--markdown` writes to a file.
PyOD is in `requirements.txt`; Narrows alone needs none of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import MinMaxScaler

from kept import kept
from standings import OURS, compared, markdown, standing

Rows = NDArray[np.float64]
RESULTS = Path(__file__).parent / "results" / "anomalies.json"
PACKAGES = {"narrows", "torch", "numpy", "scikit-learn", "pyod"}
PEERS = {  # and the module of each in pyod.models
    "IForest": "iforest",
    "ECOD": "ecod",
    "KNN": "knn",
    "HBOS": "hbos",
    "PCA": "pca",
    "AutoEncoder": "auto_encoder",
    "VAE": "vae",
}
FEWEST, MOST = 1_000, 10_000
LARGE = ("16_http", "8_celeba")


@dataclass(frozen=True)
class Split:
    """Rows to train on, rows to score, and which of these are anomalies."""

    train: Rows
    test: Rows
    truth: NDArray[np.int64]


def read(data: Path, name: str) -> tuple[Rows, NDArray[np.int64]]:
    """A set's rows, and 1 for each anomaly."""
    with np.load(data / "adbench" / f"{name}.npz") as arrays:
        return arrays["X"].astype(np.float64), arrays["y"].astype(np.int64).ravel()


def names(data: Path) -> list[str]:
    """All sets of the folder, by number."""
    return sorted((path.stem for path in (data / "adbench").glob("*.npz")), key=lambda name: int(name.split("_")[0]))


def cut(rows: Rows, truth: NDArray[np.int64], seed: int) -> tuple[Rows, NDArray[np.int64]]:
    """At most 10,000 rows, with the set's share of anomalies."""
    if len(rows) <= MOST:
        return rows, truth
    kept, _, marks, _ = train_test_split(rows, truth, train_size=MOST, stratify=truth, random_state=seed)
    return kept, marks


def scaled(train: Rows, test: Rows, truth: NDArray[np.int64]) -> Split:
    """Columns to [0, 1] by the training rows."""
    scaler = MinMaxScaler().fit(train)
    return Split(scaler.transform(train), scaler.transform(test), truth)


def contaminated(rows: Rows, truth: NDArray[np.int64], seed: int) -> Split:
    """ADBench's unsupervised setting: anomalies among the training rows."""
    if len(rows) < FEWEST:
        drawn = np.random.default_rng(seed).choice(len(rows), FEWEST)
        rows, truth = rows[drawn], truth[drawn]
    rows, truth = cut(rows, truth, seed)
    train, test, _, marks = train_test_split(rows, truth, test_size=0.3, stratify=truth, random_state=seed)
    return scaled(train, test, marks)


def clean(rows: Rows, truth: NDArray[np.int64], seed: int) -> Split:
    """Half of the normal rows to train on, all others to score."""
    rows, truth = cut(rows, truth, seed)
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(truth == 0))
    chosen = normal[: len(normal) // 2]
    return scaled(rows[chosen], np.delete(rows, chosen, axis=0), np.delete(truth, chosen))


VARIANTS: dict[str, Callable[[Rows, NDArray[np.int64], int], Split]] = {"contaminated": contaminated, "clean": clean}


def detector(system: str, seed: int, verbose: int, all_normal: bool = False) -> Any:
    """A detector with its defaults, but for what it draws by, how much it says, and that it may know all rows normal.

    Of the peers none has a way of being told that: their `contamination` moves the threshold alone.
    """
    if system == OURS:
        from narrows import AnomalyDetector

        return AnomalyDetector(all_normal=all_normal, random_state=seed)
    made = getattr(import_module(f"pyod.models.{PEERS[system]}"), system)
    settings = {"random_state": seed, "verbose": verbose}
    return made(**{name: value for name, value in settings.items() if name in signature(made).parameters})


def abnormality(system: str, fitted: Any, rows: Rows) -> NDArray[np.float64]:
    """A score for each row, higher for what is less normal: scikit-learn's sign and PyOD's differ."""
    return np.asarray(-fitted.score_samples(rows) if system == OURS else fitted.decision_function(rows), np.float64)


def measured(system: str, split: Split, seed: int, verbose: int = 0, all_normal: bool = False) -> dict[str, float]:
    """Fit, score, and hold the scores against the truth."""
    made = detector(system, seed, verbose, all_normal)
    began = time.perf_counter()
    made.fit(split.train)
    fitted = time.perf_counter()
    scores = abnormality(system, made, split.test)
    scored = time.perf_counter()
    usable = np.nan_to_num(scores, nan=-np.finfo(np.float64).max)
    found = {"ROC": roc_auc_score(split.truth, usable), "PR": average_precision_score(split.truth, usable)}
    found |= {"fit": fitted - began, "score": scored - fitted, "not finite": 1 - np.isfinite(scores).mean()}
    return {name: round(float(value), 4) for name, value in found.items()}


def warm(system: str) -> None:
    """Let a system import and compile what it needs."""
    rows = np.random.default_rng(0).random((100, 5))
    abnormality(system, detector(system, 0, 0).fit(rows), rows)


def stored() -> AbstractContextManager[dict[str, Any]]:
    """The results, to be changed."""
    return kept(RESULTS, {"runs": {}, "standings": {}, "speed": {}}, PACKAGES)


def missing(asked: argparse.Namespace, name: str, seed: int) -> list[str]:
    """Which of the systems are still to be run."""
    done = {} if asked.again or not RESULTS.exists() else json.loads(RESULTS.read_text())["runs"]
    done = done.get(asked.variant, {}).get(name, {})
    return [system for system in asked.systems if str(seed) not in done.get(system, {})]


def run(asked: argparse.Namespace) -> None:
    """Do what is missing, one run after the other."""
    ready: set[str] = set()
    for name, seed in [(name, seed) for name in asked.sets or names(asked.data) for seed in asked.seeds]:
        if not (left := missing(asked, name, seed)):
            continue
        split = VARIANTS[asked.variant](*read(asked.data, name), seed)
        for system in left:
            if system not in ready:
                warm(system)
                ready.add(system)
            found = measured(system, split, seed, all_normal=asked.variant == "clean")
            print(asked.variant, name, seed, system, json.dumps(found), flush=True)
            with stored() as results:
                runs = results["runs"].setdefault(asked.variant, {}).setdefault(name, {})
                runs.setdefault(system, {})[str(seed)] = found


def whole(asked: argparse.Namespace) -> dict[str, float]:
    """Fit and score all rows of one set."""
    rows, truth = read(asked.data, asked.whole)
    (system,) = asked.systems
    warm(system)
    split = scaled(rows, rows, truth)
    return measured(system, split, asked.seeds[0], verbose=1) | {"threads": torch.get_num_threads()}


def speed(data: Path) -> None:
    """Ours and PyOD's AutoEncoder on large sets, each in a process of its own, one after the other."""
    for name in LARGE:
        facts: dict[str, Any] = {}
        for system in (OURS, "AutoEncoder"):
            command = [sys.executable, __file__, system, "--data", str(data), "--whole", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            facts[system] = json.loads(done.stdout.splitlines()[-1])
            print(name, system, facts[system], flush=True)
        ours, theirs = (facts[system]["fit"] + facts[system]["score"] for system in facts)
        facts["times sooner"] = round(theirs / ours, 1)
        print(name, "times sooner", facts["times sooner"], flush=True)
        with stored() as results:
            results["speed"][name] = facts


def conclude(path: Path | None) -> None:
    """Keep the standings, print the tables, and write them where that was asked for."""
    with stored() as results:
        figures = {variant: compared(results["runs"][variant]) for variant in VARIANTS if variant in results["runs"]}
        results["standings"] = {variant: standing(found) for variant, found in figures.items() if found.cases}
    text = markdown(figures, results["speed"])
    print(text)
    if path is not None:
        path.write_text(text)


def main() -> None:
    """Run what was asked for and is missing, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help=f"of {OURS}, {', '.join(PEERS)}; or speed; all systems by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--variant", choices=VARIANTS, default="contaminated", help="what to train on")
    parser.add_argument("--sets", nargs="+", default=[], help="all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--again", action="store_true", help="also what has been done before")
    parser.add_argument("--markdown", type=Path, help="a file for the tables")
    parser.add_argument("--whole", help="print one system's figures on all rows of this set: a step of speed")
    asked = parser.parse_args()
    if asked.systems == ["speed"]:
        speed(asked.data)
    else:
        asked.systems = asked.systems or [OURS, *PEERS]
        if unknown := sorted(set(asked.systems) - {OURS, *PEERS}):
            parser.error(f"no system {', '.join(unknown)}; there are {', '.join([OURS, *PEERS])}, and speed alone")
        if asked.whole:
            return print(json.dumps(whole(asked)))
        run(asked)
    conclude(asked.markdown)


if __name__ == "__main__":
    main()
