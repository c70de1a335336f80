"""Speed: the seed systems beside the programs of Keras, PyTorch and pythae, from the same arrays, in alternating runs.

    python benchmarks/speed.py --data DIR --keras PYTHON --peer PYTHON       all systems, three rounds
    python benchmarks/speed.py wide vae --data DIR --keras PYTHON            some of them, without pythae
    python benchmarks/speed.py --data DIR --keras PYTHON --quick             a short try, which is not kept
    python benchmarks/speed.py --plan wide --data DIR --keras PYTHON         epochs to plan, from development rows

PYTHON is an interpreter with the packages of `requirements.txt`; what is not given is left out. In each round, with
a seed of its own, every program trains in a fresh process, peers and ours in turn:

- `keras`, `keras bf16` (of the larger networks, where the processor has bfloat16), `torch`, `pythae` (variational
  alone): as such programs are written, in `programs/`;
- `same`: Narrows with the network, optimizer, rate, batch and epochs of the Keras program: for steps a second;
- `ours`: Narrows with the same widths and code, all else by default, until it has the validation loss that the Keras
  program of this round ended with (without Keras: the PyTorch loop): for the time to that loss.

`whole` is from the start of the process to the saved model, by this process' clock; `fit` from loaded arrays to the
fitted model. Steps a second include validation, and leave out the first epoch, which compiles and warms up. `loss` is
that of the saved model on the validation rows, computed here from what it makes of them. `share` is that of the
ceiling, the rate of large square products in the same round, of the type that the program multiplies in.
Peak memory is the most physical memory the process held (VmHWM), libraries and all. Prints medians, and keeps all runs
in `results/speed.json`. PyOD's autoencoder is timed by `anomalies.py speed`.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import narrows
import timed
from kept import kept
from narrows.train.devices import has_bfloat16
from programs.stopwatch import prepared
from seeds import SYSTEMS

RESULTS = Path(__file__).parent / "results" / "speed.json"
PROGRAMS = Path(__file__).parent / "programs"
OURS = ("same", "ours")
ORDER = ("keras", "ours", "torch", "same", "keras bf16", "pythae")  # ours needs the loss of the first
MEASURES = ("loss", "whole", "fit", "steps/s", "peak MB", "share")
REPAYS_BFLOAT16 = 1e8  # operations of a step below which `keras bf16` is left out: its products are too small
DRAWN = 1e-3  # share that a judged loss may be above the one reached: codes of a variational model are drawn
LADDER = (1, 2, 3, 5, 8, 12, 20, 32, 50, 80, 128, 200)
PLANNING_SEEDS = (0, 1)
Run = dict[str, Any]


@dataclass
class Job:
    """A system's arrays, in a file, and the interpreters that there are.

    Args:
        name: of the system.
        parts: training and validation rows.
        pythons: interpreters by the name of the script that they run.
        quick: whether two epochs are enough.
        versions: of the programs' packages, gathered as they tell.
    """

    name: str
    parts: timed.Parts
    pythons: dict[str, str]
    quick: bool
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.system = SYSTEMS[self.name]
        if self.quick:
            self.parts = self.parts[0][:2_000], self.parts[1][:500]
        self.held = prepared(self.parts[1])
        self.cells = self.held.shape[1]
        self.shapes = timed.layers(self.system, self.cells)

    @property
    def programs(self) -> list[str]:
        """Those that can run, in their order."""
        step = timed.step_flops(self.shapes, self.system.training.get("batch_size") or len(self.parts[0]))
        lower = step >= REPAYS_BFLOAT16 and has_bfloat16(torch.device("cpu"))
        suits = {"pythae": timed.variational(self.system), "keras bf16": lower}
        return [name for name in ORDER if script(name) in self.pythons and suits.get(name, True)]

    def settings(self, program: str, seed: int, target: float) -> dict[str, Any]:
        """What a program is told; `target` is the loss that ours is to reach."""
        if program == "ours":
            goal = timed.summed(self.system, target, self.cells)
            settings = timed.our_settings(self.system, seed, goal, timed.PLANNED[self.name])
        elif program == "same":
            settings = timed.same_settings(self.system, seed)
        else:
            policy = "mixed_bfloat16" if program == "keras bf16" else "float32"
            settings = timed.peer_settings(self.system, self.cells, seed) | {"policy": policy}
        return settings | ({"epochs": 2} if self.quick else {})

    def run(self, program: str, settings: dict[str, Any]) -> Run:
        """Let a program train in a process of its own, and judge the model that it saved."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            np.savez(folder / "arrays.npz", train=self.parts[0], validation=self.parts[1])
            (folder / "settings.json").write_text(json.dumps(settings | {"arrays": str(folder / "arrays.npz")}))
            name = script(program)
            whole, told = listened([self.pythons[name], str(PROGRAMS / name), place])
            with np.load(folder / "back.npz") as back:
                loss = timed.judged(dict(back), self.held)
        self.versions |= told.pop("versions")
        own = {"loss told": told["loss"], "whole told": told["saved"], "fit": told["fitted"] - told["loaded"]}
        return told | own | {"loss": loss, "whole": round(whole, 3)}


def script(program: str) -> str:
    """The file of a program."""
    return "narrows_fit.py" if program in OURS else f"{program.split()[0]}_fit.py"


def listened(command: list[str]) -> tuple[float, Run]:
    """Seconds from the start of a process to the line of JSON that it prints, and the line; once the process has ended.

    Raises:
        SystemExit: where it fails; with the end of what it said.
    """
    # importing narrows set these here; a program of another's must not have them
    ours = ("GOMP_SPINCOUNT", "ARROW_DEFAULT_MEMORY_POOL")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    settled = clean | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
    seconds, told = 0.0, {}
    with tempfile.TemporaryFile("w+") as said:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=settled) as process:
            for line in process.stdout or ():
                if line.startswith("{"):
                    seconds, told = time.monotonic() - began, json.loads(line)
        if process.returncode or not told:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    return seconds, told


def compared(job: Job, repeats: int) -> dict[str, Any]:
    """All programs of a system, one after the other, as many rounds as asked; everything that is kept of them."""
    runs: dict[str, list[Run]] = {program: [] for program in job.programs}
    ceilings: list[Run] = []
    reference = "keras" if "keras" in runs else "torch"
    rows = [len(part) for part in job.parts]
    flops = timed.epoch_flops(job.shapes, *rows)
    for seed in range(repeats):
        ceilings.append(listened([sys.executable, str(PROGRAMS / "ceiling.py")])[1])
        for program in sorted(runs, key=lambda name: name != reference):
            target = runs[reference][-1]["loss"] if program == "ours" else 0.0
            found = job.run(program, job.settings(program, seed, target))
            found["share"] = share(found, ceilings[-1], flops)
            if program == "ours":
                found |= {"target": target, "reached": found["loss"] <= target * (1 + DRAWN)}
            runs[program].append(found)
            print(job.name, program, seed, json.dumps(found), flush=True)
    facts = {"rows": rows, "cells": job.cells, "epoch flops": flops, "reference": reference}
    facts |= {"batch": job.system.training.get("batch_size"), "planned": timed.PLANNED[job.name]}
    return facts | {"runs": runs, "ceilings": ceilings, "figures": figures(runs)}


def share(run: Run, ceiling: Run, flops: int) -> float:
    """What part of the ceiling a program reaches with so many operations an epoch."""
    best = ceiling.get(run["precision"], ceiling["float32"])
    return round(flops / run["epoch seconds"] / 1e9 / best, 4)


def figures(runs: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Medians over rounds: measure -> program -> value."""
    return {m: {name: median(run[m] for run in found) for name, found in runs.items()} for m in MEASURES}


def shown(name: str, facts: dict[str, Any]) -> Table:
    """Medians of a system, a line for each program."""
    table = Table("", *MEASURES, title=name)
    for program in facts["runs"]:
        table.add_row(program, *(f"{facts['figures'][measure][program]:.6g}" for measure in MEASURES))
    return table


def planned(job: Job) -> int:
    """The fewest epochs to plan with which all seeds reach the loss of the Keras program, on development rows.

    Raises:
        SystemExit: where no number of epochs does.
    """
    target = job.run("keras", job.settings("keras", 0, 0.0))["loss"]
    print(job.name, "target", target, flush=True)
    goal = timed.summed(job.system, target, job.cells)
    for epochs in LADDER:
        for seed in PLANNING_SEEDS:
            found = job.run("ours", timed.our_settings(job.system, seed, goal, epochs))
            print(job.name, "planned", epochs, "seed", seed, found["loss"], found["reason"], flush=True)
            if found["reason"] != "loss":
                break
        else:
            return epochs
    raise SystemExit(f"{job.name}: not reached with {LADDER[-1]} epochs")


def main() -> None:
    """Time what was asked for, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="*", help=f"of {', '.join(SYSTEMS)}; all by default")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--keras", default="", help="a Python that has Keras and TensorFlow")
    parser.add_argument("--peer", default="", help="a Python that has pythae")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, two epochs, one round; not kept")
    parser.add_argument("--plan", action="store_true", help="find the epochs to plan, in place of timing")
    asked = parser.parse_args()
    if unknown := set(asked.systems) - SYSTEMS.keys():
        parser.error(f"no system {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    if asked.plan and not asked.keras:
        parser.error("--plan needs --keras PYTHON, an interpreter with the packages of benchmarks/requirements.txt")
    pythons = {"narrows_fit.py": sys.executable, "torch_fit.py": sys.executable}
    pythons |= {"keras_fit.py": asked.keras} if asked.keras else {}
    pythons |= {"pythae_fit.py": asked.peer} if asked.peer else {}
    rows = timed.development_parts if asked.plan else timed.parts
    compileall.compile_dir(str(Path(narrows.__file__).parent), quiet=1)  # as the peers were when they were installed
    for name in asked.systems or SYSTEMS:
        job = Job(name, rows(SYSTEMS[name], asked.data), pythons, asked.quick)
        if asked.plan:
            print(name, "epochs to plan:", planned(job), flush=True)
            continue
        facts = compared(job, 1 if asked.quick else asked.repeats)
        Console(width=120).print(shown(name, facts))
        if not asked.quick:
            with kept(RESULTS, {"systems": {}}, ()) as results:
                results["systems"][name] = facts
                results["versions"] |= job.versions


if __name__ == "__main__":
    main()
