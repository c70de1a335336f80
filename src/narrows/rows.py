"""The rows of a fit: counted and learnt from in one pass, split, then held as tensors or streamed.

Rows that fit the budget are prepared once and stay in memory, so that a training step touches nothing but tensors.
More rows are read again in every epoch, and only the validation rows stay: thinned evenly where they are too many.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from narrows import world
from narrows.balance import Balance
from narrows.errors import DataError, FitWarning, SettingError
from narrows.prepare.carried import merged
from narrows.prepare.gathered import Filling, Thinned
from narrows.prepare.groups import Groups
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.prepare.streamed import Streamed
from narrows.prepare.words import TRANSFORMS
from narrows.schema import KINDS, Batch, Kind, Schema, Stream, one_row
from narrows.sources.shuffle import Shuffle
from narrows.sources.source import Source, naming, open_source
from narrows.sources.split import Split
from narrows.stopwatch import spent, timed
from narrows.train.resident import Resident
from narrows.train.settings import Training
from narrows.train.upload import placed

WINDOW = 131_072  # rows shuffled at once where data is streamed: a hundred batches or more, some tens of MB
OUTPUTS = 1 << 25  # numbers that the decoder may say in a step: 134 MB, of which a few copies are made
FEW = 20  # rows of which none are held out at random: every one is needed for training


@dataclass(frozen=True)
class Core:
    """Training on chosen rows alone; those held out then choose no weights, and are new to the model afterwards.

    Args:
        choose: (schema, rows) -> (n,) bool, the rows to train on.
        most: rows to choose from, evenly drawn where there are more.
        held: rows held out that are worth keeping apart: fewer are training rows like the others.
    """

    choose: Callable[[Schema, Batch], Tensor]
    most: int
    held: int = 0


class Prepared(Iterator[Batch]):
    """Every training row once, in order, for those who learn from them after training.

    Attributes:
        held: rows that were held out; None where there are none.
    """

    def __init__(self, batches: Iterator[Batch], held: Batch | None) -> None:
        self._batches, self.held = batches, held

    def __next__(self) -> Batch:
        return next(self._batches)


class Rows:
    """Training and validation rows of a source.

    Args:
        source: of the rows.
        validation: share of the rows to hold out, or the rows to validate on.
        training: says how to hold out, how many bytes may be kept, and how long a batch is.
        seed: of the split and of the order of rows.
        columns: column -> a kind, a transform, or both with a space between, where the ones chosen are wrong.
        preparer: learnt before from other rows; None learns one from these.

    Raises:
        DataError: for a source without rows, or with rows that cannot be modeled.
    """

    preparer: Preparer

    def __init__(
        self,
        source: Source,
        validation: Any,
        training: Training,
        seed: int,
        columns: Mapping[str, str] | None = None,
        preparer: Preparer | None = None,
    ) -> None:
        self.source, self.wanted, self.training, self.seed = source, validation, training, seed
        self.split = self._split()
        self.groups = None if training.balance is None else Groups(training.balance, training.balance_power)
        kinds, transforms = wishes(columns or {})
        with naming(source):
            statistics = self._statistics({name for name, kind in kinds.items() if kind == "category"})
            self.preparer = preparer or Preparer.learn(statistics, kinds=kinds, transforms=transforms)
            if not self.preparer.schema.cells:
                raise DataError(
                    "no column has anything to learn from",
                    "at least one with values, which for texts must not differ in every row",
                )
            if self.groups is not None:
                self.groups.settle()
        self.count, self.fingerprint, self.sample = statistics.rows, statistics.fingerprint(), statistics.sample
        self.row_bytes = row_bytes(self.preparer.schema, self.preparer.entries)
        self.resident = self.count * self.row_bytes <= training.budget
        self.batch_size = self._step_rows()
        if training.optimizer == "gd" and not self.resident:
            raise SettingError(
                "optimizer='gd' on rows over the budget", "all rows in memory", "a larger budget, or sgd"
            )
        self._train: Batch | None = None
        self._held: Batch | None = None
        self._balance: Balance | None = None

    def suit(self, least: int | None, epochs: int | None) -> None:
        """Settle the rows of a step where the settings leave it open, before any are streamed: `least` of them or more,
        and otherwise fewer where there are few epochs.
        """
        self.batch_size = self._step_rows(least or 1, epochs)

    def _step_rows(self, least: int = 1, epochs: int | None = None) -> int:
        """Rows of a step: as the settings say, but by default no more than what the decoder's outputs leave room for.

        A text of 512 tokens of 4,096 kinds has two million outputs; a thousand such rows would take 8 GB.
        """
        rows = self.training.step_rows(self.count, epochs)
        if self.training.batch_size is not None or self.training.optimizer == "gd":
            return rows
        return min(max(rows, least), 1 << max(0, (OUTPUTS // self.preparer.schema.outputs).bit_length() - 1))

    def _statistics(self, categories: set[str]) -> Statistics:
        """One pass over the training rows; those held out are only checked. Several processes read a share each."""
        statistics, rows = Statistics(self.source.schema, categories), 0
        with world.agreed():
            for first, raw in timed("read", self.source.shard(world.rank(), world.size()).batches()):
                rows += len(raw)
                with spent("statistics"):
                    keep = None if self.split is None else ~self.split.held_out(raw, first)
                    statistics.update(raw, first, keep)
                    if self.groups is not None:
                        self.groups.add(raw if keep is None else raw.filter(pa.array(keep)))
        statistics = merged(statistics, self.source.schema)
        self.total = rows = round(world.sums(rows)[0])
        if not rows:
            raise DataError("no rows", "at least one row to train on")
        if not statistics.rows:
            got = f"holding out {self.wanted} of {rows:,} rows leaves none to train on"
            raise SettingError(got, "a smaller share of validation rows")
        return statistics

    def _split(self) -> Split | None:
        """How rows are held out; None where validation is given, unwanted or not affordable."""
        column = self.training.group or self.training.time
        if not isinstance(self.wanted, float | int) or not self.wanted:
            if column:
                got = f"validation by column {column!r} beside validation={self.training.validation!r} or given rows"
                raise SettingError(got, "a share of the rows to hold out, such as 0.1")
            return None
        split = Split(self.wanted, self.seed, self.training.group, self.training.time)
        if column:
            return split.learn(self.source)
        # a random share needs nothing of the data, and of few rows it may well hold out none
        return None if self.source.rows is not None and self.source.rows < FEW else split

    def streams(
        self, device: torch.device, weight: np.ndarray | None = None, core: Core | None = None
    ) -> tuple[Stream, Stream | None]:
        """Training rows, shuffled anew each epoch, and validation rows in order; None where there are none.

        Args:
            device: where training is done. Rows in memory are kept there if they fit; else it uploads its batches.
            weight: (n,) weight of each row of the source, in order.
            core: trains on chosen rows alone, and keeps those held out to itself.

        Raises:
            SettingError: for weights of rows that do not fit the budget, or not one a row; for a core of rows that are
                to be balanced.
        """
        if core is not None and self.groups is not None:
            got = f"balance by column {self.groups.column!r} where the most ordinary rows are trained on, as to detect"
            raise SettingError(got, "one of the two", "a fit without --for detect, or without --balance")
        if weight is not None and not self.resident:
            raise SettingError("row weights for data that is streamed", "rows that fit training.budget")
        with world.agreed():
            self._train, self._held = self._read(None if weight is None else self._checked(weight))
        for batch, what in ((self._train, "training"), (self._held, "validation")):
            if batch is not None and not batch.weights().any():
                raise SettingError(f"weights that are 0 for all {what} rows", "some rows that count")
        with world.agreed():
            given = self._given()
        held = given or self._joined(self._held)
        if core is not None:
            self._rejoin(core.held)
            return Resident(placed(self._chosen(core), device), self.batch_size, self.seed), None
        if held is None and self.split is not None:
            text = (
                f"holding out {self.wanted} of {self.count:,} rows left none to validate on: the last weights are kept"
            )
            warnings.warn(f"{text}, not the best; try a larger share", FitWarning, stacklevel=3)
        common = self.resident or given is not None
        validation = None if held is None else Resident(placed(held, device), self.batch_size, self.seed, False, common)
        if self._train is not None:
            train = placed(self._train, device)
            return Resident(train, self.batch_size, self.seed, balance=self._balance), validation
        reader = world.rank(), world.size()
        shuffle = Shuffle(self.source, self.split, self.seed, self.window, reader)
        return Streamed(shuffle, self.preparer, self._share, self.count, device, self.groups), validation

    def _joined(self, held: Batch | None) -> Batch | None:
        """Rows held out of this process's own, or one of no weight where only others have some."""
        if self.resident or world.size() == 1:
            return held
        everywhere = int(world.sums(0 if held is None else len(held))[0])
        if held is None and everywhere:
            return replace(one_row(self.preparer.schema), weight=torch.zeros(1))
        return held

    @property
    def _share(self) -> int:
        """Rows of a step that fall to this process, where each reads its own."""
        own = world.span_of(self.batch_size)
        return max(1, int(own.stop) - int(own.start))

    def _rejoin(self, fewest: int) -> None:
        """Put rows held out, where there are fewer, behind the training rows."""
        if self._train is not None and self._held is not None and self.split is not None and self.held < fewest:
            self.count += self.held
            self._train, self._held = Batch.concat([self._train, self._held]), None

    def _chosen(self, core: Core) -> Batch:
        """The rows of the core.

        Raises:
            DataError: where it has none.
        """
        thinned = Thinned(core.most if self.resident else min(core.most, self._limit))
        for batch in self.prepared():
            thinned.add(batch)
        some = thinned.batch()
        chosen = None if some is None else some[core.choose(self.preparer.schema, some)]
        if chosen is None or not len(chosen):
            raise DataError("no rows to train on", "at least one")
        return chosen

    def _checked(self, weight: np.ndarray) -> np.ndarray:
        """(n,) float32 weights, once they were found to fit the rows."""
        try:
            weight = np.asarray(weight, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise SettingError(f"weights that are no numbers: {error}", "a number for each row") from None
        if weight.shape != (self.total,):
            raise SettingError(f"weights of shape {weight.shape}", f"({self.total},), one for each row")
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise SettingError("weights that are negative, missing or infinite", "numbers from 0 up")
        return weight

    def prepared(self) -> Prepared:
        """Every training row once, in order."""
        return Prepared(self._prepared(), self._held)

    def _prepared(self) -> Iterator[Batch]:
        if self._train is not None:
            yield self._train
            return
        for first, raw in self.source.batches():
            yield self.preparer.prepare(raw if self.split is None else _without(raw, self.split.held_out(raw, first)))

    def sampled(self) -> Tensor:
        """(R, N) prepared number cells of some training rows, NaN where missing and in columns that are not sampled."""
        schema = self.preparer.schema
        columns = [c for c in schema if c.kind in ("number", "count") and not c.grid and c.name in self.sample.names]
        cells = {column.name: self.sample.cells(column.name)[:, : column.width] for column in columns}
        rows = max((len(found) for found in cells.values()), default=0)
        raw = torch.full((rows, schema.dense), torch.nan, dtype=torch.float64)
        for name, found in cells.items():
            raw[:, schema.spans[name]] = torch.from_numpy(found).double()
        prepared = torch.full((rows, schema.numbers), torch.nan)
        prepared[:, : schema.dense] = self.preparer.scaling(raw).masked_fill(raw.isnan(), torch.nan)
        return prepared

    @property
    def held(self) -> int:
        """Validation rows in use."""
        return 0 if self._held is None else len(self._held)

    def _given(self) -> Batch | None:
        """The validation rows that were named instead of held out."""
        if isinstance(self.wanted, float | int):
            return None
        thinned = Thinned(self._limit)
        source = open_source(self.wanted, reading=self.source.reading, texts=self.preparer.texts)
        with naming(source):
            for first, raw in source.batches():
                rows = self.preparer.prepare(raw, first)
                there = self.groups is not None and self.groups.column in raw.schema.names
                thinned.add(self._weighed(rows, raw) if there else rows)
        self._held = thinned.batch()
        if self._held is None:
            raise DataError(f"{source.name} has no rows to validate on", "at least one row")
        return self._held

    @property
    def window(self) -> int:
        """Rows shuffled at once where data is streamed: whole batches, that a quarter of the budget holds.

        Never less than a window of 32 MB: a budget of nothing still wants its rows mixed.
        """
        fit = max(self.training.budget / 4, 32e6) // self.row_bytes
        return max(1, int(min(WINDOW, fit)) // self._share) * self._share

    @property
    def _limit(self) -> int:
        """Validation rows that may be kept: what a quarter of the budget holds, or at least 4,096 rows or 32 MB."""
        return max(1, int(max(self.training.budget / 4, min(4096 * self.row_bytes, 32e6)) // self.row_bytes))

    def _read(self, weight: np.ndarray | None) -> tuple[Batch | None, Batch | None]:
        """Training rows, where they are to be resident, and held-out rows."""
        if not self.resident and self.split is None:
            return None, None
        with naming(self.source):
            return self._filled(weight)

    def _filled(self, weight: np.ndarray | None) -> tuple[Batch | None, Batch | None]:
        table = Filling(self.preparer.schema, self.count if self.resident else 0, weight is not None)
        thinned, at, grouped = Thinned(self._limit), 0, []
        source = self.source if self.resident else self.source.shard(world.rank(), world.size())
        for first, raw in timed("read", source.batches()):
            if self.split is not None and not self.resident:  # the others are prepared when they are streamed
                with spent("prepare"):
                    out = raw.filter(pa.array(self.split.held_out(raw, first)))
                    thinned.add(self._weighed(self.preparer.prepare(out), out))
                continue
            with spent("prepare"):
                rows = self.preparer.prepare(raw, first)
            if weight is not None:
                chunk = torch.as_tensor(weight[at : at + len(rows)], dtype=torch.float32)
                rows = replace(rows, weight=chunk)
            at += len(rows)
            groups = None if self.groups is None else self.groups.of(raw)
            if self.split is not None:
                held = torch.from_numpy(self.split.held_out(raw, first))
                thinned.add(self._weighed(rows, raw)[held])
                rows, groups = rows[~held], None if groups is None else groups[~held]
            if self.resident:
                table.add(rows)
                grouped += [] if groups is None else [groups]
        self._balance = self.groups.balance(torch.cat(grouped)) if self.groups and grouped else None
        return (table.batch if self.resident else None), thinned.batch()

    def _weighed(self, rows: Batch, raw: pa.RecordBatch) -> Batch:
        """Rows that validate, of which those of every group count for as much where groups are balanced."""
        if self.groups is None:
            return rows
        return replace(rows, weight=rows.weights() * self.groups.rates[self.groups.of(raw)].float())


def wishes(columns: Mapping[str, str]) -> tuple[dict[str, Kind], dict[str, str]]:
    """Kinds and transforms by column, from the words that the user wrote.

    Raises:
        SettingError: for a word that is neither.
    """
    kinds: dict[str, Kind] = {}
    transforms: dict[str, str] = {}
    for column, words in columns.items():
        for word in str(words).split():
            if word in KINDS:
                kinds[column] = word
            elif word in TRANSFORMS:
                transforms[column] = word
            else:
                raise SettingError(f"{word!r} for column {column!r}", f"one of {', '.join((*KINDS, *TRANSFORMS))}")
    return kinds, transforms


def row_bytes(schema: Schema, entries: float = 0.0) -> int:
    """Bytes of one prepared row, whose bags hold so many items on average."""
    holes = any(column.holes for column in schema)
    codes = len(schema.levels)
    return 4 * schema.dense + 8 * codes + (schema.dense + codes if holes else 0) + round(12 * entries) + 8


def _without(rows: pa.RecordBatch, held: Any) -> pa.RecordBatch:
    return rows.filter(pa.array(~held))
