"""Errors by sums: against scikit-learn, in one piece and in many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import mean_squared_error, r2_score

from narrows.metrics import Spread, bits, explained, perplexity, root_mean, squared_errors, wrong


def drawn(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(3.0, 10.0, (rows, columns))
    return truth, truth + rng.normal(size=truth.shape), rng.random(truth.shape) < 0.7


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 5))
def test_root_mean_is_scikit_learns_over_the_seen_cells(seed, rows, columns):
    truth, guess, seen = drawn(seed, rows, columns)
    found = root_mean(squared_errors(truth, guess, seen), seen.sum(0).astype(float))
    if not seen.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(mean_squared_error(truth[seen], guess[seen]) ** 0.5)


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 5))
def test_explained_is_scikit_learns_r2_weighted_by_variance(seed, rows, columns):
    truth, guess, _ = drawn(seed, rows, columns)
    seen = np.ones(truth.shape, bool)
    found = explained(squared_errors(truth, guess, seen), Spread.of(truth, seen))
    assert found == pytest.approx(r2_score(truth, guess, multioutput="variance_weighted"))


def test_a_constant_column_explains_all_or_nothing():
    truth, seen = np.full((5, 1), 7.0), np.ones((5, 1), bool)
    spread = Spread.of(truth, seen)
    assert explained(squared_errors(truth, truth, seen), spread) == 1.0
    assert explained(squared_errors(truth, truth + 1, seen), spread) == 0.0
    assert np.isnan(explained(np.zeros(1), Spread.of(truth, ~seen)))


@given(st.integers(0, 1000), st.lists(st.integers(0, 40), min_size=2, max_size=4))
def test_spreads_of_parts_add_up(seed, cuts):
    truth, _, seen = drawn(seed, 40, 3)
    pieces = np.split(np.arange(40), sorted(cuts))
    parts = [Spread.of(truth[rows], seen[rows]) for rows in pieces]
    total, whole = sum(parts[1:], parts[0]), Spread.of(truth, seen)
    for name in ("count", "mean", "squares"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), atol=1e-9)


def test_wrong_counts_seen_cells_only():
    truth, guess = np.array([[0, 1], [2, 1], [1, 0]]), np.array([[0, 0], [1, 1], [0, 1]])
    seen = np.array([[True, True], [True, True], [False, True]])
    assert wrong(truth, guess, seen).tolist() == [1, 2]


@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=9), st.integers(1, 50))
def test_perplexity_is_scipys_entropy_raised(weights, total):
    shares = np.array(weights) / sum(weights)
    counts = total * shares  # items come just as often as they are expected
    nats = -(counts * np.log(shares)).sum()
    assert perplexity(nats, counts.sum()) == pytest.approx(np.exp(entropy(shares)))
    assert bits(nats, total) == pytest.approx(entropy(shares, base=2))


def test_of_nothing_there_is_no_perplexity_and_of_the_hopeless_a_finite_one():
    assert np.isnan(perplexity(0.0, 0.0)) and np.isnan(bits(0.0, 0))
    assert perplexity(1e9, 1.0) == pytest.approx(np.exp(700.0))
