"""Tables larger than memory: rows a second and peak memory of training from a folder of Parquet files.

    python benchmarks/streaming.py --data DIR                                       5 and 20 million rows of 32 numbers
    python benchmarks/streaming.py --data DIR --rows 1e8 --seconds 120 --repeat 1   100 million, for part of an epoch

The tables are made once, in `DIR/streaming-ROWS/` (128 bytes a row, no two rows alike). Each figure is of a process of
its own that trains the default network for `--seconds` (`time_limit`): first with the rows in memory (those that 1 GB
holds), then streamed with a budget of 100 MB; in turns, as often as `--repeat` says, and the best of each counts, since
other programs can only slow it down. Before each, the files are put out of the system's cache. Prints, and adds to
`results/streaming.json`:

- rows/s: from the moment training asks for its first batch, so the wait for the first window counts too; and those of
  the first and of the last tenth of the time;
- statistics, held out: seconds of the pass that learns from all rows, and of the one that picks those to validate on;
- peak MB: the most physical memory the process held at any time (VmHWM), libraries and all;
- without files: the most of it that was not backed by files, that is without the pages of libraries (RssAnon, looked at
  every 10 ms), before a tenth of the training was over and in all. Data files are read, never mapped, so their page
  cache is in neither.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from kept import kept, put
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
    """Looks on as the first epoch of a kind of stream gives its rows.

    Args:
        kind: of stream.
    """

    def __init__(self, kind: type) -> None:
        self.epoch, self.marks = kind.epoch, [(0.0, 0)]
        kind.epoch = lambda stream, *place: self.timed(stream, *place)

    def timed(self, stream: Any, *place: Any) -> Iterator[tuple[Any, dict[str, int]]]:
        """Batches, as the stream gives them; later epochs, those of validation, are left alone."""
        batches = self.epoch(stream, *place)
        if len(self.marks) > 1:
            yield from batches
            return
        began, rows = time.perf_counter(), 0
        for batch, here in batches:
            yield batch, here
            rows += len(batch)
            self.marks.append((time.perf_counter() - began, rows))

    def speed(self, first: float = 0.0, last: float = 1.0) -> int:
        """Rows a second between two shares of the time."""
        times, rows = zip(*self.marks, strict=True)
        span = np.array([first, last]) * times[-1]
        return round(float(np.diff(np.interp(span, times, rows))[0] / np.diff(span)[0]))


class Memory(threading.Thread):
    """Looks at how much memory this process holds that no file backs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.looks: list[tuple[float, float]] = []

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.looks.append((time.perf_counter(), megabytes("RssAnon")))
            time.sleep(0.01)

    def most(self, until: float = inf) -> int:
        """In MB, up to a time."""
        return round(max(found for when, found in self.looks if when <= until))


def megabytes(what: str) -> float:
    """A figure of this process, as Linux knows it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def forget(files: Sequence[Path]) -> None:
    """Put files out of the system's cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)  # what is not on disk yet stays in the cache
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def measure(folder: Path, how: str, seconds: float) -> dict[str, Any]:
    """Train in this process."""
    memory = Memory()
    memory.start()
    from narrows.fitting import Plan, fit
    from narrows.prepare.streamed import Streamed
    from narrows.rows import Rows
    from narrows.train.resident import Resident
    from narrows.train.settings import Training

    files = sorted(folder.iterdir())[: MEMORY_ROWS // FILE_ROWS if how == "memory" else None]
    forget(files)
    clock, passes = Clock(Streamed if how == "streamed" else Resident), Passes(Rows)
    model = fit(files, Plan(epochs=1, training=Training(budget=BUDGETS[how], time_limit=seconds)))
    return {
        "rows": model.facts["rows"],
        "rows seen": clock.marks[-1][1],
        "rows/s": clock.speed(),
        "at first": clock.speed(0.0, 0.1),
        "at last": clock.speed(0.9, 1.0),
        "statistics": round(passes.seconds["__init__"], 1),
        "held out": round(passes.seconds["streams"], 1),
        "peak MB": round(megabytes("VmHWM")),
        "without files at first": memory.most(passes.ended + seconds / 10),
        "without files": memory.most(),
    }


class Passes:
    """Takes the time of the passes over all rows that come before training.

    Args:
        rows: the class that makes them.
    """

    def __init__(self, rows: type) -> None:
        self.seconds: dict[str, float] = {}
        self.ended = 0.0
        for name in ("__init__", "streams"):
            setattr(rows, name, self._timed(name, getattr(rows, name)))

    def _timed(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = made(*arguments)
            self.ended = time.perf_counter()
            self.seconds[name] = self.ended - began
            return found

        return timed


def measured(folder: Path, how: str, seconds: float) -> dict[str, Any]:
    """Figures of a process of its own."""
    words = [sys.executable, __file__, "--measure", how, "--data", str(folder), "--seconds", str(seconds)]
    figures: dict[str, Any] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return figures


def compare(folder: Path, seconds: float, repeat: int) -> dict[str, Any]:
    """Train on a table in memory and streamed, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {"memory": [], "streamed": []}
    for how in ["memory", "streamed"] * repeat:
        runs[how].append(measured(folder, how, seconds))
    memory, streamed = (max(done, key=lambda run: float(run["rows/s"])) for done in runs.values())
    peaks = ("peak MB", "without files at first", "without files")
    return {
        "in memory rows/s": memory["rows/s"],
        "streamed rows/s": streamed["rows/s"],
        "ratio": round(streamed["rows/s"] / memory["rows/s"], 3),
        "at first": streamed["at first"],
        "at last": streamed["at last"],
        "seconds": seconds,
        "rows seen": streamed["rows seen"],
        "statistics": min(run["statistics"] for run in runs["streamed"]),
        "held out": min(run["held out"] for run in runs["streamed"]),
        **{peak: max(run[peak] for run in runs["streamed"]) for peak in peaks},
        "peak MB in memory": max(run["peak MB"] for run in runs["memory"]),
    }


def shown(figure: float | str) -> str:
    """Numbers with commas."""
    return figure if isinstance(figure, str) else f"{figure:,}"


def markdown(results: dict[str, Any]) -> str:
    """A column for each table."""
    tables = dict(sorted(results["tables"].items(), key=lambda pair: int(pair[0])))
    names = dict.fromkeys(name for figures in tables.values() for name in figures)
    lines = ["| | " + " | ".join(f"{int(rows):,} rows" for rows in tables) + " |", "|---|" + "---|" * len(tables)]
    for name in names:
        cells = (shown(figures.get(name, "")) for figures in tables.values())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([f"On {results['machine']['cores']} cores.", "", *lines, ""])


def main() -> None:
    """Make the tables that are not there, measure, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=float, nargs="+", default=[5e6, 20e6])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="page to write the kept figures into; nothing is run")
    parser.add_argument("--measure", choices=list(BUDGETS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.data, asked.measure, asked.seconds)))
        return
    if asked.markdown:
        put(asked.markdown, "streaming", markdown(json.loads(RESULTS.read_text())))
        return
    for rows in map(int, asked.rows):
        folder = asked.data / f"streaming-{rows}"
        if not folder.exists():
            make(folder, rows)
        figures = compare(folder, asked.seconds, asked.repeat)
        show = Table("", f"{rows:,} rows", title="Training from Parquet")
        for name, value in figures.items():
            show.add_row(name, f"{value:,}")
        Console().print(show)
        with kept(RESULTS, {"tables": {}}, ("narrows", "torch", "pyarrow")) as results:
            results["tables"][str(rows)] = figures | {"measured": datetime.now(UTC).date().isoformat()}


if __name__ == "__main__":
    main()
