"""Several processes that train together, as a launcher starts them; as a script, one of them: `group.py JOB FOLDER`.

A job is a function here; what it returns, tensors by name, each process leaves in a file of the folder.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from narrows import world
from narrows.errors import NarrowsError
from narrows.fitting import Plan, fit
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import Dense
from narrows.schema import Column, Schema
from narrows.train.loop import train
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from small_run import rows_of_rank

WIDTH = 12
ALIKE = ["plain", "denoising:noise=0.1,mask=0.2", "vae", "hierarchical", "topk:k=2", "masked"]
OTHERS = ["iwae", "fsq", "linear", "sparse", "contractive", "vq:levels=16", "wae", "aae", "vaegan", "tcvae"]
STREAMS = [("uneven", "*.parquet", "every"), ("apart", "*.parquet", "local:3"), ("free", "*.parquet", "async:3")]
STREAMS += [("single", "0.parquet", "every")]


@dataclass
class Ended:
    """How the processes ended, and what they left."""

    codes: list[int]
    errors: list[str]
    left: list[dict[str, torch.Tensor]]


def start(job, folder, size=2, **environment):
    """The processes of a job, which find each other at a port of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, __file__, job, str(folder)],
            env={**os.environ, **here, "RANK": str(rank), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes, folder, seconds=500):
    """Wait for them."""
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
    files = [Path(folder) / f"{rank}.safetensors" for rank in range(len(processes))]
    left = [load_file(file) if file.exists() else {} for file in files]
    return Ended([process.returncode for process in processes], errors, left)


def run(job, folder, size=2, **environment):
    """A job from start to end."""
    return ended(start(job, folder, size, **environment), folder)


def words():
    """Bytes and sums go round."""
    rank, size = world.rank(), world.size()
    said = world.gathered(bytes([rank]) * (3 * rank))
    assert said == [bytes([other]) * (3 * other) for other in range(size)]
    assert world.given(b"from 0" if rank == 0 else b"unheard") == b"from 0"
    assert world.sums(rank, 1) == [sum(range(size)), size]
    with world.alone():
        assert (world.rank(), world.size()) == (0, 1)


def module_of(recipe, norm="layer"):
    """A small autoencoder, the same every time."""
    schema = Schema((Column("x", "number", "float", shape=(WIDTH,), width=WIDTH, bounded=True),))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        hidden = () if recipe == "linear" else (16,)
        network = Dense(hidden=hidden, norm=norm, dropout=0.0 if recipe == "linear" else 0.1)
        return build(Recipe.parse(recipe), schema, 4, Network.of(network))


def steps_of(recipe, epochs, sync="every"):
    """Weights after training on 100 weighted rows in uneven batches of 15."""
    batch = rows_of_rank(100, width=WIDTH)
    weighted = type(batch)(batch.numbers, batch.codes, None, torch.linspace(0.5, 1.5, 100))
    module = module_of(recipe)
    validation = Resident(rows_of_rank(31, width=WIDTH, seed=1), 15, shuffle=False)
    training = Training(batch_size=15, patience=None, sync=sync)
    history = train(module, Resident(weighted, 15, seed=5), validation, training, epochs=epochs, seed=7)
    losses = [[record["loss"], record["val_loss"]] for record in history.records]
    return module.state_dict() | {"losses": torch.tensor(losses, dtype=torch.float64)}


def named(prefix, tensors):
    """Tensors under a name."""
    return {f"{prefix}/{name}": tensor.clone().contiguous() for name, tensor in tensors.items()}


def alike():
    """A hundred steps of recipes whose rows have nothing to do with each other."""
    return {name: tensor for recipe in ALIKE for name, tensor in named(recipe, steps_of(recipe, 15)).items()}


def others():
    """A few steps of the rest."""
    return {name: tensor for recipe in OTHERS for name, tensor in named(recipe, steps_of(recipe, 2)).items()}


def averaged():
    """Steps of one's own."""
    ways = ("local:4", "async:3")
    return {name: tensor for way in ways for name, tensor in named(way, steps_of("plain", 15, way)).items()}


def table(rows, seed=0):
    """(rows, 8) numbers of three factors."""
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(rows, 3)) @ np.random.default_rng(1).normal(size=(3, 8))).astype(np.float32)


def streamed(folder, pattern="*.parquet", sync="every"):
    """A fit from Parquet files, streamed: each process reads files of its own."""
    plan = Plan(latent=3, epochs=4, training=Training(batch_size=50, budget=0, sync=sync))
    model = fit(str(Path(folder) / pattern), plan)
    facts = [[record["rows"], record["val_loss"]] for record in model.facts["records"]]
    return model.module.state_dict() | {"records": torch.tensor(facts), "total": torch.tensor(model.facts["rows"])}


def refused(folder, one, other):
    """What a process says of a fit that rank 1 asks for otherwise."""
    try:
        fit(str(Path(folder) / (one if world.rank() == 0 else other)), Plan(latent=3, epochs=1))
    except NarrowsError as error:
        return torch.tensor([*str(error).encode()], dtype=torch.uint8)
    raise AssertionError("nothing was refused")


def everything(folder):
    """All that a group that lives on can do, in one, as starting processes takes longer than most of it."""
    with world.together():
        words()
        found = alike() | others() | averaged()
        for name, pattern, sync in STREAMS:
            found |= named(name, streamed(folder, pattern, sync))
        found["gone"] = refused(folder, "0.parquet", "none.parquet")
        found["fewer"] = refused(folder, "*.parquet", "0.parquet")
    return found


def killed(folder):
    """A run whose rank 1 is killed in its third epoch, the first time."""

    def strike(record):
        if world.rank() == 1 and record["epoch"] == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    plan = Plan(latent=3, epochs=8, training=Training(batch_size=50, checkpoint_every=0))
    resume = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    model = fit(table(600), plan, watch=Watch(Path(folder) / "run", resume, callbacks=[strike]))
    return model.module.state_dict()


def older(folder):
    """A fit in which rank 1 runs another version."""
    if os.environ["RANK"] == "1":
        world._versions = lambda: {"narrows": "0.0.1", "torch": "1", "python": "3"}
    fit(table(100), Plan(latent=3, epochs=1))


def hasty(folder):
    """A fit whose other processes do not come, by one that waits for two seconds."""
    world.PATIENCE = world.timedelta(seconds=2)
    fit(table(100), Plan(latent=3, epochs=1))


def main():
    """Do a job, and leave what it returns."""
    job, folder = sys.argv[1:]
    try:
        found = globals()[job](folder) or {}
    except NarrowsError as error:
        sys.exit(f"{error}")
    rank = os.environ["RANK"]
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, Path(folder) / f"{rank}.safetensors")


if __name__ == "__main__":
    main()
