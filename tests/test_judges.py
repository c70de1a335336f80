"""Judges against slow loops: distances, densities, bins, hidden cells, codes; and which cells they say it of."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from narrows.schema import Batch, Column, Schema, Sparse
from narrows.tasks.distances import Codes, Memory, nearest
from narrows.tasks.features import features
from narrows.tasks.judges import BINS, Histograms, Telling, hides
from narrows.tasks.space import Space
from small_models import small_model

LEVELS = (3, 2)
SCHEMA = Schema(
    (
        Column("a", "number", "double", holes=True),
        Column("kind", "category", "string", width=0, levels=3, holes=True),
        Column("b", "number", "double", holes=True),
        Column("flag", "binary", "bool", width=0, levels=2, holes=True),
    )
)
BAG = Schema((Column("a", "number", "double"), Column("words", "bag", "map<string, int64>", width=4)))


def table(rows: int, seed: int = 0, holes: float = 0.0) -> Batch:
    """Rows of `SCHEMA`; levels of unequal frequency, unknown ones among them."""
    rng = np.random.default_rng(seed)
    numbers = torch.from_numpy(rng.normal(size=(rows, 2)).astype(np.float32))
    codes = torch.from_numpy(np.stack([rng.choice(4, rows, p=[0.6, 0.3, 0.07, 0.03]), rng.integers(0, 2, rows)], 1))
    if not holes:
        return Batch(numbers, codes)
    seen = torch.from_numpy(rng.random((rows, 4)) >= holes)
    codes = torch.where(seen[:, 2:], codes, torch.tensor(LEVELS))
    return Batch(numbers * seen[:, :2], codes, seen)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def tight(found: Tensor, wanted: object, rtol: float = 2e-4, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found.double().numpy(), np.asarray(wanted, dtype=np.float64), rtol=rtol, atol=atol)


# space


def test_points_are_numbers_and_weighed_flags_of_levels():
    rows = table(400)
    space = Space.of(SCHEMA, rows)
    points, seen = space.points(rows)
    assert (seen == 1).all() and points.shape == (400, 2 + 3 + 2)
    weights = [1.0, 1.0]
    for place, levels in enumerate(LEVELS):
        for level in range(levels):
            share = float((rows.codes[:, place] == level).double().mean())
            middle = 1 / 2.56 if 0.1 <= share <= 0.9 else 0.0
            weights.append(math.asinh(1 / max(middle, 0.2 * math.sqrt(share * (1 - share)))))
    tight(space.weight, weights)
    for row in (0, 7, 123):
        flags = [0.0] * 5
        for place, start in ((0, 0), (1, 3)):
            code = int(rows.codes[row, place])
            if code < LEVELS[place]:
                flags[start + code] = weights[2 + start + code]
        tight(points[row], [*rows.numbers[row].tolist(), *flags])


def test_a_rare_level_lies_farther_than_a_frequent_one():
    codes = torch.zeros(1000, 1, dtype=torch.long)
    codes[:300], codes[300:340], codes[340:343] = 1, 2, 3
    schema = Schema((Column("kind", "category", "string", width=0, levels=5),))
    weight = Space.of(schema, Batch(torch.zeros(1000, 0), codes)).weight
    often, sometimes, seldom, rarest = weight[:4].tolist()
    assert often == pytest.approx(sometimes) and sometimes < seldom < rarest
    assert weight[4] == 1, "a level that these rows lack"
    assert weight.isfinite().all()


def test_spaces_hold_what_has_features_and_not_too_many():
    assert Space.holds(SCHEMA) and Space.holds(BAG)
    text = Column("t", "tokens", "string", width=0, levels=9, grid=(5,))
    assert not Space.holds(Schema((text,)))
    assert not Space.holds(Schema((Column("x", "number", "double", shape=(3000,), width=3000),)))


def test_cells_gather_their_features():
    space = Space.of(SCHEMA, table(50))
    values = torch.arange(14.0).view(2, 7)
    assert space.cells(values).tolist() == [[0, 1, 2 + 3 + 4, 5 + 6], [7, 8, 9 + 10 + 11, 12 + 13]]


# memory


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_memories_measure_distances_as_loops_do(holes):
    rows, new = table(90, 0, holes), table(40, 1, holes)
    memory, chosen = Memory.learn(Space.of(SCHEMA, rows), rows, draws())
    remembered, _ = memory.space.points(rows[chosen])
    torch.testing.assert_close(memory.points, remembered)
    members, size = len(memory.bandwidths), len(chosen) // len(memory.bandwidths)
    points, seen = memory.space.points(new)
    found = memory.distances(points, seen)
    assert found.shape == (40, members, size)
    for row in range(40):
        there = seen[row].bool()
        for member, place in ((0, 0), (3, 5), (members - 1, size - 1)):
            apart = (points[row] - memory.points[member * size + place])[there]
            wanted = apart.square().sum() * len(there) / max(1, int(there.sum()))
            assert found[row, member, place].item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-3)


def test_bandwidths_are_medians_of_nearest_distances():
    rows = table(301)
    memory, chosen = Memory.learn(Space.of(SCHEMA, rows), rows, draws())
    points, _ = memory.space.points(rows)
    for member in (0, 9, 31):
        of_member = points[chosen.view(32, -1)[member]]
        nearest = [min(float((point - other).square().sum()) for other in of_member) for point in points]
        assert memory.bandwidths[member].item() == pytest.approx(np.median(nearest), rel=1e-3)


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_a_memory_is_a_mixture_and_shares_its_distance_among_cells(holes):
    rows, new = table(120, 0, holes), table(30, 1, holes)
    memory, _ = Memory.learn(Space.of(SCHEMA, rows), rows, draws())
    evidence = memory(new)
    points, seen = (part.double() for part in memory.space.points(new))
    places, widths = memory.points.double().view(32, -1, 7), memory.bandwidths.double()
    for row in range(30):
        total, cells = 0.0, np.zeros(7)
        for member in range(32):
            apart = (points[row] - places[member]).square() * seen[row]
            close = apart.sum(1) * 7 / seen[row].sum().clamp_min(1) / (2 * widths[member])
            kernels = torch.exp(-close + close.min())
            total += float(close.min() - kernels.sum().log()) / 32
            share = kernels / kernels.sum()
            cells += (share[:, None] * apart / (2 * widths[member])).sum(0).numpy() / 32
        assert evidence.total[row].item() == pytest.approx(total, rel=1e-3, abs=1e-3)
        tight(evidence.cells[row], [cells[0], cells[1], cells[2:5].sum(), cells[5:].sum()], rtol=1e-3, atol=1e-3)
    assert (evidence.cells >= 0).all()
    assert len(memory(new[:0]).total) == 0
    if holes:
        assert (evidence.cells[~new.seen] == 0).all()


def test_one_far_cell_has_nearly_all_of_the_distance():
    rows = table(200)
    memory, _ = Memory.learn(Space.of(SCHEMA, rows), rows, draws())
    odd = Batch(torch.tensor([[9.0, 0.0]]), torch.tensor([[0, 0]]))
    cells = memory(odd).cells[0]
    assert cells.argmax() == 0 and cells[0] > 0.9 * cells.sum()


def test_the_nearest_row_is_found_as_by_brute_force():
    known, new = table(70, 0), table(50, 1)
    space = Space.of(SCHEMA, known)
    here, there = space.points(new)[0], space.points(known)[0]
    squares = (here[:, None] - there[None]).double().square().sum(2)
    found = nearest(space, known, new)
    assert found.tolist() == squares.argmin(1).tolist()
    assert nearest(space, known, known).tolist() == [int(row) for row in torch.cdist(there, there).argmin(1)]
    assert len(nearest(space, known, new[:0])) == 0


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
    histograms = Histograms.learn(SCHEMA, rows)
    for judge in (memory, histograms):
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


@pytest.mark.parametrize("all_normal", [False, True])
def test_codes_far_from_all_others_are_odd(frame, all_normal):
    model = small_model(frame, "plain", 2, baseline=False)
    batch = next(model.batches(frame))[1]
    judge = Codes.learn(model, batch, draws(), all_normal)
    evidence = judge(batch)
    assert evidence.cells.shape == (300, 4) and not evidence.cells.any()
    codes = model.codes(batch)
    spread = codes.std(0, correction=0)
    middle = ((codes - codes.mean(0)) / spread).norm(dim=1)
    ranks = [torch.tensor(v).argsort().argsort().double() for v in (evidence.total.tolist(), middle.tolist())]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.5
    tight(judge.judge.space.weight, 1 / spread)
    again = Codes.read(model, judge.tensors())
    torch.testing.assert_close(again(batch).total, evidence.total, rtol=0, atol=0)


def test_features_of_unknown_levels_are_none():
    rows = Batch(torch.zeros(1, 2), torch.tensor([[3, 2]]))
    assert not features(rows, SCHEMA).any()
