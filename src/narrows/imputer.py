"""The scikit-learn face of imputing: `fit` on rows with holes, `transform` fills those of other rows.

An autoencoder of the recipe `conditional` inside, whose settings it passes on. What this file does not know: how a
missing cell is told (see `tasks.holes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.base import TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from narrows.around import Around
from narrows.containers import framed, is_pandas
from narrows.errors import DataError
from narrows.estimators import Autoencoder
from narrows.tasks.impute import INDICATOR, impute, marked
from narrows.tasks.purposes import PURPOSES, Purpose
from narrows.train.settings import Training


@dataclass(eq=False, repr=False)
class _Telling(Autoencoder):
    """The autoencoder inside, fitted for imputing."""

    def _purpose(self, schema: pa.Schema) -> Purpose:
        return PURPOSES["impute"]


@dataclass(eq=False, repr=False)
class Imputer(TransformerMixin, Around):  # type: ignore[misc]
    """Fills what is missing in rows.

    Args:
        add_indicator: append a column for each column that had holes in `fit`: whether it was missing.
        recipe: `conditional`, which tells any cells from any others, or a variational one (`vae`, `iwae`).
        latent: numbers in a row's code; None takes 256 for `conditional`, 128 below 3,000 rows.
        network: as in `Autoencoder`; None for `conditional` is two residual layers each way, as wide.
        epochs: passes over the rows; None chooses by their number.
        lr: learning rate; None takes the optimizer's own.
        training: further settings of the training; by default AdamW, and 128 rows a step or more.
        columns: column -> kind or transform, where those chosen are wrong; numbers follow their quantiles by default.
        random_state: seed of every random draw of training; None draws one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        verbose: 0 silent, 1 a progress bar where there is a terminal, 2 a line an epoch.

    Attributes:
        autoencoder_: the fitted `Autoencoder`.
        model_: its `Model`.
        n_features_in_: columns seen in `fit`.
        feature_names_in_: their names; not there for arrays.
    """

    add_indicator: bool = False
    _: KW_ONLY
    recipe: str = "conditional"
    latent: int | None = None
    network: Any = None
    epochs: int | None = None
    lr: float | None = None
    training: Training | None = None
    columns: Mapping[str, str] | None = None
    random_state: int | np.random.RandomState | None = None
    device: str = "auto"
    verbose: int = 0

    def _inside(self, X: Any) -> Autoencoder:
        """Trained on rows with their holes left out, and more made anew in each step."""
        _refuse_sparse(X)
        return _Telling(recipe=self.recipe, **self._passed())

    def transform(self, X: Any) -> Any:
        """The rows with every hole filled by what is expected there, in the container that `fit` was given.

        With `add_indicator` the columns `NAME_missing` follow: of an array in its own type, as 0 and 1.
        """
        check_is_fitted(self)
        _refuse_sparse(X)
        rows = self.autoencoder_._rows(X, reset=False)
        table = impute(self.model_, rows, add_indicator=self.add_indicator)
        count = len(self.model_.schema)
        whole = self.autoencoder_._container(table.select(range(count)), like=X)
        return whole if not self.add_indicator else _beside(whole, table.select(range(count, len(table.schema))), X)

    def draw(self, X: Any, n_draws: int = 5, random_state: int = 0) -> list[Any]:
        """Completed copies of rows, whose missing cells are draws (see `narrows.tasks.pooling` for what they are for).

        Args:
            X: as in `transform`.
            n_draws: how many.
            random_state: seed of the draws.

        Raises:
            SettingError: for fewer than one.
        """
        check_is_fitted(self)
        table = impute(self.model_, self.autoencoder_._rows(X, reset=False), draws=n_draws, seed=random_state)
        size, names = len(table) // n_draws, self.model_.schema.names
        tables = [table.slice(number * size, size).select(names) for number in range(n_draws)]
        return [self.autoencoder_._container(part, like=X) for part in tables]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns that `transform` gives."""
        check_is_fitted(self)
        own = getattr(self, "feature_names_in_", [f"x{i}" for i in range(self.n_features_in_)])
        names = own if input_features is None else input_features
        holes = [name for column in self.model_.schema if column.holes for name in marked(column)]
        marks = [name + INDICATOR for name in holes if self.add_indicator]
        return np.array([*names, *marks], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags = Autoencoder().__sklearn_tags__().input_tags
        tags.input_tags.sparse = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _refuse_sparse(X: Any) -> None:
    """Refuse what is not there and zero at once."""
    if hasattr(X, "tocsr"):
        raise DataError("a sparse matrix, in which nothing is missing", "rows with holes: a dense array or a table")


def _beside(whole: Any, marks: pa.Table, like: Any) -> Any:
    """Rows with their indicators behind them."""
    if is_pandas(whole):
        return whole.join(framed(marks, like).set_index(whole.index))
    if isinstance(whole, pa.Table):
        return pa.Table.from_arrays([*whole.columns, *marks.columns], [*whole.schema.names, *marks.schema.names])
    if hasattr(whole, "hstack"):
        return whole.hstack(framed(marks, like))
    block = (
        np.stack([mark.to_numpy() for mark in marks.columns], axis=1)
        if marks.num_columns
        else np.zeros((len(whole), 0))
    )
    return np.concatenate([np.asarray(whole), block.astype(np.asarray(whole).dtype)], axis=1)
