"""What a launcher such as torchrun says of the processes it started: read from the environment, without torch."""

from __future__ import annotations

import os

from narrows.errors import WorldError


def launched() -> tuple[int, int]:
    """Rank and size as the launcher said them (RANK, WORLD_SIZE); (0, 1) without one.

    Raises:
        WorldError: where they make no sense.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
        return int(rank), int(size)
    raise WorldError(
        f"RANK={rank} and WORLD_SIZE={size}", "whole numbers, the rank below the size", "torchrun sets them"
    )


def local_rank() -> int:
    """Which of the processes on this machine this one is (LOCAL_RANK); 0 without a launcher."""
    word = os.environ.get("LOCAL_RANK", "0")
    return int(word) if word.isdecimal() else 0


def restarted() -> bool:
    """Whether the launcher has started the processes again, after one of them was lost."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
