"""Rows come back as they came: container, labels, index, types; over every type that can be modeled."""

from __future__ import annotations

import datetime as dt
import pickle
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from narrows import Autoencoder
from narrows.errors import DataError

ROWS = 40
rng = np.random.default_rng(0)
whole, some = rng.integers(0, 90, ROWS), rng.random(ROWS) < 0.2
words = rng.choice(["cook", "judge", "smith"], ROWS)
stamps = pd.Series(pd.date_range("2020-01-01", periods=ROWS, freq="36h"))
with_holes = [None if hole else value for value, hole in zip(words.tolist(), some.tolist(), strict=True)]
numbers_with_holes = pd.array([None if hole else int(v) for v, hole in zip(whole, some, strict=True)], dtype="Int64")

COLUMNS = {
    **{
        kind: pd.Series(whole).astype(kind)
        for kind in ("int8", "int64", "uint8", "uint64", "float16", "float32", "float64")
    },
    **{
        kind: pd.Series(numbers_with_holes).astype(kind)
        for kind in ("Int8", "Int64", "UInt32", "Float32", "Float64", "int16[pyarrow]", "double[pyarrow]")
    },
    "bool": pd.Series(whole > 40),
    "boolean": pd.Series(numbers_with_holes > 40, dtype="boolean"),
    "bool[pyarrow]": pd.Series(whole > 40).astype("bool[pyarrow]"),
    **{kind: pd.Series(with_holes, dtype=kind) for kind in ("str", "string[python]", "string[pyarrow]", "object")},
    "category": pd.Series(pd.Categorical(with_holes, categories=["smith", "cook", "unused", "judge"])),
    "ordered": pd.Series(pd.Categorical(with_holes, categories=["smith", "judge", "cook"], ordered=True)),
    "category of numbers": pd.Series(pd.Categorical(whole % 3 * 1.5)),
    "category of days": pd.Series(pd.Categorical(stamps.dt.floor("30D"))),
    "datetime64[ns]": stamps.astype("datetime64[ns]"),
    "datetime64[s]": stamps.astype("datetime64[s]"),
    "datetime with zone": stamps.dt.tz_localize("UTC").dt.tz_convert("Europe/Zurich"),
    "timedelta64[us]": (stamps - stamps[0]).astype("timedelta64[us]"),
    "timestamp[pyarrow]": stamps.astype("timestamp[us][pyarrow]"),
    "dates": pd.Series([dt.date(2020, 1, 1) + dt.timedelta(int(days)) for days in whole], dtype=object),
    "decimals": pd.Series([Decimal(int(value)) / 4 for value in whole], dtype=object),
    "integers": pd.Series(whole.tolist(), dtype=object),
    "flags": pd.Series((whole > 40).tolist(), dtype=object),
    "no categories": pd.Series(pd.Categorical([None] * ROWS, categories=["a", "b"])),
    "only holes": pd.Series([np.nan] * ROWS, dtype="float32"),
    "only masked": pd.Series([pd.NA] * ROWS, dtype="Int16"),
    "only nothing": pd.Series([None] * ROWS, dtype=object),
    "no texts": pd.Series([None] * ROWS, dtype="str"),
    "no dates": pd.Series([pd.NaT] * ROWS, dtype="datetime64[ms]"),
}


def quick(rows, **settings):
    """An autoencoder fitted for one epoch: types do not depend on how well."""
    return Autoencoder(**{"latent": 1, "hidden": (8,), "epochs": 1, "random_state": 0, **settings}).fit(rows)


labels = st.lists(st.integers(-5, 500), min_size=8, max_size=8, unique=True) | st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=8, max_size=8, unique=True
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=8), labels, st.permutations(range(100, 140)))
def test_data_frames_come_back_whole(chosen, named, index):
    frame = pd.concat([pd.Series(np.linspace(0, 1, ROWS)), *(COLUMNS[name] for name in chosen[:7])], axis=1)
    frame.columns, frame.index = pd.Index(named[: frame.shape[1]]), pd.Index(index)
    ae = quick(frame, recipe="denoising")
    same = pickle.loads(pickle.dumps(ae))
    for back in (ae.reconstruct(frame), same.reconstruct(frame)):
        pd.testing.assert_index_equal(back.columns, frame.columns)
        pd.testing.assert_index_equal(back.index, frame.index)
        assert back.dtypes.tolist() == frame.dtypes.tolist()
        filled = back.notna().all() | frame.isna().all()
        assert filled.all(), back.columns[~filled]
    decoded = ae.inverse_transform(ae.transform(frame))
    pd.testing.assert_frame_equal(decoded, back.reset_index(drop=True))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_every_type_comes_back_with_values_of_its_own(name):
    frame = pd.DataFrame({"x": rng.normal(size=ROWS), name: COLUMNS[name]})
    back = quick(frame, recipe="denoising").reconstruct(frame)[name]
    assert back.dtype == frame[name].dtype
    if isinstance(frame[name].dtype, pd.CategoricalDtype):
        pd.testing.assert_index_equal(back.cat.categories, frame[name].cat.categories)
        assert back.dropna().isin(frame[name].dropna()).all()
    elif back.dtype == object and frame[name].notna().any():
        assert set(map(type, back)) == set(map(type, frame[name].dropna()))


def test_what_the_model_misses_is_a_difference_of_frames():
    frame = pd.DataFrame(rng.normal(size=(ROWS, 3)), columns=[2, 0, 1], index=pd.date_range("2020", periods=ROWS))
    missed = frame - quick(frame).reconstruct(frame)
    assert missed.shape == frame.shape and missed.notna().all().all()


@pytest.mark.parametrize(
    "kind", ["?", "i1", "u1", "i2", "i4", "i8", "u8", "f2", "f4", "f8", ">f4", ">i4", "g", "M8[D]", "M8[us]", "m8[s]"]
)
@pytest.mark.parametrize("shape", [(ROWS, 3), (ROWS, 1), (ROWS, 2, 3)])
def test_arrays_keep_their_type_and_shape(kind, shape):
    if np.dtype(kind).kind in "mM" and len(shape) > 2:
        pytest.skip("dates stand in tables only")
    rows = rng.integers(0, 2 if kind == "?" else 100, shape).astype(kind)
    ae = quick(rows, recipe="denoising")
    back = ae.reconstruct(rows)
    assert type(back) is np.ndarray and (back.dtype, back.shape) == (rows.dtype, shape)
    assert ae.inverse_transform(ae.transform(rows)).dtype == rows.dtype


@pytest.mark.parametrize("kind", ["U6", "S6", "O"])
def test_arrays_of_words_and_objects_keep_their_type(kind):
    rows = np.column_stack([words, words[::-1]]).astype(kind)
    back = quick(rows).reconstruct(rows)
    assert back.dtype == rows.dtype and set(back.ravel()) <= set(rows.ravel())
    mixed = np.empty((ROWS, 3), dtype=object)
    mixed[:, 0], mixed[:, 1], mixed[:, 2] = whole.tolist(), with_holes, rng.normal(size=ROWS).tolist()
    back = quick(mixed).reconstruct(mixed)
    assert [{type(value) for value in column} for column in back.T] == [{int}, {str}, {float}]


@pytest.mark.parametrize("kind", ["bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(ROWS, 4), (ROWS, 2, 2)])
def test_tensors_keep_their_type_and_shape(kind, shape):
    rows = torch.from_numpy(rng.integers(0, 2 if kind == "bool" else 50, shape)).to(getattr(torch, kind))
    back = quick(rows, recipe="denoising").reconstruct(rows)
    assert isinstance(back, torch.Tensor) and (back.dtype, back.shape) == (rows.dtype, rows.shape)


def test_tensors_that_are_no_plain_arrays():
    rows = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0))
    learnt = quick(rows.requires_grad_())
    assert not learnt.reconstruct(rows).requires_grad
    with pytest.raises(DataError, match=r"to_dense"):
        quick(rows.detach().to_sparse())


def test_masked_cells_are_missing():
    values = rng.normal(size=(ROWS, 3)).astype(np.float32)
    masked = np.ma.masked_array(np.where(some[:, None], 1e9, values), mask=np.repeat(some[:, None], 3, 1))
    holes = np.where(some[:, None], np.nan, values)
    np.testing.assert_array_equal(quick(masked).transform(masked), quick(holes).transform(holes))
    assert np.abs(quick(masked).reconstruct(masked)).max() < 1e3


@pytest.mark.parametrize(
    "column",
    [
        pl.Series(with_holes, dtype=pl.Categorical),
        pl.Series(with_holes, dtype=pl.Enum(["smith", "unused", "judge", "cook"])),
        pl.Series(with_holes, dtype=pl.String),
        pl.Series(whole, dtype=pl.UInt16),
        pl.Series(whole, dtype=pl.Decimal(10, 2)),
        pl.Series(whole.astype(float), dtype=pl.Float32),
        pl.Series(stamps.dt.date.tolist()),
        pl.Series(stamps.tolist(), dtype=pl.Datetime("ms", "Europe/Zurich")),
        pl.Series([dt.timedelta(int(hours)) for hours in whole], dtype=pl.Duration("ns")),
        pl.Series([dt.time(int(hour) % 24) for hour in whole]),
        pl.Series(whole > 40),
        pl.Series([None] * ROWS),
    ],
    ids=lambda column: str(column.dtype)[:30],
)
def test_frames_of_polars_keep_their_types(column):
    frame = pl.DataFrame({"x": rng.normal(size=ROWS), "y": column})
    ae = quick(frame, recipe="denoising")
    back = ae.reconstruct(frame)
    assert back.schema == frame.schema and len(back) == ROWS
    assert back["y"].null_count() == (ROWS if column.null_count() == ROWS else 0)
    assert ae.inverse_transform(ae.transform(frame[:5])).equals(back[:5])


def test_tables_of_arrow_keep_their_types():
    table = pa.table({"a": whole, "b": pa.array(with_holes).dictionary_encode(), "c": pa.array(with_holes)})
    assert quick(table).reconstruct(table).schema == table.schema
