"""The page: whole, self-contained, safe with hostile names, small, and its images readable by others."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from narrows.errors import DataError, NarrowsError, SettingError
from narrows.fitting import Plan, fit
from narrows.networks.dense import Dense
from narrows.report.charts import Axis, curves
from narrows.report.page import report
from narrows.report.pixels import as_image, png, shrunk, to_bytes
from narrows.report.sections import about, training_curves
from narrows.train.settings import Training
from small_models import small_model

VOID = {"meta", "img", "br", "path", "link", "hr"}
HOSTILE = "</title><script>alert('x')</script>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Reads a page strictly: every tag that opens must close, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "xlink:href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(model, data, path: Path, **settings: int) -> tuple[str, Page]:
    report(model, data, path, **settings)
    text = path.read_text("utf-8")
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "data:audio/wav;base64,")) for link in page.links)
    assert not re.search(r"https?:|@import|url\(", text)
    return text, page


def without_looks(text: str) -> Page:
    """The page but for its looks at what the model has learnt, which `test_looks` is about."""
    return Page(re.sub(r'<section class="look">.*?</section>', "", text, flags=re.DOTALL))


def table(rows: int, **names: str) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    a = rng.normal(size=rows)
    frame = pd.DataFrame(
        {
            "number": a,
            "twice": 2 * a,
            "word": rng.choice(["red", "green", "<b>blue</b>"], rows),
            "when": pd.date_range("2021-05-01", periods=rows, freq="1h", tz="Europe/Berlin"),
            "nothing": pd.Series([None] * rows, dtype="float64"),
        }
    )
    frame.loc[: rows // 3, "twice"] = np.nan
    return frame.rename(columns=names)


def decoded(data: bytes) -> np.ndarray:
    """Pixels of a PNG with filter 0 on every line, read by the letter of the standard."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest, list(chunks)) == (8, [0, 0, 0], [b"IHDR", b"IDAT", b"IEND"])
    planes = {0: 1, 2: 3}[color]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * planes)
    assert not lines[:, 0].any()
    pixels = lines[:, 1:].reshape(height, width, planes)
    return pixels[..., 0] if planes == 1 else pixels


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_png_is_read_back(pixels):
    np.testing.assert_array_equal(decoded(png(pixels)), pixels)
    colored = np.stack([pixels, 255 - pixels, pixels // 2], axis=-1)
    np.testing.assert_array_equal(decoded(png(colored)), colored)


def test_pixels_of_every_layout():
    rng = np.random.default_rng(0)
    for shape, expected in [((5, 4), (5, 4)), ((5, 4, 1), (5, 4)), ((1, 5, 4), (5, 4)), ((3, 5, 4), (5, 4, 3))]:
        assert as_image(rng.random(shape)).shape == expected
    large = rng.random((1000, 300, 3))
    small = shrunk(large)
    assert max(small.shape) <= 112 and small.mean() == pytest.approx(large[:999, :297].mean(), abs=0.01)
    assert to_bytes(np.array([[-1.0, 0.5, 2.0, np.nan]])).tolist() == [[0, 128, 255, 0]]


@pytest.mark.parametrize("recipe", ["plain", "vae"])
def test_page_of_a_mixed_table(tmp_path, recipe):
    data = table(200)
    text, page = page_of(small_model(data, recipe, 3, steps=30), data, tmp_path / "page.html")
    for words in ("How well rows come back", "Map of the codes", "Training", "Rows that fit worst", "missing", "twice"):
        assert words in page.words
    assert without_looks(text).tags.count("svg") == 2


def test_page_of_images_shows_them_as_they_are(tmp_path):
    text, _ = page_of(small_model("digits", latent=2, steps=5), "digits", tmp_path / "page.html", rows=5)
    images = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert without_looks(text).tags.count("img") == 5 * 3 + 8 * 3
    assert {decoded(image).shape[:2] for image in images} == {(8, 8)}


@pytest.mark.parametrize(("columns", "latent"), [(40, 1), (5, 3)])
def test_page_of_a_matrix_with_holes_and_members(tmp_path, columns, latent):
    data = np.random.default_rng(0).normal(size=(60, columns)).cumsum(1)
    data[3, 2:4] = np.nan
    text, _ = page_of(small_model(data, "plain", latent, members=2, steps=5), data, tmp_path / "page.html", rows=3)
    assert without_looks(text).tags.count("svg") == (2 + 3 + 8 if columns == 40 else 2)


def test_hostile_names_and_values_stay_text(tmp_path):
    data = table(60, number=HOSTILE)
    data["word"] = np.where(np.arange(60) % 2, "<img src=x onerror=alert(1)>", "&amp;")
    text, page = page_of(small_model(data, latent=2, steps=5), data, tmp_path / "page.html")
    assert HOSTILE in page.words
    assert "<script" not in text and "<img src=x" not in text


def test_page_stays_small_for_many_rows_and_columns(tmp_path):
    data = pd.DataFrame(np.random.default_rng(0).normal(size=(6_000, 80)), columns=[f"c{i}" for i in range(80)])
    text, page = page_of(small_model(data[:200], latent=4, steps=2), data, tmp_path / "page.html")
    assert len(text) < 200_000
    assert "2,000 of 6,000" in page.words and "60 of 80 columns" in page.words


@pytest.mark.parametrize("rows", [1, 2])
def test_page_of_one_row_or_two(tmp_path, rows):
    data = table(50)
    page_of(small_model(data, latent=4, steps=2), data[:rows], tmp_path / "page.html")


def test_the_same_page_twice(tmp_path):
    data = table(50)
    model = small_model(data, latent=2, steps=2)
    assert page_of(model, data, tmp_path / "a.html")[0] == page_of(model, data, tmp_path / "b.html")[0]


def test_a_model_without_records_or_baseline_still_has_a_page(tmp_path):
    data = table(50)
    model = small_model(data, latent=2, steps=2, baseline=False)
    model.facts = {"rows": 50}
    _, page = page_of(model, data, tmp_path / "page.html")
    assert "no record of its training" in page.words and "the evaluated rows" in page.words


@pytest.mark.parametrize(
    ("network", "recipe", "said"),
    [
        (Dense(hidden=()), "plain", "3 → 2 → 3"),
        (Dense(hidden=(), decoder=(7,)), "plain", "3 → 2 → 7 → 3"),
        (Dense(hidden=(9, 5)), "plain", "3 → 9 → 5 → 2 → 5 → 9 → 3"),
        (Dense(hidden=(9, 5), decoder=()), "vae", "3 → 9 → 5 → 2 → 3"),
        (Dense(), "linear", "3 → 2 → 3"),
        (Dense(), "plain", "3 → 128 → 64 → 2 → 64 → 128 → 3"),
    ],
)
def test_the_layers_told_are_those_there_are(network, recipe, said):
    data = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    model = fit(data, Plan(recipe, 2, network, epochs=1, training=Training(validation=0)))
    told = dict(about(model))["Network"]
    assert told.startswith(f"{said}; ")
    layers = [m for m in model.module.modules() if isinstance(m, torch.nn.Linear)]
    outputs = [layer.out_features for layer in layers]
    assert outputs == [
        int(width) * (2 if recipe == "vae" and i == len(network.hidden or ()) else 1)
        for i, width in enumerate(said.split(" → ")[1:])
    ]


def test_epochs_are_counted_where_long_ones_have_several_records(tmp_path):
    data = table(50)
    model = small_model(data, latent=2, steps=2)
    records = [{"epoch": 1, "rows": 20 * (i + 1), "loss": 3.0 - i, "val_loss": 4.0} for i in range(3)]
    model.facts |= {"rows": 60, "epochs": 1, "records": records, "best": 2, "validation_rows": 9}
    said = dict(about(model))
    assert said["Training"] == "1 epoch; stopped because all planned epochs were done"
    assert said["Training rows"] == "60, and 9 held out for validation"
    line = re.search(r'class="line loss" d="([^"]+)"', training_curves(model))[1]
    across = [float(x) for x in re.findall(r"[ML]?(-?[\d.]+)[ ,]-?[\d.]+", line)]
    assert len(set(across)) == 3 and across == sorted(across)


def test_nothing_is_left_behind_when_it_cannot_be_done(tmp_path):
    data = table(50)
    model = small_model(data, latent=2, steps=2)
    with pytest.raises(DataError):
        report(model, data[:0], tmp_path / "page.html")
    with pytest.raises(SettingError):
        report(model, data, tmp_path / "page.html", rows=0)
    with pytest.raises(NarrowsError):
        report(model, data, tmp_path / "missing" / "page.html")
    assert not list(tmp_path.iterdir())


@settings(max_examples=200)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=9), st.booleans())
def test_ticks_are_round_few_and_inside(values, log):
    numbers = np.abs(np.array(values)) + 1e-6 if log else np.array(values)
    axis = Axis.over(numbers, 0.0, 100.0, log)
    ticks = axis.ticks()
    assert len(ticks) <= 12 or log
    assert all(-1e-6 <= at <= 100 + 1e-6 for at in axis.at(ticks)) and np.isfinite(axis.at(numbers)).all()
    assert log or len(ticks) >= 2


@pytest.mark.parametrize("losses", [[5.0], [100.0, 1.0, 0.1], [3.0, -2.0], [1.0, float("nan"), 2.0], [float("nan")]])
def test_curves_of_all_kinds(losses):
    x = np.arange(1.0, len(losses) + 1)
    drawing = curves([("loss", x, np.array(losses))], "epoch", "loss")
    Page(str(drawing))
    assert "nan" not in drawing and ("log scale" in drawing) == (losses[0] == 100.0)
