"""The protocol of the anomaly benchmark, and the statistics of its tables against definitions and brute force."""

import importlib
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("anomalies")


@pytest.fixture(scope="module")
def standings(bench):
    return importlib.import_module("standings")


def rows_of(count, share, seed=0):
    rng = np.random.default_rng(seed)
    truth = np.zeros(count, dtype=np.int64)
    truth[: int(share * count)] = 1
    return rng.normal(size=(count, 3)) * [1, 100, 0.01], rng.permutation(truth)


@pytest.mark.parametrize(("count", "used"), [(90, 1_000), (1_500, 1_500), (30_000, 10_000)])
def test_contaminated_trains_on_seven_tenths_of_at_least_1000_and_at_most_10000_rows(bench, count, used):
    rows, truth = rows_of(count, 0.1)
    split = bench.contaminated(rows, truth, seed=3)
    assert len(split.train) == 0.7 * used and len(split.test) == len(split.truth) == 0.3 * used
    assert split.truth.mean() == pytest.approx(0.1, abs=0.03 if count < 1_000 else 1e-9)
    assert np.allclose(split.train.min(0), 0) and np.allclose(split.train.max(0), 1)


def test_a_cut_keeps_rare_anomalies(bench):
    rows, truth = rows_of(95_156, 30.5 / 95_156)
    for seed in range(5):
        assert bench.contaminated(rows, truth, seed).truth.sum() == 1


@pytest.mark.parametrize("count", [90, 30_000])
def test_clean_trains_on_half_of_the_normal_rows_and_tests_on_every_other_row_once(bench, count):
    rows, truth = rows_of(count, 0.2)
    rows[:, 0] = (
        np.arange(count) / count + truth
    )  # anomalies stand apart, so the training range shows what was trained on
    split = bench.clean(rows, truth, seed=1)
    used = min(count, 10_000)
    assert len(split.train) == 0.4 * used and len(split.test) == 0.6 * used
    assert split.truth.sum() == 0.2 * used
    assert len(np.unique(np.concatenate([split.train, split.test])[:, 1])) == used
    assert (split.test[split.truth == 1, 0] > 1).sum() > 0 and split.train.max() <= 1 + 1e-9


def test_a_seed_names_a_split(bench):
    rows, truth = rows_of(200, 0.1)
    for variant in bench.VARIANTS.values():
        first, again, other = variant(rows, truth, 1), variant(rows, truth, 1), variant(rows, truth, 2)
        assert np.array_equal(first.train, again.train) and np.array_equal(first.test, again.test)
        assert not np.array_equal(first.train, other.train)


def test_results_kept_by_many_at_once_are_all_there(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results" / "anomalies.json")

    def add(place):
        with bench.stored() as results:
            results["runs"].setdefault("clean", {}).setdefault(f"{place}_a", {})["Narrows"] = {"1": {"ROC": place / 40}}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    kept = json.loads(bench.RESULTS.read_text())["runs"]["clean"]
    assert {name: found["Narrows"]["1"]["ROC"] for name, found in kept.items()} == {f"{n}_a": n / 40 for n in range(40)}


def test_a_failure_leaves_the_results_as_they_were(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "anomalies.json")
    with bench.stored() as results:
        results["speed"]["a"] = 1
    before = bench.RESULTS.read_bytes()
    with pytest.raises(TypeError), bench.stored() as results:
        results["speed"]["a"] = {2}  # JSON has no sets
    assert bench.RESULTS.read_bytes() == before


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(standings, chances):
    values = np.array(chances)
    order = sorted(range(len(values)), key=lambda place: values[place])
    for place in range(len(values)):
        rank = order.index(place)
        slow = max((len(values) - k) * values[order[k]] for k in range(rank + 1))
        assert standings.holm(values)[place] == min(1, slow)


def test_duels_are_the_exact_signed_rank_test(standings):
    values = np.random.default_rng(0).random((9, 3))
    raw = []
    for peer in (1, 2):
        gaps = values[:, 0] - values[:, peer]
        ranks = np.abs(gaps).argsort().argsort() + 1
        sums = np.array([ranks[list(signs)].sum() for signs in itertools.product([False, True], repeat=9)])
        least = min(ranks[gaps > 0].sum(), ranks[gaps < 0].sum())
        raw.append(min(1, 2 * (sums <= least).mean()))
    found = standings.duels(values)
    low = 0 if raw[0] <= raw[1] else 1
    wanted = [0.0, 0.0]
    wanted[low], wanted[1 - low] = min(1, 2 * raw[low]), max(min(1, 2 * raw[low]), raw[1 - low])
    assert [duel["p"] for duel in found] == [pytest.approx(chance, rel=0.06) for chance in wanted]
    assert [duel["won"] for duel in found] == [(values[:, 0] > values[:, peer]).sum() for peer in (1, 2)]
    assert all(duel["won"] + duel["lost"] == 9 for duel in found)


def run(roc, pr):
    return {"ROC": roc, "PR": pr, "fit": 1.0, "score": 0.5, "not finite": float(pr == 0.6)}


RUNS = {
    "10_b": {"Narrows": {"1": run(0.9, 0.5), "2": run(0.7, 0.3)}, "KNN": {"1": run(0.6, 0.6), "2": run(0.8, 0.6)}},
    "2_a": {"Narrows": {"1": run(0.6, 0.2), "3": run(0.1, 0.1)}, "KNN": {"1": run(0.9, 0.1), "2": run(0.2, 0.2)}},
    "3_c": {"Narrows": {"1": run(1.0, 1.0)}},
}


def test_only_cases_that_all_have_run_are_compared(standings):
    figures = standings.compared(RUNS)
    assert figures.systems == ["Narrows", "KNN"] and figures.cases == {"2_a": ["1"], "10_b": ["1", "2"]}
    assert figures.means["ROC"] == pytest.approx(np.array([[0.6, 0.9], [0.8, 0.7]]))
    facts = standings.standing(figures)
    assert facts["sets"] == 2 and facts["runs"] == 3
    assert facts["systems"]["Narrows"] == {
        "ROC": 0.7,
        "PR": 0.3,
        "ROC rank": 1.5,
        "PR rank": 1.5,
        "fit": 3,
        "score": 1.5,
    }
    assert facts["systems"]["KNN"]["Narrows in ROC"] == {"won": 1, "lost": 1, "p": 1.0}


def test_tables_mark_what_is_above_ours(standings):
    text = standings.markdown({"clean": standings.compared(RUNS)}, {})
    assert "| 2_a | 0.600 / 0.200 | **0.900** / 0.100 |" in text
    assert "| 10_b | 0.800 / 0.400 | 0.700 / **0.600** |" in text
    peers = {name: {"KNN": found["KNN"], "ECOD": found["KNN"]} for name, found in RUNS.items() if "KNN" in found}
    assert text.endswith("Scores that were not finite, and so ties: KNN on 10_b.\n")
    assert "**0" not in standings.markdown({"clean": standings.compared(peers)}, {})


def test_nothing_in_common_makes_no_table(standings):
    figures = standings.compared({"1_a": {"Narrows": {"1": run(1, 1)}}, "2_b": {"KNN": {"1": run(1, 1)}}})
    assert standings.markdown({"clean": figures}, {}) == "\n"
