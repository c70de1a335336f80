"""A class for each pixel, read from the pixel's code: a sample of the labelled images' pixels, and a small reader.

What this file does not know: where the masks came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from narrows.errors import DataError
from narrows.fitted import Model
from narrows.schema import Batch
from narrows.tasks.labelled import Parted, Target
from narrows.tasks.pixels import patches, pixel_codes, size_of
from narrows.tasks.readout import Floats, Readout, Scaling, layered

PIXELS = 20_000  # that a readout is learnt from: more of the same images hardly add to it
BYTES = 2**27  # of pixel codes at once
HELD = 500  # images that figures are of, at most: hundreds of thousands of pixels

Reader = Callable[[Model, Batch], Tensor]


def image_size_fits(model: Model, told: Target) -> None:
    """Refuse masks of another size than the images.

    Raises:
        DataError: naming both sizes.
        SettingError: for a model whose pixels have no codes.
    """
    size = size_of(model)
    if told.values.shape[1:] != size:
        raise DataError(f"masks of {told.values.shape[1:]} pixels for images of {size}", "masks of the images' size")


def read_pixels(
    model: Model, batch: Batch, told: Target, parted: Parted, seed: int
) -> tuple[Readout, dict[str, dict[str, float]]]:
    """A readout of pixel codes, and its figures beside those of raw patches and of the most frequent class.

    Args:
        model: of convolutions over the one image.
        batch: rows.
        told: their masks.
        parted: which ones are labelled and held out.
        seed: of the sampled pixels.
    """
    held = parted.held[:HELD]
    readouts = {name: _learnt(model, reader, batch, told, parted, seed) for name, reader in READERS.items()}
    truth = told.values[held]
    rows = batch[torch.from_numpy(held)]
    figures = {
        name: pixel_figures(truth, _classes(model, readout, READERS[name], rows), len(told.classes))
        for name, readout in readouts.items()
    }
    usual = np.full(truth.shape, np.bincount(told.values[parted.known].reshape(-1)).argmax())
    return readouts["codes"], figures | {"usual": pixel_figures(truth, usual, len(told.classes))}


def pixel_classes(model: Model, readout: Readout, batch: Batch) -> npt.NDArray[np.int64]:
    """(B, H, W) the class of each pixel."""
    return _classes(model, readout, pixel_codes, batch)


def _learnt(model: Model, reader: Reader, batch: Batch, told: Target, parted: Parted, seed: int) -> Readout:
    """A readout of so many pixels of each labelled image, drawn at random."""
    draws = np.random.default_rng(seed)
    each = max(1, PIXELS // len(parted.known))
    values, classes = [], []
    for places, part in _blocks(model, reader, batch, parted.known):
        for code, mask in zip(part, told.values[places], strict=True):
            chosen = draws.permutation(mask.size)[:each]
            values.append(code.reshape(mask.size, -1)[chosen])
            classes.append(mask.reshape(-1)[chosen])
    known, met = np.concatenate(values), np.concatenate(classes)
    if len(np.unique(met)) < 2:
        raise DataError("labelled images whose pixels are of one class", "two classes at least", "more labels")
    return layered(known, met, len(told.classes), Scaling.of(known), seed)


def _classes(model: Model, readout: Readout, reader: Reader, batch: Batch) -> npt.NDArray[np.int64]:
    """(B, H, W) the class of each pixel, as a readout of what `reader` gives says it."""
    parts = [
        readout.classes(part.reshape(-1, part.shape[-1])).reshape(part.shape[:-1])
        for _, part in _blocks(model, reader, batch, np.arange(len(batch)))
    ]
    return np.concatenate(parts)


def _blocks(
    model: Model, reader: Reader, batch: Batch, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
    """Positions of rows and (b, H, W, F) what is read of their pixels, as many at a time as memory is meant for."""
    step, at = 1, 0
    while at < len(rows):
        places = rows[at : at + step]
        part = reader(model, batch[torch.from_numpy(places)]).cpu().numpy()
        yield places, part
        at += len(places)
        step = max(1, min(64, BYTES // max(1, part[0].nbytes)))


def pixel_figures(truth: npt.NDArray[np.int64], said: npt.NDArray[np.int64], classes: int) -> dict[str, float]:
    """Share of pixels that are right, and intersection over union, averaged over the classes that are met."""
    pairs = np.bincount((truth * classes + said).reshape(-1), minlength=classes * classes).reshape(classes, classes)
    both = np.diag(pairs)
    either = pairs.sum(0) + pairs.sum(1) - both
    return {"accuracy": float(both.sum() / pairs.sum()), "iou": float((both[either > 0] / either[either > 0]).mean())}


READERS: dict[str, Reader] = {"codes": pixel_codes, "patches": patches}
