"""Tests of two samples: their p-values beside brute force and beside theory, and what all of them together promise."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2_contingency, ks_2samp

from narrows.tasks.twosample import (
    discrepancy,
    holm,
    in_bins,
    kolmogorov_smirnov,
    same_shares,
    stability,
    whitened,
)

draw = np.random.default_rng(0)


def test_the_distance_of_numbers_is_scipys():
    first, second = draw.normal(size=300), draw.normal(0.2, 1, 200)
    found = kolmogorov_smirnov(first, second)
    assert found.statistic == pytest.approx(ks_2samp(first, second).statistic)
    assert found.p == pytest.approx(ks_2samp(first, second).pvalue, rel=0.1)
    assert kolmogorov_smirnov(first, first).p == 1
    assert kolmogorov_smirnov(first, second[:0]).p == 1


def test_shares_are_compared_by_pearson_or_fisher():
    first, second = np.array([60, 30, 10]), np.array([40, 45, 15])
    found = same_shares(first, second)
    assert (found.test, found.p) == ("chi-square", pytest.approx(chi2_contingency([first, second]).pvalue))
    rare = same_shares(np.array([500, 0]), np.array([48, 2]))
    assert rare.test == "Fisher"
    # all ways to place the two rows among 550, of which both fall among the 50
    assert rare.p == pytest.approx(50 * 49 / (550 * 549))
    assert same_shares(np.array([9, 0]), np.array([7, 0])).p == 1


def test_rare_levels_are_taken_together_whichever_sample_has_them():
    first, second = np.array([500, *[1] * 30, *[0] * 30]), np.array([500, *[0] * 30, *[1] * 30])
    assert same_shares(first, second).p == pytest.approx(same_shares(second, first).p) == pytest.approx(1)


def test_the_index_of_stability_is_that_of_the_formula():
    first, second = np.array([50, 30, 20]), np.array([20, 30, 50])
    p, q = (first + 0.5) / 101.5, (second + 0.5) / 101.5
    assert stability(first, second) == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert stability(first, first) == 0 and np.isfinite(stability(np.array([1, 0]), np.array([0, 1])))
    counts = in_bins(np.arange(100.0), np.arange(50.0))
    assert counts[0].tolist() == [10] * 10 and counts[1].tolist() == [10] * 5 + [0] * 5


def test_the_permutation_p_value_is_that_of_all_permutations():
    """Five points against three: all 56 ways to tell them apart, by a plain double sum over kernels."""
    points = torch.from_numpy(draw.normal(size=(8, 2)) + np.array([[0, 0]] * 5 + [[0.9, 0]] * 3)).float()
    apart = torch.cdist(points.double(), points.double()).square().numpy()
    flat = apart.flatten()[1::1]
    middle = np.sort(flat)[(len(flat) - 1) // 2]
    kernel = sum(np.exp(-apart / (2 * scale**2 * middle)) for scale in (0.5, 1, 2))

    def squared(chosen):
        others = [i for i in range(8) if i not in chosen]
        means = [kernel[np.ix_(a, b)].mean() for a, b in ((chosen, chosen), (others, others), (chosen, others))]
        return means[0] + means[1] - 2 * means[2]

    chances = [squared(list(chosen)) for chosen in itertools.combinations(range(8), 5)]
    exact = np.mean(np.array(chances) >= squared([0, 1, 2, 3, 4]) - 1e-9)
    found = discrepancy(points[:5], points[5:], permutations=20_000)
    assert found.p == pytest.approx(exact, abs=0.015)
    assert found.statistic == pytest.approx(max(0, squared([0, 1, 2, 3, 4]) - np.mean(chances)), abs=1e-3)


def test_points_that_are_alike_are_no_alarm_and_others_are():
    same = torch.zeros(30, 2)
    assert discrepancy(same, same).p == 1
    first = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    assert discrepancy(first[:100], first[100:]).p > 0.05
    assert discrepancy(first[:100], first[100:] + 1, permutations=99).p == 0.01
    assert discrepancy(first[:100], 2 * first[100:]).p < 0.01
    assert discrepancy(first[:1], first).p == 1


def test_whitened_points_are_white_whoever_they_belong_to():
    mixed = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 2, 0, 1], [0, 1, 3, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    )
    mixed[0] *= 1e6
    first, second = whitened(mixed[:200], mixed[200:])
    joined = torch.cat([first, second])
    assert joined.shape[1] == 3
    np.testing.assert_allclose((joined.T @ joined / 500).numpy(), np.eye(3), atol=1e-3)
    assert joined.abs().max() < 30


def test_holm_is_the_closed_test_of_weighted_bonferroni():
    """A hypothesis is rejected where every set that holds it is, each by weighted Bonferroni: by brute force."""
    for _ in range(20):
        p, weights = draw.random(4) ** 2, draw.random(4) + 0.1
        adjusted = holm(p.tolist(), weights.tolist())
        for at in range(4):
            sets = [s for n in range(1, 5) for s in itertools.combinations(range(4), n) if at in s]
            worst = max(min(min(1, p[i] * weights[list(s)].sum() / weights[i]) for i in s) for s in sets)
            assert adjusted[at] == pytest.approx(worst)
    assert holm([0.01, 0.04, 0.03], [1, 1, 1]) == pytest.approx([0.03, 0.06, 0.06])


def test_false_alarms_of_all_tests_together_stay_at_the_rate():
    """Of 300 pairs of samples from one distribution, with ties and rare levels, no more than 5 % alarm by chance."""
    alarms = 0
    for run in range(300):
        chance = np.random.default_rng(run)
        numbers, ties = chance.normal(size=(90, 3)), chance.integers(0, 4, 90)
        p = [kolmogorov_smirnov(x[:50], x[50:]).p for x in numbers.T]
        p.append(same_shares(np.bincount(ties[:50], minlength=4), np.bincount(ties[50:], minlength=4)).p)
        points = torch.from_numpy(numbers)
        p.append(discrepancy(*whitened(points[:50], points[50:]), permutations=99, seed=run).p)
        alarms += min(holm(p, [0.25] * 4 + [1])) <= 0.05
    assert binomtest(alarms, 300, 0.05, alternative="greater").pvalue > 0.01
