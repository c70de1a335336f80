"""What the verbs of fitted models share: the model and rows that arguments name, answers beside what stood aside."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from rich.console import Console

from narrows.fitted import Model, load
from narrows.launch import launched
from narrows.options import Applying
from narrows.sources.reading import Reading, asides
from narrows.sources.source import Source


def say(sentence: str) -> None:
    """Print a line that the terminal may wrap, and that reaches a pipe or file in one piece."""
    Console().print(sentence, highlight=False, markup=False, soft_wrap=True)


def model_of(path: Path, applying: Applying | None) -> Model:
    """The model in a file, where the command line says."""
    return load(path, device=(applying or Applying()).device)


def rows_of(fitted: Model, data: str, applying: Applying | None) -> Source:
    """Rows for a model, read as the command line says."""
    return fitted.source(data, reading_of(applying))


def own_part(out: Path) -> Path:
    """The file of `out` that this process writes: of several each has one, whose names sort as the rows do."""
    rank, size = launched()
    return out if size == 1 else out.with_name(f"{out.stem}-{rank:05d}-of-{size:05d}{out.suffix}")


def own_rows(source: Source) -> Source:
    """The rows that fall to this process, where a launcher started several."""
    return source.stretch(*launched())


def reading_of(applying: Applying | None) -> Reading:
    """What the command line says of the file at hand."""
    known = applying or Applying()
    return Reading(header=known.header, strict=known.strict)


def with_asides(raw: pa.RecordBatch, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Answers to rows, beside what stood aside of these: where they came from, and what they are called."""
    entries = asides(raw.schema)
    columns = [raw.column(entry.name) for entry in entries]
    return pa.RecordBatch.from_arrays([*columns, *rows.columns], schema=pa.schema([*entries, *rows.schema]))
