"""Random numbers as a function of (seed, step), so that a resumed run draws what the uninterrupted one drew.

Before each step torch's own generators are seeded anew: dropout, corruption and sampling inside any module then
depend on nothing but the step. Costs 1 us on the CPU, where `torch.manual_seed` costs 55.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

VALIDATION = 1 << 62  # stands where a step would: every validation pass draws the same numbers

_WORD = (1 << 64) - 1


def mix(seed: int, step: int) -> int:
    """A 64-bit hash of the pair (splitmix64 of Steele, Lea & Flood 2014, applied twice)."""
    return _splitmix(_splitmix(seed & _WORD) ^ (step & _WORD))


def _splitmix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seed the generators that a module on `device` draws from."""
    value = mix(seed, step)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def generator(seed: int, number: int) -> torch.Generator:
    """A generator of one's own, on the CPU, seeded from the pair."""
    return torch.Generator().manual_seed(mix(seed, number))


@contextmanager
def kept(device: torch.device) -> Iterator[None]:
    """The caller's random state, given back at the end of a `with`."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
