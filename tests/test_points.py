"""Scores of windows to scores of steps: against a loop over every step and window, and however windows arrive."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, SettingError
from narrows.schema import Column
from narrows.sources.reading import Reading
from narrows.sources.source import open_source
from narrows.tasks.points import Points, by_channel, over_steps


def slow(values, length, stride):
    """(steps, D) by a loop over steps and the windows that cover each."""
    steps = (len(values) - 1) * stride + length
    out = np.full((steps, values.shape[-1]), np.nan)
    for step in range(steps):
        covering = [w for w in range(len(values)) if w * stride <= step < w * stride + length]
        own = [values[w] if values.ndim == 2 else values[w, step - w * stride] for w in covering]
        if own:
            out[step] = np.mean([np.asarray(v) for v in own], axis=0)
    return out


def fed(points, values, cuts):
    return torch.cat([points.feed(part) for part in torch.tensor_split(values, cuts)] + [points.finish()])


shapes = st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.booleans())


@given(shapes, st.lists(st.integers(0, 12), max_size=4))
@settings(deadline=None, max_examples=200)
def test_steps_are_means_of_the_windows_that_cover_them(shape, cuts):
    windows, length, stride, each = shape
    values = torch.randn(windows, *([length] if each else []), 2, dtype=torch.float64)
    points = Points(length, stride)
    whole = fed(points, values, [])
    assert np.allclose(whole, slow(values, length, stride), rtol=1e-12, atol=1e-12, equal_nan=True)
    pieces = fed(points, values, sorted(cuts))  # and finish() has made it ready for another series
    assert torch.equal(whole.nan_to_num(nan=1e9), pieces.nan_to_num(nan=1e9))


def test_a_huge_window_leaves_nothing_behind():
    values = torch.zeros(50, 1, dtype=torch.float64)
    values[10] = 1e300
    steps = fed(Points(4, 1), values, [])
    assert (steps[14:] == 0).all() and (steps[:10] == 0).all() and (steps[10:14] > 0).all()


def test_what_is_held_does_not_grow():
    points = Points(16, 3)
    held, given_out = 0, 0
    for value in torch.randn(500, 1, 1):
        given_out += len(points.feed(value))
        held = max(held, points.state()["sums"].numel())
    assert held <= 16 * 2
    assert given_out == points.step == 1500 and points.next == 1500


def test_stopping_and_going_on_changes_nothing():
    values = torch.randn(40, 2)
    one, two = Points(7, 2), Points(7, 2)
    first = one.feed(values[:23])
    two.restore(one.state())
    assert torch.equal(torch.cat([first, two.feed(values[23:]), two.finish()]), fed(Points(7, 2), values, []))
    with pytest.raises(DataError, match="windows of 3 steps"):
        Points(3, 1).restore(one.state())


def test_channels_and_the_remainder_add_up_to_the_score():
    column = Column("x", "series", "float", (5, 3), width=17, grid=(5, 3))
    cells, remainder = torch.rand(4, 17, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    found = by_channel(column, cells, remainder)
    assert torch.allclose(found.sum(1), cells.sum(1) + remainder)
    for channel in range(3):
        assert torch.allclose(found[:, channel], cells[:, channel:15:3].sum(1))
    with pytest.raises(DataError, match="a series"):
        by_channel(Column("a", "number", "float"), cells, remainder)


def cut(lengths, window, stride):
    """A windowed source of series of these lengths, in one file with a series column."""
    names = np.repeat([f"s{i}" for i in range(len(lengths))], lengths)
    values = np.random.default_rng(0).normal(size=len(names))
    table = pa.table({"name": names, "v": values})
    reading = Reading(form="series", window=window, stride=stride, series="name")
    return open_source(table, reading=reading), reading


@pytest.mark.filterwarnings("ignore:.*fill no window")
def test_all_series_of_a_source():
    lengths, window, stride = [23, 5, 40, 8], 8, 3
    source, reading = cut(lengths, window, stride)
    batches = [(rows, torch.from_numpy(_means(rows))[:, None]) for _, rows in source.batches()]
    # cut anew, so that batches end within series and hold several
    rows, values = pa.Table.from_batches([r for r, _ in batches]), torch.cat([v for _, v in batches])
    parts = [(rows.slice(i, 4).combine_chunks().to_batches()[0], values[i : i + 4]) for i in range(0, len(rows), 4)]
    found: dict[str, list] = {}
    for steps in over_steps(parts, reading):
        assert steps.first == sum(map(len, found.get(steps.series, [])))
        found.setdefault(steps.series, []).append(steps.values)
    assert list(found) == ["s0", "s2", "s3"]  # s1 is shorter than a window
    names = np.array(rows.column("series").to_pylist())
    for name, steps in found.items():
        expected = slow(values[torch.from_numpy(names == name)], window, stride)
        assert np.allclose(torch.cat(steps), expected, equal_nan=True)


def _means(rows):
    return rows.column("x").storage.flatten().to_numpy().reshape(len(rows), -1).mean(1).astype(np.float64)


def test_windows_left_out_or_out_of_order_are_refused():
    source, reading = cut([20], 4, 1)
    ((_, rows),) = source.batches()
    values = torch.zeros(len(rows), 1)
    for picked in ([0, 1, 3], [1, 2], [0, 2, 1]):
        with pytest.raises(DataError, match="window from step"):
            list(over_steps([(rows.take(pa.array(picked)), values[: len(picked)])], reading))
    with pytest.raises(SettingError, match="no windows"):
        over_steps([], Reading())
    with pytest.raises(SettingError, match="stride=0"):
        Points(4, 0)
