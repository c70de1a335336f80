"""What stands in the sections of a page, as plain data for its template: figures, bars, charts and words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from markupsafe import Markup

from narrows.findings import Finding
from narrows.fitted import Model
from narrows.model.building import choose_networks
from narrows.model.embed import Embed
from narrows.model.recipe import Recipe
from narrows.networks.choice import word_of
from narrows.networks.fused import Fused
from narrows.report.charts import curves, points
from narrows.report.gather import Gathered
from narrows.tasks.history import records, whole

EPOCHS = 600  # points of a curve
QUANTILES = (0.5, 0.75, 0.9, 0.99)
REASONS = {
    "epochs": "all planned epochs were done",
    "loss": "the loss reached its threshold",
    "converged": "it had converged",
    "patience": "validation rows stopped getting better",
    "time": "the time limit was reached",
    "callback": "a callback asked for it",
    "interrupted": "it was interrupted",
    "diverged": "the loss was no longer finite",
}


def about(model: Model) -> list[tuple[str, str]]:
    """What the model is, as pairs of a word and a sentence."""
    schema = model.schema
    weights = sum(weight.numel() for weight in model.module.parameters())
    members = f" for each of {model.members} members" if model.members else ""
    return [
        ("Recipe", _recipe(model.recipe)),
        ("Code", f"{_count(model.latent, 'number')}{members}, for {_count(schema.cells, 'cell')} a row"),
        ("Network", f"{layers(model)}; {weights:,} weights"),
        ("Columns", _kinds(model)),
        ("Training rows", _rows(model)),
        ("Training", _training(model)),
    ]


def _rows(model: Model) -> str:
    rows, held = whole(model, "rows"), whole(model, "validation_rows")
    if rows is None:
        return "unknown"
    return f"{rows:,}" + (f", and {held:,} held out for validation" if held else "")


def _training(model: Model) -> str:
    """How long, and why it ended."""
    epochs, reason = whole(model, "epochs"), str(model.facts.get("reason"))
    parts = [] if epochs is None else [_count(epochs, "epoch")]
    parts += [f"stopped because {REASONS[reason]}"] if reason in REASONS else []
    return "; ".join(parts) or "unknown"


def _recipe(recipe: Recipe) -> str:
    """The recipe with the arguments that are not its defaults."""
    defaults = Recipe.of(recipe.name, {}).arguments
    return str(Recipe(recipe.name, {k: v for k, v in recipe.arguments.items() if v != defaults[k]}))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def layers(model: Model) -> str:
    """Widths through the whole network, in to out; of networks over grids, what they read and how wide they end."""
    if model.network is None:
        return "the user's own encoder and decoder"
    module, code = model.module, model.latent
    if isinstance(module.encoder, Fused):
        chosen = choose_networks(model.schema, model.network) or {"the cells": model.network.transformer}
        trunks = zip(chosen.items(), module.encoder.trunks, strict=True)
        read = ", ".join(f"{word_of(settings)} over {name} to {trunk.width:,}" for (name, settings), trunk in trunks)
        return f"{read}, then {code:,} and back"
    network = model.network.dense
    network = replace(network, hidden=(), decoder=()) if model.recipe.slots().linear else network
    inputs = cast(Embed, module.embed).width
    down, up = network.widths(inputs, code, code, module.likelihood.width)
    return " \N{RIGHTWARDS ARROW} ".join(f"{width:,}" for width in (*down, *up[1:]))


def _kinds(model: Model) -> str:
    kinds = [column.kind for column in model.schema]
    return ", ".join(f"{kind} ({kinds.count(kind)})" for kind in dict.fromkeys(kinds))


def training_curves(model: Model) -> Markup | None:
    """Training and validation loss over epochs; None where the model file has no record of them."""
    every = records(model)
    if not every:
        return None
    step = -(-len(every) // EPOCHS)
    kept = [*every[:-1:step], every[-1]]
    rows = whole(model, "rows")  # an epoch of many steps has several records
    passed = [record["rows"] / rows if rows and "rows" in record else record["epoch"] for record in kept]
    epochs = np.array(passed, dtype=np.float64)
    series = [("loss", epochs, np.array([record["loss"] for record in kept], dtype=np.float64))]
    if any("val_loss" in record for record in kept):
        held = np.array([record.get("val_loss", np.nan) for record in kept], dtype=np.float64)
        series.append(("held", epochs, held))
    return curves(series, "epoch", "loss per row")


def diagnosis(model: Model) -> list[Finding]:
    """What was found after the fit, problems first; empty where nobody looked."""
    return sorted(model.diagnosis, key=lambda finding: not finding.problem)


@dataclass(frozen=True)
class CodeMap:
    """The map of the codes, and what it shows."""

    chart: Markup
    count: int
    rows: int
    legend: list[tuple[int, str]]
    note: str


def code_map(gathered: Gathered) -> CodeMap:
    """The sampled codes in two dimensions, tinted by score.

    Codes of two numbers as they are, of one against the score, of more by their PCA.
    """
    codes, scores = gathered.codes.double(), gathered.scores.double()
    x, y, titles, note = _flat(codes, scores)
    edges = torch.quantile(scores, torch.tensor(QUANTILES, dtype=torch.float64))
    classes = (scores.unsqueeze(1) > edges).sum(1).numpy()
    words = ["lower half", "to 75 %", "to 90 %", "to 99 %", "highest 1 %"]
    legend = [(tint, words[tint]) for tint in sorted(set(classes.tolist()))]
    return CodeMap(points(x, y, classes, titles), len(codes), gathered.rows, legend, note)


def _flat(codes: torch.Tensor, scores: torch.Tensor) -> tuple[np.ndarray, np.ndarray, tuple[str, str], str]:
    size = codes.shape[1]
    if size == 1:
        return (
            codes[:, 0].numpy(),
            scores.numpy(),
            ("the code", "score"),
            "The code is one number; its height is the score.",
        )
    if size == 2:
        return codes[:, 0].numpy(), codes[:, 1].numpy(), ("first number", "second number"), "The codes as they are."
    centered = codes - codes.mean(0)
    _, spread, directions = torch.linalg.svd(centered, full_matrices=False)
    if len(spread) < 2:  # a single row
        flat, shares = centered[:, :2], [0.0, 0.0]
    else:
        flat = centered @ directions[:2].T
        shares = (spread.square() / spread.square().sum().clamp(min=1e-30))[:2].tolist()
    titles = (f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%})")
    note = f"Two of {size} dimensions, by PCA of the codes: they show {sum(shares):.0%} of the codes' variance."
    return flat[:, 0].numpy(), flat[:, 1].numpy(), titles, note
