"""Recipes: short functions that fill the slots, looked up by name.

A recipe is written `name` or `name:argument=value,argument=value` (`vae:beta=4`, `plain:likelihood.pay=gaussian(0.1)`)
wherever one is asked for, and is kept in the model file as its name and arguments. To add one, write a function here
and list it in `RECIPES`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pydantic
from torch import nn

from narrows.errors import SettingError
from narrows.model.corruptions import GaussianNoise, Masking
from narrows.model.latents import Deterministic, Gaussian, Latent
from narrows.model.likelihoods import Words


@dataclass(frozen=True)
class Slots:
    """What a recipe chooses.

    Args:
        latent: size of the code -> the latent.
        likelihood: family of the number cells, one word or a word by column (see `narrows.model.likelihoods`).
        link: activation of the outputs of squared-error cells.
        corruptions: applied in order, in training.
        weights: of the latent's terms.
        linear: whether encoder and decoder are one linear map each, whatever network was asked for.
    """

    latent: Callable[[int], Latent]
    likelihood: Words = "mse"
    link: str = "auto"
    corruptions: tuple[nn.Module, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    linear: bool = False

    @property
    def can_copy(self) -> bool:
        """Whether a code as wide as the data could hold it all: neither latent nor corruption stands in the way."""
        return not self.corruptions and isinstance(self.latent(1), Deterministic)


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
    return Slots(Gaussian, likelihood, weights={"kl": beta})


RECIPES: dict[str, Callable[..., Slots]] = {f.__name__: f for f in (plain, linear, denoising, vae)}


@dataclass(frozen=True)
class Recipe:
    """A recipe's name and its arguments, defaults included; what the model file keeps of it."""

    name: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, recipe: str | Recipe) -> Recipe:
        """The recipe that `name` or `name:argument=value,...` asks for.

        Raises:
            SettingError: for an unknown name or argument, or a value that does not fit.
        """
        if isinstance(recipe, Recipe):
            return recipe
        if not isinstance(recipe, str):
            raise SettingError(f"recipe {recipe!r}", f"the name of one: {', '.join(RECIPES)}")
        name, _, rest = recipe.partition(":")
        pairs = [part.partition("=") for part in rest.split(",") if part.strip()]
        arguments: dict[str, Any] = {}
        for key, _, value in pairs:
            argument, _, column = key.strip().partition(".")
            if column:
                arguments.setdefault(argument, {})[column] = value.strip()
            else:
                arguments[argument] = value.strip()
        return cls.of(name.strip(), arguments)

    @classmethod
    def of(cls, name: str, arguments: Mapping[str, Any]) -> Recipe:
        """The recipe of this name, its arguments checked and completed.

        Raises:
            SettingError: as `parse`.
        """
        if name not in RECIPES:
            raise SettingError(f"recipe {name!r}", f"one of {', '.join(RECIPES)}")
        parameters = inspect.signature(RECIPES[name], eval_str=True).parameters
        unknown = sorted(set(arguments) - set(parameters))
        if unknown:
            raise SettingError(
                f"recipe {name} has no argument {unknown[0]!r}", f"among {', '.join(parameters) or 'none'}"
            )
        complete = {key: p.default for key, p in parameters.items()} | dict(arguments)
        for key, value in complete.items():
            wanted = parameters[key].annotation
            try:
                complete[key] = pydantic.TypeAdapter(wanted).validate_python(value)
            except pydantic.ValidationError:
                raise SettingError(f"{name}:{key}={value}", f"a {getattr(wanted, '__name__', wanted)}") from None
        recipe = cls(name, complete)
        recipe.slots()
        return recipe

    def slots(self) -> Slots:
        """The slots, freshly filled."""
        return RECIPES[self.name](**self.arguments)

    def __str__(self) -> str:
        words = []
        for key, value in self.arguments.items():
            by_column = value.items() if isinstance(value, dict) else ()
            words += [f"{key}.{column}={word}" for column, word in by_column] or [f"{key}={value}"]
        return f"{self.name}:{','.join(words)}" if words else self.name
