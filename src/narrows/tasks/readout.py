"""Readouts: the least classifier or regressor that tells what stands in codes, and how well.

Logistic and ridge regression of scaled numbers, their strength chosen by cross-validation. Linear on purpose: what it
reads out was laid open by the code, not worked out by the reader. The price is that knowledge that is there but bent
counts for nothing. Where labels are plenty, as of pixels, one hidden layer stands before. What this file does not know:
where the numbers come from.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPClassifier

Floats = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # variances of the prior on a class's weights
USUAL = 0.1  # of them, where labels are too few to choose: with one row a class the direction hardly depends on it
ALPHAS = tuple(10.0 ** (power / 2) for power in range(-4, 13))
FOLDS, CHOOSING = (
    5,
    2_000,
)  # rows that the strength of a classifier is chosen on: a prior does not depend on their number
UNITS, PASSES = 64, 20  # of the hidden layer, over the values: a second or two for 20,000 pixels
FAINT = 0.1  # of the usual spread: numbers that vary less are not blown up to be as loud as the rest


@dataclass(frozen=True)
class Scaling:
    """Numbers centered and divided by their spread.

    Args:
        mean: (F,).
        spread: (F,) standard deviations, of numbers that hardly vary a tenth of the usual one: those are noise, such as
            pixels at the border or the silent part of a code.
    """

    mean: Floats
    spread: Floats

    @classmethod
    def of(cls, values: Floats) -> Scaling:
        """The scaling of (n, F) values; needs no labels."""
        deviation = values.std(0, dtype=np.float64)
        least = FAINT * np.sqrt(np.square(deviation).mean()) if deviation.size else 0.0
        spread = np.maximum(deviation, least)
        mean = values.mean(0, dtype=np.float64)
        return cls(mean.astype(np.float32), np.where(spread > 0, spread, 1.0).astype(np.float32))

    def __call__(self, values: Floats) -> Floats:
        """(n, F) scaled values."""
        return np.asarray((values - self.mean) / self.spread, dtype=np.float32)


@dataclass(frozen=True)
class Readout:
    """A linear map of scaled numbers to a score for each class, or to one number.

    Args:
        scaling: applied first.
        weight: (F, K), of a regressor K = 1; (H, K) behind a hidden layer.
        bias: (K,).
        hidden: (F, H) weights and (H,) biases of rectified units in between; None for none.
    """

    scaling: Scaling
    weight: Floats
    bias: Floats
    hidden: tuple[Floats, Floats] | None = None

    def __call__(self, values: Floats) -> Floats:
        """(n, K) scores of (n, F) values."""
        scaled = self.scaling(values)
        if self.hidden is not None:
            scaled = np.maximum(scaled @ self.hidden[0] + self.hidden[1], 0.0)
        return np.asarray(scaled @ self.weight + self.bias, dtype=np.float32)

    def classes(self, values: Floats) -> Whole:
        """(n,) the class of the highest score."""
        return np.asarray(self(values).argmax(1), dtype=np.int64)

    def numbers(self, values: Floats) -> Floats:
        """(n,) what a regressor says."""
        return self(values)[:, 0]


def classifier(values: Floats, classes: Whole, count: int, scaling: Scaling, seed: int) -> Readout:
    """Multinomial logistic regression with a Gaussian prior on the weights.

    Args:
        values: (n, F).
        classes: (n,) in 0..count-1, at least two of them met.
        count: K; classes that are not met are never answered.
        scaling: of the values.
        seed: of the folds.
    """
    scaled = scaling(values)
    strength = _chosen(scaled, classes, count, seed)
    weight, bias = _logistic(scaled, classes, count, strength)
    return Readout(scaling, weight, bias)


def layered(values: Floats, classes: Whole, count: int, scaling: Scaling, seed: int) -> Readout:
    """A classifier with one hidden layer of 64 rectified units, trained a short while by Adam.

    Args:
        values: (n, F), thousands of them: fewer would be learnt by heart.
        classes: (n,) in 0..count-1, at least two of them met.
        count: K; classes that are not met are never answered.
        scaling: of the values.
        seed: of the weights, and of the order of rows.
    """
    settings = {"alpha": 1e-3, "learning_rate_init": 2e-3, "batch_size": min(256, len(values)), "max_iter": PASSES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = MLPClassifier((UNITS,), random_state=seed, **settings).fit(scaling(values), classes)
    (first, last), (inside, outside) = fitted.coefs_, fitted.intercepts_
    weight, bias = _spread(last.T, outside, fitted.classes_, count)
    return Readout(scaling, weight, bias, (first.astype(np.float32), inside.astype(np.float32)))


def regressor(values: Floats, numbers: npt.NDArray[np.float64], scaling: Scaling) -> Readout:
    """Ridge regression, its strength chosen by leaving one row out at a time.

    Args:
        values: (n, F).
        numbers: (n,) to be told.
        scaling: of the values.
    """
    middle, spread = numbers.mean(), numbers.std() or 1.0
    fitted = RidgeCV(ALPHAS).fit(scaling(values).astype(np.float64), (numbers - middle) / spread)
    weight = (np.asarray(fitted.coef_) * spread).reshape(-1, 1)
    bias = np.array([fitted.intercept_ * spread + middle])
    return Readout(scaling, weight.astype(np.float32), bias.astype(np.float32))


def _chosen(scaled: Floats, classes: Whole, count: int, seed: int) -> float:
    """The strength of the least cross-validated log loss."""
    order = np.random.default_rng(seed).permutation(len(classes))[:CHOOSING]
    scaled, classes = scaled[order], classes[order]
    met = np.bincount(classes, minlength=count)
    folds = int(min(FOLDS, np.median(met[met > 0])))
    if folds < 2:
        return USUAL
    ranks = np.empty(len(classes), dtype=np.int64)  # each class goes round the folds
    ranks[np.argsort(classes, kind="stable")] = np.arange(len(classes))
    fold = ranks % folds
    losses = [sum(_log_loss(scaled, classes, count, s, fold == f) for f in range(folds)) for s in STRENGTHS]
    return STRENGTHS[int(np.argmin(losses))]


def _log_loss(scaled: Floats, classes: Whole, count: int, strength: float, held: Any) -> float:
    """What the rows held out cost under a classifier of the others."""
    if len(np.unique(classes[~held])) < 2:
        return 0.0
    weight, bias = _logistic(scaled[~held], classes[~held], count, strength)
    scores = (scaled[held] @ weight + bias).astype(np.float64)
    scores -= scores.max(1, keepdims=True)
    own = np.take_along_axis(scores, classes[held][:, None], 1)[:, 0]
    return float(np.sum(np.log(np.exp(scores).sum(1)) - np.maximum(own, -50.0)))


def _logistic(scaled: Floats, classes: Whole, count: int, strength: float) -> tuple[Floats, Floats]:
    """(F, K) weights and (K,) biases; those of classes that were not met are out of the running."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # far enough to read out by
        fitted = LogisticRegression(C=strength, max_iter=200, tol=1e-3).fit(scaled, classes)
    return _spread(fitted.coef_, fitted.intercept_, fitted.classes_, count)


def _spread(rows: Any, intercepts: Any, met: Whole, count: int) -> tuple[Floats, Floats]:
    """(F, K) weights and (K,) biases of all classes, from those of the classes that were met."""
    weight, bias = np.zeros((rows.shape[1], count), np.float32), np.full(count, -1e4, np.float32)
    if len(met) == 2:  # one direction, from the first class to the second
        weight[:, met[1]], bias[met] = rows[0], [0.0, intercepts[0]]
    else:
        weight[:, met], bias[met] = rows.T, intercepts
    return weight, bias
