"""Streamed epochs: ordered as reading without a thread, errors arrive as they are, nothing is left running."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import narrows.prepare.streamed as home
from narrows.errors import DataError, DataWarning
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.prepare.streamed import Streamed
from narrows.schema import Batch
from narrows.sources.shuffle import Shuffle
from narrows.sources.source import Source, numbered, open_source
from narrows.sources.split import Split

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*is read from:narrows.errors.DataWarning")


@pytest.fixture(autouse=True, params=["beside", "between"])
def reading(request, monkeypatch):
    """Windows are read beside training, or between trainings where that takes every core: the batches are the same."""
    monkeypatch.setattr(home, "core_to_spare", lambda device: request.param == "beside")
    return request.param


class Pieces(Source):
    """Rows of a number, a category with holes and a vector, in pieces; reading may break at some row, or take time."""

    def __init__(self, sizes, breaks_at=None, pause=0.0):
        self.name, self.breaks_at, self.pause, self.given = "pieces", breaks_at, pause, 0
        self.sizes, self.starts = sizes, np.cumsum([0, *sizes])
        self.pieces = tuple(range(len(sizes)))
        self.schema = self._rows(0, 1).schema

    def rows_of(self, piece):
        return self.sizes[piece]

    def read(self, piece, skip=0):
        first, stop = int(self.starts[piece]) + skip, int(self.starts[piece + 1])
        return numbered(piece, skip, (self._rows(at, min(at + 7, stop)) for at in range(first, stop, 7)))

    def _rows(self, first, stop):
        if self.breaks_at is not None and first <= self.breaks_at < stop:
            raise DataError(f"row {self.breaks_at} is broken")
        time.sleep(self.pause)
        self.given += stop - first
        n = np.arange(first, stop) % 1000
        letters = pa.array([None if i % 5 == 0 else "abc"[i % 3] for i in n], pa.string())
        vector = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([n % 11, n % 7], axis=1).astype(np.float32))
        return pa.RecordBatch.from_arrays([pa.array(n), letters, vector], names=["n", "letter", "vector"])


def learnt(source):
    statistics = Statistics(source.schema)
    for first, rows in source.batches():
        statistics.update(rows, first)
    return Preparer.learn(statistics)


PREPARER = learnt(Pieces([1000]))


def streamed(source, window=60, batch=20, split=None):
    return Streamed(Shuffle(source, split, 3, window), PREPARER, batch, source.rows, CPU)


def directly(source, window, batch, epoch, split=None):
    """The batches of an epoch by plain reading, without a thread, and the positions behind them."""
    parts, before = [], {}
    for raw, end in Shuffle(source, split, 3, window).parts(epoch):
        parts.append(PREPARER.prepare(raw))
        if end is None:
            continue
        rows = Batch.concat(parts)[torch.from_numpy(end.order)]
        cuts = list(range(0, len(rows), batch))
        for number, at in enumerate(cuts, start=1):
            here = end.position | {"batch": 0} if number == len(cuts) else before | {"batch": number}
            yield rows[at : at + batch], here
        parts, before = [], end.position


def same(batches, others):
    assert [position for _, position in batches] == [position for _, position in others]
    for (batch, _), (other, _) in zip(batches, others, strict=True):
        assert torch.equal(batch.numbers, other.numbers) and torch.equal(batch.codes, other.codes)
        assert torch.equal(batch.mask(), other.mask())


SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@given(SIZES, st.integers(1, 90), st.integers(1, 30), st.booleans(), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_batches_are_those_of_reading_without_a_thread(sizes, window, batch, whole, epoch):
    split = None if whole else Split(0.3, seed=7)
    given_ = list(streamed(Pieces(sizes), window, batch, split).epoch(epoch))
    same(given_, list(directly(Pieces(sizes), window, batch, epoch, split)))


@given(SIZES, st.integers(1, 90), st.integers(1, 30), st.data())
@settings(max_examples=25, deadline=None)
def test_goes_on_bit_for_bit_from_any_position(sizes, window, batch, data):
    stream = streamed(Pieces([*sizes, 1]), window, batch)
    whole = list(stream.epoch(1))
    place = data.draw(st.integers(0, len(whole) - 1))
    same(list(stream.epoch(1, whole[place][1])), whole[place + 1 :])


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("narrows-reader")]


def test_the_thread_ends_with_the_epoch(reading):
    source = Pieces([100] * 4)
    for _ in streamed(source).epoch(0):
        assert len(readers()) == (reading == "beside")
    assert not readers()


@pytest.mark.parametrize("taken", [1, 4])
def test_closing_early_leaves_no_thread_and_reads_no_further(taken):
    source = Pieces([100] * 40)
    batches = streamed(source).epoch(0)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert not readers()
    there = source.given
    time.sleep(0.05)
    assert source.given == there
    assert there < 4 * 60 + 40 * 7  # the windows begun, and what each of the pieces is ahead


def test_at_most_one_window_is_read_ahead():
    source = Pieces([900])
    batches = streamed(source, window=70, batch=70).epoch(0)
    for number in range(1, 11):
        next(batches)
        time.sleep(0.02)
        assert source.given <= (number + 1) * 70 + 14


def test_an_error_in_reading_arrives_with_its_type_behind_the_rows_before_it():
    source = Pieces([10, 200], breaks_at=150)
    batches = streamed(source, window=30, batch=30).epoch(0)
    assert sum(len(next(batches)[0]) for _ in range(2)) == 60
    with pytest.raises(DataError, match="row 150 is broken"):
        list(batches)
    assert not readers()


def test_an_error_in_preparing_arrives():
    stream = streamed(open_source(pa.table({"other": [1, 2, 3]})))
    with pytest.raises(DataError, match="no column"):
        next(stream.epoch(0))
    assert not readers()


def test_an_error_of_the_consumer_ends_the_thread():
    def consume():
        for _ in streamed(Pieces([100] * 40)).epoch(0):
            raise ValueError("broken step")

    with pytest.raises(ValueError, match="broken step"):
        consume()
    assert not readers()


def test_rows_that_are_read_in_order_are_warned_of():
    with pytest.warns(DataWarning, match=r"pieces is read from one place.*windows of 50;.*reshard"):
        streamed(Pieces([801]), window=50)
    with pytest.warns(DataWarning, match="read from 3 places"):
        streamed(Pieces([400, 2, 401]), window=50)
    with warnings.catch_warnings(action="error"):
        streamed(Pieces([800]), window=50)
        streamed(Pieces([400] * 4), window=50)
        Streamed(Shuffle(Pieces([900]), None, 0, 50), PREPARER, 10, None, CPU)


SCRIPT = """
    import sys, signal, threading, time, os
    sys.path.insert(0, {tests!r})
    from test_streamed import Pieces, streamed
    batches = streamed(Pieces([10_000] * 4, pause=0.001)).epoch(0)
    next(batches)
    {ending}
"""
ENDINGS = {
    "a suspended epoch": ("kept = batches", 0, ""),
    "an exception": ("raise SystemExit(3)", 3, ""),
    "Ctrl-C": (
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n    for _ in batches: time.sleep(0.01)",
        -2,
        "KeyboardInterrupt",
    ),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_interpreter_ends(name):
    ending, code, words = ENDINGS[name]
    script = textwrap.dedent(SCRIPT.format(tests=str(__file__).rpartition("/")[0], ending=ending))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code and words in done.stderr, done.stderr


PEAK = """
    import sys, torch
    from pathlib import Path
    from narrows.rows import Rows
    from narrows.sources.source import open_source
    from narrows.train.settings import Training
    rows = Rows(open_source(sys.argv[1]), 0.1, Training(budget=1e8), 0)
    count = sum(len(batch) for batch, _ in rows.streams(torch.device("cpu"))[0].epoch(0))
    assert not rows.resident and count == rows.count
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak memory")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """The peak of a process that learns from a folder and streams it, at two million rows of 32 floats and at six."""
    cells = np.random.default_rng(0).normal(size=(32, 1_000_000)).astype(np.float32)
    table = pa.table(list(cells), names=[f"x{i}" for i in range(32)])
    peaks = []
    for files in (2, 6):
        (tmp_path / str(files)).mkdir()
        for file in range(files):
            # 32 row groups or more: as many are read side by side in either
            pq.write_table(table, tmp_path / str(files) / f"{file}.parquet", row_group_size=62_500)
        words = [sys.executable, "-c", textwrap.dedent(PEAK), str(tmp_path / str(files))]
        peaks.append(int(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout))
    assert max(peaks) < 1000
    assert peaks[1] < 1.1 * peaks[0]
