"""Pages of texts, series, sounds, bags and images: what they show is what the rows hold, and nothing of it escapes."""

from __future__ import annotations

import base64
import html
import io
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from narrows.fitted import Model
from narrows.fitting import Plan, fit
from narrows.networks.dense import Dense
from narrows.report.charts import overlay
from narrows.report.sounds import BANDS, FRAMES, beginning, decibels, picture, playable
from narrows.report.texts import LONGEST, differing
from narrows.sources.reading import Reading
from narrows.sources.source import open_source
from narrows.tasks.baseline import learn_baseline
from narrows.train.settings import Training
from test_report import HOSTILE, decoded, page_of, without_looks

pytestmark = [
    pytest.mark.filterwarnings("ignore::narrows.errors.FitWarning"),
    pytest.mark.filterwarnings("ignore::narrows.errors.DataWarning"),
]
RATE = 8_000


def trained(data: Any, **columns: str) -> Model:
    plan = Plan("plain", 3, Dense(hidden=(8,)), Training(optimizer="adamw"), epochs=1, columns=columns)
    return fit(data, plan, learn={"baseline": learn_baseline})


def plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", markup))


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_diff_keeps_every_character_and_marks_only_what_differs(original, guess):
    ours, theirs = differing(original, guess)
    for text, markup in ((original, ours), (guess, theirs)):
        shown = plain(markup)
        assert len(shown) == len(text)
        for there, sign in zip(text, shown, strict=True):
            assert sign == there or not there.isprintable() or (there, sign) == (" ", "·")
        assert "\n" not in shown and not re.sub(r"</?mark>|&[a-z0-9#]+;|[^<>&]", "", markup)
    kept = [plain(re.sub(r"<mark>.*?</mark>", "", markup)) for markup in (ours, theirs)]
    assert kept[0] == kept[1]
    assert ("<mark>" in ours + theirs) == (original != guess)


def test_a_diff_shows_what_cannot_be_seen_and_cuts_what_is_too_long():
    ours, theirs = differing("a b\n\tc", "ab<\n\tc")
    assert ours == "a<mark>·</mark>b↵⇥c" and theirs == "ab<mark>&lt;</mark>↵⇥c"
    assert [len(plain(text)) for text in differing("x" * 5_000, "x" * 5_000)] == [LONGEST] * 2


def tone(hertz: float, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [4_000, 8_000, 22_050, 44_100])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_tone_is_bright_in_its_band_and_low_ones_lie_at_the_bottom(rate, share):
    hertz = share * rate / 2
    found = decibels(tone(hertz, rate=rate), rate)
    assert found.shape[0] == BANDS and 20 < found.shape[1] <= FRAMES
    row = np.bincount(found.argmax(0)).argmax()
    assert abs((BANDS - 0.5 - row) - share * BANDS) <= 1
    assert -12 < found.max() < 3


@pytest.mark.parametrize("samples", [0, 1, 100, 300, 20_000])
def test_spectra_of_any_length_are_small_pictures(samples):
    found = decibels(np.ones(samples), RATE)
    assert found.shape[0] == BANDS and 1 <= found.shape[1] <= FRAMES and np.isfinite(found).all()
    pixels = decoded(base64.b64decode(picture(found, 0.0).partition(",")[2]))
    assert pixels.shape == (*found.shape, 3)


def test_what_is_played_is_what_the_wave_module_reads():
    samples = np.clip(1.5 * tone(440, 0.1), -2, 2)
    data = base64.b64decode(playable(samples, 11_025).partition(",")[2])
    with wave.open(io.BytesIO(data)) as sound:
        assert sound.getparams()[:4] == (1, 2, 11_025, len(samples))
        read = np.frombuffer(sound.readframes(len(samples)), "<i2") / 32_767
    np.testing.assert_allclose(read, samples.clip(-1, 1), atol=1e-4)


def test_the_beginning_is_two_seconds_of_one_channel_without_holes():
    both = np.stack([tone(100, 3.0), np.full(3 * RATE, np.nan)], axis=1)
    assert beginning(both, RATE).shape == (2 * RATE,) and np.isfinite(beginning(both, RATE)).all()
    np.testing.assert_array_equal(beginning(tone(100), RATE), tone(100))


def sounds(folder: Path, kind: str, rate: int = RATE, files: int = 40) -> list[np.ndarray]:
    """Tones as WAV files, and what is in them."""
    rng = np.random.default_rng(0)
    lengths = np.full(files, 0.1) if kind == "fixed" else rng.uniform(0.05, 0.15, files)
    waves = [0.5 * tone(rng.uniform(100, 2000), length, rate) for length in lengths]
    for i, samples in enumerate(waves):
        with wave.open(str(folder / f"{i:03}.wav"), "wb") as sound:
            sound.setparams((1, 2, rate, len(samples), "NONE", ""))
            sound.writeframes(np.rint(samples * 32_767).astype("<i2").tobytes())
    return waves


@pytest.mark.parametrize(("kind", "word"), [("fixed", "wave"), ("ragged", "wave"), ("ragged", "spectra")])
def test_page_of_sounds_shows_and_plays_them(tmp_path, kind, word):
    pytest.importorskip("soundfile")
    waves = sounds(tmp_path, kind)
    data = open_source(str(tmp_path), reading=Reading(window=len(waves[0]) if kind == "fixed" else None))
    model = trained(data, sound=word)
    text, page = page_of(model, data, tmp_path / "page.html", rows=4, worst=2)
    assert page.tags.count("audio") == 2 * (4 + 2) and page.tags.count("img") == 3 * (4 + 2)
    played = [base64.b64decode(found) for found in re.findall(r'src="data:audio/wav;base64,([^"]+)"', text)]
    (row, *_) = (int(found) for found in re.findall(r"row (\d+), original", text))
    with wave.open(io.BytesIO(played[0])) as sound:
        assert sound.getframerate() == RATE
        read = np.frombuffer(sound.readframes(sound.getnframes()), "<i2") / 32_767
    if word == "wave":
        np.testing.assert_allclose(read, waves[row], atol=1e-3)
    else:  # phases are not kept
        assert abs(len(read) - len(waves[row])) <= 1
        assert np.std(read) == pytest.approx(np.std(waves[row]), rel=0.2)


def test_sounds_are_played_as_far_as_the_page_stays_small(tmp_path):
    pytest.importorskip("soundfile")
    sounds(tmp_path, "ragged", 44_100, 25)
    text, page = page_of(trained(str(tmp_path), sound="wave"), str(tmp_path), tmp_path / "page.html")
    assert 0 < page.tags.count("audio") < 2 * (6 + 8) and len(text) < 3_000_000


def test_page_of_texts_shows_them_whole_escaped_and_beside_what_came_back(tmp_path):
    texts = [HOSTILE, HOSTILE, HOSTILE, "two\nlines", "two\nlines", "", *(f"some words {i}" for i in range(30))]
    data = pa.table({"text": pa.array([*texts, None])})
    text, page = page_of(trained(data, text="chars"), data, tmp_path / "page.html", rows=40, worst=2)
    assert text.count('<div class="diff">') == 37 + 2
    assert HOSTILE in page.words.replace("·", " ") and "two↵lines" in page.words and "<script" not in text
    assert "bits a token" in page.words and "missing" in page.words
    assert "bits a character" in page.words and "unigram" in page.words and "PCA 0" not in page.words


def test_page_of_ragged_series_draws_each_to_its_own_end(tmp_path):
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=rng.integers(3, 20)).cumsum().tolist() for _ in range(40)]
    data = pa.table({"x": pa.array(rows, pa.list_(pa.float64()))})
    text, _ = page_of(trained(data, x="series"), data, tmp_path / "page.html", rows=6, worst=2)
    lines = re.findall(r'aria-label="row (\d+), [^"]*">(.*?)</svg>', text)
    assert len(lines) == 6 + 2 and without_looks(text).tags.count("svg") == 6 + 2 + 2
    for row, drawing in lines:
        original = re.search(r'class="line original" d="([^"]+)"', drawing)[1]
        assert len(re.findall(r"[ML]", original)) == len(rows[int(row)])


def test_page_of_many_channels_names_four_of_them_and_leaves_holes_open(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 15, 6)).cumsum(1)
    values[:, 4:7, 0] = np.nan
    frame = pd.DataFrame(values.reshape(-1, 6), columns=[HOSTILE, "b", "c", "d", "e", "f"])
    data = open_source(frame, reading=Reading(form="series", window=15))
    text, _ = page_of(trained(data), data, tmp_path / "page.html", rows=2, worst=1)
    page = without_looks(text)
    assert page.words.count(HOSTILE) == 3 and page.tags.count("svg") == 4 * (2 + 1) + 2
    first = re.search(r'class="line original" d="([^"]+)"', text)[1]
    assert first.count("M") == 2 and len(re.findall(r"[ML]", first)) == 12


@given(st.lists(st.integers(0, 900), min_size=1, max_size=4))
def test_lines_of_any_lengths_share_a_chart(lengths):
    drawn = overlay([("model", np.linspace(-1, 1, length)) for length in lengths], "lines")
    assert drawn.count("<path") >= len(lengths) and "nan" not in drawn


def test_page_of_bags_lists_what_they_hold_most_of(tmp_path):
    rng = np.random.default_rng(0)
    bags = [[(f"item {k}", float(rng.integers(1, 9))) for k in rng.choice(30, 4, replace=False)] for _ in range(40)]
    bags[0] = [(HOSTILE, 500.0), ("item 3", 2.0)]
    bags[1] = []
    data = pa.table({"bag": pa.array(bags, pa.map_(pa.string(), pa.float32()))})
    text, page = page_of(trained(data), data, tmp_path / "page.html", rows=6, worst=1)
    cards = re.findall(r"<figure><figcaption>row (\d+), (.*?) in all</figcaption>(.*?)</figure>", text)
    assert len(cards) == 6
    for row, total, card in cards:
        original = re.findall(r'<td class="name">(.*?)</td><td class="num">(.*?)</td>', card.partition("</table>")[0])
        held = sorted((-count, item) for item, count in bags[int(row)])
        assert float(total) == -sum(count for count, _ in held)
        assert sorted((-float(count), html.unescape(item)) for item, count in original) == [
            (count, item if len(item) <= 24 else f"{item[:23]}…") for count, item in held
        ]
    assert "<script" not in text and HOSTILE[:23] in page.words and "perplexity" in page.words


def test_page_of_numbered_items_and_of_a_table_with_everything(tmp_path):
    rng = np.random.default_rng(0)
    items = sparse.csr_array(rng.poisson(0.5, (40, 12)).astype(np.float32))
    page_of(trained(items), items, tmp_path / "page.html", rows=3, worst=2)
    data = pa.table(
        {
            "number": rng.normal(size=40),
            "text": [f"note {i}" for i in range(40)],
            "series": pa.array([rng.normal(size=5).tolist() for _ in range(40)], pa.list_(pa.float64())),
            "bag": pa.array([[("a", 1.0), (str(i), 2.0)] for i in range(40)], pa.map_(pa.string(), pa.float32())),
        }
    )
    model = trained(data, text="chars", series="series")
    _, page = page_of(model, data, tmp_path / "page.html", rows=3, worst=2)
    for word in ("number", "bits a character", "perplexity", "RMSE std", "texts are left out"):
        assert word in page.words


def test_page_of_colored_images_is_of_their_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 9, 7, 3), dtype=np.uint8)
    text, _ = page_of(trained(images), images, tmp_path / "page.html", rows=3, worst=2)
    found = [decoded(base64.b64decode(image)) for image in re.findall(r'src="data:image/png;base64,([^"]+)"', text)]
    assert {image.shape for image in found} == {(9, 7, 3)}
    assert without_looks(text).tags.count("img") == 3 * 3 + 2 * 3


def test_the_same_page_twice(tmp_path):
    data = pd.DataFrame({"text": [f"note {i}" for i in range(50)]})
    model = trained(data, text="words")
    assert page_of(model, data, tmp_path / "a.html")[0] == page_of(model, data, tmp_path / "b.html")[0]
