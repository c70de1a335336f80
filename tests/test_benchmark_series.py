"""What the benchmark of anomalies in series rests on: periods, windows, peers held to their definitions, the data."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("series_anomalies")


@pytest.mark.parametrize("length", [7, 24, 100, 288])
def test_the_period_of_a_noisy_wave_is_found(bench, length):
    values = np.sin(2 * np.pi * np.arange(4000) / length) + 0.1 * np.random.default_rng(0).normal(size=4000)
    assert bench.period(values) == pytest.approx(length, abs=1)


def test_the_highest_peak_of_the_autocorrelation_is_taken(bench):
    values = np.random.default_rng(3).normal(size=800)
    centered = values - values.mean()
    lags = [float(centered[lag:] @ centered[: 800 - lag]) for lag in range(401)]
    peaks = [lag for lag in range(4, 400) if lags[lag] > lags[lag - 1] and lags[lag] > lags[lag + 1]]
    best = max(peaks, key=lags.__getitem__)
    assert bench.period(values) == (best if 6 <= best <= 303 else 125)
    assert bench.period(np.ones(500)) == bench.period(np.arange(500.0)) == 125


def test_peers_are_what_they_say(bench):
    steps = np.random.default_rng(1).normal(size=(300, 2)).cumsum(0)
    case = bench.Case("walk", steps[:200], steps[200:], np.zeros(100, bool))
    length = case.window
    train, test = bench.standardized(case)
    assert test.shape == (100 - length + 1, 2 * length)
    assert np.allclose(case.windows(steps)[5], steps[5 : 5 + length].ravel())
    _, sizes, axes = np.linalg.svd(train - train.mean(0), full_matrices=False)
    shares = sizes**2 / np.sum(sizes**2)
    kept = int(np.flatnonzero(shares.cumsum() > 0.5)[0]) + 1
    centered = test - train.mean(0)
    rest = centered - centered @ axes[:kept].T @ axes[:kept]
    assert np.allclose(bench.residual(train, test), (rest**2).sum(1))


def test_means_are_of_series_that_all_have_run(bench):
    def ran(**values):
        return {name: {"VUS-PR": value, "seconds": 1.0} for name, value in values.items()}

    runs = {"a": ran(One=0.2, Two=0.4), "b": ran(One=0.6, Two=0.0), "c": ran(One=0.4, Two=0.2), "d": ran(One=0.9)}
    found = bench.means(runs)
    assert found["One"] == {"all": 0.4, "chosen on": 0.3, "others": 0.6, "series": 3, "seconds": 3.0}
    assert found["Two"]["others"] == 0.0


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data sets")
@pytest.mark.parametrize(("name", "series", "normal"), [("nab", 52, False), ("msl", 27, True), ("ucr", 4, True)])
def test_the_sets(bench, name, series, normal):
    cases = list(bench.SETS[name](SHARED))
    assert len(cases) == series
    for case in cases:
        assert case.normal == normal and case.truth.any() and len(case.truth) == len(case.test)
        assert 6 <= case.window <= 303 and np.isfinite(case.train).all() and np.isfinite(case.test).all()
