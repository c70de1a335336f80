"""Numbers read in pieces: against a loop, hidden numbers say nothing, models of it load, and what does not fit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from narrows import Dense, Imputer, Plan, SettingError, fit, impute, load
from narrows.model.embed import Embed
from narrows.model.numbers import OUTERMOST, Pieces
from narrows.schema import Batch, Column, Schema
from narrows.tasks.purposes import CONDITIONAL, FEW, PURPOSES

SMALL = Dense(hidden=(16,))


def mixed(rows, seed=0):
    """Two numbers, a count, and a category."""
    draw = np.random.default_rng(seed)
    numbers = draw.normal(size=(rows, 2))
    frame = pd.DataFrame({"a": numbers[:, 0], "b": numbers.sum(1), "n": draw.poisson(3, rows)})
    return frame.assign(town=draw.choice(["Bern", "Chur"], rows))


def test_a_number_fills_its_pieces_one_after_the_other():
    count = 5
    ends = [-OUTERMOST, *norm.ppf(np.arange(1, count) / count), OUTERMOST]
    numbers = torch.tensor([[0.3, 9.0], [-1.2, -9.0], [ends[2], 0.0]])
    found = Pieces([0, 1], count)(numbers, None).view(3, 2, count).numpy()
    for row in range(3):
        for cell in range(2):
            for piece, (low, high) in enumerate(pairwise(ends)):
                wanted = min(max((float(numbers[row, cell]) - low) / (high - low), 0), 1) - 0.5
                assert found[row, cell, piece] == pytest.approx(wanted, abs=1e-5)


def test_hidden_numbers_say_nothing_and_counts_are_not_cut():
    columns = (Column("a", "number", "double"), Column("n", "count", "int64"), Column("b", "number", "double"))
    plain, cut = Embed(Schema(columns), masking=True), Embed(Schema(columns), masking=True, pieces=4)
    assert cut.width == plain.width + 2 * 4
    seen = torch.tensor([[True, True, False]])
    rows = [Batch(torch.tensor([[0.5, 2.0, b]]), torch.zeros(1, 0, dtype=torch.long), seen) for b in (-1.0, 1.0)]
    one, other = (cut(row) for row in rows)
    assert torch.equal(one, other) and one.shape == (1, cut.width)
    shown = [cut(Batch(row.numbers, row.codes)) for row in rows]
    assert not torch.equal(*shown)


def test_imputing_cuts_numbers_of_many_rows_unless_told_otherwise(tmp_path):
    many, few = 2 * FEW, FEW // 2
    for rows, recipe, pieces in ((few, CONDITIONAL, 0), (many, CONDITIONAL, 16), (many, f"{CONDITIONAL}:pieces=0", 0)):
        plan = PURPOSES["impute"].settle(Plan(recipe, 4, SMALL, epochs=1))
        model = fit(mixed(rows), plan)
        assert model.recipe.arguments["pieces"] == pieces
        model.save(tmp_path / "m.narrows")
        new = mixed(50, seed=1)
        assert np.array_equal(load(tmp_path / "m.narrows").encode(new), model.encode(new))


def test_rows_without_numbers_have_nothing_to_cut():
    words = mixed(60)[["town"]].assign(also=["x", "y", "z"] * 20)
    plan = PURPOSES["impute"].settle(Plan("conditional:pieces=8", 4, SMALL, epochs=1))
    filled = impute(fit(words, plan, learn=PURPOSES["impute"].learn), words.mask(words == "x"))
    assert filled.column("also").null_count == 0


@pytest.mark.parametrize("pieces", [1, -3, 65, 2.5])
def test_pieces_out_of_range_are_refused(pieces):
    with pytest.raises(SettingError, match="pieces"):
        fit(mixed(50), Plan(f"conditional:pieces={pieces}", 2, SMALL, epochs=1))


def test_a_transformer_reads_cells_whole():
    with pytest.raises(SettingError, match="in pieces"):
        fit(mixed(50)[["a", "b"]], Plan("conditional:pieces=4,likelihood=mse", 2, "transformer", epochs=1))


def test_numbers_that_only_pieces_tell_apart_are_told():
    draw = np.random.default_rng(0)
    place = draw.uniform(-1, 1, 6_000)
    frame = pd.DataFrame({"place": place, "price": np.sin(40 * place) + 0.05 * draw.normal(size=6_000)})
    holes = frame.assign(price=np.nan)
    errors = {}
    for recipe in ("conditional:pieces=0", "conditional:pieces=32"):
        filled = Imputer(recipe=recipe, network=SMALL, latent=16, epochs=30, random_state=0).fit(frame).transform(holes)
        errors[recipe] = float(np.square(filled["price"] - frame["price"]).mean())
    assert errors["conditional:pieces=32"] < 0.7 * errors["conditional:pieces=0"]
