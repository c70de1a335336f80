"""p-values and thresholds against loops, and what they promise: false alarms by the beta-binomial law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from narrows.errors import SettingError
from narrows.tasks.calibration import Calibration, fence, quantile

# few values, so that many are equal
SCORES = st.lists(st.integers(-4, 4) | st.floats(-1e6, 1e6), min_size=1, max_size=60)


def doubles(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=200, deadline=None)
@given(SCORES, SCORES)
def test_p_values_are_counted(held, new):
    found = Calibration.of(doubles(held)).p_values(doubles(new))
    for score, p in zip(new, found.tolist(), strict=True):
        assert p == pytest.approx((1 + sum(other >= score for other in held)) / (len(held) + 1), abs=1e-15)


@settings(max_examples=300, deadline=None)
@given(SCORES, SCORES, st.floats(1e-4, 1 - 1e-4) | st.integers(1, 99).map(lambda percent: percent / 100))
def test_rows_above_the_threshold_are_those_of_small_p_values(held, new, rate):
    calibration, scores = Calibration.of(doubles(held)), doubles(new + held)
    above = scores > calibration.threshold(rate)
    p = calibration.p_values(scores)
    unclear = (p - rate).abs() < 1e-12  # rates written as decimals meet p-values that are fractions
    assert torch.equal(above[~unclear], (p <= rate)[~unclear])
    assert above[unclear].all()


def test_rates_that_are_fractions_of_the_count_are_met_exactly():
    calibration = Calibration.of(torch.arange(99.0))
    assert [calibration.threshold(percent / 100) for percent in (1, 5, 10)] == [98.0, 94.0, 89.0]
    assert calibration.threshold(0.0099) == math.inf, "99 rows cannot promise less than 1 %"


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(SettingError, match="share between 0 and 1"):
        Calibration.of(torch.arange(9.0)).threshold(rate)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
def test_false_alarms_of_many_splits_follow_the_beta_binomial_law(rate, ties):
    """n held-out rows and m new ones of one distribution: alarms ~ BetaBinomial(m, k, n + 1 - k), k = floor((n+1)r)."""
    rng, n, m, splits = np.random.default_rng(3), 199, 400, 400
    alarms = []
    for _ in range(splits):
        scores = rng.standard_gamma(0.5, n + m)
        scores = np.round(scores, 1) if ties else scores
        calibration = Calibration.of(torch.from_numpy(scores[:n]))
        alarms.append(int((torch.from_numpy(scores[n:]) > calibration.threshold(rate)).sum()))
    k = math.floor((n + 1) * rate + 1e-9)
    law = stats.betabinom(m, k, n + 1 - k)
    if ties:  # ties cost alarms, never add any
        assert np.mean(alarms) <= law.mean() + 3 * law.std() / math.sqrt(splits)
        return
    uniform = law.cdf(np.array(alarms) - 1) + rng.random(splits) * law.pmf(alarms)  # randomized, so continuous
    assert stats.kstest(uniform, "uniform").pvalue > 0.01


def test_the_fence_of_normal_scores_is_at_two_and_a_half_deviations():
    scores = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert fence(7 + 3 * scores) == pytest.approx(7 + 3 * 2.5, rel=0.01)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=50).filter(lambda some: len(some) % 2), st.randoms())
def test_the_fence_follows_its_formula_in_any_order(values, random):
    middle = np.median(values)
    wanted = middle + 2.5 * np.median(np.abs(np.array(values) - middle)) / stats.norm.ppf(0.75)
    random.shuffle(values)
    assert fence(doubles(values)) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_a_third_of_anomalies_does_not_carry_the_fence_away():
    clean = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    assert fence(torch.cat([clean, torch.full((10_000,), 1e6)])) < 6


@settings(max_examples=100, deadline=None)
@given(SCORES, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values, share):
    assert quantile(doubles(values), share) == np.quantile(np.array(values, float), share)
