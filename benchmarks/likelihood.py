"""The likelihood of MNIST: -log p(x) of dynamically binarized digits, beside published figures and pythae's VAE.

    python benchmarks/likelihood.py vae iwae --data DIR --minutes 30
    python benchmarks/likelihood.py seconds --data DIR --peer PYTHON

`vae` and `iwae` train the published network, 784-200-200-50 with tanh both ways and one and five importance samples
(Burda et al. 2016: 86.76 and 85.54 nats after 3,280 epochs of batches of 20), for as many epochs as `--minutes` hold,
on all 60,000 training images, each binarized anew in each epoch. The test images are binarized once, by seed 0, and
each is judged by 5,000 importance samples (`--samples`). `best` trains a larger model of our own for as long.
`seconds` times 20 epochs of that network on training images binarized once, in batches of 128 with Adam, by pythae and
Keras under PYTHON, an interpreter that has them (see `requirements.txt`), and here (`same`); and as few epochs of Muon
as end below all those (`ours`). Each judges 1,000 test images by 500 samples; medians of three rounds, a seed each.
Prints, and writes to `results/likelihood.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from kept import here, kept
from narrows import Dense, Model, Plan, Training, Watch, fit
from narrows.tasks.likelihood import log_likelihood
from seeds import mnist
from speed import PROGRAMS, listened

RESULTS = Path(__file__).parent / "results" / "likelihood.json"
PUBLISHED = {"vae": 86.76, "iwae": 85.54}
NETWORK = Dense(hidden=(200, 200), activation="tanh")
# chosen on training images held out, by 500 importance samples each, with five samples in training: 50 epochs of 512
# rows at 0.01 ended at 88.7 nats without weight decay and at 89.6 with 0.1 (16 epochs of 256 rows: 92.6, and 92.9 with
# 0.03); 100 epochs at 87.4, with 0.005 at 87.7, where training images stood at 86.3 and 87.0. The gap of the higher
# rate is the wider, so that a rate between the two is for longer runs. An epoch of 512 rows took .74 of the time of one
# of 256 on two cores, and 16 ended .6 nats higher. Adam, 128 rows at 0.002, was 8 nats behind in the training bound
# after 7 of 8 epochs
RATE, ROWS = 0.007, 512

PEER: dict[str, Any] = {"cells": 784, "hidden": [200, 200], "latent": 50, "activation": "tanh"}
PEER |= {"batch": 128, "lr": 1e-3, "epochs": 20, "samples": 500}
# on 1,000 training images held out `same` ended at 99.9 nats; Muon after 10 epochs of 512 rows at 0.01 and 0.014 at
# 99.3 and 98.0, after 8 at 0.014 and 0.02 at 100.1, after 10 of 1,024 rows at 0.014, 0.02 and 0.028 at 105.5, 101.5 and
# 100.9
RACERS = {
    "same": (Training(optimizer="adam", batch_size=128, patience=None, schedule="constant", validation=0), 20, 1e-3),
    "ours": (Training(optimizer="muon", batch_size=ROWS, weight_decay=0, patience=None, validation=0), 10, 0.014),
}


def binarized(images: np.ndarray, seed: int) -> np.ndarray:
    """Each pixel 255 with the chance that its gray value says, else 0."""
    draws = np.random.default_rng(seed).random(images.shape, dtype=np.float32)
    return np.where(draws * 255 < images, 255, 0).astype(np.uint8)


def published(recipe: str, data: Path, minutes: float) -> Model:
    """The published network, trained for so long."""
    training = Training(
        optimizer="muon", batch_size=ROWS, weight_decay=0, time_limit=60 * minutes, patience=None, validation=0
    )
    return fit(mnist(data, "train"), Plan(recipe, 50, NETWORK, training, 4000, RATE), watch=Watch(verbose=2))


def best(data: Path, minutes: float) -> Model:
    """A residual network over a hierarchy of four levels.

    On 500 training images held out, by 100 seconds of one core each: layers of 256 and 512 rows by Muon ended at 89.1
    nats, layers of 512 at 96.6 with 1,024 rows (its products are too many there) and at 92.3 with 256 rows by AdamW,
    convolutions of 48 and 96 channels at 101 and more. On 1,000, by 180 seconds and 200 samples: codes of 48 numbers in
    2, 3, 4 and 5 levels 87.3, 86.5, 86.5 and 86.7; of 96 and 160 in 4 levels 86.1 and 86.8; a fourth layer, more weight
    decay and a higher rate within .2 of the same without.
    """
    network = Dense(hidden=(256, 256, 256), residual=True)
    training = Training(optimizer="muon", batch_size=ROWS, time_limit=60 * minutes, patience=None, validation=0)
    recipe = "hierarchical:depth=4,augment=binarize,warm_up=0.2"
    return fit(mnist(data, "train"), Plan(recipe, 96, network, training, 4000, 0.01), watch=Watch(verbose=2))


SYSTEMS: dict[str, Callable[[Path, float], Model]] = {
    "vae": lambda data, minutes: published("vae:augment=binarize", data, minutes),
    "iwae": lambda data, minutes: published("iwae:samples=5,augment=binarize", data, minutes),
    "best": best,
}


def likelihood(name: str, data: Path, minutes: float, samples: int) -> dict[str, Any]:
    """Train a system and judge it by the test images."""
    began = time.perf_counter()
    model = SYSTEMS[name](data, minutes)
    seconds = time.perf_counter() - began
    found = log_likelihood(model, binarized(mnist(data, "t10k"), 0), samples)
    facts = {"recipe": str(model.recipe), "epochs": model.facts["epochs"], "seconds": round(seconds), "seed": 0}
    facts |= {"threads": torch.get_num_threads(), "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    return facts | {key: round(value, 4) for key, value in asdict(found).items()} | {"published": PUBLISHED.get(name)}


def seconds(data: Path, peer: str) -> dict[str, Any]:
    """The published network by pythae, by Keras and here, on the same arrays, in turn: medians of three seeds."""
    train, test = binarized(mnist(data, "train"), 1), binarized(mnist(data, "t10k")[:1000], 0)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("pythae", "keras", *RACERS)}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.savez(folder / "arrays.npz", train=train, validation=test)
        for seed in range(3):
            settings = PEER | {"arrays": str(folder / "arrays.npz"), "seed": seed}
            (folder / "settings.json").write_text(json.dumps(settings))
            for name in ("pythae", "keras"):
                told = listened([peer, str(PROGRAMS / f"{name}_vae.py"), place])[1]
                versions |= told.pop("versions")
                runs[name].append(told | {"epochs": PEER["epochs"]})
            for name, (training, epochs, rate) in RACERS.items():
                began = time.perf_counter()
                model = fit(train, Plan("vae", 50, NETWORK, training, epochs, rate, seed=seed))
                taken = round(time.perf_counter() - began, 1)
                nats = round(log_likelihood(model, test, PEER["samples"]).nats, 3)
                runs[name].append({"seconds": taken, "nats": nats, "epochs": epochs})
            print(json.dumps({name: found[-1] for name, found in runs.items()}), flush=True)
    medians = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    return medians | {"runs": runs, "versions": versions}


def main() -> None:
    """Run what was asked for, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", choices=[*SYSTEMS, "seconds"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--samples", type=int, default=5000, help="of importance, of each test image")
    parser.add_argument("--peer", default="", help="a Python that has pythae and Keras")
    asked = parser.parse_args()
    if "seconds" in asked.systems and not asked.peer:
        parser.error("seconds needs --peer PYTHON, an interpreter with the packages of benchmarks/requirements.txt")
    for name in asked.systems:
        if name == "seconds":
            found = seconds(asked.data, asked.peer)
        else:
            found = likelihood(name, asked.data, asked.minutes, asked.samples)
        print(name, json.dumps(found))
        with kept(RESULTS, {"systems": {}}, ("narrows", "torch", "numpy")) as results:
            results["versions"] |= found.pop("versions", {})
            results["systems"][name] = found | {"machine": here()}


if __name__ == "__main__":
    main()
