"""Whether evaluated rows are new to a model: its loss on them beside that on rows held out from its training.

Rows that fit much better than those held out were most likely trained on, and say little of rows to come. It cannot be
known: the held-out rows may also have been the harder ones, so it is said with care, and never of a few rows' luck.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, sqrt

import torch
from torch import Tensor

from narrows.fitted import Model
from narrows.model.autoencoder import Loss
from narrows.schema import Batch
from narrows.tasks.figures import figure
from narrows.tasks.history import validation_loss, whole
from narrows.train.randomness import VALIDATION, kept, seed_step


@dataclass(frozen=True)
class HeldOut:
    """The model's own loss a row on rows that were held out from training, beside that on the evaluated rows.

    Args:
        validation: on the rows held out, by the weights that were kept.
        here: on the evaluated rows, with draws as in validation.
        error: standard error of the difference; infinite where the two cannot be compared.
    """

    validation: float
    here: float
    error: float = inf

    @property
    def sentence(self) -> str:
        """Both figures."""
        here, there = figure(self.here), figure(self.validation)
        return f"the model's own loss is {here} a row, and was {there} on rows held out from training"

    @property
    def caution(self) -> str:
        """What to make of rows that fit better by a fifth, which is no accident; else empty."""
        gap = self.validation - self.here
        if not (gap > 0.2 * abs(self.validation) and gap > 3 * self.error):
            return ""
        return (
            f"But these rows fit better than rows held out from training ({figure(self.here)} against "
            f"{figure(self.validation)} a row): they are probably the training rows, or the model over-fits."
        )


class Beside:
    """Sums the loss of evaluated rows as validation takes it: with one draw of each code, and of what rows go through.

    Args:
        model: a fitted model.
        codes: whether its codes are drawn.
    """

    def __init__(self, model: Model, codes: bool) -> None:
        self.model, self.validation = model, validation_loss(model)
        module = model.module
        changed = len(module.augment) + len(module.corrupt) + len(module.penalties)
        self.drawn = codes or changed > 0
        self.complete = model.schema.cells_where(holes=False)
        self.sum = self.squares = 0.0
        self.comparable = True

    def add(self, batch: Batch, mask: Tensor, costs: Tensor) -> None:
        """Count in rows, of which some cells (B, C) are there, and each cell and term has its cost (B, C + terms)."""
        if self.validation is None:
            return
        # an unseen cell costs nothing: where training had no holes, rows with holes seem to fit well
        self.comparable &= batch.seen is None or bool(mask[:, self.complete].all())
        losses = (self._drawn(batch) if self.drawn else costs.sum(1)).double()
        self.sum += float(losses.sum())
        self.squares += float(losses.square().sum())

    def _drawn(self, batch: Batch) -> Tensor:
        device = self.model.module.device
        with torch.inference_mode(), kept(device):
            seed_step(0, VALIDATION, device)
            return as_validated(self.model, batch).cpu()

    def result(self, rows: int) -> HeldOut | None:
        """Both losses, where the model tells that of validation."""
        if self.validation is None:
            return None
        mean = self.sum / rows
        if not self.comparable or rows < 2:
            return HeldOut(self.validation, mean)
        variance = max(self.squares / rows - mean * mean, 0.0) * rows / (rows - 1)
        others = whole(self.model, "validation_rows") or rows
        return HeldOut(self.validation, mean, sqrt(variance * (1 / rows + 1 / others)))


def as_validated(model: Model, batch: Batch) -> Tensor:
    """(B,) the loss of rows as validation takes it, on the model's device; that of a member where there are many.

    With a draw of each code and corruption, and to each row what is asked of the batch as a whole.
    """
    loss: Loss = model.module(replace(batch, weight=None).to(model.module.device))
    rows = loss.per_row()
    together = loss.total() / (model.members or 1) - rows.mean()
    return (rows.mean(0) if model.members else rows) + together
