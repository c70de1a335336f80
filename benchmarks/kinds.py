"""Every kind of data beside the usual yardstick of its field, on held-out rows: one command a system.

    python benchmarks/kinds.py ecg-conv --data DIR           one of them
    python benchmarks/kinds.py --data DIR                    all of them, each in a process of its own

Images, series and sounds: squared error a row in prepared units (pixels in [0, 1], standardized series) beside PCA with
as many components, fitted on the same training rows. Counts: the same, and nats a cell beside independent negative
binomials. Texts: bits a character of a variational model, whose bound counts the code, beside an interpolated model of
order 3. Bags: perplexity a word, again with the code counted, beside the unigram and scikit-learn's LDA. Seconds are
those of `fit` alone; peak memory is that of the whole process, PCA and peers included. Nothing was tuned on these
figures; seeds are 0. Writes `results/kinds.json`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from narrows import Model, Plan, Reading, Source, Watch, evaluate, fit, learn_baseline, open_source
from narrows.tasks.baseline import Baseline

RESULTS = Path(__file__).parent / "results" / "kinds.json"
DRAWS = 8  # of each code, to average a bound over

Parts = tuple[Any, Any]  # training rows, test rows


@dataclass(frozen=True)
class System:
    """A kind of data, the network it is for, and what it is measured beside."""

    rows: Callable[[Path, Path], Parts]
    network: str | None
    latent: int
    recipe: str = "plain"
    columns: dict[str, str] = field(default_factory=dict)
    epochs: int | None = None
    beside: Callable[[Model, Any, Any], dict[str, float]] | None = None


def mnist(data: Path, _: Path) -> Parts:
    """60,000 and 10,000 images."""
    train, test = (data / "mnist" / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k"))
    return train, test


def cifar(data: Path, _: Path) -> Parts:
    """4,000 and 1,000 color images."""
    return tuple(np.load(data / "cifar10_jpeg" / f"{part}.npz")["images"] for part in ("train", "test"))  # type: ignore[return-value]


def frey(data: Path, _: Path) -> Parts:
    """The first four fifths of a video and the last."""
    images = np.load(data / "frey_faces" / "frey_faces.npz")["images"]
    return images[:1572], images[1572:]


def ecg(data: Path, _: Path) -> Parts:
    """500 heartbeats of 140 steps, 400 for training."""
    with gzip.open(data / "ecg" / "ECG5000_TRAIN.txt.gz", "rt") as file:
        table = np.loadtxt(file)
    order = np.random.default_rng(0).permutation(len(table))
    beats = table[order, 1:].astype(np.float32)
    return beats[:400], beats[400:]


def heart(data: Path, folder: Path) -> Parts:
    """One second windows of two leads: the first four fifths of half an hour, and the last."""
    signal = np.load(data / "ecg" / "mitbih_100.npz")["signal"]
    cut = 360 * (len(signal) // 360 * 4 // 5)
    paths = folder / "train.npy", folder / "test.npy"
    for path, part in zip(paths, (signal[:cut], signal[cut:]), strict=True):
        np.save(path, part)
    return tuple(open_source(path, reading=Reading(form="series", window=360)) for path in paths)  # type: ignore[return-value]


def digits(data: Path, folder: Path) -> Parts:
    """Quarters of a second of spoken digits; the official test part is every recording numbered 0 to 4."""
    for part in ("train", "test"):
        (folder / part).mkdir()
    with zipfile.ZipFile(data / "fsdd" / "recordings.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".wav"):
                number = int(Path(name).stem.rsplit("_", 1)[1])
                part = "test" if number < 5 else "train"
                (folder / part / Path(name).name).write_bytes(archive.read(name))
    return tuple(open_source(folder / part, reading=Reading(window=2048)) for part in ("train", "test"))  # type: ignore[return-value]


def republic(data: Path, folder: Path) -> Parts:
    """Pieces of 64 characters of Plato's Republic: the first nine tenths, and the last."""
    with gzip.open(data / "plato_republic" / "republic_clean.txt.gz", "rt") as file:
        text = file.read()
    cut = len(text) * 9 // 10
    paths = folder / "train.txt", folder / "test.txt"
    for path, part in zip(paths, (text[:cut], text[cut:]), strict=True):
        path.write_text(part)
    return tuple(open_source(path, reading=Reading(form="text", window=64)) for path in paths)  # type: ignore[return-value]


def newsgroups(data: Path, folder: Path) -> Parts:
    """Posts without their headers, by date: 11,314 and 7,532."""
    paths = []
    for part in ("train", "test"):
        with gzip.open(data / "newsgroups20" / f"{part}.jsonl.gz", "rt") as file:
            posts = [json.loads(line)["text"] for line in file]
        paths.append(folder / f"{part}.jsonl")
        # line breaks are tabs in the first part of this copy
        bodies = (post.replace("\t", "\n").partition("\n\n")[2] for post in posts)
        paths[-1].write_text("".join(json.dumps({"text": body}) + "\n" for body in bodies if body.strip()))
    return paths[0], paths[1]


def cells(data: Path, _: Path) -> Parts:
    """Counts of 33 genes in 4,530 cells, four fifths for training."""
    counts = np.load(data / "single_cell" / "smfish_cortex.npz")["counts"].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(counts))
    cut = len(counts) * 4 // 5
    return counts[order[:cut]], counts[order[cut:]]


def bound(model: Model, rows: Any) -> tuple[float, int]:
    """The negative bound in nats over all rows, codes counted and drawn, and the number of rows."""
    torch.manual_seed(0)
    total, count = 0.0, 0
    with torch.inference_mode():
        for _, batch in model.batches(rows):
            for start in range(0, len(batch), 256):
                part = batch[start : start + 256]
                losses = [model.module(part).per_row().double().sum() for _ in range(DRAWS)]
                total += float(sum(losses)) / DRAWS
                count += len(part)
    return total, count


def bits_a_character(model: Model, train: Source, test: Source) -> dict[str, float]:
    """Bits a character of the model's bound, and of a model of order 3, which also starts anew with each piece."""
    nats, _ = bound(model, test)
    texts = [[text for _, rows in part.batches() for text in rows["text"].to_pylist()] for part in (train, test)]
    characters = sum(map(len, texts[1]))
    return {
        "bits a character": round(nats / characters / log(2), 4),
        "order 3 bits": round(order_3(*texts), 4),
    }


def order_3(train: list[str], test: list[str], order: int = 3) -> float:
    """Bits a character of an n-gram model, each order backed by the next lower one (Witten & Bell 1991)."""
    counts: list[dict[str, dict[str, int]]] = [{} for _ in range(order + 1)]
    alphabet = {c for text in train for c in text}
    for text in train:
        for i, character in enumerate(text):
            for n in range(min(i, order) + 1):
                following = counts[n].setdefault(text[i - n : i], {})
                following[character] = following.get(character, 0) + 1

    def chance(context: str, character: str) -> float:
        lower = chance(context[1:], character) if context else 1 / (len(alphabet) + 1)
        following = counts[len(context)].get(context)
        if not following:
            return lower
        total, kinds = sum(following.values()), len(following)
        return (following.get(character, 0) + kinds * lower) / (total + kinds)

    bits = sum(-log(chance(text[max(0, i - order) : i], c)) for text in test for i, c in enumerate(text))
    return bits / log(2) / sum(map(len, test))


def perplexity(model: Model, train: Any, test: Any) -> dict[str, float]:
    """Perplexity a word of the model's bound, the unigram and scikit-learn's LDA of as many topics, on equal counts."""
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import LatentDirichletAllocation

    def counted(rows: Any) -> csr_matrix:
        parts = [batch.sparse for _, batch in model.batches(rows)]
        from narrows.schema import Sparse

        whole = Sparse.concat(parts)
        return csr_matrix((whole.values.numpy(), whole.cells.numpy(), whole.offsets.numpy()), (len(whole), whole.width))

    known, new = counted(train), counted(test)
    words = float(new.sum())
    nats, _ = bound(model, test)
    shares = (np.asarray(known.sum(0)).ravel() + 0.5) / (known.sum() + 0.5 * known.shape[1])
    unigram = -float((np.asarray(new.sum(0)).ravel() * np.log(shares)).sum())
    began = time.perf_counter()
    lda = LatentDirichletAllocation(model.latent, random_state=0, n_jobs=1, learning_method="online").fit(known)
    seconds = time.perf_counter() - began
    return {
        "perplexity": round(float(np.exp(nats / words)), 1),
        "unigram": round(float(np.exp(unigram / words)), 1),
        "LDA": round(float(lda.perplexity(new)), 1),
        "LDA seconds": round(seconds, 1),
        "words known": known.shape[1],
    }


def log_error(model: Model, _: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Root mean squared error of log(1 + count): squared errors of counts are those of the few largest genes alone."""
    baseline, found = Baseline.of(model, model.source(test)), {}
    for name, guess in (("log error", lambda b: model.cells(model.codes(b))), ("PCA log error", baseline.cells)):
        gaps = [guess(batch)[0].clamp(min=0).log1p() - batch.numbers.log1p() for _, batch in model.batches(test)]
        found[name] = round(float(torch.cat(gaps).square().mean().sqrt()), 4)
    return found


def nats_a_cell(model: Model, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Nats a cell of the model's bound, and of a negative binomial for each gene by moments; and `log_error`."""
    from scipy.stats import nbinom

    nats, rows = bound(model, test)
    mean, variance = train.mean(0), train.var(0)
    size = mean**2 / np.maximum(variance - mean, 1e-6)
    alone = -nbinom.logpmf(test, size, size / (size + mean)).mean()
    found = {"nats a cell": round(nats / rows / test.shape[1], 4), "independent": round(float(alone), 4)}
    return found | log_error(model, train, test)


SERIES = {"x": "series"}
SYSTEMS = {
    "mnist-conv": System(mnist, "conv", 30),
    "cifar-conv": System(cifar, "conv", 64),
    "frey-conv": System(frey, "conv", 16),
    "ecg-conv": System(ecg, "conv", 8, columns=SERIES),
    "ecg-recurrent": System(ecg, "recurrent", 8, columns=SERIES),
    "ecg-transformer": System(ecg, "transformer", 8, columns=SERIES),
    "heart-conv": System(heart, "conv", 16),
    "heart-recurrent": System(heart, "recurrent", 16),
    "heart-transformer": System(heart, "transformer", 16),
    "digits-conv": System(digits, "conv", 32, columns={"sound": "spectra"}),
    "digits-recurrent": System(digits, "recurrent", 32, columns={"sound": "spectra"}),
    "digits-transformer": System(digits, "transformer", 32, columns={"sound": "spectra"}),
    "republic": System(republic, None, 16, "vae", beside=bits_a_character),
    "newsgroups": System(newsgroups, None, 50, "vae", {"text": "bag"}, beside=perplexity),
    "cells": System(cells, None, 10, "plain", {"x": "count"}, beside=log_error),
    "cells-vae": System(cells, None, 10, "vae", {"x": "count"}, beside=nats_a_cell),
}


def run(name: str, data: Path) -> dict[str, Any]:
    """Train one system and compare on its test rows."""
    system = SYSTEMS[name]
    with tempfile.TemporaryDirectory() as folder:
        train, test = system.rows(data, Path(folder))
        plan = Plan(system.recipe, system.latent, system.network, epochs=system.epochs, columns=system.columns)
        began = time.perf_counter()
        model = fit(train, plan, watch=Watch(verbose=1), learn={"baseline": learn_baseline})
        seconds = time.perf_counter() - began
        found = evaluate(model, test)
        facts: dict[str, Any] = {
            "system": name,
            "network": str(model.network.kind if model.network else ""),
            "weights": sum(weight.numel() for weight in model.module.parameters()),
            "rows": model.facts["rows"],
            "test rows": found.rows,
            "epochs": model.facts["epochs"],
            "stopped by": model.facts["reason"],
            "seconds": round(seconds, 1),
            "squared error a row": known(found.total.model),
            "PCA a row": known(found.total.pca),
            "mean a row": known(found.total.mean),
        }
        if system.beside:
            facts |= system.beside(model, train, test)
    return facts | {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def known(error: float) -> float | None:
    """A figure to four digits; None where there is none, as PCA has none of texts."""
    return round(error, 4) if isfinite(error) else None


def main() -> None:
    """Run the systems asked for, print a table, keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(SYSTEMS)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.systems) - set(SYSTEMS))
    if unknown:
        parser.error(f"no system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if arguments.one:
        print(json.dumps(run(arguments.systems[0], arguments.data)))
        return
    for name in arguments.systems or SYSTEMS:
        command = [sys.executable, __file__, name, "--one", "--data", str(arguments.data)]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{name} failed", file=sys.stderr)
            continue
        keep(json.loads(done.stdout.strip().splitlines()[-1]))
    show()


def keep(facts: dict[str, Any]) -> None:
    """Add one system's figures to the results."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"systems": {}}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {name: version(name) for name in ("narrows", "torch", "numpy", "scikit-learn")}
    kept |= {"machine": machine, "versions": versions, "date": datetime.now(UTC).date().isoformat()}
    kept["systems"][facts["system"]] = facts
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def show() -> None:
    """Print the results as a table."""
    kept = json.loads(RESULTS.read_text())["systems"]
    table = Table()
    for heading in ("system", "error", "PCA", "seconds", "peak MB", "more"):
        table.add_column(heading)
    common = {"system", "network", "weights", "rows", "test rows", "epochs", "stopped by", "mean a row"}
    shown = {"squared error a row", "PCA a row", "seconds", "peak MB"} | common
    for name in SYSTEMS:
        if name in kept:
            facts = kept[name]
            more = ", ".join(f"{key} {value}" for key, value in facts.items() if key not in shown)
            columns = [facts[key] for key in ("squared error a row", "PCA a row", "seconds", "peak MB")]
            table.add_row(name, *map(str, columns), more)
    Console().print(table)


if __name__ == "__main__":
    main()
