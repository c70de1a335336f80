"""Whatever is opened gives the rows that are in it, or an error that says what is wrong; never anything else."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import struct
import subprocess
import sys
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, DataWarning
from narrows.sources import delimited
from narrows.sources.inference import convert, joined_type, widened
from narrows.sources.reading import Reading
from narrows.sources.source import BATCH_ROWS, PIECE_BITS, open_source

SHARED = Path(__file__).parents[2] / "shared" / "data"


def table_of(source):
    return pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)


def array_of(source):
    arrays = [batch.column(0).to_numpy_ndarray() for _, batch in source.batches()]
    return np.concatenate(arrays)


def check(source):
    """What holds of every source: ids rise, batches are small, skipping skips, and the count is right."""
    whole = table_of(source)
    assert source.rows in (None, whole.num_rows)
    ids = np.concatenate([np.arange(row, row + b.num_rows) for row, b in source.batches()] or [np.empty(0, np.int64)])
    wanted = [piece << PIECE_BITS | i for piece in source.pieces for i in range(source.rows_of(piece) or 0)]
    if source.rows is not None:
        np.testing.assert_array_equal(ids, wanted)
    assert all(0 < b.num_rows <= BATCH_ROWS for _, b in source.batches())
    for piece in source.pieces:
        rows = [batch for _, batch in source.read(piece)]
        count = sum(batch.num_rows for batch in rows)
        for skip in (1, count // 2, count, count + 5):
            rest = list(source.read(piece, skip))
            assert sum(batch.num_rows for _, batch in rest) == max(0, count - skip)
            if rest:
                assert rest[0][0] == piece << PIECE_BITS | skip
                assert rest[-1][1].slice(rest[-1][1].num_rows - 1).equals(rows[-1].slice(rows[-1].num_rows - 1))
    return whole


def csv(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- rows in memory


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "u1", "i8", "u4", "?", ">f4", ">i2", "g"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3), (3, 1, 4, 2)])
def test_arrays_are_one_column_of_tensors(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    source = open_source(array)
    check(source)
    assert source.schema.names == ["x"]
    assert source.schema.field("x").type.shape == list(shape[1:])
    np.testing.assert_array_equal(array_of(source), array)
    np.testing.assert_array_equal(array_of(open_source(np.asfortranarray(array))), array)
    np.testing.assert_array_equal(array_of(open_source(array[::-1])), array[::-1])


def test_arrays_are_not_copied_and_keep_nan():
    array = np.array([[1.0, np.nan]])
    (_, batch) = next(open_source(array).batches())
    assert batch.column(0).storage.flatten().buffers()[1].address == array.ctypes.data
    assert np.isnan(array_of(open_source(array))[0, 1])
    masked = np.ma.MaskedArray([[1, 2]], mask=[[False, True]])
    np.testing.assert_array_equal(array_of(open_source(masked)), [[1, np.nan]])
    assert check(open_source(np.empty((0, 3)))).num_rows == 0


def test_long_arrays_come_in_pieces_and_short_batches():
    array = np.arange(300_000 * 2, dtype=np.int32).reshape(-1, 2)
    source = open_source(array)
    assert len(source.pieces) == 3
    check(source)
    wide = open_source(np.zeros((100, 1 << 20), np.uint8))
    assert [batch.num_rows for _, batch in wide.batches()] == [16] * 6 + [4]


def test_object_arrays_find_a_type_for_each_column():
    array = np.array([[1, "a", None, 2.5, dt.date(2020, 1, 1)], [2, None, None, np.nan, None]], dtype=object)
    table = check(open_source(array))
    assert table.schema.names == ["x0", "x1", "x2", "x3", "x4"]
    assert [str(kind) for kind in table.schema.types] == ["int64", "string", "null", "double", "date32[day]"]
    assert table.to_pylist()[1] == {"x0": 2, "x1": None, "x2": None, "x3": None, "x4": None}
    assert table_of(open_source(np.array([["a"], ["bc"]]))).to_pylist() == [{"x0": "a"}, {"x0": "bc"}]
    days = table_of(open_source(np.array([["2020-01-01", "NaT"]], dtype="M8[D]"))).to_pylist()
    assert days == [{"x0": dt.date(2020, 1, 1), "x1": None}]
    with pytest.raises(DataError, match="'x1' mixes kinds"):
        open_source(np.array([[1, "a"], [2, 3]], dtype=object))


def test_structured_arrays_are_tables():
    array = np.array([(1, 2.5, "a", [1, 2]), (2, 3.5, "b", [3, 4])], dtype="i4,f8,U3,(2,)f4")
    table = check(open_source(array))
    assert table.schema.names == ["f0", "f1", "f2", "f3"]
    assert table.column("f0").to_pylist() == [1, 2]
    assert table.column("f2").to_pylist() == ["a", "b"]
    np.testing.assert_array_equal(table.column("f3").combine_chunks().to_numpy_ndarray(), [[1, 2], [3, 4]])


def test_tensors_are_arrays():
    tensor = torch.arange(6.0).reshape(3, 2)
    for variant in (tensor, tensor.requires_grad_(), tensor.bfloat16(), tensor.T.contiguous().T):
        np.testing.assert_array_equal(array_of(open_source(variant)), tensor.detach().numpy())
    with pytest.raises(DataError, match="sparse_coo"):
        open_source(torch.eye(2).to_sparse())


def test_frames_drop_the_index_and_keep_types():
    frame = pd.DataFrame(
        {
            "i": [1, 2],
            "f": [0.5, None],
            "s": ["a", None],
            "c": pd.Categorical(["u", "v"]),
            "t": pd.to_datetime(["2020-01-01", None]),
            "n": pd.array([1, None], dtype="Int8"),
            "b": [True, False],
            5: [Decimal("1.5"), None],
        },
        index=[7, 7],
    )
    table = check(open_source(frame))
    assert table.schema.names == ["i", "f", "s", "c", "t", "n", "b", "5"]
    assert table.schema.metadata is None
    assert pa.types.is_dictionary(table.schema.field("c").type)
    assert table.to_pylist()[1] == {
        **{"i": 2, "f": None, "s": None, "c": "v", "t": None, "n": None, "b": False, "5": None},
    }
    with pytest.raises(DataError, match="'o' mixes kinds"):
        open_source(pd.DataFrame({"o": [1, "a"]}))
    with pytest.raises(DataError, match="more than one column named 'a'"):
        open_source(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(DataError, match="no columns"):
        open_source(pd.DataFrame(index=[1, 2]))


def test_arrow_objects_of_any_library():
    rows = {"a": [1, 2, None], "s": ["x", None, "z"]}
    table = pa.table(rows)
    for data in (table, table.to_batches()[0], table.to_reader(), pl.DataFrame(rows)):
        source = open_source(data)
        assert check(source).to_pylist() == table.to_pylist()
        assert source.rows == 3
    assert open_source(source) is source


@pytest.mark.parametrize("kind", [pl.Categorical, pl.Enum(["c", "b", "a"])])
def test_categories_of_polars_can_be_decoded_written_and_read(kind, tmp_path):
    values = ["a", None, "b", "a", None]
    frame = pl.DataFrame({"c": pl.Series(values, dtype=kind)})
    table = check(open_source(pl.concat([frame, frame.slice(1, 3)], rechunk=False)))
    assert table["c"].type.ordered == isinstance(kind, pl.Enum)
    decoded = [value for chunk in table["c"].chunks for value in chunk.dictionary_decode().to_pylist()]
    assert decoded == table["c"].to_pylist() == [*values, None, "b", "a"]
    pq.write_table(table, tmp_path / "c.parquet")
    assert table_of(open_source(tmp_path / "c.parquet"))["c"].to_pylist() == decoded


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros(3), r"shape \(3,\).*reshape\(-1, 1\)"),
        (np.array(3.0), "0 dimensions"),
        (np.zeros((2, 0)), "no columns"),
        (np.zeros((2, 2), complex), "complex128.*imaginary"),
        (np.zeros((2, 2, 2), object), "object"),
        (pd.Series([1]), "Series"),
        (pa.chunked_array([[1]]), "ChunkedArray"),
        (pa.array([1]), "Int64Array"),
        (42, "type int; wanted: an array"),
        ([[1, 2]], "type list"),
        ([], "type list"),
        (None, "type NoneType"),
    ],
)
def test_other_objects_are_refused(data, message):
    with pytest.raises(DataError, match=message):
        open_source(data)


def test_opening_needs_neither_torch_nor_pandas():
    code = (
        "import sys, numpy; from narrows.sources.source import open_source; "
        "from narrows.sources.write import write_rows; from narrows.sources.shuffle import Shuffle;"
        "source = open_source(numpy.zeros((2, 2)));"
        "list(Shuffle(source, None, 0, 3).parts(0));"
        "print(sorted({'torch', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- files of arrays


def idx(array):
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 2)])
def test_idx_files(tmp_path, dtype, shape):
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    for name, data in (("a-ubyte", idx(array)), ("b.gz", gzip.compress(idx(array)))):
        source = open_source(csv(tmp_path, data, name))
        check(source)
        assert source.schema.names == [{1: "label", 2: "x", 3: "image"}[len(shape)]]
        got = table_of(source).column(0).to_pylist()
        np.testing.assert_array_equal(np.array(got).reshape(shape), array)


def test_npy_is_mapped_not_read(tmp_path):
    path = tmp_path / "sparse.npy"
    path.write_bytes(npy(np.zeros((1, 1 << 20))))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 17, 1 << 20)})
    with path.open("wb") as file:  # a terabyte of zeros that takes no room
        file.write(head.getvalue())
        file.truncate(len(head.getvalue()) + (1 << 40))
    source = open_source(path)
    assert source.rows == 1 << 17
    assert next(source.batches())[1].num_rows == 2


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "?", "u2"])
def test_npy_and_npz_files(tmp_path, order, dtype):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (6, 2, 3)).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "b.npz", only=array)
    np.savez(tmp_path / "c.npz", y=np.zeros(6), X=array)
    for name in ("a.npy", "b.npz", "c.npz"):
        source = open_source(str(tmp_path / name))
        check(source)
        np.testing.assert_array_equal(array_of(source), array)


def test_the_array_of_an_npz_may_be_chosen(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 3)), codes=np.ones((4, 2)))
    assert open_source(tmp_path / "a.npz").rows == 2
    assert open_source(tmp_path / "a.npz", reading=Reading(array="codes")).rows == 4
    with pytest.raises(DataError, match=r"holds images, codes; wanted: the array 'x'; try:.*--array"):
        open_source(tmp_path / "a.npz", reading=Reading(array="x"))


def test_sparse_matrices_that_scipy_saved(tmp_path):
    matrix = scipy.sparse.random_array((30, 9), density=0.2, rng=0, format="csr")
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix)
    assert table_of(open_source(tmp_path / "a.npz")).equals(table_of(open_source(matrix)))
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix.tocsc())
    with pytest.raises(DataError, match=r"sparse matrix of format csc; wanted: csr; try: scipy.sparse.save_npz"):
        open_source(tmp_path / "a.npz")
    for change in ({"shape": np.array([30.5])}, {"indices": np.full(matrix.nnz, 9)}, {"format": np.array(5)}):
        arrays = {"indices": matrix.indices, "indptr": matrix.indptr, "data": matrix.data, "shape": (30, 9)}
        np.savez(tmp_path / "a.npz", **{**arrays, "format": b"csr", **change})
        with pytest.raises(DataError, match=r"says the shape|item|format 5"):
            open_source(tmp_path / "a.npz")


def test_digits():
    from sklearn.datasets import load_digits

    source = open_source("digits")
    assert source.schema.names == ["image"]
    np.testing.assert_array_equal(array_of(source), load_digits().images)


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


HUGE = npy(np.zeros((2, 2))).replace(b"(2, 2), }  ", b"(2, 99999)}")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.npy", npy(np.zeros((2, 2)))[:-1], "no whole .npy"),
        ("a.npy", npy(np.zeros((2, 2)))[:30], "no whole .npy"),
        ("a.npy", HUGE, "no whole .npy"),
        ("a.npy", npy(np.array([[1, "a"]], object)), "Python objects"),
        ("a.npy", npy(np.zeros(4)), "reshape"),
        ("a.npz", zipped(X=HUGE), "no whole .npy"),
        ("a.npz", zipped(a=npy(np.zeros((2, 2))), b=b""), "holds a, b"),
        ("a.npz", zipped(), "cannot be read|does not begin"),
        ("a.npz", zipped(X=npy(np.zeros((2, 2))))[:-30], "cannot be read"),
        ("a-ubyte", idx(np.zeros((3, 2), "u1"))[:-1], "5 bytes of values.*6 for the"),
        ("a-ubyte", idx(np.zeros((3, 2), "u1")) + b"x", "7 bytes of values"),
        ("a-ubyte", struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "0 bytes of values"),
        ("a-ubyte", b"\0\0\x08\x03\0\0", "header is damaged"),
        ("a-ubyte", b"\0\0\x0a\x01\0\0\0\x01a", "header is damaged"),
        ("a-ubyte.gz", gzip.compress(idx(np.zeros((300, 200), "u1")), mtime=0)[:-20], "cannot be read"),
        ("a.bin", b"\x7fELF\x02\x01\x01\0\0\0", "does not begin like any file"),
        ("a.parquet", b"a,b\n1,2\n", "does not begin like .parquet"),
        ("a.xlsx", b"x", "xlsx files are not read"),
        ("a.csv", b"", "is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.parquet", b"PAR1" + b"x" * 40, "cannot be read"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        table_of(open_source(csv(tmp_path, data, name)))


# --- text tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found(tmp_path, delimiter):
    text = "a,b,c\n1,x y,2.5\n2,z,3.5\n".replace(",", delimiter)
    table = check(open_source(csv(tmp_path, text)))
    assert table.schema.names == ["a", "b", "c"]
    assert table.to_pylist()[0] == {"a": 1, "b": "x y", "c": 2.5}


CELLS = [
    (["1", " 2", "-3 "], "int64", [1, 2, -3]),
    (["1", "2.5", "1e3"], "double", [1, 2.5, 1000]),
    (["1", "99999999999999999999"], "double", [1, 1e20]),
    (["+1.5", ".5"], "double", [1.5, 0.5]),
    (["0", "-0", "0.25"], "double", [0, 0, 0.25]),
    (["007", "12"], "string", ["007", "12"]),
    (["-01.5", "2"], "string", ["-01.5", "2"]),
    (["0x1F", "2"], "string", ["0x1F", "2"]),
    (["1", "x"], "string", ["1", "x"]),
    (["1", "-", "?", "", " NA", "N/A", "nan", "null", "None"], "int64", [1] + [None] * 8),
    (["x", "-", "?", "", "NA"], "string", ["x", "-", None, None, None]),
    (["true", "False", "", "-"], "bool", [True, False, None, None]),
    (["true", "1"], "string", ["true", "1"]),
    (["yes", "no"], "string", ["yes", "no"]),
    (["2020-01-02", ""], "date32[day]", [dt.date(2020, 1, 2), None]),
    (["2020-01-02", "2020-01-02 03:04"], "timestamp[us]", [dt.datetime(2020, 1, 2), dt.datetime(2020, 1, 2, 3, 4)]),
    (["2020-01-02T03:04:05.000006Z"], "timestamp[us, tz=UTC]", [dt.datetime(2020, 1, 2, 3, 4, 5, 6, dt.UTC)]),
    (["2020-01-02T03:04:05+02:00"], "timestamp[us, tz=UTC]", [dt.datetime(2020, 1, 2, 1, 4, 5, 0, dt.UTC)]),
    (["2020-01-02", "2020-01-02T03:04:05Z"], "string", ["2020-01-02", "2020-01-02T03:04:05Z"]),
    (["01/02/2020"], "string", ["01/02/2020"]),
    (["1,5", "2,5"], "string", ["1,5", "2,5"]),
    (["", "?", "-"], "null", [None] * 3),
]


@pytest.mark.parametrize(("cells", "kind", "values"), CELLS, ids=lambda value: str(value)[:30])
def test_types_are_found(tmp_path, cells, kind, values):
    quoted = csv(tmp_path, "key,value\n" + "".join(f'k{i},"{cell}"\n' for i, cell in enumerate(cells)))
    plain = csv(tmp_path, "key;value\n" + "".join(f"k{i};{cell}\n" for i, cell in enumerate(cells)), "p.csv")
    for path in (quoted, plain):
        table = check(open_source(path))
        assert str(table.schema.field("value").type) == kind
        assert table.column("value").to_pylist() == values


@given(st.lists(st.sampled_from(sorted({cell for cells, _, _ in CELLS for cell in cells})), max_size=6), st.data())
@settings(max_examples=300, deadline=None)
def test_types_do_not_depend_on_how_a_column_is_cut(cells, data):
    cut = data.draw(st.integers(0, len(cells)))
    values = pa.array([cell.strip() or None for cell in cells], pa.string())
    whole = widened(pa.null(), values)
    first, second = widened(pa.null(), values.slice(0, cut)), widened(pa.null(), values.slice(cut))
    assert widened(first, values.slice(cut)) == whole
    assert joined_type([first, second]) == whole
    convert(values, whole)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b\n1,2\n", ["a", "b"]),
        ("1,2\n3,4\n", ["c0", "c1"]),
        ("a,1\nb,2\n", ["c0", "c1"]),
        ("color,size\nred,big\nblue,small\n", ["color", "size"]),
        ("red,big\nblue,small\nred,small\n", ["c0", "c1"]),
        ("a,b\nx,\ny,\n", ["a", "b"]),
        ("a,a\nx,y\n", ["c0", "c1"]),
        (",v\n0,1\n", ["c0", "v"]),
        ("\n\n a , b \n1,2\n", ["a", "b"]),
        ("\ufeffa,b\n1,2\n", ["a", "b"]),
        ('"a ""q""","b\nc"\n1,2\n', ['a "q"', "b\nc"]),
        ("value\n1\n2\n", ["value"]),
        ("2020-01-01,x\n2020-01-02,y\n", ["c0", "c1"]),
        ("01/02/2020 12:30,x\n02/02/2020 12:31,y\n", ["c0", "c1"]),
        ("day,x\n2020-01-01T00:00:00Z,x\n", ["day", "x"]),
        ("1\n2\n", ["c0"]),
        ("a,b\r\n1,2\r\n", ["a", "b"]),
        ("a,b\r1,2\r", ["a", "b"]),
    ],
)
def test_headers_are_found(tmp_path, text, names):
    source = open_source(csv(tmp_path, text))
    assert source.schema.names == names
    check(source)


def test_headers_may_be_told(tmp_path):
    path = csv(tmp_path, "red,big\nblue,small\nred,small\n")
    assert open_source(path, reading=Reading(header=True)).schema.names == ["red", "big"]
    assert open_source(path, reading=Reading(header=True)).rows == 2
    path = csv(tmp_path, "a,b\n1,2\n")
    assert open_source(path, reading=Reading(header=False)).rows == 2
    with pytest.raises(DataError, match="more than one column named 'a'"):
        open_source(csv(tmp_path, "a,a\n1,2\n"), reading=Reading(header=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n4,5\n", "row 2 has 1 fields.*wanted: 2"),
        ("a,b\n1,2\n3,4\n4,5,6\n", "row 3 has 3 fields"),
        ("a,b\n", "a header and no rows"),
        ("\n\n\n", "no rows"),
        ("1 2 3\n4 5 6\n", "between spaces"),
    ],
)
def test_text_that_is_no_table_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as refused:
        open_source(csv(tmp_path, text))
    assert "t.csv" in str(refused.value)


def test_other_encodings(tmp_path):
    with pytest.warns(DataWarning, match="t.csv is not UTF-8 text"):
        source = open_source(csv(tmp_path, "name,n\nJosé,1\n".encode("latin-1")))
    assert check(source).to_pylist() == [{"name": "José", "n": 1}]
    late = "name,n\n" + "a,1\n" * 600_000
    with pytest.warns(DataWarning, match="Latin-1"):
        source = open_source(csv(tmp_path, late.encode() + b"\xe9,1\n"))
    assert table_of(source).column(0)[-1].as_py() == "é"
    with pytest.warns(DataWarning, match="Latin-1"):
        assert open_source(csv(tmp_path, b"caf\xe9,n\nx,1\n")).schema.names == ["café", "n"]
    assert open_source(csv(tmp_path, "naïve,n\nx,1\n".encode("utf-16"))).schema.names == ["naïve", "n"]


def test_rows_beyond_the_sniffed_part_must_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "SNIFFED_BYTES", 1000)
    lines = [f"{i},t{i}\n" for i in range(2_000_000)]
    lines[1_500_000] = "x,y\n"
    source = open_source(csv(tmp_path, "n,s\n" + "".join(lines)))
    assert source.rows is None
    with pytest.raises(DataError, match=r"t.csv row 1500001, column 'n': 'x'; wanted: int64"):
        list(source.batches())
    part = open_source(csv(tmp_path, "n,s\n" + "".join(lines[:999_999])))
    shards = [part.shard(rank, 2) for rank in range(2)]
    assert part.rows is None
    assert sum(batch.num_rows for shard in shards for _, batch in shard.batches()) == 999_999


def test_many_blocks_are_read_in_order(tmp_path):
    table = pa.table({"n": range(700_000), "s": [f"t{i}" for i in range(700_000)]})
    text = "n,s\n" + "".join(f"{i},t{i}\n" for i in range(700_000))
    for name, data in (("a.csv", text.encode()), ("b.csv.gz", gzip.compress(text.encode(), 1))):
        source = open_source(csv(tmp_path, data, name))
        assert source.rows == 700_000
        assert check(source).equals(table)


# --- Parquet and many files


def test_parquet_pieces_are_row_groups(tmp_path):
    table = pa.table({"n": range(1000), "s": [None, "x"] * 500})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    source = open_source(tmp_path / "a.parquet")
    assert [source.rows_of(piece) for piece in source.pieces] == [300, 300, 300, 100]
    assert check(source).equals(table)
    url = open_source((tmp_path / "a.parquet").as_uri())
    assert check(url).equals(table)
    giant = pa.table({"n": np.arange(200_000), "wide": ["x" * 200] * 200_000})
    pq.write_table(giant, tmp_path / "g.parquet", row_group_size=200_000)
    assert check(open_source(tmp_path / "g.parquet")).equals(giant)


def test_files_join_in_name_order(tmp_path):
    for year, part in ((2021, "b"), (2020, "a"), (2021, "a")):
        folder = tmp_path / "data" / f"year={year}" / "kind=x%20y"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": [f"{year}{part}"] * 2}), folder / f"{part}.parquet")
    (tmp_path / "data" / "_SUCCESS").touch()
    (tmp_path / "data" / ".hidden").touch()
    wanted = [("2020a", 2020), ("2020a", 2020), ("2021a", 2021), ("2021a", 2021), ("2021b", 2021), ("2021b", 2021)]
    for data in (tmp_path / "data", str(tmp_path / "data" / "**" / "*.parquet"), (tmp_path / "data").as_uri()):
        source = open_source(data)
        rows = check(source).to_pylist()
        assert [(row["n"], row["year"]) for row in rows] == wanted
        assert {row["kind"] for row in rows} == {"x y"}
        assert len(source.pieces) == 3
    one = open_source([tmp_path / "data" / "year=2020" / "kind=x%20y" / "a.parquet"])
    assert one.schema.names == ["n"]


def test_text_files_share_the_widest_types(tmp_path):
    csv(tmp_path, "a,b\n1,x\n", "1.csv")
    csv(tmp_path, "a,b\n2.5,\n", "2.csv")
    csv(tmp_path, "a,b\n,2020-01-01\n", "3.csv")
    table = check(open_source(tmp_path / "*.csv"))
    assert [str(kind) for kind in table.schema.types] == ["double", "string"]
    assert table.column("a").to_pylist() == [1, 2.5, None]
    csv(tmp_path, "a,c\n1,2\n", "4.csv")
    with pytest.raises(DataError, match=r"4.csv has columns \['a', 'c'\]"):
        open_source(tmp_path)


def test_files_that_do_not_agree_are_refused(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"2.parquet column 'a' is string; wanted: int64, as in .*1.parquet"):
        open_source(tmp_path)
    pq.write_table(pa.table({"b": [1]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"2.parquet has other columns than .*1.parquet: \['a', 'b'\]"):
        open_source(tmp_path)
    csv(tmp_path, "a\n1\n")
    with pytest.raises(DataError, match=r"several kinds: 1 .csv, 2 .parquet"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="files of one format"):
        open_source([tmp_path / "1.parquet", tmp_path / "t.csv"])
    folder = tmp_path / "a=1"
    folder.mkdir()
    pq.write_table(pa.table({"a": [1]}), folder / "1.parquet")
    with pytest.raises(DataError, match="more than one column named 'a'"):
        open_source(str(tmp_path / "*" / "*.parquet"))


@pytest.mark.parametrize(
    "name", ["none.csv", "no/none.csv", "*.none", "", "x" * 5000, "a\0b", "file:///none", "ftp://x/y", "none://x"]
)
def test_files_that_are_not_there(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file|no file matches|no files|URL"):
        open_source(name)


def test_devices_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="has no files"):
        open_source(tmp_path)
    with pytest.raises(DataError, match="device or pipe"):
        open_source("/dev/null")


# --- damage


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a,b\n1,x\n2,"y\n3,z\n', 3),
        ('a,b\n1,"x\ny"\n2,"z""\n', 4),
        ('a,b\n1,"x\ny"\n2,"' + "3,z\n" * 1_500_000, 4),
        ('a,b\n1,x\n2,"' + "y" * 9_000_000 + '"\n3,z\n', 3),
    ],
    ids=["quote", "quote and a half", "long text", "long row"],
)
def test_a_row_that_does_not_end_is_named_by_its_line(tmp_path, pack, text, line):
    with pytest.raises(DataError, match=rf"t.csv line {line} begins a row that does not end"):
        open_source(csv(tmp_path, pack(text.encode())))


# --- real data


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_real_tables():
    adult = open_source(SHARED / "tabular" / "adult-train.csv.gz")
    assert adult.rows == 32561
    table = table_of(adult)
    assert table.column("c1").null_count == 1836
    assert sum(column.null_count for column in table.columns) == 4262
    frame = pd.read_csv(SHARED / "tabular" / "adult-train.csv.gz", header=None, skipinitialspace=True, na_values="?")
    assert table.to_pandas().isna().sum().tolist() == frame.isna().sum().tolist()
    np.testing.assert_array_equal(table.column("c0").to_numpy(), frame[0])
    census = open_source(SHARED / "tabular" / "census2020_ppmf_*.csv.gz")
    assert census.rows == 22499
    assert census.schema.field("TABBLKST").type == pa.string()
    mnist = open_source(SHARED / "mnist" / "t10k-images-idx3-ubyte.gz")
    assert array_of(mnist).shape == (10_000, 28, 28)
