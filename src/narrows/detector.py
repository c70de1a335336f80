"""The scikit-learn face of detecting anomalies: `fit` without labels, `predict` with -1 for what is odd, and why.

An `Autoencoder` trained on the rows that look most ordinary, whose scores two further judges share (see
`narrows.tasks.detect`). Methods have scikit-learn's signs, higher for what is more normal; `decision_scores_`,
`labels_` and `threshold_` those of PyOD, higher for what is less. What this file does not know: how scores are made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

from narrows.containers import framed
from narrows.estimators import Autoencoder
from narrows.sources.source import Source
from narrows.tasks.calibration import quantile
from narrows.tasks.detect import PART, Detector
from narrows.tasks.ordinary import RECIPE
from narrows.tasks.purposes import Contamination, Purpose, detection
from narrows.tasks.verdicts import detect, scores_of


@dataclass(eq=False, repr=False)
class AnomalyDetector(OutlierMixin, Autoencoder):  # type: ignore[misc]
    """Finds the rows that are unlike the others, and says why.

    Args:
        latent: numbers in a row's code; None takes half of the cells, at most 16, or what the ensemble of `RECIPE` has.
        hidden: as in `Autoencoder`.
        recipe: what is learnt; by default an ensemble that tells hidden cells from the others, for images, series and
            texts a plain autoencoder.
        network: as in `Autoencoder`, and so the rest.
        epochs: passes over the rows; None makes a hundred steps, since more teach the network what it should find odd.
        lr: learning rate.
        training: further settings of the training. `validation` is the share that calibrates, by default 0.2,
            0.1 with `all_normal`.
        columns: column -> kind or transform; other numbers are drawn towards each other by asinh, so that far ones
            stay far without drowning the rest, or with `all_normal` mapped from their range to [0, 1].
        random_state: seed of every random draw of training; None draws one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        verbose: 0 silent, 1 a progress bar, 2 a line an epoch.
        contamination: share of the training rows to call anomalies, above 0 and up to 0.5; `auto` takes a threshold
            that the scores suggest of themselves.
        all_normal: the training rows hold no anomalies: learns from all of them.

    Attributes:
        model_: the fitted `Model`, for `narrows detect` too.
        decision_scores_: (n,) scores of the training rows, in order, those held out included.
        threshold_: above which a score is an anomaly's.
        labels_: (n,) 1 for the training rows above it, else 0.
        offset_: `-threshold_`: `decision_function` is `score_samples` less this.
        history_: as of `Autoencoder`, and so `n_features_in_` and `feature_names_in_`.
    """

    recipe: str = RECIPE
    contamination: Contamination = "auto"
    all_normal: bool = False

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, **more: Any) -> Self:
        """Learn what is ordinary.

        Args:
            X: as `Autoencoder.fit` takes it; at least 20 rows.
            y: ignored.
            sample_weight: (n,) weight of each row in the training.
            more: as `Autoencoder.fit` takes it; `validation` are normal rows to calibrate by.

        Raises:
            DataError: for rows that cannot be read or modeled, or too few.
            SettingError: for settings that do not fit, such as a contamination out of range.
        """
        super().fit(X, y, sample_weight, **more)
        return self

    def _fitted(self, source: Source) -> None:
        detector = Detector.of(self.model_)
        self.decision_scores_ = scores_of(detector, source)
        if self.contamination != "auto":  # of all rows, where the fit knew a sample of those that were not held out
            threshold = quantile(torch.from_numpy(self.decision_scores_), 1 - float(self.contamination))
            detector = replace(detector, threshold=threshold)
            self.model_.parts[PART] = detector.part()
        self.threshold_ = detector.threshold
        self.offset_ = -self.threshold_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)

    def score_samples(self, X: Any) -> np.ndarray:
        """(n,) how normal each row is: minus the score that the command line and `decision_scores_` have."""
        check_is_fitted(self)
        return -scores_of(Detector.of(self.model_), self._rows(X, reset=False))

    def decision_function(self, X: Any) -> np.ndarray:
        """(n,) `score_samples` less `offset_`: below 0 for anomalies."""
        scores = self.score_samples(X)
        return scores - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """(n,) -1 for anomalies, 1 for all else."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def fit_predict(self, X: Any, y: Any = None, **more: Any) -> np.ndarray:
        """`predict` of the training rows; `more` as in `fit`."""
        return np.where(self.fit(X, y, **more).labels_ == 1, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """(n,) share of the rows held out from training, the row itself counted, that score at least as high."""
        scores = torch.from_numpy(-self.score_samples(X))
        return Detector.of(self.model_).calibration.p_values(scores).numpy()

    def explain(self, X: Any, *, alarms: float | None = None) -> Any:
        """A row for each of X: score, p-value, anomaly or not, and why (see `narrows.tasks.why.Why`).

        Args:
            X: as in `fit`.
            alarms: share of normal rows that may be called anomalies at most; None takes `threshold_`.

        Returns:
            A data frame of pandas for one of pandas, with its index, of polars for polars, else an Arrow table.

        Raises:
            SettingError: for alarms that too few held-out rows can promise.
        """
        check_is_fitted(self)
        return framed(detect(self.model_, self._rows(X, reset=False), explain=True, alarms=alarms), like=X)

    def _purpose(self, schema: pa.Schema) -> Purpose:
        return detection(self.contamination, self.all_normal)
