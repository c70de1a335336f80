"""The scikit-learn face of denoising: its own checks, containers, sizes, and noise that is really taken away."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from narrows import Autoencoder, Denoiser, Dense, load
from narrows.denoiser import NETWORK, grid_settings
from narrows.errors import SettingError

UNEQUAL = "weights enter the loss; a repeated row also changes which rows a step draws, so training is alike, not equal"
EXPECTED = {f"check_sample_weight_equivalence_on_{form}_data": UNEQUAL for form in ("dense", "sparse")}


@parametrize_with_checks(
    [Denoiser(network=Dense(hidden=(8,)), epochs=3, random_state=0)], expected_failed_checks=lambda _: EXPECTED
)
@pytest.mark.filterwarnings("default")  # as for `Autoencoder`
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def stripes(rows, side, seed=0):
    draw = np.random.default_rng(seed)
    angle = draw.random((rows, 1, 1)) + np.arange(side) / 8 * draw.uniform(0.5, 1.5, (rows, 1, 1))
    return np.repeat(0.5 + 0.4 * np.sin(2 * np.pi * angle), side, axis=1).astype(np.float32)


def test_images_get_a_wide_spatial_code_and_lose_most_of_their_noise():
    denoiser = Denoiser(0.1, epochs=4, random_state=0).fit(stripes(320, 16))
    assert denoiser.model_.latent == 8 * 8 * 64
    assert denoiser.model_.network.columns["x"] == NETWORK
    for side in (16, 24):
        clean = stripes(50, side, seed=3)
        noisy = (clean + np.random.default_rng(1).normal(0, 0.1, clean.shape)).astype(np.float32)
        told = denoiser.transform(noisy)
        assert told.shape == clean.shape and told.dtype == np.float32
        assert np.square(told - clean).mean() < 0.3 * 0.1**2


def test_data_frames_come_back_with_index_types_and_holes(tmp_path):
    draw = np.random.default_rng(0)
    base = draw.normal(size=300)
    frame = pd.DataFrame({"a": base, "b": 2 * base + 1, "job": np.where(base > 0, "up", "down")}, index=range(5, 305))
    frame.iloc[3, 0] = np.nan
    frame.iloc[4, 2] = None
    settings = {"latent": 1, "epochs": 15, "mask": 0.1, "random_state": 0}
    filling = Denoiser(0.3, **settings).fit(frame)
    leaving = Denoiser(0.3, fill=False, **settings).fit(frame)
    full, left = filling.transform(frame), leaving.transform(frame)
    assert (full.index == frame.index).all() and (full.dtypes == frame.dtypes).all()
    assert full.notna().all().all()
    assert (left.isna() == frame.isna()).all().all()
    assert list(filling.get_feature_names_out()) == ["a", "b", "job"]
    filling.save(tmp_path / "m.narrows")
    assert load(tmp_path / "m.narrows").recipe.arguments["mask"] == 0.1
    assert not hasattr(filling, "inverse_transform")


def test_what_is_chosen_for_which_rows():
    assert grid_settings(np.zeros((5, 4)), {}) == {}
    assert grid_settings(pd.DataFrame({"a": [1.0]}), {}) == {}
    assert grid_settings(np.zeros((5, 12, 10, 3)), {})["latent"] == 6 * 5 * 64
    assert grid_settings(torch.zeros(5, 12, 2), {"x": "series"})["latent"] == 6 * 64
    assert grid_settings(np.zeros((5, 12, 2)), {"x": "series own"}) == {}
    assert grid_settings(np.zeros((5, 12, 10), np.float32), {"x": "number"}) == {}


def test_settings_are_passed_on_and_bad_ones_refused_in_fit():
    denoiser = clone(Denoiser(0.2, salt=0.1, latent=2, network="dense", epochs=1, random_state=3))
    denoiser.fit(np.random.default_rng(0).random((60, 4)))
    assert isinstance(denoiser.autoencoder_, Autoencoder)
    arguments = denoiser.model_.recipe.arguments
    assert (arguments["noise"], arguments["salt"], arguments["mask"]) == (0.2, 0.1, 0.0)
    with pytest.raises(SettingError, match="noise"):
        Denoiser(-1).fit(np.zeros((60, 4)))
    with pytest.raises(SettingError, match="above 0"):
        Denoiser(0).fit(np.zeros((60, 4)))
