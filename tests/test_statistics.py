"""The streamed pass against numpy and pandas, and merged parts against one pass."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError
from narrows.prepare.categories import Counts, choose_levels
from narrows.prepare.moments import Moments, Sample
from narrows.prepare.statistics import Statistics


def collect(rows: pa.RecordBatch, size: int = 64, first_row: int = 0) -> Statistics:
    statistics = Statistics(rows.schema)
    for start in range(0, len(rows), size):
        statistics.update(rows.slice(start, size), first_row + start)
    return statistics


def matrix(values: np.ndarray, name: str = "x") -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.FixedShapeTensorArray.from_numpy_ndarray(values)], [name])


holed = st.integers(0, 2**32 - 1).map(
    lambda seed: np.where(
        np.random.default_rng(seed).random((40, 3)) < 0.3, np.nan, np.random.default_rng(seed).normal(5, 3, (40, 3))
    )
)


@settings(max_examples=40, deadline=None)
@given(holed, st.integers(1, 40))
def test_moments_are_those_of_numpy(values: np.ndarray, size: int) -> None:
    values[0] = 1.0
    moments = collect(matrix(values), size).columns["x"].moments
    np.testing.assert_array_equal(moments.count, (~np.isnan(values)).sum(0))
    np.testing.assert_allclose(moments.mean, np.nanmean(values, 0), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, np.nanstd(values, 0), rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(moments.low, np.nanmin(values, 0))
    np.testing.assert_array_equal(moments.high, np.nanmax(values, 0))


def test_moments_survive_a_large_offset() -> None:
    values = 1e9 + np.random.default_rng(0).normal(size=(300_000, 1))
    moments = Moments.empty(1)
    moments.update(values)
    assert moments.deviation[0] == pytest.approx(values.std(), rel=1e-9)


def test_a_block_of_bytes_is_counted_exactly() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3000, 6, 5)).astype(np.uint8)
    moments = collect(matrix(values), 700).columns["x"].moments
    flat = values.reshape(3000, 30)
    np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.deviation, flat.std(0), rtol=1e-12)
    assert moments.whole.all()
    np.testing.assert_array_equal(moments.high, flat.max(0))


def table(seed: int, rows: int = 200) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    frame = {
        "i": pa.array(rng.integers(0, 9, rows)),
        "f": pa.array(np.where(rng.random(rows) < 0.2, np.nan, rng.lognormal(size=rows))),
        "s": pa.array(rng.choice(np.array(["a", "b", "long text", None]), rows)),
        "d": pa.array(rng.integers(0, 10_000, rows), pa.int32()).view(pa.date32()),
        "b": pa.array(rng.random(rows) < 0.3),
    }
    return pa.RecordBatch.from_pydict(frame)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 200), min_size=1, max_size=4), st.randoms())
def test_merged_parts_equal_one_pass(seed: int, cuts: list[int], order: object) -> None:
    rows = table(seed)
    whole = collect(rows, 37)
    edges = sorted({0, 200, *cuts})
    parts = [collect(rows.slice(a, b - a), 23, a) for a, b in itertools.pairwise(edges)]
    order.shuffle(parts)  # type: ignore[attr-defined]
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert merged.rows == whole.rows
    for name, column in whole.columns.items():
        other = merged.columns[name]
        assert other.missing == column.missing
        for exact in ("count", "low", "high", "whole"):
            np.testing.assert_array_equal(getattr(other.moments, exact), getattr(column.moments, exact))
        np.testing.assert_allclose(other.moments.mean, column.moments.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other.moments.m2, column.moments.m2, rtol=1e-9, atol=1e-9)
        assert other.counts.ranked()[0].equals(column.counts.ranked()[0])
        if column.sampled:
            np.testing.assert_array_equal(merged.sample.cells(name), whole.sample.cells(name))


def test_counts_are_those_of_pandas() -> None:
    rows = table(3, 5000)
    for name in ("i", "s", "b"):
        values, counts = collect(rows, 301).columns[name].counts.ranked()
        expected = pd.Series(rows.column(name).to_pandas()).value_counts()
        assert dict(zip(values.to_pylist(), counts.tolist(), strict=True)) == expected.to_dict()
        assert counts.tolist() == sorted(counts.tolist(), reverse=True)


def test_nan_and_negative_zero_are_no_levels_of_their_own() -> None:
    rows = pa.RecordBatch.from_pydict({"f": pa.array([0.0, -0.0, float("nan"), 1.0, None])})
    column = collect(rows).columns["f"]
    assert column.counts.ranked()[0].to_pylist() == [0.0, 1.0]
    assert column.missing == 2


def test_too_many_levels_keep_the_most_frequent() -> None:
    counts = Counts(pa.string(), limit=100)
    for start in range(0, 60_000, 500):
        counts.add(pa.array(["often"] * 10 + [f"rare {start + i}" for i in range(500)]))
    values, often = counts.ranked()
    assert counts.overflowed
    assert len(values) == 100 and values[0].as_py() == "often" and often[0] == 1200


@pytest.mark.parametrize("size", [10, 1000, 50_000])
def test_numbers_with_too_many_values_are_not_counted_however_they_are_cut(size: int) -> None:
    counts, parts = Counts(pa.int64(), limit=900), []
    for start in range(0, 1000, size):
        part = Counts(pa.int64(), limit=900)
        part.add(pa.array(np.arange(start, min(1000, start + size))))
        parts.append(part)
    for part in parts:
        counts.merge(part)
    assert len(counts.ranked()[0]) == 0 and counts.overflowed


def test_rare_levels_are_merged_only_among_many() -> None:
    few = choose_levels(pa.array(["a", "b", "c"]), np.array([5, 1, 1]), 256)
    assert len(few) == 3
    many = choose_levels(pa.array([f"{i}" for i in range(30)]), np.array([3] * 10 + [1] * 20), 256)
    assert len(many) == 10
    unique = choose_levels(pa.array([f"{i}" for i in range(30)]), np.ones(30, int), 25)
    assert len(unique) == 25


def test_the_sample_is_uniform_and_its_quantiles_are_right() -> None:
    values = np.arange(100_000.0)[:, None]
    sample = Sample(5000, ["x"])
    for start in range(0, len(values), 8192):
        part = values[start : start + 8192]
        sample.update(np.arange(start, start + len(part)), {"x": part})
    kept = sample.cells("x")[:, 0]
    assert len(kept) == len(set(kept)) == 5000
    np.testing.assert_allclose(np.quantile(kept, [0.1, 0.5, 0.9]), [1e4, 5e4, 9e4], atol=3 * 1e5 / 5000**0.5)


def test_a_matrix_samples_fewer_rows_the_wider_it_is() -> None:
    assert Statistics(matrix(np.zeros((1, 784))).schema).sample.size == 10_000
    assert Statistics(matrix(np.zeros((1, 2**14))).schema).sample.size == 2**10
    assert Statistics(matrix(np.zeros((1, 28, 28, 3))).schema).sample.names == []


def test_a_fingerprint_tells_rows_from_others_however_they_are_cut() -> None:
    values = {"x": np.arange(300.0), "s": ["a", "b", "c"] * 100, "d": pa.array(range(300), pa.timestamp("ns", "UTC"))}
    rows = pa.RecordBatch.from_pydict(values)
    print_ = collect(rows, 300).fingerprint()
    assert print_ == collect(rows, 7).fingerprint() and len(print_) == 16
    doubled, other = dict(values, x=np.arange(300.0) * 2), dict(values, s=["a", "b", "e"] * 100)
    inside = dict(values, x=np.r_[0.0, 0.5, np.arange(2.0, 300)])
    for changed in (doubled, other, inside):
        assert collect(pa.RecordBatch.from_pydict(changed), 300).fingerprint() != print_


@pytest.mark.parametrize("size", [1, 3, 100])
def test_infinite_values_are_named_by_column_and_row(size: int) -> None:
    values = np.zeros(50)
    values[17] = -np.inf
    with pytest.raises(DataError, match="'amount', row 17"):
        collect(pa.RecordBatch.from_pydict({"amount": values}), size)
    statistics = Statistics(matrix(np.zeros((1, 2))).schema)
    with pytest.raises(DataError, match="'x', row 7 of piece 3"):
        statistics.update(matrix(np.array([[0, 0], [np.nan, np.inf]])), (3 << 40) + 6)


def test_sums_that_overflow_are_not_taken_for_infinite_values() -> None:
    column = collect(pa.RecordBatch.from_pydict({"f": [1.7e308] * 5 + [-1.7e308]})).columns["f"]
    assert column.moments.high[0] == 1.7e308


@pytest.mark.parametrize(
    "arrow",
    [pa.list_(pa.string()), pa.struct([("a", pa.int64())]), pa.binary(), pa.map_(pa.string(), pa.string()), pa.uuid()],
)
def test_types_that_cannot_be_modeled_are_refused_by_name(arrow: pa.DataType) -> None:
    with pytest.raises(DataError, match="'odd' is of type"):
        Statistics(pa.schema([("fine", pa.int64()), ("odd", arrow)]))


def test_tables_without_columns_or_with_doubled_names_are_refused() -> None:
    with pytest.raises(DataError, match="without columns"):
        Statistics(pa.schema([]))
    with pytest.raises(DataError, match="a stand twice"):
        Statistics(pa.schema([("a", pa.int64()), ("a", pa.int64())]))


def test_tensor_nulls_and_slices_are_read_in_place() -> None:
    arrow = pa.fixed_shape_tensor(pa.int16(), (2, 2))
    storage = pa.array([[1, 2, 3, 4], None, [5, 6, 7, 8], [9, 9, 9, 9]], arrow.storage_type)
    array = pa.ExtensionArray.from_storage(arrow, storage)
    rows = pa.RecordBatch.from_arrays([array], ["x"])
    statistics = Statistics(rows.schema)
    statistics.update(rows.slice(1, 2), 1)
    column = statistics.columns["x"]
    assert column.missing == 4
    np.testing.assert_array_equal(column.moments.mean, [5, 6, 7, 8])
