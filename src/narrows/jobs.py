"""The verbs of jobs: what a fitted model is put to, beyond codes and reconstructions.

Like `verbs`, each reads its arguments, calls one function, and says what it did.
"""

from __future__ import annotations

import json as jsonlib
import sys
from collections import deque
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from rich.console import Console

from narrows.applied import model_of, own_part, own_rows, reading_of, rows_of, say, with_asides
from narrows.errors import SettingError
from narrows.fitted import Model
from narrows.fitting import Plan
from narrows.launch import launched
from narrows.options import Applying, Choices, Drawing, Flat, Imputing, Studying, refuse_output
from narrows.sizing import PART as TUNE
from narrows.sources.lines import read_steps
from narrows.sources.reading import Reading, asides
from narrows.sources.source import Source, open_source
from narrows.sources.write import write_rows
from narrows.sources.writefiles import write_files
from narrows.tasks.digest import Digest
from narrows.tasks.drift import drift as look_for_drift
from narrows.tasks.generate import Generation, interpolate
from narrows.tasks.heat import picture_field, pictured, pictures
from narrows.tasks.impute import DRAW, Imputation
from narrows.tasks.labelled import Task
from narrows.tasks.pooling import Means, means_table
from narrows.tasks.prior import keep_prior
from narrows.tasks.probe import probe as probe_model
from narrows.tasks.purposes import purpose_of
from narrows.tasks.steps import StepVerdicts, means
from narrows.tasks.tune import tune as tune_model
from narrows.tasks.tuned import sentence, table
from narrows.tasks.verdicts import Verdicts
from narrows.tasks.whole import cleaned

NARROWEST = 100  # characters that a table of worst rows needs
DRIFTED = 3  # exit code


def denoise(
    model: Path, data: str, *, out: Path, fill: bool = True, applying: Annotated[Applying | None, Flat] = None
) -> None:
    """Rows without their noise; pictures, sounds and series in their own size.

    Args:
        model: a .narrows file, best of the recipe denoising.
        data: rows with the columns of the training data; pictures may be of any size, series and sounds of any length.
        out: .npy, .parquet, .csv, .jsonl, or .txt for texts; without a suffix a folder of images, sounds or texts.
        fill: give what was missing too, in place of leaving it missing.
    """
    refuse_output(out, model, data)
    answer = cleaned(model_of(model, applying), data, reading_of(applying), fill)
    if out.suffix == ".npy":
        write_rows(out, (clean for _, clean in answer.rows), answer.schema)
        return
    rows = (with_asides(raw, clean) for raw, clean in answer.rows)
    schema = pa.schema([*answer.aside, *answer.schema])
    if out.suffix:
        write_rows(out, rows, schema)
    else:  # not checked to be of one type: each picture has a size of its own
        write_files(out, rows, schema)


def detect(
    model: Path,
    data: str,
    *,
    out: Path | None = None,
    explain: bool = False,
    steps: bool = False,
    alarms: float | None = None,
    json: bool = False,
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """Anomalies among rows: scores, p-values, which rows stand out, and why.

    Args:
        model: a .narrows file of `fit --for detect`.
        data: rows with the columns of the training data.
        out: .parquet, .csv, .jsonl: a line for each row; without a suffix a folder of pictures, each beside its heat.
            Without it, only the terminal says what was found.
        explain: write for each row why: the cells to blame, what was expected there, the nearest ordinary row.
        steps: write a line for each step of a series in place of each window: the mean over the windows that cover it.
        alarms: share of normal rows that may be called anomalies, such as 0.01; by default the model's own threshold.
        json: print the result as JSON.
    """
    if launched()[0] and (out is None or steps):  # what is not written in parts is rank 0's alone
        return
    if out:
        refuse_output(out := out if steps else own_part(out), model, data)
    verdicts = Verdicts(model_of(model, applying), explain=explain, alarms=alarms)
    if steps:  # windows overlap: one process has them all
        _write_steps(out, verdicts, rows_of(verdicts.model, data, applying))
        return
    source, digest = rows_of(verdicts.model, data, applying), Digest(verdicts)
    source = own_rows(source) if out else source
    if out and not out.suffix:
        _draw_heat(out, verdicts, source, digest)
    elif out:
        rows = (with_asides(raw, said) for raw, _, said in digest.of(source))
        write_rows(out, rows, pa.schema([*asides(source.schema), *verdicts.schema]))
    else:
        deque(digest.of(source), maxlen=0)
    if json:
        print(jsonlib.dumps(digest.to_json(), sort_keys=True))
        return
    console = Console()
    console.width = max(console.width, NARROWEST)
    console.print(digest.table())
    say(f"{out}: {digest}" if out else str(digest))


def _write_steps(out: Path | None, verdicts: Verdicts, source: Source) -> None:
    """Write a line for each step of a series."""
    if out is None or not out.suffix:
        raise SettingError("--steps without a file to write them to", "--out steps.parquet, .csv or .jsonl")
    told = StepVerdicts(verdicts)
    say(f"{out}: {write_rows(out, told.on(source), told.schema):,} steps")


def drift(
    model: Path,
    data: str,
    *,
    alpha: float = 0.05,
    reference: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    json: bool = False,
    applying: Annotated[Applying | None, Flat] = None,
) -> int:
    """Whether new rows are like those of training: every column, the codes, the score; exit code 3 where they are not.

    Args:
        model: a .narrows file of `fit --for drift`; any other with --reference.
        data: new rows with the columns of the training data.
        alpha: probability of any false alarm.
        reference: usual rows to compare with, best such that the model was not trained on; by default those it keeps.
        out: .parquet, .csv, .jsonl: a line for each comparison.
        seed: of the sample of many rows, and of the permutations.
        json: print the result as JSON.
    """
    if out:
        refuse_output(out, model, data, *([reference] if reference else []))
    fitted = model_of(model, applying)
    usual = rows_of(fitted, reference, applying) if reference else None
    found = look_for_drift(fitted, rows_of(fitted, data, applying), reference=usual, alpha=alpha, seed=seed)
    if out:
        table = found.to_arrow()
        write_rows(out, table.to_batches(), table.schema)
    if json:
        print(jsonlib.dumps(found.to_json(), sort_keys=True))
    else:
        console = Console()
        console.width = max(console.width, NARROWEST)
        console.print(found.table())
        say(f"{out}: {found}" if out else str(found))
    return DRIFTED if found else 0


def follow(
    model: Path,
    *,
    state: Path | None = None,
    series: str | None = None,
    alarms: float | None = None,
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """Scores of steps of a series as they arrive on standard input, a line of JSON for each.

    Args:
        model: a .narrows file of `fit --for detect` on windows of a series.
        state: file to go on from, where it is there, and to leave behind: a stopped run goes on as if never stopped.
        series: column that tells one series from another.
        alarms: share of normal windows that may be called anomalies; by default the model's own threshold.
    """
    told = StepVerdicts(Verdicts(model_of(model, applying), alarms=alarms))
    if state is not None and state.exists():
        told.follower.restore(state)
    try:
        for name, values in read_steps(sys.stdin, told.channels, series):
            print(jsonlib.dumps(told.heard(told.follower.hear(values, name))), flush=True)
    finally:  # also where it was interrupted, or a line could not be read: what was heard is not lost
        if state is not None:
            told.follower.save(state)
    if state is None:  # no later step is to come
        for steps in told.follower.finish():
            print(jsonlib.dumps({"settled": means(steps)}), flush=True)


def _draw_heat(out: Path, verdicts: Verdicts, source: Source, digest: Digest) -> None:
    """Write each picture beside its heat."""
    column = pictured(verdicts.model)
    if column is None:
        hint = "a name that ends in .parquet, .csv or .jsonl"
        raise SettingError(f"--out {out}, a folder", "rows with one image each, to be drawn beside their heat", hint)
    drawn = (with_asides(raw, pictures(verdicts.detector, column, batch)) for raw, batch, _ in digest.of(source))
    write_files(out, drawn, pa.schema([*asides(source.schema), picture_field(column)]))


def probe(
    model: Path,
    data: str,
    *,
    target: str,
    labels: int | None = None,
    task: Task = "auto",
    tune: bool = False,
    seed: int = 0,
    json: bool = False,
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """What codes know of a column the model was never told: a small reader of them, beside raw rows and PCA.

    Args:
        model: a .narrows file.
        data: rows with the columns of the training data, and the target.
        target: the column to be told; of images, class numbers a pixel.
        labels: rows whose target may be known, by default all but the fifth that is held out.
        task: classify, regress, segment, or auto: words, flags and up to 20 whole numbers are classes.
        tune: train the encoder as well, on the labelled rows.
        seed: of the rows held out and labelled, and of the training.
        json: print the result as JSON.
    """
    fitted = model_of(model, applying)
    found = probe_model(fitted, rows_of(fitted, data, applying), target, labels, task, tune, seed)
    if json:
        print(jsonlib.dumps(found.to_json(), sort_keys=True))
    else:
        Console().print(found.table())


def impute(
    model: Path,
    data: str,
    *,
    out: Path,
    imputing: Annotated[Imputing | None, Flat] = None,
    json: bool = False,
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """Rows with their holes filled; what was there stays as it was.

    Args:
        model: a .narrows file of `fit --for impute`, or of a variational recipe.
        data: rows with the columns of the training data.
        out: .parquet, .csv or .jsonl. With --draws all draws of a stretch of rows follow each other.
        json: print what was filled as JSON, and with --draws the pooled means.
    """
    refuse_output(out := own_part(out), model, data)
    asked, fitted = imputing or Imputing(), model_of(model, applying)
    source = own_rows(rows_of(fitted, data, applying))
    settings = {"draws": asked.draws, "interval": asked.interval, "seed": asked.seed, "add_indicator": asked.indicator}
    work = Imputation(fitted, **settings)  # type: ignore[arg-type]
    means = Means([column.name for column in work.alone])
    rows = (_counted(part, means) for part in work.of(source)) if asked.draws else work.of(source)
    write_rows(out, rows, work.schema(source))
    pooled = means.pooled() if (asked.draws or 0) > 1 and work.rows > 1 else {}
    if json:
        facts = {"rows": work.rows, "filled": work.filled}
        facts |= {"means": {name: asdict(mean) for name, mean in pooled.items()}} if pooled else {}
        print(jsonlib.dumps(facts, sort_keys=True))
        return
    if pooled:
        Console().print(means_table(pooled))
    cells, of = sum(work.filled.values()), work.rows * len(work.filled)
    say(f"{out}: {work.rows:,} rows, {cells:,} of {of:,} values filled")


def _counted(rows: pa.RecordBatch, means: Means) -> pa.RecordBatch:
    if len(rows):
        means.add(int(rows.column(DRAW)[0].as_py()), rows)
    return rows


def generate(
    model: Path,
    *,
    out: Path,
    drawing: Annotated[Drawing | None, Flat] = None,
    between: str | None = None,
    steps: int = 8,
    learn: str | None = None,
    keep: bool = False,
    applying: Annotated[Applying | None, Flat] = None,
) -> None:
    """New rows like those of training; or rows between rows.

    Args:
        model: a .narrows file: of `fit --for generate`, or of any recipe with --learn.
        out: .npy, .parquet, .csv, .jsonl, or .txt for texts; without a suffix a folder of images, sounds or texts.
        between: rows to go between, in place of drawing new ones: from each to the next.
        steps: rows of each such way, both ends counted.
        learn: rows, best those of training, to learn from where codes lie: what a model needs whose recipe does not
            say it, and what makes better rows with one that does.
        keep: write what was learnt into the model file.
    """
    refuse_output(out, model, *(name for name in (between, learn) if name))
    drawing = drawing or Drawing()
    if between and (drawing.rows or drawing.where):
        raise SettingError("--between with --rows or --where", "one of them: rows between rows, or new ones")
    if keep and not learn:
        raise SettingError("--keep with nothing learnt", hint="--learn DATA")
    fitted = model_of(model, applying)
    if learn:
        keep_prior(fitted, rows_of(fitted, learn, applying), seed=drawing.seed)
        if keep:
            fitted.save(model)
    schema = fitted.preparer.arrow_schema
    if between:
        rows = interpolate(fitted, rows_of(fitted, between, applying), steps)
        say(f"{out}: {write_rows(out, rows.to_batches(), schema):,} rows")
    else:
        _draw(fitted, out, drawing)


def tune(
    data: str,
    *,
    out: Path,
    studying: Annotated[Studying | None, Flat] = None,
    choices: Annotated[Choices | None, Flat] = None,
    reading: Annotated[Reading | None, Flat] = None,
    verbose: int = 1,
    json: bool = False,
) -> None:
    """Choose code size and settings by trials, and fit the model that they chose on all rows.

    Args:
        data: a file, glob, folder, URL or the word `digits`.
        out: the model file to write, such as best.narrows.
        verbose: 0 silent, 1 a line for each trial.
        json: print the trials as JSON.
    """
    refuse_output(out, data, suffix=".narrows")
    chosen, asked, source = choices or Choices(), studying or Studying(), open_source(data, reading=reading)
    if chosen.job not in (None, "denoise"):  # other jobs learn more than weights, on rows of their own choice
        hint = f"tune without it; then narrows fit --for {chosen.job} with the size and settings that were chosen"
        raise SettingError(f"tune --for {chosen.job}", "a recipe, or --for denoise", hint)
    recipe = chosen.recipe or purpose_of(chosen.job).recipe
    plan = Plan(recipe, chosen.latent, None, epochs=chosen.epochs, lr=chosen.lr, seed=chosen.seed)
    plan = replace(plan, device=chosen.device, columns=chosen.column)

    def told(trial: dict[str, Any], done: int) -> None:
        if verbose:
            score = f", cost {trial['score']:.4g}" if "score" in trial else ""
            print(
                f"{done} of {asked.trials}: trial {trial['trial']} {trial['state']}, latent {trial['latent']}{score}",
                file=sys.stderr,
            )

    folder = asked.folder or out.with_suffix(".tune")
    model = tune_model(source, plan, trials=asked.trials, time_limit=asked.time_limit, folder=folder, told=told)
    model.save(out)
    facts = model.parts[TUNE].facts
    if json:
        print(jsonlib.dumps(facts, sort_keys=True))
        return
    Console().print(table(facts))
    say(f"{out}: {sentence(facts)}")


def _draw(fitted: Model, out: Path, drawing: Drawing) -> None:
    """Write new rows, and say what given values left of the codes."""
    given, temperature, draws = drawing.given(), drawing.temperature, drawing.sample_cells
    made = Generation(fitted, drawing.seed, where=given, temperature=temperature, sample_cells=draws)
    wanted = 100 if drawing.rows is None else drawing.rows
    count = write_rows(out, made.batches(wanted), fitted.preparer.arrow_schema)
    chosen = made.chosen
    worth = f"; {chosen.drawn:,} codes were worth {chosen.effective:,.0f} for what is given" if chosen else ""
    say(f"{out}: {count:,} rows{worth}")
