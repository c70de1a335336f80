"""Convolutional encoder and decoder of images (H, W) and series (T,): residual stages, each at half the size.

What costs in a convolutional autoencoder are the layers at full size. So the first layer folds small patches into
channels (2 x 2 pixels by default) and the last one unfolds them (Shi et al. 2016, sub-pixel convolution); in between
the decoder enlarges by repeating the nearest value and convolving, which leaves no checkerboard (Odena et al. 2016)
and exports everywhere. The vector is the last, smallest map: it keeps where things are, and is as wide as that takes.
With `spatial` the code itself keeps that map's positions (see `fused.PerPosition`); stages that do not halve, such as
`Conv(channels=(64,), depth=4, fold=2, spatial=True)`, make a denoising network at half resolution (Zhang et al. 2018).
What this file does not know: what the channels mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, Self

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.networks.dense import DEEPEST, RECTIFIERS, WIDEST, Activation, Dropout, activation
from narrows.networks.grids import Feedback, Grid, GridDecoder, GridEncoder, folded, unfolded, without_absent

ConvNorm = Literal["layer", "none"]
CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}
SMALLEST = {1: 8, 2: 4}  # positions a side of the last map, by default
LONGEST = 256  # positions a side of the first map, by default: longer grids are folded by more


@dataclass(frozen=True)
class Conv:
    """Settings of a convolutional encoder-decoder pair. The field texts are also the command line's help."""

    channels: tuple[int, ...] | None = None
    """Channels of each stage, such as 32 64 128; each stage after the first halves the size. By default as many stages
    as lead to 4 positions a side, 8 in a series."""

    kernel: int = 3
    """Positions a side that a convolution looks at; odd."""

    depth: int = 1
    """Residual blocks in each stage (He et al. 2016), of two convolutions each."""

    fold: int | None = None
    """Positions a side that are folded into channels first and unfolded last; by default 4, less in small
    grids, more in long ones."""

    norm: ConvNorm = "layer"
    """Normalization before each activation: layer (Ba et al. 2016, over the row's whole map), which bears Muon's
    learning rate, or none, with which heartbeats diverged and MNIST's error was 5.3 instead of 3.6 in equal steps."""

    activation: Activation = "silu"
    """Before each convolution of a block."""

    dropout: float = 0.0
    """Share of hidden units silenced in training, inside each block."""

    spatial: bool = False
    """Whether the code keeps the positions of the last map, some numbers at each, for rows that are one image, series,
    sound or text: the size of the code is a multiple of these positions then."""

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            SettingError: naming the setting.
        """
        activation(self.activation)
        if self.channels is not None and (
            not self.channels or any(not isinstance(c, int) or not 0 < c <= WIDEST for c in self.channels)
        ):
            raise SettingError(f"channels={self.channels!r}", f"widths from 1 to {WIDEST:,}, such as (32, 64, 128)")
        if not (isinstance(self.kernel, int) and 0 < self.kernel <= WIDEST and self.kernel % 2):
            raise SettingError(f"kernel={self.kernel!r}", "an odd number of positions, such as 3")
        if self.channels is not None and len(self.channels) > DEEPEST:
            raise SettingError(f"channels of {len(self.channels):,} stages", f"at most {DEEPEST:,}")
        for name, most in (("depth", DEEPEST), ("fold", WIDEST)):
            value = getattr(self, name)
            if not (isinstance(value, int) and 0 < value <= most) and (name, value) != ("fold", None):
                raise SettingError(f"{name}={value!r}", f"from 1 to {most:,}")
        if self.norm not in ("layer", "none"):
            raise SettingError(f"norm={self.norm!r}", "layer or none")
        if not (isinstance(self.dropout, float | int) and 0 <= self.dropout < 1):
            raise SettingError(f"dropout={self.dropout!r}", "a share from 0 up to, not including, 1")

    def positions(self, grid: Grid) -> tuple[int, ...]:
        """How the positions of the last map are arranged: (H, W) or (T,)."""
        fold, channels = self._sizes(grid)
        return halvings(grid.positions, fold, len(channels))[-1]

    def pair(self, grid: Grid) -> tuple[GridEncoder, GridDecoder]:
        """An encoder and a decoder of images (H, W) or series (T,).

        Raises:
            SettingError: for settings out of range, or a grid of more axes.
        """
        self.check()
        if len(grid.positions) not in CONVOLUTIONS:
            raise SettingError(f"a grid of {len(grid.positions)} axes for conv", "an image (H, W) or a series (T,)")
        fold, channels = self._sizes(grid)
        return ConvEncoder(self, grid, fold, channels), ConvDecoder(self, grid, fold, channels)

    def settled(self, grid: Grid, told: bool = False) -> Self:
        """The same with the fold and channels that the defaults give; `told` is not for convolutions."""
        fold, channels = self._sizes(grid)
        return replace(self, fold=fold, channels=tuple(channels))

    def _sizes(self, grid: Grid) -> tuple[int, Sequence[int]]:
        """Positions a side that are folded, and channels of each stage."""
        fold = self.fold or default_fold(grid.positions)
        first = tuple(-(-n // fold) for n in grid.positions)
        return fold, self.channels or default_channels(first)


def default_fold(positions: Sequence[int]) -> int:
    """A power of two: 4, less where a side has fewer than 16 positions, more where it has more than 1024.

    At 28 x 28 a fold of 4 reads five times as many rows in a second as one of 2, and learns more in the same time.
    """
    longest = max(positions)
    fold = 4 if longest >= 16 else 2 if longest > 1 else 1
    while longest > fold * LONGEST:
        fold *= 2
    return fold


def default_channels(first: Sequence[int]) -> tuple[int, ...]:
    """Channels of each stage: 32, doubled to at most 128 in images and 64 in series, until the map is small.

    An image of 28 x 28 gets (32, 64) on maps of 7 and 4; a series of 140 gets (32, 64, 64, 64) on 35, 18, 9 and 5.
    """
    most = 128 if len(first) > 1 else 64
    channels, longest = [32], max(first)
    while longest > SMALLEST[len(first)]:
        longest = -(-longest // 2)
        channels.append(min(2 * channels[-1], most))
    return tuple(channels)


class ConvEncoder(GridEncoder):
    """Folds, then stages of residual blocks; the vector is the last map, flattened."""

    def __init__(self, settings: Conv, grid: Grid, fold: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.fold = fold
        axes, kernel = len(grid.positions), settings.kernel
        sizes = halvings(grid.positions, fold, len(channels))
        self.width = channels[-1] * prod(sizes[-1])
        layers: list[nn.Module] = [convolution(axes, grid.inputs * fold**axes, channels[0], kernel)]
        for stage, width in enumerate(channels):
            if stage:
                layers.append(convolution(axes, channels[stage - 1], width, kernel, stride=2))
            layers += blocks(settings, axes, width, len(channels))
        self.layers = nn.Sequential(*layers, *normed(settings, channels[-1]))

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """(B, *positions, inputs) -> (B, width); absent positions are read as zeros."""
        # a view with the channels last in memory, as convolutions on CPUs like them
        maps = folded(without_absent(x, present), self.fold).movedim(-1, 1)
        vector: Tensor = self.layers(maps).movedim(1, -1).flatten(1)
        return vector


class ConvDecoder(GridDecoder):
    """The encoder in reverse: stages that enlarge to the very sizes the encoder met, then unfolds."""

    autoregressive = False

    def __init__(self, settings: Conv, grid: Grid, fold: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.fold, self.grid = fold, grid
        axes, kernel = len(grid.positions), settings.kernel
        *sizes, smallest = halvings(grid.positions, fold, len(channels))
        self.map = (*smallest, channels[-1])
        self.width = prod(self.map)
        layers: list[nn.Module] = []
        for stage in reversed(range(len(channels))):
            width = channels[stage]
            layers += blocks(settings, axes, width, len(channels))
            if stage:
                enlarge = nn.Upsample(size=sizes[stage - 1], mode="nearest")
                layers += [enlarge, convolution(axes, width, channels[stage - 1], kernel)]
        last = convolution(axes, channels[0], grid.outputs * fold**axes, kernel)
        self.layers = nn.Sequential(*layers, *normed(settings, channels[0]), last)

    def forward(self, vector: Tensor, targets: Tensor | None = None, feedback: Feedback | None = None) -> Tensor:
        """(B, width) -> (B, *positions, outputs)"""
        maps = self.layers(vector.reshape(-1, *self.map).movedim(-1, 1))
        return unfolded(maps.movedim(1, -1), self.fold, self.grid.positions)


class Block(nn.Module):
    """`x` plus two convolutions of it, normalized and activated before each (He et al. 2016, "identity mappings")."""

    def __init__(self, settings: Conv, axes: int, width: int, among: int) -> None:
        super().__init__()
        first, second = (convolution(axes, width, width, settings.kernel, settings.activation) for _ in range(2))
        with torch.no_grad():  # what n blocks add to their input must not grow with n
            second.weight /= among**0.5
        silence = [Dropout(settings.dropout, rows=0)] if settings.dropout else []
        self.layers = nn.Sequential(*normed(settings, width), first, *normed(settings, width), *silence, second)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, *positions), as it came."""
        added: Tensor = x + self.layers(x)
        return added


def blocks(settings: Conv, axes: int, width: int, stages: int) -> list[nn.Module]:
    """The residual blocks of one stage among so many."""
    return [Block(settings, axes, width, settings.depth * stages) for _ in range(settings.depth)]


def normed(settings: Conv, width: int) -> list[nn.Module]:
    """Normalization and activation, as they stand before a convolution.

    Over all channels at once: with eight groups torch 2.13 takes ten times as long in bfloat16, channels last.
    """
    norm = [nn.GroupNorm(1, width, affine=False)] if settings.norm == "layer" and width > 1 else []
    return [*norm, activation(settings.activation)]


def convolution(
    axes: int, inputs: int, outputs: int, kernel: int, preceding: str = "", stride: int = 1
) -> nn.Conv1d | nn.Conv2d:
    """A convolution that keeps the size, or halves it rounding up; drawn for the activation that stands before it."""
    layer = CONVOLUTIONS[axes](inputs, outputs, kernel, stride, padding=kernel // 2, bias=True)
    gain = 2.0 if preceding in RECTIFIERS else 1.0
    nn.init.normal_(layer.weight, std=(gain / (inputs * kernel**axes)) ** 0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def halvings(positions: Sequence[int], fold: int, stages: int) -> list[tuple[int, ...]]:
    """The map's size in each stage: the folded size, then halves of it, rounded up."""
    sizes = [tuple(-(-n // fold) for n in positions)]
    while len(sizes) < stages:
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    return sizes
