"""Denoising of photographs: PSNR on BSD68 at sigma 25 beside BM3D and non-local means.

    python benchmarks/denoising.py --data DIR                            15 minutes of training, all 68 pictures
    python benchmarks/denoising.py --data DIR --minutes 2 --images 4     a glimpse

Ours is trained on patches of the 400 photographs of Train400 for as many minutes as are given, on whatever cores there
are: an autoencoder at half resolution, as FFDNet is (Zhang et al. 2018), whose code is wider than the picture and keeps
its positions. Noise is drawn once for each picture, from seed 0 and its number, is neither rounded nor cut, and is the
same for all. PSNR is of answers cut to [0, 1], in the mean over pictures. BM3D (Makinen et al. 2020, package `bm3d`)
and non-local means (Buades et al. 2005, scikit-image: slow, h = 0.8 sigma, the best of four variants on one picture)
are told sigma, which ours is trained for. Both are in `benchmarks/requirements.txt`. Writes `results/denoising.json`
and `docs/denoising.png`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from narrows import Conv, Model, Plan, Training, Watch, denoise_whole, fit
from narrows.train.devices import gains_by_bfloat16

Pixels = NDArray[np.float32]
RESULTS = Path(__file__).parent / "results" / "denoising.json"
PICTURE = Path(__file__).parent.parent / "docs" / "denoising.png"
SIGMA = 25 / 255
PATCH, STRIDE, CHANNELS = 64, 29, 64
SHOWN, CROP = "test003.png", slice(90, 218)  # the picture of the docs, and what of it
PUBLISHED = {"BM3D": 28.57, "DnCNN": 29.23, "FFDNet": 29.19}  # on the same 68 pictures (Zhang et al. 2017, 2018)


def patches(data: Path) -> Pixels:
    """(10000, 64, 64) in [0, 1]."""
    images = np.load(data / "bsd_gray" / "train400.npz")["images"]
    places = range(0, images.shape[1] - PATCH + 1, STRIDE)
    cut = [images[:, y : y + PATCH, x : x + PATCH] for y in places for x in places]
    return (np.concatenate(cut) / 255).astype(np.float32)


def pictures(data: Path, most: int) -> dict[str, Pixels]:
    """The pictures of BSD68, or the first of them."""
    with zipfile.ZipFile(data / "bsd_gray" / "BSD68.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))[:most]
        opened = {name: Image.open(io.BytesIO(archive.read(name))).convert("L") for name in names}
    return {Path(name).name: (np.asarray(image) / 255).astype(np.float32) for name, image in opened.items()}


def noisy(clean: Pixels, number: int) -> Pixels:
    """The picture with its noise."""
    return (clean + np.random.default_rng([0, number]).normal(0, SIGMA, clean.shape)).astype(np.float32)


def psnr(clean: Pixels, told: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, of pixels cut to [0, 1]."""
    return float(-10 * np.log10(np.square(np.clip(told, 0, 1) - clean.astype(np.float64)).mean()))


def trained(data: Path, minutes: float) -> Model:
    """The denoiser."""
    network = Conv(channels=(CHANNELS,), depth=4, fold=2, norm="none", spatial=True)
    # of convolutions the library reckons the work by their weights alone, and would stay with float32
    precision = "bfloat16" if gains_by_bfloat16(torch.device("cpu")) else "float32"
    training = Training(batch_size=16, validation=0.01, precision=precision, time_limit=60 * minutes, optimizer="muon")
    recipe = f"denoising:noise={SIGMA},mask=0,link=identity,augment=flip"
    latent = (PATCH // 2) ** 2 * CHANNELS
    plan = Plan(recipe, latent, network, training, epochs=200, lr=0.003, device="cpu")
    return fit(patches(data), plan, watch=Watch(verbose=2))


def by_bm3d(picture: Pixels) -> NDArray[Any]:
    """BM3D with its default profile."""
    import bm3d

    clean: NDArray[Any] = bm3d.bm3d(picture, SIGMA)
    return clean


def by_nlm(picture: Pixels) -> NDArray[Any]:
    """Non-local means, 5 x 5 patches within 13 x 13 pixels."""
    from skimage.restoration import denoise_nl_means

    settings = {"patch_size": 5, "patch_distance": 6, "fast_mode": False}
    clean: NDArray[Any] = denoise_nl_means(picture, h=0.8 * SIGMA, sigma=SIGMA, **settings)
    return clean


def measured(method: Callable[[Pixels], NDArray[Any]], clean: dict[str, Pixels]) -> tuple[dict[str, Any], NDArray[Any]]:
    """A method's figures on all pictures, and what it makes of the one for the docs."""
    ratios, shown, began = {}, np.zeros((0, 0)), time.perf_counter()
    for number, (name, picture) in enumerate(clean.items()):
        told = method(noisy(picture, number))
        ratios[name] = round(psnr(picture, told), 3)
        shown = told if name == SHOWN or not shown.size else shown
    seconds = (time.perf_counter() - began) / len(clean)
    return {
        "PSNR": round(float(np.mean(list(ratios.values()))), 3),
        "seconds": round(seconds, 2),
        "each": ratios,
    }, shown


def draw(clean: dict[str, Pixels], told: dict[str, NDArray[Any]]) -> None:
    """Crops side by side: noisy, each method's, clean."""
    name = SHOWN if SHOWN in clean else next(iter(clean))
    rough = noisy(clean[name], list(clean).index(name))
    row = [image[CROP, CROP] for image in (rough, *told.values(), clean[name])]
    gap = np.ones((row[0].shape[0], 4))
    joined = np.concatenate([part for image in row for part in (image, gap)][:-1], axis=1)
    Image.fromarray(np.rint(joined.clip(0, 1) * 255).astype(np.uint8)).save(PICTURE, optimize=True)


def main() -> None:
    """Train, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--minutes", type=float, default=15.0, help="of training")
    parser.add_argument("--images", type=int, default=68, help="of BSD68; fewer are printed and not kept")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    arguments = parser.parse_args()
    clean = pictures(arguments.data, arguments.images)
    model = trained(arguments.data, arguments.minutes)
    methods: dict[str, Callable[[Pixels], NDArray[Any]]] = (
        {} if arguments.no_peers else {"NLM": by_nlm, "BM3D": by_bm3d}
    )
    methods["Narrows"] = lambda picture: denoise_whole(model, picture)
    answers = {name: measured(method, clean) for name, method in methods.items()}
    figures = {name: figure for name, (figure, _) in answers.items()}
    figures["Narrows"]["training"] = facts_of(model, arguments.minutes)
    figures["noisy"], _ = measured(lambda picture: picture, clean)
    show(figures)
    if len(clean) == 68 and not arguments.no_peers:
        keep(figures)
        draw(clean, {name: shown for name, (_, shown) in answers.items()})


def facts_of(model: Model, minutes: float) -> dict[str, Any]:
    """How the denoiser was trained."""
    last = model.facts["records"][-1]
    weights = sum(weight.numel() for weight in model.module.parameters())
    return {"weights": weights, "rows": last["rows"], "steps": last["step"], "minutes": minutes}


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table."""
    table = Table("method", "PSNR, dB", "published", "seconds a picture")
    for name, facts in sorted(figures.items(), key=lambda pair: pair[1]["PSNR"]):
        known = PUBLISHED.get(name)
        table.add_row(name, f"{facts['PSNR']:.2f}", f"{known:.2f}" if known else "", f"{facts['seconds']:.1f}")
    Console().print(table, figures["Narrows"]["training"])


def keep(figures: dict[str, Any]) -> None:
    """Write the results."""
    packages = ("narrows", "torch", "numpy", "bm3d", "scikit-image")
    kept = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in packages},
        "date": datetime.now(UTC).date().isoformat(),
        "published": PUBLISHED,
        "methods": figures,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
