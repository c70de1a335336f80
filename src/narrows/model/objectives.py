"""How a pass becomes one number to minimize: weights that may rise through training, samples, and the bound.

What it does not know: what the terms are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from narrows.errors import SettingError

MOST_SAMPLES = 1 << 20


@dataclass(frozen=True)
class Objective:
    """Weights of the terms, and how several samples of a code become one loss.

    Args:
        weights: name of a term -> its weight at the end of training; terms without one weigh 1.
        warm_up: share of each cycle in which the weights rise from 0, linearly (Bowman et al. 2016); 0 for none.
        cycles: times that the weights rise so (Fu et al. 2019).
        samples: of each code, in training.
        importance: whether the samples are weighed by importance into one bound on the likelihood, log mean exp (Burda
            et al. 2016), in place of the mean of their losses.
        shown: weight of the cells that the encoder was shown, where others were hidden from it.

    Raises:
        SettingError: for values out of range.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    warm_up: float = 0.0
    cycles: int = 1
    samples: int = 1
    importance: bool = False
    shown: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not 0 <= weight < inf:
                raise SettingError(f"a weight of {weight} for {name}", "0 or more")
        if not 0 <= self.warm_up <= 1:
            raise SettingError(f"warm_up={self.warm_up}", "a share of training from 0 to 1")
        if not 0 <= self.shown < inf:
            raise SettingError(f"shown={self.shown}", "0 or more")
        if self.cycles < 1:
            raise SettingError(f"cycles={self.cycles}", "at least 1")
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise SettingError(f"samples={self.samples}", f"from 1 to {MOST_SAMPLES:,}")

    def at(self, done: float) -> Mapping[str, float]:
        """The weights when this share of training is done."""
        if not self.warm_up or done >= 1:
            return self.weights
        share = min(1.0, done * self.cycles % 1.0 / self.warm_up)
        return {name: share * weight for name, weight in self.weights.items()}
