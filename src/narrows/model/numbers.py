"""Numbers as a dense encoder reads them: counts as logarithms, others in pieces as well where a recipe asks for it.

What this file does not know: categories, grids, and what is done with the numbers.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.schema import Schema

MOST_PIECES = 64  # of a number: as many as it has bins by default
OUTERMOST = 3.0  # standard deviations at which the first and the last piece of a number end


def checked_pieces(count: int) -> int:
    """A number of pieces, 0 for none.

    Raises:
        SettingError: for one out of range.
    """
    if not (isinstance(count, int) and (count == 0 or 2 <= count <= MOST_PIECES)):
        raise SettingError(f"pieces={count!r}", f"from 2 to {MOST_PIECES} pieces of a number, or 0")
    return count


class Pieces(nn.Module):
    """Numbers as how far they have come through each of several pieces, between -1/2 and 1/2 (Gorishniy et al. 2022).

    What a straight line cannot tell, such as one town among all latitudes, a first layer then can. Pieces are of equal
    chance under a standard normal distribution, which numbers that enter by their quantiles have.

    Args:
        cells: of the numbers that come in, by their place.
        count: of pieces, see `checked_pieces`.
    """

    cells: Tensor
    low: Tensor
    scale: Tensor

    def __init__(self, cells: list[int], count: int) -> None:
        super().__init__()
        inner = torch.special.ndtri(torch.arange(1, count, dtype=torch.float64, device="cpu") / count)
        ends = torch.cat([inner.new_tensor([-OUTERMOST]), inner, inner.new_tensor([OUTERMOST])])
        self.width = len(cells) * count
        self.register_buffer("cells", torch.tensor(cells, dtype=torch.long), persistent=False)
        self.register_buffer("low", ends[:-1].float(), persistent=False)
        self.register_buffer("scale", (1 / ends.diff()).float(), persistent=False)

    def forward(self, numbers: Tensor, there: Tensor | None) -> Tensor:
        """(B, width) of numbers (B, n); zeros where one is not there."""
        passed = ((numbers[:, self.cells].unsqueeze(-1) - self.low) * self.scale).clamp(0.0, 1.0) - 0.5
        if there is not None:
            passed = passed * there[:, self.cells].unsqueeze(-1)
        return passed.flatten(1)


class Counts(nn.Module):
    """Counts among numbers as logarithms, log(1 + n); those of a bag scaled to the length that standardized cells have.

    Args:
        schema: of the prepared data.
        cells: number cells that come in, by their place among all.
    """

    counted: Tensor

    def __init__(self, schema: Schema, cells: list[int]) -> None:
        super().__init__()
        place = {cell: i for i, cell in enumerate(cells)}
        counted = [place[cell] for cell in schema.cells_where(kind="count") if cell in place]
        bags = [schema.spans[c.name] for c in schema if c.kind == "bag" and c.width]
        self.bags = [slice(place[span.start], place[span.start] + span.stop - span.start) for span in bags]
        self.register_buffer("counted", torch.tensor(counted, dtype=torch.long), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """The numbers, those that count replaced."""
        if not len(self.counted) and not self.bags:
            return numbers
        numbers = numbers.index_copy(1, self.counted, log_counts(numbers[:, self.counted]))
        for bag in self.bags:
            logs = log_counts(numbers[:, bag])
            norm = torch.linalg.vector_norm(logs, dim=1, keepdim=True).clamp_min(1e-6)
            numbers = torch.cat(
                [numbers[:, : bag.start], logs / norm * sqrt(logs.shape[1]), numbers[:, bag.stop :]], dim=1
            )
        return numbers


def log_counts(counts: Tensor) -> Tensor:
    """log(1 + n)."""
    return counts.clamp_min(0.0).log1p()  # noise may have made a count negative
