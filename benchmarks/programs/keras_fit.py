"""An autoencoder as Keras programs are written: `compile`, `fit` with validation data, `save`; on TensorFlow.

Run by `speed.py` under a Python that has them (see `stopwatch.py` for how). The variational one has a training step of
its own, as in Keras' example of it: a sampling layer, the Bernoulli likelihood and the KL term.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from stopwatch import Stopwatch, prepared, read

OPTIMIZERS = {
    "adam": lambda lr: keras.optimizers.Adam(lr),
    "gd": lambda lr: keras.optimizers.SGD(lr),
    "sgd": lambda lr: keras.optimizers.SGD(lr),
    "momentum": lambda lr: keras.optimizers.SGD(lr, momentum=0.9),
}


class Epochs(keras.callbacks.Callback):
    """Notes the end of each epoch, and stops where the loss is low enough or no longer changes."""

    def __init__(self, clock: Stopwatch, steps: int, stop: float | None, tolerance: float | None) -> None:
        super().__init__()
        self.clock, self.steps, self.stop, self.tolerance = clock, steps, stop, tolerance
        self.before = math.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After the validation of an epoch."""
        self.clock.epoch(self.steps * (epoch + 1))
        low = self.stop is not None and logs["val_loss"] <= self.stop
        settled = self.tolerance is not None and abs(self.before - logs["loss"]) < self.tolerance * self.before
        self.before = logs["loss"]
        self.model.stop_training = low or settled


def plain(settings: dict[str, Any]) -> keras.Model:
    """Dense layers down to a code and up again."""
    rows = x = keras.Input((settings["cells"],))
    for width in settings["hidden"]:
        x = layers.Dense(width, activation=settings["activation"])(x)
    x = layers.Dense(settings["latent"], activation=settings["code"])(x)
    return keras.Model(rows, decoded(settings, x))


def decoded(settings: dict[str, Any], x: Any) -> Any:
    """From a code to cells in [0, 1]; in float32, as Keras asks for where precision is mixed."""
    for width in reversed(settings["hidden"]):
        x = layers.Dense(width, activation=settings["activation"])(x)
    return layers.Dense(settings["cells"], activation="sigmoid", dtype="float32")(x)


class Sampling(layers.Layer):
    """A draw from the normal distribution with this mean and log variance."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs: tuple[Any, Any]) -> Any:
        """The draw."""
        mean, log_variance = inputs
        return mean + ops.exp(0.5 * log_variance) * keras.random.normal(ops.shape(mean), seed=self.seeds)


class Variational(keras.Model):
    """A variational autoencoder that trains on its bound."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        rows = x = keras.Input((settings["cells"],))
        for width in settings["hidden"]:
            x = layers.Dense(width, activation=settings["activation"])(x)
        mean, log_variance = (layers.Dense(settings["latent"], dtype="float32")(x) for _ in range(2))
        code = keras.Input((settings["latent"],))
        self.encoder = keras.Model(rows, [mean, log_variance, Sampling(dtype="float32")([mean, log_variance])])
        self.decoder = keras.Model(code, decoded(settings, code))
        self.tracker = keras.metrics.Mean(name="loss")

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Reset by Keras at the start of each epoch."""
        return [self.tracker]

    def bound(self, rows: Any, training: bool) -> Any:
        """Nats a row: cross-entropy and KL."""
        mean, log_variance, code = self.encoder(rows, training=training)
        back = self.decoder(code, training=training)
        nats = rows.shape[1] * keras.losses.binary_crossentropy(rows, back)
        kl = -0.5 * ops.sum(1 + log_variance - ops.square(mean) - ops.exp(log_variance), axis=1)
        return ops.mean(nats + kl)

    def train_step(self, rows: Any) -> dict[str, Any]:
        """One step on a batch."""
        with tf.GradientTape() as tape:
            loss = self.bound(rows, training=True)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}

    def test_step(self, rows: Any) -> dict[str, Any]:
        """The same without a step."""
        self.tracker.update_state(self.bound(rows, training=False))
        return {"loss": self.tracker.result()}


def trained(settings: dict[str, Any], x: np.ndarray, held: np.ndarray, clock: Stopwatch) -> tuple[keras.Model, float]:
    """The model, and its last validation loss."""
    batch = settings["batch"] or len(x)
    epochs = Epochs(clock, math.ceil(len(x) / batch), settings["stop"], settings["tolerance"])
    how = {"batch_size": batch, "epochs": settings["epochs"], "callbacks": [epochs], "verbose": 0}
    optimizer = OPTIMIZERS[settings["optimizer"]](settings["lr"])
    if settings["kind"] == "vae":
        model = Variational(settings)
        model.compile(optimizer=optimizer)
        history = model.fit(x, validation_data=(held,), **how)
    else:
        model = plain(settings)
        model.compile(optimizer=optimizer, loss="mse")
        history = model.fit(x, x, validation_data=(held, held), **how)
    return model, history.history["val_loss"][-1]


def main(folder: Path) -> None:
    """Train, save and tell; then reconstruct with what was saved."""
    clock = Stopwatch()
    settings, train, validation = read(folder)
    clock.mark("loaded")
    keras.utils.set_random_seed(settings["seed"])
    keras.mixed_precision.set_global_policy(settings["policy"])
    held = prepared(validation)
    model, loss = trained(settings, prepared(train), held, clock)
    clock.mark("fitted")
    halves = {"encoder": model.encoder, "decoder": model.decoder} if settings["kind"] == "vae" else {"model": model}
    for name, half in halves.items():
        half.save(folder / f"{name}.keras")
    clock.mark("saved")
    clock.tell(loss, ("keras", "tensorflow-cpu"), settings["policy"].removeprefix("mixed_"))

    loaded = [keras.models.load_model(folder / f"{name}.keras", {"Sampling": Sampling}) for name in halves]
    if settings["kind"] == "vae":
        mean, log_variance, code = loaded[0].predict(held, verbose=0)
        back = loaded[1].predict(code, verbose=0)
        np.savez(folder / "back.npz", back=back, mean=mean, log_variance=log_variance)
    else:
        np.savez(folder / "back.npz", back=loaded[0].predict(held, verbose=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
