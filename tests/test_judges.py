"""Histograms against NumPy's, hidden cells against a slow loop; unseen cells, bags, and what is stored."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judged_rows import BAG, LEVELS, SCHEMA, draws, table, tight
from narrows.schema import Batch, Column, Schema, Sparse
from narrows.tasks.distances import Covariance, Memory, Neighbors
from narrows.tasks.judges import BINS, Histograms, Telling, hides
from narrows.tasks.space import Space
from small_models import small_model

# histograms


def test_bins_are_those_of_numpy_and_levels_are_counted():
    rows, new = table(500), table(200, 1)
    judge = Histograms.learn(SCHEMA, rows)
    evidence = judge(new)
    for place in range(2):
        column = rows.numbers[:, place].double().numpy()
        counts, edges = np.histogram(column, BINS)
        for row, value in enumerate(new.numbers[:, place].tolist()):
            inside = edges[0] <= value <= edges[-1]
            count = counts[min(BINS - 1, int((value - edges[0]) / (edges[1] - edges[0])))] if inside else 0
            wanted = -math.log((count + 0.5) / (500 + 0.5 * (BINS + 2)))
            assert evidence.cells[row, place].item() == pytest.approx(wanted, rel=1e-4)
    for place, levels in enumerate(LEVELS):
        counted = torch.bincount(rows.codes[:, place], minlength=levels + 1).double()
        wanted = -torch.log((counted + 0.5) / (500 + 0.5 * (levels + 1)))[new.codes[:, place]]
        tight(evidence.cells[:, 2 + place], wanted)
    tight(evidence.total, evidence.cells.sum(1))


def test_the_ends_of_a_histogram_belong_to_it_and_what_lies_beyond_does_not():
    numbers = torch.linspace(-3, 7, 101)[:, None]
    schema = Schema((Column("a", "number", "double"),))
    judge = Histograms.learn(schema, Batch(numbers, torch.zeros(101, 0, dtype=torch.long)))
    ends = torch.tensor([[-3.0], [7.0], [-3.001], [7.001], [-1e6], [1e6]])
    low, high, *beyond = judge(Batch(ends, torch.zeros(6, 0, dtype=torch.long))).total.tolist()
    assert low == pytest.approx(-math.log(10.5 / 107)) and high == pytest.approx(-math.log(11.5 / 107))
    assert beyond == pytest.approx([-math.log(0.5 / 107)] * 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=80), st.lists(st.booleans(), min_size=80))
def test_unseen_cells_are_not_counted_and_every_seen_one_falls_into_a_bin(values, flags):
    numbers = torch.tensor(values)[:, None]
    seen = torch.tensor(flags[: len(values)])[:, None]
    rows = Batch(numbers * seen, torch.zeros(len(values), 0, dtype=torch.long), seen)
    judge = Histograms.learn(Schema((Column("a", "number", "double"),)), rows)
    counts = torch.exp(-judge.bins) * (seen.sum() + 0.5 * (BINS + 2)) - 0.5
    assert counts.sum().item() == pytest.approx(int(seen.sum()), abs=1e-2)
    assert counts[0, 0].item() == pytest.approx(0, abs=1e-3) and counts[0, -1].item() == pytest.approx(0, abs=1e-3)
    evidence = judge(rows)
    assert evidence.total.isfinite().all() and (evidence.cells[~seen] == 0).all()


def test_evidence_of_the_cells_that_were_seen_stands_for_all():
    rows = table(300, 0, 0.3)
    judge = Histograms.learn(SCHEMA, rows)
    whole = judge(rows.with_seen(None))
    evidence = judge(rows)
    for row in range(50):
        there = rows.seen[row]
        wanted = whole.cells[row][there].sum() * 4 / max(1, int(there.sum()))
        assert evidence.total[row].item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)


def test_bags_are_written_out():
    sparse = Sparse(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 3, 1]), torch.tensor([2.0, 1.0, 5.0]), 4)
    rows = Batch(torch.tensor([[0.1], [0.2], [0.3]]), torch.zeros(3, 0, dtype=torch.long), sparse=sparse)
    judge = Histograms.learn(BAG, rows)
    assert judge(rows).cells.shape == (3, 5)
    torch.testing.assert_close(judge(rows).cells, judge(rows.dense()).cells)
    memory, _ = Memory.learn(Space.of(BAG, rows), rows, draws())
    torch.testing.assert_close(memory(rows).total, memory(rows.dense()).total)


# what is stored


def test_judges_come_back_from_their_tensors():
    rows, new = table(200, 0, 0.2), table(50, 1, 0.2)
    memory, _ = Memory.learn(Space.of(SCHEMA, rows), rows, draws())
    space = memory.space
    for judge in (memory, Neighbors.learn(space, rows), Covariance.learn(space, rows), Histograms.learn(SCHEMA, rows)):
        again = type(judge).read(SCHEMA, judge.tensors())
        torch.testing.assert_close(again(new).total, judge(new).total, rtol=0, atol=0)
        torch.testing.assert_close(again(new).cells, judge(new).cells, rtol=0, atol=0)


# what is asked of the network


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    kinds = np.where(a > 0.5, "high", np.where(a < -0.5, "low", "middle"))
    return pd.DataFrame({"a": a, "b": 2 * a + 0.1 * rng.normal(size=300), "c": rng.normal(size=300), "kind": kinds})


@pytest.mark.parametrize("members", [None, 3])
def test_each_cell_is_told_from_the_others(frame, members):
    model = small_model(frame, "masked:rate=0.6,patch=1,vary=true", 3, members, baseline=False)
    assert hides(model.module)
    judge = Telling(model)
    batch = next(model.batches(frame.iloc[:20]))[1]
    evidence, (numbers, codes) = judge(batch), judge.expected(batch)
    for cell in range(model.schema.cells):
        group = judge._groups == judge._groups[cell]
        with torch.inference_mode():
            p = model.module.decode(model.module.encode(batch.with_seen(batch.mask() & ~group)).z)
            cost, told, level = (part[0] for part in (-p.log_prob(batch), p.numbers(), p.codes()))
            if members:
                cost, told, level = cost.mean(0), told.mean(0), level.mode(0).values
        tight(evidence.cells[:, cell], cost[:, cell], rtol=1e-3, atol=1e-4)
        wanted = told[:, cell] if cell < 3 else level[:, cell - 3]
        tight((numbers if cell < 3 else codes)[:, cell % 3], wanted, rtol=1e-3, atol=1e-4)
    tight(evidence.total, evidence.cells.sum(1))
    assert (evidence.cells >= 0).all(), "squared errors and cross-entropies"


def test_no_cell_reaches_what_is_told_of_it(frame):
    model = small_model(frame, "masked:rate=0.6,patch=1", 3, baseline=False)
    judge = Telling(model)
    batch = next(model.batches(frame.iloc[:20]))[1]
    before = judge.expected(batch)[0]
    for cell in range(3):
        changed = batch.numbers.clone()
        changed[:, cell] += 50
        after = judge.expected(Batch(changed, batch.codes))[0]
        torch.testing.assert_close(after[:, cell], before[:, cell])


def test_a_network_that_hides_nothing_is_asked_for_reconstructions(frame):
    model = small_model(frame, "plain", 2, baseline=False)
    batch = next(model.batches(frame.iloc[:20]))[1]
    judge = Telling(model)
    assert not judge.hidden
    tight(judge(batch).cells, model.costs(batch)[:, :4])
    for one, two in zip(judge.expected(batch), model.cells(model.codes(batch)), strict=True):
        torch.testing.assert_close(one, two)
