"""Spectra are what a Fourier transform written out says, and come back as sounds with nearly the same spectra."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import SettingError
from narrows.prepare.spectra import FLOOR, Spectra

DIGITS = Path(__file__).parents[2] / "shared" / "data" / "fsdd" / "recordings.zip"


def noise(rows, samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (rows, samples)).astype(np.float32)


def convergence(wave, copy, frame=256):
    """Relative distance of the magnitudes of two waves (Sturmel and Daudet, 2011)."""
    spectra = [np.abs(scipy.signal.stft(w, nperseg=frame, noverlap=3 * frame // 4)[2]) for w in (wave, copy)]
    return np.linalg.norm(spectra[0] - spectra[1]) / np.linalg.norm(spectra[0])


@pytest.mark.parametrize(("frame", "hop"), [(8, 4), (16, 4), (12, 3), (10, 5)])
def test_frames_are_fourier_transforms_written_out(frame, hop):
    waves = noise(2, 41)
    spectra = Spectra(frame, hop, frame // 2 + 1)
    got = spectra.forward(waves)
    assert got.shape == (2, spectra.frames(41), frame // 2 + 1)
    window = [0.5 - 0.5 * np.cos(2 * np.pi * n / frame) for n in range(frame)]
    for row in range(2):
        for place in range(got.shape[1]):
            cut = [place * hop + n - frame // 2 for n in range(frame)]
            part = np.array([waves[row, i] if 0 <= i < 41 else 0.0 for i in cut]) * window
            for k in range(frame // 2 + 1):
                sine = sum(part[n] * np.exp(-2j * np.pi * k * n / frame) for n in range(frame))
                want = np.log(abs(sine) * 2 / sum(window) + FLOOR)
                assert got[row, place, k] == pytest.approx(want, abs=2e-4)


def test_frames_are_those_of_scipy():
    wave = noise(1, 4096)[0]
    ours = np.exp(Spectra(256, 64, 129).forward(wave[None])[0]) - FLOOR
    _, _, theirs = scipy.signal.stft(wave, nperseg=256, noverlap=192, window="hann", boundary="zeros")
    np.testing.assert_allclose(ours, 2 * np.abs(theirs).T, atol=1e-5)


def test_a_full_sine_has_magnitude_one_in_its_own_band():
    time = np.arange(8000) / 8000
    for spectra in (Spectra(256, 128, 129), Spectra()):
        loudness = np.exp(spectra.forward(np.sin(2 * np.pi * 1000 * time)[None]))[0, 10:-10]
        peak = loudness.argmax(axis=1)
        assert len(set(peak)) == 1
        if spectra.bins == 129:
            np.testing.assert_allclose(loudness[:, 32], 1, atol=1e-3)  # 1000 Hz over 8000 / 256 Hz a band


@pytest.mark.parametrize("rate", [1, 100, 4000, 8000, 16000, 22050, 44100, 48000, 96000])
def test_bands_of_any_rate_cover_all_frequencies_and_widen(rate):
    spectra = Spectra.of_rate(rate)
    weights = spectra._bands
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert (weights.sum(axis=0) > 0).all()
    centers = (weights * np.arange(weights.shape[1])).sum(axis=1)
    widths = np.diff(centers)
    assert (widths > 0.4).all()
    assert rate < 4000 or widths[-2] > widths[1]
    assert rate < 1000 or 0.02 < spectra.frame / rate < 0.05


@pytest.mark.parametrize("samples", [1, 5, 127, 128, 129, 1000])
def test_any_length_comes_back_as_long(samples):
    spectra = Spectra()
    there = spectra.forward(noise(3, samples))
    back = spectra.inverse(there, samples)
    assert there.shape == (3, spectra.frames(samples), 64)
    assert back.shape == (3, samples) and back.dtype == np.float32
    assert np.isfinite(back).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(0, 1000), st.sampled_from([(16, 8, 9), (16, 4, 5), (32, 8, 9), (12, 3, 7)]))
def test_overlapping_frames_add_up_to_the_wave(samples, seed, shape):
    spectra = Spectra(*shape)
    wave = noise(2, samples, seed)
    np.testing.assert_allclose(spectra._wave(spectra._transformed(wave), samples), wave, atol=1e-5)


def test_a_wave_comes_back_with_nearly_its_spectrum():
    time = np.arange(6000) / 8000
    tones = sum(np.sin(2 * np.pi * pitch * time) / 8 for pitch in (220, 450, 910, 1800))
    wave = (tones * np.minimum(1, np.sin(np.pi * time / 0.75))).astype(np.float32)
    for spectra, most in ((Spectra(256, 64, 129), 0.05), (Spectra(256, 128, 129), 0.2), (Spectra(), 0.4)):
        assert convergence(wave, spectra.inverse(spectra.forward(wave[None]), 6000)[0]) < most


def test_rows_do_not_depend_on_each_other():
    spectra, waves = Spectra(), noise(5, 900)
    there = spectra.forward(waves)
    back = spectra.inverse(there, 900)
    np.testing.assert_allclose(spectra.forward(waves[2:3]), there[2:3], atol=1e-5)
    np.testing.assert_allclose(spectra.inverse(there[2:3], 900), back[2:3], atol=1e-3)
    np.testing.assert_array_equal(spectra.inverse(there, 900), back)


def test_silence_missing_samples_and_absurd_spectra():
    spectra = Spectra()
    silence = spectra.forward(np.zeros((1, 500)))
    np.testing.assert_allclose(silence, np.log(FLOOR), rtol=1e-6)
    np.testing.assert_array_equal(spectra.forward(np.full((1, 500), np.nan)), silence)
    np.testing.assert_allclose(spectra.inverse(silence, 500), 0, atol=1e-6)
    for value in (-1e30, -50.0, 50.0, 1e30):  # a network may say anything
        assert np.isfinite(spectra.inverse(np.full((1, spectra.frames(500), 64), value), 500)).all()
    assert spectra.forward(np.empty((0, 500))).shape == (0, spectra.frames(500), 64)


@pytest.mark.parametrize(
    "numbers",
    [(0, 1, 2), (7, 1, 3), (256, 0, 64), (256, 100, 64), (256, 256, 64), (256, 128, 130), (256, 128, 1), (2, 1, 2)],
)
def test_numbers_that_do_not_fit_are_refused(numbers):
    with pytest.raises(SettingError):
        Spectra(*numbers)
    with pytest.raises(SettingError):
        Spectra(rate=0)


@pytest.mark.skipif(not DIGITS.exists(), reason="needs the spoken digits")
def test_spoken_digits_come_back_recognizably():
    with zipfile.ZipFile(DIGITS) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))[::250]
        waves = [soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")[0] for name in names]
    spectra = Spectra.of_rate(8000)
    found = [convergence(w, spectra.inverse(spectra.forward(w[None]), len(w))[0]) for w in waves]
    assert np.mean(found) < 0.32
