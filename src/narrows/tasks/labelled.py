"""Rows with what is to be told of them: read once, an even sample where they are many, and parted for an honest figure.

    rows, target -> sample of prepared rows, their classes or numbers -> labelled | unlabelled | held out

A target is a column that the model does not know, or an array. What this file does not know: what tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from narrows.errors import DataError, SettingError
from narrows.fitted import Model
from narrows.schema import Batch
from narrows.sources.source import naming
from narrows.tasks.keep import Keep
from narrows.train.randomness import generator

Task = Literal["auto", "classify", "regress", "segment"]
TASKS: tuple[Task, ...] = get_args(Task)
Label = str | int | float | bool

ROWS = 30_000  # of a probe; more change its figures by less than they vary
HELD = 0.2  # share of the rows that a probe is judged on
MANY = 20  # classes that whole numbers may stand for, at most


@dataclass(frozen=True)
class Target:
    """What is to be told of rows.

    Args:
        name: of the column; `target` for an array.
        task: never `auto`.
        values: (n,) or, of pixels, (n, H, W): places among the classes, or numbers.
        classes: in order; empty for numbers.
    """

    name: str
    task: Task
    values: npt.NDArray[Any]
    classes: tuple[Label, ...] = ()

    def __getitem__(self, rows: npt.NDArray[Any]) -> Target:
        return Target(self.name, self.task, self.values[rows], self.classes)

    def labels(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The classes that stand at these places."""
        return np.array(self.classes)[places]


@dataclass(frozen=True)
class Parted:
    """Positions of rows by what they are used for; `known` are the labelled ones, `pool` these and those without."""

    known: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]


def read(model: Model, rows: Any, target: Any, task: Task, limit: int, seed: int) -> tuple[Batch, Target]:
    """At most `limit` prepared rows, drawn evenly from those that have a target, and the target.

    Raises:
        DataError: for rows without targets, or targets that do not fit the rows or the task.
        SettingError: for a target that the model was trained on, or an unknown task.
    """
    if task not in TASKS:
        raise SettingError(f"task={task!r}", f"one of {', '.join(TASKS)}")
    name = target if isinstance(target, str) else ""
    if name in model.schema.names:
        got = f"target {name!r}, which the model was trained on: its codes know it"
        raise SettingError(got, "a column that it has not seen", "a model of the other columns")
    given = None if name else _as_array(target)
    batch, at, read_values = _sampled(model, rows, name, given, limit, seed)
    values = read_values if given is None else given
    return batch, target_of(values[at], name or "target", task)


def _sampled(
    model: Model, rows: Any, name: str, given: npt.NDArray[Any] | None, limit: int, seed: int
) -> tuple[Batch, npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Rows in random order, their positions among all, and the values of the column in all of them."""
    source = model.source(rows)
    if name and name not in source.schema.names:
        others = [column for column in source.schema.names if column not in model.schema.names]
        wanted = f"one of {', '.join(others[:MANY])}" if others else "rows with a column that the model does not know"
        raise DataError(f"{source.name} has no column {name!r}", wanted)
    draws, kept, count = generator(seed, 0), Keep(limit), 0
    values: list[npt.NDArray[Any]] = []
    for first, raw in source.batches():
        if name:
            values.append(_of_column(raw.column(name)))
            raw = raw.drop_columns([name])
        with naming(source):
            batch = model.preparer.prepare(raw, first)
        places = torch.arange(count, count + len(batch))
        count += len(batch)
        known = values[-1] if name else given[places.numpy()] if given is not None and len(given) >= count else None
        if known is None:
            raise DataError(f"targets of {0 if given is None else len(given):,} rows", f"one for each of {source.name}")
        here = torch.from_numpy(~_missing(known)).nonzero().flatten()
        keys = torch.rand(len(batch), generator=draws, dtype=torch.float64)
        kept.offer(keys[here], {"at": places[here]}, batch[here])
    if given is not None and len(given) != count:
        raise DataError(f"targets of {len(given):,} rows for {count:,} rows of {source.name}", "one for each")
    if kept.batch is None or not len(kept.batch):
        raise DataError(f"no rows of {source.name} with a target", "some")
    return kept.batch, kept.rows["at"].numpy(), np.concatenate(values) if values else np.zeros(0)


def _of_column(column: Any) -> npt.NDArray[Any]:
    """An Arrow column as an array: images as (n, H, W), anything else (n,)."""
    if isinstance(column, pa.FixedShapeTensorArray):
        return np.asarray(column.to_numpy_ndarray())
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _as_array(target: Any) -> npt.NDArray[Any]:
    if isinstance(target, pa.Array | pa.ChunkedArray):
        target = target.to_pylist()
    values = np.asarray(target)
    if values.ndim not in (1, 3, 4):
        raise DataError(f"targets of shape {values.shape}", "(n,), or (n, height, width) for a class each pixel")
    return values


def _missing(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(n,) where there is no target."""
    if values.dtype.kind == "O":
        return np.array([value is None or value != value for value in values], dtype=bool)
    if values.dtype.kind == "f" and values.ndim == 1:
        return np.asarray(~np.isfinite(values))
    return np.zeros(len(values), dtype=bool)


def target_of(values: npt.NDArray[Any], name: str, task: Task) -> Target:
    """The target that values are, none of them missing.

    Args:
        values: (n,), or (n, H, W) for a class each pixel.
        name: of the target.
        task: `auto` takes words, flags and few whole numbers for classes, any other numbers for numbers.

    Raises:
        DataError: for values that do not fit the task, or are all the same.
    """
    if values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.dtype.kind == "O" and not any(isinstance(value, str) for value in values):
        values = np.array(values.tolist())
    task = _task(values) if task == "auto" else task
    if (task == "segment") != (values.ndim == 3):
        raise DataError(f"targets of shape {values.shape} to {task}", "(n, height, width) to segment, else (n,)")
    if task == "regress":
        return Target(name, task, _as_numbers(values, name))
    classes, places = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"target {name!r} with the one class {classes.tolist()[0]!r}", "at least two")
    if task == "segment" and len(classes) > 256:
        raise DataError(f"masks {name!r} of {len(classes):,} classes", "whole numbers, a class each, at most 256")
    return Target(name, task, places.reshape(values.shape).astype(np.int64), tuple(classes.tolist()))


def _as_numbers(values: npt.NDArray[Any], name: str) -> npt.NDArray[np.float64]:
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"target {name!r} of type {values.dtype} to regress", "numbers", "task='classify'") from None
    if np.ptp(numbers) == 0:
        raise DataError(f"target {name!r}, which is {numbers[0]:g} in every row", "numbers that vary")
    return numbers


def _task(values: npt.NDArray[Any]) -> Task:
    if values.ndim == 3:
        return "segment"
    if values.dtype.kind not in "iuf":
        return "classify"
    few = len(np.unique(values)) <= MANY and bool((values == np.floor(values)).all())
    return "classify" if few else "regress"


def part(target: Target, labels: int | None, seed: int) -> Parted:
    """Rows to learn from and rows held out, each class of both in its share.

    Args:
        target: of rows in random order.
        labels: rows whose target may be known; None for all that are not held out.
        seed: of which ones.

    Raises:
        DataError: for too few rows.
        SettingError: for fewer labels than classes, or more than rows.
    """
    count = len(target.values)
    if count < 4:
        raise DataError(f"{count} rows with a target", "at least 4")
    strata = target.values if target.task == "classify" else np.zeros(count, np.int64)
    held = np.zeros(count, bool)
    held[_drawn(strata, max(1, round(HELD * count)), seed)] = True
    pool = np.flatnonzero(~held)
    if labels is None:
        return Parted(pool, pool, np.flatnonzero(held))
    fewest = len(np.unique(strata[pool])) if target.task != "regress" else 2
    if not (isinstance(labels, int | np.integer) and fewest <= labels <= len(pool)):
        raise SettingError(f"labels={labels}", f"from {fewest} to {len(pool):,}, the rows that are not held out")
    return Parted(pool[_drawn(strata[pool], int(labels), seed + 1)], pool, np.flatnonzero(held))


def _drawn(strata: npt.NDArray[Any], count: int, seed: int) -> npt.NDArray[np.int64]:
    """`count` positions, from each stratum in its share; one from each at least, where there are as many."""
    ranked = np.random.default_rng(seed).permutation(len(strata))
    ranked = ranked[np.argsort(strata[ranked], kind="stable")]
    sizes = np.bincount(np.unique(strata, return_inverse=True)[1].reshape(-1))
    ends = np.cumsum(sizes)
    within = np.arange(len(strata)) - np.repeat(ends - sizes, sizes)
    # each stratum's rows are due at even distances; the first of each before all others
    due = np.where(within == 0, -1.0, (within + 0.5) / np.repeat(sizes, sizes))
    return np.asarray(ranked[np.argsort(due, kind="stable")[:count]])
