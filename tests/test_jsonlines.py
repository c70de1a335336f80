"""JSON lines come as Python's own parser reads them, typed alike however the file is cut; and errors name the line."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError
from narrows.sources import jsonlines
from narrows.sources.jsontypes import BAG
from narrows.sources.reading import Reading
from narrows.sources.source import PIECE_BITS, open_source
from narrows.sources.write import write_rows

SHARED = Path(__file__).parents[2] / "shared" / "data"


def lines(tmp_path, text, name="t.jsonl"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table_of(source):
    table = pa.Table.from_batches([batch for _, batch in source.batches()], source.schema)
    table.validate(full=True)
    return table


def read(tmp_path, text, **options):
    return table_of(open_source(lines(tmp_path, text), **options))


FLOATS = pa.list_(pa.float64())


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-2", "null"], pa.int64(), [1, -2, None]),
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (["1", "9223372036854775808"], pa.float64(), [1.0, 2.0**63]),
        (["NaN", "1"], pa.float64(), [pytest.approx(np.nan, nan_ok=True), 1.0]),
        (["true", "null"], pa.bool_(), [True, None]),
        (['"7"', '"007"', '""', '"NA"'], pa.string(), ["7", "007", "", "NA"]),
        (['"2020-01-31"', "null"], pa.date32(), [dt.date(2020, 1, 31), None]),
        (['"2020-01-31"', '"2020-01-31T05:06:07.5"'], pa.timestamp("us"), None),
        (['"2020-01-31T05:06:07Z"', '"2020-01-31 05:06:07+02:00"'], pa.timestamp("us", "UTC"), None),
        (['"2020-01-31"', '"x"'], pa.string(), ["2020-01-31", "x"]),
        (['"2020-01-31T05"', '"2020-01-31T05:06:07Z"'], pa.string(), None),
        (["null", "null"], pa.null(), [None, None]),
        (["5", '"x"', "true", '[{"a": 1}]'], pa.string(), ["5", "x", "true", '[{"a":1}]']),
        (["[1, 2]", "[]", "null", "[3]"], pa.list_(pa.int64()), [[1, 2], [], None, [3]]),
        (["[1, 2.5]", "[null]"], FLOATS, [[1.0, 2.5], [None]]),
        (["[]"], FLOATS, [[]]),
        (['["a", null]'], pa.list_(pa.string()), [["a", None]]),
        (["[1, true]"], pa.string(), ["[1,true]"]),
        (
            ["[[1, 2], [3, 4]]", "null", "[[5, 6]]"],
            pa.list_(pa.list_(pa.int64(), 2)),
            [[[1, 2], [3, 4]], None, [[5, 6]]],
        ),
        (["[[1, 2], [3]]"], pa.list_(pa.list_(pa.int64())), [[[1, 2], [3]]]),
        (["[[1, 2]]", "[null]"], pa.list_(pa.list_(pa.int64())), [[[1, 2]], [None]]),
        (["[[1, 2], [3, 4]]", "null"], pa.fixed_shape_tensor(pa.int64(), (2, 2)), [[1, 2, 3, 4], None]),
        (["[[[1.5]], [[2]]]"], pa.fixed_shape_tensor(pa.float64(), (2, 1, 1)), [[1.5, 2.0]]),
        (['{"a": 1, "b": 2.5}', "{}", "null"], BAG, [[("a", 1.0), ("b", 2.5)], [], None]),
    ],
)
@pytest.mark.parametrize("slow", [False, True])
def test_types_are_found(tmp_path, cells, kind, values, slow):
    extra = ', "o": {"n": "x"}' if slow else ""  # an object in it, and pyarrow's parser is not asked
    table = read(tmp_path, "".join(f'{{"v": {cell}{extra}}}\n' for cell in cells))
    assert table.schema.field("v").type == kind
    if values is not None:
        assert table.column("v").to_pylist() == values


def test_objects_become_columns_unless_they_are_bags(tmp_path):
    text = """{"id": 1, "at": {"lat": -3.5, "lon": 2}, "words": {"x": 1}, "deep": {"a": {"b": "t"}, "c": null}}
    {"id": 2, "at": null, "words": {"y": 2, "x": 3}}

    {"at": {"lat": 1}, "deep": {"a": {"b": "u"}}}"""
    table = read(tmp_path, text)
    assert table.to_pydict() == {
        "id": [1, 2, None],
        "at.lat": [-3.5, None, 1.0],
        "at.lon": [2, None, None],
        "words": [[("x", 1.0)], [("y", 2.0), ("x", 3.0)], None],
        "deep.a.b": ["t", None, "u"],
        "deep.c": [None, None, None],
    }


def test_tensors_with_holes_hold_nan(tmp_path):
    (column,) = read(tmp_path, '{"x": [[1, null], [3, 4]]}\n').columns
    np.testing.assert_array_equal(column.combine_chunks().to_numpy_ndarray(), [[[1, np.nan], [3, 4]]])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1), min_size=1, max_size=6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_json_is_read_or_refused_in_words(tmp_path_factory, rows, ascii):
    path = tmp_path_factory.mktemp("json") / "t.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows), encoding="utf-8")
    with suppress(DataError):  # columns that share a name once objects are flattened
        table = table_of(open_source(path))
        assert table.num_rows == len(rows)
        for name in "abc":
            if name in table.schema.names:
                check_cells(table.column(name), [row.get(name) for row in rows])


def test_an_object_of_numbers_beyond_single_precision_is_no_bag(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": {"x": 3.4028235677973366e38}}\n')
    assert table_of(open_source(path)).to_pylist() == [{"a.x": 3.4028235677973366e38}]


def check_cells(column, wanted):
    for found, value in zip(column.to_pylist(), wanted, strict=True):
        if column.type == BAG:
            value = None if value is None else [(key, np.float32(count)) for key, count in value.items()]
        if pa.types.is_temporal(column.type):
            assert (found is None) == (value is None)
        elif column.type == pa.string() and value is not None and not isinstance(value, str):
            assert json.loads(found) == value
        else:
            assert list(leaves(found)) == list(leaves(value))


def leaves(value):
    """What lists hold, however they nest; NaN stands for a missing number in a tensor."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, int | float):
        yield None if value != value else float(value)
    else:
        yield value


@pytest.mark.parametrize("block", [3, 16, 1000])
def test_blocks_are_cut_between_lines(tmp_path, monkeypatch, block):
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", block)
    rows = [{"a": i, "s": "ü" * (i % 7), "l": [float(i)] * (i % 3)} for i in range(50)]
    text = "\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    source = open_source(lines(tmp_path, text))
    assert table_of(source).to_pylist() == rows
    assert source.rows == 50
    for skip in (1, 25, 49, 50, 60):
        rest = list(source.read(0, skip))
        assert [row for _, batch in rest for row in batch.to_pylist()] == rows[skip:]
        assert not rest or rest[0][0] == 0 << PIECE_BITS | skip


def test_types_hold_all_files_and_what_one_lacks_is_missing(tmp_path):
    lines(tmp_path, '{"a": 1, "b": "x"}\n', "1.jsonl")
    lines(tmp_path, '{"a": 2.5, "c": true}\n', "2.jsonl")
    assert table_of(open_source(tmp_path)).to_pydict() == {"a": [1.0, 2.5], "b": ["x", None], "c": [None, True]}


@pytest.mark.parametrize("name", ["t.json", "t.ndjson", "t.jsonl.gz", "t.jsonl.zst", "plain"])
def test_names_and_compressions(tmp_path, name):
    data = b' {"a": 1}\n{"a": 2}\n'
    if name.endswith(".gz"):
        data = gzip.compress(data)
    if name.endswith(".zst"):
        data = pa.compress(data, "zstd", asbytes=True)
    assert table_of(open_source(lines(tmp_path, data, name))).to_pydict() == {"a": [1, 2]}


def test_texts_stay_texts(tmp_path):
    text = '{"a": "2020-01-01", "b": 5, "c": "x"}\n'
    table = read(tmp_path, text, texts=["a", "b", "c"])
    assert table.to_pylist() == [{"a": "2020-01-01", "b": "5", "c": "x"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n\n{"a": }\n', r"t.jsonl line 3 is no JSON"),
        ('{"a": 1}\n[1]\n', r"line 2 is no object: \[1\]; wanted: an object a line"),
        ('{"a": 1} {"a": 2}\n', r"line 1 is no JSON: Extra data"),
        ("[\n{}\n]\n", r"line 1 is no JSON.*such as"),
        (b'{"a": "x"}\n{"a": "\xff"}\n', r"line 2 is no UTF-8"),
        ('{"a": "\\ud800"}\n', r"line 1, column 'a'"),
        ('{"\\ud800": 1}\n', r"line 1 has a column whose name is no text"),
        ('{"a": ' + "[" * 100_000 + "\n", r"line 1 is no JSON: nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}\n", r"line 1 is no JSON"),
        ("{}\n{}\n", r"has no columns"),
        ("\n \n", r"has no rows"),
        ('{"a.b": 1, "a": {"b": "x"}}\n', r"more than one column named 'a.b'"),
        (json.dumps({"a": {f"k{i}": "x" for i in range(10_001)}}), r"10,001 columns"),
    ],
)
def test_what_is_wrong_is_told_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("1", "2.5", r"line 40, column 'v': 2.5; wanted: int64, as in the lines before"),
        ("1", '"x"', r"line 40, column 'v': \"x\"; wanted: int64"),
        ('"x"', "1", r"line 40, column 'v': 1; wanted: string"),
        ('"2020-01-01"', '"x"', r"line 40, column 'v': \"x\"; wanted: date32"),
        ("[[1], [2]]", "[[1, 2]]", r"line 40, column 'v': \[\[1, 2\]\]; wanted: extension"),
        ("[1]", '{"a": 1}', r"line 40, column 'v'.*wanted: list"),
        ('{"a": 1}', '{"a": true}', r"line 40, column 'v'.*wanted: map"),
        ("1", '2, "w": 3', r"line 40 has a column 'w' that no line before has"),
        ("1", "", r"line 40 is no JSON"),
    ],
)
def test_rows_beyond_the_sniffed_part_must_fit(tmp_path, monkeypatch, good, bad, message):
    monkeypatch.setattr(jsonlines, "SNIFFED_BYTES", 200)
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", 100)
    text = "".join(f'{{"v": {good}}}\n' for _ in range(39)) + f'{{"v": {bad}}}\n'
    source = open_source(lines(tmp_path, text))
    assert source.rows is None
    with pytest.raises(DataError, match=message):
        table_of(source)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonlines, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(jsonlines, "_LINE_BYTES", 1000)
    with pytest.raises(DataError, match=r"line 2 is longer than"):
        read(tmp_path, '{"a": 1}\n{"a": "' + "x" * 2000 + '"}\n')


def test_both_parsers_agree(tmp_path):
    draw = np.random.default_rng(0)
    rows = [{"f": draw.normal() * 10.0 ** draw.integers(-9, 9), "i": int(draw.integers(-9, 9))} for _ in range(300)]
    quick = read(tmp_path, "\n".join(map(json.dumps, rows)))
    slow = read(tmp_path, "\n".join(json.dumps({**row, "o": {"x": "y"}}) for row in rows))
    assert quick.equals(slow.select(["f", "i"]))
    assert quick.to_pylist() == rows


# --- back again


@st.composite
def nested_tables(draw):
    count = draw(st.integers(1, 5))
    number = st.floats(allow_nan=False, allow_infinity=False, width=32)
    cells = {
        "bag": (
            BAG,
            st.dictionaries(st.text("abü ", max_size=3), st.integers(0, 99), max_size=4).map(lambda d: list(d.items())),
        ),
        "ragged": (FLOATS, st.lists(st.none() | number, max_size=4)),
        "steps": (pa.list_(pa.list_(pa.float64(), 2)), st.lists(st.lists(number, min_size=2, max_size=2), max_size=3)),
    }
    names = draw(st.lists(st.sampled_from(sorted(cells)), min_size=1, unique=True))
    columns = [draw(st.lists(st.none() | cells[name][1], min_size=count, max_size=count)) for name in names]
    return pa.table([pa.array(c, cells[n][0]) for c, n in zip(columns, names, strict=True)], names=names)


@given(nested_tables())
@settings(max_examples=100, deadline=None)
def test_lists_and_maps_come_back(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("back") / "t.jsonl"
    write_rows(path, table.to_batches(max_chunksize=2), table.schema)
    again = table_of(open_source(path))
    for name in table.column_names:
        cells = zip(again.column(name).to_pylist(), table.column(name).to_pylist(), strict=True)
        assert all(
            got == cell or np.array_equal(got, np.ravel(cell)) for got, cell in cells
        )  # a tensor's cells lie flat
        if sum(len(cell or []) for cell in table.column(name).to_pylist()) and name != "steps":
            assert again.schema.field(name).type == table.schema.field(name).type


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1), (1, 1, 1, 2)])
@pytest.mark.parametrize("dtype", ["i8", "f8"])
def test_tensors_come_back(tmp_path, shape, dtype):
    array = np.random.default_rng(0).integers(0, 9, (4, *shape)).astype(dtype)
    if dtype == "f8":
        array += 0.5
        array[1, 0, 0] = np.nan
    (batch,) = [batch for _, batch in open_source(array).batches()]
    write_rows(tmp_path / "t.jsonl", [batch], batch.schema)
    again = open_source(tmp_path / "t.jsonl")
    assert again.schema == batch.schema
    np.testing.assert_array_equal(table_of(again).column(0).combine_chunks().to_numpy_ndarray(), array)


def test_maps_of_item_numbers_and_structs_are_written(tmp_path):
    bags = pa.array([[(3, 1.0), (7, 2.5)], [(3, 1.0), (3, 2.0)]], pa.map_(pa.int32(), pa.float32()))
    table = pa.table({"x": bags, "s": [{"a": 1, "b": {"c": "t"}}, None]})
    write_rows(tmp_path / "t.jsonl", table.to_batches(), table.schema)
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert rows == [{"x": {"3": 1.0, "7": 2.5}, "s": {"a": 1, "b": {"c": "t"}}}, {"x": {"3": 3.0}, "s": None}]
    again = table_of(open_source(tmp_path / "t.jsonl"))
    assert again.column_names == ["x", "s.a", "s.b.c"]


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_newsgroups():
    source = open_source(SHARED / "newsgroups20" / "test.jsonl.gz", reading=Reading())
    assert source.rows == 7532
    table = table_of(source)
    assert table.column_names == ["label", "id", "text"]
    with gzip.open(SHARED / "newsgroups20" / "test.jsonl.gz") as file:
        assert table.to_pylist() == [json.loads(line) for line in file]
