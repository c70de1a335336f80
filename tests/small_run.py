"""A small training run with everything in it that could go wrong in a resume; as a script, one that is to be killed.

python tests/small_run.py OPTIMIZER FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from narrows.model.autoencoder import AutoencoderModule
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.schema import Batch, Column, Schema
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.stops import History

WIDTH = 12


def rows_of_rank(count: int, rank: int = 3, width: int = WIDTH, seed: int = 0) -> Batch:
    """`count` rows near a curved surface of `rank` dimensions, and no category codes."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, width, generator=torch.Generator().manual_seed(99)) / rank**0.5
    numbers = torch.tanh(torch.randn(count, rank, generator=draw) @ mixing)
    return Batch(numbers, torch.zeros(count, 0, dtype=torch.long))


def small_module(recipe: str = "plain", width: int = WIDTH, latent: int = 4, dropout: float = 0.0) -> AutoencoderModule:
    """An autoencoder of a few hundred weights, the same every time."""
    schema = Schema((Column("x", "number", "float", shape=(width,), width=width),))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = Dense(hidden=() if recipe == "linear" else (16,), norm="batch", dropout=dropout)
        return build(Recipe.parse(recipe), schema, latent, Network.of(network))


def small_run(
    optimizer: str,
    folder: Path | None,
    resume: bool = False,
    every: float = 0.0,
    epochs: int = 6,
    fail_at: int = 0,
    pause: float = 0.0,
    **more: Any,
) -> tuple[AutoencoderModule, History]:
    """Train on 100 rows with noise, dropout, validation, early stopping and a schedule.

    `pause` is in seconds, before each epoch: it leaves who is to kill this the time for it, and changes no figure.
    """
    module = small_module("denoising:noise=0.1,mask=0.2", dropout=0.1)
    training = Training(batch_size=16, optimizer=optimizer, patience=3, tolerance=1e-9, checkpoint_every=every, **more)
    stream = FailingAt(fail_at) if fail_at else Paced(pause)
    validation = Resident(rows_of_rank(40, seed=1), 16, shuffle=False)
    watch = Watch(folder=folder, resume=resume)
    return module, train(module, stream, validation, training, epochs=epochs, seed=7, watch=watch)


class Paced(Resident):
    """Rows that wait so many seconds before each epoch."""

    def __init__(self, pause: float) -> None:
        super().__init__(rows_of_rank(100), 16, seed=5)
        self.pause = pause

    def epoch(self, number, position=None):
        """Batches, after the pause."""
        time.sleep(self.pause)
        yield from super().epoch(number, position)


class FailingAt(Resident):
    """Rows whose source breaks down at the n-th batch that is asked for."""

    def __init__(self, count: int) -> None:
        super().__init__(rows_of_rank(100), 16, seed=5)
        self.left = count

    def epoch(self, number, position=None):
        """Batches, until it fails."""
        for item in super().epoch(number, position):
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("the source is gone")
            yield item


if __name__ == "__main__":
    small_run(sys.argv[1], Path(sys.argv[2]), every=0.01, epochs=160, pause=0.02)
