"""Sounds are the samples that were written; a broken file is left out or named, and moves no other row's id."""

from __future__ import annotations

import io
import sys
import warnings
import wave
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import DataError, DataWarning, SettingError
from narrows.sources import audio
from narrows.sources.reading import ASIDE, KIND, RATE, Reading, fact, modeled
from narrows.sources.shuffle import Shuffle
from narrows.sources.source import PIECE_BITS, open_source

DIGITS = Path(__file__).parents[2] / "shared" / "data" / "fsdd" / "recordings.zip"


def samples(count, channels=1, seed=0):
    """16-bit samples (count, channels)."""
    return np.random.default_rng(seed).integers(-(1 << 15), 1 << 15, (count, channels)).astype(np.int16)


def write(path, values, rate=8000):
    path.parent.mkdir(exist_ok=True, parents=True)
    soundfile.write(path, values, rate, subtype="PCM_16")
    return path


def wav(values, rate=8000):
    """A WAV file by the standard library."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.astype("<i2").tobytes())
    return buffer.getvalue()


def opened(data, **settings):
    """A source, without the warning about samples at the ends."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fill no window", category=DataWarning)
        return open_source(data, reading=Reading(**settings))


def rows_of(source):
    return [row for _, batch in source.batches() for row in batch.to_pylist()]


def check(source):
    """Ids rise, skipping skips, counts are right."""
    for piece in source.pieces:
        batches = list(source.read(piece))
        rows = [row for _, batch in batches for row in batch.to_pylist()]
        ids = [first + i for first, batch in batches for i in range(len(batch))]
        assert ids == [piece << PIECE_BITS | i for i in range(source.rows_of(piece))]
        for skip in {1, len(rows) // 2, len(rows) - 1, len(rows), len(rows) + 3}:
            rest = list(source.read(piece, skip))
            assert [row for _, batch in rest for row in batch.to_pylist()] == rows[skip:]
            assert not rest or rest[0][0] == piece << PIECE_BITS | skip
    return source


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_files_are_rows(tmp_path, suffix, channels):
    written = [samples(count, channels, count) for count in (5, 1, 300)]
    for number, values in enumerate(written):
        write(tmp_path / f"{number}.{suffix}", values)
    source = check(open_source(tmp_path))
    (sound,) = modeled(source.schema)
    value = pa.float32() if channels == 1 else pa.list_(pa.float32(), 2)
    assert (sound.name, sound.type) == ("sound", pa.list_(value))
    assert (fact(sound, KIND), fact(sound, RATE)) == ("audio", "8000")
    assert source.schema.names == ["sound", "path"] and fact(source.schema.field("path"), ASIDE)
    for row, values in zip(rows_of(source), written, strict=True):
        np.testing.assert_array_equal(np.array(row["sound"]).reshape(-1, channels), values / np.float32(1 << 15))


def test_a_file_of_the_standard_library_and_other_depths(tmp_path):
    values = samples(50)
    (tmp_path / "a.wav").write_bytes(wav(values))
    np.testing.assert_array_equal(rows_of(open_source(tmp_path / "a.wav"))[0]["sound"], values[:, 0] / 32768)
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"):
        soundfile.write(tmp_path / "b.wav", values / 32768, 8000, subtype=subtype)
        got = rows_of(open_source(tmp_path / "b.wav"))[0]["sound"]
        np.testing.assert_allclose(got, values[:, 0] / 32768, atol=0.03 if subtype == "ULAW" else 0.01)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(1, 20),
    st.integers(1, 25),
    st.integers(1, 2),
    st.sampled_from([100, 16 << 20]),
)
def test_windows_are_slices_within_files(tmp_path_factory, lengths, window, stride, channels, most):
    folder = tmp_path_factory.mktemp("sounds")
    want = []
    for number, length in enumerate(lengths):
        values = samples(length, channels, number)
        (folder / f"{number}.wav").write_bytes(wav(values))
        starts = range(0, length - window + 1, stride)
        want += [(str(folder / f"{number}.wav"), at, values[at : at + window] / 32768) for at in starts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio, "BATCH_BYTES", most)
        patch.setattr(audio, "PIECE_FILES", 2)
        patch.setattr(audio, "_MERGED_BYTES", most)
        if not want:
            with pytest.raises(DataError, match=f"no sound has more than {max(lengths)} samples; wanted: {window}"):
                opened(folder, window=window, stride=stride)
            return
        source = check(opened(folder, window=window, stride=stride))
        got = rows_of(source)
    assert source.schema.field("sound").type.shape == ([window] if channels == 1 else [window, 2])
    assert [(row["path"], row["start"]) for row in got] == [(path, at) for path, at, _ in want]
    for row, (_, _, values) in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.array(row["sound"]).reshape(window, channels), values)


def test_labels_are_folders(tmp_path):
    for label in ("cat", "dog"):
        write(tmp_path / label / "1.wav", samples(9))
    source = check(open_source(tmp_path))
    assert [row["label"] for row in rows_of(source)] == ["cat", "dog"]
    assert fact(source.schema.field("label"), ASIDE)


def test_samples_that_fill_no_window_are_counted(tmp_path):
    for number, count in enumerate((25, 7, 20)):
        write(tmp_path / f"{number}.wav", samples(count))
    with pytest.warns(DataWarning, match="12 samples at the ends of 2 sounds"):
        assert open_source(tmp_path, reading=Reading(window=10)).rows == 4


def test_long_sounds_are_pieces_and_shuffle(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_PIECE_SAMPLES", 50)
    for number in range(6):
        write(tmp_path / f"{number}.wav", samples(30, seed=number))
    source = check(opened(tmp_path, window=4, stride=2))
    assert len(source.pieces) == 6
    want = sorted((row["path"], row["start"]) for row in rows_of(source))
    shards = [row for rank in range(2) for row in rows_of(source.shard(rank, 2))]
    assert sorted((row["path"], row["start"]) for row in shards) == want
    parts = [row for rows, _ in Shuffle(source, None, 0, 10).parts(0) for row in rows.to_pylist()]
    assert sorted((row["path"], row["start"]) for row in parts) == want


# --- what does not fit


def test_rates_must_agree(tmp_path):
    write(tmp_path / "a.wav", samples(9), 8000)
    write(tmp_path / "b.wav", samples(9), 44100)
    with pytest.raises(DataError, match=r"b\.wav has 44,100 samples a second; wanted: 8,000, as .*a\.wav"):
        open_source(tmp_path)


def test_stereo_among_mono_is_mixed_down(tmp_path):
    mono, stereo = samples(9), samples(9, 2, seed=1)
    write(tmp_path / "a.wav", mono)
    write(tmp_path / "b.wav", stereo)
    with pytest.warns(DataWarning, match=r"b\.wav has 2 channels, .*a\.wav has 1: all are mixed"):
        source = open_source(tmp_path)
    rows = rows_of(source)
    np.testing.assert_array_equal(rows[0]["sound"], mono[:, 0] / 32768)
    np.testing.assert_allclose(rows[1]["sound"], stereo.mean(axis=1) / 32768, atol=1e-6)
    with pytest.raises(DataError, match=r"b\.wav has 2 channels"):
        open_source(tmp_path, reading=Reading(strict=True))
    assert source.reading.channels == 1  # as a model keeps it, so that new sounds are mixed down too
    np.testing.assert_array_equal(rows_of(open_source(tmp_path / "b.wav", reading=source.reading))[0], rows[1])
    assert open_source(tmp_path / "b.wav").reading.channels is None
    with pytest.raises(SettingError, match="channels=3 for sounds"):
        open_source(tmp_path, reading=Reading(channels=3))


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", wav(samples(5))[:30], wav(samples(0)), b"fLaC\0\0\0\x22" + b"\0" * 34]
)
def test_files_that_are_broken_from_the_start(tmp_path, content):
    for name in ("a.wav", "c.wav"):
        write(tmp_path / name, samples(9))
    (tmp_path / "b.wav").write_bytes(content)
    with pytest.warns(DataWarning, match=r"1 of 3 sounds cannot be read and are left out, the first: .*b\.wav"):
        source = check(open_source(tmp_path))
    assert [row["path"][-5:] for row in rows_of(source)] == ["a.wav", "c.wav"]
    with pytest.raises(DataError, match=r"b\.wav"):
        open_source(tmp_path, reading=Reading(strict=True))
    with pytest.raises(DataError, match=r"b\.wav"):
        open_source(tmp_path / "b.wav")


@pytest.mark.parametrize("window", [None, 1000])
def test_damage_behind_a_header_moves_no_other_row(tmp_path, window):
    for number in range(3):
        write(tmp_path / f"{number}.flac", samples(20_000, seed=number))
    good = opened(tmp_path, window=window)
    ids = {row["path"][-6:]: first + i for first, b in good.batches() for i, row in enumerate(b.to_pylist())}
    path = tmp_path / "1.flac"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = opened(tmp_path, window=window)
    for epoch in range(2):
        found = {}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for first, batch in source.batches():
                found |= {row["path"][-6:]: first + i for i, row in enumerate(batch.to_pylist())}
        assert {name: found[name] for name in ("0.flac", "2.flac")} == {n: ids[n] for n in ("0.flac", "2.flac")}
        assert found.get("1.flac", -1) < ids["1.flac"]
        assert len(told) == (epoch == 0)  # once, of however many epochs
    with pytest.raises(DataError, match=r"1\.flac"):
        rows_of(opened(tmp_path, window=window, strict=True))
    with pytest.raises(DataError, match=r"all 1 sounds of .*1\.flac"):
        rows_of(opened(path))


def test_a_wav_that_was_cut_short_is_read_as_far_as_it_goes(tmp_path):
    values = samples(1000)
    (tmp_path / "a.wav").write_bytes(wav(values)[:-1000])
    (row,) = rows_of(open_source(tmp_path))
    np.testing.assert_array_equal(row["sound"], values[:500, 0] / 32768)


def test_without_soundfile_it_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.wav", samples(9))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(SettingError, match=r"narrows\[audio\]"):
        open_source(tmp_path)


@pytest.mark.skipif(not DIGITS.exists(), reason="needs the spoken digits")
def test_spoken_digits():
    source = opened(DIGITS, window=2000, stride=2000)
    assert {fact(field, RATE) for field in modeled(source.schema)} == {"8000"}
    first = next(source.batches())[1]
    assert first.column("sound").to_numpy_ndarray().shape[1:] == (2000,)
    assert opened(DIGITS).rows == 3000
