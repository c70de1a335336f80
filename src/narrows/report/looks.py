"""Looks at what a model has learnt, beyond its figures: each a title, a sentence that says how to read it, and sheets.

    codes -> numbers of a code moved one at a time | rows with most of a number | ways between rows
    parts -> reconstructions through training      | new rows

A look that makes no sense for a model is left out. What it does not know: how rows are drawn (`sheets`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from narrows.errors import ModelFileError, SettingError
from narrows.fitted import Model
from narrows.fitting import SNAPSHOTS
from narrows.report.filters import Layer, first_layer
from narrows.report.gather import FAINT, Gathered
from narrows.report.sheets import Lines, Sheet, Way, sheets, way_of
from narrows.schema import Batch
from narrows.tasks.figures import figure
from narrows.tasks.generate import Generation, between
from narrows.tasks.prior import prior_of

NUMBERS: dict[Way, int] = {"picture": 6, "lines": 6, "table": 4}  # of a code, or lines of another kind
STEPS: dict[Way, int] = {"picture": 9, "lines": 5, "table": 5}
HELD: dict[Way, int] = {"picture": 6, "lines": 6, "table": 2}  # rows held out
NEW: dict[Way, tuple[int, int]] = {"picture": (2, 12), "lines": (6, 1), "table": (1, 8)}  # lines and steps of samples
STILL = 1e-12  # variance of a number that says nothing


@dataclass(frozen=True)
class Look:
    """A section of the page: what it shows, how to read it, and the drawings."""

    title: str
    note: str
    sheets: list[Sheet] = field(default_factory=list)
    layer: Layer | None = None


def looks(model: Model, gathered: Gathered) -> list[Look]:
    """All that make sense."""
    way = way_of(model.schema)
    found = [] if way is None else [traversals(model, gathered.codes, way), activating(model, gathered, way)]
    if way is not None:
        found += [interpolations(model, gathered, way), through_training(model, way), samples(model, way)]
    return [look for look in (*found, filters(model)) if look is not None]


def filters(model: Model) -> Look | None:
    """What the units of the encoder's first layer look for."""
    layer = first_layer(model)
    return None if layer is None else Look("First layer", layer.note, layer=layer)


@torch.inference_mode()
def traversals(model: Model, codes: Tensor, way: Way) -> Look | None:
    """The numbers of the code that vary most, moved one at a time; of a discrete code, entries exchanged.

    Args:
        model: a fitted model; one network, not several.
        codes: (n, code_size) of some rows.
        way: how rows are shown.
    """
    codes = codes.float()
    if model.members or len(codes) < 2 or not bool((codes.var(0) > STILL).any()):
        return None
    usual = typical(codes)
    if model.module.latent.symbols:
        labels, headings, paths = exchanged(model, codes, usual, way)
        note = "The code of a usual row, with one of its entries exchanged for those that are there most often."
    else:
        labels, headings, paths = moved(codes, usual, way)
        note = (
            "The code of a usual row, with one of its numbers moved, those first that vary most: what changes along a "
            "line is what that number stands for. Moves end where no row has been."
        )
    lines = Lines(labels, headings, *model.cells(paths))
    return Look("What the code's numbers stand for", note, sheets(model, lines))


def typical(codes: Tensor) -> Tensor:
    """(size) the code nearest to the mean of codes (n, size), each number in units of its own spread."""
    spread = codes.std(0).clamp_min(STILL**0.5)
    return codes[((codes - codes.mean(0)) / spread).square().sum(1).argmin()]


def moved(codes: Tensor, usual: Tensor, way: Way) -> tuple[list[str], list[str], Tensor]:
    """Labels, headings and (G * S, size) codes from two standard deviations below to two above."""
    spread, low, high = codes.std(0), codes.amin(0), codes.amax(0)
    numbers = [i for i in spread.argsort(descending=True).tolist() if spread[i] > FAINT * spread.max()][: NUMBERS[way]]
    paths = usual.repeat(len(numbers), STEPS[way], 1)
    for line, number in enumerate(numbers):
        path = usual[number] + torch.linspace(-2, 2, STEPS[way]) * spread[number]
        paths[line, :, number] = path.clamp(low[number], high[number])
    labels = [f"number {i} (sd {figure(float(spread[i]))})" for i in numbers]
    moves = [f"{2 * share:+.2g} sd" for share in np.linspace(-1, 1, STEPS[way])]
    moves[STEPS[way] // 2] = "as it is"
    return labels, [move.replace("-", "\N{MINUS SIGN}") for move in moves], paths.flatten(0, 1)


def exchanged(model: Model, codes: Tensor, usual: Tensor, way: Way) -> tuple[list[str], list[str], Tensor]:
    """The same for a code of entries: those met most often at the places where most are met."""
    one_entry_a_number = torch.zeros(1, model.latent, dtype=torch.long, device=model.module.device)
    width = model.module.latent.look_up(one_entry_a_number).shape[-1] // model.latent  # numbers of an entry
    places = codes.view(len(codes), -1, width)
    met = [torch.unique(places[:, at], dim=0, return_counts=True) for at in range(places.shape[1])]
    varied = [at for at in range(len(met)) if len(met[at][1]) > 1]
    varied = sorted(varied, key=lambda at: -len(met[at][1]))[: NUMBERS[way]]
    steps = min(STEPS[way], *(len(met[at][1]) for at in varied))
    paths = usual.repeat(len(varied), steps, 1)
    for line, at in enumerate(varied):
        entries, counts = met[at]
        paths[line, :, at * width : (at + 1) * width] = entries[counts.argsort(descending=True, stable=True)[:steps]]
    labels = [f"place {at} ({len(met[at][1])} entries)" for at in varied]
    return labels, [f"{i + 1}." for i in range(steps)], paths.flatten(0, 1)


def activating(model: Model, gathered: Gathered, way: Way) -> Look | None:
    """The rows in which numbers of the code are largest."""
    kept = gathered.activating[: NUMBERS[way]]
    if not kept:
        return None
    steps = min(STEPS[way], *(len(each.values) for each in kept))
    rows = Batch.concat([each.rows[:steps] for each in kept]).dense()
    labels = [f"number {each.number} (to {figure(float(each.values[0]))})" for each in kept]
    headings = [f"{i + 1}." for i in range(steps)]
    drawn = sheets(model, Lines(labels, headings, rows.numbers, rows.codes, rows.seen))
    note = (
        "For each number of the code that varies much, the rows in which it is largest: what they share it stands for."
    )
    return Look("Rows with most of a number", note, drawn)


def interpolations(model: Model, gathered: Gathered, way: Way) -> Look | None:
    """The ways between some rows of the sample, code by code."""
    rows = gathered.sample.truth[: NUMBERS[way]]
    if way == "table" or len(rows) < 2 or model.module.latent.symbols:
        return None
    codes, steps = model.codes(rows), STEPS[way]
    count = len(codes) // 2
    arc = model.module.latent.has_prior
    paths = np.concatenate([between(codes[2 * i : 2 * i + 2].numpy(), steps, arc) for i in range(count)])
    at = gathered.sample.index.tolist()
    labels = [f"row {at[2 * i]:,} to {at[2 * i + 1]:,}" for i in range(count)]
    headings = [f"{i / (steps - 1):.0%}" for i in range(steps)]
    lines = Lines(labels, headings, *model.cells(torch.from_numpy(paths)))
    note = "Two rows as they come back, and what lies between their codes: a good code passes through likely rows."
    return Look("Between rows", note, sheets(model, lines))


def through_training(model: Model, way: Way) -> Look | None:
    """What came back of a few rows held out, before training and as it went on.

    Raises:
        ModelFileError: for a part that holds anything else.
    """
    part = model.parts.get(SNAPSHOTS)
    if part is None:
        return None
    epochs, cells = part.facts.get("epochs"), part.tensors.get("cells", torch.zeros(0))
    known = isinstance(epochs, list) and all(isinstance(done, int) for done in epochs)
    if not isinstance(epochs, list) or not known or cells.shape[::2] != (len(epochs), model.schema.cells):
        raise ModelFileError(f"part {SNAPSHOTS} of the model", "cells of the same rows after each of some epochs")
    lines = _of_snapshots(model, cells.float().nan_to_num()[:, : HELD[way]], epochs)
    note = (
        "The same rows, held out from training, as they came back from their codes before the first epoch, after some, "
        "and by the weights that were kept."
    )
    return Look("Through training", note, sheets(model, lines))


def _of_snapshots(model: Model, cells: Tensor, epochs: list[int]) -> Lines:
    """Looks (S, G, C) as lines of rows."""
    joined = cells.transpose(0, 1).flatten(0, 1)
    most = torch.tensor(model.schema.levels, dtype=torch.float32)
    codes = torch.minimum(joined[:, model.schema.numbers :].clamp_min(0), most).long()
    headings = ["untrained" if not done else f"{done:,} epoch{'' if done == 1 else 's'}" for done in epochs]
    labels = [f"held out {i + 1}" for i in range(cells.shape[1])]
    return Lines(labels, headings, joined[:, : model.schema.numbers], codes)


def samples(model: Model, way: Way) -> Look | None:
    """New rows, where the model knows where codes lie."""
    try:
        prior_of(model)
    except SettingError:
        return None
    count, steps = NEW[way]
    numbers, codes = (cells[: count * steps] for cells in Generation(model).cells(0))
    steps = min(steps, len(numbers))  # a block of very wide rows holds few
    count = len(numbers) // steps
    headings = [""] if steps == 1 else [f"{i + 1}." for i in range(steps)]
    lines = Lines([""] * count, headings, numbers[: count * steps], codes[: count * steps])
    note = "Rows that were never there: codes drawn from where they lie, and decoded."
    return Look("New rows", note, sheets(model, lines))
