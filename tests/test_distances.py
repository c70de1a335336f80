"""Judges that compare rows as points, against slow loops: spaces, memories, neighbors, the cloud, codes."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from judged_rows import BAG, LEVELS, SCHEMA, draws, table, tight
from narrows.schema import Batch, Column, Schema
from narrows.tasks.distances import DIRECTIONS, NEAREST, RIDGE, Codes, Covariance, Memory, Neighbors, nearest
from narrows.tasks.features import features
from narrows.tasks.space import Space
from small_models import small_model

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


# neighbors and the cloud


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_neighbors_are_those_of_brute_force(holes):
    rows, new = table(80, 0), table(30, 1, holes)
    judge = Neighbors.learn(Space.of(SCHEMA, rows), rows)
    evidence = judge(new)
    points, seen = judge.space.points(new)
    for row in range(30):
        apart = (points[row] - judge.points).square() * seen[row]
        squares = apart.sum(1) * 7 / seen[row].sum().clamp_min(1)
        near = squares.argsort()[:NEAREST]
        assert evidence.total[row].item() == pytest.approx(squares[near].sqrt().mean().item(), rel=1e-2, abs=1e-2)
        of_features = apart[near].mean(0)
        wanted = [*of_features[:2].tolist(), of_features[2:5].sum().item(), of_features[5:].sum().item()]
        if len(set(squares.sort().values[: NEAREST + 1].tolist())) > NEAREST:  # no tie decides who is near
            tight(evidence.cells[row], wanted, rtol=1e-3, atol=1e-3)


def test_neighbors_learnt_from_are_not_their_own():
    rows = table(60, 2)
    judge = Neighbors.learn(Space.of(SCHEMA, rows), rows)
    apart = torch.cdist(judge.points.double(), judge.points.double()).sort(1).values
    tight(judge.typical(rows).total, apart[:, 1 : NEAREST + 1].mean(1), rtol=1e-2, atol=1e-2)
    assert (judge.typical(rows).total >= judge(rows).total - 1e-3).all()


@pytest.mark.parametrize(("rows", "columns"), [(400, 6), (30, 50)])
def test_the_cloud_has_the_distances_of_mahalanobis(rows, columns):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns)) + 3).astype(np.float32)
    schema = Schema((Column("x", "number", "double", shape=(columns,), width=columns),))
    batch = Batch(torch.from_numpy(values), torch.zeros(rows, 0, dtype=torch.long))
    judge = Covariance.learn(Space.of(schema, batch), batch)
    new = rng.normal(size=(20, columns)).astype(np.float32) * 5
    evidence = judge(Batch(torch.from_numpy(new), torch.zeros(20, 0, dtype=torch.long)))
    centered = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    covariance = centered.T @ centered / rows
    raised = covariance + RIDGE * np.trace(covariance) / columns * np.eye(columns)
    apart = new - values.mean(0, dtype=np.float64)
    pulls = apart * np.linalg.solve(raised, apart.T).T
    tight(evidence.total, pulls.sum(1), rtol=2e-3)
    tight(evidence.cells, np.maximum(pulls, 0), rtol=1e-2, atol=1e-2 * pulls.max())


def test_beyond_the_first_directions_all_have_one_variance():
    rng = np.random.default_rng(0)
    columns = DIRECTIONS + 40
    spreads = np.concatenate([np.full(DIRECTIONS, 5.0), np.full(40, 0.5)])
    values = (rng.normal(size=(3000, columns)) * spreads).astype(np.float32)
    schema = Schema((Column("x", "number", "double", shape=(columns,), width=columns),))
    batch = Batch(torch.from_numpy(values), torch.zeros(3000, 0, dtype=torch.long))
    judge = Covariance.learn(Space.of(schema, batch), batch)
    assert judge.directions.shape == (columns, DIRECTIONS)
    covariance = np.cov(values.T.astype(np.float64), bias=True)
    kept = np.linalg.eigvalsh(covariance)
    rest = kept[:40].mean() + RIDGE * np.trace(covariance) / columns
    assert judge.variances[-1].item() == pytest.approx(rest, rel=1e-3)
    tight(judge.variances[:-1], kept[40:] + RIDGE * np.trace(covariance) / columns, rtol=1e-3)


def test_the_cloud_sees_what_moves_against_the_others():
    rng = np.random.default_rng(0)
    both = rng.normal(size=(500, 1)) + 0.05 * rng.normal(size=(500, 2))
    schema = Schema((Column("a", "number", "double"), Column("b", "number", "double")))
    none = torch.zeros(500, 0, dtype=torch.long)
    judge = Covariance.learn(
        Space.of(schema, Batch(torch.zeros(500, 2), none)), Batch(torch.tensor(both).float(), none)
    )
    along, against = judge(Batch(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), none[:2])).total.tolist()
    assert against > 10 * along


# codes


@pytest.fixture(scope="module")
def numbers() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a = rng.normal(size=300)
    kinds = np.where(a > 0.5, "high", np.where(a < -0.5, "low", "middle"))
    return pd.DataFrame({"a": a, "b": 2 * a + 0.1 * rng.normal(size=300), "c": rng.normal(size=300), "kind": kinds})


@pytest.mark.parametrize("all_normal", [False, True])
def test_codes_far_from_all_others_are_odd(numbers, all_normal):
    model = small_model(numbers, "plain", 2, baseline=False)
    batch = next(model.batches(numbers))[1]
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
