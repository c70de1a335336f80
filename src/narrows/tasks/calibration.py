"""From scores to statements: p-values by rows held out from training, and a threshold without labels.

A conformal p-value is the share of held-out rows that score at least as high (Vovk et al. 2005; Bates et al. 2023).
Where these are normal and new rows are like them, at most a share a of new normal rows has p <= a; over draws of n
held-out rows the share that is really flagged follows a beta distribution. Anomalies among them make p-values larger:
fewer alarms than promised, never more. What this file does not know: what the scores are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, inf

import numpy as np
import torch
from torch import Tensor

from narrows.errors import SettingError

FEWEST = 20  # held-out rows of which a p-value says something
DEVIATIONS, NORMAL = 2.5, 0.6744897501960817  # the median absolute deviation of a standard normal distribution


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
        """(B,) float64: share of held-out rows, the row itself among them, that score at least as high as each."""
        scores = scores.double()
        above = len(self.scores) - torch.searchsorted(self.scores, scores, side="left")
        return (above + 1).double() / (len(self.scores) + 1)

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
    """The threshold that scores (n,) suggest of themselves: 2.5 scaled median absolute deviations above the median.

    Leys et al. (2013). On the tables of ADBench it flagged 5 % of the normal rows and did best by F1 beside boxplots,
    that for skewed distributions among them, which flagged next to nothing. Half of the rows may be anomalies before
    they move it at will.
    """
    middle = scores.double().median()
    return float(middle + DEVIATIONS * (scores.double() - middle).abs().median() / NORMAL)


def quantile(scores: Tensor, share: float) -> float:
    """The score below which this share of scores (n,) lies, linear between two of them as in NumPy."""
    return float(np.quantile(scores.double().numpy(), share))
