"""The scikit-learn face: fit, transform, inverse_transform, score_samples, and rows back in the container they came in.

Arrays, lists and data frames go through scikit-learn's own checks, so errors and attributes are those its users know;
paths, Arrow streams and sources go to the river as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from narrows.containers import as_fitted, container_of, is_pandas
from narrows.continued import refuse_given
from narrows.errors import SettingError
from narrows.fitting import Plan, fit
from narrows.networks.choice import Network
from narrows.sources.arrays import filled, tensor_to_array
from narrows.sources.source import Source, open_source
from narrows.tasks.denoise import denoise
from narrows.tasks.generate import generate
from narrows.tasks.purposes import Purpose, generation, going_on
from narrows.train.settings import Training, Watch


@dataclass(eq=False, repr=False)
class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """An autoencoder as a scikit-learn transformer.

    Args:
        latent: numbers in a row's code; None takes half of the cells, at most 16, and `auto` tries sizes.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them. None chooses by the width of the data.
        recipe: a name of `narrows.model.recipes.RECIPES`, with arguments as in `vae:beta=4`.
        network: `dense`, `conv`, `recurrent`, `transformer`, the settings of one of them (`Conv(channels=(16, 32))`)
            or a `Network` of all; None chooses by the data. Or the user's own `(encoder, decoder)` modules (see
            `narrows.model.building.build`). `hidden` comes before its own.
        epochs: passes over the rows; None chooses by their number.
        lr: learning rate; None takes the optimizer's own.
        training: further settings of the training.
        columns: column -> kind or transform, where those chosen are wrong: `{"x": "series"}` (see `narrows.Plan`). An
            unnamed array is the column `x`.
        random_state: seed of every random draw; None draws one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        verbose: 0 silent, 1 a progress bar where there is a terminal, 2 a line an epoch.

    Attributes:
        model_: the fitted `Model`, with everything the command line can do.
        history_: a record for each epoch: loss, validation loss, learning rate.
        n_features_in_: columns seen in `fit`.
        feature_names_in_: their names; not there for arrays.
    """

    latent: int | Literal["auto"] | None = None
    _: KW_ONLY
    hidden: Sequence[int] | None = None
    recipe: str = "plain"
    network: Any = None
    epochs: int | None = None
    lr: float | None = None
    training: Training | None = None
    columns: Mapping[str, str] | None = None
    random_state: int | np.random.RandomState | None = None
    device: str = "auto"
    verbose: int = 0

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        validation: Any = None,
        callbacks: Sequence[Callable[[dict[str, Any]], bool | None]] = (),
        run: str | Path | None = None,
        resume: bool = False,
    ) -> Self:
        """Train on rows.

        Args:
            X: array, SciPy sparse matrix (bags of items), data frame, path, Arrow stream or `Source`; missing cells are
                allowed.
            y: ignored.
            sample_weight: (n,) weight of each row.
            validation: rows to choose the best weights by; None holds out a share (`training.validation`).
            callbacks: each called with the record of every epoch; training stops when one returns True.
            run: folder for settings, metrics and checkpoints.
            resume: go on from the checkpoint in `run`, if there is one; `random_state` must be a number then.

        Raises:
            DataError: for rows that cannot be read or modeled.
            SettingError: for settings that do not fit.
        """
        rows = self._rows(X, reset=True)
        modules = self._modules()
        if resume and run is None:
            raise SettingError("resume=True without a run", hint="fit(..., run=FOLDER, resume=True)")
        folder = None if run is None else Path(run)
        watch = Watch(folder=folder, resume=resume, verbose=self.verbose, callbacks=tuple(callbacks))
        source = open_source(rows)
        purpose = self._purpose(source.schema)
        given: dict[str, Any] = {"validation": validation, "modules": modules, "watch": watch}
        self._train(source, purpose.settle(self._plan()), purpose, sample_weight, **given)
        if _beyond_scikit_learn(X):
            self.feature_names_in_ = np.array(self.model_.schema.names, dtype=object)
            self.n_features_in_ = len(self.feature_names_in_)
        self._container = container_of(X, rows)
        self._n_features_out = self.model_.code_size
        self._settled = self._asked()
        self._fitted(source)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Go on with new rows: `epochs` passes over them, from the weights there are. The first call is `fit`.

        Columns and how they are prepared, recipe, network and code stay as the first call settled them: levels that it
        did not know stay unseen. The optimizer begins anew, and what a task learnt after the fit is learnt anew
        from these rows, of which a share is held out as in `fit`.

        Args:
            X: rows as `fit` takes them, with the columns of the first call.
            y: ignored.
            sample_weight: (n,) weight of each row.

        Raises:
            DataError: for rows of other columns.
            SettingError: for a recipe, network, code or columns that were set to others since.
        """
        if not hasattr(self, "model_"):
            return self.fit(X, y, sample_weight)
        refuse_given([name for name, value in self._asked().items() if value != self._settled[name]])
        purpose = going_on(self.model_)
        source = self.model_.source(self._rows(X, reset=False))
        plan = replace(self._plan(), recipe=self.model_.recipe, latent=None, network=None, columns={})
        plan = replace(purpose.settle(plan), start=self.model_)
        self._train(source, plan, purpose, sample_weight, watch=Watch(verbose=self.verbose))
        self._fitted(source)
        return self

    def _train(self, source: Source, plan: Plan, purpose: Purpose, sample_weight: Any, **given: Any) -> None:
        """Fit a model, and keep it."""
        weight = None if sample_weight is None else _weights(sample_weight)
        self.model_ = fit(source, plan, learn=purpose.learn, core=purpose.core, weight=weight, **given)
        self.history_ = self.model_.facts["records"]

    def _asked(self) -> dict[str, Any]:
        """The parameters that the first fit settles."""
        return {name: getattr(self, name) for name in ("recipe", "latent", "hidden", "network", "columns")}

    def _fitted(self, source: Source) -> None:
        """What is kept of the training rows, once there is a model of them; nothing."""

    def transform(self, X: Any) -> np.ndarray:
        """(n, code size) float32 codes of rows."""
        check_is_fitted(self)
        return self.model_.encode(self._rows(X, reset=False))

    def inverse_transform(self, Z: Any) -> Any:
        """The rows that codes stand for, in the container that `fit` was given."""
        check_is_fitted(self)
        return self._container(self.model_.decode(np.asarray(Z)))

    def reconstruct(self, X: Any) -> Any:
        """The rows as the model gives them back, in the container that `fit` was given; holes are filled.

        A data frame keeps its index, so that `df - ae.reconstruct(df)` is what the model misses.
        """
        check_is_fitted(self)
        return self._container(self.model_.reconstruct(self._rows(X, reset=False)), like=X)

    def denoise(self, X: Any, *, fill: bool = True) -> Any:
        """Rows without their noise, in the container that `fit` was given (see `narrows.tasks.denoise.denoise`).

        Args:
            X: as in `reconstruct`; images and series may be of another size than in training.
            fill: give what was missing too, in place of leaving it missing.
        """
        check_is_fitted(self)
        return self._container(denoise(self.model_, self._rows(X, reset=False), fill=fill), like=X)

    def score_samples(self, X: Any) -> np.ndarray:
        """(n,) how well each row fits: higher is more normal."""
        check_is_fitted(self)
        return -self.model_.score(self._rows(X, reset=False))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`, for model selection."""
        return float(np.mean(self.score_samples(X)))

    def save(self, path: str | Path) -> None:
        """Write the fitted model to one file, for `narrows.load` and the command line."""
        check_is_fitted(self)
        self.model_.save(path)

    def _purpose(self, schema: pa.Schema) -> Purpose:
        """What the estimator asks of a fit of rows of this schema, beside what its parameters say."""
        return Purpose()

    def _rows(self, X: Any, reset: bool) -> Any:
        """Rows as the river takes them, after scikit-learn's checks where it has any."""
        if _beyond_scikit_learn(X):
            return X
        if is_pandas(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        if isinstance(X, torch.Tensor):
            X = tensor_to_array(X)
        elif isinstance(X, np.ma.MaskedArray):  # scikit-learn would take what is masked for values
            X = filled(X)
        rows = validate_data(
            self, X, reset=reset, dtype=None, accept_sparse=True, ensure_all_finite="allow-nan", ensure_min_samples=1
        )
        return rows if reset else as_fitted(rows, self._container)

    def _plan(self) -> Plan:
        network = Network.of(None if self._modules() else self.network)
        if self.hidden is not None:
            network = replace(network, dense=replace(network.dense, hidden=tuple(int(width) for width in self.hidden)))
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(2**31)
        training = self.training or Training()
        return Plan(
            self.recipe,
            self.latent,
            network,
            training,
            self.epochs,
            self.lr,
            int(seed),
            self.device,
            dict(self.columns or {}),
        )

    def _modules(self) -> dict[str, nn.Module] | None:
        if not isinstance(self.network, tuple | list):
            return None
        pair = tuple(self.network)
        if len(pair) != 2 or not all(isinstance(module, nn.Module) for module in pair):
            raise SettingError(f"network={self.network!r}", "settings of a network, or two modules (encoder, decoder)")
        return {"encoder": pair[0], "decoder": pair[1]}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.non_deterministic = False
        return tags


@dataclass(eq=False, repr=False)
class Generator(Autoencoder):
    """An autoencoder that makes new rows.

    Args:
        latent: numbers in a row's code; None chooses by the recipe, and `auto` tries sizes.
        hidden: as in `Autoencoder`.
        recipe: `auto` takes `conditional` for tables, which makes rows cell by cell, and `vae` for images, series and
            the like. Others do as well, since where codes lie is learnt.
        prior: of codes, unused by `conditional`: `mixture`, `flow`, `sequence` (for discrete codes), or `auto`, which
            tries what suits.
        network: as in `Autoencoder`, and so the rest.
        epochs: passes over the rows.
        lr: learning rate.
        training: further settings of the training.
        columns: column -> kind or transform.
        random_state: seed of every random draw of training; None draws one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        verbose: 0 silent, 1 a progress bar, 2 a line an epoch.
    """

    recipe: str = "auto"
    prior: str = "auto"

    def sample(
        self,
        n_samples: int = 1,
        *,
        where: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        random_state: int = 0,
    ) -> Any:
        """New rows, in the container that `fit` was given.

        Args:
            n_samples: how many.
            where: column -> value that all of them are to hold.
            temperature: below 1 for more usual rows, above 1 for more unusual ones.
            random_state: seed of the draws.

        Raises:
            SettingError: see `narrows.tasks.generate.generate`.
            DataError: for values in `where` that training never had, or not together.
        """
        check_is_fitted(self)
        return self._container(generate(self.model_, n_samples, random_state, where=where, temperature=temperature))

    def _purpose(self, schema: pa.Schema) -> Purpose:
        return generation(schema, self.recipe, self.prior)


def _beyond_scikit_learn(X: Any) -> bool:
    """Whether rows are of a kind that scikit-learn has no checks for: files, streams, images."""
    if isinstance(X, str | Path | Source):
        return True
    return not is_pandas(X) and (hasattr(X, "__arrow_c_stream__") or getattr(X, "ndim", 2) > 2)


def _weights(sample_weight: Any) -> np.ndarray:
    """Row weights; what they must be is checked by `narrows.fitting.fit`, but for the one that scikit-learn words."""
    weight = np.asarray(sample_weight)
    if weight.dtype.kind in "biuf" and not weight.any():
        raise SettingError("sample_weight, of which every weight is zero", "weights of some rows above 0")
    return weight
