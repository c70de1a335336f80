"""Recipes: short functions that fill the slots, looked up by name.

To add one, write a function here and list it in `RECIPES`; how it is asked for is in `narrows.model.recipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from narrows.errors import SettingError
from narrows.model.augmentations import augmentations
from narrows.model.corruptions import Corruption, GaussianNoise, Masking, PatchMasking, SaltAndPepper
from narrows.model.latents import Deterministic, Gaussian
from narrows.model.likelihoods import Words
from narrows.model.objectives import Objective
from narrows.model.slots import Slots


def plain(code: str = "identity", link: str = "auto", likelihood: Words = "mse", augment: str = "") -> Slots:
    """A plain autoencoder (Rumelhart, Hinton & Williams 1986): a narrow code and the squared error.

    Args:
        code: activation of the code.
        link: activation of the outputs, where `likelihood` is `mse`; `auto` is the sigmoid for data in [0, 1].
        likelihood: of the number cells.
        augment: what is done to the rows to be reconstructed, anew for each step: `shift`, `shift(3)` and `flip` of
            images, `binarize` of cells in [0, 1], or several, as in `shift+flip` (see `narrows.model.augmentations`).
    """
    return Slots(lambda size: Deterministic(size, code), likelihood, link, augmentations(augment))


def linear() -> Slots:
    """One linear map each way: reaches the subspace of PCA (Baldi & Hornik 1989)."""
    return Slots(Deterministic, link="identity", linear=True)


def denoising(
    noise: float = 0.1,
    mask: float = 0.2,
    salt: float = 0.0,
    likelihood: Words = "mse",
    link: str = "auto",
    augment: str = "",
) -> Slots:
    """Reconstructs clean rows from corrupted ones (Vincent et al. 2008, 2010).

    Args:
        noise: standard deviation of the normal noise on numbers, in prepared units; 0 for none. Pixels are prepared to
            [0, 1]: the noise that the literature on images calls 25 is 25 / 255 = 0.098.
        mask: share of cells hidden; 0 for none.
        salt: share of number cells set to the least or greatest value of their column; 0 for none.
        likelihood: of the number cells.
        link: activation of the outputs, where `likelihood` is `mse`; `auto` is the sigmoid for data in [0, 1].
        augment: see `plain`.

    Raises:
        SettingError: when all three are 0.
    """
    parts: list[Corruption] = [GaussianNoise(noise)] if noise else []
    parts += [SaltAndPepper(salt)] if salt else []
    parts += [Masking(mask)] if mask else []
    if not parts:
        asked = "denoising:noise=0,mask=0,salt=0"
        raise SettingError(asked, "at least one of them above 0", "the recipe `plain`")
    return Slots(Deterministic, likelihood, link, augmentations(augment), tuple(parts))


def masked(rate: float = 0.75, patch: int = 4, likelihood: Words = "mse", augment: str = "") -> Slots:
    """A masked autoencoder (He et al. 2022): rows are told from a few of their patches.

    Patches are squares of images and spans of series, sounds and texts; cells without a grid are hidden one by one, so
    that a table is learnt cell from cell. Unlike He et al.'s, the loss counts the patches that were shown too, so that
    rows without holes are reconstructed as well, and the encoder reads hidden patches as empty in place of skipping
    them.

    Args:
        rate: share of patches hidden.
        patch: positions a side of a patch.
        likelihood: of the number cells.
        augment: see `plain`.
    """
    parts = (PatchMasking(rate, patch),)
    return Slots(Deterministic, likelihood, augmentations=augmentations(augment), corruptions=parts)


def vae(beta: float = 1.0, likelihood: Words = "auto", augment: str = "") -> Slots:
    """A variational autoencoder (Kingma & Welling 2014; beta: Higgins et al. 2017).

    Args:
        beta: weight of the KL term; above 1 for more independent codes, below 1 for sharper reconstructions.
        likelihood: of the number cells.
        augment: see `plain`; `binarize` for likelihoods of images as the literature reports them.

    Raises:
        SettingError: for a negative beta.
    """
    if not 0 <= beta < inf:
        raise SettingError(f"vae:beta={beta}", "0 or more")
    return Slots(Gaussian, likelihood, augmentations=augmentations(augment), objective=Objective({"kl": beta}))


RECIPES: dict[str, Callable[..., Slots]] = {f.__name__: f for f in (plain, linear, denoising, masked, vae)}
