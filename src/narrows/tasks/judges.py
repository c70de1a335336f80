"""The judges of a row, and two of them: how rare its cells are one by one, and how badly they are told from each other.

    rows -> judge -> (n,) evidence against each row, and (n, C) what each cell gave of it

Each looks at what the others miss. Columns taken one by one see a rare value in any of them (Goldstein & Dengel 2012);
a network that tells hidden cells from the others sees the odd combination; judges that compare whole rows are in
`tasks.distances`. Weighing them and adding them up is for `detect`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.likelihoods import Prediction
from narrows.schema import Batch, Schema
from narrows.tensorfile import shaped
from narrows.train.randomness import VALIDATION, generator

BINS = 10
GROUPS = 4  # of cells, hidden one after the other


@dataclass(frozen=True)
class Evidence:
    """What a judge says of n rows.

    Args:
        total: (n,) the more the odder.
        cells: (n, C) what each cell gave, 0 and up, in the same order of size as `total` but not adding up to it.
    """

    total: Tensor
    cells: Tensor


class Judge(ABC):
    """Rows to evidence. What it learnt is in tensors, for the file."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows."""

    def total(self, rows: Batch) -> Tensor:
        """(n,) the evidence alone, where that takes less time than to say whose it is."""
        return self(rows).total

    def typical(self, rows: Batch) -> Evidence:
        """What it says of the rows that it learnt from."""
        return self(rows)

    def tensors(self) -> dict[str, Tensor]:
        """What it learnt, by name; `read` of its class takes it back."""
        return {}


class Histograms(Judge):
    """-log share of rows whose cell is in the same of ten equal bins, or of the same level, column by column.

    Args:
        schema: of the rows.
        low: (N,) where the bins of each number begin.
        width: (N,) of a bin.
        bins: (N, 12) -log share of each bin, and of what lies below and above.
        levels: (sum of levels + 1,) -log share of each level, and of others, category by category; 0 for tokens.
    """

    name = "rarity"

    def __init__(self, schema: Schema, low: Tensor, width: Tensor, bins: Tensor, levels: Tensor) -> None:
        self.schema, self.low, self.width, self.bins, self.levels = schema, low, width, bins, levels

    @classmethod
    def learn(cls, schema: Schema, rows: Batch, common: float = 1.0) -> Histograms:
        """The histograms of rows (n), in which levels of this share of rows or more are as ordinary as can be."""
        rows = rows.dense()
        seen = rows.mask()
        low, high = (rows.numbers.masked_fill(~seen[:, : schema.numbers], end).nan_to_num() for end in (1e9, -1e9))
        low, high = low.amin(0), high.amax(0)
        empty = low > high
        low, high = low.masked_fill(empty, 0), high.masked_fill(empty, 0)
        made = cls(schema, low, ((high - low) / BINS).clamp_min(1e-9), torch.zeros(0), torch.zeros(0))
        places = made._places(rows.numbers)
        counts = torch.zeros(schema.numbers, BINS + 2).scatter_add_(
            1, places.T, seen[:, : schema.numbers].T.float().contiguous()
        )
        made.bins = _rarity(counts)
        levels = torch.cat([torch.zeros(0), *made._levels(rows, seen)])
        made.levels = torch.where(levels > -log(common), levels, torch.zeros(()))
        return made

    @classmethod
    def read(cls, schema: Schema, tensors: Mapping[str, Tensor]) -> Histograms:
        """The histograms of these tensors."""
        numbers, levels = (schema.numbers,), sum(schema.levels) + len(schema.levels)
        found = shaped(tensors, low=numbers, width=numbers, bins=(*numbers, BINS + 2), levels=(levels,))
        if not (tensors["width"] > 0).all():
            raise ValueError("bins that are not wider than 0")
        return cls(schema, *found)

    def tensors(self) -> dict[str, Tensor]:
        """The bins, and what they are worth."""
        return {"low": self.low, "width": self.width, "bins": self.bins, "levels": self.levels}

    def _levels(self, rows: Batch, seen: Tensor) -> list[Tensor]:
        told = _tokens(self.schema)
        found = []
        for place, levels in enumerate(self.schema.levels):
            known = rows.codes[seen[:, self.schema.numbers + place], place].clamp(max=levels)
            rare = _rarity(torch.bincount(known, minlength=levels + 1)[None].float())[0]
            found.append(torch.zeros_like(rare) if place in told else rare)
        return found

    def _places(self, numbers: Tensor) -> Tensor:
        """(n, N) the bin of each number; the greatest value of those learnt from belongs to the last."""
        places = ((numbers - self.low) / self.width).clamp(-1, BINS + 1)
        top = (numbers <= self.low + BINS * self.width * (1 + 1e-6)) & (places >= BINS)
        return torch.where(top, BINS - 1, places.floor().clamp(-1, BINS)).long() + 1

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows: the sum over cells, scaled up where some were not seen."""
        rows = rows.dense()
        found = [self.bins.T.gather(0, self._places(rows.numbers))]
        if self.schema.levels:
            starts = torch.tensor([0, *(levels + 1 for levels in self.schema.levels)]).cumsum(0)[:-1]
            codes = torch.minimum(rows.codes, torch.tensor(self.schema.levels))  # others count as one level
            found.append(self.levels[codes + starts])
        return _summed(torch.cat(found, dim=1), rows)


def _rarity(counts: Tensor) -> Tensor:
    """(n, bins) -log share of each bin, half a row added to each so that none is empty."""
    return -torch.log((counts + 0.5) / (counts.sum(1, keepdim=True) + 0.5 * counts.shape[1]))


def _tokens(schema: Schema) -> set[int]:
    """Places of the codes that are tokens."""
    spans = [schema.spans[column.name] for column in schema if column.kind == "tokens"]
    return {place - schema.numbers for span in spans for place in range(span.start, span.stop)}


class Telling(Judge):
    """What the network fails to tell: of tables each cell from the others, of what has a grid the row from its code.

    Args:
        model: a fitted model.
    """

    name = "telling"

    def __init__(self, model: Model) -> None:
        self.model = model
        self.hidden = hides(model.module)
        cells = model.schema.cells
        # shuffled: columns side by side, or at equal distances, are often of one kind, and each group should have some
        self._groups = torch.randperm(cells, generator=generator(0, VALIDATION)) % min(GROUPS, cells)

    def __call__(self, rows: Batch) -> Evidence:
        """The evidence against rows: the loss of all cells, scaled up where some were not seen."""
        if not self.hidden:
            return _summed(self.model.costs(rows)[:, : self.model.schema.cells].float(), rows.dense())
        return _summed(self.model.blocks(rows, lambda block: self._told(block, self._costs)), rows.dense())

    def expected(self, rows: Batch) -> tuple[Tensor, Tensor]:
        """Numbers (n, N) and codes (n, M) that the network tells of rows, each cell hidden in its turn."""
        if not self.hidden:
            return self.model.cells(self.model.codes(rows))
        schema, told = self.model.schema, self.model.blocks(rows, lambda block: self._told(block, self._guesses))
        dense, bags, codes = told.tensor_split([schema.dense, schema.numbers], dim=1)
        return torch.cat([self.model.known(dense), bags], dim=1).float(), codes.long()

    @torch.inference_mode()
    def _told(self, rows: Batch, say: Callable[[Prediction, Batch], Tensor]) -> Tensor:
        """(B, C) what `say` makes of each cell by the prediction that it was hidden from."""
        rows, module = rows.dense(), self.model.module
        there, groups = rows.mask(), self._groups.to(rows.numbers.device)
        told = torch.zeros(())
        for group in range(int(self._groups.max()) + 1):
            hidden = groups == group
            said = say(module.decode(module.encode(rows.with_seen(there & ~hidden)).z), rows)
            told = said if group == 0 else torch.where(hidden, said, told)
        return told

    def _costs(self, p: Prediction, rows: Batch) -> Tensor:
        """(B, C) losses, in the mean over members."""
        nll = -p.log_prob(rows)[0]
        return nll.mean(0) if self.model.members else nll

    def _guesses(self, p: Prediction, _: Batch) -> Tensor:
        """(B, C) float64 values, in the mean over members or those that most of them name."""
        numbers, codes = p.numbers()[0], p.codes()[0]
        if self.model.members:
            numbers, codes = numbers.mean(0), codes.mode(0).values
        return torch.cat([numbers.double(), codes.double()], dim=1)


def hides(module: AutoencoderModule) -> bool:
    """Whether a module learnt to tell hidden cells."""
    return any(getattr(part, "hides", False) for part in module.corrupt) and not module.autoregressive


def _summed(cells: Tensor, rows: Batch) -> Evidence:
    """Evidence of cells (n, C), of which the unseen ones say nothing."""
    if rows.seen is None:
        return Evidence(cells.sum(1), cells)
    cells = cells * rows.seen
    return Evidence(cells.sum(1) * cells.shape[1] / rows.seen.sum(1).clamp_min(1), cells)
