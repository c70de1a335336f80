"""VUS-PR: how well scores of steps tell the anomalous stretches of a series, wherever labels draw their borders.

Around each stretch a buffer fades out, and the area under the range-based precision-recall curve is averaged over
buffers from none to `buffer` steps, half of them on either side (Paparrizos et al. 2022, "Volume Under the Surface"):
a score that rises a little early or late loses little, one that misses stretches loses their share of the recall. As
TSB-AD (Liu & Paparrizos 2024) computes it, so that figures can be compared with those published: by 250 thresholds, and
with the precision at the end of each piece of the curve. Knows nothing of where scores come from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Told:
    """When each of n steps is told to be odd, as a threshold sinks.

    Args:
        reached: (n,) the first threshold that a step's score reaches.
        thresholds: how many there are.
    """

    reached: Places
    thresholds: int

    @classmethod
    def of(cls, scores: Floats, thresholds: int) -> Told:
        """By thresholds that are spread evenly over the ranks of the scores, from the highest to the lowest."""
        ranks = np.linspace(0, len(scores) - 1, thresholds).astype(int)
        return cls(np.searchsorted(np.sort(-scores)[ranks], -scores), thresholds)

    def count(self, weights: Floats) -> Floats:
        """(thresholds,) sum of the weights (n,) of the steps told by then."""
        return np.bincount(self.reached, weights, self.thresholds).cumsum()

    def found(self, stretches: Places) -> Floats:
        """(thresholds,) the share of stretches (s, 2) of which some step is told by then."""
        first = [self.reached[begin:end].min() for begin, end in stretches]
        return np.bincount(first, minlength=self.thresholds).cumsum() / len(stretches)


def vus_pr(labels: NDArray[np.bool_], scores: Floats, buffer: int, thresholds: int = 250) -> float:
    """The mean of the areas under range-based PR curves over buffers of 0 to `buffer` steps; 1 is best.

    Args:
        labels: (n,) which steps are anomalous, one at least.
        scores: (n,) higher for what is odder.
        buffer: steps, as many as a typical pattern of the series has.
        thresholds: of a curve.
    """
    told = Told.of(scores, thresholds)
    stretches = np.flatnonzero(np.diff(np.pad(labels.astype(np.int8), 1))).reshape(-1, 2)
    truth = labels.astype(np.float64)
    predicted, hits = told.count(np.ones(len(scores))), told.count(truth)
    area = 0.0
    for width in range(buffer + 1):
        reward = told.count(faded(truth, stretches, width))
        recall = np.minimum(reward / (truth.sum() + (reward - hits) / 2), 1)
        rises = np.diff(recall * told.found(joined(stretches, width // 2, len(labels))), prepend=0)
        area += float(np.sum(rises * reward / predicted))
    return area / (buffer + 1)


def faded(truth: Floats, stretches: Places, width: int) -> Floats:
    """(n,) the labels with a buffer of half the width on either side, which falls by the root of the distance."""
    reach = np.arange(1, width // 2 + 1)
    fall = np.sqrt(1 - reach / max(width, 1))
    out = np.pad(truth, width // 2)
    for begin, end in stretches + width // 2:
        out[begin - reach] += fall
        out[end - 1 + reach] += fall
    return np.minimum(out[width // 2 : len(out) - width // 2], 1)


def joined(stretches: Places, reach: int, steps: int) -> Places:
    """The stretches, so much longer on either side; one where they then meet."""
    apart = stretches[1:, 0] - reach > stretches[:-1, 1] - 1 + reach
    begins = stretches[np.append(True, apart), 0] - reach
    ends = stretches[np.append(apart, True), 1] + reach
    return np.clip(np.stack([begins, ends], axis=1), 0, steps)
