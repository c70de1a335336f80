"""A column of very many levels: memory and time, and what two steps cost in quality beside a softmax over all levels.

    python benchmarks/categories.py                  both, about ten minutes on two cores
    python benchmarks/categories.py wide             100,000 levels in 300,000 rows: peak of memory, seconds a step
    python benchmarks/categories.py quality          2,000 levels: loss on rows held out, beside one-hot and one softmax

Rows are made: a level (its frequency falls with its rank, to the power of 0.8), two numbers and a category that follow
from it with noise. `wide` fits one epoch, saves, loads, encodes and evaluates. `quality` trains twice on the same rows
with the same seeds: with tables and two steps, as such a column is treated, and with the limit put above its levels, so
that all are one-hot and one softmax. Told is -log p of the level a row on rows held out, in nats. Prints Markdown.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from narrows import Plan, Training, Watch, evaluate, fit, load

MEGABYTE = 1024  # of what `getrusage` counts in on Linux


def made(rows: int, levels: int, seed: int = 0) -> pd.DataFrame:
    """Rows of a user, two numbers and a plan that follow from the user."""
    draw = np.random.default_rng(seed)
    shares = np.arange(1, levels + 1) ** -0.8
    user = draw.choice(levels, rows, p=shares / shares.sum())
    habits = np.random.default_rng(1).normal(size=(levels, 2))
    plans = np.random.default_rng(2).integers(0, 5, levels)
    numbers = habits[user] + draw.normal(0, 0.05, (rows, 2))
    names = np.array([f"user-{level:06d}" for level in range(levels)])
    plan = np.array(["free", "basic", "plus", "team", "all"])[plans[user]]
    return pd.DataFrame({"user": names[user], "visits": numbers[:, 0], "spends": numbers[:, 1], "plan": plan})


def every_level_often(rows: int, levels: int) -> pd.DataFrame:
    """The rows of `made`, with two rows of every level in front, so that none is left out."""
    frame = made(rows, levels)
    draw = frame.drop_duplicates("plan").iloc[0]
    every = pd.DataFrame({"user": [f"user-{level:06d}" for level in range(levels)]})
    rest = {name: draw[name] for name in ("visits", "spends", "plan")}
    return pd.concat([every.assign(**rest), every.assign(**rest), frame], ignore_index=True)


def peak() -> float:
    """Megabytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MEGABYTE


def wide(levels: int, rows: int) -> str:
    """What a fit of very many levels takes."""
    frame = every_level_often(max(1, rows - 2 * levels), levels)
    before = peak()
    began = time.perf_counter()
    model = fit(frame, Plan(recipe="vae", latent=8, epochs=1), watch=Watch(verbose=1))
    fitted = time.perf_counter() - began
    record = model.facts["records"][-1]
    step = record["seconds"] / record["step"] if "seconds" in record else fitted / record["step"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.narrows"
        model.save(path)
        size = path.stat().st_size / 1e6
        began = time.perf_counter()
        model = load(path)
        loading = time.perf_counter() - began
    began = time.perf_counter()
    model.encode(frame[:20_000])
    encoding = time.perf_counter() - began
    began = time.perf_counter()
    evaluate(model, frame[-10_000:])
    evaluating = time.perf_counter() - began
    kept = model.schema["user"].levels
    figures = {
        "levels kept": f"{kept:,}",
        "rows": f"{len(frame):,}",
        "MB at most": f"{peak():,.0f}",
        "of them before the fit": f"{before:,.0f}",
        "ms a step": f"{1000 * step:.0f}",
        "rows a step": f"{model.facts['settings']['batch_size']:,}",
        "s to fit": f"{fitted:.0f}",
        "MB of the file": f"{size:.0f}",
        "s to load": f"{loading:.1f}",
        "s to encode 20,000 rows": f"{encoding:.1f}",
        "s to evaluate 10,000 rows": f"{evaluating:.1f}",
    }
    return "\n".join(["| what | figure |", "|---|---|", *(f"| {name} | {told} |" for name, told in figures.items())])


def quality(levels: int, rows: int, epochs: int, seeds: int) -> str:
    """Losses of both ways on rows held out."""
    train, test = train_test_split(made(rows, levels), test_size=0.1, random_state=0)
    lines = ["| way | -log p of the level, nats a row | wrong levels | ms a step |", "|---|---|---|---|"]
    for name, limit in (("tables and two steps", 256), ("one-hot and one softmax", 1 << 20)):
        found = []
        with mock.patch("narrows.prepare.categories.MANY", limit):
            for seed in range(seeds):
                training = Training(validation=0.1)
                began = time.perf_counter()
                model = fit(train, Plan(recipe="vae:beta=0.1", latent=8, epochs=epochs, seed=seed, training=training))
                step = (time.perf_counter() - began) / model.facts["records"][-1]["step"]
                place = model.schema.spans["user"].start
                batches = [batch for _, batch in model.batches(test)]
                nats = np.concatenate([model.costs(batch)[:, place].numpy() for batch in batches]).mean()
                wrong = next(column.errors.model for column in evaluate(model, test).columns if column.name == "user")
                found.append((nats, wrong, 1000 * step))
        (nats, wrong, step), spread = np.mean(found, 0), np.std(found, 0)
        lines.append(f"| {name} | {nats:.3f} ± {spread[0]:.3f} | {wrong:.1%} | {step:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["wide", "quality"])
    parser.add_argument("--levels", type=int, help="by default 100,000 or 2,000")
    parser.add_argument("--rows", type=int, help="by default 300,000 or 60,000")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if "wide" in options.what:
        print(wide(options.levels or 100_000, options.rows or 300_000), "\n", flush=True)
    if "quality" in options.what:
        print(quality(options.levels or 2_000, options.rows or 60_000, options.epochs, options.seeds))


if __name__ == "__main__":
    main()
