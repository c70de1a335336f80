"""An autoencoder as a plain PyTorch loop: batches are slices of a tensor in memory, all in float32.

Run by `speed.py` (see `stopwatch.py` for how), under the Python that Narrows runs under.
"""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stopwatch import Stopwatch, prepared, read
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "linear": nn.Identity}
OPTIMIZERS = {
    "adam": lambda weights, lr: torch.optim.Adam(weights, lr),
    "gd": lambda weights, lr: torch.optim.SGD(weights, lr),
    "sgd": lambda weights, lr: torch.optim.SGD(weights, lr),
    "momentum": lambda weights, lr: torch.optim.SGD(weights, lr, momentum=0.9),
}


class Autoencoder(nn.Module):
    """Dense layers down to a code, or to its mean and log variance, and up again."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.variational = settings["kind"] == "vae"
        widths = [settings["cells"], *settings["hidden"]]
        between, size = ACTIVATIONS[settings["activation"]], settings["latent"]
        down = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), between())]
        up = [layer for pair in pairwise([size, *widths[:0:-1]]) for layer in (nn.Linear(*pair), between())]
        features = nn.Linear(widths[-1], size * (2 if self.variational else 1))
        self.encoder = nn.Sequential(*down, features, ACTIVATIONS[settings["code"]]())
        self.decoder = nn.Sequential(*up, nn.Linear([size, *widths[:0:-1]][-1], widths[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the cells; mean and log variance of the code, where it is drawn."""
        mean, log_variance = self.encoder(x).chunk(2, 1) if self.variational else (self.encoder(x), torch.empty(0))
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.variational else mean
        return self.decoder(code), mean, log_variance

    def loss(self, x: Tensor) -> Tensor:
        """Mean squared error, or nats a row."""
        logits, mean, log_variance = self(x)
        if not self.variational:
            return F.mse_loss(logits.sigmoid(), x)
        nats = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return (nats - 0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()) / len(x)


def trained(settings: dict[str, Any], x: Tensor, held: Tensor, clock: Stopwatch) -> tuple[Autoencoder, float]:
    """The model, and its last validation loss."""
    model, batch = Autoencoder(settings), settings["batch"] or len(x)
    optimizer = OPTIMIZERS[settings["optimizer"]](model.parameters(), settings["lr"])
    before, loss = math.inf, math.inf
    for epoch in range(settings["epochs"]):
        order, total = torch.randperm(len(x)), 0.0
        for start in range(0, len(x), batch):
            rows = x[order[start : start + batch]]
            step = model.loss(rows)
            optimizer.zero_grad()
            step.backward()
            optimizer.step()
            total += step.item() * len(rows) / len(x)
        with torch.no_grad():
            loss = model.loss(held).item()
        clock.epoch((epoch + 1) * math.ceil(len(x) / batch))
        low = settings["stop"] is not None and loss <= settings["stop"]
        if low or (settings["tolerance"] is not None and abs(before - total) < settings["tolerance"] * before):
            break
        before = total
    return model, loss


def main(folder: Path) -> None:
    """Train, save and tell; then reconstruct with what was saved."""
    clock = Stopwatch()
    settings, train, validation = read(folder)
    clock.mark("loaded")
    torch.manual_seed(settings["seed"])
    held = torch.from_numpy(prepared(validation))
    model, loss = trained(settings, torch.from_numpy(prepared(train)), held, clock)
    clock.mark("fitted")
    save_file(model.state_dict(), folder / "model.safetensors")
    clock.mark("saved")
    clock.tell(loss, ("torch",), threads=torch.get_num_threads())

    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        logits, mean, log_variance = (tensor.numpy() for tensor in model(held))
    posterior = {"mean": mean, "log_variance": log_variance} if model.variational else {}
    np.savez(folder / "back.npz", back=1 / (1 + np.exp(-logits.astype(np.float64))), **posterior)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
