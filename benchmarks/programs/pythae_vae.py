"""pythae's VAE, timed and judged by its likelihood; run by `likelihood.py` under a Python that has pythae.

    python pythae_vae.py FOLDER        which has `arrays.npz`, pixels of 0 and 255, and `settings.json`

Prints one line of JSON: seconds of training, and -log p(x) of the test rows by importance samples of its own.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from pythae.data.datasets import BaseDataset
from pythae.trainers import BaseTrainer
from pythae_fit import instructed, untrained
from stopwatch import prepared, read


def main(folder: Path) -> None:
    """Train, time and judge."""
    settings, *parts = read(folder)
    train, test = (torch.from_numpy(prepared(part)) for part in parts)
    torch.manual_seed(settings["seed"])
    model, rows = untrained(settings), BaseDataset(train, torch.zeros(len(train)))
    trainer = BaseTrainer(model, train_dataset=rows, training_config=instructed(settings, folder))
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        nats = -float(model.get_nll(test, n_samples=settings["samples"], batch_size=settings["samples"]))
    told = {"seconds": round(seconds, 1), "nats": round(nats, 3)}
    print(json.dumps(told | {"versions": {"pythae": version("pythae")}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
