"""Bytes that were hit: a few set, cut off, put in or lost; and what must then hold of whoever reads them."""

from __future__ import annotations

import contextlib
import re
import resource
import warnings
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from narrows.errors import DataError, DataWarning
from narrows.sources.source import open_source

EXTREMES = st.sampled_from([0, 1, 127, 128, 255])
VALUES = st.sampled_from(
    [
        "",
        "0",
        "7",
        "-1",
        "0.5",
        "1e5",
        "1e308",
        "1e999",
        "9" * 30,
        "NaN",
        "null",
        "true",
        "x",
        "0.1.2",
        '"',
        "2020-02-30",
    ]
)
FEW = st.binary(min_size=1, max_size=6)
MOST_BYTES = 1 << 28  # of memory that a damaged file of a few hundred bytes may take


@st.composite
def damaged(draw, wholes, inserted=FEW):
    """One of the whole files, with a few changes, often among its first bytes; `inserted` may be put in."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        last = max(0, len(data) - 1)
        at = draw(st.integers(0, last) | st.integers(0, min(last, 100)))
        match draw(st.sampled_from(["set", "replace", "cut", "insert", "remove"])):
            case "set":
                data[at : at + 1] = bytes([draw(EXTREMES | st.integers(0, 255))])
            case "replace":
                data[at : at + 1] = draw(inserted)[:1]
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(inserted)
            case "remove":
                del data[at : at + draw(st.integers(1, 20))]
    return bytes(data)


@st.composite
def misvalued(draw, whole):
    """A text file in which one or two numbers say something else."""
    text = whole.decode()
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.sampled_from(list(re.finditer(r"\d+(\.\d+)?", text))))
        text = text[: number.start()] + draw(VALUES) + text[number.end() :]
    return text.encode()


def refusal(path, data, model, reading):
    """What is said of a file with these bytes; None where it gives whole rows, and the model finite codes."""
    path.write_bytes(data)
    with in_little_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        said = None
        try:
            check_rows(open_source(path, reading=reading))
            check_codes(model, path)
        except DataError as error:
            said = str(error)
    assert said is None or str(path) in said, said
    return said


@contextlib.contextmanager
def in_little_memory() -> Iterator[None]:
    """Checks that the body takes no memory that a damaged header claims."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def check_rows(source):
    """Rows that hold what their types promise, and as many as the source says."""
    table = pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)
    table.validate(full=True)
    table.to_pylist()
    assert source.rows in (None, table.num_rows)


def check_codes(model, path):
    """Finite codes of all rows."""
    for raw, batch in model.batches(model.source(path)):
        codes = model.codes(batch).numpy()
        assert codes.shape == (len(raw), model.code_size)
        assert np.isfinite(codes).all()
