"""Rows to tensors and back: round trips, missing and odd input, transforms, and what files are believed."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import QuantileTransformer

from narrows.errors import DataError, DataWarning, ModelFileError, SettingError
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def learn(rows: pa.RecordBatch, **wishes: Any) -> Preparer:
    statistics = Statistics(rows.schema)
    statistics.update(rows, 0)
    return Preparer.learn(statistics, **wishes)


def table(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def matrix(values: np.ndarray, name: str = "x") -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.FixedShapeTensorArray.from_numpy_ndarray(values)], [name])


def round_trip(rows: pa.RecordBatch, **wishes: Any) -> pa.RecordBatch:
    preparer = learn(rows, **wishes)
    batch = preparer.prepare(rows)
    return preparer.restore(batch.numbers, batch.codes)


# tables of mixed types with holes


def holes(values: st.SearchStrategy[Any], rows: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, min_size=rows, max_size=rows)


moments = st.datetimes(datetime(1950, 1, 1), datetime(2050, 1, 1)).map(lambda d: d.replace(microsecond=0))
SORTS: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "int64": (st.integers(-(2**18), 2**18), pa.int64()),
    "uint8": (st.integers(0, 255), pa.uint8()),
    "float": (st.floats(-1e6, 1e6, width=32), pa.float32()),
    "double": (st.floats(allow_nan=False, allow_infinity=False), pa.float64()),
    "text": (st.sampled_from(["", "a", "b", "ü", "nan", "1"]), pa.string()),
    "view": (st.sampled_from(["x", "y", "z"]), pa.string_view()),
    "levels": (st.sampled_from(["x", "y", "z"]), pa.dictionary(pa.int8(), pa.string())),
    "flag": (st.booleans(), pa.bool_()),
    "decimal": (st.decimals(-1000, 1000, places=2), pa.decimal128(12, 2)),
    "day": (st.dates(datetime(1900, 1, 1).date(), datetime(2100, 1, 1).date()), pa.date32()),
    "stamp": (moments, pa.timestamp("us")),
    "zoned": (moments, pa.timestamp("ms", "Europe/Paris")),
    "clock": (st.times().map(lambda t: t.replace(microsecond=0)), pa.time32("s")),
    "span": (st.timedeltas().map(lambda d: d // 10**6), pa.duration("us")),
    "null": (st.none(), pa.null()),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.RecordBatch:
    rows = draw(st.integers(1, 30))
    sorts = draw(st.lists(st.sampled_from(sorted(SORTS)), min_size=1, max_size=6))
    columns = []
    for sort in sorts:
        values, arrow = SORTS[sort]
        cells = draw(holes(values, rows))
        dictionary = pa.types.is_dictionary(arrow)
        columns.append(pa.array(cells, pa.string()).cast(arrow) if dictionary else pa.array(cells, arrow))
    return pa.RecordBatch.from_arrays(columns, [f"{sort} {i}" for i, sort in enumerate(sorts)])


def same(name: str, before: pa.Array, after: pa.Array) -> None:
    """What came back where a value was there: exactly, or for floats and wide counts within 1/100,000 of the range."""
    if pa.types.is_string_view(before.type):
        before, after = before.cast(pa.string()), after.cast(pa.string())
    there = before.is_valid()
    before, after = before.filter(there), after.filter(there)
    if name.startswith(("float", "double", "span")):
        if name.startswith("span"):
            before, after = before.view(pa.int64()), after.view(pa.int64())
        x, y = (np.asarray(a.to_numpy(zero_copy_only=False), float) for a in (before, after))
        if len(x):
            np.testing.assert_allclose(y / 2, x / 2, rtol=1e-12, atol=1e-5 * (x.max() / 2 - x.min() / 2))
    else:
        assert before.to_pylist() == after.to_pylist()


@settings(max_examples=150, deadline=None)
@given(tables())
def test_tables_of_all_types_come_back(rows: pa.RecordBatch) -> None:
    preparer = learn(rows)
    batch = preparer.prepare(rows)
    assert batch.numbers.dtype == torch.float32 and batch.codes.dtype == torch.int64
    assert batch.numbers.isfinite().all()
    restored = preparer.restore(batch.numbers, batch.codes)
    assert restored.schema == rows.schema == preparer.arrow_schema
    mask = batch.mask()
    for column in preparer.schema:
        array = rows.column(column.name)
        same(column.name, array, restored.column(column.name))
        there = torch.from_numpy(np.asarray(array.is_valid()))
        assert column.holes == (not bool(there.all()))
        assert (mask[:, preparer.schema.spans[column.name]] == there[:, None]).all()
        if column.categorical:
            codes = batch.codes[:, preparer.schema.spans[column.name].start - preparer.schema.numbers]
            assert (codes[~there] == column.levels).all() and (codes <= column.levels).all()


@settings(max_examples=40, deadline=None)
@given(tables())
def test_a_stored_preparer_prepares_identically(rows: pa.RecordBatch) -> None:
    preparer = learn(rows)
    facts, tensors = preparer.to_file()
    again = Preparer.from_file(json.loads(json.dumps(facts, allow_nan=False)), tensors)
    one, two = preparer.prepare(rows), again.prepare(rows)
    assert torch.equal(one.numbers, two.numbers) and torch.equal(one.codes, two.codes)
    assert torch.equal(one.mask(), two.mask())
    assert again.schema == preparer.schema and again.arrow_schema == preparer.arrow_schema
    assert again.restore(one.numbers, one.codes).equals(preparer.restore(one.numbers, one.codes))


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 2**32 - 1))
def test_any_numbers_and_codes_restore_to_rows(rows: pa.RecordBatch, seed: int) -> None:
    preparer = learn(rows)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(5, preparer.schema.numbers, generator=generator) * 10.0 ** (seed % 8)
    codes = torch.randint(-1, 9, (5, len(preparer.schema.levels)), generator=generator)
    restored = preparer.restore(numbers, codes)
    restored.validate(full=True)
    assert restored.schema == rows.schema and len(restored) == 5


def test_an_empty_batch_keeps_its_shape() -> None:
    rows = table(a=[1.0, 2.0, 4.0], s=["x", None, "y"], d=pa.array([1, 2, 3], pa.timestamp("s")))
    preparer = learn(rows)
    batch = preparer.prepare(rows.slice(0, 0))
    assert batch.numbers.shape == (0, 8) and batch.codes.shape == (0, 1) and batch.seen is None
    assert preparer.restore(batch.numbers, batch.codes).equals(rows.slice(0, 0))


# kinds


def test_kinds_follow_types_and_values() -> None:
    rows = table(
        number=[1, 2, 3, 4],
        zero_one=[0, 1, 1, 0],
        twice=[5.5, 5.5, 7.0, 7.0],
        once=[1, 2, None, None],
        flag=[True, True, True, None],
        two=["a", "b", None, "a"],
        three=["a", "b", "c", "a"],
        day=pa.array([1, 2, 3, 4], pa.date32()),
        none=pa.nulls(4),
    )
    schema = learn(rows).schema
    kinds = {column.name: (column.kind, column.levels, column.width) for column in schema}
    assert kinds == {
        "number": ("number", 0, 1),
        "zero_one": ("binary", 2, 0),
        "twice": ("binary", 2, 0),
        "once": ("number", 0, 1),
        "flag": ("binary", 2, 0),
        "two": ("binary", 2, 0),
        "three": ("category", 3, 0),
        "day": ("date", 0, 5),
        "none": ("number", 0, 0),
    }


def test_levels_stand_by_frequency_then_value() -> None:
    values = np.random.default_rng(0).choice(list("edcba"), 500, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    rows = table(s=values)
    codes = learn(rows).prepare(rows).codes[:, 0].numpy()
    counts = pd.Series(values).value_counts()
    expected = sorted(counts.index, key=lambda level: (-counts[level], level))
    np.testing.assert_array_equal(codes, pd.Categorical(values, expected).codes)


def test_users_choose_kinds() -> None:
    rows = table(zip=[10115, 10117, 10115], b=[True, False, True], x=[0, 1, 1])
    schema = learn(rows, kinds={"zip": "category", "b": "number", "x": "number"}).schema
    assert [column.kind for column in schema] == ["category", "number", "number"]
    assert round_trip(rows, kinds={"zip": "category", "b": "number"}).equals(rows)
    image = matrix(np.random.default_rng(0).normal(size=(9, 3, 3)))
    assert learn(image, kinds={"x": "number"}).schema["x"].kind == "number"


@pytest.mark.parametrize(
    "wishes",
    [
        {"kinds": {"nope": "number"}},
        {"kinds": {"s": "number"}},
        {"kinds": {"s": "picture"}},
        {"kinds": {"n": "date"}},
        {"kinds": {"n": "binary"}},
        {"kinds": {"m": "image"}},
        {"transforms": {"nope": "none"}},
        {"transforms": {"n": "log"}},
        {"transforms": {"s": "minmax"}},
        {"max_levels": 1},
    ],
)
def test_wishes_that_cannot_be_met_are_refused(wishes: dict[str, Any]) -> None:
    block = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((3, 2)))
    rows = pa.RecordBatch.from_arrays([pa.array([1, 2, 3]), pa.array(list("abc")), block], ["n", "s", "m"])
    with pytest.raises(SettingError):
        learn(rows, **wishes)


def test_numbers_with_too_many_values_cannot_be_categories() -> None:
    rows = table(i=np.arange(60_000))
    with pytest.raises(SettingError, match="too many distinct"):
        learn(rows, kinds={"i": "category"})


def test_no_rows_cannot_be_learnt_from() -> None:
    with pytest.raises(DataError, match="no rows"):
        Preparer.learn(Statistics(pa.schema([("a", pa.int64())])))


def test_rare_levels_share_the_code_of_unseen_ones() -> None:
    rows = table(s=[f"{i}" for i in range(40) for _ in range(1 + (i < 30))])
    preparer = learn(rows)
    assert preparer.schema["s"].levels == 30
    assert (preparer.prepare(rows).codes[-10:] == 30).all()  # no warning: as many as in training
    with pytest.warns(DataWarning, match="not kept in training, such as '30'"):
        preparer.prepare(rows.slice(60))
    assert learn(table(s=["a", "a", "a", "b", "b", "c"]), max_levels=2).schema["s"].levels == 2


def test_a_column_of_names_is_warned_of() -> None:
    rows = table(name=[f"person {i}" for i in range(1000)], size=range(1000))
    with pytest.warns(DataWarning, match="'name' has another value in every row"):
        preparer = learn(rows)
    assert preparer.schema["name"].cells == 0
    batch = preparer.prepare(rows)
    assert preparer.restore(batch.numbers, batch.codes).column("name").null_count == 1000
    assert learn(rows, kinds={"name": "category"}).schema["name"].levels == 1000
    with pytest.warns(DataWarning, match="'name': its 256 most frequent levels of 1,000 cover under half"):
        preparer = learn(rows, kinds={"name": "category"}, max_levels=256)
    assert preparer.schema["name"].levels == 256


def test_ordered_dictionaries_keep_their_order() -> None:
    sizes = pd.Series(pd.Categorical(list("LSMSLLS"), ["S", "M", "L"], ordered=True))
    rows = pa.RecordBatch.from_pandas(pd.DataFrame({"size": sizes}), preserve_index=False)
    restored = round_trip(rows)
    assert restored.column("size").equals(rows.column("size"))
    assert learn(rows).prepare(rows).codes[:, 0].tolist() == [2, 0, 1, 0, 2, 2, 0]


# holes and odd values


def test_missing_numbers_hold_the_training_mean() -> None:
    rows = table(a=[1.0, None, float("nan"), 5.0], b=[0.0, 0.2, 0.4, None])
    preparer = learn(rows, transforms={"b": "minmax"})
    batch = preparer.prepare(rows)
    assert batch.seen.tolist() == [[True, True], [False, True], [False, True], [True, False]]
    assert batch.numbers[1:3, 0].tolist() == [0, 0]
    assert batch.numbers[3, 1] == pytest.approx(0.5)
    restored = preparer.restore(batch.numbers, batch.codes)
    assert restored.column("a").to_pylist() == pytest.approx([1, 3, 3, 5])


def test_a_hole_changes_no_other_cell() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(sigma=2, size=(500, 4))
    preparer = learn(matrix(values))
    pierced = values.copy()
    pierced[3, 2] = np.nan
    whole, holed = preparer.prepare(matrix(values)), preparer.prepare(matrix(pierced))
    differs = whole.numbers != holed.numbers
    assert differs.sum() == 1 and differs[3, 2] and whole.seen is None
    assert torch.equal(~holed.seen, differs)


def test_constant_and_all_missing_columns() -> None:
    rows = table(c=[7, 7, 7], gone=pa.array([None] * 3, pa.float32()), s=pa.array([None] * 3, pa.string()), v=[1, 2, 4])
    preparer = learn(rows)
    assert [(c.width, c.levels, c.holes) for c in preparer.schema][:3] == [(1, 0, False), (0, 0, True), (0, 0, True)]
    batch = preparer.prepare(rows)
    assert batch.seen is None and batch.numbers[:, 0].tolist() == [0, 0, 0]
    assert preparer.restore(batch.numbers, batch.codes).equals(rows)
    block = np.array([[1.0, np.nan, 3.0], [1.0, np.nan, np.nan], [1.0, np.nan, 9.0]])
    partial = learn(matrix(block))
    assert partial.schema["x"].width == 3
    assert torch.equal(partial.prepare(matrix(block)).seen, torch.from_numpy(~np.isnan(block)))
    nothing = matrix(np.full((4, 2, 2), np.nan))
    assert round_trip(nothing).column("x").null_count == 4


def test_unseen_levels_warn_once_a_column() -> None:
    preparer = learn(table(s=["a", "b", "c"], t=["u", "v", "w"]))
    with pytest.warns(DataWarning, match="'s' has levels not kept in training, such as 'zebra'") as caught:
        batch = preparer.prepare(table(s=["zebra", "a", None], t=["u", "u", "u"]))
    assert len(caught) == 1
    preparer.prepare(table(s=["lion", "a", None], t=["u", "u", "u"]))
    assert batch.codes[:, 0].tolist() == [3, 0, 3]
    assert batch.mask()[:, 0].tolist() == [True, True, False]
    assert preparer.restore(batch.numbers, batch.codes).column("s").to_pylist() == [None, "a", None]


def test_values_out_of_range_are_kept_and_warned_of_once() -> None:
    preparer = learn(table(a=np.linspace(0, 1, 50), b=np.linspace(0, 1, 50)), transforms={"a": "minmax"})
    assert preparer.prepare(table(a=[1.9], b=[-0.9])).numbers[0, 0] == pytest.approx(1.9)
    with pytest.warns(
        DataWarning, match="'a' has values far outside its training range of 0 to 1, such as 7.5: kept"
    ) as caught:
        batch = preparer.prepare(table(a=[7.5], b=[0.5]))
    preparer.prepare(table(a=[9.5], b=[0.5]))
    assert len(caught) == 1 and batch.numbers[0, 0] == pytest.approx(7.5)


@pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning")
@pytest.mark.parametrize("transform", ["standardize", "minmax", "quantile", "asinh", "none"])
@pytest.mark.parametrize(
    "trained", [[0.0, 1.0, 2.0, 5.0], [1e300, -1e300, 1e308, -1.7e308], [1e-308, 2e-308, 5e-324], [1e16, 1e16 + 2, 0]]
)
def test_prepared_numbers_are_finite_whatever_comes(trained: list[float], transform: str) -> None:
    preparer = learn(table(a=trained), transforms={"a": transform})
    huge = table(a=[1e300, -1e300, 1.79e308, -1.79e308, 5e-324, 0.0, None])
    numbers = preparer.prepare(huge).numbers
    assert numbers.isfinite().all() and numbers.abs().max() <= 1e6
    assert np.isfinite(preparer.restore(numbers, torch.zeros(7, 0)).column("a").to_numpy()).all()


def test_infinite_values_are_named() -> None:
    preparer = learn(table(a=[1.0, 2.0, 4.0]))
    with pytest.raises(DataError, match=r"'a', row 1 \(.*\): an infinite value"):
        preparer.prepare(table(a=[1.0, math.inf]))
    with pytest.raises(DataError, match="'a', row 1"):
        preparer.prepare(table(a=["1", "-inf", "x"][:2]))


def test_large_offsets_keep_their_digits() -> None:
    ids = np.arange(10**12, 10**12 + 1000)
    assert round_trip(table(id=ids)).column("id").to_pylist() == ids.tolist()


@pytest.mark.parametrize("low", [0, -(2**19), 10**14])
def test_integers_spanning_20_bits_come_back_exactly(low: int) -> None:
    values = low + np.random.default_rng(0).integers(0, 2**20, 5000)
    assert round_trip(table(i=values)).column("i").to_pylist() == values.tolist()


def test_skewed_integers_come_back_exactly() -> None:
    values = np.minimum(np.random.default_rng(0).lognormal(sigma=3, size=20_000), 2**19).astype(np.int32)
    preparer = learn(table(i=values))
    assert len(preparer.scaling.curved) == 1
    assert round_trip(table(i=values)).column("i").to_pylist() == values.tolist()


def test_restored_integers_stay_within_their_type() -> None:
    rows = table(a=pa.array([1, 2, 200], pa.uint8()), b=pa.array([0, 5, 2**63 - 1], pa.int64()))
    restored = learn(rows).restore(torch.tensor([[-50.0, 9e9], [50.0, -9e9]]), torch.zeros(2, 0, dtype=torch.int64))
    assert restored.column("a").to_pylist() == [0, 255]
    assert restored.column("b").to_pylist() == [2**63 - 1024, -(2**63)]


# transforms


def test_standardize_and_minmax() -> None:
    values = np.random.default_rng(0).normal(50, 9, size=(400, 2))
    rows = table(a=values[:, 0], b=values[:, 1])
    preparer = learn(rows, transforms={"b": "minmax"})
    numbers = preparer.prepare(rows).numbers.numpy()
    a, b = values.T
    np.testing.assert_allclose(numbers[:, 0], (a - a.mean()) / a.std(), atol=1e-6)
    np.testing.assert_allclose(numbers[:, 1], (b - b.min()) / (b.max() - b.min()), atol=1e-6)
    assert [column.bounded for column in preparer.schema] == [False, True]


@pytest.mark.parametrize("name", ["normal", "exponential", "laplace", "uniform"])
def test_plain_columns_are_standardized(name: str) -> None:
    values = getattr(np.random.default_rng(0), name)(size=100_000)
    assert len(learn(table(a=values)).scaling.curved) == 0


@pytest.mark.parametrize("seed", range(3))
def test_heavy_tails_follow_their_quantiles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = table(
        lognormal=rng.lognormal(sigma=2, size=20_000),
        spike=np.where(rng.random(20_000) < 0.97, 0, rng.integers(1, 100_000, 20_000)),
        cauchy=rng.standard_cauchy(20_000),
    )
    preparer = learn(rows)
    assert preparer.scaling.curved.tolist() == [0, 1, 2]
    numbers = preparer.prepare(rows).numbers
    assert numbers.abs().max() < 6
    assert numbers.mean(0).abs().max() < 0.6


def test_the_quantile_curve_has_the_shape_of_scikit_learns() -> None:
    values = np.random.default_rng(0).lognormal(sigma=2, size=5000)
    ours = learn(table(a=values)).prepare(table(a=values)).numbers[:, 0].numpy()
    theirs = QuantileTransformer(n_quantiles=120, output_distribution="normal").fit_transform(values[:, None])[:, 0]
    middle = np.abs(theirs) < 2.3
    np.testing.assert_allclose(ours[middle], theirs[middle], atol=0.1)


def test_guesses_near_a_value_that_many_rows_share_lead_back_to_it() -> None:
    rng = np.random.default_rng(0)
    gains = np.where(rng.random(20_000) < 0.92, 0, rng.lognormal(8, 1, 20_000)).astype(np.int64)
    scaling = learn(table(a=gains)).scaling
    zero = scaling(torch.zeros(1, 1, dtype=torch.float64))
    near = scaling.inverse(zero + torch.linspace(-3, 1, 50)[:, None])
    assert near.abs().max() < 0.5  # they used to lie between -100,000 and 1,000
    outside = torch.tensor([[-1.0], [-1e3], [-1e6], [2e6]], dtype=torch.float64)
    np.testing.assert_allclose(scaling.inverse(scaling(outside).double()), outside, rtol=1e-3, atol=1)


def test_guesses_a_little_below_the_least_value_stay_near_it() -> None:
    values = np.random.default_rng(0).lognormal(sigma=2, size=20_000)
    scaling = learn(table(a=values)).scaling
    least = scaling(torch.tensor([[values.min()]]))
    assert -0.1 < scaling.inverse(least - 0.5).item() < values.min()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=300), st.integers(0, 9))
def test_quantile_curves_rise_and_invert(values: list[float], seed: int) -> None:
    rows = table(a=np.array(values))
    preparer = learn(rows, transforms={"a": "quantile"}, kinds={"a": "number"})
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    ramp = torch.linspace(low - span, high + span, 500, dtype=torch.float64)[:, None]
    prepared = preparer.scaling(ramp)
    assert (prepared.diff(dim=0) >= 0).all() and prepared[0] < prepared[-1]
    np.testing.assert_allclose(preparer.scaling.inverse(prepared), ramp, atol=1e-5 * span)


def test_images_and_matrices_find_their_range() -> None:
    rng = np.random.default_rng(0)
    cases = {
        "bytes": (rng.integers(0, 256, (50, 4, 4)).astype(np.uint8), 255, True),
        "digits": (rng.integers(0, 17, (50, 4, 4)).astype(np.uint8), 16, True),
        "whole floats": (rng.integers(0, 17, (50, 4, 4)).astype(np.float64), 16, True),
        "unit": (rng.random((50, 4, 4)).astype(np.float32), 1, True),
        "byte matrix": (rng.integers(0, 256, (50, 9)).astype(np.uint8), 255, True),
        "flags": (rng.integers(0, 2, (50, 9)).astype(np.uint8), 1, True),
        "unit matrix": (rng.random((50, 9)), 1, True),
    }
    for values, divisor, bounded in cases.values():
        preparer = learn(matrix(values))
        numbers = preparer.prepare(matrix(values)).numbers.numpy()
        np.testing.assert_allclose(numbers, values.reshape(50, -1) / divisor, atol=1e-7)
        assert preparer.schema["x"].bounded == bounded
        restored = preparer.restore(torch.from_numpy(numbers), torch.zeros(50, 0))
        assert restored.schema == matrix(values).schema
        back = restored.column("x").to_numpy_ndarray()
        np.testing.assert_allclose(back, values, atol=1e-7 if values.dtype.kind == "f" else 0)


def test_other_images_are_mapped_by_their_pooled_range() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4, 4, 3))
    preparer = learn(matrix(values))
    numbers = preparer.prepare(matrix(values)).numbers.numpy()
    expected = (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(numbers, expected.reshape(50, -1), atol=1e-6)
    assert preparer.schema["x"].bounded and preparer.schema["x"].kind == "image"
    standard = learn(matrix(values), transforms={"x": "standardize"}).prepare(matrix(values)).numbers.numpy()
    np.testing.assert_allclose(standard, ((values - values.mean()) / values.std()).reshape(50, -1), atol=1e-5)


def test_the_tensor_half_can_be_exported() -> None:
    rows = table(a=np.random.default_rng(0).lognormal(sigma=3, size=1000), b=np.arange(1000.0))
    scaling = learn(rows).scaling
    raw = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]], dtype=torch.float64)
    program = torch.export.export(scaling, (raw,))
    torch.testing.assert_close(program.module()(raw), scaling(raw))
    assert not list(scaling.parameters())


# dates


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "+05:30"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_moments_come_back_to_ten_milliseconds(unit: str, zone: str | None) -> None:
    seconds = np.random.default_rng(0).integers(-(10**9), 2 * 10**9, 3000)
    stamps = pa.array(seconds.astype("datetime64[s]")).cast(pa.timestamp(unit)).view(pa.timestamp(unit, zone))
    rows = table(t=stamps)
    assert round_trip(rows).equals(rows)


def test_hours_that_clocks_strike_twice_come_back() -> None:
    start = datetime(2024, 10, 26, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    stamps = pa.array((start + 600 * np.arange(400)).astype(np.int64)).view(pa.timestamp("s", "Europe/Berlin"))
    assert round_trip(table(t=stamps)).equals(table(t=stamps))


def test_parts_of_dates_are_where_the_calendar_says() -> None:
    days = pd.date_range("2023-01-01", "2024-12-31", freq="7h")
    rows = table(t=pa.array(days))
    numbers = learn(rows).prepare(rows).numbers.double().numpy()
    angles = [(days.day_of_year - 1) / 366, days.day_of_week / 7, (days.hour + days.minute / 60) / 24]
    expected = np.stack([wave(2 * np.pi * np.asarray(angle)) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    np.testing.assert_allclose(numbers[:, 1:], expected, atol=1e-6)
    assert abs(numbers[:, 0].mean()) < 1e-6 and numbers[:, 0].std() == pytest.approx(1)


def test_noise_on_the_position_of_a_date_spares_the_clock() -> None:
    stamps = pa.array(pd.date_range("2020-01-01 06:30", periods=300, freq="D"))
    preparer = learn(table(t=stamps))
    batch = preparer.prepare(table(t=stamps))
    batch.numbers[:, 0] += 1e-3  # a tenth of a day
    assert preparer.restore(batch.numbers, batch.codes).column("t").equals(stamps)


def test_dates_come_in_other_types() -> None:
    trained = table(t=pa.array(pd.date_range("2020-01-01", periods=50, freq="7h")).cast(pa.timestamp("us", "UTC")))
    preparer = learn(trained)
    expected = preparer.prepare(table(t=pa.array([datetime(2020, 1, 5)]).cast(pa.timestamp("us", "UTC")))).numbers
    for array in (
        pa.array([datetime(2020, 1, 5)]),
        pa.array([datetime(2020, 1, 5).date()]),
        pa.array(["2020-01-05 00:00:00"]),
        pa.array([datetime(2020, 1, 5).date()]).cast(pa.date64()),
        pa.array([datetime(2020, 1, 5)]).cast(pa.timestamp("ns", "UTC")).cast(pa.timestamp("ns", "Asia/Tokyo")),
    ):
        torch.testing.assert_close(preparer.prepare(table(t=array)).numbers, expected)
    with pytest.raises(DataError, match=r"'t', row 1 \(.*\): 'soon'"):
        preparer.prepare(table(t=["2020-01-01", "soon"]))
    with pytest.raises(DataError, match="'t' came as int64"):
        preparer.prepare(table(t=[1, 2]))


# rows that are not quite those of training


def test_columns_come_in_any_order_with_others_among_them() -> None:
    rows = table(a=[1.0, 2.0, 4.0], s=["x", "y", "z"])
    preparer = learn(rows)
    shuffled = table(new=[0, 0, 0], s=["x", "y", "z"], a=[1.0, 2.0, 4.0])
    with pytest.warns(DataWarning, match="ignored: 'new'") as caught:
        batch = preparer.prepare(shuffled)
    preparer.prepare(shuffled)
    assert len(caught) == 1
    assert torch.equal(batch.numbers, preparer.prepare(rows).numbers)


@settings(max_examples=150, deadline=None)
@given(tables(), tables())
def test_columns_of_other_types_are_read_or_refused(trained: pa.RecordBatch, rows: pa.RecordBatch) -> None:
    width = min(trained.num_columns, rows.num_columns)
    names = [f"c{i}" for i in range(width)]
    preparer = learn(pa.RecordBatch.from_arrays(trained.columns[:width], names))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        try:
            batch = preparer.prepare(pa.RecordBatch.from_arrays(rows.columns[:width], names))
        except DataError:
            return
    assert batch.numbers.isfinite().all() and len(preparer.restore(batch.numbers, batch.codes)) == len(rows)


def test_missing_columns_are_named_beside_those_that_came() -> None:
    preparer = learn(table(age=[1.0, 2.0], job=["x", "y"]))
    with pytest.raises(DataError, match="no column 'job': the rows have 'age', 'jobs'"):
        preparer.prepare(table(age=[1.0], jobs=["x"]))


def test_numbers_come_as_other_types_and_as_text() -> None:
    preparer = learn(table(a=[1, 2, 4]))
    expected = preparer.prepare(table(a=[2])).numbers
    for array in (
        pa.array([2.0], pa.float32()),
        pa.array([2], pa.int8()),
        pa.array([" 2 "]),
        pa.array(["2"]).dictionary_encode(),
        pa.array([2]).cast(pa.decimal128(21, 1)),
        pa.array([2.0]).cast(pa.float16()),
    ):
        torch.testing.assert_close(preparer.prepare(table(a=array)).numbers, expected)
    assert preparer.prepare(table(a=pa.nulls(2))).seen.tolist() == [[False], [False]]
    with pytest.raises(DataError, match=r"'a', row 2 \(.*\): 'two'"):
        preparer.prepare(table(a=["1", None, "two", "three"]))
    with pytest.raises(DataError, match="'a' came as date32"):
        preparer.prepare(table(a=pa.array([1], pa.date32())))


def test_levels_come_as_other_types() -> None:
    text = learn(table(s=["1", "2", "x"]))
    assert text.prepare(table(s=[1, 2])).codes[:, 0].tolist() == [0, 1]
    assert text.prepare(table(s=[1.0, 2.0])).codes[:, 0].tolist() == [0, 1]
    number = learn(table(i=[1, 1, 2, 2]))
    assert number.prepare(table(i=["2", "1", None])).codes[:, 0].tolist() == [1, 0, 2]
    assert number.prepare(table(i=[2.0, float("nan")])).codes[:, 0].tolist() == [1, 2]
    assert learn(table(b=[True, False, True])).prepare(table(b=[0, 1])).codes[:, 0].tolist() == [1, 0]
    with pytest.raises(DataError, match=r"'i', row 1 \(.*\): 'one'"):
        number.prepare(table(i=["2", "one"]))


def test_a_matrix_stands_for_a_table_of_numbers_and_back() -> None:
    values = np.random.default_rng(0).normal(size=(20, 3))
    named = table(a=values[:, 0], b=values[:, 1], c=values[:, 2])
    by_name, by_place = learn(named), learn(matrix(values))
    torch.testing.assert_close(by_name.prepare(matrix(values)).numbers, by_name.prepare(named).numbers)
    torch.testing.assert_close(by_place.prepare(named).numbers, by_place.prepare(matrix(values)).numbers)
    assert torch.equal(by_place.prepare(matrix(values, "other")).numbers, by_place.prepare(named).numbers)
    with pytest.raises(DataError, match=r"rows of 2 numbers; wanted: rows of 3"):
        by_name.prepare(matrix(values[:, :2]))
    with pytest.raises(DataError, match=r"rows with .a., .b.; wanted: .* 3 columns of numbers"):
        by_place.prepare(named.select(["a", "b"]))
    with pytest.raises(DataError, match=r"shape \(2,\); wanted: shape \(3,\)"):
        by_place.prepare(matrix(values[:, :2]))
    with pytest.raises(DataError, match="'s' is not of numbers"):
        learn(table(a=[1.0, 2.0], s=["x", "y"])).prepare(matrix(values[:, :2]))
    with pytest.raises(DataError, match=r"'a', row 0 \(.*\): 'x'"):
        by_place.prepare(table(a=["x"], b=[1.0], c=[1.0]))
    two = pa.RecordBatch.from_arrays([matrix(values).column(0), pa.array(values[:, 0])], ["a", "b"])
    with pytest.raises(DataError, match="came as extension"):
        learn(table(a=[1.0, 2.0], b=[1.0, 2.0])).prepare(two)


def test_one_row_of_one_value() -> None:
    for rows in (table(a=[3.5]), table(a=["x"]), table(a=[None]), matrix(np.array([[4.0]]))):
        assert round_trip(rows).equals(rows)


# files


def mutated(value: Any, rng: random.Random) -> Any:
    """The JSON value with one spot changed, dropped or of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        return {k: mutated(v, rng) if k == key else v for k, v in value.items() if k != key or rng.random() < 0.8}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [mutated(v, rng) if i == at else v for i, v in enumerate(value) if i != at or rng.random() < 0.8]
    junk = [None, -1, 0, 1, 2**70, 1.5, "", "int64", "dictionary<values=int8, indices=int8, ordered=1>", [], {}, True]
    more = [
        "timestamp[s, tz=Nowhere]",
        "decimal128(99, 2)",
        "list",
        "null",
        "date32[day]",
        [3, 2**40],
        "category",
        "date",
        "x",
    ]
    return rng.choice(junk + more)


def rich() -> tuple[pa.RecordBatch, Preparer]:
    rng = np.random.default_rng(0)
    columns = {
        "n": pa.array(np.where(rng.random(200) < 0.02, 1e5, rng.normal(size=200))),
        "s": pa.array(rng.choice(["a", "b", "c"], 200)),
        "d": pa.array(rng.integers(0, 10**9, 200)).view(pa.timestamp("s", "Europe/Paris")),
        "k": pa.array(rng.choice(["u", "v"], 200)).dictionary_encode(),
        "m": pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(size=(200, 3))),
    }
    rows = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    return rows, learn(rows, transforms={"n": "quantile"})


def attempt(facts: Any, tensors: dict[str, torch.Tensor], rows: pa.RecordBatch) -> bool:
    """Whether loading refused: it says what is wrong, or gives a preparer that works or refuses rows in words."""
    try:
        preparer = Preparer.from_file(facts, tensors)
    except ModelFileError:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        numbers = torch.zeros(2, preparer.schema.numbers)
        codes = torch.zeros(2, len(preparer.schema.levels), dtype=torch.int64)
        assert len(preparer.restore(numbers, codes)) == 2
        with contextlib.suppress(DataError):
            preparer.prepare(rows)
    return False


def test_mutated_facts_are_refused_or_work() -> None:
    rows, preparer = rich()
    facts, tensors = preparer.to_file()
    refused = 0
    for seed in range(400):
        rng = random.Random(seed)
        changed = mutated(copy.deepcopy(facts), rng)
        refused += attempt(changed if isinstance(changed, dict) else {"columns": changed}, tensors, rows)
    assert 100 < refused < 400


@pytest.mark.parametrize("name", ["center", "scale", "fill", "low", "high", "curved", "knots", "scores"])
def test_mutated_tensors_are_refused(name: str) -> None:
    rows, preparer = rich()
    facts, tensors = preparer.to_file()
    good = tensors[name]
    bad = [good[:-1], good[None], good.float(), torch.full_like(good, -1), good.new_zeros(0, 3)]
    if name != "curved":
        bad.append(torch.full_like(good, torch.nan))
    for wrong in bad:
        if name in ("fill", "low", "high", "center") and wrong.shape == good.shape and (wrong == -1).all():
            continue
        with pytest.raises(ModelFileError):
            Preparer.from_file(facts, {**tensors, name: wrong})
    with pytest.raises(ModelFileError):
        Preparer.from_file(facts, {key: tensor for key, tensor in tensors.items() if key != name})
    attempt(facts, tensors, rows)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data sets are not here")
def test_a_census_comes_back() -> None:
    from narrows.sources.source import open_source

    source = open_source(SHARED / "tabular" / "adult-train.csv.gz")
    batches = list(source.batches())
    statistics = Statistics(source.schema)
    for first_row, rows in batches:
        statistics.update(rows, first_row)
    preparer = Preparer.learn(statistics)
    for _, rows in batches:
        batch = preparer.prepare(rows)
        restored = preparer.restore(batch.numbers, batch.codes)
        for name, before in zip(rows.schema.names, rows.columns, strict=True):
            there = before.is_valid()
            assert pc.all(pc.equal(before.filter(there), restored.column(name).filter(there))).as_py(), name


def test_a_pixel_that_was_always_black_may_turn_gray_but_not_a_thousand():
    train = np.zeros((50, 4, 4), np.float32)
    train[:, 1, 1] = np.linspace(0, 1, 50)
    preparer = learn(pa.RecordBatch.from_arrays([pa.FixedShapeTensorArray.from_numpy_ndarray(train)], ["image"]))
    gray, glaring = train[:1].copy(), train[:1].copy()
    gray[0, 3, 3], glaring[0, 3, 3] = 0.7, 1000
    tensors = [pa.FixedShapeTensorArray.from_numpy_ndarray(part) for part in (gray, glaring)]
    rows = [pa.RecordBatch.from_arrays([tensor], ["image"]) for tensor in tensors]
    assert preparer.prepare(rows[0]).numbers[0, 15] == pytest.approx(0.7)
    with pytest.warns(DataWarning, match="kept, not clipped"):
        assert preparer.prepare(rows[1]).numbers[0, 15] == pytest.approx(1000)
