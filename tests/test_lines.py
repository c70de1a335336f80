"""Lines that arrive one by one: what they hold, however it is written, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.errors import DataError
from narrows.sources.lines import read_steps

NAN = float("nan")


def steps(lines, channels=("a", "b"), series=None):
    return [(label, values.tolist()) for label, values in read_steps(lines, channels, series)]


@pytest.mark.parametrize(
    "lines",
    [
        ["a,b\n", "1,2\n", "\n", "3.5,-4e1\n"],
        ["b;t;a", "2;09:00;1", "-40;09:01;3.5"],
        ['"b"\t"a"', "2\t 1 ", '"-40"\t3.5'],
        ["1,2", "3.5,-40"],
        ["\ufeffa|b\r\n", "1|2\r\n", "3.5|-40\r\n"],
        ['{"b": 2, "a": 1}', '{"a": 3.5, "b": -40, "c": "x"}'],
        ["a,b", "1,2", '{"a": "3.5", "b": -40}'],
    ],
)
def test_steps_in_any_writing(lines):
    assert steps(lines) == [(None, [1, 2]), (None, [3.5, -40])]


def test_missing_numbers_truth_values_and_series():
    lines = ["host,a,b", "x,,NA", "y,true,-", "x,?,False"]
    found = steps(lines, series="host")
    assert [label for label, _ in found] == ["x", "y", "x"]
    np.testing.assert_array_equal([values for _, values in found], [[NAN, NAN], [1, NAN], [NAN, 0]])
    lines = ['{"a": null, "b": true, "host": 3}', '{"a": NaN, "b": false, "host": null}']
    found = steps(lines, series="host")
    assert [label for label, _ in found] == [3, None]
    np.testing.assert_array_equal([values for _, values in found], [[NAN, 1], [NAN, 0]])


def test_one_channel_needs_no_delimiter_and_names_may_look_like_numbers():
    assert steps(["load", "1.5", "", "2"], ["load"]) == [(None, [1.5]), (None, [2])]
    assert steps(["1", "2"], ["load"]) == [(None, [1]), (None, [2])]
    assert steps(["1,0", "5,6"], ["0", "1"]) == [(None, [6, 5])]


def test_each_step_is_there_before_the_next_line():
    asked = []

    def arriving():
        for line in ("a,b", "1,2", "3,4"):
            asked.append(line)
            yield line

    found = read_steps(arriving(), ["a", "b"])
    next(found)
    assert asked == ["a,b", "1,2"]


@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2), max_size=20))
def test_numbers_come_through_exactly(rows):
    written = ["a,b", *(f"{a!r},{b!r}" for a, b in rows)]
    assert steps(written) == [(None, list(row)) for row in rows]
    written = [json.dumps({"a": a, "b": b}) for a, b in rows]
    assert steps(written) == [(None, list(row)) for row in rows]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a,b", "1,x"], "line 2, column 'b': 'x'"),
        (["a,b", "1,inf"], "line 2, column 'b': 'inf'"),
        (["a,b", "1,2,3"], "line 2 has 3 fields"),
        (["a,c", "1,2"], "line 2 has no column 'b'"),
        (["1,2,3"], "line 1 begins with 3 values"),
        (['{"a": 1}'], "line 1 has no column 'b'"),
        (['{"a": [1], "b": 2}'], r"line 1, column 'a': \[1\]"),
        (['{"a": 1, "b": 1e999}'], "line 1, column 'b': inf"),
        (['{"a": 1, "b": ' + "9" * 400 + "}"], "line 1, column 'b'"),
        (["{a: 1}"], "line 1 is no JSON"),
        (["{" + '"a":{' * 100_000], "line 1 is no JSON"),
        (["a,b", "1," + "2" * 200_000], "line 2"),
    ],
)
def test_what_is_refused(lines, said):
    with pytest.raises(DataError, match=said):
        steps(lines)


def test_a_series_has_a_plain_name():
    with pytest.raises(DataError, match="column 'host'"):
        steps(['{"a": 1, "b": 2, "host": [1]}'], series="host")
