"""Snapshots leave training as it was and outlive a kill; what the page shows of a network's inside is what is there."""

from __future__ import annotations

import base64
import html
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from narrows.errors import ModelFileError
from narrows.fitted import Part
from narrows.fitting import SHOWN_CELLS, Plan, fit
from narrows.networks.conv import Conv, ConvEncoder
from narrows.networks.grids import Grid, folded
from narrows.report.filters import first_layer, inputs_of, kernels_of, weights_of
from narrows.report.gather import gather
from narrows.report.looks import activating, exchanged, looks, moved, samples, through_training, traversals, typical
from narrows.report.sheets import Lines, sheets, way_of
from narrows.tasks.baseline import Baseline
from narrows.tasks.generate import generate
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.snapshots import Snapshots, wanted
from small_models import small_model
from small_run import FailingAt, rows_of_rank, small_module
from test_report import decoded, page_of, table

pytestmark = pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning")


def watched_run(folder=None, resume=False, fail_at=0, snapshots=True, epochs=9):
    """A run with noise, dropout, batch statistics and validation, and what was kept of it on the way."""
    module, rows = small_module("denoising:noise=0.1,mask=0.2", dropout=0.1), rows_of_rank(5, seed=3)
    kept = Snapshots(lambda: module.decode(module.encode(rows).z).numbers()[0].detach()) if snapshots else None
    watch = Watch(folder=folder, resume=resume, snapshots=kept)
    stream = FailingAt(fail_at) if fail_at else Resident(rows_of_rank(100), 16, seed=5)
    training = Training(batch_size=16, optimizer="muon", checkpoint_every=0.0)
    held = Resident(rows_of_rank(40, seed=1), 16, shuffle=False)
    train(module, stream, held, training, epochs=epochs, seed=7, watch=watch)
    return module, kept


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_is_the_same_with_and_without_snapshots():
    watched, kept = watched_run()
    unwatched, _ = watched_run(snapshots=False)
    assert same(watched.state_dict(), unwatched.state_dict())
    assert list(kept.taken) == wanted(9) == [0, 1, 2, 4, 6]
    rows = rows_of_rank(5, seed=3)
    fresh = small_module("denoising:noise=0.1,mask=0.2", dropout=0.1).eval()
    torch.testing.assert_close(kept.taken[0], fresh.decode(fresh.encode(rows).z).numbers()[0].detach())
    assert not torch.equal(kept.taken[4], kept.taken[6])


@pytest.mark.parametrize("step", [1, 2, 8, 9, 15, 29, 50])
def test_snapshots_of_a_run_that_broke_down_go_on_where_they_were(tmp_path, step):
    _, whole = watched_run()
    with pytest.raises(ConnectionError):
        watched_run(tmp_path, fail_at=step)
    _, resumed = watched_run(tmp_path, resume=True)
    assert same(whole.tensors(), resumed.tensors())


@pytest.mark.parametrize("epochs", [1, 2, 5, 10, 57, 200, 4000])
def test_looks_are_few_and_lie_before_the_end(epochs):
    looks = wanted(epochs)
    assert looks[0] == 0 and len(looks) <= 6 and max(looks) < epochs and looks == sorted(set(looks))
    if epochs >= 5:
        assert len(looks) >= 4


def test_a_fit_keeps_how_rows_held_out_came_back():
    data = np.random.default_rng(0).normal(size=(200, 5)).cumsum(1)
    model = fit(data, Plan("vae", 2, epochs=6))
    part = model.parts["snapshots"]
    assert (
        part.facts["epochs"][0] == 0
        and part.facts["epochs"][-1] == model.facts["records"][model.facts["best"]]["epoch"]
    )
    assert part.tensors["cells"].shape == (len(part.facts["epochs"]), 8, 5)
    wide = np.zeros((30, SHOWN_CELLS + 1), np.float32)
    assert "snapshots" not in fit(wide, Plan("linear", 1, epochs=1)).parts
    assert "snapshots" not in fit(data, Plan("linear", 1, epochs=1, training=Training(validation=0))).parts


def gathered_of(model, data):
    source = model.source(data)
    return gather(model, Baseline.of(model, source), source, 12, 4)


@pytest.mark.parametrize(("axes", "fold", "kernel"), [(2, 1, 3), (2, 2, 3), (2, 2, 5), (2, 4, 3), (1, 1, 5), (1, 4, 3)])
def test_a_kernel_is_what_its_channel_answers(axes, fold, kernel):
    torch.manual_seed(0)
    side, channels = 6 * fold, 2
    grid = Grid((side,) * axes, channels, channels)
    encoder = ConvEncoder(Conv(kernel=kernel, fold=fold), grid, fold, (4,))
    rows = torch.randn(1, *[side] * axes, channels)
    answers = encoder.layers[0](folded(rows, fold).movedim(-1, 1))[0]
    kernels, middle, reach = kernels_of(encoder, channels), 2, kernel // 2
    assert kernels.shape == (4, *[kernel * fold] * axes, channels)
    window = (slice((middle - reach) * fold, (middle + reach + 1) * fold),) * axes
    found = (kernels * rows[0][window]).flatten(1).sum(1) + encoder.layers[0].bias
    torch.testing.assert_close(found, answers[(slice(None), *[middle] * axes)])


@pytest.mark.parametrize("members", [None, 2])
def test_a_units_weights_are_what_it_answers_to_each_column(members):
    data = table(80)
    data["picture"] = 0.0
    model = small_model(data, members=members, steps=5)
    weights, inputs = weights_of(model.module.encoder), inputs_of(model.module.embed, model)
    batch = model.preparer.prepare(pa.RecordBatch.from_pandas(data[40:42], preserve_index=False))
    x = model.module.embed(batch)
    for number in ("number", "twice"):
        cell = model.schema.spans[number].start
        changed = batch.numbers.clone()
        changed[:, cell] += 1.0
        gap = model.module.embed(type(batch)(changed, batch.codes, batch.seen)) - x
        torch.testing.assert_close((gap @ weights.T)[0], weights[:, inputs[number]].squeeze(1))
    at = model.schema.spans["word"].start - model.schema.numbers
    for level in range(model.schema["word"].levels):
        codes = batch.codes.clone()
        codes[:, at] = level
        hot = model.module.embed(type(batch)(batch.numbers, codes, batch.seen))[0, inputs["word"]]
        assert hot.tolist() == [float(i == level) for i in range(len(inputs["word"]))]


def test_moves_change_one_number_and_end_where_no_row_has_been():
    codes = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 0.01, 2.0, 0.5])
    codes[:, 3] = codes[:, 3].clamp_min(0)
    usual = typical(codes)
    assert any(torch.equal(usual, code) for code in codes)
    labels, headings, paths = moved(codes, usual, "lines")
    assert [label.split()[1] for label in labels] == ["0", "3", "1", "4"] and headings[2] == "as it is"
    for number, path in zip([0, 3, 1, 4], paths.view(4, 5, 5), strict=True):
        others = [i for i in range(5) if i != number]
        assert torch.equal(path[:, others], usual[others].expand(5, 4)) and torch.equal(path[2], usual)
        assert (path[:, number].diff() >= 0).all() and path[:, number].min() >= codes[:, number].min()
        steps = (path[:, number] - usual[number]) / codes[:, number].std()
        inside = (path[:, number] > codes[:, number].min()) & (path[:, number] < codes[:, number].max())
        torch.testing.assert_close(steps[inside], torch.linspace(-2, 2, 5)[inside])


@pytest.mark.parametrize("recipe", ["vq:levels=8", "fsq:levels=4"])
def test_entries_are_exchanged_for_those_that_are_met(recipe):
    model = small_model("digits", recipe, 8, steps=40)
    codes = gathered_of(model, "digits").codes
    usual = typical(codes)
    labels, headings, paths = exchanged(model, codes, usual, "picture")
    width = 4 if recipe.startswith("vq") else 1
    assert len(paths) == len(labels) * len(headings) and len(headings) > 1
    for label, path in zip(labels, paths.view(len(labels), len(headings), 8), strict=True):
        at = int(label.split()[1]) * width
        here = slice(at, at + width)
        assert torch.equal(
            torch.cat([path[:, :at], path[:, at + width :]], 1)[0], torch.cat([usual[:at], usual[at + width :]])
        )
        counts = [int((codes[:, here] == entry).all(1).sum()) for entry in path[:, here]]
        assert counts == sorted(counts, reverse=True) and counts[-1] > 0
        assert len({tuple(entry.tolist()) for entry in path[:, here]}) == len(headings)


def test_rows_that_activate_a_number_are_those_with_the_most_of_it():
    model = small_model("digits", "sparse:weight=0.02", 10, steps=60)
    gathered = gathered_of(model, "digits")
    codes = torch.from_numpy(model.encode("digits"))
    batch = next(batch for _, batch in model.batches("digits"))
    assert gathered.activating
    for each in gathered.activating:
        top = codes[:, each.number].topk(len(each.values))
        torch.testing.assert_close(each.values, top.values)
        torch.testing.assert_close(each.rows.numbers, batch.numbers[top.indices])
        assert (each.values > 0).all()
    look = activating(model, gathered, "picture")
    images = [decoded(base64.b64decode(uri.partition(",")[2])) for uri in look.sheets[0].lines[0][1]]
    shown = gathered.activating[0].rows.numbers.view(-1, 8, 8)
    np.testing.assert_allclose(np.stack(images) / 255, shown[: len(images)], atol=0.5 / 255 + 1e-6)


def test_new_rows_are_those_of_generate_and_none_without_a_prior():
    data = table(100).drop(columns="nothing")
    model = small_model(data, "vae", 3, steps=30)
    shown = samples(model, "table").sheets[0]
    rows = generate(model, 8, seed=0).to_pydict()
    assert shown.columns == ["number", "twice", "word", "when"]
    said = [values for _, values in shown.lines[0][1]]
    assert [values[2] for values in said] == rows["word"]
    assert [float(values[0]) for values in said] == pytest.approx(rows["number"], rel=0.01)
    assert samples(small_model(data, "plain", 3, steps=2), "table") is None


def test_through_training_shows_the_last_look_as_the_model_gives_rows_back():
    data = np.random.default_rng(0).integers(0, 255, (150, 6, 5), dtype=np.uint8)
    model = fit(data, Plan("plain", 3, "dense", epochs=12))
    look = through_training(model, "picture")
    assert look.sheets[0].headings[0] == "untrained" and look.sheets[0].headings[-1].endswith("epochs")
    assert len(look.sheets[0].lines) == 6 and all(
        len(images) == len(look.sheets[0].headings) for _, images in look.sheets[0].lines
    )
    part = model.parts["snapshots"]
    whole = {tuple(row.tolist()) for row in model.cells(torch.from_numpy(model.encode(data)))[0]}
    assert {tuple(row.tolist()) for row in part.tensors["cells"][-1]} <= whole
    for facts, cells in (({}, part.tensors["cells"]), (part.facts, torch.zeros(6, 8, 7)), (part.facts, torch.zeros(3))):
        model.parts["snapshots"] = Part(facts, {"cells": cells})
        with pytest.raises(ModelFileError, match="part snapshots"):
            through_training(model, "picture")


def test_of_many_columns_those_are_shown_that_change():
    data = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 20)), columns=[f"c{i}" for i in range(20)])
    model = small_model(data, steps=2)
    numbers = torch.zeros(6, 20)
    numbers[1, [3, 9, 17]] = 1.0
    (sheet,) = sheets(model, Lines(["a", "b"], ["1.", "2.", "3."], numbers, torch.zeros(6, 0, dtype=torch.long)))
    assert {"c3", "c9", "c17"} <= set(sheet.columns) and len(sheet.columns) == 8
    assert [label for label, _ in sheet.lines] == ["a", "b"] and [row[0] for row in sheet.lines[1][1]] == [
        "1.",
        "2.",
        "3.",
    ]


def titles(model, data, path):
    text, _ = page_of(model, data, path, rows=4, worst=2)
    return [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", text)]


CODE, MOST, BETWEEN = "What the code's numbers stand for", "Rows with most of a number", "Between rows"


def test_looks_that_make_no_sense_are_left_out(tmp_path):
    data, path = table(120), tmp_path / "page.html"
    shown = titles(small_model(data, "vae", 3, steps=20), data, path)
    assert {CODE, MOST, "New rows", "First layer"} <= set(shown) and BETWEEN not in shown
    shown = titles(small_model("digits", "plain", 3, steps=20), "digits", path)
    assert {CODE, MOST, BETWEEN, "First layer"} <= set(shown) and "New rows" not in shown
    shown = titles(small_model("digits", "vq:levels=16", 8, steps=20), "digits", path)
    assert CODE in shown and not {MOST, BETWEEN} & set(shown)
    shown = titles(small_model(data, "plain", 3, members=2, steps=5), data, path)
    assert "First layer" in shown and not {CODE, MOST} & set(shown)
    shown = titles(fit(data, Plan("plain", 2, "transformer", epochs=1)), data, path)
    assert "Through training" in shown and "First layer" not in shown
    model = small_model(data[:1], "plain", 3, steps=2)
    assert traversals(model, torch.zeros(1, 3), "table") is None
    assert not {CODE, MOST} & set(titles(model, data[:1], path))


def test_looks_at_every_kind_of_column_at_once(tmp_path):
    rng = np.random.default_rng(0)
    data = pa.table(
        {
            "number": rng.normal(size=60),
            "short": pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(size=(60, 3))),
            "long": pa.FixedShapeTensorArray.from_numpy_ndarray(rng.normal(size=(60, 15))),
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(rng.integers(0, 255, (60, 5, 4, 3), dtype=np.uint8)),
            "text": [f"note {i % 7}" for i in range(60)],
            "series": pa.array([rng.normal(size=6).tolist() for _ in range(60)], pa.list_(pa.float64())),
            "bag": pa.array([[("a", 1.0), (str(i % 9), 2.0)] for i in range(60)], pa.map_(pa.string(), pa.float32())),
        }
    )
    plan = Plan("vae:likelihood=mse", 4, epochs=1, columns={"text": "words", "series": "series"})
    model = fit(data, plan)
    assert way_of(model.schema) == "picture"
    shown = looks(model, gathered_of(model, data))
    assert [look.title for look in shown][:1] == [CODE] and all(look.note.endswith(".") for look in shown)
    for look in shown[:-1]:
        assert {sheet.way for sheet in look.sheets} == {"picture", "lines", "table"}
    page_of(model, data, tmp_path / "page.html", rows=3, worst=1)
    dense = fit(data, Plan("plain", 2, "dense", epochs=1, columns={"text": "words", "series": "series"}))
    layer = first_layer(dense)
    assert [name for name, _ in layer.pictures] == ["image"] and [name for name, _ in layer.charts] == [
        "long",
        "series",
    ]
    assert [name for name, _ in layer.map] == ["number", "short"]
