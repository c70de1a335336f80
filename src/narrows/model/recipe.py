"""A recipe as people write it and model files keep it: a name and its arguments.

`name` or `name:argument=value,argument=value` (`vae:beta=4`, `plain:likelihood.pay=gaussian(0.1)`) wherever one is
asked for. What each does is in `narrows.model.recipes`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import pydantic

from narrows.errors import SettingError
from narrows.model.recipes import RECIPES
from narrows.model.slots import Slots


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
                raise SettingError(f"{name}:{key}={value}", _said(wanted)) from None
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


def _said(wanted: Any) -> str:
    """A type as words: `a float`, `l1 or kl`, `int or auto`."""
    words = get_args(wanted)
    if not words or isinstance(wanted, type):
        return f"a {getattr(wanted, '__name__', wanted)}"
    return " or ".join(_said(word).removeprefix("a ") if not isinstance(word, str) else word for word in words)
