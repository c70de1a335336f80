"""What is timed: each seed system's arrays, its settings for every program, its work, and how a saved model is judged.

Losses are stated in one way, whoever trained: the mean squared error a cell, cells in [0, 1], and for variational
models nats a row, cross-entropy and KL. Narrows sums the squared errors of a row's cells where Keras averages them: its
loss is that of Keras times the cells, and a step of plain gradient descent the same with a rate so much smaller.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from narrows import Recipe
from seeds import System, mnist, mnist_10k, mnist_all

Parts = tuple[np.ndarray, np.ndarray]  # training rows, validation rows
PLAIN_DESCENT = ("gd", "sgd", "momentum")  # whose steps grow with the loss
# Epochs that our schedule is told to plan: the fewest with which two seeds reached the loss of the Keras program on
# development rows (`speed.py --plan SYSTEM`), of which none takes part in what is timed unless as a training row.
PLANNED = {
    "shallow-128": 5,
    "shallow-256": 1,
    "deep-784": 2,
    "deep-100": 8,
    "descent-gd": 2,
    "descent-sgd": 3,
    "descent-momentum": 5,
    "descent-adam": 20,
    "vae": 5,
    "wide": 2,
}


def parts(system: System, data: Path) -> Parts:
    """The rows to train on and to validate on: of 10,000 images the last tenth, else the test rows."""
    if system.rows is not mnist_10k:
        return system.rows(data)
    images = mnist(data, "train")[:10_000]
    return images[:9_000], images[9_000:]


def development_parts(system: System, data: Path) -> Parts:
    """Rows to choose settings by: other images, or a part of the training rows."""
    if system.rows is mnist_10k:
        images = mnist(data, "train")[10_000:20_000]
        return images[:9_000], images[9_000:]
    train, _ = system.rows(data)
    held = np.arange(len(train)) >= 50_000 if system.rows is mnist_all else np.arange(len(train)) % 10 == 9
    return train[~held], train[held]


def variational(system: System) -> bool:
    """Whether the loss is in nats a row."""
    return Recipe.parse(system.recipe).name == "vae"


def summed(system: System, loss: float, cells: int) -> float:
    """A loss as we state it here -> as Narrows states it, a row."""
    return loss if variational(system) else loss * cells


def peer_settings(system: System, cells: int, seed: int) -> dict[str, Any]:
    """For Keras, PyTorch and pythae: the textbook's program."""
    training, code = system.training, Recipe.parse(system.recipe).arguments.get("code", "identity")
    optimizer, stop = training["optimizer"], training.get("stop_loss")
    rate = (system.lr or 1e-3) * (cells if optimizer in PLAIN_DESCENT else 1)
    return {
        "kind": "vae" if variational(system) else "plain",
        "cells": cells,
        "hidden": list(system.hidden),
        "latent": system.latent,
        "activation": system.activation,
        "code": "linear" if code == "identity" else code,
        "optimizer": optimizer,
        "lr": rate,
        "batch": training.get("batch_size"),
        "epochs": system.epochs,
        "stop": None if stop is None else stop / cells,
        "tolerance": training.get("tolerance"),
        "seed": seed,
    }


def same_settings(system: System, seed: int) -> dict[str, Any]:
    """For Narrows: network, optimizer, rate, batch and epochs of the textbook's program."""
    names = ("recipe", "latent", "hidden", "activation", "epochs", "lr", "training")
    return {name: getattr(system, name) for name in names} | {"seed": seed}


def our_settings(system: System, seed: int, target: float, planned: int) -> dict[str, Any]:
    """For Narrows: the same widths and code, everything else by default, until the loss (as we state it) is reached.

    Args:
        system: whose widths and kind of code are kept.
        seed: of every draw.
        target: loss to stop at, as Narrows states it.
        planned: epochs that the schedule is told to plan.
    """
    recipe = "vae:likelihood=bernoulli" if variational(system) else "plain"
    return same_settings(system, seed) | {
        "recipe": recipe,
        "activation": None,
        "epochs": planned,
        "lr": None,
        "training": {"stop_loss": target},
    }


def judged(back: dict[str, np.ndarray], rows: np.ndarray) -> float:
    """The loss of reconstructions.

    Args:
        back: `back` (n, cells), and of a variational model `mean` and `log_variance` (n, latent) of its codes.
        rows: (n, cells) in [0, 1] that they stand for.
    """
    guess, rows = back["back"].astype(np.float64), rows.astype(np.float64)
    if "mean" not in back:
        return float(((guess - rows) ** 2).mean())
    guess = guess.clip(1e-7, 1 - 1e-7)
    nats = -(rows * np.log(guess) + (1 - rows) * np.log1p(-guess)).sum(1)
    mean, log_variance = back["mean"].astype(np.float64), back["log_variance"].astype(np.float64)
    return float((nats + 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(1)).mean())


def layers(system: System, cells: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of each dense layer; a variational code is told by twice as many numbers as it has."""
    features = system.latent * (2 if variational(system) else 1)
    return [*pairwise([cells, *system.hidden, features]), *pairwise([system.latent, *reversed(system.hidden), cells])]


def step_flops(shapes: list[tuple[int, int]], rows: int) -> int:
    """Operations of the matrix products in a step of so many rows, two for each multiplication.

    Forward, for the gradients of the weights, and for those of the inputs, which the first layer has no use for. What
    activations, biases, losses and the optimizer do is not counted.
    """
    weights = [inputs * outputs for inputs, outputs in shapes]
    return 2 * rows * (3 * sum(weights) - weights[0])


def epoch_flops(shapes: list[tuple[int, int]], rows: int, validation_rows: int) -> int:
    """Operations of the matrix products in an epoch and the validation after it."""
    return step_flops(shapes, rows) + 2 * validation_rows * sum(inputs * outputs for inputs, outputs in shapes)
