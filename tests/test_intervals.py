"""Intervals: what reaches a cell is what its quantiles say, shares are those that hidden cells needed."""

from __future__ import annotations

from math import ceil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows import Imputer, impute, load
from narrows.model.binned import Bins
from narrows.tasks.intervals import LEANING, STATED, quantile, reach, taken, widened


def binned(values: np.ndarray, bins: int, seed: int) -> tuple[Bins, torch.Tensor]:
    """Bins learnt from values (R,), and chances (R, 1, bins) that differ from row to row."""
    family = Bins(1, bins)
    family.learn(torch.from_numpy(values).unsqueeze(1))
    outputs = torch.randn(len(values), bins, generator=torch.Generator().manual_seed(seed))
    return family, family.chances(outputs).double()


@settings(deadline=None, max_examples=60)
@given(
    lumps=st.integers(1, 60),
    bins=st.integers(2, 40),
    seed=st.integers(0, 10_000),
    share=st.floats(0.01, 0.99),
)
def test_a_cell_is_inside_the_interval_of_the_share_that_it_needs_and_of_no_smaller_one(lumps, bins, seed, share):
    draw = np.random.default_rng(seed)
    values = draw.integers(0, lumps, 400).astype(float) if seed % 2 else draw.normal(size=400).round(1)
    family, chances = binned(values, bins, seed)
    cells = torch.from_numpy(values).float().unsqueeze(1)
    needed = reach(family, chances, cells)
    low, high = (quantile(family, chances, (1 + side * share) / 2) for side in (-1, 1))
    inside, slack = (low - 1e-5 <= cells) & (cells <= high + 1e-5), 1e-4
    assert bool(inside[needed < share - slack].all())
    assert not bool(((low + 1e-5 < cells) & (cells < high - 1e-5))[needed > share + slack].any())
    assert float(needed.min()) >= 0 and float(needed.max()) <= 1


def test_cells_outside_of_all_bins_need_everything():
    values = np.linspace(0.0, 1.0, 400)
    family, chances = binned(values, 20, 0)
    far = torch.tensor([[-3.0], [4.0]])
    assert torch.equal(reach(family, chances[:2], far), torch.ones(2, 1, dtype=torch.float64))


def test_shares_are_quantiles_of_what_was_needed_and_lean_on_all_where_little_is_known():
    draw = torch.Generator().manual_seed(0)
    needed = torch.rand(20_000, 3, generator=draw, dtype=torch.float64) ** 2  # more often small than a uniform share
    hidden = torch.ones(20_000, 3, dtype=torch.bool)
    hidden[40:, 1], hidden[:, 2] = False, False
    shares = widened(needed, hidden, 20_000)
    assert shares.shape == (3, STATED + 1) and bool((shares.diff(dim=1) >= -1e-12).all())
    torch.testing.assert_close(taken(shares, 0.9)[0], torch.tensor(0.81, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(taken(shares, 0.91)[0], torch.tensor(0.8281, dtype=torch.float64), atol=0.02, rtol=0)
    own = needed[:40, 1].sort().values[36]  # the 37th: 0.9 of 40, and a little for the row to come
    between = (40 * own + LEANING * taken(shares, 0.9)[2]) / (40 + LEANING)
    torch.testing.assert_close(taken(shares, 0.9)[1], between, atol=1e-3, rtol=0)


def test_nothing_hidden_leaves_the_shares_as_stated():
    shares = widened(torch.zeros(5, 2, dtype=torch.float64), torch.zeros(5, 2, dtype=torch.bool), 5)
    torch.testing.assert_close(taken(shares, 0.37), torch.full((2,), 0.37, dtype=torch.float64))


@given(rows=st.integers(1, 60), seed=st.integers(0, 1000))
def test_of_few_rows_more_is_taken_as_conformal_prediction_does(rows, seed):
    needed = torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = taken(widened(needed, torch.ones(rows, 1, dtype=torch.bool), rows), 0.9)
    place = min(rows, ceil(0.9 * (rows + 1) - 1e-9))
    own = needed[:, 0].sort().values[place - 1]
    whole = (rows * own + LEANING * 0.9) / (rows + LEANING)
    torch.testing.assert_close(float(found), float((rows * own + LEANING * whole) / (rows + LEANING)))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_of_lumpy_columns_hold_what_they_promise(tmp_path, share):
    draw = np.random.default_rng(0)
    drive = draw.normal(size=(4_000, 1))
    rows = np.hstack([np.round(4 * drive + draw.normal(size=(4_000, 1))) for _ in range(4)])
    train = pd.DataFrame(np.where(draw.random((3_000, 4)) < 0.3, np.nan, rows[:3_000]), columns=list("abcd"))
    imputer = Imputer(epochs=12, random_state=0).fit(train)
    new, hide = rows[3_000:], draw.random((1_000, 4)) < 0.3
    holes = pd.DataFrame(np.where(hide, np.nan, new), columns=list("abcd"))
    imputer.model_.save(tmp_path / "m.narrows")
    inside = []
    for model in (imputer.model_, load(tmp_path / "m.narrows")):
        told = impute(model, holes, interval=share).to_pandas()
        ends = [told[[name for name in told if name.endswith(end)]].to_numpy() for end in ("_low", "_high")]
        inside.append(((ends[0] <= new) & (new <= ends[1]))[hide].mean())
    assert inside[0] == inside[1]
    assert abs(inside[0] - share) < 0.06
