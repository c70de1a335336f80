"""Rows that were never there: codes from the prior, decoded, and cells drawn as their likelihoods say.

    prior -> codes -> decoder -> draws of scalar cells, expected values of arrays -> rows as those of training
    rows of nothing but holes -> filled cell by cell (see `tasks.holes`)           -> rows as those of training

The second way is that of models which tell any cells from any others (the recipe `conditional`): for tables it is much
the better one, as no code has to hold what goes with what.

Numbers stay within the range of training, holes are not imitated, and rows are independent of each other. Whether a
row that was generated is too near to one of training, it does not know.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from math import inf
from numbers import Integral
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows.errors import DataError, DataWarning, SettingError
from narrows.fitted import Model
from narrows.prepare.bags import Items
from narrows.schema import Batch
from narrows.tasks.conditions import Chosen, check_together, choose_codes, empty_row, read_given
from narrows.tasks.holes import Holes, fills
from narrows.tasks.prior import prior_of
from narrows.train.randomness import kept, seed_step

REPEATED = 5  # times that a code may be used for different rows without a word
STRAIGHT = 1e-3  # radians between codes below which, or from opposite ones, no arc leads


def generate(
    model: Model,
    rows: int,
    seed: int = 0,
    *,
    where: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    sample_cells: bool = True,
) -> pa.Table:
    """New rows like those of training.

    Args:
        model: of the recipe `conditional`, or with a code prior: of a recipe that has one (`vae`), or learnt
            (`keep_prior`).
        rows: how many.
        seed: of every draw: the same rows for the same seed, and the first of them whatever their number.
        where: column -> value that all rows are to hold.
        temperature: below 1 for more usual rows, above 1 for more unusual ones.
        sample_cells: whether scalar cells are drawn from their likelihood; else all are the most probable ones. Cells
            of images, series and sounds are never drawn one by one, which would be noise; nor are squared errors.

    Returns:
        A table with the columns and types of the training data.

    Raises:
        SettingError: for settings out of range, a model without a prior, or a condition that it cannot take.
        DataError: for values in `where` that training never had, or not together.
    """
    made = Generation(model, seed, where=where, temperature=temperature, sample_cells=sample_cells)
    return pa.Table.from_batches(made.batches(rows), model.preparer.arrow_schema)


class Generation:
    """Rows as they are generated, some at a time; arguments as those of `generate`.

    Attributes:
        chosen: the codes that go with `where`, and what they are worth; None without it, or before the first rows.
    """

    def __init__(
        self,
        model: Model,
        seed: int = 0,
        *,
        where: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        sample_cells: bool = True,
    ) -> None:
        if not 0 < temperature < inf:
            raise SettingError(f"temperature={temperature!r}", "a number above 0")
        if not (_whole(seed) and abs(seed) < 2**63):
            raise SettingError(f"seed={seed!r}", "a whole number of 64 bits")
        self.model, self.seed, self.temperature, self.draws = model, int(seed), temperature, sample_cells
        self.holes = Holes(model) if fills(model) else None
        if self.holes and not sample_cells:
            hint = "temperature=0.1 for rows that are all but the most probable"
            raise SettingError("sample_cells=False of a model that makes rows cell by cell", "drawn cells", hint)
        self.prior = None if self.holes else prior_of(model)
        self.given = read_given(model, where) if where else None
        self.chosen: Chosen | None = None
        self._numbers, self._codes = _cells_in_grids(model)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """So many rows.

        Raises:
            SettingError: for less than one.
            DataError: where no code makes what is given likely.
        """
        if not (_whole(rows) and rows >= 1):
            raise SettingError(f"rows={rows!r}", "a whole number of at least 1")
        if self.given is not None and self.holes:
            check_together(self.holes, self.given)
        elif self.given is not None and self.prior:
            self.chosen = choose_codes(self.model, self.prior, self.given, rows, self.seed, self.temperature)
            _warn_repeated(self.chosen, rows)
        for start in range(0, rows, self.model.block_rows):
            yield self._block(start)[: rows - start]

    @torch.inference_mode()
    def _block(self, start: int) -> pa.RecordBatch:
        numbers, levels = self.cells(start)
        if self.given is None:
            return self.model.preparer.restore(numbers, levels)
        self.given.put_into(numbers, levels)
        return self.given.put_into_rows(self.model.preparer.restore(numbers, levels))

    @torch.inference_mode()
    def cells(self, start: int) -> tuple[Tensor, Tensor]:
        """Numbers (B, N) and codes (B, M) of a whole block of rows from a place on, before what is given is put in.

        Whole, since draws of few rows must not differ from those of many.
        """
        device = self.model.module.device
        if self.holes:
            rows = self.given.row if self.given else empty_row(self.model)
            made = self.holes.draw(_repeated(rows, self.model.block_rows), self.seed, start, self.temperature)
            _keep_in_range(self.model, made.numbers)
            return made.numbers, made.codes
        with kept(device):
            seed_step(self.seed, start, device)
            codes = self._codes_at(start)
            numbers, levels = self.model.cells(codes, self._said if self.draws else None)
            if self.draws:
                _draw_bags(self.model, numbers)
        _keep_in_range(self.model, numbers)
        return numbers, levels

    def _codes_at(self, start: int) -> Tensor:
        rows = self.model.block_rows
        if self.chosen is not None:
            return self.chosen.codes[start : start + rows]
        return prior_of(self.model).sample(rows, self.temperature)

    def _said(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Cells of codes (1, [E,] B, latent): drawn, but for those in grids, which are the most probable ones."""
        p = self.model.module.decode(z, self.temperature)
        numbers, codes = p.sample(self.temperature)
        still = self._codes.clone()
        for name in p.told:
            still[p.likelihood.places[name]] = False
        numbers = torch.where(self._numbers.to(z.device), p.numbers(), numbers)[0]
        codes = torch.where(still.to(z.device), p.codes(), codes)[0]
        if not self.model.members:
            return numbers, codes
        rows = torch.arange(numbers.shape[1], device=z.device)
        member = torch.randint(self.model.members, (len(rows),)).to(z.device)
        return numbers[member, rows], codes[member, rows]


def _repeated(row: Batch, rows: int) -> Batch:
    return row[torch.zeros(rows, dtype=torch.long)]


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _cells_in_grids(model: Model) -> tuple[Tensor, Tensor]:
    """(N,) and (M,) which cells belong to an image, series, sound or text."""
    inside = torch.zeros(model.schema.cells, dtype=torch.bool)
    for column in model.schema:
        inside[model.schema.spans[column.name]] = bool(column.grid)
    numbers, codes = inside.tensor_split([model.schema.numbers])
    return numbers, codes


def _keep_in_range(model: Model, numbers: Tensor) -> None:
    """Bring the cells that are no bags' between the least and the greatest value of training."""
    dense, scaling = numbers[:, : model.schema.dense], model.preparer.scaling
    dense.copy_(torch.minimum(torch.maximum(dense, scaling.low.float()), scaling.high.float()))


def _draw_bags(model: Model, numbers: Tensor) -> None:
    """Fill bags with as many drawn items as bags of training held on average."""
    for column in model.schema:
        items, span = model.preparer.layouts.get(column.name), model.schema.spans[column.name]
        if isinstance(items, Items) and items.transform == "counts" and items.total >= 1:
            sets = items.most <= 1  # of which no item is drawn twice
            total = min(round(items.total), items.size) if sets else round(items.total)
            drawn = torch.multinomial(numbers[:, span].clamp_min(1e-30), total, replacement=not sets)
            shares = torch.zeros_like(numbers[:, span])
            numbers[:, span] = shares.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / total))


def _warn_repeated(chosen: Chosen, rows: int) -> None:
    if chosen.effective * REPEATED < rows:
        text = f"what is given is rare: {chosen.drawn:,} codes from the prior are worth {chosen.effective:,.1f} for it"
        warnings.warn(f"{text}, so that the {rows:,} rows are alike in groups", DataWarning, stacklevel=4)


def interpolate(model: Model, rows: Any, steps: int = 8, spherical: bool | None = None) -> pa.Table:
    """Rows between rows: from each to the next, `steps` of them, the first and last of which are these two.

    Args:
        model: a fitted model.
        rows: at least two, as anything `open_source` takes.
        steps: at least 2.
        spherical: whether codes go along an arc, which keeps their length where a straight line would pass through
            what is rare among normal codes (White 2016); by default where the recipe draws codes to a normal prior.

    Raises:
        SettingError: for fewer than 2 steps.
        DataError: for fewer than 2 rows, or rows that do not fit the model.
    """
    if not (_whole(steps) and steps >= 2):
        raise SettingError(f"steps={steps!r}", "a whole number of at least 2")
    codes = model.encode(rows)
    if len(codes) < 2:
        raise DataError(f"{len(codes)} rows to go between", "at least 2")
    arc = model.module.latent.has_prior if spherical is None else spherical
    return model.decode(between(codes, int(steps), arc))


def between(codes: np.ndarray, steps: int, spherical: bool) -> np.ndarray:
    """((n - 1) * steps, size) codes on the ways between consecutive codes (n, size)."""
    start, end = codes[:-1, None].astype(np.float64), codes[1:, None].astype(np.float64)
    share = np.linspace(0.0, 1.0, steps)[None, :, None]
    first, second = 1.0 - share, share
    if spherical:
        lengths = np.linalg.norm(start, axis=-1, keepdims=True) * np.linalg.norm(end, axis=-1, keepdims=True)
        cosine = np.clip((start * end).sum(-1, keepdims=True) / np.maximum(lengths, 1e-300), -1.0, 1.0)
        angle = np.arccos(cosine)
        bent = (angle > STRAIGHT) & (angle < np.pi - STRAIGHT) & (lengths > 0)
        sine = np.where(bent, np.sin(angle), 1.0)
        first = np.where(bent, np.sin((1.0 - share) * angle) / sine, first)
        second = np.where(bent, np.sin(share * angle) / sine, second)
    path: np.ndarray = (first * start + second * end).astype(np.float32).reshape(-1, codes.shape[1])
    return path
