"""The tables of `docs/benchmarks.md` on speed: times to a loss, steps a second, memory, and shares of the ceiling."""

from __future__ import annotations

from statistics import median
from typing import Any

from standings import OURS, table

PEERS = {"keras": "Keras", "keras bf16": "Keras, bf16", "torch": "PyTorch loop", "pythae": "pythae"}
ABOUT = """Medians over rounds of alternating runs, each program in a process of its own on the same arrays. Bold:
ahead of Narrows. PyOD's autoencoder is under [anomalies](#anomalies-in-tables)."""
TO_THE_LOSS = """**Time to the same validation loss.** The peer's program runs all its epochs; Narrows, with the same
widths and code and all else by default, runs until it has the loss that the peer ended with. `process` is from its
start to the saved model, `fit` from loaded arrays to the fitted model. How many epochs our schedule should plan was
found on other rows."""
STEPS = """**Steps a second**, same network, optimizer and batch; validation is included, the first epoch left out. In
brackets: how many times as many Narrows makes."""
ALL_EPOCHS = """**All epochs of the same program**, seconds from loaded arrays to the fitted model; in brackets the
loss on the validation rows: mean squared error a cell, of `vae` nats a row."""
MEMORY = "**Peak memory**, MB of the whole process, libraries and all."
CEILING = """**Share of the ceiling**: operations of an epoch's matrix products and of its validation's (forward, and
both gradients, but for that of the first layer's inputs) a second, over those of large square products in the same
round, GFLOP/s in float32; in bfloat16 for programs that use it where the processor has it."""


def speed(results: dict[str, Any]) -> str:
    """All tables, of the systems that were timed."""
    systems: dict[str, Any] = results["systems"]
    rounds = sorted({len(found["ceilings"]) for found in systems.values()})
    parts = [f"Rounds: {' or '.join(map(str, rounds))}.", TO_THE_LOSS, to_the_loss(systems), STEPS, steps(systems)]
    parts += [ALL_EPOCHS, all_epochs(systems), MEMORY, memory(systems), CEILING, ceiling(systems)]
    return "\n\n".join(parts)


def ahead(text: str, is_ahead: bool) -> str:
    """Bold where a peer is ahead."""
    return f"**{text}**" if is_ahead else text


def to_the_loss(systems: dict[str, Any]) -> str:
    """Seconds until Narrows has the loss that the peer ended with."""
    rows = []
    for name, found in systems.items():
        figures, peer = found["figures"], found["reference"]
        missed = [run["loss"] for run in found["runs"]["ours"] if not run["reached"]]
        reached = f"missed in {len(missed)} of {len(found['runs']['ours'])}: {max(missed):.5g}" if missed else "always"
        rows.append([name, PEERS[peer], reached])
        rows[-1].append(f"{figures['loss'][peer]:.5g}")
        for measure in ("whole", "fit"):
            theirs, ours = figures[measure][peer], figures[measure]["ours"]
            sooner = "-" if missed else ahead(f"{theirs / ours:.1f}", theirs < ours)
            rows[-1] += [f"{theirs:.1f}", f"{ours:.1f}", sooner]
    heading = [
        "system",
        "peer",
        "reached",
        "its loss",
        "process, s",
        OURS,
        "times sooner",
        "fit, s",
        OURS,
        "times sooner",
    ]
    return table(heading, rows, left=3)


def steps(systems: dict[str, Any]) -> str:
    """Steps a second with the same network, optimizer and batch."""
    rows = []
    for name, found in systems.items():
        rate = found["figures"]["steps/s"]
        ours = rate["same"]
        peers = [
            ahead(f"{rate[peer]:.0f} ({ours / rate[peer]:.1f})", rate[peer] > ours) if peer in rate else "-"
            for peer in PEERS
        ]
        rows.append([name, str(found["batch"] or "all"), f"{ours:.0f}", *peers])
    return table(["system", "batch", OURS, *PEERS.values()], rows)


def all_epochs(systems: dict[str, Any]) -> str:
    """Seconds of all epochs, and the losses they end with."""
    rows = []
    for name, found in systems.items():
        taken, loss = found["figures"]["fit"], found["figures"]["loss"]
        texts = {
            program: f"{ahead(f'{seconds:.1f}', seconds < taken['same'])} ({loss[program]:.5g})"
            for program, seconds in taken.items()
        }
        rows.append([name, *(texts.get(program, "-") for program in ("same", *PEERS))])
    return table(["system", OURS, *PEERS.values()], rows)


def memory(systems: dict[str, Any]) -> str:
    """Peak memory."""
    rows = []
    for name, found in systems.items():
        peak = found["figures"]["peak MB"]
        texts = {program: ahead(f"{size:.0f}", size < peak["same"]) for program, size in peak.items()}
        texts["ours"] = f"{peak['ours']:.0f}"
        rows.append([name, *(texts.get(program, "-") for program in ("same", "ours", *PEERS))])
    return table(["system", f"{OURS}, same program", f"{OURS}, to the loss", *PEERS.values()], rows)


def ceiling(systems: dict[str, Any]) -> str:
    """The share of the rate of large square products."""
    rows = []
    for name, found in systems.items():
        share = found["figures"]["share"]
        texts = {program: ahead(f"{part:.0%}", part > share["same"]) for program, part in share.items()}
        rate = median(run["float32"] for run in found["ceilings"])
        rows.append([name, f"{rate:.0f}", *(texts.get(program, "-") for program in ("same", *PEERS))])
    return table(["system", "ceiling", OURS, *PEERS.values()], rows)
