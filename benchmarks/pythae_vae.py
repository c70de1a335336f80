"""Twenty epochs of pythae's VAE, 784-200-200-50 with tanh both ways, for `likelihood.py`; run by a Python that has it.

Prints one line of JSON: seconds of training, and -log p(x) of the test rows by 500 importance samples of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import nn


class Encoder(BaseEncoder):
    """784-200-200, a mean and a log variance of 50."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh())
        self.mean, self.log_variance = nn.Linear(200, 50), nn.Linear(200, 50)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        """As pythae wants it."""
        hidden = self.layers(x.reshape(len(x), -1))
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))


class Decoder(BaseDecoder):
    """50-200-200-784, chances."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(50, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 784), nn.Sigmoid()
        )

    def forward(self, z: torch.Tensor) -> ModelOutput:
        """As pythae wants it."""
        return ModelOutput(reconstruction=self.layers(z).reshape(-1, 1, 28, 28))


def main() -> None:
    """Train, time and judge."""
    arrays = np.load(Path(sys.argv[1]) / "arrays.npz")
    train, test = (torch.from_numpy(arrays[part]).float().div(255).unsqueeze(1) for part in ("train", "test"))
    torch.manual_seed(0)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=50, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder, num_epochs=20, learning_rate=1e-3, per_device_train_batch_size=128, no_cuda=True
        )
        rows = BaseDataset(train, torch.zeros(len(train)))
        trainer = BaseTrainer(model, train_dataset=rows, training_config=settings)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        nats = -float(model.get_nll(test, n_samples=500, batch_size=500))
    print(json.dumps({"seconds": round(seconds, 1), "nats": round(nats, 3)}))


if __name__ == "__main__":
    main()
