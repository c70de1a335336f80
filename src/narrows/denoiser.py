"""The scikit-learn face of denoising: `fit` on rows as clean as there are, `transform` takes noise away.

An autoencoder of the recipe `denoising` inside, whose settings it passes on. For images and series it chooses a
network at half resolution whose code is wider than the row and keeps its positions (as Zhang et al. 2018, FFDNet): what
a denoiser must not do is forget detail, which narrow codes do. What this file does not know: how strong the noise is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from narrows.around import Around
from narrows.estimators import Autoencoder
from narrows.networks.conv import Conv
from narrows.networks.dense import WIDEST
from narrows.networks.grids import Grid
from narrows.sources.reading import KIND, fact, modeled
from narrows.sources.source import Source, open_source
from narrows.train.settings import Training

NETWORK = Conv(channels=(64,), depth=3, fold=2, norm="none", spatial=True)
LR = 0.003  # of that network, which has no normalization: at Muon's usual 0.02 it diverged on photographs


@dataclass(eq=False, repr=False)
class Denoiser(OneToOneFeatureMixin, TransformerMixin, Around):  # type: ignore[misc]
    """Takes noise away from rows, images and series.

    Args:
        noise: standard deviation of the noise to train with: in the data's units where these lie in [0, 1], as shares
            of the range where they are prepared to (bytes: 25 of 255 is 0.098), else in each column's own spread.
        mask: share of cells hidden in training, for rows with holes.
        salt: share of number cells set to the least or greatest value of their column.
        fill: give what was missing too, in place of leaving it missing.
        latent: numbers in a row's code; None takes 64 at each position of images and series, else as `Autoencoder`.
        network: as in `Autoencoder`; None for images and series is `NETWORK`, convolutions at half resolution.
        epochs: passes over the rows; None chooses by their number.
        lr: learning rate; None takes 0.003 for `NETWORK`, else the optimizer's own.
        training: further settings of the training.
        columns: column -> kind or transform, where those chosen are wrong.
        random_state: seed of every random draw; None draws one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        verbose: 0 silent, 1 a progress bar where there is a terminal, 2 a line an epoch.

    Attributes:
        autoencoder_: the fitted `Autoencoder`.
        model_: its `Model`.
        n_features_in_: columns seen in `fit`.
        feature_names_in_: their names; not there for arrays.
    """

    noise: float = 0.1
    _: KW_ONLY
    mask: float = 0.0
    salt: float = 0.0
    fill: bool = True
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
        """Trained on rows as clean as there are; the noise is added anew for each step."""
        chosen = grid_settings(X, self.columns or {}) if self.network is None and self.latent is None else {}
        recipe = f"denoising:noise={self.noise},mask={self.mask},salt={self.salt}"
        given = {name: value for name, value in self._passed().items() if value is not None}
        link = ",link=identity" if chosen else ""
        return Autoencoder(**{**chosen, **given, "recipe": recipe + link})

    def transform(self, X: Any) -> Any:
        """Rows without their noise, in the container that `fit` was given; images and series may be larger there."""
        check_is_fitted(self)
        return self.autoencoder_.denoise(X, fill=self.fill)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = Autoencoder().__sklearn_tags__()
        tags.input_tags = inner.input_tags
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def grid_settings(X: Any, columns: Mapping[str, str]) -> dict[str, Any]:
    """Settings of an `Autoencoder` for rows that are one image or series of one length; none for others.

    Args:
        X: as `Autoencoder.fit` takes it.
        columns: column -> kind or transform, as wished.
    """
    if not (isinstance(X, str | Path | Source) or getattr(X, "ndim", 2) > 2):
        return {}
    entries = modeled(open_source(X).schema)
    shape = tuple(getattr(entries[0].type, "shape", ())) if len(entries) == 1 else ()
    kind = columns.get(entries[0].name) or fact(entries[0], KIND) or ("image" if len(shape) > 1 else "")
    axes = {"image": 2, "series": 1}.get(kind, 0)
    if not axes or len(shape) not in (axes, axes + 1):
        return {}
    latent = prod(NETWORK.positions(Grid(shape[:axes], 1, 1))) * (NETWORK.channels or (1,))[-1]
    return {"network": NETWORK, "latent": latent, "lr": LR} if latent <= WIDEST else {}
