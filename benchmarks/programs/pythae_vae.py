"""Twenty epochs of pythae's VAE, for the likelihood of the published network; run by `likelihood.py` under a Python
that has pythae.

    python pythae_vae.py FOLDER        which has `arrays.npz`, pixels of 0 and 255, and `settings.json`

Prints one line of JSON: seconds of training, and -log p(x) of the test rows by 500 importance samples of its own.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae_fit import Decoder, Encoder
from stopwatch import prepared, read


def main(folder: Path) -> None:
    """Train, time and judge."""
    settings, *parts = read(folder)
    train, test = (torch.from_numpy(prepared(part)) for part in parts)
    torch.manual_seed(settings["seed"])
    config = VAEConfig(input_dim=(settings["cells"],), latent_dim=settings["latent"], reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(settings), decoder=Decoder(settings))
    how = BaseTrainerConfig(
        output_dir=str(folder / "runs"),
        num_epochs=settings["epochs"],
        learning_rate=settings["lr"],
        per_device_train_batch_size=settings["batch"],
        seed=settings["seed"],
        no_cuda=True,
    )
    trainer = BaseTrainer(model, train_dataset=BaseDataset(train, torch.zeros(len(train))), training_config=how)
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        nats = -float(model.get_nll(test, n_samples=settings["samples"], batch_size=settings["samples"]))
    told = {"seconds": round(seconds, 1), "nats": round(nats, 3)}
    print(json.dumps(told | {"versions": {name: version(name) for name in ("pythae",)}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
