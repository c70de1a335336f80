"""The distribution of a category with many levels: first its class, then the level within the class.

    p(level) = p(class) p(level | class)          (Goodman 2001, "Classes for fast maximum entropy training")
    outputs of a cell:  classes + 1 logits | a vector           the last logit is that of every unknown level
    logit of a level within its class:  vector x its own vector + its bias

Probabilities are exact and sum to 1. A cell of known level costs a softmax over the classes and one over the levels of
a single class, in place of one over all: of 100,000 levels 1,250 and 80 numbers. Levels are dealt to classes in the
order of their codes, which is that of their frequency (Mikolov et al. 2011), and classes are many and small: a class
is a column of the decoder's last product, while the vectors of a class must be fetched for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor, nn

from narrows.model.draws import drawn

TRIED = 16  # classes looked at for the most probable level before all are
AT_ONCE = 1 << 24  # log probabilities of all levels that are held at a time: 64 MB


@dataclass(frozen=True)
class Classes:
    """How the levels of a category are told.

    Args:
        levels: known ones.
        classes: that they are dealt to, `levels / classes` each, rounded up.
        vector: numbers that tell a level within its class.
    """

    levels: int
    classes: int
    vector: int

    @property
    def outputs(self) -> int:
        """Numbers that the decoder says of a cell."""
        return self.classes + 1 + self.vector

    @property
    def fellows(self) -> int:
        """Levels of a class."""
        return ceil(self.levels / self.classes)


class Factored(nn.Module):
    """One category cell over many known levels and one more for all others.

    Args:
        shape: how levels are told.
        members: networks side by side, each with vectors of its own; None for one.
    """

    absent: Tensor
    member: Tensor

    def __init__(self, shape: Classes, members: int | None = None) -> None:
        super().__init__()
        self.shape, self.members = shape, members
        rows = (members or 1) * shape.classes
        # a row holds the vectors of a whole class, so that they are fetched as one
        self.vectors = nn.Embedding(rows, shape.fellows * shape.vector)
        self.biases = nn.Embedding(rows, shape.fellows)
        with torch.no_grad():
            self.vectors.weight.mul_(1 / sqrt(shape.vector))
            self.biases.weight.zero_()
        place = torch.arange(shape.classes * shape.fellows).view(shape.classes, shape.fellows)
        self.register_buffer("absent", place >= shape.levels, persistent=False)  # of the last class
        starts = torch.arange(members or 1) * shape.classes
        self.register_buffer("member", starts.unsqueeze(-1) if members else starts, persistent=False)

    def log_prob(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """(..., B) log probability of codes (B,), of which those from `levels` on are unknown ones.

        Args:
            outputs: ([K,] [E,] B, classes + 1 + vector).
            codes: of the cell.
        """
        classes, vector = self._parted(outputs)
        known = codes < self.shape.levels
        group = torch.where(known, codes // self.shape.fellows, self.shape.classes).expand(classes.shape[:-1])
        of_class = classes.gather(-1, group.unsqueeze(-1)).squeeze(-1)
        within = self._within(vector, torch.where(known, group, 0))
        fellow = (codes % self.shape.fellows).expand(group.shape).unsqueeze(-1)
        # an unknown level stands in no class: what is looked up for it is another's, and thrown away
        of_level = within.gather(-1, torch.where(known.unsqueeze(-1), fellow, 0)).squeeze(-1)
        return of_class + torch.where(known, of_level, 0.0)

    def log_chances(self, outputs: Tensor, member: int = 0) -> Tensor:
        """(n, levels + 1) log probability of every level and of unknown ones, from the (n, outputs) of one network.

        Takes the work and memory that the two steps save.
        """
        classes, vector = self._parted(outputs)
        here = slice(member * self.shape.classes, (member + 1) * self.shape.classes)
        logits = (vector @ self.vectors.weight[here].view(-1, self.shape.vector).T).float()
        logits = logits.view(-1, self.shape.classes, self.shape.fellows) + self.biases.weight[here]
        within = logits.masked_fill_(self.absent, float("-inf")).log_softmax(-1)
        every = (within + classes[:, :-1].unsqueeze(-1)).flatten(1)[:, : self.shape.levels]
        return torch.cat([every, classes[:, -1:]], dim=1)

    def mode(self, outputs: Tensor) -> Tensor:
        """(..., B) the most probable known level.

        Classes are looked at one after the other, the most probable first, until the next as a whole is less probable
        than the best level found: that one is then certain. For rows that 16 classes do not settle, all levels are.
        """
        classes, vector = self._parted(outputs)
        chances, group = classes[..., :-1].topk(min(TRIED + 1, self.shape.classes), dim=-1)
        within, fellow = self._within(vector, group[..., 0]).max(-1)
        best, found = chances[..., 0] + within, group[..., 0] * self.shape.fellows + fellow
        for place in range(1, chances.shape[-1]):
            open_ = chances[..., place] > best
            if not open_.any():
                return found
            if place == TRIED:
                return torch.where(open_, self._in_parts(outputs, open_, lambda every: every.argmax(-1)), found)
            within, fellow = self._within(vector, group[..., place]).max(-1)
            better = chances[..., place] + within > best
            best = torch.where(better, chances[..., place] + within, best)
            found = torch.where(better, group[..., place] * self.shape.fellows + fellow, found)
        return found

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """(..., B) a drawn known level, from torch's global generator.

        Args:
            outputs: as for `log_prob`.
            temperature: log probabilities are divided by it; any but 1 looks at all levels.
        """
        if temperature != 1.0:
            every = torch.ones(outputs.shape[:-1], dtype=torch.bool, device=outputs.device)
            return self._in_parts(outputs, every, lambda chances: drawn(chances, temperature))
        classes, vector = self._parted(outputs)
        group = drawn(classes[..., :-1])
        return group * self.shape.fellows + drawn(self._within(vector, group))

    def _parted(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of classes and unknown levels (..., B, classes + 1), and vectors (..., B, vector)."""
        logits, vector = torch.split(outputs, [self.shape.classes + 1, self.shape.vector], dim=-1)
        return logits.log_softmax(-1), vector

    def _within(self, vector: Tensor, group: Tensor) -> Tensor:
        """(..., B, fellows) log probability of each level of a class, given the class (..., B)."""
        row = group + self.member
        vectors = self.vectors(row).view(*row.shape, self.shape.fellows, self.shape.vector)
        logits: Tensor = (vectors @ vector.unsqueeze(-1)).squeeze(-1).float() + self.biases(row)
        return logits.masked_fill(self.absent[group], float("-inf")).log_softmax(-1)

    def _in_parts(self, outputs: Tensor, chosen: Tensor, say: Callable[[Tensor], Tensor]) -> Tensor:
        """(..., B) what is said of all known levels' log probabilities, some rows at a time; 0 for rows not chosen.

        Args:
            outputs: as for `log_prob`.
            chosen: (..., B) rows to look at.
            say: (n, levels) -> (n,) codes.
        """
        found = torch.zeros(chosen.shape, dtype=torch.long, device=outputs.device)
        step = max(1, AT_ONCE // self.shape.levels)
        for member in range(self.members or 1):
            theirs, said, there = outputs, found, chosen
            if self.members:
                theirs, said, there = outputs.select(-3, member), found.select(-2, member), chosen.select(-2, member)
            codes = [say(self.log_chances(part, member)[:, :-1]) for part in torch.split(theirs[there], step)]
            said[there] = torch.cat(codes)
        return found
