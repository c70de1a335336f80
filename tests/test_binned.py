"""Bins of number cells: how they are cut, and the distribution that they are, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows import Dense, Plan, Training, fit, load
from narrows.errors import SettingError
from narrows.model.binned import Bins, cut
from narrows.model.likelihoods import Likelihood
from narrows.schema import Batch, Column, Schema

VALUES = st.lists(st.one_of(st.integers(-3, 3).map(float), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=300)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(2, 40))
def test_bins_part_the_values_in_order(values, bins):
    values = np.sort(np.array(values))
    edges, low, high, center = cut(values, bins)
    assert 1 <= len(low) <= bins and len(edges) == len(low) - 1
    assert (low <= center).all() and (center <= high).all() and (high[:-1] < low[1:]).all()
    place = np.searchsorted(edges, values)
    for number in range(len(low)):
        mine = values[place == number]
        assert len(mine) and mine.min() == low[number] and mine.max() == high[number]
        assert center[number] == pytest.approx(mine.mean(), rel=1e-9, abs=1e-9)


def test_few_values_have_a_bin_each_and_frequent_ones_too():
    draw = np.random.default_rng(0)
    _, low, high, _ = cut(np.sort(draw.integers(0, 10, 500).astype(float)), 32)
    assert list(low) == list(high) == list(range(10))
    values = np.sort(np.concatenate([np.zeros(4_000), draw.exponential(size=6_000)]))
    edges, low, high, _ = cut(values, 16)
    assert low[0] == high[0] == 0 and 14 <= len(low) <= 16
    counts = np.bincount(np.searchsorted(edges, values))
    assert counts[0] == 4_000 and counts[1:].max() < 1.2 * counts[1:].min()


def learnt(cells=3, bins=8, rows=400):
    draw = torch.Generator().manual_seed(0)
    sample = torch.randn(rows, cells, generator=draw)
    sample[:, 0] = sample[:, 0].round()
    sample[: rows // 2, 1] = 1.5
    sample[::5, 2] = torch.nan
    family = Bins(cells, bins)
    family.learn(sample)
    return family, sample


def test_chances_sum_to_one_and_say_what_a_cell_costs():
    family, sample = learnt()
    outputs = torch.randn(2, 50, 3 * 8, generator=torch.Generator().manual_seed(1))
    chances = family.chances(outputs)
    assert chances.shape == (2, 50, 3, 8) and torch.allclose(chances.sum(-1), torch.ones(()))
    cells = sample[:50].nan_to_num(0.1)
    told = family.log_prob(outputs, cells)
    for row in range(0, 50, 7):
        for cell in range(3):
            edges = family.edges[cell][: family.count[cell] - 1].tolist()
            bin_ = sum(edge < cells[row, cell] for edge in edges)
            logits = outputs[0, row, cell * 8 : cell * 8 + int(family.count[cell])]
            assert told[0, row, cell] == pytest.approx(float(logits.log_softmax(0)[bin_]), abs=1e-5)
    assert torch.allclose(family.mean(outputs)[0, 0, 0], (chances[0, 0, 0] * family.center[0])[: family.count[0]].sum())


def test_a_cell_beyond_all_bins_costs_its_squared_distance():
    family, _ = learnt()
    outputs, cells = torch.zeros(1, 24), torch.tensor([[0.0, 1.5, 0.0]])
    last = family.high[0, family.count[0] - 1]
    far, near = cells.clone(), cells.clone()
    near[0, 0], far[0, 0] = last, last + 3
    assert family.log_prob(outputs, near)[0, 0] - family.log_prob(outputs, far)[0, 0] == pytest.approx(9, abs=1e-4)


def test_draws_are_as_frequent_as_their_chances():
    family, _ = learnt()
    torch.manual_seed(0)
    outputs = torch.randn(1, 24)
    draws = family.sample(outputs.expand(20_000, 24))
    found = torch.stack([torch.bincount(family.place(draws)[:, cell], minlength=8) for cell in range(3)]) / 20_000
    assert (found - family.chances(outputs)[0]).abs().max() < 0.015
    assert set(draws[:, 0].tolist()) <= set(family.center[0, : family.count[0]].tolist())  # a value each
    cold = family.sample(outputs.expand(500, 24), 1e-3)
    assert (family.place(cold) == family.chances(outputs)[0].argmax(-1)).all()


def test_the_gradient_is_that_of_a_cross_entropy():
    family, sample = learnt()
    outputs, cells = torch.randn(40, 24, requires_grad=True), sample[:40].nan_to_num(0.1)
    family.log_prob(outputs, cells).sum().backward()
    hot = torch.nn.functional.one_hot(family.place(cells), 8).float()
    assert torch.allclose(outputs.grad.view(40, 3, 8), hot - family.chances(outputs.detach()), atol=1e-5)


def test_columns_that_have_no_bins_keep_their_own_family():
    schema = Schema(
        (Column("a", "number", "double"), Column("d", "date", "date32", width=3), Column("c", "count", "int64"))
    )
    likelihood = Likelihood(schema, "bins(5)")
    assert likelihood.width == 5 + 3 + 5
    outputs = torch.randn(7, likelihood.width)
    batch = Batch(torch.rand(7, 5), torch.zeros(7, 0, dtype=torch.long))
    assert likelihood.log_prob(outputs, batch).shape == (7, 5) and likelihood.mean(outputs).shape == (7, 5)
    assert torch.allclose(likelihood.cost(outputs, batch), -likelihood.log_prob(outputs, batch).sum(-1), atol=1e-4)
    assert [cells.tolist() for cells, *_ in likelihood.binned(None)] == [[0, 4]]
    with pytest.raises(SettingError, match="of kind date; wanted: single numbers or counts"):
        Likelihood(schema, {"d": "bins"})
    with pytest.raises(SettingError, match=r"bins\(1\)"):
        Likelihood(schema, "bins(1)")


def test_a_model_with_bins_survives_its_file_and_members_have_bins_too(tmp_path):
    rows = np.random.default_rng(0).gamma(1.0, size=(300, 3))
    plan = Plan("conditional:likelihood=bins(6)", 4, Dense(hidden=(8,)), Training(), epochs=2)
    model = fit(rows, plan)
    model.save(tmp_path / "m.narrows")
    again = load(tmp_path / "m.narrows")
    assert torch.equal(again.module.likelihood.families[0].center, model.module.likelihood.families[0].center)
    assert np.array_equal(again.score(rows), model.score(rows))
    both = fit(rows, Plan("plain:likelihood=bins(6)", 2, Dense(hidden=(8,), members=2), Training(), epochs=2))
    assert both.reconstruct(rows[:5]).num_rows == 5
    with pytest.raises(SettingError, match="transformer"):
        fit(rows, Plan("conditional", 4, "transformer", Training(), epochs=1))
