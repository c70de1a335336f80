"""What every network over a grid promises: an encoder from a grid to one vector, and a decoder back.

A grid is an image, a series, a text or the cells of a table: numbers at positions. Each kind of network (convolutional,
recurrent, transformer) is a small dataclass of settings whose `pair` builds both halves for one grid. The vector's
width is the network's own choice; whoever joins it to a code adds the one linear layer between.
What this file does not know: what stands at a position, and where it came from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol, Self

import torch.nn.functional as F
from torch import Tensor, nn

Feedback = Callable[[Tensor], Tensor]
"""What a decoder said of one position, (B, outputs), as it is read at the next one: (B, inputs)."""


MOST = 64  # patches of a grid, by default


@dataclass(frozen=True)
class Grid:
    """What a network needs to know of the grid it reads and writes."""

    positions: tuple[int, ...]
    """(H, W) or (T,): how the positions are arranged."""

    inputs: int
    """Channels that enter at each position."""

    outputs: int
    """Numbers that leave at each position."""

    @property
    def count(self) -> int:
        """The number of positions."""
        return prod(self.positions)


class GridEncoder(nn.Module, ABC):
    """A grid to one vector.

    Attributes:
        width: numbers of the vector.
    """

    width: int

    @abstractmethod
    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """The vector of each row, finite also where nothing is present.

        Args:
            x: (B, *positions, inputs). Absent positions are read as zeros, so a channel that tells a zero from
                nothing must be 1 where something is.
            present: (B, *positions), bool, false where a position holds nothing, such as padding; None if all do.

        Returns:
            (B, width)
        """


class GridDecoder(nn.Module, ABC):
    """One vector back to a grid.

    Attributes:
        width: numbers of the vector.
        autoregressive: whether a position's outputs depend on what stands at the positions before it.
    """

    width: int
    autoregressive: bool

    @abstractmethod
    def forward(self, vector: Tensor, targets: Tensor | None = None, feedback: Feedback | None = None) -> Tensor:
        """The outputs at every position.

        Only an autoregressive decoder reads `targets` and `feedback`. Given targets, position t sees those before t
        (teacher forcing, one pass). Without, it runs freely: what it said at t is fed back as the input of t + 1.

        Args:
            vector: (B, width).
            targets: (B, *positions, inputs), what truly stood there.
            feedback: outputs of one position to the inputs of the next; needed to run freely.

        Returns:
            (B, *positions, outputs)
        """


class GridNetwork(Protocol):
    """Settings of a network over grids: `Conv`, `Recurrent`, `Transformer`."""

    def check(self) -> None:
        """Refuse settings out of range with a `SettingError`."""

    def settled(self, grid: Grid, told: bool = False) -> Self:
        """The same with what the defaults give for a grid.

        Args:
            grid: to be read and written.
            told: whether it is best said position by position, as texts are, by a network that can do that.
        """

    def pair(self, grid: Grid) -> tuple[GridEncoder, GridDecoder]:
        """An encoder and a decoder of this grid, each with a `width` of its own.

        Raises:
            SettingError: for settings out of range, or a grid that this network does not take.
        """


def default_patch(positions: Sequence[int]) -> int:
    """The least power of two that leaves at most 64 patches."""
    patch = 1
    while prod(patches(positions, patch)) > MOST:
        patch *= 2
    return patch


def patches(positions: Sequence[int], patch: int) -> tuple[int, ...]:
    """Patches along each axis; the last one may stick out."""
    return tuple(-(-n // patch) for n in positions)


def folded(x: Tensor, fold: int) -> Tensor:
    """(B, *positions, C) -> (B, *smaller, fold ** axes * C): patches as channels; zeros where the last stick out."""
    x = F.pad(x, [0, 0, *(gap for n in reversed(x.shape[1:-1]) for gap in (0, -n % fold))])
    smaller = [n // fold for n in x.shape[1:-1]]
    axes = len(smaller)
    x = x.reshape(-1, *(n for side in smaller for n in (side, fold)), x.shape[-1])
    x = x.permute(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
    return x.flatten(1 + axes)


def unfolded(x: Tensor, fold: int, positions: Sequence[int]) -> Tensor:
    """`folded` undone: (B, *smaller, fold ** axes * C) -> (B, *positions, C)."""
    axes, smaller = len(positions), x.shape[1:-1]
    x = x.reshape(-1, *smaller, *[fold] * axes, x.shape[-1] // fold**axes)
    x = x.permute(0, *(axis for i in range(1, axes + 1) for axis in (i, axes + i)), 2 * axes + 1)
    x = x.reshape(-1, *(n * fold for n in smaller), x.shape[-1])
    for axis, length in enumerate(positions, start=1):
        x = x.narrow(axis, 0, length)
    return x


def without_absent(x: Tensor, present: Tensor | None) -> Tensor:
    """`x` with zeros at the absent positions, whatever stood there."""
    return x if present is None else x.masked_fill(~present[..., None], 0.0)


def needed(feedback: Feedback | None) -> Feedback:
    """The feedback, without which a decoder cannot run freely.

    Raises:
        TypeError: if there is none.
    """
    if feedback is None:
        raise TypeError("an autoregressive decoder without targets needs feedback")
    return feedback
