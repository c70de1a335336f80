"""A variational autoencoder as pythae's users write it: an encoder, a decoder, its trainer with rows to evaluate on.

Run by `speed.py` under a Python that has pythae (see `stopwatch.py` for how).
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from stopwatch import Stopwatch, prepared, read
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def stack(widths: list[int], activation: str) -> list[nn.Module]:
    """Dense layers, each with its activation."""
    return [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), ACTIVATIONS[activation]())]


class Encoder(BaseEncoder):
    """Cells to a mean and a log variance."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        widths = [settings["cells"], *settings["hidden"]]
        self.layers = nn.Sequential(*stack(widths, settings["activation"]))
        self.mean, self.log_variance = (nn.Linear(widths[-1], settings["latent"]) for _ in range(2))

    def forward(self, x: Tensor) -> ModelOutput:
        """As pythae wants it."""
        hidden = self.layers(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))


class Decoder(BaseDecoder):
    """A code to chances."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        widths = [settings["latent"], *reversed(settings["hidden"])]
        output = nn.Linear(widths[-1], settings["cells"])
        self.layers = nn.Sequential(*stack(widths, settings["activation"]), output, nn.Sigmoid())

    def forward(self, z: Tensor) -> ModelOutput:
        """As pythae wants it."""
        return ModelOutput(reconstruction=self.layers(z))


class Epochs(TrainingCallback):
    """Notes the end of each epoch, and the last validation loss."""

    def __init__(self, clock: Stopwatch, steps: int) -> None:
        self.clock, self.steps, self.done, self.loss = clock, steps, 0, math.inf

    def on_log(self, training_config: Any, logs: dict[str, float], **_: Any) -> None:
        """After the evaluation of an epoch."""
        self.done, self.loss = self.done + 1, float(logs["eval_epoch_loss"])
        self.clock.epoch(self.done * self.steps)


def untrained(settings: dict[str, Any]) -> VAE:
    """The network, as pythae holds it."""
    config = VAEConfig(input_dim=(settings["cells"],), latent_dim=settings["latent"], reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(settings), decoder=Decoder(settings))


def instructed(settings: dict[str, Any], folder: Path) -> BaseTrainerConfig:
    """What pythae's trainer is told."""
    return BaseTrainerConfig(
        output_dir=str(folder / "runs"),
        num_epochs=settings["epochs"],
        learning_rate=settings["lr"],
        per_device_train_batch_size=settings["batch"],
        per_device_eval_batch_size=settings["batch"],
        seed=settings["seed"],
        no_cuda=True,
    )


def trained(settings: dict[str, Any], x: Tensor, held: Tensor, folder: Path, clock: Stopwatch) -> tuple[Path, float]:
    """The folder of the model, which the trainer saves at the end of `train`, and the last validation loss."""
    how = instructed(settings, folder)
    parts = [BaseDataset(rows, torch.zeros(len(rows))) for rows in (x, held)]
    epochs = Epochs(clock, math.ceil(len(x) / settings["batch"]))
    model = untrained(settings)
    BaseTrainer(model, train_dataset=parts[0], eval_dataset=parts[1], training_config=how, callbacks=[epochs]).train()
    return next((folder / "runs").glob("*/final_model")), epochs.loss


def main(folder: Path) -> None:
    """Train, save and tell; then reconstruct with what was saved."""
    clock = Stopwatch()
    settings, train, validation = read(folder)
    clock.mark("loaded")
    held = torch.from_numpy(prepared(validation))
    place, loss = trained(settings, torch.from_numpy(prepared(train)), held, folder, clock)
    clock.mark("fitted")
    clock.mark("saved")
    clock.tell(loss, ("pythae", "torch"), threads=torch.get_num_threads())

    model = VAE.load_from_folder(str(place)).eval()
    with torch.no_grad():
        found = model.encoder(held)
        mean, log_variance = found.embedding, found.log_covariance
        back = model.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)).reconstruction
    np.savez(folder / "back.npz", back=back.numpy(), mean=mean.numpy(), log_variance=log_variance.numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
