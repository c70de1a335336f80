"""Codes of pixels: what a convolutional encoder sees at each one, and the raw patch around it to compare with.

The maps of every stage are brought to full resolution. The first layer folds patches of `fold` x `fold` pixels, so a
map alone could not tell the pixels of a patch apart: the image is read once for each place of a pixel in its patch,
with the pixel in the middle (shift and stitch; Sermanet et al. 2014). The price is `fold` squared passes.
What this file does not know: what pixels are classed as.
"""

from __future__ import annotations

from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from narrows.errors import SettingError
from narrows.fitted import Model
from narrows.model.embed import GridEmbed
from narrows.networks.conv import Block, ConvEncoder
from narrows.networks.fused import Fused
from narrows.networks.grids import folded, without_absent
from narrows.schema import Batch

PATCH = 7  # pixels a side of a raw patch: wider than a stroke of a digit, and 49 numbers a channel


def trunk_of(model: Model) -> tuple[int, ConvEncoder]:
    """Which grid is the image, and the network that reads it.

    Raises:
        SettingError: for a model without exactly one image that convolutions read.
    """
    module = model.module
    found = []
    if isinstance(module.embed, GridEmbed) and isinstance(module.encoder, Fused):
        for index, trunk in enumerate(module.encoder.trunks):
            if isinstance(trunk, ConvEncoder) and len(module.embed.columns[index].grid) == 3:
                found.append((index, trunk))
    if len(found) != 1:
        got = f"a model of {len(found)} images that convolutions read"
        raise SettingError(f"{got}, to class pixels by", "one", "network='conv' on a column of images")
    return found[0]


def size_of(model: Model) -> tuple[int, int]:
    """Height and width of the image.

    Raises:
        SettingError: as `trunk_of`.
    """
    index, _ = trunk_of(model)
    height, width, _ = cast(GridEmbed, model.module.embed).columns[index].grid
    return height, width


@torch.inference_mode()
def pixel_codes(model: Model, batch: Batch) -> Tensor:
    """(B, H, W, F) what the encoder's stages, and the embedding, hold at each pixel."""
    index, trunk = trunk_of(model)
    view = model.module.embed(batch.dense().to(model.module.device))
    image = without_absent(view.grids[index], view.present[index])
    _, height, width, _ = image.shape
    codes: Tensor | None = None
    for down, right in product(range(trunk.fold), repeat=2):
        # a pixel of row y stands in row y + down, and is read where that is the middle of a patch
        maps = _maps(trunk, F.pad(image, (0, 0, right, 0, down, 0)))
        rows, in_rows = _middles(height, down, trunk.fold)
        columns, in_columns = _middles(width, right, trunk.fold)
        if codes is None:
            codes = maps.new_empty(len(image), height, width, maps.shape[1])
        codes[:, rows[:, None], columns] = maps[:, :, in_rows[:, None], in_columns].permute(0, 2, 3, 1)
    return image if codes is None else torch.cat([codes, image], dim=-1)


@torch.inference_mode()
def patches(model: Model, batch: Batch) -> Tensor:
    """(B, H, W, PATCH * PATCH * channels) the raw pixels around each one, zeros outside."""
    index, _ = trunk_of(model)
    image = model.module.embed(batch.dense().to(model.module.device)).grids[index].movedim(-1, 1)
    around = F.unfold(image, PATCH, padding=PATCH // 2)
    return around.view(len(image), -1, *image.shape[2:]).movedim(1, -1)


def _middles(size: int, shift: int, fold: int) -> tuple[Tensor, Tensor]:
    """Pixels of an axis that a shift brings to the middle of a patch, and which patch that is."""
    first = (fold // 2 - shift) % fold
    pixels = torch.arange(first, size, fold)
    return pixels, (pixels + shift) // fold


def _maps(trunk: ConvEncoder, image: Tensor) -> Tensor:
    """(B, F, h, w) the last map of each stage, all enlarged to the size of the first."""
    x, maps, layers = folded(image, trunk.fold).movedim(-1, 1), [], list(trunk.layers)
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        x = layer(x)
        if isinstance(layer, Block) and not isinstance(following, Block):
            maps.append(x)
    size = maps[0].shape[2:]
    larger = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in maps[1:]]
    return torch.cat([maps[0], *larger], dim=1).float()
