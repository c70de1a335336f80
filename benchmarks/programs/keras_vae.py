"""A VAE as Keras programs are written, timed and judged by its likelihood; run by `likelihood.py` under a Python that
has Keras and TensorFlow.

    python keras_vae.py FOLDER        which has `arrays.npz`, pixels of 0 and 255, and `settings.json`

Prints one line of JSON: seconds of training, and -log p(x) of the test rows by importance samples of its own.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
from keras_fit import Variational
from stopwatch import prepared, read


def log_likelihood(model: Variational, row: np.ndarray, draws: np.ndarray) -> float:
    """log p(x) of a row, (cells,), by importance sampling with standard normal `draws`, (samples, size)."""
    mean, log_variance = (found.numpy()[0].astype(np.float64) for found in model.encoder(row[None])[:2])
    z = mean + np.exp(0.5 * log_variance) * draws
    chances = np.clip(model.decoder(z.astype(np.float32)).numpy().astype(np.float64), 1e-7, 1 - 1e-7)
    cells = np.where(row > 0.5, np.log(chances), np.log1p(-chances)).sum(1)
    weights = cells - 0.5 * (z**2 - draws**2 - log_variance).sum(1)
    return float(np.logaddexp.reduce(weights) - np.log(len(weights)))


def main(folder: Path) -> None:
    """Train, time and judge."""
    settings, *parts = read(folder)
    train, test = map(prepared, parts)
    keras.utils.set_random_seed(settings["seed"])
    model = Variational(settings)
    began = time.perf_counter()
    model.compile(optimizer=keras.optimizers.Adam(settings["lr"]))
    model.fit(train, batch_size=settings["batch"], epochs=settings["epochs"], verbose=0)
    seconds = time.perf_counter() - began
    draws = np.random.default_rng(0)
    shape = settings["samples"], settings["latent"]
    nats = [-log_likelihood(model, row, draws.standard_normal(shape)) for row in test]
    told = {"seconds": round(seconds, 1), "nats": round(float(np.mean(nats)), 3)}
    print(json.dumps(told | {"versions": {name: version(name) for name in ("keras", "tensorflow-cpu")}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
