"""Sounds as log-magnitude spectra, and back: pure NumPy, the same for every batch size.

    waves (B, T) -> overlapping frames -> |FFT| -> bands of the mel scale -> log -> (B, frames, bins)

A spectrum says how loud each band is in each frame and forgets phases; `inverse` finds phases that fit. So what comes
back sounds alike, but its samples differ, and high overtones are blurred over their band. Frames are centered, and
before and behind a sound is silence. Knows nothing of columns or scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from narrows.errors import SettingError

Floats = NDArray[np.float32]

FLOOR = 1e-4  # added to magnitudes, of which a full sine's is 1: 80 dB below it, just above the noise of 16 bits
ROUNDS = 64  # twice as many bring the spectrum of a spoken digit 1 % nearer
_MEL = 700.0  # Hz; far above it bands widen with their frequency, far below they are alike (O'Shaughnessy, 1987)
_MOMENTUM = 0.99  # the best of those that Perraudin, Balazs and Soendergaard (2013) try
_UNMIXING = 32  # rounds; 100 gain nothing
_TINY = 1e-12
_SILENT = 1e-8  # magnitudes below are 0: they would end as denormal numbers, with which FFTs take forty times as long
_LOUDEST = 1e6


@dataclass(frozen=True)
class Spectra:
    """How sounds of one rate become spectra. The defaults are those of `of_rate`.

    At 8 kHz a sample becomes half a cell. Of other settings of as many cells, such as half the hop with half the bins
    or shorter frames, spoken digits came back worse by 40 % or more; half the hop alone, twice the cells, would halve
    the distance between the spectra of original and copy (spectral convergence 0.24 and 0.12).

    Args:
        frame: samples of a frame, even.
        hop: samples from one frame's start to the next; divides `frame`, and is half of it at most.
        bins: bands of a frame, 2 or more; `frame // 2 + 1` keeps the FFT's own, fewer follow the mel scale, but
            none is narrower than one of the FFT.
        rate: samples per second.

    Raises:
        SettingError: for numbers that do not fit each other.
    """

    frame: int = 256
    hop: int = 128
    bins: int = 64
    rate: int = 8000

    def __post_init__(self) -> None:
        if self.frame < 4 or self.frame % 2 or self.hop < 1 or self.frame % self.hop or 2 * self.hop > self.frame:
            raise SettingError(f"frame={self.frame}, hop={self.hop}", "an even frame, and a hop that is a part of it")
        if not 2 <= self.bins <= self.frame // 2 + 1 or self.rate < 1:
            got = f"bins={self.bins}, rate={self.rate}"
            raise SettingError(got, f"2 to {self.frame // 2 + 1} bins of a frame of {self.frame}, and a rate above 0")

    @classmethod
    def of_rate(cls, rate: int) -> Spectra:
        """Frames of about 32 ms, long enough to part the overtones of a voice and shorter than a syllable; 64 bins.

        Args:
            rate: samples per second.
        """
        frame = 1 << max(4, round(np.log2(max(1, rate) * 0.032)))
        return cls(frame, frame // 2, min(64, frame // 2 + 1), rate)

    def frames(self, samples: int) -> int:
        """Frames of a sound: their centers are 0, hop, 2 hop, ..., the last at its end or behind."""
        return -(-samples // self.hop) + 1

    def forward(self, waves: NDArray[np.floating]) -> Floats:
        """(B, frames, bins) natural logarithms of magnitudes, at least log(1e-4), of waves (B, T) in about [-1, 1].

        NaN, a missing sample, counts as silence.
        """
        magnitudes = np.abs(self._transformed(np.nan_to_num(waves, nan=0.0).astype(np.float32)))
        logs: Floats = np.log(magnitudes @ self._bands.T + np.float32(FLOOR))
        return logs

    def inverse(self, spectra: NDArray[np.floating], samples: int) -> Floats:
        """(B, samples) waves whose spectra are near those given, (B, frames, bins): Griffin and Lim (1984), hurried.

        Phases start as those of steady tones and are made consistent in 64 rounds with momentum (Perraudin and others,
        2013). A row's wave does not depend on the rows beside it.
        """
        with np.errstate(over="ignore"):
            bands = np.minimum(np.exp(spectra.astype(np.float32)) - np.float32(FLOOR), np.float32(_LOUDEST))
        magnitudes = self._unmixed(np.where(bands < _SILENT, np.float32(0), bands))
        turns = np.outer(np.arange(magnitudes.shape[1]) * (self.hop / self.frame) % 1, np.arange(self.frame // 2 + 1))
        waves = (magnitudes * np.exp(2j * np.pi * turns)).astype(np.complex64)
        before = np.zeros_like(waves)
        for _ in range(ROUNDS):
            consistent = self._transformed(self._wave(waves, samples))
            hurried = consistent + np.float32(_MOMENTUM) * (consistent - before)
            hurried /= np.maximum(np.abs(hurried), np.float32(_TINY))
            np.multiply(hurried, magnitudes, out=waves)
            before = consistent
        return self._wave(waves, samples)

    @cached_property
    def _window(self) -> Floats:
        """(frame,) Hann's."""
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.frame) / self.frame)).astype(np.float32)

    @cached_property
    def _bands(self) -> Floats:
        """(bins, F) weights of the F = frame / 2 + 1 magnitudes of an FFT in each band; they sum to 1."""
        count = self.frame // 2 + 1
        if self.bins == count:
            return np.eye(count, dtype=np.float32)
        knee, top = self._knee(), self.rate / 2
        warped = np.log1p(np.linspace(0, top, count) / knee) / np.log1p(top / knee) * (self.bins - 1)
        weights = np.maximum(0, 1 - np.abs(warped - np.arange(self.bins)[:, None]))
        normal: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
        return normal

    def _knee(self) -> float:
        """Hz above which bands widen: 700, or as many as make the lowest as wide as a band of the FFT."""
        top, width = self.rate / 2, self.rate / self.frame
        low, high = _MEL, 1e9
        if low * np.log1p(top / low) >= width * (self.bins - 1):
            return low
        for _ in range(200):
            middle = (low * high) ** 0.5
            if middle * np.log1p(top / middle) < width * (self.bins - 1):
                low = middle
            else:
                high = middle
        return high

    def _transformed(self, waves: Floats) -> NDArray[np.complex64]:
        """(B, frames, F) Fourier transforms of the frames; a full sine has magnitude 1."""
        frames = self.frames(waves.shape[1])
        padded = np.zeros((len(waves), (frames - 1) * self.hop + self.frame), np.float32)
        padded[:, self.frame // 2 : self.frame // 2 + waves.shape[1]] = waves
        views = np.lib.stride_tricks.sliding_window_view(padded, self.frame, axis=1)[:, :: self.hop]
        turned: NDArray[np.complex64] = np.fft.rfft(views * self._window).astype(np.complex64)
        return turned * np.float32(2 / self._window.sum())

    def _wave(self, transformed: NDArray[np.complex64], samples: int) -> Floats:
        """(B, samples) waves whose frames are nearest in the sense of least squares."""
        frames = np.fft.irfft(transformed * np.float32(self._window.sum() / 2), n=self.frame).astype(np.float32)
        frames *= self._window
        parts, count = self.frame // self.hop, frames.shape[1]
        summed = np.zeros((len(frames), count + parts - 1, self.hop), np.float32)
        weight = np.zeros((count + parts - 1, self.hop), np.float32)
        for part in range(parts):
            place = slice(part * self.hop, (part + 1) * self.hop)
            summed[:, part : part + count] += frames[:, :, place]
            weight[part : part + count] += self._window[place] ** 2
        summed /= np.maximum(weight, np.float32(_TINY))
        return summed.reshape(len(frames), -1)[:, self.frame // 2 : self.frame // 2 + samples]

    def _unmixed(self, bands: Floats) -> Floats:
        """(B, frames, F) magnitudes, none below 0, whose bands are nearest (multiplicative: Lee and Seung, 2000)."""
        if self.bins == self.frame // 2 + 1:
            return bands
        mixing = self._bands
        target, overlap = bands @ mixing, mixing.T @ mixing
        magnitudes: Floats = bands @ (mixing / mixing.sum(axis=0))
        for _ in range(_UNMIXING):
            magnitudes *= target / np.maximum(magnitudes @ overlap, np.float32(_TINY))
            magnitudes[magnitudes < _SILENT] = 0
        return magnitudes
