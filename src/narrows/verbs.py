"""The verbs of the command line: each reads its arguments, calls one function, and says what it did."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from narrows.errors import DataError, NarrowsError
from narrows.files import refuse_unwritable
from narrows.fitted import Model, load
from narrows.fitting import Plan
from narrows.fitting import fit as fit_model
from narrows.networks.dense import Dense
from narrows.report.page import report as write_report
from narrows.sources.source import Source, naming, open_source
from narrows.sources.write import write_rows
from narrows.tasks.baseline import Baseline, learn_baseline
from narrows.tasks.evaluate import measure
from narrows.train.settings import Training, Watch

Flat = Parameter(name="*")
SHOWN = 60  # columns listed for people
NARROWEST = 72  # characters that a table of figures needs: cut figures would say nothing
INTERRUPTED = 130  # what shells call the end by Ctrl-C


@dataclass
class Choices:
    """What to train."""

    recipe: str = "plain"
    """plain, linear, denoising or vae, with arguments as in `vae:beta=4`."""

    latent: int | None = None
    """Numbers in a row's code; by default half of the cells, at most 16."""

    epochs: int | None = None
    """Passes over the rows at most; by default chosen by their number."""

    lr: float | None = None
    """Peak learning rate; by default the optimizer's own."""

    seed: int = 0
    """Of every random draw: equal seeds, data and machines give equal files."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""

    kind: dict[str, str] = field(default_factory=dict)
    """Kind of a column, as `--kind.zip category`: number, category or date."""

    transform: dict[str, str] = field(default_factory=dict)
    """Transform of a column, as `--transform.income quantile`: standardize, minmax, quantile or none."""


@dataclass
class Reading:
    """How to read the data."""

    header: bool | None = None
    """Whether the first line of a CSV file names the columns; found out by default."""


@dataclass
class Running:
    """Where the run is kept and what it prints."""

    run: Path | None = None
    """Folder of the run: settings, metrics, checkpoint; by default the model's name with `.run`."""

    resume: bool = False
    """Go on from the run's checkpoint: the model is the same, bit for bit, as if it had never stopped."""

    verbose: int = 1
    """0 silent, 1 a progress bar where there is a terminal, 2 a line an epoch."""

    json: bool = False
    """Print the result as JSON."""


def fit(
    data: str,
    *,
    out: Path,
    choices: Annotated[Choices | None, Flat] = None,
    network: Annotated[Dense | None, Flat] = None,
    training: Annotated[Training | None, Flat] = None,
    reading: Annotated[Reading | None, Flat] = None,
    running: Annotated[Running | None, Flat] = None,
) -> int:
    """Train a model on data and write it to a file.

    Args:
        data: a file, glob, folder, URL or the word `digits`.
        out: the model file to write, such as m.narrows.
    """
    choices, running = choices or Choices(), running or Running()
    refuse_unwritable(out)  # said before hours of training, not after
    source = open_source(data, header=(reading or Reading()).header)
    plan = Plan(
        recipe=choices.recipe,
        latent=choices.latent,
        network=network or Dense(),
        training=training or Training(),
        epochs=choices.epochs,
        lr=choices.lr,
        seed=choices.seed,
        device=choices.device,
        kinds=choices.kind,  # type: ignore[arg-type]
        transforms=choices.transform,
    )
    folder = running.run or out.with_name(f"{out.stem if out.suffix != '.run' else out.name}.run")
    watch = Watch(folder=folder, resume=running.resume, verbose=running.verbose)
    model = fit_model(source, plan, learn={"baseline": learn_baseline}, watch=watch)
    _save(model, out, folder)
    facts = {key: value for key, value in model.facts.items() if key != "records"}
    if running.json:
        print(jsonlib.dumps(facts, sort_keys=True))
    else:
        _say(f"{out}: {_sentence(model)}")
    return INTERRUPTED if facts["reason"] == "interrupted" else 0


def _say(sentence: str) -> None:
    """Print a line that the terminal may wrap, and that reaches a pipe or file in one piece."""
    Console().print(sentence, highlight=False, markup=False, soft_wrap=True)


def _save(model: Model, out: Path, folder: Path) -> None:
    """Write the model; where that fails, say that the training was not for nothing."""
    try:
        model.save(out)
    except NarrowsError as error:
        kept = f"{error.hint}; then the same command with --resume, since {folder} keeps the trained weights"
        raise NarrowsError(error.got, error.wanted, kept if folder.is_dir() else error.hint) from error


def _sentence(model: Model) -> str:
    """One line on what was trained."""
    facts = model.facts
    rows, epochs = (f"{facts[word]:,} {word if facts[word] != 1 else word[:-1]}" for word in ("rows", "epochs"))
    held = f" and {facts['validation_rows']:,} held out" if facts["validation_rows"] else ""
    return f"{model.recipe.name}, code of {model.code_size}, from {rows}{held}; {epochs}, stopped by: {facts['reason']}"


def encode(model: Path, data: str, *, out: Path, reading: Annotated[Reading | None, Flat] = None) -> None:
    """Rows to codes.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data.
        out: .npy, .parquet, .csv or .jsonl.
    """
    fitted = load(model)
    names, rows = _code_names(fitted), _source(fitted, data, reading)
    if out.suffix == ".npy":
        shape = pa.fixed_shape_tensor(pa.float32(), (fitted.code_size,))
        batches = (_as_matrix(fitted.codes(batch).numpy()) for _, batch in fitted.batches(rows))
        write_rows(out, batches, pa.schema([("z", shape)]))
        return
    tables = (_as_columns(fitted.codes(batch).numpy(), names) for _, batch in fitted.batches(rows))
    write_rows(out, tables, pa.schema([(name, pa.float32()) for name in names]))


def _code_names(fitted: Model) -> list[str]:
    return [f"z{i}" for i in range(fitted.code_size)]


def _source(fitted: Model, data: str, reading: Reading | None) -> Source:
    """Rows for a model, read as the command line says."""
    return fitted.source(data, (reading or Reading()).header)


def _as_matrix(codes: np.ndarray) -> pa.RecordBatch:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(codes))
    return pa.RecordBatch.from_arrays([tensor], ["z"])


def _as_columns(codes: np.ndarray, names: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in codes.T], names)


def decode(model: Path, codes: str, *, out: Path) -> None:
    """Codes back to rows.

    Args:
        model: a .narrows file.
        codes: codes as `encode` writes them.
        out: .npy, .parquet, .csv or .jsonl.
    """
    fitted, source = load(model), open_source(codes)
    names = _code_names(fitted)
    rows = (fitted.decode(_matrix(raw, names)) for _, raw in source.batches())
    with naming(source):
        write_rows(out, _record_batches(rows), fitted.preparer.arrow_schema)


def _matrix(raw: pa.RecordBatch, names: list[str]) -> np.ndarray:
    """Codes in one array column, or in a table of numbers: by name where the names are those of codes."""
    if raw.num_columns == 1 and isinstance(raw.column(0), pa.FixedShapeTensorArray):
        tensor: np.ndarray = raw.column(0).to_numpy_ndarray()
        return tensor
    for name, kind in zip(raw.schema.names, raw.schema.types, strict=True):
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DataError(f"column {name!r} of type {kind} among codes", "numbers")
    raw = raw.select(names) if set(raw.schema.names) == set(names) else raw
    return np.column_stack([column.to_numpy(zero_copy_only=False) for column in raw.columns])


def _record_batches(tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def reconstruct(model: Path, data: str, *, out: Path, reading: Annotated[Reading | None, Flat] = None) -> None:
    """Rows to codes and back: what the model keeps of them, with holes filled.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data.
        out: .npy, .parquet, .csv or .jsonl.
    """
    fitted = load(model)
    rows = (fitted.rows(fitted.codes(batch)) for _, batch in fitted.batches(_source(fitted, data, reading)))
    write_rows(out, rows, fitted.preparer.arrow_schema)


def evaluate(model: Path, data: str, *, json: bool = False, reading: Annotated[Reading | None, Flat] = None) -> None:
    """Reconstruction error per column, against PCA of the same size and the mean.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data, best ones it was not trained on.
        json: print the result as JSON.
    """
    fitted = load(model)
    source = _source(fitted, data, reading)
    result = measure(fitted, source, Baseline.of(fitted, source))
    if json:
        print(jsonlib.dumps(result.to_json(), sort_keys=True))
    else:
        console = Console()
        console.width = max(console.width, NARROWEST)
        console.print(result.table())
        _say(result.verdict)


def report(
    model: Path,
    data: str,
    *,
    out: Path = Path("report.html"),
    reading: Annotated[Reading | None, Flat] = None,
) -> None:
    """A page to look at: curves, reconstructions, errors, a map of the codes, the worst rows.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data.
        out: the page, one self-contained HTML file.
    """
    refuse_unwritable(out)
    fitted = load(model)
    write_report(fitted, _source(fitted, data, reading), out)
    _say(str(out))


def info(model: Path, *, json: bool = False) -> None:
    """What a model is: recipe, columns, sizes, training.

    Args:
        model: a .narrows file.
        json: print the facts as JSON.
    """
    facts = _facts(load(model))
    if json:
        print(jsonlib.dumps(facts, sort_keys=True))
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(f"[bold]{key}[/]", Text(_lines(value) if isinstance(value, list) else str(value)))
    Console().print(table)


def _lines(values: list[str]) -> str:
    """One value a line, as many as a screen holds."""
    more = [f"and {len(values) - SHOWN:,} more, which --json lists"] if len(values) > SHOWN else []
    return "\n".join([*values[:SHOWN], *more])


def _facts(model: Model) -> dict[str, Any]:
    training = {key: value for key, value in model.facts.items() if key != "records"}
    return {
        "recipe": str(model.recipe),
        "code": model.code_size,
        "network": str(model.network) if model.network else "the user's own",
        "weights": sum(p.numel() for p in model.module.parameters()),
        "cells": model.schema.cells,
        "columns": [f"{c.name}: {c.kind} ({c.type}{'' if not c.shape else f', {c.shape}'})" for c in model.schema],
        **training,
        "parts": sorted(model.parts),
    }
