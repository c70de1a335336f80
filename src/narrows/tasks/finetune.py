"""Fine-tuning: the encoder and a linear head on its codes, trained together on labelled rows.

The head begins as the readout of the frozen codes, so that the first gradients do not undo what the encoder knows
(Kumar et al. 2022). It is trained by the one loop, for a fixed short while: few labels leave none to stop by.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.fitted import Model
from narrows.schema import Batch
from narrows.tasks.readout import Readout
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training

STEPS, MOST_EPOCHS = 300, 300  # enough for the head and the encoder to settle on each other
RATE = 1e-3  # of AdamW, three hundred steps of which were as good as six hundred, and a third of it worse
BATCH = 64


@dataclass(frozen=True)
class Labelled(Batch):
    """Prepared rows with their targets: (B,) int64 classes or float32 numbers."""

    target: Tensor | None = None

    def _map(self, change: Callable[[Any], Any]) -> Labelled:
        rows = super()._map(change)
        return Labelled(**vars(rows), target=None if self.target is None else change(self.target))


@dataclass(frozen=True)
class HeadLoss:
    """What each row cost, (B,)."""

    rows: Tensor
    opposing: Tensor | None = None

    def total(self) -> Tensor:
        """The mean over rows."""
        return self.rows.mean()

    def broken(self) -> list[int]:
        """No cell is to blame."""
        return []


class Tuned(nn.Module):
    """A copy of a model's encoder with a linear head.

    Args:
        model: whose encoder it is; stays as it is.
        readout: of its codes, that the head begins as.
        spread: of the numbers to be told; 0 for classes.
    """

    def __init__(self, model: Model, readout: Readout, spread: float = 0.0) -> None:
        super().__init__()
        module = copy.deepcopy(model.module)
        self.embed, self.encoder, self.latent = module.embed, module.encoder, module.latent
        self.whole = [module]  # in a list: its decoder is not to be trained
        self.spread = spread
        self.register_buffer("mean", torch.from_numpy(readout.scaling.mean))
        self.register_buffer("deviation", torch.from_numpy(readout.scaling.spread))
        self.head = nn.Linear(*readout.weight.shape)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(readout.weight.T))
            self.head.bias.copy_(torch.from_numpy(readout.bias))
        self.to(module.device)

    mean: Tensor
    deviation: Tensor

    def forward(self, batch: Labelled) -> HeadLoss:
        """Cross-entropy of classes, or squared error in units of the target's spread."""
        z = self.latent(self.encoder(self.embed(batch.dense())), 0).z[0].float()
        z = z if z.ndim == 2 else z.transpose(0, 1).flatten(1)
        scores = self.head((z - self.mean) / self.deviation).float()
        if batch.target is None:
            raise TypeError("rows without targets")
        if self.spread:
            return HeadLoss(((scores[:, 0] - batch.target) / self.spread).square())
        return HeadLoss(F.cross_entropy(scores, batch.target, reduction="none"))

    def readout(self, before: Readout) -> Readout:
        """The head, as a readout of the tuned codes."""
        weight, bias = self.head.weight.detach().cpu().numpy(), self.head.bias.detach().cpu().numpy()
        return replace(before, weight=weight.T.copy(), bias=bias.copy())


def fine_tune(
    model: Model, readout: Readout, rows: Batch, target: np.ndarray, seed: int = 0
) -> tuple[dict[str, Tensor], Readout]:
    """The tuned weights of embedding, encoder and latent, and the tuned readout.

    Args:
        model: whose encoder is tuned; stays as it is.
        readout: of its frozen codes.
        rows: labelled ones.
        target: (n,) int64 classes, or numbers.
        seed: of the order of rows and all draws.
    """
    classes = target.dtype.kind == "i"
    tuned = Tuned(model, readout, 0.0 if classes else float(target.std()))
    values = torch.from_numpy(target if classes else target.astype(np.float32))
    labelled = Labelled(**vars(replace(rows, weight=None)), target=values).to(model.module.device)
    training = Training(batch_size=BATCH, optimizer="adamw", precision="float32")
    epochs = min(MOST_EPOCHS, -(-STEPS // -(-len(rows) // BATCH)))
    train(tuned, Resident(labelled, BATCH, seed), None, training, epochs=epochs, lr=RATE, seed=seed)
    weights = {name: tensor for name, tensor in tuned.whole[0].state_dict().items() if name.startswith(ENDS)}
    return {name: tensor.cpu().clone() for name, tensor in weights.items()}, tuned.readout(readout)


ENDS = ("embed.", "encoder.", "latent.")  # what a code is made by


def with_weights(model: Model, weights: dict[str, Tensor]) -> Model:
    """The model with other weights before its codes."""
    module = copy.deepcopy(model.module)
    module.load_state_dict(weights, strict=False)
    return replace(model, module=module.eval())
