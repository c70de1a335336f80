"""Sounds as a page shows them: a picture of the spectrum over time, and a few seconds to listen to.

Samples in [-1, 1] in, addresses for <img> and <audio> out. Pictures are small: 64 bands, low ones at the bottom, and at
most 160 frames. Knows neither models nor columns.
"""

from __future__ import annotations

import base64
import struct

import numpy as np
import numpy.typing as npt

from narrows.report.pixels import data_uri

SECONDS = 2.0  # of a sound, shown and played
BANDS, FRAMES = 64, 160
WINDOW = 0.032  # seconds: 128 frequencies at 8 kHz
DEPTH = 60.0  # dB between the brightest and the darkest

Floats = npt.NDArray[np.float64]


def beginning(wave: Floats, rate: int) -> Floats:
    """The first two seconds of a sound (T,) or (T, ch), its channels mixed."""
    mono = wave if wave.ndim == 1 else wave.mean(1)
    return np.asarray(np.nan_to_num(mono[: int(SECONDS * rate)]))


def decibels(wave: Floats, rate: int) -> Floats:
    """(64, frames) loudness of each band, in dB of a full wave; the highest band first.

    Args:
        wave: (T,).
        rate: samples per second.
    """
    frame = max(2 * BANDS, 2 ** round(np.log2(WINDOW * rate)))
    padded = np.pad(wave, (0, max(0, frame - len(wave))))
    hop = max(frame // 4, -(-(len(padded) - frame) // (FRAMES - 1)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(frame), axis=1)[:, 1:] * 4 / frame) ** 2
    bands = power.reshape(len(frames), BANDS, -1).mean(2)
    return np.asarray(10 * np.log10(bands + 1e-12).T[::-1])


def picture(loudness: Floats, loudest: float) -> str:
    """Address of an image: bright where it is loud, black 60 dB below the loudest."""
    share = (1 + (loudness - loudest) / DEPTH).clip(0.0, 1.0)
    share = np.rint(share * 31) / 31  # few shades make a small file
    colors = np.stack([share**0.8, share**2, 0.35 * np.sin(np.pi * share) + share**6], axis=-1)
    return data_uri(colors, side=max(BANDS, FRAMES))


def playable(wave: Floats, rate: int) -> str:
    """Address of a WAV file of 16 bits, one channel; what is louder than a full wave is cut."""
    samples = np.rint(wave.clip(-1.0, 1.0) * 32_767).astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16
    )
    data = header + struct.pack("<4sI", b"data", len(samples)) + samples
    return f"data:audio/wav;base64,{base64.b64encode(data).decode('ascii')}"
