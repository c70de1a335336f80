"""The asinh column map against NumPy's, its way back, odd columns, and the wish `*` for all columns of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import SettingError
from narrows.fitting import Plan
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics

WITHIN = 0.01  # of asinh: its knots stand about a fifth of a unit apart


def learn(rows: pa.RecordBatch, **wishes: Any) -> Preparer:
    statistics = Statistics(rows.schema)
    statistics.update(rows, 0)
    return Preparer.learn(statistics, **wishes)


def bent(values: np.ndarray) -> tuple[Preparer, np.ndarray]:
    """A preparer of one asinh column, and its prepared values."""
    rows = pa.RecordBatch.from_pydict({"a": values})
    preparer = learn(rows, kinds={"a": "number"}, transforms={"a": "asinh"})
    return preparer, preparer.prepare(rows).numbers[:, 0].double().numpy()


def asinh(values: np.ndarray) -> np.ndarray:
    """The map as its docstring says it."""
    tenth, median, ninetieth = np.quantile(values, [0.1, 0.5, 0.9])
    return np.arcsinh((values - median) / max((ninetieth - tenth) / 2.56, 0.2 * values.std()))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.normal(50, 9, 5000),
        lambda rng: rng.lognormal(0, 2, 5000),
        lambda rng: rng.standard_cauchy(5000),
        lambda rng: rng.standard_cauchy(5000) ** 3,
        lambda rng: 1e12 + rng.exponential(1e3, 5000),
        lambda rng: np.where(rng.random(5000) < 0.97, 0.0, rng.lognormal(8, 1, 5000)),
    ],
)
def test_columns_follow_asinh_and_come_back(draw):
    values = draw(np.random.default_rng(0))
    preparer, prepared = bent(values)
    np.testing.assert_allclose(prepared, asinh(values), atol=WITHIN)
    assert prepared.std() < 3, "a few rows stretch the column"
    back = preparer.scaling.inverse(torch.from_numpy(prepared)[:, None])[:, 0].numpy()
    steep = np.sqrt(1 + np.sinh(prepared) ** 2) * (values.std() + abs(np.quantile(values, 0.9)))
    np.testing.assert_array_less(abs(back - values), 1e-5 * steep + 1e-9 * abs(values))


def test_values_far_beyond_those_of_training_stay_apart_in_order():
    values = np.random.default_rng(0).normal(size=2000)
    preparer, _ = bent(values)
    far = torch.tensor([[-1e6], [-1e3], [-30.0], [30.0], [1e3], [1e6]], dtype=torch.float64)
    prepared = preparer.scaling(far)
    assert (prepared.diff(dim=0) > 0).all()
    np.testing.assert_allclose(preparer.scaling.inverse(prepared), far, rtol=1e-5)
    near = torch.tensor([[-30.0], [30.0]], dtype=torch.float64)  # within ten ranges the curve is drawn
    median, scale = np.median(values), (np.quantile(values, 0.9) - np.quantile(values, 0.1)) / 2.56
    np.testing.assert_allclose(preparer.scaling(near), np.arcsinh((near.numpy() - median) / scale), atol=WITHIN)


def test_missing_cells_hold_the_mean_of_the_prepared_ones():
    values = np.random.default_rng(0).lognormal(0, 1, 3000)
    holed = np.where(np.arange(3000) % 7 == 0, np.nan, values)
    rows = pa.RecordBatch.from_pydict({"a": pa.array(holed, from_pandas=True)})
    preparer = learn(rows, transforms={"a": "asinh"})
    batch = preparer.prepare(rows)
    seen = batch.mask()[:, 0].numpy()
    np.testing.assert_array_equal(seen, ~np.isnan(holed))
    prepared = batch.numbers[:, 0].numpy()
    np.testing.assert_allclose(prepared[seen], asinh(values[seen]), atol=WITHIN)
    np.testing.assert_allclose(prepared[~seen], prepared[seen].mean(), atol=1e-3)


@pytest.mark.parametrize("value", [0.0, -7.5, 1e12])
def test_a_constant_is_zero_and_comes_back(value):
    preparer, prepared = bent(np.full(40, value))
    assert (prepared == 0).all()
    assert (preparer.scaling.inverse(torch.zeros(3, 1)) == value).all()


def test_few_distinct_values_keep_their_gaps():
    values = np.repeat([0.0, 1.0, 5.0], [90, 8, 2])
    _, prepared = bent(values)
    np.testing.assert_allclose(prepared, asinh(values), atol=WITHIN)
    zero, one, five = prepared[0], prepared[92], prepared[-1]
    assert abs(zero) < WITHIN and one > 1 and five > one + 1  # the tenth and the ninetieth are one value


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=200))
def test_any_column_rises_and_comes_back(values):
    preparer, prepared = bent(np.array(values))
    order = np.argsort(values, kind="stable")
    assert (np.diff(prepared[order]) >= 0).all()
    span = (max(values) - min(values)) or 1.0
    ramp = torch.linspace(min(values) - span, max(values) + span, 300, dtype=torch.float64)[:, None]
    np.testing.assert_allclose(preparer.scaling.inverse(preparer.scaling(ramp)), ramp, atol=3e-5 * span)


# the wish `*`


ROWS = pa.RecordBatch.from_pydict(
    {
        "wide": np.random.default_rng(0).lognormal(0, 3, 300),
        "flag": np.arange(300) % 2,
        "named": np.random.default_rng(1).normal(size=300),
        "kind": np.arange(300) % 5,
        "word": np.random.default_rng(2).choice(["x", "y", "z"], 300),
        "day": pa.array(np.arange(300, dtype=np.int32), pa.date32()),
    }
)


def test_the_wildcard_takes_every_column_of_numbers_that_no_other_wish_names():
    preparer = learn(ROWS, kinds={"kind": "category"}, transforms={"*": "asinh", "named": "minmax"})
    kinds = {column.name: column.kind for column in preparer.schema}
    assert kinds == {
        "wide": "number",
        "flag": "number",  # two values would else be levels
        "named": "number",
        "kind": "category",
        "word": "category",
        "day": "date",
    }
    assert preparer.scaling.curved.tolist() == [0, 1]
    wide = ROWS.column("wide").to_numpy()
    np.testing.assert_allclose(preparer.prepare(ROWS).numbers[:, 0], asinh(wide), atol=WITHIN)


def test_the_wildcard_takes_a_whole_matrix_and_comes_back_from_its_file():
    values = np.random.default_rng(0).standard_cauchy((400, 3))
    rows = pa.RecordBatch.from_arrays([pa.FixedShapeTensorArray.from_numpy_ndarray(values)], ["x"])
    preparer = learn(rows, transforms={"*": "asinh"})
    prepared = preparer.prepare(rows).numbers
    for cell in range(3):
        np.testing.assert_allclose(prepared[:, cell], asinh(values[:, cell]), atol=WITHIN)
    again = Preparer.from_file(*preparer.to_file())
    assert torch.equal(again.prepare(rows).numbers, prepared)


@pytest.mark.parametrize("word", ["chars", "own", "tfidf", "log"])
def test_the_wildcard_is_for_transforms_of_numbers(word):
    with pytest.raises(SettingError):
        learn(ROWS, transforms={"*": word})


def test_a_plan_may_name_the_wildcard():
    Plan(columns={"*": "asinh"}).check()
    with pytest.raises(SettingError, match="sqrt"):
        Plan(columns={"*": "sqrt"}).check()
