"""Damaged files of every format: refused by name, or read as whole rows that a model of the whole file turns to codes.

A fault in a line of text must also be told by its line or row. 200 files in the normal run, 10,000 in the slow one.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import struct
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import ipc

from damage import FEW, damaged, misvalued, refusal
from narrows import Plan, fit
from narrows.errors import DataWarning, FitWarning
from narrows.networks.dense import Dense
from narrows.sources.reading import Reading
from narrows.sources.source import open_source

RNG = np.random.default_rng(0)
LINES = {"csv", "jsonl", "nested.jsonl"}
WHOLE_FILE = re.compile(r"is empty|has no rows|and no rows|does not begin like|no column|more than one column named")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
    return buffer.getvalue()


def idx(array):
    codes = {"uint8": 8, "int32": 12}
    head = bytes([0, 0, codes[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def csv():
    return "a,b,c\n" + "".join(f'{i},"t {i % 3}",{i / 3}\n' for i in range(20))


def parquet():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": range(30), "s": ["x", None, "yz"] * 10, "f": RNG.random(30)}), buffer)
    return buffer.getvalue()


def arrow():
    """The file and the stream of a table with every sort of column, as they are and compressed."""
    table = pa.table(
        {
            "i": range(30),
            "s": ["x", None, "yz"] * 10,
            "d": pa.array(["u", "v", None] * 10).dictionary_encode(),
            "l": [[1.5, 2], None, []] * 10,
            "m": pa.array([[("k", 1.0)], None, []] * 10, pa.map_(pa.string(), pa.float32())),
            "x": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(120, dtype=np.uint8).reshape(30, 2, 2)),
        }
    )
    for make in (ipc.new_file, ipc.new_stream):
        for compression in (None, "lz4", "zstd"):
            buffer = io.BytesIO()
            with make(buffer, table.schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
                writer.write_table(table, max_chunksize=10)
            yield buffer.getvalue()


def image(format):
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)).save(buffer, format)
    return buffer.getvalue()


def sound(format):
    buffer = io.BytesIO()
    soundfile.write(buffer, RNG.integers(-(1 << 15), 1 << 15, 400).astype(np.int16), 8000, "PCM_16", format=format)
    return buffer.getvalue()


JSON_ROWS = [
    [{"a": i, "s": "t ü", "l": [1.5, None], "d": f"2020-01-0{i + 1}"} for i in range(9)],
    [{"b": {"x": i + 1}, "o": {"k": "v", "n": -i}, "m": [[1, 2], [3, i]]} for i in range(9)],
]
JSON_LINES, NESTED = ("".join(json.dumps(row) + "\n" for row in rows).encode() for rows in JSON_ROWS)
DIGITS = st.integers(0, 9).map(lambda digit: str(digit).encode())
CSV = DIGITS | st.sampled_from([b'"', b",", b"\n", b"\r", b"-", b"\xff", b"x"]) | FEW
JSON = DIGITS | st.sampled_from([b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"null", b"-", b"1e999", b"\\ud800"])


@dataclass
class Format:
    """A whole file, which trains a model, and what is left of it and its like after damage."""

    whole: bytes
    damage: st.SearchStrategy[bytes]
    reading: Reading = field(default_factory=Reading)


def binary(*wholes, reading=None):
    """Files that are the first one's like."""
    return Format(wholes[0], damaged(wholes), reading or Reading())


def packed(plain):
    """The same compressed: hit before or after."""
    return Format(gzip.compress(plain.whole), damaged([gzip.compress(plain.whole)]) | plain.damage.map(gzip.compress))


def text(whole, inserted):
    return Format(whole, damaged([whole], inserted) | misvalued(whole))


FORMATS = {
    "csv": text(csv().encode(), CSV),
    "csv.gz": packed(text(csv().encode(), CSV)),
    "parquet": binary(parquet()),
    "npy": binary(npy(RNG.random((5, 4)))),
    "npz": binary(npz(X=RNG.random((5, 4)))),
    "idx": binary(*(idx(RNG.integers(0, 9, (3, 4, 4)).astype(kind)) for kind in ("u1", "i4"))),
    "idx.gz": packed(binary(idx(RNG.integers(0, 9, (3, 4, 4)).astype("i4")))),
    "png": binary(image("PNG")),
    "jpg": binary(image("JPEG")),
    "bmp": binary(*map(image, ("BMP", "GIF", "TIFF", "WEBP"))),
    "wav": binary(sound("WAV"), reading=Reading(window=100)),
    "flac": binary(sound("FLAC")),
    "jsonl": text(JSON_LINES, JSON),
    "nested.jsonl": text(NESTED, JSON),
    "arrow": binary(*arrow()),
}


@functools.cache
def model_of(name, folder):
    """A tiny model of a format's whole file."""
    path = folder / f"whole.{name}"
    path.write_bytes(FORMATS[name].whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        warnings.simplefilter("ignore", FitWarning)
        source = open_source(path, reading=FORMATS[name].reading)
        return fit(source, Plan(latent=2, network=Dense(hidden=(4,)), epochs=1, device="cpu"), validation=0)


def told(name, folder, examples):
    """Hits a format's files so often; counts what was refused and what was read."""
    known, counts = FORMATS[name], Counter()
    model, path = model_of(name, folder), folder / f"damaged.{name}"

    @given(known.damage)
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    def hit(data):
        said = refusal(path, data, model, known.reading)
        counts["read" if said is None else "refused"] += 1
        if said is not None and name in LINES:
            assert re.search(r"(line|row) \d", said) or WHOLE_FILE.search(said), said

    hit()
    return counts


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_or_read(tmp_path_factory, name):
    told(name, tmp_path_factory.getbasetemp(), 14)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_ten_thousand_damaged_files_are_refused_or_read(tmp_path_factory, capsys, name):
    counts = told(name, tmp_path_factory.getbasetemp(), 670)
    with capsys.disabled():
        print(f"\n{name}: {counts['refused']} damaged files refused, {counts['read']} read", end="")
