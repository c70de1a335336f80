"""Recipes: short functions that fill the slots, looked up by name.

To add one, write a function here and list it in `RECIPES`; how it is asked for is in `narrows.model.recipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from narrows.errors import SettingError
from narrows.model.corruptions import GaussianNoise, Masking
from narrows.model.latents import Deterministic, Gaussian
from narrows.model.likelihoods import Words
from narrows.model.objectives import Objective
from narrows.model.slots import Slots


def plain(code: str = "identity", link: str = "auto", likelihood: Words = "mse") -> Slots:
    """A plain autoencoder (Rumelhart, Hinton & Williams 1986): a narrow code and the squared error.

    Args:
        code: activation of the code.
        link: activation of the outputs, where `likelihood` is `mse`; `auto` is the sigmoid for data in [0, 1].
        likelihood: of the number cells.
    """
    return Slots(lambda size: Deterministic(size, code), likelihood, link)


def linear() -> Slots:
    """One linear map each way: reaches the subspace of PCA (Baldi & Hornik 1989)."""
    return Slots(Deterministic, link="identity", linear=True)


def denoising(noise: float = 0.1, mask: float = 0.2, likelihood: Words = "mse") -> Slots:
    """Reconstructs clean rows from corrupted ones (Vincent et al. 2008, 2010).

    Args:
        noise: standard deviation of the normal noise on numbers, in prepared units; 0 for none.
        mask: share of cells hidden; 0 for none.
        likelihood: of the number cells.

    Raises:
        SettingError: when both are 0.
    """
    parts = ([GaussianNoise(noise)] if noise else []) + ([Masking(mask)] if mask else [])
    if not parts:
        raise SettingError("denoising:noise=0,mask=0", "at least one of them above 0", "the recipe `plain`")
    return Slots(Deterministic, likelihood, corruptions=tuple(parts))


def vae(beta: float = 1.0, likelihood: Words = "auto") -> Slots:
    """A variational autoencoder (Kingma & Welling 2014; beta: Higgins et al. 2017).

    Args:
        beta: weight of the KL term; above 1 for more independent codes, below 1 for sharper reconstructions.
        likelihood: of the number cells.

    Raises:
        SettingError: for a negative beta.
    """
    if not 0 <= beta < inf:
        raise SettingError(f"vae:beta={beta}", "0 or more")
    return Slots(Gaussian, likelihood, objective=Objective({"kl": beta}))


RECIPES: dict[str, Callable[..., Slots]] = {f.__name__: f for f in (plain, linear, denoising, vae)}
