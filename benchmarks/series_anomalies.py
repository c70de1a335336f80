"""Anomalies in series: VUS-PR on NAB, MSL and UCR beside PCA, matrix profile and isolation forest on windows.

    python benchmarks/series_anomalies.py --data DIR                       all systems, all sets
    python benchmarks/series_anomalies.py Narrows IForest --data DIR --sets nab --again

NAB's 52 series that have labels are fitted and scored whole, without labels; of MSL's 27 channels and 4 series of UCR
the training part is fitted, which holds no anomalies, and the rest scored. All systems see the same arrays; channels of
MSL that never vary are left out. All score the same windows: every run of as many steps as the series' period has, by
TSB-AD's rule (see `period`), and the mean over the windows that cover a step is the step's score. Of a window's middle,
as in TSB-AD, every system but one told less on NAB.

Sub-PCA is TSB-AD's: PyOD's PCA of standardized windows with all components, each distance to one divided by its share
of the variance. PCA is what the components of half the variance leave over, the share that did best on NAB; once of
standardized windows and once of windows as they come. The matrix profile is that of each channel that varies in
training, their mean. Narrows has the defaults of `AnomalyDetector`, told where the training part is normal.

How to score windows was chosen on every second series, by name (`chosen on`); `others` are those never looked at. Each
run is kept in `results/series_anomalies.json` as it ends and not done again without `--again`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import StandardScaler

from kept import kept
from narrows.sources.reading import Reading
from narrows.sources.source import open_source
from narrows.tasks.points import Points
from vus import vus_pr

RESULTS = Path(__file__).parent / "results" / "series_anomalies.json"
PACKAGES = {"narrows", "torch", "numpy", "scikit-learn", "stumpy"}
LEAST, MOST, USUAL = 6, 303, 125  # steps of a window, and of one whose series has no period among these
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A series: steps (n, C) to fit, steps (m, C) to score, which of these are anomalous, and steps of a window."""

    name: str
    train: Array
    test: Array
    truth: NDArray[np.bool_]

    @property
    def normal(self) -> bool:
        """Whether a training part without anomalies is known."""
        return self.train is not self.test

    @property
    def window(self) -> int:
        """The period of the first channel, but not so long that training has fewer than four windows side by side."""
        return min(period(self.train[:, 0]), len(self.train) // 4)

    def windows(self, steps: Array) -> Array:
        """(W, T * C) all windows of some steps."""
        cut = sliding_window_view(steps, self.window, axis=0)
        return cut.transpose(0, 2, 1).reshape(len(cut), -1)


def period(values: Array) -> int:
    """The lag of the highest peak of the autocorrelation, as TSB-AD finds it, among the first 20,000 steps."""
    centered = values[:20_000] - values[:20_000].mean()
    power = np.abs(np.fft.rfft(centered, 2 * len(centered))) ** 2
    correlation = np.fft.irfft(power)[LEAST - 3 : 401]
    inner = correlation[1:-1]
    peaks = np.flatnonzero((inner > correlation[:-2]) & (inner > correlation[2:])) + 1
    if not len(peaks) or not centered.any():
        return USUAL
    lag = int(peaks[np.argmax(correlation[peaks])]) + LEAST - 3
    return lag if LEAST <= lag <= MOST else USUAL


def nab(data: Path) -> Iterator[Case]:
    """Numenta's series that have labels, by name: anomalous are the windows around them."""
    stretches = json.loads((data / "nab" / "labels" / "combined_windows.json").read_text())
    for name in sorted(name for name, found in stretches.items() if found):
        with gzip.open(data / "nab" / "data" / f"{name}.gz", "rt") as file:
            rows = list(csv.DictReader(file))
        stamps = np.array([row["timestamp"][:19] for row in rows])
        steps = np.array([[float(row["value"])] for row in rows])
        truth = np.any([(stamps >= first[:19]) & (stamps <= last[:19]) for first, last in stretches[name]], axis=0)
        yield Case(name.removesuffix(".csv"), steps, steps, truth)


def msl(data: Path) -> Iterator[Case]:
    """Channels of the rover Curiosity: telemetry, and commands as 0 and 1."""
    with np.load(data / "msl" / "msl.npz") as arrays:
        for name in sorted(key.removesuffix("__train") for key in arrays.files if key.endswith("__train")):
            train, test = (arrays[f"{name}__{part}"].astype(np.float64) for part in ("train", "test"))
            moves = (train != train[0]).any(0) | (test != train[0]).any(0)
            yield Case(name, train[:, moves], test[:, moves], arrays[f"{name}__test_label"] > 0)


def ucr(data: Path) -> Iterator[Case]:
    """Series with one anomaly each; a file's name says where training ends and where that anomaly is."""
    for path in sorted((data / "ucr_anomaly").glob("*.txt.gz")):
        steps = np.loadtxt(path)[:, None]
        *_, name, end, first, last = path.name.removesuffix(".txt.gz").split("_")
        truth = np.zeros(len(steps), np.bool_)
        truth[int(first) - 1 : int(last)] = True
        yield Case(name, steps[: int(end)], steps[int(end) :], truth[int(end) :])


SETS: dict[str, Callable[[Path], Iterator[Case]]] = {"nab": nab, "msl": msl, "ucr": ucr}


def standardized(case: Case) -> tuple[Array, Array]:
    """Windows to fit and to score, each place of a window by its own mean and spread in training."""
    scaler = StandardScaler().fit(case.windows(case.train))
    return scaler.transform(case.windows(case.train)), scaler.transform(case.windows(case.test))


def as_they_come(case: Case) -> tuple[Array, Array]:
    """Windows to fit and to score."""
    return case.windows(case.train), case.windows(case.test)


def residual(train: Array, test: Array) -> Array:
    """(W,) squared distance of windows from the subspace of half the variance."""
    found = PCA(0.5, svd_solver="full").fit(train)
    return np.square(test - found.inverse_transform(found.transform(test))).sum(1)


def sub_pca(case: Case) -> Array:
    """(W,) sum over components of the distance to each over its share of the variance."""
    train, test = standardized(case)
    found = PCA(svd_solver="full").fit(train)
    squares = np.square(test).sum(1, keepdims=True) + 1 - 2 * test @ found.components_.T
    return (np.sqrt(np.maximum(squares, 0)) / np.maximum(found.explained_variance_ratio_, 1e-12)).sum(1)


def forest(case: Case) -> Array:
    """(W,) how soon random cuts set windows apart."""
    train, test = as_they_come(case)
    return -IsolationForest(random_state=0).fit(train).score_samples(test)


def matrix_profile(case: Case) -> Array:
    """(W,) distance of each window to the nearest of training, both normalized; the mean over channels."""
    import stumpy

    if not case.normal:
        return np.asarray(stumpy.stump(case.test[:, 0], case.window)[:, 0], np.float64)
    moving = [channel for channel in range(case.train.shape[1]) if np.ptp(case.train[:, channel])]
    joined = [stumpy.stump(case.test[:, c], case.window, case.train[:, c], ignore_trivial=False)[:, 0] for c in moving]
    return np.mean(np.asarray(joined, np.float64), axis=0)


def narrows(case: Case) -> Array:
    """(W,) scores of `AnomalyDetector` with its defaults."""
    from narrows import AnomalyDetector

    def source(steps: Array) -> Any:
        table = pa.table({f"c{place}": values for place, values in enumerate(steps.T)})
        return open_source(table, reading=Reading(form="series", window=case.window, stride=1))

    detector = AnomalyDetector(random_state=0, all_normal=case.normal).fit(source(case.train))
    return -detector.score_samples(source(case.test)).astype(np.float64)


SYSTEMS: dict[str, Callable[[Case], Array]] = {
    "Narrows": narrows,
    "Sub-PCA": sub_pca,
    "PCA": lambda case: residual(*standardized(case)),
    "PCA, unscaled": lambda case: residual(*as_they_come(case)),
    "matrix profile": matrix_profile,
    "IForest": forest,
}


def measured(case: Case, system: str) -> dict[str, float]:
    """VUS-PR with buffers of up to a window, and seconds to fit and score."""
    began = time.perf_counter()
    windows = torch.from_numpy(SYSTEMS[system](case))
    seconds = time.perf_counter() - began
    points = Points(case.window, 1)
    steps = torch.cat([points.feed(windows[:, None]), points.finish()])[:, 0].numpy()
    return {"VUS-PR": round(vus_pr(case.truth, steps, case.window), 4), "seconds": round(seconds, 2)}


@contextmanager
def stored() -> Iterator[dict[str, Any]]:
    """The results, to be changed; their means follow."""
    with kept(RESULTS, {"runs": {}, "means": {}}, PACKAGES) as results:
        yield results
        results["means"] = {name: means(found) for name, found in results["runs"].items()}


def means(runs: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each system the mean VUS-PR over all series, those it was chosen on and the others, and seconds in all."""
    systems = sorted({system for found in runs.values() for system in found})
    shared = {name: found for name, found in sorted(runs.items()) if len(found) == len(systems)}
    parts = {"all": slice(None), "chosen on": slice(0, None, 2), "others": slice(1, None, 2)}
    out: dict[str, dict[str, float]] = {}
    for system in systems if len(shared) > 1 else ():
        values = np.array([found[system]["VUS-PR"] for found in shared.values()])
        out[system] = {part: round(float(values[places].mean()), 4) for part, places in parts.items()}
        out[system] |= {"series": len(shared), "seconds": round(sum(f[system]["seconds"] for f in shared.values()), 1)}
    return out


def table(results: dict[str, Any]) -> str:
    """The means in Markdown: of all series, and behind it of those that nothing was chosen on."""
    heads = [f"{name} ({next(iter(found.values()))['series']})" for name, found in results["means"].items() if found]
    shown = [found for found in results["means"].values() if found]
    lines = [["", *heads, "seconds"], ["---", *["---:"] * (len(heads) + 1)]]
    for system in SYSTEMS:
        if all(system in found for found in shown):
            figures = [f"{found[system]['all']:.3f} ({found[system]['others']:.3f})" for found in shown]
            lines.append([system, *figures, f"{sum(found[system]['seconds'] for found in shown):.0f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Run what was asked for and is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(SYSTEMS)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--again", action="store_true", help="also what has been done before")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.systems) - set(SYSTEMS)):
        parser.error(f"no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    for name in asked.sets:
        for case in SETS[name](asked.data):
            for system in asked.systems or SYSTEMS:
                with stored() as results:
                    done = system in results["runs"].setdefault(name, {}).setdefault(case.name, {})
                if done and not asked.again:
                    continue
                found = measured(case, system)
                print(name, case.name, system, json.dumps(found), flush=True)
                with stored() as results:
                    results["runs"][name][case.name][system] = found
    with stored() as results:
        print(table(results))


if __name__ == "__main__":
    main()
