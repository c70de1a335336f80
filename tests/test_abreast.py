"""Work on several spans of rows at once gives what work on one after the other gives."""

import threading

import numpy as np
import pyarrow as pa
import pytest
import torch

from narrows.prepare.abreast import abreast, spans
from narrows.prepare.moments import BLOCK_CELLS, Moments
from narrows.prepare.preparer import CHUNK_CELLS, Preparer
from narrows.prepare.statistics import Statistics


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_from_several_threads(threads):
    meeting = threading.Barrier(threads)  # nobody passes before all are there

    def work(part):
        meeting.wait(timeout=30)
        return part, threading.current_thread().name

    found = list(abreast(work, range(threads)))
    assert [part for part, _ in found] == list(range(threads))
    assert len({name for _, name in found}) == threads


def test_an_error_is_that_of_the_part(threads):
    def work(part):
        raise ValueError(part)

    with pytest.raises(ValueError, match=r"^7$"):
        list(abreast(work, [7, 8, 9]))


@pytest.mark.parametrize("rows", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("fewest", [0, 1, 4, 1000])
def test_spans_cover_the_rows_once(rows, fewest, threads):
    found = spans(rows, fewest)
    assert [row for span in found for row in range(rows)[span]] == list(range(rows))
    assert len(found) <= threads and (len(found) == 1 or all(s.stop - s.start >= fewest for s in found))


def test_moments_and_prepared_cells_are_those_of_one_thread(threads):
    draw = np.random.default_rng(0)
    cells = draw.normal(size=(3 * BLOCK_CELLS // 100, 100)).astype(np.float32) * 1e3
    cells[draw.random(cells.shape) < 0.01] = np.nan
    found, wanted = Moments.empty(100), Moments.empty(100)
    found.update(cells)
    step = BLOCK_CELLS // 100
    for start in range(0, len(cells), step):
        wanted.merge(Moments.of(cells[start : start + step]))
    for name, values in vars(wanted).items():
        np.testing.assert_array_equal(getattr(found, name), values, err_msg=name)

    names = [f"c{i}" for i in range(100)]
    table = pa.RecordBatch.from_arrays([pa.array(column) for column in cells.T], names=names)
    assert len(spans(len(table), CHUNK_CELLS // 100)) == threads
    statistics = Statistics(table.schema)
    statistics.update(table, 0)
    preparer = Preparer.learn(statistics)
    whole = preparer.prepare(table)
    raw = torch.tensor(cells, dtype=torch.float64)
    torch.testing.assert_close(whole.numbers, preparer.scaling(raw), atol=0, rtol=0)
    assert torch.equal(whole.seen, ~raw.isnan())
