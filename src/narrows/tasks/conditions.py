"""Codes of rows that hold given values: draws from the prior, each weighed by how probable it makes these.

    codes from the prior -> p(given | code) -> weights -> as many codes as rows are wanted, drawn by weight

Self-normalized importance resampling: right in the limit for any decoder, with no training for the condition. Its price
is that a rare condition leaves few codes of many; how many they are worth (the effective sample size) is said, and more
are drawn while that helps.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import log
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataError, DataWarning, SettingError
from narrows.fitted import Model
from narrows.model.likelihoods import choose_families
from narrows.model.priors import Prior
from narrows.prepare.categories import Levels
from narrows.schema import Batch, Column
from narrows.tasks.holes import Holes
from narrows.train.randomness import kept, seed_step

POOL = 4_096  # codes drawn at once
MOST = 32  # times that so many are drawn
WORK = 1 << 31  # numbers that the decoder may say in all
STREAM = 1 << 40  # numbers its draws apart from those of rows
UNLIKELY = log(1e-4)  # against the likeliest values: for a number, further off than four standard deviations


@dataclass(frozen=True)
class Given:
    """Values that generated rows are to hold.

    Args:
        values: column -> value, as it was given.
        row: one prepared row, of which only these were seen.
    """

    values: dict[str, Any]
    row: Batch

    def repeated(self, rows: int) -> Batch:
        """So many such rows."""
        return self.row[torch.zeros(rows, dtype=torch.long)]

    def put_into(self, numbers: Tensor, codes: Tensor) -> None:
        """Write the values over cells (B, N) and (B, M)."""
        known = self.row.mask()[0]
        count = numbers.shape[1]
        numbers[:, known[:count]] = self.row.numbers[:, known[:count]]
        codes[:, known[count:]] = self.row.codes[:, known[count:]]

    def put_into_rows(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Write the values as they were given over columns that can hold them so; the rest keep the prepared ones."""
        for name, value in self.values.items():
            place = rows.schema.get_field_index(name)
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                exact = pa.repeat(pa.scalar(value).cast(rows.schema.field(place).type), len(rows))
                rows = rows.set_column(place, rows.schema.field(place), exact)
        return rows


def read_given(model: Model, where: Mapping[str, Any]) -> Given:
    """The condition that values of some columns are.

    Args:
        model: whose columns they are.
        where: column -> value, or a text that reads as one.

    Raises:
        DataError: for an unknown column, no value, or a level that training did not have.
        SettingError: for columns that are arrays, texts or bags, or whose likelihood is no density; for ensembles.
    """
    if model.members:
        raise SettingError(f"given values with an ensemble of {model.members}", "a model of one member")
    for name in where:
        _check_column(model, model.schema[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # what it warns of is refused below
        row = model.preparer.prepare(_of_values(model, where)).dense()
    known = torch.zeros(1, model.schema.cells, dtype=torch.bool)
    for name, value in where.items():
        span = model.schema.spans[name]
        if not row.mask()[:, span].all():
            raise DataError(f"no value for column {name!r}: {value!r}", "one that rows are to hold")
        known[:, span] = True
        _check_level(model, model.schema[name], row, value)
    return Given(dict(where), row.with_seen(known))


def empty_row(model: Model) -> Batch:
    """One prepared row of which nothing was seen."""
    row = model.preparer.prepare(_of_values(model, {})).dense()
    return row.with_seen(torch.zeros(1, model.schema.cells, dtype=torch.bool))


def _of_values(model: Model, where: Mapping[str, Any]) -> pa.RecordBatch:
    """One raw row that holds these values and nothing else."""
    fields = model.preparer.arrow_schema
    arrays = [_one(where[field.name], field.type) if field.name in where else _missing(field.type) for field in fields]
    return pa.RecordBatch.from_arrays(arrays, fields.names)


def check_together(holes: Holes, given: Given) -> None:
    """Refuse values that a model which tells any cells from any others does not believe of one row.

    Raises:
        DataError: where one of them, told from the others, is less than a ten-thousandth as probable as the likeliest.
    """
    schema, known = holes.schema, given.row.mask()
    for name in given.values if len(given.values) > 1 else ():
        span = schema.spans[name]
        seen = known.clone()
        seen[:, span] = False
        odds = float(holes.odds(given.row, given.row.with_seen(seen))[0, span].min())
        if odds < UNLIKELY:
            others = ", ".join(f"{other}={value}" for other, value in given.values.items() if other != name)
            got = f"{name}={given.values[name]} together with {others}, which the model thinks all but impossible"
            raise DataError(got, "values that occur together in rows like those of training")


def _one(value: Any, arrow: Any) -> Any:
    """A given value as a column, of its own type where it can be cast, as texts of the command line are."""
    with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.repeat(pa.scalar(value).cast(arrow), 1)
    return pa.array([value])


def _missing(arrow: Any) -> Any:
    """One missing value of an Arrow type."""
    if isinstance(arrow, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(arrow, pa.nulls(1, arrow.storage_type))
    return pa.nulls(1, arrow)


def _check_column(model: Model, column: Column) -> None:
    """Refuse what no condition can be put on."""
    what = f"a given value for column {column.name!r}"
    if not column.cells:
        raise DataError(f"{what}, of which training had none", "another column")
    if column.shape or column.grid or column.kind in ("tokens", "bag"):
        raise SettingError(f"{what} of kind {column.kind}", "one of single numbers, categories or dates")
    word = choose_families(model.schema, model.recipe.slots().likelihood).get(column.name, "categorical")
    if word.startswith(("mse", "huber")):
        hint = "the recipe vae, or likelihood=auto"
        raise SettingError(f"{what}, whose likelihood {word} is no density", "a density", hint)


def _check_level(model: Model, column: Column, row: Batch, value: Any) -> None:
    if not column.categorical:
        return
    if int(row.codes[0, model.schema.spans[column.name].start - model.schema.numbers]) >= column.levels:
        levels = model.preparer.layouts[column.name]
        known = levels.values[:10].to_pylist() if isinstance(levels, Levels) else []
        more = ", ..." if column.levels > len(known) else ""
        wanted = f"one of {', '.join(map(str, known))}{more}"
        raise DataError(f"{value!r} in column {column.name!r}, a level that training did not have", wanted)


@dataclass(frozen=True)
class Chosen:
    """Codes that go with given values.

    Args:
        codes: (n, code_size).
        effective: how many equally weighted draws from the prior they are worth.
        drawn: codes that the prior was asked for.
    """

    codes: Tensor
    effective: float
    drawn: int


def choose_codes(model: Model, prior: Prior, given: Given, rows: int, seed: int, temperature: float) -> Chosen:
    """Codes of rows that hold given values.

    More codes are drawn from the prior until they are worth as many as rows are wanted, or 131,072 were drawn.

    Args:
        model: whose decoder says how probable the values are.
        prior: of its codes.
        given: the values.
        rows: how many.
        seed: of the draws.
        temperature: of the prior.

    Raises:
        DataError: where no code makes the values likely: they contradict each other, or what training showed.
    """
    device = model.module.device
    pool, weights, best = [], [], float("-inf")
    most = max(1, min(MOST, WORK // (POOL * model.outputs)))
    with kept(device), torch.no_grad():
        for number in range(most):
            seed_step(seed, STREAM + number, device)
            pool.append(prior.sample(POOL, temperature))
            weight, likely = _log_weights(model, given, pool[-1])
            weights.append(weight)
            best = max(best, float(likely.max()))
            shares = torch.cat(weights).softmax(0)
            effective = float(1 / shares.square().sum())
            if effective >= rows:
                break
        if best < UNLIKELY:
            words = ", ".join(f"{name}={value}" for name, value in given.values.items())
            got = f"no code of {POOL * len(pool):,} makes {words} likely"
            raise DataError(got, "values that occur together in rows like those of training")
        places = torch.searchsorted(shares.cumsum(0), (torch.arange(rows) + torch.rand(1)).double() / rows)
        places = places.clamp_max(len(shares) - 1)[torch.randperm(rows)]
    return Chosen(torch.cat(pool)[places], effective, len(shares))


def _log_weights(model: Model, given: Given, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) float64 log p(given | code), and the same less that of the likeliest values in their place."""

    def weigh(part: Batch) -> Tensor:
        p = model.module.decode(model.grid(part.numbers))
        rows = given.repeated(len(part)).to(part.numbers.device)
        likeliest = Batch(p.numbers()[0], p.codes()[0], rows.seen)
        pair = [p.log_prob(batch)[0].double().sum(-1) for batch in (rows, likeliest)]
        return torch.stack([pair[0], pair[0] - pair[1]], dim=1)

    weighed = model.blocks(Batch(codes, torch.zeros(len(codes), 0, dtype=torch.long)), weigh)
    return weighed[:, 0], weighed[:, 1]
