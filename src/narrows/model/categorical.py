"""The distribution of category cells and of a text's tokens: a softmax for each cell, many cells at once.

Knows the number of levels of each column, and nothing of what they are. Columns with many are told in two steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.model.draws import drawn
from narrows.model.factored import Classes, Factored

ROOM = 4  # times as much memory that padding may take


class Categorical(nn.Module):
    """M category cells, each over its known levels and one more for all others.

    Columns are padded to the largest of their group, so that a group is one softmax. Most tables are one group;
    where a few large columns among many small ones would make it mostly padding, there are several. Columns with many
    levels are no softmax over all (see `factored`), and stand behind them.

    Args:
        levels: known ones of each cell.
        many: cell -> how its levels are told, where they are many.
        members: networks side by side.
    """

    back: Tensor

    def __init__(
        self, levels: tuple[int, ...], many: Mapping[int, Classes] | None = None, members: int | None = None
    ) -> None:
        super().__init__()
        many = many or {}
        widths = [many[cell].outputs if cell in many else count + 1 for cell, count in enumerate(levels)]
        self.outputs = sum(widths)
        plain = [cell for cell in range(len(levels)) if cell not in many]
        alike = groups_alike(tuple(levels[cell] for cell in plain)) if plain else []
        groups = [[plain[place] for place in places] for places in alike]
        self.groups = nn.ModuleList(_Padded(levels, columns, widths) for columns in groups)
        self.factored = nn.ModuleList(Factored(shape, members) for shape in many.values())
        starts = list(accumulate(widths, initial=0))
        self.spans = [(cell, slice(starts[cell], starts[cell + 1])) for cell in many]
        order = torch.tensor([column for columns in groups for column in columns] + list(many))
        self.register_buffer("back", order.argsort(), persistent=False)

    def log_prob(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Log probability of each code, (..., B, M)."""
        parts = [group.log_prob(outputs, codes) for group in self._groups()]
        for told, (cell, span) in zip(self._factored(), self.spans, strict=True):
            parts.append(told.log_prob(outputs[..., span], codes[:, cell]).unsqueeze(-1))
        return self._joined(parts)

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable known level of each cell, (..., B, M)."""
        parts = [group.mode(outputs) for group in self._groups()]
        for told, (_, span) in zip(self._factored(), self.spans, strict=True):
            parts.append(told.mode(outputs[..., span]).unsqueeze(-1))
        return self._joined(parts)

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """A drawn known level of each cell, (..., B, M), from torch's global generator.

        Args:
            outputs: logits.
            temperature: these are divided by it: below 1 the probable becomes more probable.
        """
        parts = [group.sample(outputs, temperature) for group in self._groups()]
        for told, (_, span) in zip(self._factored(), self.spans, strict=True):
            parts.append(told.sample(outputs[..., span], temperature).unsqueeze(-1))
        return self._joined(parts)

    def _factored(self) -> list[Factored]:
        return list(self.factored)  # type: ignore[arg-type]

    def _groups(self) -> list[_Padded]:
        return list(self.groups)  # type: ignore[arg-type]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)[..., self.back]


def groups_alike(levels: tuple[int, ...]) -> list[list[int]]:
    """The columns in groups whose padding takes at most three times the room of what is padded; one where it can."""
    if (max(levels) + 1) * len(levels) <= ROOM * (sum(levels) + len(levels)):
        return [list(range(len(levels)))]
    groups: list[list[int]] = []
    widest = room = 0
    for column in sorted(range(len(levels)), key=lambda column: -levels[column]):
        room += levels[column] + 1
        if not groups or widest * (len(groups[-1]) + 1) > ROOM * room:
            groups.append([])
            widest = room = levels[column] + 1
        groups[-1].append(column)
    return groups


class _Padded(nn.Module):
    """Some category columns as one softmax over the largest one's levels; `widths` are the outputs of every column."""

    index: Tensor
    known: Tensor
    columns: Tensor

    def __init__(self, levels: tuple[int, ...], columns: list[int], widths: list[int]) -> None:
        super().__init__()
        starts = list(accumulate(widths, initial=0))
        start = torch.tensor([starts[column] for column in columns]).unsqueeze(1)
        count = torch.tensor([levels[column] for column in columns]).unsqueeze(1)
        place = torch.arange(max(levels[column] for column in columns) + 1)
        self.whole = len(columns) == len(levels)
        # texts, whose tokens all have the same levels, need no padding: their outputs are seen as they lie
        self.alike = (len(levels), levels[0] + 1) if self.whole and len(set(levels)) == 1 else None
        self.register_buffer("index", torch.where(place <= count, start + place, starts[-1]), persistent=False)
        self.register_buffer("known", place < count, persistent=False)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def log_chances(self, outputs: Tensor) -> Tensor:
        """(..., B, m, widest): log probability of each level, minus infinity in the padding."""
        if self.alike:
            return outputs.view(*outputs.shape[:-1], *self.alike).log_softmax(-1)
        return F.pad(outputs, (0, 1), value=float("-inf"))[..., self.index].log_softmax(-1)

    def log_prob(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Log probability of the codes of these columns among all (B, M), (..., B, m)."""
        codes = codes if self.whole else codes[:, self.columns]
        chances = self.log_chances(outputs)
        return chances.gather(-1, codes.expand(chances.shape[:-1]).unsqueeze(-1)).squeeze(-1)

    def mode(self, outputs: Tensor) -> Tensor:
        """The most probable known level of each cell, (..., B, m)."""
        return self.log_chances(outputs).masked_fill(~self.known, float("-inf")).argmax(-1)

    def sample(self, outputs: Tensor, temperature: float) -> Tensor:
        """A drawn known level of each cell, (..., B, m)."""
        return drawn(self.log_chances(outputs).masked_fill(~self.known, float("-inf")), temperature)
