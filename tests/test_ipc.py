"""Arrow's own files give their rows, types and what is said of columns; damage is told before a value is looked at."""

from __future__ import annotations

import gzip
import io

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather, ipc

from narrows.errors import DataError
from narrows.sources.reading import RATE, fact, field
from narrows.sources.source import PIECE_BITS, open_source

TENSORS = pa.fixed_shape_tensor(pa.uint8(), (2, 2))
TABLE = pa.table(
    {
        "i": range(30),
        "s": ["x", None, "yz"] * 10,
        "d": pa.array(["u", "v", None] * 10).dictionary_encode(),
        "l": [[1.5, 2], None, []] * 10,
        "m": pa.array([[("k", 1.0)], None, []] * 10, pa.map_(pa.string(), pa.float32())),
        "x": pa.ExtensionArray.from_storage(
            TENSORS, pa.FixedSizeListArray.from_arrays(pa.array(np.arange(120), pa.uint8()), 4)
        ),
    }
)


def written(table, stream=False, compression=None, rows=10):
    buffer = io.BytesIO()
    options = ipc.IpcWriteOptions(compression=compression)
    with (ipc.new_stream if stream else ipc.new_file)(buffer, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=rows):
            writer.write_batch(batch)
    return buffer.getvalue()


def table_of(source):
    return pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("name", ["t.arrow", "t.feather", "bare"])
def test_batches_of_a_file_are_its_pieces(tmp_path, compression, name):
    (tmp_path / name).write_bytes(written(TABLE, compression=compression))
    source = open_source(tmp_path / name)
    assert [source.rows_of(piece) for piece in source.pieces] == [10, 10, 10]
    assert table_of(source).equals(TABLE)
    assert [row for row, _ in source.batches()] == [0, 1 << PIECE_BITS, 2 << PIECE_BITS]
    for skip in (3, 10, 12):
        rest = list(source.read(1, skip))
        assert sum(batch.num_rows for _, batch in rest) == max(0, 10 - skip)
        assert not rest or (rest[0][0], rest[0][1]["i"][0].as_py()) == (1 << PIECE_BITS | skip, 10 + skip)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_stream_is_one_piece(tmp_path, compression):
    (tmp_path / "t.arrows").write_bytes(written(TABLE, stream=True, compression=compression))
    source = open_source(tmp_path / "t.arrows")
    assert (source.pieces, source.rows) == ((0,), None)
    assert table_of(source).equals(TABLE)
    for skip in (7, 10, 25, 30, 31):
        rest = list(source.read(0, skip))
        assert [i for _, batch in rest for i in batch["i"].to_pylist()] == list(range(skip, 30))
        assert not rest or rest[0][0] == skip


def test_feather_and_polars_write_what_is_read(tmp_path):
    table = TABLE.drop(["x"])
    feather.write_feather(table, tmp_path / "t.feather")
    assert table_of(open_source(tmp_path / "t.feather")).equals(table)
    frame = pl.DataFrame({"a": [1, 2, None], "s": ["x", None, "a text that is longer than a view holds"]})
    frame.write_ipc(tmp_path / "p.arrow")
    assert table_of(open_source(tmp_path / "p.arrow")).to_pylist() == frame.to_dicts()
    (tmp_path / "t.arrow.gz").write_bytes(gzip.compress(written(TABLE)))
    assert table_of(open_source(tmp_path / "t.arrow.gz")).equals(TABLE)


def test_what_is_said_of_columns_stays(tmp_path):
    schema = pa.schema([field("sound", pa.list_(pa.float32()), kind="audio", rate=8000)])
    (tmp_path / "t.arrow").write_bytes(written(pa.table({"sound": [[0.5, 1.0]]}, schema=schema)))
    source = open_source(tmp_path / "t.arrow")
    assert fact(source.schema.field("sound"), RATE) == "8000"
    assert fact(next(batch for _, batch in source.batches()).schema.field("sound"), RATE) == "8000"


def test_an_uncompressed_file_is_mapped(tmp_path):
    big = pa.table({"a": np.zeros(1 << 20)})
    (tmp_path / "t.arrow").write_bytes(written(big, rows=1 << 20))
    before = pa.total_allocated_bytes()
    batches = open_source(tmp_path / "t.arrow").batches()
    row, batch = next(batches)
    assert (row, batch.num_rows) == (0, 65_536)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_files_join_if_they_agree(tmp_path):
    (tmp_path / "1.arrow").write_bytes(written(TABLE))
    (tmp_path / "2.arrow").write_bytes(written(TABLE, compression="lz4"))
    assert table_of(open_source(tmp_path)).equals(pa.concat_tables([TABLE, TABLE]))
    (tmp_path / "2.arrow").write_bytes(written(TABLE.select(["i"])))
    with pytest.raises(DataError, match=r"2.arrow has other columns than .*1.arrow"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.arrow", written(TABLE)[:-40], "cannot be read"),
        ("t.arrow", written(TABLE)[:400], "cannot be read"),
        ("t.arrow", b"a,b\n1,2\n", "does not begin like .arrow"),
        ("t.arrow", b"", "is empty"),
        ("t.feather", b"FEA1\0\0\0\0", "Feather of version 1 is not read"),
        ("t.arrows", written(TABLE, stream=True)[:3000], "cannot be read"),
        ("t.arrow", written(pa.table({})), "has no columns"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        table_of(open_source(tmp_path / name))
