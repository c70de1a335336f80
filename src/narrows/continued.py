"""Going on from a fitted model with new rows: what stays, and which rows are not of its kind.

Columns and how they are prepared, recipe, network, code and weights stay; levels that the model does not know stay
unseen. Optimizer, schedules and what tasks learnt begin anew. What this file does not know: how training is done.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any

from narrows.errors import DataError, FitWarning, SettingError
from narrows.fitted import Model
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.prepare.arrow_types import Nature, is_tensor, nature, parse_type
from narrows.sources.reading import ASIDE, fact
from narrows.sources.source import Source

SHOWN = 8  # names in a message
ALIKE: set[tuple[Nature, Nature]] = {  # trained, new: what may stand for another
    ("number", "flag"),
    ("flag", "number"),
    ("text", "number"),  # numbers have a text each
    ("text", "flag"),
    ("text", "date"),
    ("date", "text"),  # dates are written so, and what is none is refused by its row
    ("tensor", "ragged"),
    ("ragged", "tensor"),
    ("map", "text"),
    ("text", "map"),
}


@dataclass(frozen=True)
class Start:
    """A fitted model that training goes on from. Args: model: it stays as it is."""

    model: Model

    def refuse_settings(self, recipe: str | Recipe, latent: int | str | None, network: Any, columns: Any) -> None:
        """Check that nothing is wished for that the model has settled already.

        Raises:
            SettingError: naming the setting.
        """
        model = self.model
        settled = {
            f"recipe={str(Recipe.parse(recipe))!r}": Recipe.parse(recipe) not in (Recipe.parse("plain"), model.recipe),
            f"latent={latent}": latent not in (None, model.latent),
            f"network={network!r}": Network.of(network) not in (Network(), model.network),
            f"columns={dict(columns)}": bool(columns),
        }
        refuse_given([name for name, other in settled.items() if other])

    def refuse_changed(self, source: Source) -> None:
        """Check that rows have the columns that the model was trained on: all of them, no others, of the same nature.

        A lone matrix and a table of numbers stand for each other, as everywhere, and are checked when they are read.

        Raises:
            DataError: naming the columns.
        """
        entries = {entry.name: entry.type for entry in source.schema if not fact(entry, ASIDE)}
        schema = self.model.preparer.schema
        lone = [column for column in schema if column.shape]
        if (len(schema) == 1 and lone) or (len(entries) == 1 and is_tensor(next(iter(entries.values())))):
            return
        missing = [name for name in schema.names if name not in entries]
        new = [name for name in entries if name not in schema.names]
        wanted = f"the {len(schema)} columns that the model was trained on"
        if missing:
            raise DataError(f"{source.name} has no column {_listed(missing)}", wanted)
        if new:
            hint = "leaving them out, or a fit from the beginning"
            raise DataError(f"{source.name} has columns that the model does not know: {_listed(new)}", wanted, hint)
        for column in schema:
            arrow = entries[column.name]
            before: Nature = "tensor" if column.shape else nature(parse_type(column.type), column.name)
            now = nature(arrow, column.name)
            if before != now and "empty" not in (before, now) and (before, now) not in ALIKE:
                got = f"{source.name}: column {column.name!r} came as {arrow} ({now})"
                raise DataError(got, f"{column.type} ({before}), as in training", "mending it, or leaving it empty")

    def module(self) -> AutoencoderModule:
        """A copy of the model's module to train on."""
        return copy.deepcopy(self.model.module)

    def before(self) -> dict[str, int]:
        """Rows and epochs of all trainings up to this one."""
        facts = self.model.facts
        earlier = facts.get("before") or {}
        return {name: int(facts.get(name) or 0) + int(earlier.get(name, 0)) for name in ("rows", "epochs")}

    def tell_lost(self, model: Model) -> None:
        """Warn of what tasks had learnt and nobody learnt anew: of the old rows, it would be stale."""
        lost = sorted(self.model.parts.keys() - model.parts.keys())
        if lost:
            text = f"left out, since not learnt anew from these rows: {', '.join(lost)}"
            warnings.warn(text, FitWarning, stacklevel=3)


def refuse_given(given: list[str]) -> None:
    """Refuse settings that a model to go on from has settled.

    Raises:
        SettingError: naming them, if there are any.
    """
    if given:
        got = f"{', '.join(given)} for a model to go on from"
        raise SettingError(got, "recipe, network, code and columns as they are in it", "a fit from the beginning")


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown
