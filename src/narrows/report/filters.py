"""What the units of an encoder's first layer look for: their weights as pictures, curves or a map over columns.

    dense layers over cells: a unit's weights on an image or a series, or by column   convolutions: their kernels

Weights are shown each on its own scale, those units first whose weights are longest. First layers of recurrent networks
and transformers read what has no shape to be seen, as do a user's own networks; these show nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from narrows.fitted import Model
from narrows.model.embed import Embed, GridEmbed, Values
from narrows.networks.conv import ConvEncoder
from narrows.networks.dense import MemberLinear
from narrows.networks.fused import Fused
from narrows.report.cells import Floats, drawing
from narrows.report.charts import overlay
from narrows.report.pixels import as_image, data_uri
from narrows.report.sheets import SIDE
from narrows.schema import Column

PICTURES, CHARTS = 48, 12  # units shown
UNITS, COLUMNS = 48, 24  # of a map
LEVELS = 5  # shades of a map, beside none
SMALLEST = 3  # cells of a kernel's side below which a picture says nothing

IMAGES = "Each picture is a unit: what is bright excites it, what is dark silences it, gray does not matter to it."
KERNELS = "Each picture is the kernel of a channel: what is bright excites it, what is dark silences it."
CURVES = "Each curve is a unit: it fires where rows run alike."
MAP = (
    "A column's line, a unit in each place: blue where more of the column excites the unit, orange where it silences "
    "it, the ink of the text where it has several inputs; faint is little weight."
)


@dataclass(frozen=True)
class Layer:
    """The first layer, drawn.

    Args:
        note: how to read it.
        pictures: image column -> addresses.
        charts: column of curves -> charts.
        map: for each scalar column its name, and a strip of one place a unit.
    """

    note: str
    pictures: list[tuple[str, list[str]]] = field(default_factory=list)
    charts: list[tuple[str, list[Markup]]] = field(default_factory=list)
    map: list[tuple[str, Markup]] = field(default_factory=list)


def first_layer(model: Model) -> Layer | None:
    """The first layer of a model's encoder, or None where there is nothing to be seen in it."""
    module = model.module
    if isinstance(module.embed, Embed) and model.network is not None:
        return _of_dense(model, module.embed, module.encoder)
    if isinstance(module.embed, GridEmbed) and isinstance(module.encoder, Fused):
        return _of_kernels(module.embed, module.encoder)
    return None


def weights_of(encoder: nn.Module) -> Tensor:
    """(units, inputs) weights of a dense encoder's first layer; the first member's where there are several."""
    first = next(part for part in encoder.modules() if isinstance(part, nn.Linear | MemberLinear))
    weight = first.weight.detach().float().cpu()
    return weight[0].T if isinstance(first, MemberLinear) else weight


def inputs_of(embed: Embed, model: Model) -> dict[str, list[int]]:
    """Which inputs of the first layer each column's cells or levels are; without flags of holes, and without texts."""
    place = {cell: i for i, cell in enumerate(embed.at.tolist())}
    hot = {cell: i for i, cell in enumerate(embed.hot.tolist())}
    found = {}
    for column in model.schema:
        span = model.schema.spans[column.name]
        if not column.categorical:
            found[column.name] = [place[cell] for cell in range(span.start, span.stop) if cell in place]
        elif not column.grid and not column.classes:  # the vectors of a table are no inputs that anybody can read
            at = hot[span.start - model.schema.numbers]
            start = len(place) + int(embed.starts[at])
            found[column.name] = list(range(start, start + column.levels))
    return {name: inputs for name, inputs in found.items() if inputs}


def _of_dense(model: Model, embed: Embed, encoder: nn.Module) -> Layer | None:
    weights, inputs = weights_of(encoder), inputs_of(embed, model)
    pictures, charts, rest = [], [], []
    for column in model.schema:
        if column.name not in inputs:
            continue
        part, way = weights[:, inputs[column.name]], drawing(column)
        longest = part.norm(dim=1).argsort(descending=True)
        if way == "picture":
            drawn = [_picture(part[i].view(column.shape).numpy()) for i in longest[:PICTURES]]
            pictures.append((column.name, drawn))
        elif way == "lines":
            charts.append((column.name, _charts(part[longest[:CHARTS]], column)))
        elif way == "cell":
            rest.append((column.name, part))
    notes = [note for note, drawn in ((IMAGES, pictures), (CURVES, charts), (MAP, rest)) if drawn]
    return Layer(" ".join(notes), pictures, charts, _map(rest)) if notes else None


def _of_kernels(embed: GridEmbed, encoder: Fused) -> Layer | None:
    """The kernels of convolutions, wide enough to be seen."""
    pictures, charts = [], []
    for part, column, trunk in zip(embed.parts, embed.columns, encoder.trunks, strict=True):
        if not (isinstance(part, Values) and isinstance(trunk, ConvEncoder)):
            continue
        kernels = kernels_of(trunk, column.grid[-1])
        longest = kernels.flatten(1).norm(dim=1).argsort(descending=True)
        if kernels.shape[1] < SMALLEST:
            continue
        if kernels.ndim == 4:
            pictures.append((column.name, [_picture(kernels[i].numpy()) for i in longest[:PICTURES]]))
        else:
            charts.append((column.name, _charts(kernels[longest[:CHARTS]].flatten(1), column)))
    notes = [note for note, drawn in ((KERNELS, pictures), (CURVES, charts)) if drawn]
    return Layer(" ".join(notes), pictures, charts) if notes else None


def kernels_of(trunk: ConvEncoder, channels: int) -> Tensor:
    """(channels out, *positions, channels) first kernels over the grid itself, without flags of holes.

    Args:
        trunk: whose first layer reads folded patches.
        channels: of values at a position.
    """
    first = next(part for part in trunk.modules() if isinstance(part, nn.Conv1d | nn.Conv2d))
    weight = first.weight.detach().float().cpu()
    axes, fold, size = weight.ndim - 2, trunk.fold, weight.shape[-1]
    parted = weight.view(len(weight), *[fold] * axes, -1, *[size] * axes)  # out, folds, channels, kernel
    order = [place for axis in range(axes) for place in (2 + axes + axis, 1 + axis)]
    unfolded = parted.permute(0, *order, 1 + axes).reshape(len(weight), *[size * fold] * axes, -1)
    return unfolded[..., :channels]


def _picture(weights: Floats) -> str:
    """Gray for 0, each on its own scale."""
    return data_uri(as_image(0.5 + 0.5 * weights / max(float(np.abs(weights).max()), 1e-30)), SIDE)


def _charts(weights: Tensor, column: Column) -> list[Markup]:
    """A chart for each unit, a line for its first channel."""
    width = column.grid[-1] if column.grid else 1
    steps = weights[:, : weights.shape[1] // width * width].view(len(weights), -1, width)[..., 0].double().numpy()
    return [overlay([("model", line)], f"unit {i + 1} over {column.name}") for i, line in enumerate(steps)]


def _map(parts: list[tuple[str, Tensor]]) -> list[tuple[str, Markup]]:
    """A strip for each of the columns whose weights are longest."""
    if not parts:
        return []
    lengths = torch.stack([part.norm(dim=1) for _, part in parts])  # (columns, units)
    units = lengths.norm(dim=0).argsort(descending=True)[:UNITS]
    columns = sorted(lengths.norm(dim=1).topk(min(COLUMNS, len(parts))).indices.tolist())
    largest = float(lengths[columns][:, units].max()) or 1.0
    strips = []
    for i in columns:
        name, part = parts[i]
        values = part[units, 0] if part.shape[1] == 1 else lengths[i, units]
        strips.append((name, _strip(values / largest, signed=part.shape[1] == 1)))
    return strips


def _strip(values: Tensor, signed: bool) -> Markup:
    """One place a unit, in so many shades: a path for each."""
    paths = []
    shades = (values.abs() * LEVELS).ceil().clamp(max=LEVELS)
    for word, chosen in (("up", values > 0), ("down", values < 0)):
        for shade in range(1, LEVELS + 1):
            places = (chosen & (shades == shade)).nonzero().flatten().tolist()
            if places:
                drawn = "".join(f"M{place} 0h.9v1h-.9z" for place in places)
                style = word if signed else "either"
                paths.append(Markup('<path class="{}" opacity="{:g}" d="{}"/>').format(style, shade / LEVELS, drawn))
    return Markup('<svg viewBox="0 0 {} 1" preserveAspectRatio="none" role="img" aria-label="weights">{}</svg>').format(
        len(values), Markup("").join(paths)
    )
