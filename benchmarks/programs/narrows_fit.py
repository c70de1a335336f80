"""An autoencoder by Narrows, from arrays to a saved model. Run by `speed.py` (see `stopwatch.py` for how)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stopwatch import Stopwatch, read

from narrows import Dense, Model, Plan, Training, Watch, fit, load
from narrows.train.devices import choose_precision


def trained(settings: dict[str, Any], train: np.ndarray, held: np.ndarray, clock: Stopwatch) -> Model:
    """The model."""
    named = {"activation": settings["activation"]} if settings["activation"] else {}
    network = Dense(tuple(settings["hidden"]), **named)
    training = Training(**settings["training"])
    names = ("recipe", "latent", "epochs", "lr", "seed")
    plan = Plan(network=network, training=training, **{name: settings[name] for name in names})

    def tell(record: dict[str, int | float]) -> None:
        clock.epoch(int(record["step"]))

    return fit(train, plan, validation=held, watch=Watch(callbacks=[tell]))


def precision(model: Model) -> str:
    """What its products were trained in."""
    used = model.facts["settings"]
    lower = choose_precision(model.module, used["batch_size"], model.module.device, used["precision"])
    return str(lower or torch.float32).removeprefix("torch.")


@torch.inference_mode()
def reconstructed(model: Model, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The cells in prepared units; of a variational model one draw, with what the codes were drawn from."""
    parts: list[dict[str, torch.Tensor]] = []
    for _, batch in model.batches(rows):
        code = model.module.encode(batch, samples=int(model.module.latent.variational))
        part = {"back": model.module.decode(code.z).numbers()[0]}
        if code.posterior is not None:
            part |= {"mean": code.posterior.mean, "log_variance": code.posterior.log_variance}
        parts.append(part)
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def main(folder: Path) -> None:
    """Train, save and tell; then reconstruct with what was saved."""
    clock = Stopwatch()
    settings, train, validation = read(folder)
    clock.mark("loaded")
    model = trained(settings, train, validation, clock)
    clock.mark("fitted")
    model.save(folder / "model.narrows")
    clock.mark("saved")
    best = model.facts["records"][model.facts["best"]]
    clock.tell(best["val_loss"], ("narrows", "torch", "numpy"), precision(model), reason=model.facts["reason"])

    np.savez(folder / "back.npz", **reconstructed(load(folder / "model.narrows"), validation))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
