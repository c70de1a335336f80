"""What codes know that they were never told: few labels on MNIST, and digits pasted on photographs pixel by pixel.

    python benchmarks/probes.py --data DIR                                  all of it
    python benchmarks/probes.py mnist --data DIR --rows 2000 --epochs 2     a short try, which is not kept

MNIST: an autoencoder of each recipe learns from the 60,000 training images without labels; logistic regression then
learns from 10, 100 and 1,000 labels, as many of each digit, and is judged on the 10,000 test images: mean and standard
deviation over draws of the labels, the same draws for all. Beside it the same reader of raw pixels and of PCA of equal
size, and the encoder fine-tuned. Masks: digits in black or white on crops of photographs; a denoising autoencoder of
convolutions, 16 numbers at each of 6 x 6 places, learns from crops without masks; pixels are then told from a few masks
of other photographs and digits. Beside it the same network untrained, and the same reader of raw patches of 7 x 7. That
the code of the masks keeps its places was chosen on a short try; nothing else was tuned. Writes `results/probes.json`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from narrows import Model, Plan, Watch, fit, learn_baseline, probe
from narrows.model.building import build
from narrows.networks.choice import Network
from narrows.networks.conv import Conv
from narrows.tasks.baseline import Baseline
from narrows.tasks.features import features
from narrows.tasks.finetune import fine_tune, with_weights
from narrows.tasks.readout import Scaling, classifier

RESULTS = Path(__file__).parent / "results" / "probes.json"
LABELS = (10, 100, 1000)
DRAWS = 5
RECIPES = {"plain": 32, "denoising": 32, "vae": 32, "contractive": 32, "topk:k=16": 256}
MASKS = (5, 20, 80)
SIDE, SHOTS = 48, 20  # pixels of a crop, crops of each photograph


@dataclass(frozen=True)
class Images:
    """Training and test images with their labels."""

    train: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    truth: np.ndarray


def mnist(data: Path, rows: int | None) -> Images:
    """Digits, 28 x 28."""
    read = [idx(data / "mnist" / f"{part}-ubyte.gz") for part in FILES]
    train, labels, test, truth = read
    return Images(train[:rows], labels[:rows], test[:rows], truth[:rows])


FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def idx(path: Path) -> np.ndarray:
    """The array in an IDX file."""
    with gzip.open(path) as file:
        content = file.read()
    shape = np.frombuffer(content, ">i4", content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def drawn(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Positions of labelled images, as many of each digit."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == digit][: count // 10] for digit in range(10)])


def few_labels(recipe: str, data: Path, rows: int | None, epochs: int | None) -> dict[str, Any]:
    """Accuracy of readers of one recipe's codes, by labels."""
    images = mnist(data, rows)
    plan = Plan(recipe, RECIPES[recipe], "dense", epochs=epochs)
    began = time.perf_counter()
    model = fit(images.train, plan, watch=Watch(verbose=1), learn={"baseline": learn_baseline})
    seconds = round(time.perf_counter() - began, 1)
    train, test = readers(model, images.train), readers(model, images.test)
    scalings = {name: Scaling.of(values) for name, values in train.items()}
    found: dict[str, Any] = {"code": model.code_size, "seconds": seconds, "epochs": model.facts["epochs"]}
    for count in LABELS:
        right: dict[str, list[float]] = {name: [] for name in (*train, "tuned")}
        for seed in range(DRAWS):
            known = drawn(images.labels, count, seed)
            classes = images.labels[known].astype(np.int64)
            readouts = {name: classifier(train[name][known], classes, 10, scalings[name], seed) for name in train}
            for name, readout in readouts.items():
                right[name].append(float((readout.classes(test[name]) == images.truth).mean()))
            weights, head = fine_tune(model, readouts["codes"], prepared(model, images.train[known]), classes, seed)
            codes = with_weights(model, weights).encode(images.test)
            right["tuned"].append(float((head.classes(codes) == images.truth).mean()))
        found[f"{count} labels"] = {name: spread(shares) for name, shares in right.items()}
    return found


def prepared(model: Model, images: np.ndarray) -> Any:
    """Images as a batch of the model's own."""
    return next(iter(model.batches(images)))[1]


def readers(model: Model, images: np.ndarray) -> dict[str, np.ndarray]:
    """Codes, raw pixels and PCA of equal size."""
    pca = Baseline(model.schema, origin="", **model.parts["baseline"].tensors)
    raw = torch.cat([features(batch, model.schema) for _, batch in model.batches(images)])
    components = (raw - pca.mean) @ pca.components.T
    return {"codes": model.encode(images), "raw": raw.numpy(), "pca": components.numpy()}


def spread(shares: list[float]) -> list[float]:
    """Mean and standard deviation over draws, in percent."""
    return [round(100 * float(np.mean(shares)), 2), round(100 * float(np.std(shares, ddof=1)), 2)]


def pasted(photographs: np.ndarray, digits: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops of photographs, each with a digit in black or white somewhere, and where the digit is."""
    draws = np.random.default_rng(seed)
    crops, masks = [], []
    for photograph in np.repeat(photographs, shots, axis=0):
        y, x = draws.integers(0, photograph.shape[0] - SIDE, 2)
        top, left = draws.integers(0, SIDE - 28, 2)
        share = np.zeros((SIDE, SIDE))
        share[top : top + 28, left : left + 28] = digits[draws.integers(len(digits))] / 255
        ink = 255 * draws.integers(0, 2)
        crops.append((1 - share) * photograph[y : y + SIDE, x : x + SIDE] + share * ink)
        masks.append(share > 0.5)
    return np.array(crops).round().astype(np.uint8), np.array(masks).astype(np.uint8)


def masks(data: Path, rows: int | None, epochs: int | None) -> dict[str, Any]:
    """Pixel accuracy and mean IoU of readers of pixel codes and of raw patches, by labelled images."""
    photographs = np.load(data / "bsd_gray" / "train400.npz")["images"]
    images = mnist(data, None)
    crops, _ = pasted(photographs[:300], images.train, SHOTS, 0)
    others, truth = pasted(photographs[300:], images.test, SHOTS // 4, 1)
    network = Conv(channels=(32, 64, 64), fold=2, spatial=True)
    began = time.perf_counter()
    model = fit(crops[:rows], Plan("denoising", 576, network, epochs=epochs), watch=Watch(verbose=1))
    found: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 1), "epochs": model.facts["epochs"]}
    torch.manual_seed(0)
    fresh = build(model.recipe, model.schema, model.latent, Network.of(network)).eval()
    untrained = replace(model, module=fresh.to(model.module.device))
    for count in MASKS:
        told = [probe(model, others, truth, labels=count, seed=seed).figures for seed in range(DRAWS)]
        for seed, figures in enumerate(told):
            figures["untrained"] = probe(untrained, others, truth, labels=count, seed=seed).figures["codes"]
        found[f"{count} images"] = {
            f"{reader} {measure}": spread([figures[reader][measure] for figures in told])
            for reader in ("codes", "untrained", "patches", "usual")
            for measure in ("accuracy", "iou")
        }
    return found


def main() -> None:
    """Run the systems asked for, print their figures, keep those of full size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help="mnist, masks, or a recipe alone; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--rows", type=int, help="training images, for a short try")
    parser.add_argument("--epochs", type=int, help="of each fit; chosen by the number of rows by default")
    arguments = parser.parse_args()
    chosen = arguments.systems or ["mnist", "masks"]
    unknown = sorted(set(chosen) - {"mnist", "masks", *RECIPES})
    if unknown:
        parser.error(f"no system {', '.join(unknown)}; there are mnist, masks, {', '.join(RECIPES)}")
    for name in [system for word in chosen for system in (RECIPES if word == "mnist" else [word])]:
        short = (arguments.rows, arguments.epochs)
        found = masks(arguments.data, *short) if name == "masks" else few_labels(name, arguments.data, *short)
        show(name, found)
        if short == (None, None):
            keep(name, found)


def show(name: str, found: dict[str, Any]) -> None:
    """Print one system's figures: mean and standard deviation over draws, in percent."""
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    table = Table(title=f"{name}: {', '.join(f'{key} {value}' for key, value in found.items() if key not in tables)}")
    for heading in ("read from", *tables):
        table.add_column(heading)
    for reader in next(iter(tables.values())):
        table.add_row(reader, *(f"{rows[reader][0]:.1f} ± {rows[reader][1]:.1f}" for rows in tables.values()))
    Console().print(table)


def keep(name: str, found: dict[str, Any]) -> None:
    """Add one system's figures to the results."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"systems": {}}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {package: version(package) for package in ("narrows", "torch", "numpy", "scikit-learn")}
    kept |= {"machine": machine, "versions": versions, "date": datetime.now(UTC).date().isoformat()}
    kept["systems"][name] = found
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
