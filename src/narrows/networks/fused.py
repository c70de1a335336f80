"""An encoder that joins the grids of a row with everything else, and a decoder that parts them again.

    View: vector (B, R), grids (B, *positions, channels)
      each grid -> its own encoder -> a vector; all vectors joined -> body -> features
      code -> body -> the outputs of the rest, and a vector for each grid's decoder -> outputs (K, B, O)

What this file does not know: which columns the grids are, and what the outputs are used for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from narrows.networks.grids import Feedback, GridDecoder, GridEncoder


@dataclass(frozen=True)
class View:
    """B rows as a network with grids sees them.

    Args:
        vector: (B, R) everything that is in no grid.
        grids: (B, *positions, channels) each.
        present: (B, *positions) bool each, which positions are there; None for all.
    """

    vector: Tensor
    grids: tuple[Tensor, ...]
    present: tuple[Tensor | None, ...]

    def repeat(self, times: int) -> View:
        """The rows, all of them so many times over."""

        def more(tensor: Tensor) -> Tensor:
            return tensor.repeat(times, *[1] * (tensor.ndim - 1))

        present = tuple(None if mask is None else more(mask) for mask in self.present)
        return View(more(self.vector), tuple(map(more, self.grids)), present)


class Fused(nn.Module):
    """View -> (B, features).

    Args:
        trunks: an encoder for each grid.
        body: (B, R + the trunks' widths) -> (B, features).
    """

    def __init__(self, trunks: Sequence[GridEncoder], body: nn.Module) -> None:
        super().__init__()
        self.trunks, self.body = nn.ModuleList(trunks), body

    def forward(self, view: View) -> Tensor:
        """The features of each row."""
        grids = zip(self.trunks, view.grids, view.present, strict=True)
        vectors = [trunk(grid, present) for trunk, grid, present in grids]
        features: Tensor = self.body(
            torch.cat([view.vector, *vectors], dim=1) if view.vector.shape[1] else _join(vectors)
        )
        return features


class Parted(nn.Module):
    """Codes (K, B, size) -> (K, B, outputs).

    Args:
        body: (..., size) -> (..., rest + the trunks' widths).
        trunks: a decoder for each grid.
        spans: where each trunk's outputs stand among all; the rest fills the gaps, in order.
        outputs: of a row.
    """

    def __init__(self, body: nn.Module, trunks: Sequence[GridDecoder], spans: Sequence[slice], outputs: int) -> None:
        super().__init__()
        self.body, self.trunks, self.spans = body, nn.ModuleList(trunks), list(spans)
        self.rest = outputs - sum(span.stop - span.start for span in spans)
        self.autoregressive = any(trunk.autoregressive for trunk in trunks)

    def forward(self, z: Tensor, targets: View | None = None, feedback: Sequence[Feedback] = ()) -> Tensor:
        """The outputs that describe each row.

        Args:
            z: (K, B, size).
            targets: the rows themselves, for decoders that read what came before; None lets these run freely.
            feedback: for each grid, what one position's outputs look like as input of the next.
        """
        samples, rows, _ = z.shape
        vectors = self.body(z.flatten(0, 1)).split([self.rest, *(trunk.width for trunk in self._decoders)], dim=1)
        view = targets if targets is None or samples == 1 else targets.repeat(samples)
        parts = []
        for index, (trunk, vector) in enumerate(zip(self._decoders, vectors[1:], strict=True)):
            if not trunk.autoregressive:
                grid = trunk(vector)
            else:
                grid = trunk(vector, None if view is None else view.grids[index], feedback[index] if feedback else None)
            parts.append(grid.flatten(1))
        return self._placed(vectors[0], parts).view(samples, rows, -1)

    @property
    def _decoders(self) -> list[GridDecoder]:
        return [cast(GridDecoder, trunk) for trunk in self.trunks]

    def _placed(self, rest: Tensor, grids: list[Tensor]) -> Tensor:
        """Every grid's outputs in their place, the rest in the gaps."""
        parts, at, used = [], 0, 0
        for index in sorted(range(len(grids)), key=lambda index: self.spans[index].start):
            gap = self.spans[index].start - at
            parts += [rest[:, used : used + gap], grids[index]]
            used, at = used + gap, self.spans[index].stop
        parts.append(rest[:, used:])
        return _join([part.to(grids[0].dtype) for part in parts if part.shape[1]])


class PerPosition(nn.Module):
    """One linear map for all positions of a grid, a convolution of 1 x 1: (..., P * inputs) -> (..., P * outputs).

    Vectors come and leave position by position. Where each code number wants several features, such as a mean and a log
    variance, these leave in so many parts, each of them position by position: `chunk(parts, -1)` gives them.

    Args:
        positions: P.
        inputs: numbers at a position.
        outputs: likewise, in each part.
        parts: features of each number.
    """

    def __init__(self, positions: int, inputs: int, outputs: int, parts: int = 1) -> None:
        super().__init__()
        self.positions, self.parts = positions, parts
        self.linear = nn.Linear(inputs, outputs * parts)
        nn.init.normal_(self.linear.weight, std=(2 / (inputs + outputs * parts)) ** 0.5)  # Glorot & Bengio (2010)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vector: Tensor) -> Tensor:
        """The mapped vectors, as long as the positions ask."""
        leading = vector.shape[:-1]
        mapped: Tensor = self.linear(vector.reshape(*leading, self.positions, self.linear.in_features))
        if self.parts > 1:
            mapped = mapped.reshape(*leading, self.positions, self.parts, -1).transpose(-3, -2)
        return mapped.reshape(*leading, self.positions * self.linear.out_features)


class CellHeads(nn.Module):
    """Vectors of cells -> the outputs of their likelihoods, each cell with weights of its own.

    Args:
        numbers: the number cells in the order of their outputs, of which each has one.
        outputs: of each category cell.
        width: numbers that stand for a cell.
    """

    order: Tensor

    def __init__(self, numbers: Sequence[int], outputs: Sequence[int], width: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(numbers, dtype=torch.long), persistent=False)
        # no matrix: each number has a direction of its own, as in `CellEmbed`
        self.slope = nn.Parameter(torch.randn(len(numbers), width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(len(numbers)))
        self.levels = nn.ModuleList(nn.Linear(width, count) for count in outputs)

    def forward(self, cells: Tensor) -> Tensor:
        """(B, C, width) -> (B, outputs)."""
        values = (cells[:, self.order] * self.slope).sum(-1) + self.bias
        logits = [head(cells[:, len(self.bias) + i]) for i, head in enumerate(self.levels)]
        return torch.cat([values, *logits], dim=1)


class Celled(nn.Module):
    """Codes (K, B, size) -> (K, B, outputs), by way of a vector for each cell.

    Args:
        body: (..., size) -> (..., the trunk's width).
        trunk: -> (B, C, width), one position a cell.
        heads: cells to outputs.
    """

    autoregressive = False  # cells have no order in which to be told

    def __init__(self, body: nn.Module, trunk: GridDecoder, heads: CellHeads) -> None:
        super().__init__()
        self.body, self.trunk, self.heads = body, trunk, heads

    def forward(self, z: Tensor) -> Tensor:
        """The outputs that describe each row."""
        outputs: Tensor = self.heads(self.trunk(self.body(z.flatten(0, 1))))
        return outputs.view(*z.shape[:2], -1)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
