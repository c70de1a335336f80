"""One GPU: epochs a second beside a plain PyTorch loop, and how much of what the GPU can multiply is used.

    python benchmarks/gpu.py --data DIR

- `vae`: the variational autoencoder 784-512-20-512-784 on MNIST, in batches of 512 with Adam: epochs a second here, and
  by a plain loop over the same rows, which lie on the GPU for it too: no loader, no loss that is waited for.
- `wide` and `4096`: 784-1000-500-250-30 at 512 rows, and 4096-4096-4096-4096-256 at 4096, mirrored, in bfloat16 with
  AdamW, on random rows: multiplications of forward and backward passes a second, as a share of what one product of
  8192 x 8192 matrices in bfloat16 reaches.

Without a GPU it says so. Prints, and writes to `results/gpu.json`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kept import kept
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.schema import Batch, Column, Schema
from narrows.train.devices import products
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from seeds import mnist

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PEAK = 8192  # rows and columns of the matrices of the peak
SETTLING = 2  # epochs that are not counted: the first are recorded
NETWORKS = {"wide": (784, (1000, 500, 250), 30, 512), "4096": (4096, (4096, 4096, 4096), 256, 4096)}


def best_of(act: Callable[[], None], repeat: int = 5) -> float:
    """Seconds that something on the GPU takes, at best."""
    seconds = []
    for _ in range(repeat):
        torch.cuda.synchronize()
        began = time.perf_counter()
        act()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peak(device: torch.device, size: int = PEAK, times: int = 20) -> float:
    """Multiplications a second of products in bfloat16."""
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return times * size**3 / best_of(lambda: [one @ other for _ in range(times)] and None)


def module_of(recipe: str, inputs: int, hidden: tuple[int, ...], code: int, bounded: bool) -> AutoencoderModule:
    """An autoencoder of rows of so many numbers."""
    schema = Schema((Column("x", "number", "float", shape=(inputs,), width=inputs, bounded=bounded),))
    torch.manual_seed(0)
    return build(Recipe.parse(recipe), schema, code, Network.of(Dense(hidden=hidden)))


def epoch_seconds(module: nn.Module, rows: Tensor, training: Training, epochs: int) -> float:
    """Seconds of an epoch, in the mean over those after the first two."""
    batch = Batch(rows, torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device))
    stream = Resident(batch, training.step_rows(len(rows)), 0)
    history = train(module.to(rows.device), stream, None, training, epochs=epochs, watch=Watch())
    seconds = [record["seconds"] for record in history.records]
    return (seconds[-1] - seconds[SETTLING - 1]) / (epochs - SETTLING)


class PlainVAE(nn.Module):
    """784-512-20-512-784 as a tutorial writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(784, 512), nn.SiLU(), nn.Linear(512, 40))
        self.up = nn.Sequential(nn.Linear(20, 512), nn.SiLU(), nn.Linear(512, 784))

    def forward(self, x: Tensor) -> Tensor:
        """The loss of rows."""
        mean, log_variance = self.down(x).chunk(2, dim=1)
        logits = self.up(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return (F.binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl) / len(x)


def plain_seconds(rows: Tensor, size: int, epochs: int) -> float:
    """Seconds of an epoch of a plain loop, at best, after one that is not counted."""
    module = PlainVAE().to(rows.device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)

    def epoch() -> None:
        order = torch.randperm(len(rows), device=rows.device)
        for part in order.split(size):
            optimizer.zero_grad()
            module(rows[part]).backward()
            optimizer.step()

    epoch()
    return best_of(epoch, epochs)


def vae(data: Path, device: torch.device, epochs: int = 30) -> dict[str, Any]:
    """Epochs a second on MNIST, here and by a plain loop."""
    pixels = mnist(data, "train").reshape(-1, 784).astype(np.float32) / 255
    rows = torch.from_numpy(pixels).to(device)
    training = Training(batch_size=512, optimizer="adam", patience=None)
    ours = epoch_seconds(module_of("vae", 784, (512,), 20, bounded=True), rows, training, epochs)
    plain = plain_seconds(rows, 512, 5)
    figures = {"epochs/s": 1 / ours, "plain loop, epochs/s": 1 / plain, "times": plain / ours}
    return {name: round(figure, 2) for name, figure in figures.items()}


def share(name: str, device: torch.device, ceiling: float, steps: int = 100) -> dict[str, Any]:
    """How much of the ceiling, multiplications a second, a network's steps use."""
    inputs, hidden, code, size = NETWORKS[name]
    module = module_of("plain", inputs, hidden, code, bounded=False)
    first = next(weight for weight in module.parameters() if weight.ndim > 1).numel()
    work = 3 * products(module, size) - size * first  # nobody asks for the gradient of the rows
    rows = torch.randn(steps * size // 4, inputs, device=device)
    training = Training(batch_size=size, optimizer="adamw", precision="bfloat16", patience=None)
    seconds = epoch_seconds(module, rows, training, SETTLING + 4) / (steps // 4)
    return {"step ms": round(1e3 * seconds, 3), "share of peak": round(work / seconds / ceiling, 3)}


def main() -> None:
    """Measure, print and keep; without a GPU, say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing to measure")
        return
    device = torch.device("cuda", 0)
    ceiling = peak(device)
    found = {"vae": vae(asked.data, device)} | {name: share(name, device, ceiling) for name in NETWORKS}
    found["peak"] = {"bfloat16 TFLOP/s": round(2e-12 * ceiling, 1)}
    for name, figures in found.items():
        print(name, figures)
    with kept(RESULTS, {"gpus": {}}, ("narrows", "torch", "numpy")) as results:
        results["gpus"][torch.cuda.get_device_name(device)] = found


if __name__ == "__main__":
    main()
