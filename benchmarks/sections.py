"""The sections of `docs/benchmarks.md`, one for each file of results: what was measured, and its tables.

A table is a function of what the file holds, and of nothing else. Bold is a peer's figure that beats ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import network as network_tables
import speed_tables
import table_tables
from standings import OURS, compared, seconds, summary, table

Results = dict[str, Any]
KINDS = (  # what is measured, its key, the keys of what it stands beside
    ("bits a character", "bits a character", ("order 3 bits",)),
    ("perplexity", "perplexity", ("unigram", "LDA")),
    ("nats a cell", "nats a cell", ("independent",)),
    ("root squared error of logs", "log error", ("PCA log error",)),
    ("squared error a row", "squared error a row", ("PCA a row",)),
)


@dataclass(frozen=True)
class Section:
    """A section of the page. Args: title: of it. command: of `benchmarks/` that fills the file. about: what was
    measured. tables: results -> Markdown."""

    title: str
    command: str
    about: str
    tables: Callable[[Results], str]


def beaten(ours: float, theirs: float | None, form: str = "{:.3f}", higher: bool = False) -> str:
    """A peer's figure, bold where it is the better one; `-` where there is none."""
    if theirs is None:
        return "-"
    ahead = theirs > ours if higher else theirs < ours
    return f"**{form.format(theirs)}**" if ahead else form.format(theirs)


def seeds(results: Results) -> str:
    """The seed systems beside PCA."""
    rows = []
    for name, found in results["results"].items():
        rows.append([name, found["stopped by"], f"{found['rows']:,}", str(found["epochs"]), f"{found['seconds']:.1f}"])
        rows[-1] += [f"{found['ms a step']:.2f}", f"{found['test mse']:.5f}"]
        rows[-1] += [beaten(found["test mse"], found["PCA mse"], "{:.5f}"), f"{found['squared error a row']:.2f}"]
        rows[-1] += [measured(found)]
    heading = [
        "system",
        "stopped by",
        "rows",
        "epochs",
        "seconds",
        "ms a step",
        "test error",
        "PCA",
        "a row",
        "measured",
    ]
    return table(heading, rows, left=2)


def kinds(results: Results) -> str:
    """Every kind of data beside its yardstick."""
    rows = []
    for name, found in results["systems"].items():
        measure, key, others = next(line for line in KINDS if line[1] in found)
        beside = [f"{other.removesuffix(' a row')} {beaten(found[key], found[other])}" for other in others]
        rows.append([name, measure, f"{found[key]:.3f}", ", ".join(beside), f"{found['seconds']:.0f}"])
        rows[-1] += [str(found["peak MB"])]
    return table(["system", "measure", OURS, "beside", "fit, s", "peak MB"], rows, left=2)


def likelihood(results: Results) -> str:
    """Nats of binarized MNIST, and seconds beside pythae and Keras."""
    rows = []
    for name, found in results["systems"].items():
        if "nats" in found:
            rows.append([name, f"{found['nats']:.2f} ± {found['error']:.2f}"])
            rows[-1] += [beaten(found["nats"], found.get("published"), "{:.2f}"), f"{found['seconds'] / 60:.0f}"]
            rows[-1] += [str(found[fact]) for fact in ("epochs", "threads", "peak MB")]
            rows[-1] += [measured(found)]
    heading = ["model", "-log p(x), nats", "published", "minutes", "epochs", "threads", "peak MB", "measured"]
    race = results["systems"].get("seconds")
    return table(heading, rows) + (f"\n\n{raced(race)}" if race else "")


def measured(found: Results) -> str:
    """On what processor, and when, where a figure was measured by itself."""
    return f"{found['machine']['processor']}, {found['machine']['date']}"


def raced(race: Results) -> str:
    """Seconds of the published network, by whom."""
    names = {"pythae": "pythae", "keras": "Keras", "same": f"{OURS}, the same settings", "ours": f"{OURS}, its own"}
    rows = []
    for name, label in names.items():
        found = race[name]
        ours = race["same"] if name in ("pythae", "keras") else found
        columns = (("seconds", "{:.1f}"), ("nats", "{:.2f}"))
        rows.append([label, str(found["epochs"]), *(beaten(ours[key], found[key], form) for key, form in columns)])
    what = f"""The same network with one sample, on images binarized once: batches of 128 by Adam, and as few epochs of
    Muon as end below those; medians of three rounds, a seed each ({measured(race)}). Bold beats
    Narrows with the same settings."""
    return f"{what}\n\n{table(['program', 'epochs', 'seconds', '-log p(x), nats'], rows)}"


def denoising(results: Results) -> str:
    """PSNR of photographs."""
    methods, published = results["methods"], results["published"]
    ours, rows = methods[OURS]["PSNR"], []
    for name in dict.fromkeys([*methods, *published]):
        known = methods.get(name, {})
        spent = f"{known['seconds']:.1f}" if known else "-"
        figures = (known.get("PSNR"), published.get(name))
        rows.append([name, *(beaten(ours, figure, "{:.2f}", higher=True) for figure in figures), spent])
    return table(["method", "PSNR", "published", "seconds"], rows)


def probes(results: Results) -> str:
    """Few labels, and masks."""
    systems, ways = results["systems"], ("codes", "tuned", "raw", "pca")
    rows = []
    for name, found in systems.items():
        for labels in numbered(found, " labels"):
            cells = [probed(found[f"{labels} labels"], way, ways[:2]) for way in ways]
            rows.append([name, str(found["code"]), str(labels), *cells])
    text = table(["recipe", "code", "labels", "codes", "encoder tuned", "raw pixels", "PCA codes"], rows)
    if "masks" not in systems:
        return text
    ways = ("codes iou", "patches iou", "untrained iou", "usual iou")
    masks = systems["masks"]
    rows = [
        [str(shots), *(probed(masks[f"{shots} images"], way, ways[:1]) for way in ways)]
        for shots in numbered(masks, " images")
    ]
    heading = ["masks", "codes", "raw patches", "untrained network", "no digit anywhere"]
    return f"{text}\n\nDigits on photographs, pixel by pixel: intersection over union, %.\n\n{table(heading, rows)}"


def numbered(found: Results, ending: str) -> list[int]:
    """The numbers of the keys that are a number and this ending."""
    return sorted(int(key.removesuffix(ending)) for key in found if key.endswith(ending))


def probed(found: dict[str, list[float]], way: str, ours: Iterable[str]) -> str:
    """Mean and spread; bold where a peer's mean is above all of ours."""
    (value, spread), best = found[way], max(found[name][0] for name in ours)
    text = f"{value:.1f} ± {spread:.1f}"
    return f"**{text}**" if way not in ours and value > best else text


def anomalies(results: Results) -> str:
    """Standings of detectors, and seconds on large sets."""
    variants = sorted(results["runs"], reverse=True)
    parts = [summary(variant, compared(results["runs"][variant])) for variant in variants]
    return "\n\n".join([*parts, seconds(results["speed"])])


def series_anomalies(results: Results) -> str:
    """VUS-PR of detectors on series."""
    sets = results["means"]
    rows = []
    for system in sorted(next(iter(sets.values())), key=lambda name: name != OURS):
        pairs = [(found[OURS]["all"], found[system]["all"]) for found in sets.values()]
        spent = sum(found[system]["seconds"] for found in sets.values())
        rows.append([system, *(beaten(*pair, higher=True) for pair in pairs), f"{spent:.0f}"])
    heading = ["", *(f"{name.upper()} ({found[OURS]['series']})" for name, found in sets.items()), "seconds"]
    return table(heading, rows)


def blame(results: Results) -> str:
    """Whether the wrong cell is blamed."""
    wrong = {"shifted": "a number far off, or another level", "swapped": "the value of another row"}
    rows = []
    for how, text in wrong.items():
        found = results["tables"]["mean"][how]
        rows.append([text, f"{found['found']:.1%}", f"{found['blamed']:.1%}"])
        rows[-1] += [beaten(found["blamed"], found["column alone"], "{:.1%}", higher=True)]
    return table(["wrong cell", "rows found", "blamed first", "each column alone"], rows)


def drift(results: Results) -> str:
    """False alarms, and shifts found."""
    rows = []
    for name, found in results["tables"].items():
        false, runs = found["false alarms"], found["resamples"]
        sizes = [size for size in sorted(false, key=lambda size: (len(size), size)) if size.isdigit()]
        rows.append([f"{name}, {found['columns']} columns", "none", *(f"{false[size]:.1%}" for size in sizes)])
        rows[-1] += [f"{false['all']:.1%} of {runs}"]
        for shift, power in sorted(found["power"].items()):
            last = power[sizes[-1]]
            by = ", ".join(f"{family} {last[family]:.0%}" for family in ("column", "codes", "score"))
            rows.append(["", shift, *(f"{power[size]['any']:.0%}" for size in sizes), by])
    return table(["table", "shift", "200 new rows", "1,000 new rows", "in all, or of 1,000 rows by"], rows, left=2)


def streaming(results: Results) -> str:
    """Rows a second from Parquet beside memory."""
    keys = ("in memory rows/s", "streamed rows/s", "ratio", "seconds before", "peak MB", "without files")
    found = sorted((int(rows), figures) for rows, figures in results["tables"].items())
    rows = [
        [f"{count:,}", *(f"{figures[key]:,}" if key in figures else "-" for key in keys)] for count, figures in found
    ]
    heading = ["rows", "in memory, rows/s", "streamed, rows/s", "ratio", "seconds before", "peak MB", "without files"]
    return table(heading, rows)


def network(results: Results) -> str:
    """Ways of several processes, each experiment under its conditions."""
    return network_tables.markdown(results).strip()


def gpu(results: Results) -> str:
    """Epochs a second of a variational autoencoder, and shares of the peak, by GPU."""
    rows = []
    for name, found in sorted(results["gpus"].items()):
        for system, figures in found.items():
            if isinstance(figures, dict):
                rows.append([name, system, ", ".join(f"{key} {value}" for key, value in figures.items())])
    return table(["GPU", "system", "figures"], rows, left=3)


def pictures(results: Results) -> str:
    """Figures that pages of recipes quote."""
    rows = []
    for name, found in results.items():
        figures = ", ".join(f"{key} {value}" for key, value in found["figures"].items())
        rows.append([name, f"`{found['command']}`", figures])
    return table(["recipe", "command", "figures"], rows, left=3)


SECTIONS = {
    "speed": Section("Speed", "speed.py", speed_tables.ABOUT, speed_tables.speed),
    "seeds": Section(
        "Seed systems",
        "seeds.py",
        """Textbook autoencoders with the textbook's settings, on rows that took no part in training: mean squared
        error a cell, cells in [0, 1], and of `a row` summed over its cells. `defaults` is `narrows fit IMAGES --latent
        30` and nothing else; `code-30` is 784-1000-500-250-30 trained as we would, for a while and for 30 seconds (3.00
        a row: Hinton & Salakhutdinov 2006, as recalled). One seed; seconds of unlike machines do not compare.""",
        seeds,
    ),
    "kinds": Section(
        "Kinds of data",
        "kinds.py",
        """Images, series, sounds, counts, texts and bags of words, each by the usual measure of its field on test
        rows; lower is better. One seed.""",
        kinds,
    ),
    "likelihood": Section(
        "Likelihood",
        "likelihood.py vae iwae best seconds",
        """MNIST, dynamically binarized, 5,000 importance samples for each test image; the network of Burda et al.
        (2016), whose figures are after 3,280 epochs. One seed. `best` is a
        model of ours: `hierarchical:depth=4`, 96 numbers, residual layers of 256.""",
        likelihood,
    ),
    "denoising": Section(
        "Denoising",
        "denoising.py",
        """68 photographs (BSD68) with noise of sigma 25: mean PSNR in dB, the published one, and seconds for all of
        them. Narrows trains for 15 minutes.""",
        denoising,
    ),
    "probes": Section(
        "What codes know",
        "probes.py",
        """Accuracy on MNIST's test images, %, of logistic regression from few labels: mean and spread over draws of
        the labels.""",
        probes,
    ),
    "anomalies": Section(
        "Anomalies in tables",
        "anomalies.py",
        """ADBench's protocol, PyOD's detectors with their defaults on the same arrays; means over sets. Every set, and
        what was chosen in view of what, is in [Anomalies](anomalies.md#standings).""",
        anomalies,
    ),
    "series_anomalies": Section(
        "Anomalies in series",
        "series_anomalies.py",
        "Mean VUS-PR over the series of each set, and seconds in all. Some settings were chosen on half of the series.",
        series_anomalies,
    ),
    "blame": Section(
        "Blame",
        "blame.py",
        """One wrong cell in each row, means over 16 tables: rows that were found, and of these the share whose wrong
        cell is blamed first. How blame is shared was chosen with these tables in view.""",
        blame,
    ),
    "imputation": Section(
        "Holes in tables",
        "imputation.py",
        """Root mean squared error of numbers after min-max scaling / share of categories told wrong, on rows that no
        imputer was fitted on, means over seeds; bold is the best. `forest` is missForest in scikit-learn's words, of
        20 trees and four rounds.
        [How holes are filled](tables.md).""",
        table_tables.imputation,
    ),
    "million": Section(
        "Holes in a million rows",
        "million.py",
        """50 mixed columns, a tenth of the cells missing: an epoch of `fit --for impute` and `impute`, each a process
        of its own. Peak memory is that of the whole process, beside the budget for prepared rows.""",
        table_tables.million,
    ),
    "tabular": Section(
        "Tables made anew",
        "tabular.py",
        """A booster learns from generated rows and is judged on real ones; `gap` is what that loses, `near` the share
        of generated rows nearer to a training row than all but 5 % of test rows are.""",
        table_tables.tabular,
    ),
    "tune": Section(
        "Code sizes",
        "tune.py",
        """Tables made by a known number of factors, and the size that `--latent auto` chose, by other seeds than those
        that its rule was settled with. [How](tune.md).""",
        table_tables.tune,
    ),
    "drift": Section(
        "Drift",
        "drift.py",
        """Share of runs with an alarm at a stated 5 %, at most 2,000 usual rows against new ones, both drawn anew from
        rows that took no part in the fit. Without a shift every alarm is false; shifts are small, and `correlation`
        leaves every column as it was. [What is compared](drift.md).""",
        drift,
    ),
    "streaming": Section(
        "Streaming",
        "streaming.py",
        "The default network trained on tables of 32 numbers from Parquet files, beside rows in memory.",
        streaming,
    ),
    "network": Section(
        "Many processes",
        "network.py",
        """Two processes of one thread each, over a slow link and beside a slow partner: seconds to the same validation
        loss by each way of `--sync`. [What each way costs](scale.md).""",
        network,
    ),
    "gpu": Section("GPU", "gpu.py", "Beside a plain PyTorch loop, and as shares of the measured product peak.", gpu),
    "pictures": Section(
        "Figures of the recipes",
        "pictures.py",
        """What the pages of [recipes](recipes/README.md) quote, each of one command and one seed; `of PCA` is the
        squared error of PCA of the same size.""",
        pictures,
    ),
}
