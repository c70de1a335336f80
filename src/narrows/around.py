"""What the faces have in common that hold an `Autoencoder` inside: being fitted, going on, and saving.

What this file does not know: what the autoencoder is for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from narrows.estimators import Autoencoder
from narrows.fitted import Model

PASSED = ("latent", "network", "epochs", "lr", "training", "columns", "random_state", "device", "verbose")


class Around(BaseEstimator, ABC):  # type: ignore[misc]
    """A face over an autoencoder, with the settings `PASSED` as its own."""

    autoencoder_: Autoencoder
    model_: Model

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Train on rows.

        Args:
            X: as `Autoencoder.fit` takes it.
            y: ignored.
            sample_weight: (n,) weight of each row.

        Raises:
            DataError: for rows that cannot be read or modeled.
            SettingError: for settings that do not fit.
        """
        self.autoencoder_ = self._inside(X).fit(X, y, sample_weight)
        return self._took()

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Go on with new rows, as `Autoencoder.partial_fit` does; the first call is `fit`.

        Args:
            X: rows as `fit` takes them, with the columns of the first call.
            y: ignored.
            sample_weight: (n,) weight of each row.

        Raises:
            DataError: for rows of other columns.
            SettingError: for settings that the first call settled and that were changed since.
        """
        if not hasattr(self, "autoencoder_"):
            return self.fit(X, y, sample_weight)
        self.autoencoder_.set_params(**self._inside(X).get_params(deep=False)).partial_fit(X, y, sample_weight)
        return self._took()

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, for `narrows.load` and the command line."""
        check_is_fitted(self)
        self.autoencoder_.save(path)

    @abstractmethod
    def _inside(self, X: Any) -> Autoencoder:
        """The autoencoder as it is to be fitted."""

    def _passed(self) -> dict[str, Any]:
        """The settings that go to the autoencoder."""
        return {name: getattr(self, name) for name in PASSED}

    def _took(self) -> Self:
        """Show what the autoencoder learnt as one's own."""
        self.model_ = self.autoencoder_.model_
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.autoencoder_, name):
                setattr(self, name, getattr(self.autoencoder_, name))
        return self
