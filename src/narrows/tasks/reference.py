"""What a model keeps of usual rows, for new ones to be compared with: the part `drift`, and how rows are looked at.

    rows held out -> 2,000 of them -> cells of scalar columns | codes | what the codes miss of each cell | scores

Held-out rows alone are like new ones to a model: those it was trained on it tells better. Where too few were held out,
training rows stand in, and only what does not depend on how well they are told is compared. The part holds cells of
real rows, so only a fit that is asked to keeps it (`fit --for drift`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor

from narrows.errors import DataError, ModelFileError, SettingError
from narrows.fitted import Model, Part
from narrows.rows import Prepared
from narrows.schema import Batch, Schema
from narrows.tasks.features import at_once
from narrows.tasks.keep import Keep
from narrows.tensorfile import shaped
from narrows.train.randomness import VALIDATION, generator

PART = "drift"
MOST = 2_000  # rows: more would make small differences of no consequence an alarm, and the file larger
CELLS = 1 << 20  # of them all: 4 MB, and as much for what the codes miss
WIDEST = 4_096  # cells of a row that are compared one by one
FEWEST = 50  # held-out rows of which something can be said
BLOCK = 4_096  # rows looked at at once
Origin = Literal["held-out rows", "training rows", "given rows"]
Kind = Literal["number", "date", "level"]


@dataclass(frozen=True)
class Watched:
    """A cell that is compared by itself. Args: name: for people. column: it is of. place: among a row's cells."""

    name: str
    column: str
    place: int
    kind: Kind


@dataclass(frozen=True)
class Look:
    """What is compared of n rows.

    Args:
        cells: (n, W) float32 watched cells: numbers in prepared units, categories as codes.
        seen: (n, W) bool.
        misses: (n, W) float32: a number less what its row's code says it is, for a level the root of its cost; 0 where
            unseen.
        codes: (n, Z) float32.
        scores: (n,) float64.
    """

    cells: Tensor
    seen: Tensor
    misses: Tensor
    codes: Tensor
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor) -> Look:
        """Rows at these positions."""
        return Look(*(getattr(self, name)[rows] for name in self.__annotations__))

    @classmethod
    def joined(cls, parts: list[Look]) -> Look:
        """All rows, in order."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__annotations__))


@dataclass(frozen=True)
class Reference:
    """Usual rows. Args: look: at them. origin: whether the model has seen them; `given rows` are taken to be new to
    it."""

    look: Look
    origin: Origin

    @property
    def new(self) -> bool:
        """Whether the rows took no part in training, so that errors and scores of new rows may be held against them."""
        return self.origin != "training rows"

    @classmethod
    def of(cls, model: Model) -> Reference:
        """The reference that a model keeps.

        Raises:
            SettingError: for a model without.
            ModelFileError: for a part that is none.
        """
        part = model.parts.get(PART)
        if part is None:
            got = "a model that keeps no rows to compare new ones with"
            raise SettingError(got, "one of `narrows fit --for drift`", "--reference ROWS that it was not trained on")
        try:
            facts = _Facts.model_validate(part.facts)
            wide = len(watched(model.schema))
            (cells, misses) = shaped(part.tensors, cells=(facts.rows, wide), misses=(facts.rows, wide))
            (seen,) = shaped(part.tensors, torch.bool, seen=(facts.rows, wide))
            (codes,) = shaped(part.tensors, codes=(facts.rows, model.code_size))
            (scores,) = shaped(part.tensors, torch.float64, scores=(facts.rows,))
        except pydantic.ValidationError as error:
            what = str(error.errors()[0]["msg"])
        except (KeyError, ValueError) as error:
            what = str(error)
        else:
            return cls(Look(cells, seen, misses, codes, scores), facts.origin)
        raise ModelFileError(f"part {PART} of the model: {what}", "what a fit for drift learns")

    @classmethod
    def given(cls, model: Model, rows: Any, seed: int = 0) -> Reference:
        """The reference of rows that the model was not trained on, which are anything `open_source` takes.

        Raises:
            DataError: for fewer rows than can be compared.
        """
        batch, met = sampled(model, (batch for _, batch in model.batches(rows)), most_of(model.schema), seed)
        if batch is None or met < FEWEST:
            raise DataError(f"{met} rows to compare new ones with", f"at least {FEWEST}")
        return cls(look(model, batch), "given rows")

    def part(self) -> Part:
        """For the model's file."""
        tensors = {name: getattr(self.look, name).contiguous() for name in Look.__annotations__}
        return Part({"rows": len(self.look), "origin": self.origin}, tensors)


class _Facts(pydantic.BaseModel, extra="forbid", strict=True):
    """The facts that the part must hold."""

    rows: pydantic.PositiveInt
    origin: Origin


def learn_reference(model: Model, rows: Prepared) -> Part:
    """The part `drift`: 2,000 of the rows held out, fewer of very wide ones.

    Args:
        model: just trained.
        rows: of the training; where fewer than 50 were held out, the training rows stand in.

    Raises:
        DataError: for fewer than 50 rows in all.
    """
    held = rows.held if rows.held is not None and len(rows.held) >= FEWEST else None
    batch, met = sampled(model, iter([held]) if held is not None else rows, most_of(model.schema))
    if batch is None or met < FEWEST:
        raise DataError(f"{met} rows to compare new ones with", f"at least {FEWEST}")
    return Reference(look(model, batch), "training rows" if held is None else "held-out rows").part()


def watched(schema: Schema) -> list[Watched]:
    """The cells that are compared one by one: of scalar columns and plain matrices; the position in time of dates.

    None of images, series, sounds, texts and bags, and none where there are thousands.
    """
    found: list[Watched] = []
    for column in schema:
        if column.grid or column.kind in ("bag", "tokens", "series", "audio") or not column.cells:
            continue
        start, names = schema.spans[column.name].start, column.cell_names()
        kind: Kind = "level" if column.categorical else "date" if column.kind == "date" else "number"
        names = [column.name] if kind == "date" else names
        found += [Watched(name, column.name, start + at, kind) for at, name in enumerate(names)]
    return found if len(found) <= WIDEST else []


def most_of(schema: Schema) -> int:
    """Rows that a reference keeps."""
    return min(MOST, max(FEWEST, CELLS // max(1, len(watched(schema)))))


def sampled(model: Model, batches: Iterable[Batch], most: int, seed: int = 0) -> tuple[Batch | None, int]:
    """An even sample of rows, in an order that does not depend on theirs, and how many there were.

    Where all of them fit, which ones are sampled does not depend on their order either.
    """
    keep, draws, met = Keep(most), generator(seed, VALIDATION), 0
    for batch in batches:
        keep.offer(torch.rand(len(batch), generator=draws, dtype=torch.float64), {}, batch)
        met += len(batch)
    return (None if keep.batch is None else keep.batch[_ordered(model.schema, keep.batch)]), met


def _ordered(schema: Schema, rows: Batch) -> Tensor:
    """(n,) positions in the order of what the rows hold."""
    digests: list[bytes] = []
    step = at_once(schema, BLOCK)
    for start in range(0, len(rows), step):
        part = rows[start : start + step].dense()
        told = zip(part.numbers.numpy(), part.codes.numpy(), part.mask().numpy(), strict=True)
        digests += [hashlib.blake2b(b"".join(x.tobytes() for x in row), digest_size=16).digest() for row in told]
    return torch.from_numpy(np.argsort(np.array(digests, dtype="S16"), kind="stable"))


def look(model: Model, rows: Batch) -> Look:
    """What is compared of rows, which are not empty."""
    step = at_once(model.schema, BLOCK)
    places = torch.tensor([cell.place for cell in watched(model.schema)], dtype=torch.long)
    return Look.joined([_look(model, rows[start : start + step], places) for start in range(0, len(rows), step)])


def _look(model: Model, rows: Batch, places: Tensor) -> Look:
    codes, costs, numbers = model.codes(rows), model.costs(rows), model.schema.numbers
    scores = costs.double().sum(1)
    if not len(places):
        blank = torch.zeros(len(rows), 0)
        return Look(blank, blank.bool(), blank, codes, scores)
    told, rows = model.cells(codes)[0], rows.dense()
    cells = torch.cat([rows.numbers, rows.codes.float()], dim=1)[:, places]
    misses = torch.cat([rows.numbers - told, costs[:, numbers : model.schema.cells].clamp_min(0).sqrt()], dim=1)
    seen = rows.mask()[:, places]
    return Look(cells, seen, (misses[:, places] * seen).float(), codes, scores)
