"""Draws the pictures of `docs/recipes`: runs the command of each page, and shows what its model makes of digits.

    python benchmarks/pictures.py [RECIPE ...]

A picture is a sheet of rows of small images, ink dark, with a word before each. Prints the figures that the page
quotes, and keeps them in `results/pictures.json`. All of them take about six minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from narrows import Model, evaluate, generate, interpolate, keep_prior, load
from narrows.schema import Batch
from narrows.tasks.likelihood import log_likelihood
from narrows.tasks.prior import codes_of

PAGES = Path(__file__).parent.parent / "docs" / "recipes"
RESULTS = Path(__file__).parent / "results" / "pictures.json"
COMMAND = re.compile(r"^narrows fit (?P<words>digits .*) --out \S+$", re.MULTILINE)
ACROSS, SCALE, GAP, LEFT = 10, 5, 5, 118  # images in a row, pixels of a pixel, between images, for the words
DIGITS, CLASSES = load_digits(return_X_y=True)
ROWS = np.array([np.flatnonzero(digit == CLASSES)[7] for digit in range(10)])
ACTIVE = 0.01  # nats that a number of a code must tell of a row to count as used


@dataclass
class Drawn:
    """What a page shows.

    Args:
        rows: a word, and images (n, 8, 8), 0 for paper and 1 for ink.
        figures: name -> figure as text, for the page.
        signed: whether images are weights, around 0, each on its own scale.
    """

    rows: list[tuple[str, np.ndarray]]
    figures: dict[str, str]
    signed: list[str] = field(default_factory=list)


def sheet(drawn: Drawn, path: Path) -> None:
    """Write the rows as a PNG."""
    side = 8 * SCALE + GAP
    canvas = Image.new("RGB", (LEFT + ACROSS * side, len(drawn.rows) * side + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for line, (word, images) in enumerate(drawn.rows):
        top = GAP + line * side
        pen.text((8, top + side / 2 - 10), word, fill="#39424a", font=font)
        for column, image in enumerate(images[:ACROSS]):
            pixels = colored(image) if word in drawn.signed else inked(image)
            tile = Image.fromarray(pixels).resize((8 * SCALE, 8 * SCALE), Image.Resampling.NEAREST)
            canvas.paste(tile, (LEFT + column * side, top))
    canvas.save(path, optimize=True)


def inked(image: np.ndarray) -> np.ndarray:
    """(8, 8, 3): white paper, dark ink; what is missing (NaN) in a warm gray."""
    share = np.nan_to_num(image).clip(0, 1)[..., None]
    pixels = 250 + share * (np.array([20, 34, 60]) - 250)
    pixels[np.isnan(image)] = (226, 205, 180)
    return np.rint(pixels).astype(np.uint8)


def colored(image: np.ndarray) -> np.ndarray:
    """(8, 8, 3): blue above 0, orange below, white at 0."""
    share = (image / max(float(np.abs(image).max()), 1e-12))[..., None]
    ends = np.where(share > 0, np.array([11, 95, 165]), np.array([208, 100, 10]))
    return np.rint(250 + np.abs(share) * (ends - 250)).astype(np.uint8)


def prepared(model: Model, rows: np.ndarray) -> Batch:
    return Batch.concat([batch for _, batch in model.batches(rows.reshape(-1, 8, 8).astype(np.uint8))])


def pixels(model: Model, batch: Batch) -> np.ndarray:
    """(n, 8, 8) as the model gives rows back."""
    return model.cells(model.codes(batch))[0].numpy().reshape(-1, 8, 8)


def told(model: Model, codes: torch.Tensor) -> np.ndarray:
    """(n, 8, 8) what codes stand for."""
    return model.cells(codes.float())[0].numpy().reshape(-1, 8, 8)


def from_table(table: object) -> np.ndarray:
    """(n, 8, 8) rows that the model gave, in [0, 1]."""
    images: np.ndarray = table.column(0).combine_chunks().to_numpy_ndarray() / 16  # type: ignore[attr-defined]
    return images


def originals() -> tuple[str, np.ndarray]:
    return "original", DIGITS[ROWS].reshape(-1, 8, 8) / 16


def errors(model: Model) -> dict[str, str]:
    result = evaluate(model, "digits")
    return {"squared error": f"{result.total.model:.2f}", "of PCA": f"{result.total.pca:.2f}"}


def reconstructions(model: Model) -> Drawn:
    """Digits, and how PCA and the model give them back."""
    batch, pca = prepared(model, DIGITS[ROWS]), model.parts["baseline"].tensors
    centered = batch.numbers - pca["mean"]
    back = pca["mean"] + centered @ pca["components"].T @ pca["components"]
    rows = [originals(), (f"PCA of {len(pca['components'])}", back.numpy().reshape(-1, 8, 8))]
    return Drawn([*rows, ("given back", pixels(model, batch))], errors(model))


def denoised(model: Model) -> Drawn:
    """Digits, with noise as strong as in training, and without it again."""
    noise = model.recipe.arguments["noise"]
    clean = torch.from_numpy(DIGITS / 16).float()
    noisy = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    back = torch.from_numpy(pixels(model, Batch(noisy, torch.zeros(len(noisy), 0, dtype=torch.long)))).flatten(1)
    before, after = ((rows - clean).square().mean().sqrt() for rows in (noisy, back))
    rows = [originals(), ("noisy", noisy[ROWS].reshape(-1, 8, 8).numpy())]
    rows.append(("given back", back[ROWS].reshape(-1, 8, 8).numpy()))
    return Drawn(rows, {"error with noise": f"{before:.3f}", "error after": f"{after:.3f}"})


def filled(model: Model) -> Drawn:
    """Digits, what is left of them, and what the model makes of that."""
    torch.manual_seed(0)
    batch = prepared(model, DIGITS)
    view = model.module.corrupt(batch)
    back, hidden = torch.from_numpy(pixels(model, view)).flatten(1), ~view.mask()
    gaps = [(guess - batch.numbers)[hidden].square().mean().sqrt() for guess in (back, batch.numbers.mean(0))]
    shown = torch.where(hidden, torch.nan, batch.numbers)[ROWS].reshape(-1, 8, 8).numpy()
    rows = [originals(), ("shown", shown), ("given back", back[ROWS].reshape(-1, 8, 8).numpy())]
    return Drawn(rows, {"error at hidden": f"{gaps[0]:.3f}", "of the mean": f"{gaps[1]:.3f}"})


def drawn_anew(model: Model) -> Drawn:
    """Samples, ways between digits, and the code numbers that matter most, moved."""
    samples = from_table(generate(model, 200, seed=1))
    ways = from_table(interpolate(model, DIGITS[ROWS[[3, 0, 6]]].reshape(-1, 8, 8).astype(np.uint8), ACROSS))
    rows = [("samples", samples[:10]), ("", samples[10:20]), ("", samples[20:30])]
    rows += [("interpolations", ways[:10]), ("", ways[10:])]
    rows += [(("traversals", "", "")[i], images) for i, images in enumerate(traversals(model, 3))]
    real, made = (np.abs(np.diff(images)).mean() for images in (DIGITS.reshape(-1, 8, 8) / 16, samples))
    figures = {"step of digits": f"{real:.3f}", "step of samples": f"{made:.3f}"}
    return Drawn(rows, errors(model) | figures | of_codes(model))


def of_codes(model: Model) -> dict[str, str]:
    """How codes lie: the spread of their numbers, and how many of them a variational model uses."""
    batch = prepared(model, DIGITS)
    with torch.inference_mode():
        code = model.module.encode(batch)
    spread = code.z[0].std(0)
    figures = {"least spread": f"{spread.min():.2f}", "largest spread": f"{spread.max():.2f}"}
    figures |= {f"nats of {name}": f"{float(term.mean()):.1f}" for name, term in code.terms.items()}
    if code.posterior is not None:
        mean, log_variance = code.posterior.mean, code.posterior.log_variance
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean(0)
        figures["used"] = f"{int((nats > ACTIVE).sum())} of {len(nats)}"
    return figures


def traversals(model: Model, count: int) -> list[np.ndarray]:
    """The numbers of largest spread, from two standard deviations below the code of a usual digit to two above."""
    codes = model.codes(prepared(model, DIGITS))
    spread, usual = codes.std(0), (codes - codes.mean(0)).square().sum(1).argmin()
    images = []
    for number in spread.argsort(descending=True)[:count].tolist():
        path = codes[usual].repeat(ACROSS, 1)
        path[:, number] += torch.linspace(-2, 2, ACROSS) * spread[number]
        images.append(told(model, path))
    return images


def likely(model: Model) -> Drawn:
    """As `drawn_anew`, with the likelihood by importance samples."""
    drawn = drawn_anew(model)
    estimate = log_likelihood(model, model.source("digits"), 500)
    drawn.figures |= {"nats": f"{estimate.nats:.2f}", "standard error": f"{estimate.error:.2f}"}
    return drawn


def levels(model: Model) -> Drawn:
    """Samples, and samples that share their upper level, a row each."""
    torch.manual_seed(3)
    latent, rows = model.module.latent, []
    with torch.inference_mode():
        tops = latent.sample(4)[:, : latent.sizes[0]]
        for index, top in enumerate(tops):
            mean, log_variance = latent.priors[0](top.repeat(ACROSS, 1)).chunk(2, dim=-1)
            below = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            codes = torch.cat([top.repeat(ACROSS, 1), below], dim=1)
            rows.append((f"upper level {index + 1}", told(model, codes)))
    samples = from_table(generate(model, 20, seed=1))
    rows = [("samples", samples[:10]), ("", samples[10:]), *rows]
    return Drawn(rows, errors(model) | of_codes(model))


def filters(model: Model) -> Drawn:
    """Digits, given back, and what the numbers of the code that are used most add to a digit: the decoder's weights."""
    batch = prepared(model, DIGITS)
    codes = model.codes(batch)
    used = (codes != 0).float()
    order = codes.square().sum(0).argsort(descending=True)
    weights = model.module.decoder[0].weight.detach().T[order].numpy().reshape(-1, 8, 8)
    rows = [originals(), ("given back", pixels(model, batch[torch.from_numpy(ROWS)]))]
    words = ["each adds", " "]
    rows += [(word, weights[10 * i : 10 * (i + 1)]) for i, word in enumerate(words)]
    figures = {"active": f"{used.sum(1).mean():.1f}", "dead": f"{int((used.sum(0) == 0).sum())}"}
    return Drawn(rows, errors(model) | figures, words)


def coded(model: Model) -> Drawn:
    """Digits, given back from a few bits, and samples from a learnt code prior."""
    batch = prepared(model, DIGITS)
    symbols = codes_of(model, iter([batch])).symbols
    entries = model.module.latent.symbols
    shares = torch.bincount(symbols.flatten(), minlength=entries).double() / symbols.numel()
    bits = symbols.shape[1] * float(np.log2(entries))
    keep_prior(model, "digits")
    samples = from_table(generate(model, 20, seed=1))
    rows = [originals(), ("given back", pixels(model, batch[torch.from_numpy(ROWS)]))]
    rows += [("samples", samples[:10]), ("", samples[10:])]
    figures = {"bits": f"{bits:.0f}", "used": f"{int((shares > 0).sum())} of {entries}"}
    return Drawn(rows, errors(model) | figures | {"perplexity": f"{torch.special.entr(shares).sum().exp():.1f}"})


def steadied(model: Model) -> Drawn:
    """Reconstructions, and how far codes move under a little noise beside those of a plain autoencoder."""
    drawn = reconstructions(model)
    twin, _ = trained(command("contractive").replace("contractive", "plain", 1))
    for name, which in (("moves", model), ("moves of plain", twin)):
        drawn.figures[name] = f"{movement(which):.3f}"
    return drawn


def movement(model: Model) -> float:
    """How far noise of 0.1 moves a code, in units of how far codes lie from their mean."""
    batch = prepared(model, DIGITS)
    noise = 0.1 * torch.randn(batch.numbers.shape, generator=torch.Generator().manual_seed(0))
    codes, moved = model.codes(batch), model.codes(Batch(batch.numbers + noise, batch.codes))
    return float((moved - codes).norm(dim=1).mean() / (codes - codes.mean(0)).norm(dim=1).mean())


Quoted = tuple[str, ...]
ERROR, STEPS, SPREAD = (
    ("squared error", "of PCA"),
    ("step of digits", "step of samples"),
    ("least spread", "largest spread"),
)
PICTURES: dict[str, tuple[Callable[[Model], Drawn], Quoted]] = {
    "plain": (reconstructions, ERROR),
    "linear": (reconstructions, ERROR),
    "denoising": (denoised, ("error with noise", "error after")),
    "masked": (filled, ("error at hidden", "of the mean")),
    "conditional": (filled, ("error at hidden", "of the mean")),
    "vae": (likely, (*STEPS, "used", "nats", "standard error")),
    "iwae": (likely, ("nats", "standard error", "used")),
    "hierarchical": (levels, (*ERROR, "nats of kl2", "nats of kl1")),
    "sparse": (filters, ("squared error", "active", "dead")),
    "topk": (filters, ("squared error", "active", "dead")),
    "vq": (coded, ("bits", "squared error", "used", "perplexity")),
    "fsq": (coded, ("bits", "squared error", "used", "perplexity")),
    "contractive": (steadied, (*ERROR, "moves", "moves of plain")),
    "wae": (drawn_anew, (*ERROR, *SPREAD, *STEPS)),
    "tcvae": (drawn_anew, (*ERROR, "nats of kl", "used")),
    "aae": (drawn_anew, (*ERROR, *SPREAD, *STEPS)),
    "vaegan": (drawn_anew, (*ERROR, *STEPS)),
}


def command(recipe: str) -> str:
    """The words behind `narrows fit` on a recipe's page, without `--out`."""
    found = COMMAND.search((PAGES / f"{recipe}.md").read_text("utf-8"))
    if found is None:
        sys.exit(f"{recipe}.md has no line `narrows fit digits ... --out FILE`")
    return found["words"]


def trained(words: str) -> tuple[Model, float]:
    """The model of a command, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        began, out = time.monotonic(), Path(folder) / "m.narrows"
        line = [sys.executable, "-m", "narrows", "fit", *words.split(), "--out", str(out)]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        return load(out), time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"some of {', '.join(PICTURES)}")
    for recipe in parser.parse_args().recipes or PICTURES:
        model, seconds = trained(command(recipe))
        draw, quoted = PICTURES[recipe]
        drawn = draw(model)
        sheet(drawn, PAGES / "pictures" / f"{recipe}.png")
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        figures = {name: drawn.figures[name] for name in quoted}
        known[recipe] = {"command": f"narrows fit {command(recipe)}", "figures": figures}
        RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(f"{recipe}, {seconds:.0f} s: " + ", ".join(f"{k} {v}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
