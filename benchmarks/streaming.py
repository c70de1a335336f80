"""Tables larger than memory: rows a second and peak memory of training from a folder of Parquet files.

    python benchmarks/streaming.py --data DIR                      5 and 20 million rows of 32 numbers
    python benchmarks/streaming.py --data DIR --rows 1e6           a smaller table

The tables are made once, in `DIR/streaming-ROWS/` (128 bytes a row). Each figure is of a process of its own that trains
the default network for `--seconds`: first with the rows in memory (those that 1 GB holds), then streamed with a budget
of 100 MB; in turns, as often as `--repeat` says, and the best of each counts, since other programs can only slow it
down. Prints, and writes to `results/streaming.json`:

- rows/s: from the moment training asks for its first batch, so the wait for the first window counts too;
- peak MB: the most physical memory the process held at any time (VmHWM), libraries and all;
- without files: the most of it that was not backed by files, that is without the pages of libraries (RssAnon, looked at
  every 10 ms). Data files are read, never mapped, so their page cache is in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from narrows.files import atomic_folder

RESULTS = Path(__file__).parent / "results" / "streaming.json"
COLUMNS, FACTORS = 32, 8
FILE_ROWS, GROUP_ROWS = 1_000_000, 125_000
MEMORY_ROWS = 5_000_000
BUDGETS = {"memory": 1e9, "streamed": 1e8}


def make(folder: Path, rows: int) -> None:
    """Write the table: 8 hidden numbers a row seen through 32 bent mixtures with noise, a seed for each file."""
    mixing = np.random.default_rng(0).normal(size=(FACTORS, COLUMNS)).astype(np.float32)
    schema = pa.schema([(f"x{i}", pa.float32()) for i in range(COLUMNS)])
    with atomic_folder(folder) as temporary:
        for part, first in enumerate(range(0, rows, FILE_ROWS)):
            rng = np.random.default_rng((1, part))
            with pq.ParquetWriter(temporary / f"part-{part:03}.parquet", schema, use_dictionary=False) as writer:
                for start in range(first, min(first + FILE_ROWS, rows), GROUP_ROWS):
                    count = min(GROUP_ROWS, rows - start)
                    hidden = rng.normal(size=(count, FACTORS)).astype(np.float32)
                    noise = rng.normal(scale=0.1, size=(COLUMNS, count)).astype(np.float32)
                    cells = np.tanh(hidden @ mixing).T + noise
                    writer.write_table(pa.table(list(cells), schema=schema))


class Clock:
    """Ends the first epoch of a kind of stream after some seconds, and says how many rows a second it gave.

    Args:
        kind: of stream.
        seconds: to go on.
    """

    def __init__(self, kind: type, seconds: float) -> None:
        self.epoch, self.seconds, self.speed, self.before = kind.epoch, seconds, 0.0, time.perf_counter()
        kind.epoch = lambda stream, *place: self.timed(stream, *place)

    def timed(self, stream: Any, *place: Any) -> Iterator[tuple[Any, dict[str, int]]]:
        """Batches, as the stream gives them; later epochs, those of validation, are left alone."""
        if self.speed:
            yield from self.epoch(stream, *place)
            return
        began, rows = time.perf_counter(), 0
        self.before = began - self.before
        for batch, here in self.epoch(stream, *place):
            yield batch, here
            rows += len(batch)
            took = time.perf_counter() - began
            self.speed = rows / took
            if took > self.seconds:
                return


class Memory(threading.Thread):
    """Looks at how much memory this process holds that no file backs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.anonymous = 0.0

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.anonymous = max(self.anonymous, megabytes("RssAnon"))
            time.sleep(0.01)


def megabytes(what: str) -> float:
    """A figure of this process, as Linux knows it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def measure(folder: Path, how: str, seconds: float) -> dict[str, Any]:
    """Train in this process."""
    memory = Memory()
    memory.start()
    from narrows.fitting import Plan, fit
    from narrows.prepare.streamed import Streamed
    from narrows.train.resident import Resident
    from narrows.train.settings import Training

    files = sorted(folder.iterdir())[: MEMORY_ROWS // FILE_ROWS if how == "memory" else None]
    clock = Clock(Streamed if how == "streamed" else Resident, seconds)
    model = fit(files, Plan(epochs=1, training=Training(budget=BUDGETS[how])))
    return {
        "rows": model.facts["rows"],
        "rows/s": round(clock.speed),
        "seconds before": round(clock.before, 1),
        "peak MB": round(megabytes("VmHWM")),
        "without files": round(memory.anonymous),
    }


def measured(folder: Path, how: str, seconds: float) -> dict[str, Any]:
    """Figures of a process of its own."""
    words = [sys.executable, __file__, "--measure", how, "--data", str(folder), "--seconds", str(seconds)]
    figures: dict[str, Any] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def compare(folder: Path, rows: int, seconds: float, repeat: int) -> dict[str, Any]:
    """Train on a table in memory and streamed, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {"memory": [], "streamed": []}
    for how in ["memory", "streamed"] * repeat:
        runs[how].append(measured(folder, how, seconds))
    speed = {how: max(run["rows/s"] for run in done) for how, done in runs.items()}
    streamed = runs["streamed"]
    return {
        "rows": rows,
        "in memory rows/s": speed["memory"],
        "streamed rows/s": speed["streamed"],
        "ratio": round(speed["streamed"] / speed["memory"], 3),
        "seconds before": min(run["seconds before"] for run in streamed),
        "peak MB": max(run["peak MB"] for run in streamed),
        "without files": max(run["without files"] for run in streamed),
        "peak MB in memory": max(run["peak MB"] for run in runs["memory"]),
    }


def main() -> None:
    """Make the tables that are not there, measure, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=float, nargs="+", default=[5e6, 20e6])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", choices=list(BUDGETS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.data, asked.measure, asked.seconds)))
        return
    results = []
    for rows in map(int, asked.rows):
        folder = asked.data / f"streaming-{rows}"
        if not folder.exists():
            make(folder, rows)
        results.append(compare(folder, rows, asked.seconds, asked.repeat))
    show = Table(*results[0], title="Training from Parquet")
    for result in results:
        show.add_row(*(f"{value:,}" for value in result.values()))
    Console(width=180).print(show)
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": version("torch"),
        "pyarrow": version("pyarrow"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"results": results, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
