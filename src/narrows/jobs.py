"""The verbs of jobs: what a fitted model is put to, beyond codes and reconstructions.

Like `verbs`, each reads its arguments, calls one function, and says what it did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa

from narrows.applied import model_of, reading_of, with_asides
from narrows.options import Applying, Flat, refuse_output
from narrows.sources.write import write_rows
from narrows.sources.writefiles import write_files
from narrows.tasks.whole import cleaned


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
