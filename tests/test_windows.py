"""Windows are slices of the rows, none across two files or series, however the table is stored and read."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, DataWarning, SettingError
from narrows.sources import windows
from narrows.sources.reading import ASIDE, CHANNELS, KIND, Reading, fact, modeled
from narrows.sources.shuffle import Shuffle
from narrows.sources.source import BATCH_ROWS, PIECE_BITS, open_source

SHARED = Path(__file__).parents[2] / "shared" / "data"


def opened(data, **settings):
    """A source, without the warning about rows at the ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return open_source(data, reading=Reading(**settings))


def rows_of(source):
    return [row for _, batch in source.batches() for row in batch.to_pylist()]


def array_of(source):
    return np.concatenate([batch.column(0).to_numpy_ndarray() for _, batch in source.batches()])


def expected(values, window, stride, starts=(0,)):
    """Windows and their starts by slicing in loops."""
    stops = [*starts[1:], len(values)]
    found = [
        (values[at : at + window], at - start)
        for start, stop in zip(starts, stops, strict=True)
        for at in range(start, stop - window + 1, stride)
    ]
    return np.array([cut for cut, _ in found]), [at for _, at in found]


def check(source):
    """What holds of every source: ids rise, batches are small, skipping skips, and the counts are right."""
    for piece in source.pieces:
        batches = list(source.read(piece))
        ids = [row + i for row, batch in batches for i in range(len(batch))]
        assert ids == [piece << PIECE_BITS | i for i in range(source.rows_of(piece))]
        assert all(0 < len(batch) <= BATCH_ROWS for _, batch in batches)
        whole = pa.Table.from_batches([batch for _, batch in batches], source.schema).to_pylist()
        for skip in {1, len(whole) // 2, len(whole) - 1, len(whole), len(whole) + 5}:
            rest = list(source.read(piece, skip))
            assert str([row for _, batch in rest for row in batch.to_pylist()]) == str(whole[skip:])  # NaN is not NaN
            assert not rest or rest[0][0] == piece << PIECE_BITS | skip
    return source


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 9), st.integers(1, 7), st.integers(1, 3))
def test_windows_are_slices_across_all_pieces(rows, window, stride, group, channels):
    values = np.random.default_rng(rows).standard_normal((rows, channels))
    sink = pa.BufferOutputStream()
    columns = {f"c{i}": values[:, i] for i in range(channels)}
    pq.write_table(pa.table(columns), sink, row_group_size=group)
    table = _memory(sink.getvalue().to_pybytes())
    if rows < window:
        with pytest.raises(DataError, match=f"no series has more than {rows} rows; wanted: {window}"):
            windows.open_windows(table, Reading(window=window, stride=stride))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        source = check(windows.open_windows(table, Reading(window=window, stride=stride)))
    want, starts = expected(values, window, stride)
    np.testing.assert_array_equal(array_of(source), want)
    assert [row["start"] for row in rows_of(source)] == starts
    assert source.rows == len(want)


def _memory(data):
    """A Parquet source of bytes, without a disk."""
    from pyarrow import fs

    from narrows.sources.parquet import ParquetSource
    from narrows.sources.paths import File

    class Bytes(File):
        def open(self):
            return pa.BufferReader(data)

    return ParquetSource(Bytes("t.parquet", "t.parquet", fs.LocalFileSystem()))


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "npy", "frame", "array", "table"])
def test_any_table_can_be_cut(tmp_path, form):
    values = np.arange(40.0).reshape(20, 2) / 4
    frame = pd.DataFrame(values, columns=["a", "b"])
    data = tmp_path / f"t.{form}"
    if form.startswith("csv"):
        frame.to_csv(data, index=False)
    elif form == "parquet":
        frame.to_parquet(data, row_group_size=6)
    elif form == "npy":
        np.save(data, values)
    else:
        data = {"frame": frame, "array": values, "table": pa.table({"a": values[:, 0], "b": values[:, 1]})}[form]
    source = check(opened(data, window=5, stride=3))
    np.testing.assert_array_equal(array_of(source), expected(values, 5, 3)[0])
    (x,) = modeled(source.schema)
    assert (x.name, fact(x, KIND)) == ("x", "series")
    assert json.loads(fact(x, CHANNELS)) == (["x0", "x1"] if form in ("npy", "array") else ["a", "b"])
    assert x.type.shape == [5, 2] and fact(source.schema.field("start"), ASIDE)


def test_numbers_of_16_bits_stay_narrow_and_others_stay_exact():
    for dtype, want in (("i2", "f4"), ("f4", "f4"), ("u1", "f4"), ("?", "f4"), ("i4", "f8"), ("f8", "f8")):
        values = np.random.default_rng(0).integers(0, 2, (6, 1)).astype(dtype)
        got = array_of(opened(values, window=2))
        assert got.dtype == want
        np.testing.assert_array_equal(got, expected(values, 2, 2)[0])
    mixed = pa.table({"a": pa.array([1, 2], pa.int16()), "b": pa.array([2**40 + 1, None]), "c": pa.nulls(2)})
    (row,) = rows_of(opened(mixed, window=2))
    np.testing.assert_array_equal(np.array(row["x"]).reshape(2, 3)[:, :2], [[1, 2**40 + 1], [2, np.nan]])


def test_a_vector_is_a_series_of_one_channel():
    assert array_of(opened(np.arange(6), window=3)).shape == (2, 3, 1)
    assert array_of(opened(np.arange(6)[:, None], window=6)).shape == (1, 6, 1)
    with pytest.raises(DataError, match="reshape"):
        open_source(np.arange(6))


def test_missing_values_are_nan():
    table = pa.table({"a": [1, None, 3], "b": [0.5, 1.5, None]})
    np.testing.assert_array_equal(array_of(opened(table, window=3))[0], [[1, 0.5], [np.nan, 1.5], [3, np.nan]])
    lists = pa.table({"m": pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float64(), 2))})
    got = array_of(opened(lists, window=3))[0]
    np.testing.assert_array_equal(got, [[1, 2], [np.nan, np.nan], [3, np.nan]])


# --- series, whole and in windows


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 5))
def test_no_window_spans_two_series(lengths, window, stride):
    rows = sum(lengths)
    starts = [0, *np.cumsum(lengths)[:-1].tolist()]
    names = [f"s{i}" for i, length in enumerate(lengths) for _ in range(length)]
    values = np.arange(float(rows))[:, None]
    table = pa.table({"who": names, "v": values[:, 0], "when": np.arange(rows)[::-1] * 0 + np.arange(rows)})
    if max(lengths) >= window:
        source = check(opened(table, window=window, stride=stride, series="who", stamp="when"))
        want, begins = expected(values, window, stride, starts)
        np.testing.assert_array_equal(array_of(source), want)
        got = rows_of(source)
        assert [row["start"] for row in got] == begins
        assert [row["when"] for row in got] == [int(cut[0, 0]) for cut in want]
        assert [row["series"] for row in got] == [names[int(cut[0, 0])] for cut in want]
    whole = check(opened(table, form="series", series="who", stamp="when"))
    assert [row["x"] for row in rows_of(whole)] == [
        values[start:stop].tolist() for start, stop in zip(starts, [*starts[1:], rows], strict=True)
    ]


def test_whole_series_are_ragged_lists():
    frame = pd.DataFrame({"k": list("aabbb"), "u": [1, 2, 3, 4, 5], "v": [0.5, None, 1.5, 2.5, 3.5]})
    source = check(opened(frame, form="series", series="k"))
    assert source.schema.field("x").type == pa.list_(pa.list_(pa.float64(), 2))
    first, second = rows_of(source)
    assert str(first) == str({"x": [[1, 0.5], [2.0, float("nan")]], "series": "a", "start": 0}).replace("[1,", "[1.0,")
    assert second == {"x": [[3, 1.5], [4, 2.5], [5, 3.5]], "series": "b", "start": 0}
    assert rows_of(opened(np.arange(3.0), form="series")) == [{"x": [[0.0], [1.0], [2.0]], "start": 0}]


def test_files_and_folders_are_series_of_their_own(tmp_path):
    for number, year in enumerate((2023, 2024, 2024)):
        folder = tmp_path / f"year={year}"
        folder.mkdir(exist_ok=True)
        rows = pd.DataFrame({"t": pd.date_range("2020", periods=5), "v": np.arange(5) + 10 * number})
        rows.to_parquet(folder / f"{number}.parquet", row_group_size=2)
    source = check(opened(tmp_path, window=3, stride=2, stamp="t"))
    values = [np.arange(5.0)[:, None] + 10 * i for i in range(3)]
    np.testing.assert_array_equal(array_of(source), np.concatenate([expected(v, 3, 2)[0] for v in values]))
    got = rows_of(source)
    assert [row["year"] for row in got] == [2023, 2023, 2024, 2024, 2024, 2024]
    assert [row["series"][-9:] for row in got][::2] == ["0.parquet", "1.parquet", "2.parquet"]
    assert {field.name for field in source.schema} - {f.name for f in modeled(source.schema)} == {
        *("series", "start", "t", "year")
    }
    assert len(rows_of(opened(tmp_path, form="series", stamp="t"))) == 3


def test_rows_that_fill_no_window_are_counted(tmp_path):
    values = np.zeros((11, 1))
    with pytest.warns(DataWarning, match=r"1 rows at the ends .* window of 5 rows"):
        open_source(values, reading=Reading(window=5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(values, reading=Reading(window=5, stride=6))
        open_source(values, reading=Reading(window=3, stride=4))
        open_source(values, reading=Reading(window=3, stride=7))
    table = pa.table({"k": list("aaabbbbb"), "v": range(8)})
    with pytest.warns(DataWarning, match="4 rows"):  # all of a, one of b
        open_source(table, reading=Reading(window=4, series="k"))


def test_shards_and_shuffles_give_every_window_once():
    values = np.arange(400_000.0)[:, None]
    source = opened(values, window=100, stride=50)
    assert len(source.pieces) == 4
    want = [batch.column("start").to_pylist() for _, batch in source.batches()]
    whole = sorted(start for batch in want for start in batch)
    assert whole == list(range(0, 400_000 - 99, 50))
    shards = [b.column("start").to_pylist() for rank in range(3) for _, b in source.shard(rank, 3).batches()]
    assert sorted(start for batch in shards for start in batch) == whole
    parts = [rows for rows, _ in Shuffle(source, None, 0, 1000).parts(0)]
    assert sorted(start for rows in parts for start in rows.column("start").to_pylist()) == whole


def test_windows_longer_than_batches_and_pieces(monkeypatch):
    monkeypatch.setattr(windows, "BATCH_BYTES", 1000)
    values = np.random.default_rng(0).standard_normal((300_000, 1)).astype("f4")
    source = opened(values, window=140_000, stride=70_000)
    got = list(source.batches())
    assert [len(batch) for _, batch in got] == [1, 1, 1]
    np.testing.assert_array_equal(array_of(source), expected(values, 140_000, 70_000)[0])


# --- what is refused


def frame(stamps, **columns):
    return pd.DataFrame({"t": stamps, "v": range(len(stamps)), **columns})


UTC = [f"2024-03-01T0{h}:00:00Z" for h in (1, 2, 3)]


@pytest.mark.parametrize(
    ("stamps", "message"),
    [
        ([1, 3, 2], "row 3: stamp 2 comes after 3"),
        ([1, 2, 2], "row 3: stamp 2 comes after 2"),
        ([1.0, None, 2.0], "row 2 has no stamp"),
        (pd.to_datetime(["2024-01-01", "2024-01-03", "2024-01-02"]), "row 3: stamp 2024-01-02.* after 2024-01-03"),
        (pd.to_datetime(["2024-01-01", None, "2024-01-02"]), "row 2 has no stamp"),
        ([dt.date(2024, 1, 2), dt.date(2024, 1, 1)], "row 2: stamp 2024-01-01 comes after 2024-01-02"),
        ([UTC[1], UTC[0]], "row 2: stamp 2024-03-01T01:00:00Z comes after"),
        ([UTC[0], "2024-03-01T02:00:00+01:00"], "mix time zones: .*row 1 .*Z, .*row 2 .*01:00.*UTC first"),
        ([UTC[0], "2024-03-01T02:00:00"], "mix time zones"),
        (["2024-03-01", "Friday"], "row 2: stamp 'Friday' is no date"),
        ([["a"], ["b"]], "column 't' is list"),
    ],
)
def test_stamps_must_rise(stamps, message):
    with pytest.raises(DataError, match=message):
        opened(frame(stamps), window=2, stamp="t")


@pytest.mark.parametrize(
    "stamps",
    [
        UTC,
        [stamp.replace("Z", "+05:30") for stamp in UTC],
        ["2024-03-01", "2024-03-02", "2024-03-10"],
        ["2024-03-01 10:00", "2024-03-01 10:00:00.5", "2024-03-01 10:00:01"],
        [-1.5, 0.0, 1e300],
        pd.to_datetime(UTC),
        pd.to_timedelta([1, 2, 3], unit="s"),
        pd.Categorical(UTC),
    ],
)
def test_stamps_of_any_type_stand_aside_as_they_came(stamps):
    data = frame(stamps)
    source = check(opened(data, window=2, stride=1, stamp="t"))
    want = pa.array(data["t"], from_pandas=True).to_pylist()[:2]
    assert [row["t"] for row in rows_of(source)] == want


def test_zones_of_csv_files(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("t,v\n2024-03-01T01:00:00+00:00,1\n2024-03-01T02:30:00+01:00,2\n2024-03-01T02:00:00Z,3\n")
    assert [row["t"].hour for row in rows_of(opened(path, window=1, stamp="t"))] == [1, 1, 2]  # instants: all UTC
    path.write_text("t,v\n2024-03-01T01:00:00Z,1\n2024-03-01T02:30:00,2\n")
    with pytest.raises(DataError, match=r"mix time zones: .*t\.csv row 1"):
        opened(path, window=1, stamp="t")


def test_stamps_may_fall_from_one_series_to_the_next_but_rise_across_batches(tmp_path):
    table = pa.table({"k": list("aabb"), "t": [5, 6, 1, 2], "v": range(4)})
    assert len(rows_of(opened(table, window=2, stamp="t", series="k"))) == 2
    with pytest.raises(DataError, match=r"row 3: stamp 1 comes after 6.*or series="):
        opened(table.drop(["k"]), window=2, stamp="t")
    pq.write_table(table.drop(["k"]), tmp_path / "t.parquet", row_group_size=2)
    with pytest.raises(DataError, match="row 3: stamp 1 comes after 6"):
        opened(tmp_path / "t.parquet", window=2, stamp="t")


def test_a_series_stands_together():
    with pytest.raises(DataError, match=r"row 3: series 'a' comes back after another.*sorting"):
        opened(pa.table({"k": list("aba"), "v": range(3)}), window=1, series="k")
    with pytest.raises(DataError, match="row 2 has no series"):
        opened(pa.table({"k": ["a", None], "v": range(2)}), window=1, series="k")


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ({"a": ["x"], "v": [1]}, {"window": 1}, r"columns 'a' \(string\).*stamp=.*series="),
        ({"t": [dt.date(2024, 1, 1)], "v": [1]}, {"window": 1}, r"'t' \(date32"),
        ({"k": ["x"]}, {"window": 1, "series": "k"}, "columns none"),
        ({"v": [1]}, {"window": 1, "series": "k"}, "no column 'k'.*one of v"),
        ({"v": [1]}, {"window": 1, "stamp": "t"}, "no column 't'"),
        ({"start": [1], "v": [1]}, {"window": 1, "stamp": "start"}, "column 'start' beside"),
        ({"v": [1]}, {"window": 2}, "no series has more than 1 rows"),
        ({"v": []}, {"window": 2}, "is to be a series|more than 0 rows"),
        ({"v": [[1, 2]]}, {"window": 1}, r"'v' \(list"),
    ],
)
def test_tables_that_are_no_series_are_refused(table, settings, message):
    with pytest.raises(DataError, match=message):
        opened(pa.table(table), **settings)


@pytest.mark.parametrize("form", ["table", "parquet", "array", "npy", "whole"])
def test_windows_are_not_cut_again(tmp_path, form):
    values = np.random.default_rng(0).normal(size=(40, 2))
    asked = {"form": "series"} if form == "whole" else {"window": 8, "stride": 5}
    source = opened(values, **asked)
    table = pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)
    cut = table
    if form == "parquet":
        cut = tmp_path / "w.parquet"
        pq.write_table(table, cut)
    elif form in ("array", "npy"):
        cut = table["x"].combine_chunks().to_numpy_ndarray()
        np.save(tmp_path / "w.npy", cut)
        cut = tmp_path / "w.npy" if form == "npy" else cut
    again = check(opened(cut, **asked))
    assert [row["x"] for row in rows_of(again)] == table["x"].to_pylist()
    if form != "whole":  # of another length they are no rows of a series either
        with pytest.raises((SettingError, DataError)):
            opened(cut, window=7)


def test_images_are_no_series():
    with pytest.raises(DataError, match=r"'x' .*shape=\[3,2\]"):
        opened(np.zeros((5, 3, 2)), window=2)


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2},
        {"series": "k"},
        {"stamp": "t"},
        {"user": "u", "item": "i", "window": 3},
        {"user": "u", "item": "i", "form": "series"},
        {"form": "log", "window": 2},
        {"value": "v"},
        {"window": 0},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings):
    with pytest.raises(SettingError):
        opened(np.zeros((5, 3)), **settings)


def test_windows_need_no_heavy_library():
    code = (
        "import sys, numpy; from narrows.sources.source import open_source;"
        "from narrows.sources.reading import Reading;"
        "source = open_source(numpy.zeros((4, 2)), reading=Reading(window=2)); list(source.batches());"
        "print(sorted({'torch', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_real_series():
    source = opened(SHARED / "ett" / "ETTh1.csv.gz", window=96, stride=24, stamp="date")
    assert source.rows == (17420 - 96) // 24 + 1
    got, rows = array_of(source), rows_of(source)
    assert got.shape == (source.rows, 96, 7)
    assert rows[1]["date"] - rows[0]["date"] == dt.timedelta(days=1)
    frame = pd.read_csv(SHARED / "ett" / "ETTh1.csv.gz")
    np.testing.assert_array_equal(got[10], frame.iloc[240:336, 1:])
