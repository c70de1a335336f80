"""Whether two samples come from one distribution: tests of a column, of codes as a whole, and of all tests together.

    numbers -> Kolmogorov-Smirnov      levels, holes -> chi-square, Fisher's exact      points -> MMD, by permutations
    p-values of all, each with a weight -> Holm -> p-values that may be compared with one rate of false alarms

Every choice (bins, bandwidths, rare levels that are pooled) is made on both samples joined, so that it cannot favor a
difference. What this file does not know: models and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from narrows.train.randomness import generator

Floats = NDArray[np.float64]
BINS = 10  # of numbers, for the index of stability
EXPECTED = 5.0  # rows that a level is expected to have in either sample: rarer ones are taken together
SCALES = (0.5, 1.0, 2.0)  # of the median distance: bandwidths whose kernels are summed
FLAT = 1e-6  # of the largest variance: a direction with less is noise of rounding
NOISE = 1e-6  # relative: statistics nearer than this are equal
MEDIANS = 500_000  # distances that the median is taken of
AT_ONCE = 1 << 24  # numbers of permuted weights
DIRECTIONS = 64  # of points at most, and one for ten of them: in more, all are as far from each other
BEND = 3.0  # spreads from the middle from which numbers are drawn in


@dataclass(frozen=True)
class Answer:
    """What a test says. Args: test: its name. statistic: how far apart. p: if the two were alike, probability of it."""

    test: str
    statistic: float
    p: float


def kolmogorov_smirnov(first: Floats, second: Floats) -> Answer:
    """Two samples of numbers (n,), (m,): the largest distance of their distribution functions.

    By the limit distribution, and exactly where a sample has fewer than 100; where values repeat, it errs towards no
    difference.
    """
    from scipy.stats import ks_2samp

    if not (len(first) and len(second)):
        return Answer("KS", 0.0, 1.0)
    found = ks_2samp(first, second, method="exact" if min(len(first), len(second)) < 100 else "asymp")
    return Answer("KS", float(found.statistic), min(1.0, float(found.pvalue)))


def same_shares(first: NDArray[np.int64], second: NDArray[np.int64]) -> Answer:
    """Two rows of counts (k,): Pearson's chi-square of the 2 x k table, with Cramer's V as statistic.

    Levels that would have fewer than five rows in the smaller sample are taken together; of two levels as rare as that
    it is Fisher's exact test.
    """
    from scipy.stats import chi2_contingency, fisher_exact

    table = np.stack([first, second]).astype(np.int64)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or not table.sum(1).all():
        return Answer("chi-square", 0.0, 1.0)
    total = table.sum()
    effect = np.sqrt(max(0.0, chi2_contingency(table, correction=False).statistic) / total)
    rare = table.sum(0) * table.sum(1).min() / total < EXPECTED
    if rare.any() and table.shape[1] > 2:
        table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], axis=1)
    expected = table.sum(0) * table.sum(1).min() / total
    if table.shape[1] < 2:
        return Answer("chi-square", float(effect), 1.0)
    if table.shape[1] == 2 and expected.min() < EXPECTED:
        return Answer("Fisher", float(effect), min(1.0, float(fisher_exact(table).pvalue)))
    return Answer("chi-square", float(effect), float(chi2_contingency(table, correction=False).pvalue))


def stability(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Population stability index of two rows of counts (k,): the sum of (q - p) log(q / p) over their shares p and q.

    Half a row is added to each count, or an empty one would make it infinite. Rules of thumb call below 0.1 little and
    above 0.25 much; it says nothing of chance, so it is told and decides nothing.
    """
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (first, second))
    return float(((q - p) * np.log(q / p)).sum())


def in_bins(first: Floats, second: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts of two samples in bins that hold a tenth of the first each, fewer where values repeat."""
    edges = np.unique(np.quantile(first, np.linspace(0, 1, BINS + 1)[1:-1])) if len(first) else np.zeros(0)
    counted = [np.bincount(np.searchsorted(edges, x, "left"), minlength=len(edges) + 1) for x in (first, second)]
    return counted[0], counted[1]


def discrepancy(first: Tensor, second: Tensor, permutations: int = 500, seed: int = 0) -> Answer:
    """Maximum mean discrepancy of two samples of points (n, D), (m, D) (Gretton et al. 2012).

    The kernel is a sum of Gaussian ones whose bandwidths are the median distance of the joined points, half and twice
    of it. P-value by permutations of which point is of which sample (Phipson and Smyth 2010): never below
    1 / (permutations + 1), and exact where rows are exchangeable.

    Args:
        first: points, in units that are to count alike (see `whitened`).
        second: others.
        permutations: drawn.
        seed: of the draws.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2 or not first.shape[1]:
        return Answer("MMD", 0.0, 1.0)
    kernel = _kernel(torch.cat([first, second]).float())
    labels = torch.cat([torch.full((n,), 1.0 / n), torch.full((m,), -1.0 / m)])
    draws, found = generator(seed, 0), []
    step = max(1, AT_ONCE // (n + m))
    for start in range(0, permutations, step):
        orders = torch.rand(min(step, permutations - start), n + m, generator=draws).argsort(1)
        # the observed order goes with each of them, so that equal ones round alike
        weights = torch.cat([labels[None], labels[orders]])
        found.append(((weights @ kernel) * weights).sum(1).double())
    observed = found[0][0]
    drawn = torch.cat([values[1:] for values in found])
    least = observed - NOISE * max(float(drawn.abs().max()), abs(float(observed)))
    p = (1 + int((drawn >= least).sum())) / (permutations + 1)
    return Answer("MMD", max(0.0, float(observed - drawn.mean())), p)


def _kernel(points: Tensor) -> Tensor:
    """(N, N) kernel of points with each other."""
    squares = points.square().sum(1)
    apart = (squares[:, None] + squares - 2 * points @ points.T).clamp_min_(0)
    step = max(1, apart.numel() // MEDIANS) | 1  # odd, or it would always meet the same points
    middle = apart.flatten()[1::step].median().clamp_min(1e-12)
    return torch.stack([torch.exp(apart / (-2 * scale * scale * middle)) for scale in SCALES]).sum(0)


def whitened(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n, D), (m, D) in directions of variance 1 that do not go together, by the joined points.

    The directions are the principal ones, up to 64. Outliers are drawn in, so that a few do not hide the rest.
    """
    joined = torch.cat([first, second]).double()
    quarters = torch.quantile(joined, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    spread = (quarters[2] - quarters[0]) / 1.349
    spread = torch.where(spread > 0, spread, joined.std(0, correction=0)).clamp_min(1e-12)
    joined = torch.asinh((joined - quarters[1]) / spread / BEND)
    joined = joined - joined.mean(0)
    values, vectors = torch.linalg.eigh(joined.T @ joined / len(joined))
    kept = (values > FLAT * values.max().clamp_min(1e-30)).nonzero().flatten()
    kept = kept[-max(1, min(DIRECTIONS, len(joined) // 10)) :]
    white = (joined @ vectors[:, kept] / values[kept].sqrt()).float()
    return white[: len(first)], white[len(first) :]


def holm(p_values: list[float], weights: list[float]) -> list[float]:
    """Adjusted p-values: rejecting those up to a rate is wrong anywhere with at most this probability (Holm 1979).

    Args:
        p_values: of all tests, whatever hangs together among them.
        weights: above 0: what share of the allowed error each test has.
    """
    order = sorted(range(len(p_values)), key=lambda at: (p_values[at] / weights[at], at))
    left, so_far, adjusted = sum(weights), 0.0, [1.0] * len(p_values)
    for at in order:
        so_far = max(so_far, min(1.0, p_values[at] * left / weights[at]))
        adjusted[at] = so_far
        left -= weights[at]
    return adjusted
