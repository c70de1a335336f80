"""Rows written to a file come back as they were; a file appears whole or not at all."""

from __future__ import annotations

import datetime as dt
import errno
import json
import math
import os
import stat
import wave
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, NarrowsError, SettingError
from narrows.files import atomic, refuse_unwritable
from narrows.sources.reading import Reading, field
from narrows.sources.source import open_source
from narrows.sources.write import write_rows

# A text that looks like a number, a date or a missing cell is one to whoever reads a CSV: these begin with a letter.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t\r"), max_size=8).map(
    lambda text: ("t" + text).strip("\t\n\r\x0b\x0c ")
)
YEARS = (dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))
COLUMNS = {
    "i": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "f": (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
    "s": (pa.string(), TEXTS),
    "b": (pa.bool_(), st.booleans()),
    "t": (pa.timestamp("us"), st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))),
    "z": (
        pa.timestamp("us", "UTC"),
        st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)),
    ),
    "d": (pa.date32(), st.dates(dt.date(1700, 1, 1), dt.date(2200, 1, 1))),
}


@st.composite
def tables(draw, kinds="ifsbtzd"):
    names = draw(st.lists(st.sampled_from(kinds), min_size=1, unique=True))
    count = draw(st.integers(1, 8))
    columns = [draw(st.lists(st.none() | COLUMNS[n][1], min_size=count, max_size=count)) for n in names]
    for column, name in zip(columns, names, strict=True):
        if all(cell is None for cell in column):  # or nothing tells its type
            column[0] = draw(COLUMNS[name][1])
    return pa.table(
        [pa.array(c, COLUMNS[n][0]) for c, n in zip(columns, names, strict=True)], names=[f"col_{n}" for n in names]
    )


def read(path, **options):
    source = open_source(path, **options)
    return pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)


@given(tables())
@settings(max_examples=200, deadline=None)
def test_csv_gives_back_the_cells_and_types(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    assert write_rows(path, table.to_batches(max_chunksize=3), table.schema) == table.num_rows
    again = read(path, reading=Reading(header=True))
    assert again.to_pylist() == table.to_pylist()
    assert again.schema == table.schema


@given(tables())
@settings(max_examples=60, deadline=None)
def test_parquet_gives_back_the_cells_and_types(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    write_rows(path, table.to_batches(max_chunksize=3), table.schema)
    assert read(path).equals(table)


@given(tables(kinds="ifsb"))
@settings(max_examples=60, deadline=None)
def test_json_lines_give_back_the_cells(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("jsonl") / "t.jsonl"
    write_rows(path, table.to_batches(max_chunksize=3), table.schema)
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == table.to_pylist()


@given(tables(kinds="if"))
@settings(max_examples=60, deadline=None)
def test_npy_holds_scalar_columns_side_by_side(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("npy") / "t.npy"
    holes = any(column.null_count for column in table.columns)
    if holes and "col_f" not in table.column_names:
        with pytest.raises(DataError, match="missing cells"):
            write_rows(path, table.to_batches(), table.schema)
        assert os.listdir(path.parent) == []
        return
    write_rows(path, table.to_batches(max_chunksize=3), table.schema)
    array = np.load(path)
    wanted = np.array([[np.nan if cell is None else cell for cell in row.values()] for row in table.to_pylist()])
    np.testing.assert_array_equal(array, wanted)
    (x,) = read(path).columns
    np.testing.assert_array_equal(x.combine_chunks().to_numpy_ndarray(), wanted)


def test_pandas_reads_the_csv_alike(tmp_path):
    table = pa.table({"a": [1, 2, 3], 'q"': ['x,"y', "line\nbreak", None], "f": [0.1, None, 3.0]})
    write_rows(tmp_path / "t.csv", table.to_batches(), table.schema)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table.to_pandas(), check_dtype=False)
    single = pa.table({"a": ["x", None, "z"]})
    write_rows(tmp_path / "s.csv", single.to_batches(), single.schema)
    assert len(pd.read_csv(tmp_path / "s.csv")) == 3
    assert read(tmp_path / "s.csv").to_pylist() == single.to_pylist()


@pytest.fixture
def images():
    array = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    array[1, 0, 1] = np.nan
    (batch,) = [batch for _, batch in open_source(array).batches()]
    return array, batch


def test_tensor_columns_nest_or_flatten(tmp_path, images):
    array, batch = images
    for suffix in ("csv", "npy", "jsonl", "parquet"):
        write_rows(tmp_path / f"t.{suffix}", [batch], batch.schema)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), array)
    flat = read(tmp_path / "t.csv").to_pandas()
    assert list(flat.columns) == [f"x{i}" for i in range(6)]
    np.testing.assert_array_equal(flat.to_numpy(), array.reshape(2, 6))
    lines = [json.loads(line)["x"] for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert lines == [[[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [[6.0, None], [8.0, 9.0], [10.0, 11.0]]]
    again = read(tmp_path / "t.parquet")
    assert again.schema == batch.schema
    np.testing.assert_array_equal(again.column(0).combine_chunks().to_numpy_ndarray(), array)


def test_a_missing_tensor_is_written_as_nothing(tmp_path):
    kind = pa.fixed_shape_tensor(pa.float32(), (2,))
    storage = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2))
    batch = pa.RecordBatch.from_arrays([pa.ExtensionArray.from_storage(kind, storage)], names=["x"])
    for suffix in ("csv", "npy", "jsonl"):
        write_rows(tmp_path / f"t.{suffix}", [batch], batch.schema)
    np.testing.assert_array_equal(np.load(tmp_path / "t.npy"), [[1, 2], [np.nan, np.nan], [3, 4]])
    assert (tmp_path / "t.csv").read_text() == "x0,x1\n1.0,2.0\n,\n3.0,4.0\n"
    assert [json.loads(line)["x"] for line in (tmp_path / "t.jsonl").read_text().splitlines()] == [[1, 2], None, [3, 4]]


def test_other_types_become_text(tmp_path):
    table = pa.table(
        {
            "level": pa.array(["a", "b"]).dictionary_encode(),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "wait": pa.array([5, 6], pa.duration("s")),
            "nan": [math.nan, 1.5],
            "none": pa.nulls(2),
        }
    )
    write_rows(tmp_path / "t.csv", table.to_batches(), table.schema)
    assert (tmp_path / "t.csv").read_text() == "level,price,wait,nan,none\na,1.50,5,,\nb,,6,1.5,\n"
    write_rows(tmp_path / "t.jsonl", table.to_batches(), table.schema)
    first, _ = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert first == {"level": "a", "price": "1.50", "wait": 5, "nan": None, "none": None}


def test_no_rows_are_a_file_with_columns(tmp_path):
    schema = pa.schema([("a", pa.int64()), ("b", pa.int64())])
    for suffix in ("csv", "npy", "jsonl", "parquet"):
        assert write_rows(tmp_path / f"t.{suffix}", [], schema) == 0
    assert (tmp_path / "t.csv").read_text() == "a,b\n"
    assert np.load(tmp_path / "t.npy").shape == (0, 2)
    assert open_source(tmp_path / "t.parquet").rows == 0


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("t.npy", pa.table({"a": ["x"]}), "'a' of type string"),
        ("t.csv", pa.table({"a": [[1]]}), "'a'.*cannot be text"),
        ("t.jsonl", pa.table({"a": [b"\xff"]}), "'a'.*cannot be text"),
        ("t.jsonl", pa.table({"a": [math.inf]}), "infinite"),
        ("t.jsonl", pa.table({"a": [[1.0, math.inf]]}), "infinite"),
        ("t.jsonl", pa.table({"a": [[b"\xff"]]}), "'a'.*cannot be text"),
        ("t.txt", pa.table({"a": [1]}), "one column of texts"),
        ("t.txt", pa.table({"a": ["x", "y\nz"]}), "row 2: a text of several lines"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, table, message):
    with pytest.raises(DataError, match=message):
        write_rows(tmp_path / name, table.to_batches(), table.schema)
    assert os.listdir(tmp_path) == []


def test_settings_and_schemas_are_checked(tmp_path):
    table = pa.table({"a": [1]})
    with pytest.raises(SettingError, match=r"xlsx.*\.parquet.*or a folder"):
        write_rows(tmp_path / "t.xlsx", table.to_batches(), table.schema)
    with pytest.raises(DataError, match="wanted: a string"):
        write_rows(tmp_path / "t.csv", table.to_batches(), pa.schema([("a", pa.string())]))
    (batch,) = [batch for _, batch in open_source(np.zeros((1, 2))).batches()]
    both = batch.append_column("x0", pa.array([1]))
    with pytest.raises(DataError, match="more than one column named 'x0'"):
        write_rows(tmp_path / "t.csv", [both], both.schema)
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("old")

    def failing():
        yield pa.RecordBatch.from_pydict({"a": [1]})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, failing(), pa.schema([("a", pa.int64())]))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.csv"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_full_disk_is_said(tmp_path):
    with (
        pytest.raises(NarrowsError, match="no space left writing"),
        atomic(tmp_path / "m"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x" * 100_000)
    with pytest.raises(NarrowsError, match="no space left writing"), atomic(tmp_path / "m"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert os.listdir(tmp_path) == []


def test_atomic_files_keep_their_mode_and_links(tmp_path):
    path = tmp_path / "m.narrows"
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".narrows"
        temporary.write_text("one")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    with atomic(link) as temporary:
        temporary.write_text("two")
    assert link.is_symlink()
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == ["link", "m.narrows"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("no/m", "no such folder"), (".", "it is a folder"), ("file/m", "not a folder"), ("x" * 300, "name is too long")],
)
def test_places_that_cannot_be_written_are_refused(tmp_path, path, message):
    (tmp_path / "file").touch()
    with pytest.raises(NarrowsError, match=message), atomic(tmp_path / path):
        pytest.fail("the body ran")


def test_devices_are_not_replaced():
    with pytest.raises(NarrowsError, match="device or pipe"), atomic(os.devnull):
        pytest.fail("the body ran")


def test_errors_of_the_body_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "m"):
        raise FileNotFoundError(errno.ENOENT, "input")


# --- files of their own kind


def image_rows(array, paths=None):
    (batch,) = [batch for _, batch in open_source(array).batches()]
    if paths is None:
        return batch
    schema = pa.schema([batch.schema.field(0), field("path", pa.string(), aside=True)])
    return pa.RecordBatch.from_arrays([batch.column(0), pa.array(paths, pa.string())], schema=schema)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3)])
@pytest.mark.parametrize("dtype", ["u1", "i8", "f4"])
def test_images_become_png(tmp_path, shape, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype("u1")
    array = (pixels / 255).astype("f4") if dtype == "f4" else pixels.astype(dtype)
    batch = image_rows(array)
    assert write_rows(tmp_path / "out", [batch.slice(0, 2), batch.slice(2)], batch.schema) == 3
    assert sorted(os.listdir(tmp_path / "out")) == ["000000.png", "000001.png", "000002.png"]
    again = read(tmp_path / "out").column("image").combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(again.reshape(pixels.shape), pixels)
    assert os.listdir(tmp_path) == ["out"]


def test_files_are_called_as_those_they_came_from(tmp_path):
    paths = ["a/x.png", "b/x.jpg", "b/X.png", None, "s3://b/y.v2.tif", "x-2", "..", "q:*?.png", "z" * 300]
    batch = image_rows(np.zeros((len(paths), 2, 2), "u1"), paths)
    write_rows(tmp_path / "out", [batch], batch.schema)
    names = {"x", "x-2", "X-3", "000003", "y.v2", "x-2-2", "..", "q___", "z" * 150}
    assert set(os.listdir(tmp_path / "out")) == {f"{name}.png" for name in names}


@pytest.mark.parametrize("channels", [0, 1, 2])
@pytest.mark.parametrize("form", ["windows", "ragged"])
def test_sounds_become_wav_and_come_back(tmp_path, channels, form):
    shape = (40, channels) if channels else (40,)
    samples = [np.random.default_rng(i).integers(-(2**15), 2**15, (20 + i, *shape[1:])) / 2**15 for i in range(3)]
    if form == "windows":
        samples = [sound[:20] for sound in samples]
        kind = pa.fixed_shape_tensor(pa.float32(), samples[0].shape)
        flat = pa.array(np.concatenate([sound.ravel() for sound in samples]), pa.float32())
        column = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, samples[0].size))
    else:
        kind = pa.list_(pa.list_(pa.float32(), channels)) if channels else pa.list_(pa.float32())
        column = pa.array([sound.tolist() for sound in samples], kind)
    schema = pa.schema([field("sound", kind, kind="audio", rate=8000)])
    write_rows(tmp_path / "out", [pa.RecordBatch.from_arrays([column], schema=schema)], schema)
    for number, sound in enumerate(samples):
        with wave.open(str(tmp_path / "out" / f"{number:06d}.wav")) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, channels or 1, 2)
            found = np.frombuffer(file.readframes(100), "<i2").reshape(sound.shape) / 2**15
        np.testing.assert_array_equal(found, sound)


def test_loud_sounds_are_cut_not_wrapped(tmp_path):
    schema = pa.schema([field("sound", pa.list_(pa.float64()), kind="audio", rate=8000)])
    batch = pa.RecordBatch.from_arrays([pa.array([[1.5, -1.5, 1.0]])], schema=schema)
    write_rows(tmp_path / "out", [batch], schema)
    with wave.open(str(tmp_path / "out" / "000000.wav")) as file:
        assert np.frombuffer(file.readframes(3), "<i2").tolist() == [32767, -32768, 32767]


def test_texts_become_lines_or_files(tmp_path):
    schema = pa.schema([field("text", pa.string(), kind="tokens"), field("line", pa.int64(), aside=True)])
    batch = pa.RecordBatch.from_arrays([pa.array(["one", "zwö"]), pa.array([1, 2])], schema=schema)
    write_rows(tmp_path / "t.txt", [batch], schema)
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "one\nzwö\n"
    write_rows(f"{tmp_path}/out/", [batch], schema)
    assert (tmp_path / "out" / "000001.txt").read_text(encoding="utf-8") == "zwö"


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    good, empty, filled = image_rows(np.zeros((2, 2, 2), "u1")), tmp_path / "empty", tmp_path / "filled"
    empty.mkdir()
    write_rows(empty, [good], good.schema)
    assert len(os.listdir(empty)) == 2
    filled.mkdir()
    (filled / "x").touch()
    with pytest.raises(NarrowsError, match="filled: it is not empty"):
        write_rows(filled, [good], good.schema)
    (tmp_path / "file").touch()
    with pytest.raises(NarrowsError, match="it is a file"):
        write_rows(tmp_path / "file", [good], good.schema)
    with pytest.raises(NarrowsError, match="no such folder"):
        write_rows(tmp_path / "no" / "out", [good], good.schema)
    refuse_unwritable(tmp_path / "new")
    with pytest.raises(NarrowsError, match="it is not empty"):
        refuse_unwritable(filled)

    def failing():
        yield good
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "out", failing(), good.schema)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "filled"]


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (image_rows(np.full((2, 2, 2), 200.0)), DataError, "pixels from 200.0 to 200.0; wanted: 0 to 255 in whole"),
        (image_rows(np.full((2, 2, 2), math.nan)), DataError, "pixels from nan"),
        (image_rows(np.full((2, 2, 2), -1)), DataError, "pixels from -1"),
        (image_rows(np.zeros((2, 5))), SettingError, "the rows are x extension.*one column: an image, a sound"),
        (pa.RecordBatch.from_pydict({"a": ["x"], "b": [1]}), SettingError, "the rows are a string, b int64"),
        (pa.RecordBatch.from_pydict({"a": ["x", None]}), DataError, "row 2 has no a"),
    ],
)
def test_what_files_cannot_hold_is_refused(tmp_path, batch, error, message):
    with pytest.raises(error, match=message):
        write_rows(tmp_path / "out", [batch], batch.schema)
    assert os.listdir(tmp_path) == []


def test_sounds_that_are_none_are_refused(tmp_path):
    for values, rate, message in (([[math.nan]], 8000, "missing or infinite"), ([[0.5]], 0, "samples per second")):
        schema = pa.schema([field("sound", pa.list_(pa.float64()), kind="audio", rate=rate)])
        with pytest.raises((DataError, SettingError), match=message):
            write_rows(tmp_path / "out", [pa.RecordBatch.from_arrays([pa.array(values)], schema=schema)], schema)
    assert os.listdir(tmp_path) == []
