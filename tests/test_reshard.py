"""Resharding gives every row back with its type, in groups of bounded size, and a shuffle is one order of all rows."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, NarrowsError, SettingError
from narrows.sources import reshard as reshard_module
from narrows.sources.reading import ASIDE, KIND, RATE, Reading, fact, field
from narrows.sources.reshard import reshard
from narrows.sources.source import open_source
from narrows.sources.write import write_rows


def rows_of(data):
    source = open_source(data)
    return pa.Table.from_batches([batch for _, batch in source.batches()], schema=source.schema)


TENSOR = pa.fixed_shape_tensor(pa.uint8(), (2, 3))
COLUMNS = {
    "int": pa.array([1, None, -(2**60)] * 40),
    "float": pa.array([0.5, None, float("nan")] * 40, pa.float32()),
    "half": pa.array(np.arange(120), pa.float16()),
    "flag": pa.array([True, None, False] * 40),
    "text": pa.array(["a", "", None] * 40, pa.large_string()),
    "bytes": pa.array([b"a", b"\xff", None] * 40),
    "level": pa.array(["a", "b", None] * 40).dictionary_encode(),
    "date": pa.array([dt.date(2020, 1, 2), None, dt.date(1960, 1, 1)] * 40),
    "stamp": pa.array([0, None, 1] * 40, pa.timestamp("ns", "Europe/Paris")),
    "clock": pa.array([0, None, 1] * 40, pa.time64("us")),
    "span": pa.array([0, None, 1] * 40, pa.duration("ms")),
    "money": pa.array([Decimal("1.50"), None, Decimal("-2.00")] * 40),
    "none": pa.nulls(120),
    "image": pa.ExtensionArray.from_storage(TENSOR, pa.array([[1, 2, 3, 4, 5, 6], None] * 60, TENSOR.storage_type)),
    "series": pa.array([[1.0, 2.0], [], None] * 40),
    "stereo": pa.array([[[1, 2], [3, 4]], [], None] * 40, pa.list_(pa.list_(pa.int16(), 2))),
    "bag": pa.array([[("a", 1.0)], [], None] * 40, pa.map_(pa.string(), pa.float32())),
}


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_comes_back(tmp_path, name, shuffle):
    table = pa.table({name: COLUMNS[name], "n": range(120)})
    assert reshard(table, tmp_path / "out", rows_per_group=25, shuffle=shuffle) == 120
    back = rows_of(tmp_path / "out")
    assert back.schema.types == table.schema.types
    ordered = back.take(np.argsort(back["n"].to_numpy())).combine_chunks()
    assert [str(value) for value in ordered[name]] == [str(value) for value in table[name]]


def test_facts_of_columns_come_back(tmp_path):
    fields = [field("wave", pa.list_(pa.float32()), kind="audio", rate=8000), field("path", pa.string(), aside=True)]
    table = pa.table([pa.array([[0.5]], pa.list_(pa.float32())), ["a.wav"]], schema=pa.schema(fields))
    pq.write_table(table, tmp_path / "in.parquet")
    reshard(tmp_path / "in.parquet", tmp_path / "out.parquet")
    schema = open_source(tmp_path / "out.parquet").schema
    assert [fact(entry, KIND) for entry in schema] == ["audio", ""]
    assert [fact(entry, RATE) for entry in schema] == ["8000", ""]
    assert [fact(entry, ASIDE) for entry in schema] == ["", "1"]


@given(st.lists(st.integers(0, 70), max_size=6), st.integers(1, 100), st.booleans())
@settings(max_examples=40, deadline=None)
def test_groups_are_full_and_rows_complete(tmp_path_factory, lengths, rows_per_group, shuffle):
    out = tmp_path_factory.mktemp("reshard") / "out"
    starts = np.cumsum([0, *lengths])
    batches = [pa.RecordBatch.from_pydict({"n": np.arange(first, stop)}) for first, stop in pairwise(starts)]
    table = pa.Table.from_batches(batches, pa.schema([("n", pa.int64())]))
    assert reshard(table, out, rows_per_group=rows_per_group, shuffle=shuffle) == len(table)
    groups = pq.ParquetFile(next(out.iterdir())).metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    full, rest = divmod(len(table), rows_per_group)
    assert [size for size in sizes if size] == [rows_per_group] * full + [rest] * bool(rest)
    numbers = pq.read_table(out)["n"].to_pylist()
    assert (sorted(numbers) if shuffle else numbers) == table["n"].to_pylist()


@pytest.mark.parametrize("form", ["csv", "jsonl", "npy", "parquet"])
def test_files_of_every_form_become_parquet(tmp_path, form):
    table = pa.table({"a": np.arange(500) / 8, "b": np.arange(500) * 0.5})
    write_rows(tmp_path / f"rows.{form}", table.to_batches(max_chunksize=70), table.schema)
    reshard(tmp_path / f"rows.{form}", tmp_path / "out.parquet", rows_per_group=100)
    assert rows_of(tmp_path / "out.parquet").equals(rows_of(tmp_path / f"rows.{form}"))


def test_partition_folders_become_columns(tmp_path):
    for year in (2023, 2024):
        (tmp_path / "in" / f"year={year}").mkdir(parents=True)
        pq.write_table(pa.table({"n": [year % 10]}), tmp_path / "in" / f"year={year}" / "0.parquet")
    reshard(tmp_path / "in", tmp_path / "out")
    assert rows_of(tmp_path / "out").to_pydict() == {"n": [3, 4], "year": [2023, 2024]}


def test_windows_of_a_series_are_written_as_windows(tmp_path):
    series = open_source(pa.table({"a": np.arange(40.0)}), reading=Reading(form="series", window=10))
    reshard(series, tmp_path / "out.parquet")
    back = open_source(tmp_path / "out.parquet")
    assert fact(back.schema.field("x"), KIND) == "series"
    assert rows_of(back).drop_columns(["start"]).to_pydict() == rows_of(series).drop_columns(["start"]).to_pydict()


def test_large_levels_do_not_make_small_groups(tmp_path):
    levels = pa.array([f"{i:0>1000}" for i in range(30_000)])  # a dictionary of 30 MB
    codes = pa.DictionaryArray.from_arrays(pa.array(np.arange(30_000) % 7, pa.int32()), levels)
    reshard(pa.table({"level": codes}), tmp_path / "out.parquet")
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 1


def test_wide_rows_make_small_groups_and_many_rows_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reshard_module, "GROUP_BYTES", 10_000)
    monkeypatch.setattr(reshard_module, "FILE_BYTES", 35_000)
    array = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    reshard(array, tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"part-{i:05}.parquet" for i in range(2)]
    metadata = [pq.ParquetFile(file).metadata for file in files]
    sizes = [m.row_group(i).num_rows for m in metadata for i in range(m.num_row_groups)]
    assert sum(sizes) == 1000 and max(sizes) <= 10_000 // 64
    assert min(sizes[:-1]) >= 0.9 * max(sizes)
    np.testing.assert_array_equal(
        np.concatenate([x.to_numpy_ndarray() for x in rows_of(tmp_path / "out")["x"].chunks]), array
    )


def order(data, out, **options):
    reshard(data, out, shuffle=True, **options)
    return rows_of(out)["n"].to_pylist()


def test_a_shuffle_is_one_order_of_all_rows(tmp_path, monkeypatch):
    table = pa.table({"n": range(20_000)})
    first = order(table, tmp_path / "a.parquet")
    assert order(table, tmp_path / "b.parquet", rows_per_group=77) == first
    assert order(table, tmp_path / "c.parquet", seed=1) != first
    monkeypatch.setattr(reshard_module, "_BUCKET_BYTES", 3_000)  # scattered three times
    assert order(table, tmp_path / "d") == first
    assert sorted(first) == list(range(20_000))
    places = np.array(first)
    assert abs(np.corrcoef(np.arange(20_000), places)[0, 1]) < 0.03  # four standard deviations
    tenths = Counter(zip((np.arange(20_000) // 2000).tolist(), (places // 2000).tolist(), strict=True))
    assert sum((count - 200) ** 2 / 200 for count in tenths.values()) < 81 + 4 * (2 * 81) ** 0.5  # chi-squared
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "c.parquet", "d"]


def test_levels_that_differ_from_piece_to_piece_are_shuffled(tmp_path):
    for part, levels in enumerate((["a", "b"], ["c", "b"])):
        column = pa.array(levels).dictionary_encode()
        pq.write_table(pa.table({"n": [2 * part, 2 * part + 1], "level": column}), tmp_path / f"{part}.parquet")
    reshard(tmp_path, tmp_path / "out", shuffle=True)
    back = rows_of(tmp_path / "out").sort_by("n")
    assert back["level"].to_pylist() == ["a", "b", "c", "b"]


@pytest.mark.parametrize("shuffle", [False, True])
def test_levels_may_together_need_wider_codes(tmp_path, shuffle):
    names = [[f"{part}{i}" for i in range(100)] for part in "ab"]
    chunks = [pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), each) for each in names]
    reshard(pa.table({"n": range(200), "level": pa.chunked_array(chunks)}), tmp_path / "out", shuffle=shuffle)
    assert rows_of(tmp_path / "out").sort_by("n")["level"].to_pylist() == names[0] + names[1]


class Breaks:
    """A source that breaks, or is interrupted, after some rows."""

    def __init__(self, error):
        self.source, self.error = open_source(pa.table({"n": range(5000)})), error

    def batches(self):
        for first in range(0, 3000, 500):
            yield first, pa.RecordBatch.from_pydict({"n": np.arange(first, first + 500)})
        raise self.error


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("error", [DataError("row 3000 is broken"), KeyboardInterrupt()], ids=["broken", "interrupted"])
@pytest.mark.parametrize("out", ["out", "out.parquet"])
def test_nothing_half_written_is_left(tmp_path, monkeypatch, out, error, shuffle):
    broken = Breaks(error)
    monkeypatch.setattr(broken.source, "batches", broken.batches)
    with pytest.raises(type(error)):
        reshard(broken.source, tmp_path / out, rows_per_group=100, shuffle=shuffle)
    assert not list(tmp_path.iterdir())


def test_progress_is_told(tmp_path):
    told = []
    reshard(pa.table({"n": range(200_000)}), tmp_path / "out", progress=lambda done, rows: told.append((done, rows)))
    assert told[-1] == (200_000, 200_000)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_no_rows_are_a_file_without_rows(tmp_path):
    assert reshard(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "out") == 0
    assert rows_of(tmp_path / "out").schema.names == ["n"]


def test_what_cannot_be_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    table = pa.table({"n": [1]})
    union = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])
    with pytest.raises(NarrowsError, match="not empty"):
        reshard(table, tmp_path / "full")
    with pytest.raises(NarrowsError, match="no such folder"):
        reshard(table, tmp_path / "no" / "out", shuffle=True)
    with pytest.raises(SettingError, match="rows_per_group=0"):
        reshard(table, tmp_path / "out", rows_per_group=0)
    with pytest.raises(DataError, match=r"'u'.*Parquet"):
        reshard(pa.table({"u": union}), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
