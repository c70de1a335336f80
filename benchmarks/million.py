"""Memory of imputing at scale: a million rows of 50 mixed columns with holes, fitted and filled by the command line.

    python benchmarks/million.py [--rows 1e6] [--budget 2e8]

Makes a Parquet file of 30 columns of numbers that hang together and 20 categories of 3 to 50 levels, a tenth of the
cells missing, in a temporary folder; then `narrows fit --for impute --epochs 1` and `narrows impute`, each in a process
of its own. Prints seconds and the most physical memory that either held, beside the budget for prepared rows; keeps
both in `results/million.json`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kept import kept

RESULTS = Path(__file__).parent / "results" / "million.json"
NUMBERS, LEVELS, FACTORS, MISSING = 30, [3 + 47 * i // 19 for i in range(20)], 6, 0.1
GROUP = 65_536


def write(path: Path, rows: int) -> None:
    """The table, a row group at a time."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(FACTORS, NUMBERS + len(LEVELS)))
    writer = None
    for start in range(0, rows, GROUP):
        count = min(GROUP, rows - start)
        mixed = draw.normal(size=(count, FACTORS)) @ weights + draw.normal(size=(count, weights.shape[1]))
        hide = draw.random(mixed.shape) < MISSING
        columns = {f"x{i}": pa.array(mixed[:, i], mask=hide[:, i]) for i in range(NUMBERS)}
        for i, levels in enumerate(LEVELS):
            scores = mixed[:, NUMBERS + i]
            codes = ((scores / 12 + 0.5).clip(0, 0.999) * levels).astype(int)
            words = np.array([f"level {code}" for code in range(levels)], dtype=object)
            columns[f"c{i}"] = pa.array(words[codes], mask=hide[:, NUMBERS + i])
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()


def run(*words: str) -> dict[str, float]:
    """Seconds and MB of a command.

    Raises:
        SystemExit: where it fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "narrows", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"narrows {' '.join(words)} failed")
    return {"seconds": round(time.perf_counter() - began, 1), "peak MB": round(used.ru_maxrss / 1024)}


def main() -> None:
    """Make, fit, fill, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e6)
    parser.add_argument("--budget", type=float, default=2e8, help="bytes of prepared rows in memory")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows, model, out = (str(Path(place) / name) for name in ("rows.parquet", "m.narrows", "filled.parquet"))
        write(Path(rows), int(asked.rows))
        fit = ["fit", rows, "--for", "impute", "--epochs", "1", "--budget", f"{asked.budget:g}", "--verbose", "0"]
        found = {"fit": run(*fit, "--out", model), "impute": run("impute", model, rows, "--out", out)}
    print(found)
    with kept(RESULTS, {"runs": {}}, ("narrows", "torch", "pyarrow")) as results:
        results["runs"][f"{asked.rows:g} rows, budget {asked.budget / 1e6:g} MB"] = found


if __name__ == "__main__":
    main()
