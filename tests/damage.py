"""Bytes that were hit: a few set, cut off, put in or lost; and what must then hold of whoever reads them."""

from __future__ import annotations

import resource
import warnings
from contextlib import suppress

import pyarrow as pa
from hypothesis import strategies as st

from narrows.errors import DataError, DataWarning
from narrows.sources.source import open_source

FEW = st.binary(min_size=1, max_size=6)
MOST_BYTES = 1 << 28  # of memory that a damaged file of a few hundred bytes may take


@st.composite
def damaged(draw, wholes, inserted=FEW):
    """One of the whole files, with one to four changes; `inserted` is what may be put in."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["set", "set", "cut", "insert", "remove"])):
            case "set":
                data[at : at + 1] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))])
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(inserted)
            case "remove":
                del data[at : at + draw(st.integers(1, 20))]
    return bytes(data)


def check_error_or_rows(folder, name, data):
    """The file is refused as a user's errors are, or gives whole rows, as many as its source says."""
    path = folder / name
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        with suppress(DataError):
            source = open_source(path)
            table = pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)
            table.validate(full=True)
            table.to_pylist()
            assert source.rows in (None, table.num_rows)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES
