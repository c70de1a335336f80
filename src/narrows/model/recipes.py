"""Recipes: short functions that fill the slots, looked up by name.

To add one, write a function here and list it in `RECIPES`; how it is asked for is in `narrows.model.recipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Literal

from narrows.errors import SettingError
from narrows.model.adversaries import CodeCritic, RowCritic
from narrows.model.augmentations import augmentations
from narrows.model.contractive import Contractive
from narrows.model.corruptions import Corruption, GaussianNoise, Hiding, Masking, PatchMasking, SaltAndPepper
from narrows.model.divergences import Discrepancy, Kernel, TotalCorrelation
from narrows.model.hierarchy import DEEPEST, Hierarchical
from narrows.model.latents import Deterministic, Gaussian, checked_nats
from narrows.model.likelihoods import Words
from narrows.model.numbers import checked_pieces
from narrows.model.objectives import Objective
from narrows.model.quantized import FiniteScalar, VectorQuantized
from narrows.model.slots import Slots
from narrows.model.sparse import L1Sparse, RateSparse, TopK


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


def masked(
    rate: float = 0.75,
    patch: int = 4,
    vary: bool = False,
    shown: float = 1.0,
    stagger: bool = False,
    likelihood: Words = "mse",
    augment: str = "",
) -> Slots:
    """A masked autoencoder (He et al. 2022): rows are told from a few of their patches.

    Patches are squares of images and spans of series, sounds and texts; cells without a grid are hidden one by one, so
    that a table is learnt cell from cell. Unlike He et al.'s, the loss counts the patches that were shown too, unless
    `shown` says otherwise, so that rows without holes are reconstructed as well; and the encoder reads hidden patches
    as empty in place of skipping them.

    Args:
        rate: share of patches hidden.
        patch: positions a side of a patch.
        vary: hide of each row a share of its own, from none up to `rate`.
        shown: weight of the cells that were shown.
        stagger: give the members of an ensemble codes of the full size, half of it and a quarter, in turn.
        likelihood: of the number cells.
        augment: see `plain`.
    """
    parts, objective = (PatchMasking(rate, patch, vary),), Objective(shown=shown)
    latent = partial(Deterministic, stagger=stagger)
    return Slots(latent, likelihood, augmentations=augmentations(augment), corruptions=parts, objective=objective)


def conditional(shown: float = 0.05, pieces: int = 0, likelihood: Words = "bins") -> Slots:
    """Tells any cells of a row from any others: for filling holes, and for making rows cell by cell.

    A masked autoencoder of single cells that sees of each row a share from nothing to everything (Ivanov et al. 2019),
    and tells numbers by the chances of bins, so that draws have the shape of the data. Its code need not be narrow.

    Args:
        shown: weight of the cells that were shown: little, as telling them is easy and not what it is for, but enough
            that rows without holes are reconstructed.
        pieces: that numbers are read in, beside as they are; 16 help to fill large tables, not to make rows.
        likelihood: of the number cells.
    """
    hidden, told = (Hiding(),), Objective(shown=shown)
    return Slots(Deterministic, likelihood, corruptions=hidden, objective=told, pieces=checked_pieces(pieces))


def vae(
    beta: float = 1.0,
    likelihood: Words = "auto",
    augment: str = "",
    free_bits: float = 0.0,
    warm_up: float = 0.0,
    cycles: int = 1,
) -> Slots:
    """A variational autoencoder (Kingma & Welling 2014; beta: Higgins et al. 2017).

    Args:
        beta: weight of the KL term; above 1 for more independent codes, below 1 for sharper reconstructions.
        likelihood: of the number cells.
        augment: see `plain`.
        free_bits: nats that each number of the code may hold at no cost, against codes that hold nothing.
        warm_up: share of each cycle in which beta rises from 0.
        cycles: times that it rises.

    Raises:
        SettingError: for values out of range, or cycles in which nothing rises.
    """
    objective = _variational("vae", ("kl",), beta, free_bits, warm_up, cycles)
    latent = partial(Gaussian, free=free_bits)
    return Slots(latent, likelihood, augmentations=augmentations(augment), objective=objective)


def iwae(samples: int = 5, likelihood: Words = "auto", augment: str = "") -> Slots:
    """A variational autoencoder with the importance-weighted bound of several codes a row (Burda et al. 2016).

    The encoder learns by the doubly reparametrized gradient (Tucker et al. 2019), which more samples make no noisier.

    Args:
        samples: codes drawn for each row; more bring the bound nearer to the likelihood, and cost as many decodings.
        likelihood: of the number cells.
        augment: see `plain`.

    Raises:
        SettingError: for less than one sample.
    """
    objective = Objective(samples=samples, importance=True)
    return Slots(Gaussian, likelihood, augmentations=augmentations(augment), objective=objective)


def hierarchical(
    depth: int = 2,
    beta: float = 1.0,
    likelihood: Words = "auto",
    augment: str = "",
    free_bits: float = 0.0,
    warm_up: float = 0.2,
    cycles: int = 1,
) -> Slots:
    """A variational autoencoder whose code has levels, each drawn given those above (Sonderby et al. 2016).

    Args:
        depth: levels, two or more.
        beta: weight of each level's KL term (`kl1` is the bottom level's).
        likelihood: of the number cells.
        augment: see `plain`.
        free_bits: nats that each number of the code may hold at no cost.
        warm_up: share of each cycle in which beta rises from 0; without it upper levels are easily left unused.
        cycles: times that it rises.

    Raises:
        SettingError: for values out of range, or cycles in which nothing rises.
    """
    terms = tuple(f"kl{level + 1}" for level in range(min(depth, DEEPEST)))
    objective = _variational("hierarchical", terms, beta, free_bits, warm_up, cycles)
    latent = partial(Hierarchical, depth=depth, free=free_bits)
    return Slots(latent, likelihood, augmentations=augmentations(augment), objective=objective)


def _variational(
    recipe: str, terms: tuple[str, ...], beta: float, free_bits: float, warm_up: float, cycles: int
) -> Objective:
    """Beta for each term, and for what fills them up to the free nats."""
    if not 0 <= beta < inf:
        raise SettingError(f"{recipe}:beta={beta}", "0 or more")
    if cycles > 1 and not warm_up:
        raise SettingError(f"{recipe}:cycles={cycles},warm_up=0", "a warm_up above 0, or one cycle")
    weights = dict.fromkeys((*terms, "free") if checked_nats(free_bits) else terms, beta)
    return Objective(weights, warm_up, cycles)


def sparse(
    penalty: Literal["l1", "kl"] = "l1",
    weight: float = 0.1,
    activation: str = "auto",
    rate: float = 0.05,
    patience: int = 20,
    likelihood: Words = "mse",
) -> Slots:
    """A code of many numbers, of which a row uses few: how few is decided by a cost (Olshausen & Field 1996; Ng 2011).

    Args:
        penalty: `l1`, the absolute values of a row's code in units of each number's own spread, so that a small code
            under a large decoder gains nothing; or `kl`, between `rate` and the mean of each number over a batch.
        weight: of the penalty, beside errors summed over the row's cells.
        activation: of the code: by default `relu` for `l1`, and `sigmoid` for `kl`, which knows no other.
        rate: the mean that `kl` asks of each number.
        patience: steps that a unit is 0 for every row after which `l1` revives it; 0 never revives.
        likelihood: of the number cells.

    Raises:
        SettingError: for values out of range, or `kl` with another activation.
    """
    objective = Objective({"sparsity": weight})
    if penalty == "l1":
        link = "relu" if activation == "auto" else activation
        return Slots(partial(L1Sparse, link=link, patience=patience), likelihood, objective=objective)
    if activation not in ("auto", "sigmoid"):
        raise SettingError(
            f"sparse:penalty=kl,activation={activation}", "sigmoid, whose values are rates", "penalty=l1"
        )
    return Slots(partial(RateSparse, rate=rate), likelihood, objective=objective)


def topk(k: int | Literal["auto"] = "auto", patience: int = 20, likelihood: Words = "mse") -> Slots:
    """A code of many numbers, of which exactly the k largest stay (Makhzani & Frey 2014; Gao et al. 2024).

    Args:
        k: how many; by default an eighth of the code, at least one.
        patience: steps without firing after which a unit is revived; 0 never revives.
        likelihood: of the number cells.

    Raises:
        SettingError: for values out of range.
    """
    if k != "auto" and k < 1:
        raise SettingError(f"topk:k={k}", "1 or more, or auto")
    if patience < 0:
        raise SettingError(f"topk:patience={patience}", "0 or more steps")
    return Slots(lambda size: TopK(size, max(1, size // 8) if k == "auto" else k, patience), likelihood)


def vq(levels: int = 256, dim: int | Literal["auto"] = "auto", beta: float = 0.25, likelihood: Words = "mse") -> Slots:
    """A discrete code: each few numbers of it are the nearest entry of a learnt codebook (van den Oord et al. 2017).

    Args:
        levels: entries of the codebook; no more than there are rows.
        dim: numbers of an entry, which must divide the code; by default the most that do up to 4.
        beta: weight of the encoder's commitment to the entries chosen; 0.25 as the authors.
        likelihood: of the number cells.

    Raises:
        SettingError: for values out of range.
    """
    objective = Objective({"commitment": beta})
    if dim != "auto":
        return Slots(partial(VectorQuantized, levels=levels, dim=dim), likelihood, objective=objective)

    def divided(size: int) -> VectorQuantized:
        return VectorQuantized(size, levels, next(width for width in (4, 3, 2, 1) if size % width == 0))

    return Slots(divided, likelihood, objective=objective)


def fsq(levels: int = 8, likelihood: Words = "mse") -> Slots:
    """A discrete code without a codebook: each number is rounded to a few values (Mentzer et al. 2024).

    Args:
        levels: values of each number, two or more.
        likelihood: of the number cells.
    """
    return Slots(partial(FiniteScalar, levels=levels), likelihood)


def contractive(weight: float = 0.1, code: str = "identity", draws: int = 1, likelihood: Words = "mse") -> Slots:
    """A plain autoencoder whose code moves little when a row does (Rifai et al. 2011).

    Args:
        weight: of the squared norm of the code's Jacobian; 0.1 as the authors.
        code: activation of the code; the authors' was `sigmoid`.
        draws: random projections by which the norm is estimated where the encoder has hidden layers; where it has none
            the norm is exact.
        likelihood: of the number cells.
    """
    penalty = partial(Contractive, draws=draws)
    objective = Objective({Contractive.name: weight})
    return Slots(lambda size: Deterministic(size, code), likelihood, objective=objective, penalties=(penalty,))


def wae(weight: float = 10.0, kernel: Kernel = "imq", likelihood: Words = "mse") -> Slots:
    """A Wasserstein autoencoder: codes together like normal draws, none by itself (Tolstikhin et al. 2018).

    Args:
        weight: of the discrepancy (MMD) between a batch's codes and normal ones; 10 as the authors on MNIST.
        kernel: `imq` or `rbf`, see `narrows.model.divergences.mmd`.
        likelihood: of the number cells.
    """
    objective = Objective({Discrepancy.name: weight})
    return Slots(_normal, likelihood, objective=objective, penalties=(lambda _: Discrepancy(kernel),))


def tcvae(
    beta: float = 4.0,
    likelihood: Words = "auto",
    augment: str = "",
    free_bits: float = 0.0,
    warm_up: float = 0.0,
    cycles: int = 1,
) -> Slots:
    """A variational autoencoder whose code's numbers are to be independent (Chen et al. 2018, beta-TCVAE).

    Where `vae:beta=4` asks for independence by weighing the whole KL, this weighs the part of it that measures it.

    Args:
        beta: weight of the total correlation; 1 is a plain variational autoencoder.
        likelihood: of the number cells.
        augment: see `plain`.
        free_bits: nats that each number of the code may hold at no cost, against codes that hold nothing.
        warm_up: share of each cycle in which the weights of the KL and of the total correlation rise from 0.
        cycles: times that they rise.

    Raises:
        SettingError: for a beta below 1, other values out of range, or cycles in which nothing rises.
    """
    if not 1 <= beta < inf:
        raise SettingError(f"tcvae:beta={beta}", "1 or more", "the recipe `vae`")
    objective = _variational("tcvae", ("kl",), 1.0, free_bits, warm_up, cycles)
    objective = replace(objective, weights={**objective.weights, TotalCorrelation.name: beta - 1})
    latent, changes = partial(Gaussian, free=free_bits), augmentations(augment)
    return Slots(latent, likelihood, augmentations=changes, objective=objective, penalties=(TotalCorrelation,))


def aae(weight: float = 1.0, likelihood: Words = "mse") -> Slots:
    """An adversarial autoencoder: a critic cannot tell its codes from normal draws (Makhzani et al. 2016).

    Args:
        weight: of fooling the critic.
        likelihood: of the number cells.
    """
    return Slots(_normal, likelihood, objective=Objective({CodeCritic.name: weight}), penalties=(CodeCritic,))


def vaegan(weight: float = 1.0, features: int = 64, likelihood: Words = "auto") -> Slots:
    """A variational autoencoder with a critic of rows: errors count by how they look, too (Larsen et al. 2016).

    For rows of numbers alone, such as images, series and sounds.

    Args:
        weight: of looking like the row and of fooling the critic, beside the likelihood.
        features: numbers by which the critic knows a row.
        likelihood: of the number cells.
    """
    penalty = partial(RowCritic, features=features)
    return Slots(Gaussian, likelihood, objective=Objective({RowCritic.name: weight}), penalties=(penalty,))


def _normal(size: int) -> Deterministic:
    """A code that a penalty draws to a standard normal prior."""
    return Deterministic(size, normal=True)


RECIPES: dict[str, Callable[..., Slots]] = {
    f.__name__: f
    for f in (
        plain,
        linear,
        denoising,
        masked,
        conditional,
        vae,
        iwae,
        hierarchical,
        sparse,
        topk,
        vq,
        fsq,
        contractive,
        wae,
        tcvae,
        aae,
        vaegan,
    )
}
