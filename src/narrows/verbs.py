"""The verbs of the command line: each reads its arguments, calls one function, and says what it did."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from narrows.applied import model_of, own_part, own_rows, reading_of, rows_of, say, with_asides
from narrows.continued import refuse_given
from narrows.errors import DataError
from narrows.fitted import Model, load
from narrows.fitting import Plan
from narrows.fitting import fit as fit_model
from narrows.launch import launched, restarted
from narrows.networks.choice import Network, Word
from narrows.networks.conv import Conv
from narrows.networks.dense import Dense
from narrows.networks.recurrent import Recurrent
from narrows.networks.transformer import Transformer
from narrows.options import Applying, Choices, Detecting, Flat, Running, refuse_output
from narrows.report.page import report as write_report
from narrows.report.sections import layers
from narrows.sources.reading import Reading, asides
from narrows.sources.reshard import reshard as write_again
from narrows.sources.source import Source, naming, open_source
from narrows.sources.write import write_rows
from narrows.stopwatch import spent, timing
from narrows.tasks.baseline import Baseline
from narrows.tasks.evaluate import measure
from narrows.tasks.likelihood import log_likelihood
from narrows.tasks.purposes import going_on, purpose_of
from narrows.told import best, going, save, sentence, tell
from narrows.train.settings import Training, Watch

SHOWN = 60  # columns listed for people
NARROWEST = 72  # characters that a table of figures needs: cut figures would say nothing
INTERRUPTED = 130  # what shells call the end by Ctrl-C


def fit(
    data: str,
    *,
    out: Path,
    choices: Annotated[Choices | None, Flat] = None,
    network: Word = "auto",
    dense: Annotated[Dense | None, Flat] = None,
    conv: Conv | None = None,
    recurrent: Recurrent | None = None,
    transformer: Transformer | None = None,
    training: Annotated[Training | None, Flat] = None,
    reading: Annotated[Reading | None, Flat] = None,
    detecting: Annotated[Detecting | None, Flat] = None,
    running: Annotated[Running | None, Flat] = None,
) -> int:
    """Train a model on data and write it to a file.

    Args:
        data: a file, glob, folder, URL or the word `digits`.
        out: the model file to write, such as m.narrows.
        network: by default dense layers for tables, conv for images, series and sounds, recurrent for texts. The
            transformer reads all of these, and the cells of a table.
        conv: settings of convolutions.
        recurrent: settings of recurrent networks.
        transformer: settings of transformers.
    """
    choices, detecting, running = choices or Choices(), detecting or Detecting(), running or Running()
    reading = reading or Reading()
    refuse_output(out, data, *([choices.start] if choices.start else []), suffix=".narrows")
    nets = Network(network, dense or Dense(), conv or Conv(), recurrent or Recurrent(), transformer or Transformer())
    start = _start(choices, nets, reading, quiet=running.json)
    source = _training_rows(data, reading, training, start)
    known = {"schema": source.schema, "recipe": choices.recipe}
    purpose = purpose_of(choices.job, detecting.contamination, detecting.all_normal, **known)
    purpose = going_on(start) if start else purpose
    plan = Plan(
        recipe=choices.recipe or purpose.recipe,
        latent=choices.latent,
        network=nets,
        training=training or Training(),
        epochs=choices.epochs,
        lr=choices.lr,
        seed=choices.seed,
        device=choices.device,
        columns=choices.column,
        start=start,
    )
    folder = running.run or out.with_suffix(".run")
    watch = Watch(folder=folder, resume=running.resume or restarted(), verbose=running.verbose)
    with timing() if running.profile else nullcontext() as profile:
        model = fit_model(source, purpose.settle(plan), learn=purpose.learn, core=purpose.core, watch=watch)
        if launched()[0] == 0:
            with spent("write"):
                save(model, out, folder)
    if launched()[0] == 0:
        tell(model, out, folder, running.json, profile)
    return INTERRUPTED if model.facts["reason"] == "interrupted" else 0


def _training_rows(data: str, reading: Reading, training: Training | None, start: Model | None) -> Source:
    """The source of the rows to train on; series are in the order of the column that the split is by."""
    in_time = reading.form == "series" or (reading.form in ("auto", "table") and reading.window)
    if training and training.time and in_time and reading.stamp is None:
        reading = replace(reading, stamp=training.time)
    return start.source(data, reading) if start else open_source(data, reading=reading)


def _start(choices: Choices, nets: Network, reading: Reading, quiet: bool) -> Model | None:
    """The model to go on from: checks that nothing is given that it has settled, and says what that means."""
    if choices.start is None:
        return None
    wished: dict[str, Any] = {"--for": choices.job, "--column": choices.column, "--recipe": choices.recipe}
    wished |= {"--latent": choices.latent, "--network": nets != Network(), "how to read": reading.kept()}
    refuse_given([name for name, value in wished.items() if value])
    start = load(choices.start)
    if launched()[0] == 0 and not quiet:
        say(going(str(choices.start), start, going_on(start)))
    return start


def encode(model: Path, data: str, *, out: Path, applying: Annotated[Applying | None, Flat] = None) -> None:
    """Rows to codes.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data.
        out: .npy, .parquet, .csv or .jsonl. All but .npy also get what stands aside: paths, labels, starts of windows.
    """
    refuse_output(out := own_part(out), model, data)
    fitted = model_of(model, applying)
    names, rows = _code_names(fitted), own_rows(rows_of(fitted, data, applying))
    if out.suffix == ".npy":
        shape = pa.fixed_shape_tensor(pa.float32(), (fitted.code_size,))
        batches = (_as_matrix(fitted.codes(batch).numpy()) for _, batch in fitted.batches(rows))
        write_rows(out, batches, pa.schema([("z", shape)]))
        return
    tables = (with_asides(raw, _as_columns(fitted.codes(batch).numpy(), names)) for raw, batch in fitted.batches(rows))
    write_rows(out, tables, pa.schema([*asides(rows.schema), *((name, pa.float32()) for name in names)]))


def _code_names(fitted: Model) -> list[str]:
    return [f"z{i}" for i in range(fitted.code_size)]


def _as_matrix(codes: np.ndarray) -> pa.RecordBatch:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(codes))
    return pa.RecordBatch.from_arrays([tensor], ["z"])


def _as_columns(codes: np.ndarray, names: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in codes.T], names)


def decode(model: Path, codes: str, *, out: Path, applying: Annotated[Applying | None, Flat] = None) -> None:
    """Codes back to rows.

    Args:
        model: a .narrows file.
        codes: codes as `encode` writes them.
        out: .npy, .parquet, .csv, .jsonl, or .txt for texts; without a suffix a folder of images, sounds or texts.
    """
    refuse_output(out := own_part(out), model, codes)
    fitted, source = model_of(model, applying), own_rows(open_source(codes, reading=reading_of(applying)))
    names = _code_names(fitted)
    rows = (fitted.decode(_matrix(raw, names)) for _, raw in source.batches())
    with naming(source):
        write_rows(out, _record_batches(rows), fitted.preparer.arrow_schema)


def _matrix(raw: pa.RecordBatch, names: list[str]) -> np.ndarray:
    """Codes in one array column, or in a table of numbers: by name where the names are those of codes."""
    if raw.num_columns == 1 and isinstance(raw.column(0), pa.FixedShapeTensorArray):
        tensor: np.ndarray = raw.column(0).to_numpy_ndarray()
        return tensor
    others = set(raw.schema.names) - set(names)  # what `encode` wrote beside the codes: paths, labels, starts
    if set(names) <= set(raw.schema.names) and not any(re.fullmatch(r"z\d+", name) for name in others):
        raw = raw.select(names)
    for name, kind in zip(raw.schema.names, raw.schema.types, strict=True):
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DataError(f"column {name!r} of type {kind} among codes", "numbers")
    return np.column_stack([column.to_numpy(zero_copy_only=False) for column in raw.columns])


def _record_batches(tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        yield from table.to_batches()


def reconstruct(model: Path, data: str, *, out: Path, applying: Annotated[Applying | None, Flat] = None) -> None:
    """Rows to codes and back: what the model keeps of them, with holes filled.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data.
        out: .npy, .parquet, .csv, .jsonl, or .txt for texts; without a suffix a folder of images, sounds or texts.
    """
    refuse_output(out := own_part(out), model, data)
    fitted = model_of(model, applying)
    source = own_rows(rows_of(fitted, data, applying))
    schema = fitted.preparer.arrow_schema
    if out.suffix == ".npy":
        write_rows(out, (fitted.rows(fitted.codes(batch)) for _, batch in fitted.batches(source)), schema)
        return
    rows = (with_asides(raw, fitted.rows(fitted.codes(batch))) for raw, batch in fitted.batches(source))
    write_rows(out, rows, pa.schema([*asides(source.schema), *schema]))


def evaluate(
    model: Path,
    data: str,
    *,
    groups: str | None = None,
    likelihood: int | None = None,
    json: bool = False,
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """Reconstruction error per column, against PCA of the same size and the mean.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data, best ones it was not trained on.
        groups: a column, modeled or not, for each of whose values errors are told apart; by default that of --balance.
        likelihood: also estimate -log p(x) with this many draws of each row's code; papers take 5,000.
        json: print the result as JSON.
    """
    fitted = model_of(model, applying)
    source = rows_of(fitted, data, applying)
    estimate = None if likelihood is None else log_likelihood(fitted, source, likelihood)
    result = measure(fitted, source, Baseline.of(fitted, source), groups)
    if json:
        more = {"likelihood": asdict(estimate)} if estimate else {}
        print(jsonlib.dumps(result.to_json() | more, sort_keys=True))
    else:
        console = Console()
        console.width = max(console.width, NARROWEST)
        console.print(result.table())
        if result.groups:
            console.print(result.groups.table())
        say(result.verdict)
        if result.groups:
            say(result.groups.sentence)
        if estimate:
            say(str(estimate))


def report(
    model: Path,
    data: str,
    *,
    out: Path = Path("report.html"),
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """A page to look at: curves, reconstructions, errors, a map of the codes, the worst rows.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data.
        out: the page, one self-contained HTML file.
    """
    refuse_output(out, model, data, suffix=".html")
    fitted = model_of(model, applying)
    write_report(fitted, rows_of(fitted, data, applying), out)
    say(str(out))


def reshard(
    data: str,
    out: Path,
    *,
    rows_per_group: int = 65_536,
    shuffle: bool = False,
    seed: int = 0,
    reading: Annotated[Reading | None, Flat] = None,
) -> None:
    """Data re-cut for streaming: Parquet in row groups that many can be read of side by side.

    Args:
        data: a file, glob, folder or URL, such as a Parquet file of one giant row group.
        out: a .parquet file, or a folder of several, new or empty.
        rows_per_group: rows of a row group at most; wide rows make smaller ones, of about 16 MB.
        shuffle: put all rows into one random order.
        seed: of that order.
    """
    source = open_source(data, reading=reading)
    with Progress(*Progress.get_default_columns(), transient=True) as bar:
        task = bar.add_task("rows", total=None)

        def told(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        rows = write_again(source, out, rows_per_group=rows_per_group, shuffle=shuffle, seed=seed, progress=told)
    say(f"{out}: {rows:,} rows")


def info(model: Path, *, json: bool = False) -> None:
    """What a model is: recipe, columns, sizes, training.

    Args:
        model: a .narrows file.
        json: print the facts as JSON.
    """
    fitted = load(model)
    if json:
        print(jsonlib.dumps(_facts(fitted), sort_keys=True))
        return
    table = Table(show_header=False, box=None)
    for key, value in _described(fitted).items():
        table.add_row(f"[bold]{key}[/]", Text(value, overflow="fold"))  # a long recipe is one word
    Console().print(table)


def _facts(model: Model) -> dict[str, Any]:
    """What a model is, as data."""
    training = {key: value for key, value in model.facts.items() if key not in ("records", "best")}
    return {
        "recipe": asdict(model.recipe),
        "code": model.code_size,
        "network": asdict(model.network) if model.network else None,
        "weights": sum(p.numel() for p in model.module.parameters()),
        "cells": model.schema.cells,
        "columns": model.schema.to_json(),
        "reading": model.reading.kept(),
        **training,
        **best(model),
        "diagnosis": [finding.to_json() for finding in model.diagnosis],
        "parts": sorted(model.parts),
    }


def _described(model: Model) -> dict[str, str]:
    """What a model is, for people."""
    facts = _facts(model)
    settings = facts.get("settings", {})
    columns = [f"{c.name}: {c.kind} ({c.type}{'' if not c.shape else f', {c.shape}'})" for c in model.schema]
    more = [f"and {len(columns) - SHOWN:,} more, which --json lists"] if len(columns) > SHOWN else []
    return {
        "recipe": str(model.recipe),
        "code": f"{model.code_size} numbers for {model.schema.cells:,} cells a row",
        "network": f"{layers(model)}; {facts['weights']:,} weights",
        "columns": "\n".join([*columns[:SHOWN], *more]),
        **(
            {"reading": ", ".join(f"{key} {value}" for key, value in facts["reading"].items())}
            if facts["reading"]
            else {}
        ),
        "trained": sentence(model),
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items()),
        "diagnosis": _diagnosis(model),
        "parts": ", ".join(facts["parts"]),
    }


def _diagnosis(model: Model) -> str:
    """What was found to be wrong, a line each."""
    found = model.diagnosis
    problems = [str(finding) for finding in found if finding.problem]
    return "\n".join(problems) or ("nothing found wrong" if found else "not made")
