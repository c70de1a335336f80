"""Two processes that train one model: over a slow link, and beside a slow process.

    python benchmarks/network.py --data DIR                  both experiments, a seed each
    python benchmarks/network.py slow --data DIR --seeds 0 1 2
    python benchmarks/network.py --plain --data DIR          without a link: the first over loopback
    python benchmarks/network.py --markdown docs/scale.md    writes the tables of what was kept into the page

DIR holds `mnist/*-ubyte.gz`. Each process has one thread, and trains 784-256-32-256-784 on batches of 512 rows of all
processes together, for as many epochs whatever the way (`Training.sync`), so that all learning rates take one course
over the rows. Experiments:

- `link`: two network namespaces as two machines, joined by a link of `--megabits` and `--delay` (see `link.py`), which
  is measured first. Needs root.
- `slow`: over loopback, where process 1 sleeps after each step three times as long as the step computed.

Curves are those of the run's folder: seconds since training began, and the loss of rows held out. `seconds to` is the
time at which a curve first passed the loss that all of the experiment's runs reached, between two records on a straight
line. Bytes are those that left rank 0's device from first to last, by batches that all processes trained on. Writes
`results/network.json` and `docs/network.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from curves import Chart, draw
from kept import kept, put
from link import ADDRESSES, DEVICE, inside, linked, why_not

RESULTS = Path(__file__).parent / "results" / "network.json"
PICTURE = Path(__file__).parent.parent / "docs" / "network.png"
WAYS = ("every", "local:8", "async")
SLOWED, BATCH = 4.0, 512
TITLES = {"link": "slow link", "slow": "one process slowed", "loopback": "loopback"}
Runs = dict[str, dict[str, Any]]  # seed -> figures


# one process


def work(data: Path, folder: Path, sync: str, rows: int, epochs: int, seed: int, slowed: float) -> None:
    """Train in this process, which is one of several; rank 0 leaves figures in the folder."""
    from narrows import Dense, Training, Watch
    from narrows.fitting import Plan, fit
    from seeds import mnist

    if slowed > 1:
        slow_down(slowed)
    training = Training(batch_size=BATCH, sync=sync, patience=None, checkpoint_every=1e9)
    plan = Plan(latent=32, network=Dense(hidden=(256,)), training=training, epochs=epochs, seed=seed)
    before = sent()
    model = fit(mnist(data, "train").reshape(-1, 784)[:rows], plan, watch=Watch(folder / "run"))
    if os.environ.get("RANK", "0") == "0":
        weights = sum(weight.numel() for weight in model.module.parameters())
        figures = {"weights": weights, "bytes": sent() - before, "rows": model.facts["records"][-1]["rows"]}
        (folder / "figures.json").write_text(json.dumps(figures))


def slow_down(times: float) -> None:
    """Let each step of this process take so many times as long as it computes: others are not waited for twice."""
    from narrows.train.step import Stepper

    step = Stepper.step

    def slowed(stepper: Stepper, *arguments: Any) -> Any:
        began = time.thread_time()
        heard = step(stepper, *arguments)
        time.sleep((times - 1) * (time.thread_time() - began))
        return heard

    Stepper.step = slowed  # type: ignore[method-assign]


def sent() -> int:
    """Bytes that have left this machine's device of the link; 0 where there is none."""
    device = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return 0 if device == "lo" else int(Path(f"/sys/class/net/{device}/statistics/tx_bytes").read_text())


# one run


def run(data: Path, sync: str, rows: int, epochs: int, seed: int, slowed: float, apart: bool) -> dict[str, Any]:
    """Two processes from start to end."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        address, port = (ADDRESSES[0], 29500) if apart else ("127.0.0.1", free_port())
        common = {"MASTER_ADDR": address, "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        processes = []
        for rank in range(2):
            asked = [data, folder, sync, rows, epochs, seed, slowed if rank == 1 else 1.0]
            words = [sys.executable, __file__, "--work", *map(str, asked)]
            own = {"RANK": str(rank), "GLOO_SOCKET_IFNAME": f"{DEVICE}{rank}" if apart else "lo"}
            environment = os.environ | common | own
            processes.append(subprocess.Popen(inside(rank, words) if apart else words, env=environment))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit(f"a process of {sync} failed")
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        figures = json.loads((folder / "figures.json").read_text())
    records = [json.loads(line) for line in lines]
    curve = [[round(record["seconds"], 2), round(record["val_loss"], 4)] for record in records]
    batches = figures["rows"] / BATCH
    return {
        "curve": curve,
        "seconds": curve[-1][0],
        "loss": min(loss for _, loss in curve),
        "weights": figures["weights"],
        "batches": round(batches),
        "bytes a batch": round(figures["bytes"] / batches),
    }


def free_port() -> int:
    """A port nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# what it comes to


def seconds_to(curve: Sequence[Sequence[float]], loss: float) -> float:
    """When a curve first came down to a loss."""
    before: Sequence[float] = curve[0]
    for after in curve:
        if after[1] <= loss:
            share = (before[1] - loss) / (before[1] - after[1]) if after is not before else 1.0
            return before[0] + share * (after[0] - before[0])
        before = after
    raise ValueError(f"never at {loss}")


def summed(ways: dict[str, Runs]) -> list[dict[str, Any]]:
    """A row for each way, means over seeds; all at the loss that the worst run reached."""
    reached = max(one["loss"] for runs in ways.values() for one in runs.values())
    rows = []
    for way, runs in ordered(ways):
        losses = [one["loss"] for one in runs.values()]
        row = {
            "way": way,
            "batches a second": round(mean(one["batches"] / one["seconds"] for one in runs.values()), 1),
            "kB a batch": round(mean(one["bytes a batch"] for one in runs.values()) / 1e3),
            "seconds in all": round(mean(one["seconds"] for one in runs.values())),
            "loss at the end": " to ".join(f"{loss:.2f}" for loss in sorted({min(losses), max(losses)})),
            f"seconds to {reached:.2f}": round(mean(seconds_to(one["curve"], reached) for one in runs.values()), 1),
        }
        rows.append(row if row["kB a batch"] else {name: value for name, value in row.items() if name != "kB a batch"})
    return rows


def ordered(ways: dict[str, Runs]) -> list[tuple[str, Runs]]:
    """In the order of `WAYS`, so that a way has the same color and line wherever it is shown."""
    return sorted(ways.items(), key=lambda pair: WAYS.index(pair[0]) if pair[0] in WAYS else len(WAYS))


def markdown(results: dict[str, Any]) -> str:
    """The tables, with the conditions."""
    told = "Measured, two processes of one thread each; losses are those of rows held out, all ways see as many rows."
    parts = [told + "\n\n![Losses by seconds, each way](network.png)\n"]
    for name, experiment in results["experiments"].items():
        rows = summed(experiment["ways"])
        lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
        seeds = sorted({seed for runs in experiment["ways"].values() for seed in runs})
        told = f"`{name}`: {experiment['conditions']}; {len(seeds)} seed{'s' * (len(seeds) > 1)}, {results['date']}."
        parts.append("\n".join([told, "", *lines, ""]))
    return "\n".join(parts)


@contextmanager
def network(experiment: str, plain: bool, megabits: float, delay: float) -> Iterator[str]:
    """What an experiment runs over, and its conditions in words."""
    apart = experiment == "link" and not plain
    with linked(megabits, delay) if apart else nullcontext({}) as measured:
        over = "loopback"
        if apart:
            trip, rate = measured["round trip, ms"], measured["Mbit/s"]
            over = (
                f"{delay:g} ms each way at {megabits:g} Mbit/s (measured idle: {trip} ms there and back, {rate} Mbit/s)"
            )
        slow = f", process 1 slowed {SLOWED:g} times" if experiment == "slow" else ""
        yield f"{over}{slow}; load of the machine before {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores"


def main() -> None:
    """Run, print, keep, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="link, slow; both by default")
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="of Training.sync")
    parser.add_argument("--rows", type=int, default=60_000, help="of MNIST; fewer are printed and not kept")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--megabits", type=float, default=100.0, help="a second, each way")
    parser.add_argument("--delay", type=float, default=20.0, help="ms, each way")
    parser.add_argument("--plain", action="store_true", help="link over loopback")
    parser.add_argument("--markdown", type=Path, help="page to write the kept figures into; nothing is run")
    asked = parser.parse_args()
    if asked.markdown:
        put(asked.markdown, "network", markdown(json.loads(RESULTS.read_text())))
        return
    experiments = asked.experiments or ["link", "slow"]
    if "link" in experiments and not asked.plain and (reason := why_not()):
        raise SystemExit(f"{reason}; --plain runs over loopback, slow needs no link")
    for experiment in experiments:
        measure(experiment, asked)


def measure(experiment: str, asked: argparse.Namespace) -> None:
    """All runs of an experiment."""
    name = "loopback" if experiment == "link" and asked.plain else experiment
    ways: dict[str, Runs] = {way: {} for way in asked.ways}
    with network(experiment, asked.plain, asked.megabits, asked.delay) as conditions:
        for seed in asked.seeds:
            for way in asked.ways:
                slowed = SLOWED if experiment == "slow" else 1.0
                ways[way][str(seed)] = run(asked.data, way, asked.rows, asked.epochs, seed, slowed, name == "link")
                print(name, way, seed, ways[way][str(seed)], flush=True)
    rows = summed(ways)
    table = Table(*rows[0], title=f"{name}: {conditions}")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)
    if asked.rows < 60_000:
        return
    with kept(RESULTS, {"experiments": {}}, ("narrows", "torch", "numpy")) as results:
        results["experiments"][name] = {"conditions": conditions, "ways": ways}
    picture(results)


def picture(results: dict[str, Any]) -> None:
    """Draw the curves of all experiments."""
    charts = []
    for name, experiment in results["experiments"].items():
        curves = {way: [one["curve"] for one in runs.values()] for way, runs in ordered(experiment["ways"])}
        charts.append(Chart(TITLES[name], "seconds", "loss of rows held out, log scale", curves))
    draw(charts, PICTURE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        data, folder, sync, *numbers = sys.argv[2:]
        work(Path(data), Path(folder), sync, *map(int, numbers[:3]), float(numbers[3]))
    else:
        main()
