"""A log becomes one bag for each user, a sparse matrix one for each row: as a dictionary filled line by line says."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, SettingError
from narrows.sources import sparse
from narrows.sources.reading import ITEMS, KIND, Reading, fact, modeled
from narrows.sources.shuffle import Shuffle
from narrows.sources.source import PIECE_BITS, open_source
from narrows.sources.sparse import open_csr

SHARED = Path(__file__).parents[2] / "shared" / "data"
LOG = Reading(user="u", item="i", value="n")


def table_of(source):
    return pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)


def bags_of(source):
    """user (or row) -> {item: value}, in order."""
    table = table_of(source)
    keys = table.column("user").to_pylist() if "user" in table.column_names else range(len(table))
    return {key: dict(bag) for key, bag in zip(keys, table.column(0).to_pylist(), strict=True)}


def check(source):
    """Ids rise, skipping skips, counts are right."""
    whole = table_of(source).to_pylist()
    assert source.rows in (None, len(whole))
    place = 0
    for piece in source.pieces:
        rows = [row for _, batch in source.read(piece) for row in batch.to_pylist()]
        ids = [row + i for row, batch in source.read(piece) for i in range(len(batch))]
        assert ids == [piece << PIECE_BITS | i for i in range(len(rows))]
        assert rows == whole[place : place + len(rows)]
        for skip in (1, len(rows) // 2, len(rows), len(rows) + 3):
            rest = [row for _, batch in source.read(piece, skip) for row in batch.to_pylist()]
            assert rest == rows[skip:]
        place += len(rows)
    return source


LINES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(LINES, st.booleans(), st.booleans())
def test_logs_are_grouped_by_user(lines, texts, weighed):
    want: dict = {}
    for user, item, value in lines:
        user, item = (f"user {user}", f"item {item}") if texts else (user, item)
        bag = want.setdefault(user, {})
        bag[item] = bag.get(item, 0.0) + (value if weighed else 1)
    want = {user: {item: value for item, value in bag.items() if value} for user, bag in want.items()}
    frame = pd.DataFrame(lines, columns=["u", "i", "n"])
    if texts:
        frame["u"], frame["i"] = "user " + frame["u"].astype(str), "item " + frame["i"].astype(str)
    source = check(open_source(frame, reading=LOG if weighed else Reading(user="u", item="i", form="log")))
    got = bags_of(source)
    assert got == want
    assert list(got) == list(want)  # in the order of first lines
    (items,) = modeled(source.schema)
    key = pa.string() if texts else pa.int64()
    assert (items.name, items.type, fact(items, KIND)) == ("items", pa.map_(key, pa.float32()), "bag")
    assert fact(items, ITEMS) == ""


def test_logs_of_any_table(tmp_path):
    frame = pd.DataFrame({"u": ["a", "b", "a"], "i": [7, 8, 7], "n": [0.5, 1, 2], "when": [1, 2, 3]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=2)
    categories = frame.astype({"u": "category"})
    for data in (frame, categories, tmp_path / "t.csv", tmp_path / "t.parquet"):
        assert bags_of(check(open_source(data, reading=LOG))) == {"a": {7: 2.5}, "b": {8: 1.0}}


def test_long_logs_come_in_pieces_and_short_batches(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(sparse, "PIECE_ROWS", 300)
    monkeypatch.setattr(sparse, "BATCH_BYTES", 1200)
    users, items = rng.integers(0, 1000, 5000), rng.integers(0, 300, 5000)
    source = check(open_source(pa.table({"u": users, "i": items}), reading=Reading(user="u", item="i")))
    assert len(source.pieces) == 4
    table = pd.Series(1.0, index=pd.MultiIndex.from_arrays([users, items])).groupby(level=[0, 1]).sum()
    assert {(u, i): n for u, bag in bags_of(source).items() for i, n in bag.items()} == table.to_dict()
    parts = [part for part, _ in Shuffle(source, None, 0, 100).parts(0)]
    assert sorted(pa.concat_arrays([p.column("user") for p in parts]).to_pylist()) == sorted(set(users.tolist()))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"u": [1, None], "i": [1, 2], "n": [1, 1]}, "row 2, column 'u': missing"),
        ({"u": ["a", "b"], "i": ["x", None], "n": [1, 1]}, "row 2, column 'i': missing"),
        ({"u": [1, 2], "i": [1, 2], "n": [1, -2]}, "row 2, column 'n': -2.*from 0 up"),
        ({"u": [1, 2], "i": [1, 2], "n": [1, None]}, "row 2, column 'n': missing"),
        ({"u": [1, 2], "i": [1, 2], "n": [1, float("nan")]}, "row 2, column 'n': nan"),
        ({"u": [1, 2], "i": [1, 2], "n": [1, float("inf")]}, "row 2, column 'n': inf"),
        ({"u": [1, 2], "i": [1, 2], "n": ["a", "b"]}, "column 'n' is string"),
        ({"u": [1, 2], "i": [0.5, 2], "n": [1, 1]}, "column 'i' is double"),
        ({"u": [1, 2], "j": [1, 2], "n": [1, 1]}, "no 'i'"),
        ({"u": pa.array([], pa.int64()), "i": pa.array([], pa.int64()), "n": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_logs_with_a_bad_line_are_refused(columns, message):
    with pytest.raises(DataError, match=message):
        open_source(pa.table(columns), reading=LOG)


def test_hashes_are_users_and_items():
    columns = {"u": pa.array([2**63], pa.uint64()), "i": pa.array([2**64 - 1], pa.uint64()), "n": [1]}
    assert bags_of(open_source(pa.table(columns), reading=LOG)) == {2**63: {2**64 - 1: 1.0}}


def test_readings_that_fit_no_log_are_refused():
    with pytest.raises(DataError, match=r"columns a.*users and items"):
        open_source(pa.table({"a": [1]}), reading=Reading(form="log"))
    with pytest.raises(SettingError, match="both columns"):
        open_source(pa.table({"a": [1]}), reading=Reading(user="a"))


def test_bags_are_no_log(tmp_path):
    assert table_of(open_source(sp.eye(3), reading=LOG)).to_pylist() == table_of(open_source(sp.eye(3))).to_pylist()
    (tmp_path / "back.jsonl").write_text('{"user": 7, "items": {"3": 1.0, "9": 2.0}}\n{"user": 8, "items": {}}\n')
    bags = pa.map_(pa.int64(), pa.float32())
    for reading in (Reading(user="u", item="i"), Reading(form="log")):
        source = open_source(tmp_path / "back.jsonl", reading=reading)
        again = [row["items"] for row in table_of(source).to_pylist()]
        assert [dict(bag) for bag in again] == [{"3": 1.0, "9": 2.0}, {}]
    lines = pa.table({"u": [1], "i": [2], "more": pa.array([[(1, 1.0)]], bags)})
    assert bags_of(open_source(lines, reading=Reading(user="u", item="i"))) == {1: {2: 1.0}}


# --- lists


def test_lists_are_bags_of_numbers(tmp_path):
    path = tmp_path / "train.txt"
    path.write_bytes(b"3 10 20 10\r\n\n  7\t5\nx9\n3 1")
    source = check(open_source(path, reading=Reading(form="log")))
    rows = table_of(source).to_pylist()
    assert [(row["user"], row["items"]) for row in rows] == [
        ("3", [(10, 2.0), (20, 1.0)]),
        ("7", [(5, 1.0)]),
        ("x9", []),
        ("3", [(1, 1.0)]),
    ]
    (tmp_path / "u.txt.gz").write_bytes(gzip.compress(b"1 2 3\n"))
    both = check(open_source([path, tmp_path / "u.txt.gz"], reading=Reading(form="log")))
    assert len(both.pieces) == 2 and len(table_of(both)) == 5


@pytest.mark.parametrize("word", ["-3", "4.5", "x", "9" * 19])
def test_lists_with_a_bad_item_are_refused(tmp_path, word):
    path = tmp_path / "train.txt"
    path.write_text(f"3 10 20\n\n7 5 {word}\n")
    with pytest.raises(DataError, match=r"train\.txt line 3: item '"):
        table_of(open_source(path, reading=Reading(form="log")))


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_real_lists_and_logs():
    path = SHARED / "lastfm_implicit" / "train.txt.gz"
    table = table_of(open_source(path, reading=Reading(form="log")))
    with gzip.open(path, "rt") as lines:
        want = [list(map(int, line.split())) for line in lines]
    got = [
        {int(u), *(item for item, _ in bag)}
        for u, bag in zip(table["user"].to_pylist(), table["items"].to_pylist(), strict=True)
    ]
    assert got == [set(line) for line in want]
    names = Reading(user="user_id:token", item="item_id:token", value="rating:float")
    log = open_source(SHARED / "movielens_100k" / "ml-100k.inter.gz", reading=names)
    assert log.rows == 943
    assert sum(len(bag) for bag in bags_of(log).values()) == 100_000


# --- sparse matrices


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 30),
    st.sampled_from(["csr", "csc", "coo", "lil", "dok", "bsr"]),
    st.sampled_from(["f4", "f8", "i4", "u1", "?"]),
    st.booleans(),
)
def test_sparse_matrices_are_bags(rows, items, entries, format, dtype, array):
    rng = np.random.default_rng(entries)
    places = rng.integers(0, rows, entries), rng.integers(0, items, entries)
    values = rng.integers(0, 3, entries).astype(dtype)  # zeros and duplicates among them
    matrix = (sp.coo_array if array else sp.coo_matrix)((values, places), shape=(rows, items))
    source = check(open_source(matrix.asformat(format)))
    dense = np.zeros((rows, items))
    for row, bag in bags_of(source).items():
        assert 0.0 not in bag.values()
        dense[row, list(bag)] = list(bag.values())
    np.testing.assert_array_equal(dense, matrix.astype(dtype).toarray())
    assert source.schema.field("x").type == pa.map_(pa.int32(), pa.float32())
    assert fact(source.schema.field("x"), ITEMS) == str(items)


def test_a_clean_matrix_is_not_copied():
    matrix = sp.random(50, 20, 0.2, format="csr", dtype=np.float32, random_state=0)
    matrix.sort_indices()
    ((_, batch),) = open_source(matrix).batches()
    bags = batch.column(0)
    assert bags.items.buffers()[1].address == matrix.data.ctypes.data
    assert bags.keys.buffers()[1].address == matrix.indices.ctypes.data


@pytest.mark.parametrize(("value", "said"), [(-1.0, "-1"), (np.nan, "nan"), (np.inf, "inf")])
def test_values_that_are_no_counts_are_refused(value, said):
    matrix = sp.coo_array(([1.0, 2.0, value], ([0, 2, 2], [1, 0, 3])), shape=(3, 4))
    with pytest.raises(DataError, match=rf"row 3, item 3: {said}.*from 0 up"):
        open_source(matrix)


def csr(**changes):
    arrays = {"indptr": [0, 1, 2], "indices": [0, 1], "data": [1.0, 2.0], "shape": (2, 2)} | changes
    return open_csr(*(np.array(arrays[k]) for k in ("indptr", "indices", "data")), arrays["shape"], "m.npz")


@pytest.mark.parametrize(
    "changes",
    [
        {"indptr": [0, 1]},
        {"indptr": [0, 2, 1]},
        {"indptr": [1, 1, 2]},
        {"indptr": [0, 1, 3]},
        {"indptr": [0.0, 1.0, 2.0]},
        {"indices": [0, 2]},
        {"indices": [0, -1]},
        {"indices": [0]},
        {"indices": [[0, 1]]},
        {"data": [1.0]},
        {"data": ["a", "b"]},
        {"data": [1j, 2j]},
        {"shape": (3, 2)},
        {"shape": (2, 1)},
        {"shape": (2, 0)},
        {"shape": (2, 1 << 31)},
    ],
)
def test_damaged_rows_are_refused(changes):
    assert len(table_of(csr())) == 2
    with pytest.raises(DataError, match=r"m\.npz"):
        csr(**changes)


def test_sparse_objects_of_other_shapes_are_refused():
    with pytest.raises(DataError, match="sparse"):
        open_source(sp.coo_array([1.0, 0.0, 2.0]))
    with pytest.raises(DataError, match="shape"):
        open_source(sp.csr_matrix((0, 3)))
