"""What is done to rows before anything else in training: it changes what the model is to reconstruct.

    "shift+flip"  -> images moved and mirrored, in training only: more images than there are
    "binarize"    -> cells in [0, 1] drawn as 0 or 1, in training and in validation: another likelihood

An augmented row is drawn anew for each step. Validation is the same each time, since the generator is seeded before it.
What this file does not know: whether a mirrored image means the same. Digits and letters do not.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.corruptions import Corruption
from narrows.schema import Batch, Schema
from narrows.world import drawn

WORD = re.compile(r"(shift|flip|binarize)(?:\((\d+)\))?")
SHIFT = 2  # pixels, by default


def augmentations(words: str) -> tuple[Corruption, ...]:
    """The augmentations that words ask for, in their order.

    Args:
        words: `shift`, `shift(3)`, `flip`, `binarize`, joined by `+`; empty for none.

    Raises:
        SettingError: for anything else, or one of them twice.
    """
    found: dict[str, Corruption] = {}
    for word in words.split("+") if words else ():
        match = WORD.fullmatch(word.strip())
        if not match or match[1] in found or (match[2] and match[1] != "shift"):
            raise SettingError(f"augment={words!r}", "shift, shift(3), flip, binarize or several, as in shift+flip")
        found[match[1]] = Shift(int(match[2] or SHIFT)) if match[1] == "shift" else SIMPLE[match[1]]()
    return tuple(found.values())


class _OfImages(Corruption):
    """What moves the pixels of images about; masks move with them, validation rows stay."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[slice, tuple[int, ...]]] = []

    def suit(self, schema: Schema) -> None:
        """Find the images of this schema.

        Raises:
            SettingError: where there are none.
        """
        columns = [column for column in schema if column.kind == "image" and column.grid]
        self.images = [(_inside(schema.spans[c.name].start, c.grid), c.grid) for c in columns]
        if not self.images:
            word = type(self).__name__.lower()
            raise SettingError(f"augment={word} for rows without images", "image columns", "--column.NAME image")

    def forward(self, batch: Batch) -> Batch:
        """The batch with its images moved, each by a draw of its own."""
        if not self.training:
            return batch
        numbers, seen = batch.numbers.clone(), None if batch.seen is None else batch.seen.clone()
        for span, grid in self.images:
            pixels = self.sources(len(batch), grid, numbers.device)
            numbers[:, span] = _taken(numbers[:, span], pixels, grid)
            if seen is not None:
                seen[:, span] = _taken(seen[:, span], pixels, grid)
        return replace(batch, numbers=numbers, seen=seen)

    @abstractmethod
    def sources(self, rows: int, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """(rows, height x width) the pixel that each pixel is taken from."""


class Shift(_OfImages):
    """Moves images by up to so many pixels along both axes; the edge goes on into what is laid bare.

    Args:
        most: pixels, at least 1.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        if most < 1:
            raise SettingError(f"shift({most})", "pixels, at least 1")
        self.most = most

    def sources(self, rows: int, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """See `_OfImages`."""
        height, width = grid[:2]
        by = drawn(partial(_whole, self.most), 2, rows, 1, rows=1, device=device)
        down = (torch.arange(height, device=device) + by[0]).clamp(0, height - 1)
        across = (torch.arange(width, device=device) + by[1]).clamp(0, width - 1)
        return (down[:, :, None] * width + across[:, None, :]).flatten(1)


class Flip(_OfImages):
    """Mirrors every other image, left to right."""

    def sources(self, rows: int, grid: tuple[int, ...], device: torch.device) -> Tensor:
        """See `_OfImages`."""
        height, width = grid[:2]
        pixels = torch.arange(height * width, device=device).view(height, width)
        mirrored = drawn(torch.rand, rows, 1, device=device) < 0.5
        return torch.where(mirrored, pixels.flip(1).flatten(), pixels.flatten())


class Binarize(Corruption):
    """Draws each cell in [0, 1] as 1 with its value as the chance, else as 0.

    The dynamic binarization that likelihoods of MNIST are reported by (Salakhutdinov & Murray 2008; Burda et al. 2016).
    Validation rows are drawn too, the same each time, since the loss is one of binary rows; `score` and `evaluate`
    take rows as they come.
    """

    bounded: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounded", torch.zeros(0, dtype=torch.bool), persistent=False)

    def suit(self, schema: Schema) -> None:
        """Find the cells in [0, 1].

        Raises:
            SettingError: where there are none.
        """
        cells = [cell for cell in schema.cells_where(bounded=True) if cell < schema.numbers]
        if not cells:
            raise SettingError("augment=binarize for rows without numbers in [0, 1]", "images, or --column.NAME minmax")
        self.bounded = torch.zeros(schema.numbers, dtype=torch.bool)
        self.bounded[cells] = True

    def forward(self, batch: Batch) -> Batch:
        """The batch with those cells 0 or 1."""
        chances = batch.numbers
        ones = (drawn(torch.rand, *chances.shape, device=chances.device) < chances).to(chances.dtype)
        return replace(batch, numbers=torch.where(self.bounded, ones, chances))


SIMPLE: dict[str, Callable[[], Corruption]] = {"flip": Flip, "binarize": Binarize}


def _whole(most: int, *shape: int, device: torch.device) -> Tensor:
    """Whole numbers from -most to most."""
    return torch.randint(-most, most + 1, shape, device=device)


def _inside(start: int, grid: tuple[int, ...]) -> slice:
    """The cells of a grid that begins here."""
    return slice(start, start + prod(grid))


def _taken(cells: Tensor, pixels: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, cells) of images, each pixel with all its channels from another one."""
    by_pixel = cells.reshape(len(cells), -1, grid[-1])
    return by_pixel.gather(1, pixels.unsqueeze(-1).expand(-1, -1, grid[-1])).flatten(1)
