"""From scores to statements: p-values by rows held out from training, and a threshold without labels.

A conformal p-value is the share of held-out rows that score at least as high (Vovk et al. 2005; Bates et al. 2023).
Where these are normal and new rows are like them, at most a share a of new normal rows has p <= a; over draws of n
held-out rows the share that is really flagged follows a beta distribution. Anomalies among them make p-values larger:
fewer alarms than promised, never more. What this file does not know: what the scores are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, floor, inf

import numpy as np
import torch
from torch import Tensor

from narrows.errors import SettingError

FEWEST = 20  # held-out rows of which a p-value says something
SOME = 1_000  # scores that a medcouple is taken of: it looks at all pairs


@dataclass(frozen=True)
class Calibration:
    """The scores of rows held out from training.

    Args:
        scores: (n,) float64, ascending; as many as there were.
    """

    scores: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> Calibration:
        """The calibration by (n,) scores in any order."""
        return cls(scores.double().sort().values)

    def p_values(self, scores: Tensor) -> Tensor:
        """(B,) share of held-out rows, the row itself counted among them, that score at least as high as each."""
        scores = scores.double()
        above = len(self.scores) - torch.searchsorted(self.scores, scores, side="left")
        return (above + 1) / (len(self.scores) + 1)

    def threshold(self, rate: float) -> float:
        """The score above which at most this share of normal rows lies; infinite where there are too few to promise it.

        A row is above it if and only if its p-value is at most `rate`.

        Raises:
            SettingError: for a rate that is not between 0 and 1.
        """
        if not 0 < rate < 1:
            raise SettingError(f"false alarms of {rate!r}", "a share between 0 and 1, such as 0.01")
        allowed = floor(rate * (len(self.scores) + 1) + 1e-9) - 1  # held-out rows that may score as high or higher
        if allowed < 0:
            return inf
        return float(self.scores[len(self.scores) - 1 - allowed]) if allowed < len(self.scores) else -inf


def fence(scores: Tensor) -> float:
    """The threshold that scores (n,) suggest of themselves: the upper fence of the boxplot for skewed distributions.

    Q3 + 1.5 exp(3 MC) IQR, with the medcouple MC for the skew, no less than 0 here (Hubert & Vandervieren 2008; 0.7 %
    of normal data lie outside both fences). A quarter of the rows may be anomalies before they move it at will.
    """
    scores = scores.double()
    low, high = torch.quantile(some(scores, 100_000), torch.tensor([0.25, 0.75], dtype=torch.float64)).tolist()
    return float(high + 1.5 * exp(3 * max(0.0, medcouple(some(scores, SOME)))) * (high - low))


def quantile(scores: Tensor, share: float) -> float:
    """The score below which this share of scores (n,) lies, linear between two of them as in NumPy."""
    return float(np.quantile(scores.double().numpy(), share))


def medcouple(values: Tensor) -> float:
    """Skew of (n,) values between -1 and 1: the median of ((b - m) - (m - a)) / (b - a) over a <= m <= b (Brys 2004).

    Pairs of two values at the median itself are left out.
    """
    middle = values.median()
    low, high = values[values <= middle], values[values >= middle]
    spans = high[:, None] - low[None, :]
    skews = ((high[:, None] - middle) - (middle - low[None, :])) / spans
    return float(skews[spans > 0].median()) if bool((spans > 0).any()) else 0.0


def some(values: Tensor, most: int) -> Tensor:
    """At most so many of the values, evenly drawn by size."""
    if len(values) <= most:
        return values
    return values.sort().values[torch.linspace(0, len(values) - 1, most).round().long()]
