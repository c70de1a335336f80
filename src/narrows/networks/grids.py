"""What every network over a grid promises: an encoder from a grid to one vector, and a decoder back.

A grid is an image, a series, a text or the cells of a table: numbers at positions. Each kind of network (convolutional,
recurrent, transformer) is a small dataclass of settings whose `pair` builds both halves for one grid. The vector's
width is the network's own choice; whoever joins it to a code adds the one linear layer between.
What this file does not know: what stands at a position, and where it came from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Protocol

from torch import Tensor, nn

Feedback = Callable[[Tensor], Tensor]
"""What a decoder said of one position, (B, outputs), as it is read at the next one: (B, inputs)."""


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
            x: (B, *positions, inputs).
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

    def pair(self, grid: Grid) -> tuple[GridEncoder, GridDecoder]:
        """An encoder and a decoder of this grid, both of the same `width`.

        Raises:
            SettingError: for settings out of range, or a grid that this network does not take.
        """
