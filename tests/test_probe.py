"""Probes: readouts against closed forms and slow loops, honest splits, fine-tuning, codes of pixels, every refusal."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, jaccard_score, r2_score
from sklearn.neural_network import MLPClassifier

from command import narrows
from narrows import DataError, Model, ModelFileError, Plan, SettingError, load, probe
from narrows.fitted import Part
from narrows.fitting import fit
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.conv import Conv
from narrows.prepare.preparer import Preparer
from narrows.prepare.statistics import Statistics
from narrows.sources.source import open_source
from narrows.tasks.finetune import Labelled, Tuned
from narrows.tasks.labelled import Target, part, target_of
from narrows.tasks.pixels import PATCH, patches, pixel_codes, trunk_of
from narrows.tasks.probe import Probe
from narrows.tasks.readout import ALPHAS, USUAL, Scaling, classifier, layered, regressor
from narrows.tasks.segments import pixel_figures
from small_models import small_model

ROWS = 400
draws = np.random.default_rng(0)
POINTS = draws.normal(size=(ROWS, 3)) @ draws.normal(size=(3, 8)) + 0.1 * draws.normal(size=(ROWS, 8))
QUARTERS = np.where(POINTS[:, 0] > 0, "up", "down")


@pytest.fixture(scope="module")
def model() -> Model:
    made = small_model(POINTS.astype(np.float32), latent=3)
    made.facts |= {"validation_rows": 0, "best": None}
    return made


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square somewhere, and where it is."""
    noise = np.random.default_rng(1)
    pictures, masks = noise.integers(0, 90, (120, 9, 10)).astype(np.uint8), np.zeros((120, 9, 10), np.uint8)
    for picture, mask, y, x in zip(pictures, masks, noise.integers(0, 5, 120), noise.integers(0, 6, 120), strict=True):
        picture[y : y + 4, x : x + 4] += 110
        mask[y : y + 4, x : x + 4] = 7
    return pictures, masks


@pytest.fixture(scope="module")
def seeing(images) -> Model:
    return fit(images[0], Plan(latent=8, network=Conv(channels=(8, 16), fold=2), epochs=8))


# readouts


def test_scaling_leaves_faint_numbers_faint() -> None:
    values = np.random.default_rng(0).normal([5, -1, 0], [2, 1e-4, 0], (500, 3)).astype(np.float32)
    scaled = Scaling.of(values)(values)
    assert scaled[:, 0].std() == pytest.approx(1, abs=1e-4) and np.abs(scaled.mean(0)).max() < 1e-3
    assert scaled[:, 1].std() < 1e-2 and (scaled[:, 2] == 0).all()


def test_a_regressor_is_ridge_with_the_strength_of_a_slow_loop() -> None:
    noise = np.random.default_rng(3)
    values = noise.normal(size=(30, 4)).astype(np.float32)
    numbers = values @ [3.0, -2.0, 0.5, 0.0] + 100 + noise.normal(size=30)
    scaling = Scaling.of(values)
    x, y = scaling(values).astype(np.float64), (numbers - numbers.mean()) / numbers.std()

    def ridge(rows, alpha):
        middle, at = x[rows].mean(0), y[rows].mean()
        centered = x[rows] - middle
        weight = np.linalg.solve(centered.T @ centered + alpha * np.eye(4), centered.T @ (y[rows] - at))
        return weight, at - middle @ weight

    def left_out(alpha):
        errors = []
        for i in range(30):
            weight, bias = ridge(np.arange(30) != i, alpha)
            errors.append((x[i] @ weight + bias - y[i]) ** 2)
        return np.mean(errors)

    weight, bias = ridge(np.arange(30), min(ALPHAS, key=left_out))
    expected = (x @ weight + bias) * numbers.std() + numbers.mean()
    np.testing.assert_allclose(regressor(values, numbers, scaling).numbers(values), expected, rtol=1e-3)


@pytest.mark.parametrize("count", [2, 4])
def test_a_classifier_is_where_the_gradient_of_loss_and_prior_vanishes(count) -> None:
    """One row a class, so that the strength is the usual one."""
    values = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    classes = np.arange(count)
    readout = classifier(values, classes, count, Scaling.of(values), 0)
    x, y = torch.tensor(readout.scaling(values)), torch.tensor(classes)
    weight = torch.tensor(readout.weight, requires_grad=True)
    bias = torch.tensor(readout.bias, requires_grad=True)
    # of two classes one weight stands for both, which halves the prior
    cost = 0.5 * weight.square().sum() + USUAL * F.cross_entropy(x @ weight + bias, y, reduction="sum")
    for gradient in torch.autograd.grad(cost, [weight, bias]):
        moved = gradient[:, 1] if count == 2 and gradient.ndim == 2 else gradient
        assert moved.abs().max() < 2e-3


def test_classes_that_were_never_met_are_never_answered() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    readout = classifier(values, np.where(values[:, 0] > 0, 3, 1), 5, Scaling.of(values), 0)
    assert set(readout.classes(10 * values)) == {1, 3}
    assert (readout.classes(values) == np.where(values[:, 0] > 0, 3, 1)).mean() > 0.9


@pytest.mark.parametrize("count", [2, 3])
def test_a_hidden_layer_bends_what_a_line_cannot_and_answers_as_scikit_learn(count) -> None:
    values = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    rings = np.digitize(np.square(values).sum(1), [1.0, 3.0][: count - 1])
    scaling = Scaling.of(values)
    assert (classifier(values, rings, count, scaling, 0).classes(values) == rings).mean() < 0.65
    readout = layered(values, rings, count, scaling, 0)
    assert (readout.classes(values) == rings).mean() > 0.95
    peer = MLPClassifier((64,), alpha=1e-3, learning_rate_init=2e-3, batch_size=256, max_iter=20, random_state=0)
    with pytest.warns(ConvergenceWarning):
        peer.fit(scaling(values), rings)
    assert (readout.classes(values) == peer.predict(scaling(values))).all()


# rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(0, 99), st.data())
def test_rows_are_parted_class_by_class(sizes, seed, data) -> None:
    values = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), [4 + n for n in sizes]))
    target = Target("t", "classify", values, tuple(range(len(sizes))))
    pool = len(values) - round(0.2 * len(values))
    labels = data.draw(st.none() | st.integers(len(sizes), pool))
    parted = part(target, labels, seed)
    assert not set(parted.held) & set(parted.pool) and set(parted.known) <= set(parted.pool)
    assert len(parted.held) + len(parted.pool) == len(values)
    assert len(parted.known) == (len(parted.pool) if labels is None else labels)
    assert set(values[parted.known]) == set(range(len(sizes)))
    whole, known = np.bincount(values[parted.pool]), np.bincount(values[parted.known])
    assert np.abs(known - len(parted.known) * whole / whole.sum()).max() <= len(sizes)
    again = part(target, labels, seed)
    assert (again.known == parted.known).all() and (again.held == parted.held).all()


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["a", "b", "a"], "classify", ("a", "b")),
        ([True, False], "classify", (False, True)),
        ([3, 1, 1], "classify", (1, 3)),
        ([0.0, 1.0], "classify", (0.0, 1.0)),
        ([0.5, 1.0], "regress", ()),
        (list(range(50)), "regress", ()),
        (np.arange(8).reshape(2, 2, 2), "segment", tuple(range(8))),
    ],
)
def test_what_a_target_is_follows_from_its_values(values, task, classes) -> None:
    target = target_of(np.array(values), "t", "auto")
    assert target.task == task and target.classes == classes
    if classes:
        assert (target.labels(target.values) == np.array(values)).all()


# probes


def test_classes_are_told_by_column_and_by_array(model) -> None:
    frame = pd.DataFrame(POINTS, columns=[f"x{i}" for i in range(8)])
    mixed = frame.assign(half=QUARTERS)[["half", *frame.columns]]
    by_array, by_column = probe(model, POINTS, QUARTERS), probe(model, mixed, "half")
    assert by_array.figures == by_column.figures and by_array.classes == ("down", "up")
    assert by_array.labelled == 320 and by_array.held_out == 80
    assert by_array.figures["codes"]["accuracy"] > 0.85 > 0.6 > by_array.figures["usual"]["accuracy"]
    assert set(by_array.figures) == {"codes", "raw", "pca", "usual"}
    assert (by_column.predict(mixed) == by_column.predict(frame)).all()
    assert accuracy_score(QUARTERS, by_array.predict(POINTS)) > 0.85
    assert "told from 320" in by_array.table().title


def test_numbers_are_told(model) -> None:
    price = 1000 + 50 * POINTS[:, 1] - 20 * POINTS[:, 4]
    found = probe(model, POINTS, price)
    assert found.task == "regress" and found.figures["raw"]["r2"] > 0.999
    assert found.figures["codes"]["r2"] > 0.8 and abs(found.figures["usual"]["r2"]) < 0.1
    assert r2_score(price, found.predict(POINTS)) > 0.8


def test_what_cannot_be_told_is_not_told(model) -> None:
    """Labels by chance: a probe that looked at held-out rows would tell them."""
    labels = np.random.default_rng(7).integers(0, 2, ROWS)
    for tune in (False, True):
        figures = probe(model, POINTS, labels, tune=tune).figures
        assert all(abs(each["accuracy"] - 0.5) < 4 * 0.5 / 80**0.5 for each in figures.values())


def test_few_labels_and_rows_without(model) -> None:
    holes = np.array(QUARTERS, dtype=object)
    holes[::2] = None
    found = probe(model, POINTS, holes, labels=20)
    assert found.labelled == 20 and found.held_out == 40 and found.figures["codes"]["accuracy"] > 0.7
    assert probe(model, POINTS, QUARTERS, labels=20).figures == probe(model, POINTS, QUARTERS, labels=20).figures


def test_fine_tuning_begins_at_the_frozen_readout(model) -> None:
    codes = model.encode(POINTS)
    readout = classifier(codes, (POINTS[:, 0] > 0).astype(np.int64), 2, Scaling.of(codes), 0)
    (_, batch), *_ = model.batches(POINTS)
    truth = torch.tensor(POINTS[:, 0] > 0).long()
    loss = Tuned(model, readout).eval()(Labelled(**vars(batch), target=truth))
    expected = F.cross_entropy(torch.tensor(readout(codes)), truth, reduction="none")
    torch.testing.assert_close(loss.rows, expected, rtol=1e-4, atol=1e-5)


def test_fine_tuning_bends_what_is_not_linear_and_leaves_the_model_alone(model) -> None:
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    crossed = (POINTS[:, 0] > 0) ^ (POINTS[:, 1] > 0)
    found = probe(model, POINTS, crossed, tune=True)
    assert found.figures["codes"]["accuracy"] < 0.7 < 0.8 < found.figures["tuned"]["accuracy"]
    assert all((tensor == before[name]).all() for name, tensor in model.module.state_dict().items())
    assert accuracy_score(crossed, found.predict(POINTS)) > 0.8
    curved = POINTS[:, 0] ** 2
    assert (told := probe(model, POINTS, curved, tune=True).figures)["tuned"]["r2"] > told["codes"]["r2"] + 0.2


@pytest.mark.parametrize("tune", [False, True])
def test_a_probe_is_kept_with_its_model(model, tmp_path, tune) -> None:
    found = probe(model, POINTS, QUARTERS, tune=tune)
    model.parts["probe"] = found.part()
    model.save(tmp_path / "m.narrows")
    again = Probe.of(load(tmp_path / "m.narrows"))
    del model.parts["probe"]
    assert (again.predict(POINTS) == found.predict(POINTS)).all()
    assert again.to_json() == json.loads(json.dumps(found.to_json()))


def test_what_is_no_probe_is_refused(model) -> None:
    good = probe(model, POINTS, QUARTERS).part()
    with pytest.raises(SettingError, match="without the part"):
        Probe.of(model)
    broken = [
        Part(),
        Part(good.facts, {**good.tensors, "bias": torch.zeros(7)}),
        Part({**good.facts, "more": 1}, good.tensors),
    ]
    for bad in broken:
        model.parts["probe"] = bad
        with pytest.raises(ModelFileError, match="part probe"):
            Probe.of(model)
    del model.parts["probe"]


@pytest.mark.parametrize("recipe", ["vae", "denoising"])
def test_members_are_read_together(recipe) -> None:
    many = small_model(POINTS.astype(np.float32), recipe, latent=2, members=3)
    found = probe(many, POINTS, QUARTERS, tune=True)
    assert found.readout.weight.shape == (6, 2) and found.figures["tuned"]["accuracy"] > 0.8


def test_texts_have_neither_raw_numbers_nor_components() -> None:
    frame = pd.DataFrame(
        {"text": ["the cat sat on the mat", "a dog ran far away now"] * 30, "who": ["cat", "dog"] * 30}
    )
    reading = fit(frame[["text"]], Plan(latent=2, epochs=2, columns={"text": "chars"}))
    found = probe(reading, frame, "who")
    assert set(found.figures) == {"codes", "usual"} and found.figures["codes"]["accuracy"] == 1


def refusals():
    ones = np.zeros((ROWS, 2, 2), int)
    ones[:, 0] = 1
    return [
        ({"target": "x3"}, SettingError, "codes know it"),
        ({"target": "y"}, DataError, "no column 'y'"),
        ({"target": QUARTERS[:50]}, DataError, "targets of 50 rows"),
        ({"target": np.append(QUARTERS, "up")}, DataError, "401 rows for 400"),
        ({"target": ["up"] * ROWS}, DataError, "one class 'up'"),
        ({"target": np.ones(ROWS), "task": "regress"}, DataError, "which is 1 in every row"),
        ({"target": np.full(ROWS, np.nan)}, DataError, "no rows"),
        ({"target": QUARTERS, "task": "regress"}, DataError, "numbers"),
        ({"target": QUARTERS, "task": "rank"}, SettingError, "classify, regress, segment"),
        ({"target": QUARTERS, "task": "segment"}, DataError, "height, width"),
        ({"target": QUARTERS, "labels": 1}, SettingError, "from 2 to 320"),
        ({"target": QUARTERS, "labels": 321}, SettingError, "from 2 to 320"),
        ({"target": np.zeros((ROWS, 2))}, DataError, r"shape \(400, 2\)"),
        ({"target": ones}, SettingError, "network='conv'"),
    ]


@pytest.mark.parametrize(("asked", "error", "said"), refusals())
def test_refusals_say_what_to_do(model, asked, error, said) -> None:
    rows = pd.DataFrame(POINTS, columns=[f"x{i}" for i in range(8)]) if isinstance(asked["target"], str) else POINTS
    owner = fit(rows, Plan(latent=2, epochs=1)) if isinstance(asked["target"], str) else model
    with pytest.raises(error, match=said):
        probe(owner, rows, **asked)


# pixels


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_the_code_of_a_pixel_is_what_the_encoder_sees_with_it_in_the_middle(fold) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (2, 7, 5)).astype(np.uint8)
    owner = untrained(pictures, Conv(channels=(3,), fold=fold))
    (_, batch), *_ = owner.batches(pictures)
    codes = pixel_codes(owner, batch)
    index, trunk = trunk_of(owner)
    image = owner.module.embed(batch).grids[index]
    for y in range(7):
        for x in range(5):
            down, right = (fold // 2 - y) % fold, (fold // 2 - x) % fold
            moved = torch.zeros(2, 7 + down, 5 + right, image.shape[-1])
            moved[:, down:, right:] = image
            rows = -(-moved.shape[1] // fold)
            features = trunk.layers[:2](folded_slowly(moved, fold)).detach()
            expected = features[:, :, (y + down) // fold, (x + right) // fold]
            assert features.shape[2] == rows
            torch.testing.assert_close(codes[:, y, x, :3], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codes[..., 3:], image)


def untrained(pictures, network) -> Model:
    source = open_source(pictures)
    statistics = Statistics(source.schema)
    for row_id, rows in source.batches():
        statistics.update(rows, row_id)
    preparer = Preparer.learn(statistics)
    torch.manual_seed(0)
    module = build(Recipe.parse("plain"), preparer.schema, 2, Network.of(network)).eval()
    return Model(preparer, module, Recipe.parse("plain"), 2, Network.of(network), {})


def folded_slowly(image, fold):
    """(B, H, W, C) -> (B, fold * fold * C, h, w): the patches as channels, zeros where they stick out."""
    count, height, width, channels = image.shape
    tall, wide = -(-height // fold), -(-width // fold)
    patched = torch.zeros(count, fold * fold * channels, tall, wide)
    for y in range(height):
        for x in range(width):
            at = ((y % fold) * fold + x % fold) * channels
            patched[:, at : at + channels, y // fold, x // fold] = image[:, y, x]
    return patched


def test_patches_are_the_pixels_around(seeing, images) -> None:
    (_, batch), *_ = seeing.batches(images[0][:2])
    image, found = seeing.module.embed(batch).grids[0], patches(seeing, batch)
    near = PATCH // 2
    wide = F.pad(image, (0, 0, near, near, near, near))
    for y, x in [(0, 0), (4, 5), (8, 9)]:
        expected = wide[:, y : y + PATCH, x : x + PATCH].permute(0, 3, 1, 2).flatten(1)
        torch.testing.assert_close(found[:, y, x], expected)


def test_pixels_are_classed(seeing, images) -> None:
    pictures, masks = images
    found = probe(seeing, pictures, masks, labels=15)
    assert found.task == "segment" and found.classes == (0, 7) and found.labelled == 15 and found.held_out == 24
    assert found.figures["codes"]["iou"] > 0.85 > 0.6 > found.figures["usual"]["iou"]
    said = found.predict(pictures)
    assert said.shape == masks.shape and set(np.unique(said)) == {0, 7}
    assert accuracy_score(masks.ravel(), said.ravel()) > 0.95
    assert jaccard_score(masks.ravel(), said.ravel(), average="macro") > 0.85
    seeing.parts["pixels"] = found.part()
    assert (Probe.of(seeing, "pixels").predict(pictures[:3]) == said[:3]).all()


def test_figures_of_pixels_are_those_of_scikit_learn() -> None:
    truth, said = np.random.default_rng(0).integers(0, 3, (2, 5, 6, 7))
    told = pixel_figures(truth, said, 4)
    assert told["accuracy"] == pytest.approx(accuracy_score(truth.ravel(), said.ravel()))
    assert told["iou"] == pytest.approx(jaccard_score(truth.ravel(), said.ravel(), average="macro"))


def test_pixels_are_refused_by_name(seeing, images) -> None:
    pictures, masks = images
    with pytest.raises(SettingError, match="frozen"):
        probe(seeing, pictures, masks, tune=True)
    with pytest.raises(DataError, match="masks of"):
        probe(seeing, pictures, masks[:, :8])


# the command line


def test_the_command_line_prints_the_table(tmp_path) -> None:
    frame = pd.DataFrame(POINTS, columns=[f"x{i}" for i in range(8)])
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.assign(half=QUARTERS).to_csv(tmp_path / "xy.csv", index=False)
    narrows("fit", "x.csv", "--latent", 3, "--hidden", 16, "--epochs", 10, "--out", "m.narrows", cwd=tmp_path)
    words = ("probe", "m.narrows", "xy.csv", "--target", "half", "--labels", 30)
    done = narrows(*words, "--tune", cwd=tmp_path)
    assert "told from 30 labelled" in done.stdout and "fine-tuned" in done.stdout and "raw rows" in done.stdout
    told = json.loads(narrows(*words, "--json", cwd=tmp_path).stdout)
    assert told["classes"] == ["down", "up"] and told["held_out"] == 80 and told["figures"]["codes"]["accuracy"] > 0.7
    assert "codes know it" in narrows("probe", "m.narrows", "xy.csv", "--target", "x1", cwd=tmp_path, code=1).stderr
