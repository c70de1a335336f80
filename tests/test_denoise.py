"""Noise taken away: tiles against the whole, arrays and files of any size, holes, and models that help."""

import wave

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from command import narrows
from narrows import Conv, Plan, Reading, Training, fit, load, open_source
from narrows.errors import DataError, SettingError
from narrows.tasks.denoise import denoise, denoise_whole
from narrows.tasks.tiles import in_tiles, starts, window
from small_models import small_model

NET = Conv(channels=(16,), depth=1, fold=2, norm="none", spatial=True)


def smooth(rows, *sides, seed=0):
    """Waves with values in [0, 1]."""
    draw = np.random.default_rng(seed)
    along = [np.linspace(0, side / 8, side) for side in sides]
    phases, speeds = draw.random((rows, len(sides))), draw.uniform(0.5, 1.5, (rows, len(sides)))
    angles = sum(
        np.expand_dims(
            2 * np.pi * (speeds[:, i, None] * axis + phases[:, i, None]), [j + 1 for j in range(len(sides)) if j != i]
        )
        for i, axis in enumerate(along)
    )
    return (0.5 + 0.4 * np.sin(angles)).astype(np.float32)


def noisy(clean, seed=1):
    return (clean + np.random.default_rng(seed).normal(0, 0.1, clean.shape)).astype(np.float32)


def error(clean, told):
    return np.square(np.asarray(told, np.float64) - clean).mean() / 0.1**2


def trained(rows, columns=None, **facts):
    plan = Plan("denoising:noise=0.1,mask=0,link=identity", network=NET, lr=0.003, columns=columns or {}, **facts)
    return fit(rows, plan)


@pytest.fixture(scope="module")
def images():
    """A denoiser of waves of 16 x 16 pixels."""
    return trained(smooth(800, 16, 16), latent=64 * 16, epochs=12)


@pytest.fixture(scope="module")
def bytes_(tmp_path_factory):
    """The file of a denoiser of pictures of 16 x 16 bytes."""
    path = tmp_path_factory.mktemp("m") / "m.narrows"
    trained((smooth(400, 16, 16) * 255).astype(np.uint8), latent=64 * 16, epochs=25).save(path)
    return path


# tiles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_tiles_of_nothing_done_give_the_array_back(height, width, tall, wide, channels):
    shape = (height, width, channels) if channels else (height, width)
    array = np.random.default_rng(0).random(shape)
    seen = []

    def work(tiles):
        seen.append(tiles.shape[1:])
        return tiles

    np.testing.assert_allclose(in_tiles(array, (tall, wide), work), array, atol=1e-12)
    assert set(seen) == {(tall, wide, *shape[2:])}


def test_overlapping_tiles_are_averaged_by_the_window():
    array, tile = np.random.default_rng(0).random(23), 6
    numbers = iter(range(100))
    got = in_tiles(array, (tile,), lambda tiles: np.stack([cells + next(numbers) for cells in tiles]))
    total, mass = np.zeros(23), np.zeros(23)
    for number, at in enumerate(starts(23, tile)):
        for i in range(tile):
            weight = np.sin(np.pi * (i + 0.5) / tile) ** 2
            total[at + i] += weight * (array[at + i] + number)
            mass[at + i] += weight
    np.testing.assert_allclose(got, total / mass)


def test_windows_half_a_tile_apart_add_up_to_one():
    weights = window((8, 6))
    assert weights.shape == (8, 6) and (weights > 0).all()
    summed = sum(np.roll(np.roll(weights, y, 0), x, 1) for y in (0, 4) for x in (0, 3))
    np.testing.assert_allclose(summed, 1.0)
    assert starts(8, 8) == [0] and starts(9, 8) == [0, 1] and starts(20, 8) == [0, 4, 8, 12]
    assert starts(3, 1) == [0, 1, 2]


def test_what_is_missing_in_one_tile_comes_from_another():
    def work(tiles):
        told = tiles.copy()
        told[:, 0] = np.nan
        return told

    got = in_tiles(np.arange(10.0), (4,), work)
    np.testing.assert_allclose(got[1:], np.arange(1.0, 10.0))
    assert np.isnan(got[0])


# arrays


def test_noise_is_taken_away_in_the_models_own_size_and_in_any_other(images):
    clean = smooth(200, 16, 16, seed=5)
    told = denoise(images, noisy(clean)).column(0).combine_chunks().to_numpy_ndarray()
    assert told.shape == clean.shape and told.dtype == np.float32
    assert error(clean, told) < 0.25
    for shape in ((40, 56), (16, 31), (9, 50), (16, 16), (1, 1)):
        big = smooth(1, *shape, seed=6)[0]
        told = denoise_whole(images, noisy(big))
        assert told.shape == shape and told.dtype == np.float32
        if min(shape) >= 16:
            assert error(big, told) < 0.25, shape
    row = noisy(clean[:1])
    alone = denoise(images, row).column(0).combine_chunks().to_numpy_ndarray()
    np.testing.assert_allclose(denoise_whole(images, row[0]), alone[0], atol=1e-6)


def test_a_table_of_larger_images_comes_back_in_their_size(images):
    clean = smooth(3, 30, 22, seed=7)
    table = denoise(images, noisy(clean))
    told = table.column(0).combine_chunks().to_numpy_ndarray()
    assert told.shape == clean.shape and table.schema.names == ["x"]
    assert error(clean, told) < 0.25
    for one, whole in zip(told, noisy(clean), strict=True):
        np.testing.assert_allclose(one, denoise_whole(images, whole), atol=1e-6)


def test_holes_are_filled_or_left(images):
    array = noisy(smooth(1, 20, 20)[0])
    array[3:5, 4] = np.nan
    assert np.isfinite(denoise_whole(images, array)).all()
    left = denoise_whole(images, array, fill=False)
    np.testing.assert_array_equal(np.isnan(left), np.isnan(array))
    rows = noisy(smooth(4, 16, 16))
    rows[1, 2, 3] = np.nan
    for fill, holes in ((True, 0), (False, 1)):
        told = denoise(images, rows, fill=fill).column(0).combine_chunks().to_numpy_ndarray()
        assert np.isnan(told).sum() == holes and np.isnan(told[1, 2, 3]) == bool(holes)


def test_whole_numbers_are_rounded_within_their_type(bytes_):
    model, big = load(bytes_), (smooth(1, 25, 33)[0] * 255).astype(np.uint8)
    told = denoise_whole(model, big)
    assert told.dtype == np.uint8 and told.shape == big.shape
    rough = noisy(big[None] / 255.0)[0] * 255
    assert error(big / 255.0, denoise_whole(model, rough) / 255) < 0.6
    assert denoise_whole(model, big.astype(np.int16)).dtype == np.int16


def test_arrays_that_do_not_fit_are_refused(images):
    for shape in ((16,), (16, 16, 3), (2, 16, 16), (0, 16)):
        with pytest.raises(DataError, match="any, any"):
            denoise_whole(images, np.zeros(shape, np.float32))
    table = small_model(pd.DataFrame({"a": np.arange(50.0), "b": np.arange(50.0) % 7}), "denoising")
    with pytest.raises(SettingError, match="denoise"):
        denoise_whole(table, np.zeros((5, 5)))
    with pytest.raises(DataError, match="shape"):
        denoise(images, np.zeros((5, 16, 16, 3), np.float32))


# tables


def test_rows_of_a_table_keep_their_holes_where_asked():
    draw = np.random.default_rng(0)
    size = draw.normal(10, 3, 300)
    frame = pd.DataFrame(
        {
            "size": size,
            "rooms": pd.array(np.rint(size / 3).astype(int), dtype="Int64"),
            "town": np.where(size > 10, "Bern", "Chur"),
            "sold": pd.date_range("2020-01-01", periods=300),
        }
    )
    frame.loc[[2, 5], "size"] = np.nan
    frame.loc[3, "rooms"] = pd.NA
    frame.loc[[4, 5], "town"] = None
    frame.loc[6, "sold"] = pd.NaT
    model = small_model(frame, "denoising:noise=0.3,mask=0.1", latent=3)
    filled, left = denoise(model, frame).to_pandas(), denoise(model, frame, fill=False).to_pandas()
    assert filled.notna().all().all()
    assert (left.isna().to_numpy() == frame.isna().to_numpy()).all()
    there = frame.notna().to_numpy()
    assert (left.to_numpy()[there] == filled.to_numpy()[there]).all()
    rough = frame.assign(size=frame["size"] + draw.normal(0, 1, 300))
    told = denoise(model, rough)["size"].to_numpy()
    known = frame["size"].notna()
    assert np.square(told - size)[known].mean() < np.square(rough["size"] - size)[known].mean()


# series and sounds


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """A table of two series of two channels, and a model of its windows."""
    folder = tmp_path_factory.mktemp("steps")
    long = smooth(1, 1504, seed=2)[0]
    frame = pd.DataFrame({"when": pd.date_range("2020-01-01", periods=1504, freq="h"), "left": long, "note": 1.0})
    frame["right"] = (1 - frame["left"]) * 4
    frame["who"] = np.where(frame.index < 992, "ann", "bob")
    frame = frame[["when", "who", "left", "right"]]
    frame.to_csv(folder / "clean.csv", index=False)
    rough = frame.assign(left=frame["left"] + np.random.default_rng(3).normal(0, 0.1, 1504))
    rough.loc[40, "left"] = np.nan
    rough.to_csv(folder / "rough.csv", index=False)
    reading = Reading(form="series", window=32, stride=8, stamp="when", series="who")
    model = trained(open_source(folder / "clean.csv", reading=reading), latent=16 * 8, epochs=20)
    model.save(folder / "m.narrows")
    return folder


def test_a_table_of_steps_comes_back_cleaned_channel_by_channel(steps):
    for fill in ("--fill", "--no-fill"):
        narrows("denoise", "m.narrows", "rough.csv", "--out", "told.csv", fill, cwd=steps)
        clean, rough, told = (pd.read_csv(steps / f"{name}.csv") for name in ("clean", "rough", "told"))
        assert list(told.columns) == list(clean.columns)
        assert (told["who"] == clean["who"]).all()
        assert (pd.to_datetime(told["when"]) == pd.to_datetime(clean["when"])).all()
        assert np.isnan(told["left"][40]) == (fill == "--no-fill")
        known = rough["left"].notna()
        gone = np.square(told["left"] - clean["left"])[known].mean() / 0.01
        assert gone < 0.5
    model = load(steps / "m.narrows")
    ann = rough[["left", "right"]].to_numpy()[:992]
    np.testing.assert_allclose(told[["left", "right"]][:992], denoise_whole(model, ann, fill=False), atol=1e-6)


def test_other_channels_are_refused(steps):
    pd.read_csv(steps / "rough.csv").rename(columns={"left": "up"}).to_csv(steps / "other.csv", index=False)
    done = narrows("denoise", "m.narrows", "other.csv", "--out", "x.csv", cwd=steps, code=1)
    assert "channels" in done.stderr


def write_sound(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.rint(samples * 32767).astype("<i2").tobytes())


def test_sounds_come_back_whole(tmp_path):
    pytest.importorskip("soundfile")
    (tmp_path / "clean").mkdir()
    lengths = (700, 1024, 333)
    for i, length in enumerate(lengths):
        write_sound(tmp_path / "clean" / f"s{i}.wav", smooth(1, length, seed=i)[0] - 0.5)
    with pytest.warns(UserWarning, match="end"):
        source = open_source(tmp_path / "clean", reading=Reading(window=64, stride=16))
    model = trained(source, {"sound": "wave"}, latent=32 * 4, epochs=2)
    model.save(tmp_path / "m.narrows")
    narrows("denoise", "m.narrows", "clean", "--out", "told", cwd=tmp_path)
    for i, length in enumerate(lengths):
        with wave.open(str(tmp_path / "told" / f"s{i}.wav")) as file:
            assert (file.getnframes(), file.getframerate()) == (length, 8000)


# pictures


def test_a_folder_of_pictures_of_many_sizes(bytes_, tmp_path):
    (tmp_path / "in").mkdir()
    sizes = {"a": (40, 30), "b": (16, 16), "c": (9, 21)}
    model = load(bytes_)
    for name, size in sizes.items():
        Image.fromarray((smooth(1, *size)[0] * 255).astype(np.uint8)).save(tmp_path / "in" / f"{name}.png")
    narrows("denoise", bytes_, "in", "--out", "out", cwd=tmp_path)
    for name, size in sizes.items():
        told = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        assert told.shape == size
        before = np.asarray(Image.open(tmp_path / "in" / f"{name}.png"))
        np.testing.assert_array_equal(told, denoise_whole(model, before))
    (tmp_path / "in" / "d.png").write_bytes(b"no picture")
    done = narrows("denoise", bytes_, "in", "--out", "more", cwd=tmp_path)
    assert "d.png" in done.stderr and len(list((tmp_path / "more").iterdir())) == 3
    narrows("denoise", bytes_, "in", "--out", "none", "--strict", cwd=tmp_path, code=1)
    assert not (tmp_path / "none").exists()


def test_rows_that_fit_are_written_like_reconstructions(bytes_, tmp_path):
    rows = (smooth(5, 16, 16) * 255).astype(np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    narrows("denoise", bytes_, "rows.npy", "--out", "told.npy", cwd=tmp_path)
    narrows("reconstruct", bytes_, "rows.npy", "--out", "same.npy", cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "told.npy"), np.load(tmp_path / "same.npy"))


def test_validation_rows_are_corrupted_alike_each_time():
    rows = smooth(300, 8, 8)
    plan = Plan("denoising:noise=0.3,mask=0", latent=2, epochs=3, training=Training(validation=0.3))
    first, again = (fit(rows, plan).facts["records"] for _ in range(2))
    assert [record["val_loss"] for record in first] == [record["val_loss"] for record in again]
