"""What codes know of something the model was never told: a small reader of frozen codes, judged on rows held out.

    rows, target -> labelled rows -> codes -> readout -> Probe: predictions, and figures beside
                                     raw rows, PCA of equal size -> the same readout

Reading is linear (see `readout`), by default with the encoder frozen; `tune` trains both. A target that is an image of
classes is read pixel by pixel (see `pixels`), by one hidden layer. The autoencoder may have been trained on the rows
held out too: it never saw their targets, and that is how few labels among many rows are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from narrows.errors import DataError, ModelFileError, SettingError
from narrows.fitted import Model, Part
from narrows.schema import Batch
from narrows.sources.source import naming
from narrows.tasks.baseline import baseline_of
from narrows.tasks.features import features, features_of
from narrows.tasks.figures import figure
from narrows.tasks.finetune import fine_tune, with_weights
from narrows.tasks.labelled import ROWS, Label, Parted, Target, Task, part, read
from narrows.tasks.readout import Floats, Readout, Scaling, classifier, regressor
from narrows.tasks.segments import image_size_fits, pixel_classes, read_pixels

if TYPE_CHECKING:
    from rich.table import Table

VALUES = 2**25  # raw numbers that are held at once: 134 MB; wide rows are sampled fewer
WORDS = {
    "codes": "codes, frozen",
    "tuned": "codes, fine-tuned",
    "raw": "raw rows",
    "patches": "raw patches",
    "pca": "PCA of the same size",
    "usual": "always the same answer",
}
MEASURES = {"accuracy": "accuracy", "iou": "mean IoU", "r2": "R2"}


@dataclass(frozen=True)
class Probe:
    """A reader of a model's codes.

    Args:
        model: whose codes are read; fine-tuned, with an encoder of its own.
        target: name of what is told.
        task: `classify`, `regress` or `segment`.
        classes: in order; empty for numbers.
        readout: of the codes.
        figures: reader -> measure -> figure on the rows held out: `codes`, `tuned`, `raw` and `pca` by `accuracy` or
            `r2`; `codes` and `patches` by `accuracy` and `iou` of pixels. `usual` is the most frequent class, the mean.
        labelled: rows that it learnt from.
        held_out: rows that the figures are of.
        tuned: weights of the encoder, where it was fine-tuned.
    """

    model: Model
    target: str
    task: Task
    classes: tuple[Label, ...]
    readout: Readout
    figures: dict[str, dict[str, float]]
    labelled: int
    held_out: int
    tuned: dict[str, Tensor] = field(default_factory=dict)

    def predict(self, rows: Any) -> npt.NDArray[Any]:
        """What it says of rows: (n,) classes or numbers, or (n, H, W) classes of pixels.

        Args:
            rows: anything `open_source` takes; the target may stand among the columns, and is not read.
        """
        answers = [self._answer(batch) for batch in self._batches(rows)]
        if not answers:
            raise DataError("no rows", "at least one")
        return np.concatenate(answers)

    def _batches(self, rows: Any) -> Iterator[Batch]:
        source = self.model.source(rows)
        for first, raw in source.batches():
            if self.target in raw.schema.names and self.target not in self.model.schema.names:
                raw = raw.drop_columns([self.target])
            with naming(source):
                yield self.model.preparer.prepare(raw, first)

    def _answer(self, batch: Batch) -> npt.NDArray[Any]:
        if self.task == "segment":
            return np.array(self.classes)[pixel_classes(self.model, self.readout, batch)]
        codes = self.model.codes(batch).numpy()
        if self.task == "regress":
            return self.readout.numbers(codes)
        return np.array(self.classes)[self.readout.classes(codes)]

    def part(self) -> Part:
        """All that it learnt, to be kept with the model: `model.parts["probe"] = probe.part()`."""
        names = ("target", "task", "figures", "labelled", "held_out")
        facts = {name: getattr(self, name) for name in names} | {"classes": list(self.classes)}
        arrays = {"mean": self.readout.scaling.mean, "spread": self.readout.scaling.spread}
        arrays |= {"weight": self.readout.weight, "bias": self.readout.bias}
        if self.readout.hidden is not None:
            arrays["hidden"], arrays["inside"] = self.readout.hidden
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        return Part(facts, tensors | {f"tuned.{name}": tensor for name, tensor in self.tuned.items()})

    @classmethod
    def of(cls, model: Model, name: str = "probe") -> Probe:
        """The probe that a model carries.

        Raises:
            SettingError: for a model without.
            ModelFileError: for a part that is no probe.
        """
        if name not in model.parts:
            raise SettingError(f"a model without the part {name}", "one", "model.parts['probe'] = probe(...).part()")
        facts, tensors = dict(model.parts[name].facts), model.parts[name].tensors
        try:
            reader = _reader({key: tensor.numpy() for key, tensor in tensors.items() if "." not in key})
            tuned = {key[6:]: tensor for key, tensor in tensors.items() if key.startswith("tuned.")}
            classes = tuple(facts.pop("classes"))
            owner = with_weights(model, tuned) if tuned else model
            return cls(model=owner, classes=classes, readout=reader, tuned=tuned, **facts)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelFileError(f"part {name} of the model: {error}", "what Probe.part gave") from None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("target", "task", "labelled", "held_out", "figures")
        return {name: getattr(self, name) for name in names} | {"classes": list(self.classes)}

    def table(self) -> Table:
        """A table for the terminal."""
        from rich.table import Table

        measures = list(self.figures["codes"])
        rows = "images" if self.task == "segment" else "rows"
        title = f"{self.target}, told from {self.labelled:,} labelled {rows}"
        note = f"on {self.held_out:,} {rows} held out"
        table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
        table.add_column("read from")
        for measure in measures:
            table.add_column(MEASURES[measure], justify="right")
        for reader, figures in self.figures.items():
            shown = [figure(figures[measure], "rmse" if measure == "r2" else "wrong") for measure in measures]
            table.add_row(WORDS[reader], *shown)
        return table


def _reader(arrays: dict[str, Floats]) -> Readout:
    """The readout of these arrays; ValueError for shapes that do not fit each other."""
    scaling, weight, bias = Scaling(arrays["mean"], arrays["spread"]), arrays["weight"], arrays["bias"]
    hidden = (arrays["hidden"], arrays["inside"]) if "hidden" in arrays else None
    first = weight if hidden is None else hidden[0]
    fits = hidden is None or hidden[0].shape[1:] == hidden[1].shape == weight.shape[:1]
    if not (fits and scaling.mean.shape == scaling.spread.shape == first.shape[:1] and weight.shape[1:] == bias.shape):
        raise ValueError(f"weights of shape {weight.shape} for {scaling.mean.shape} numbers")
    return Readout(scaling, weight, bias, hidden)


def probe(
    model: Model,
    rows: Any,
    target: Any,
    labels: int | None = None,
    task: Task = "auto",
    tune: bool = False,
    seed: int = 0,
) -> Probe:
    """Learn to tell a target from a model's codes, and how well that goes on rows held out, a fifth of them.

    At most 30,000 rows are used, drawn evenly; rows without a target are passed over.

    Args:
        model: a fitted model.
        rows: anything `open_source` takes, with the columns of the training data.
        target: name of a column that the model was not trained on, or an array (n,); for a class each pixel a column of
            images of class numbers, or an array (n, H, W).
        labels: rows whose target may be known, each class in its share; None for all that are not held out.
        task: `classify`, `regress`, `segment`, or `auto`: words, flags and up to 20 whole numbers are classes.
        tune: train the encoder as well, on the labelled rows.
        seed: of the rows held out, of those labelled, and of the training.

    Raises:
        DataError: for rows or targets that do not fit.
        SettingError: for settings that do not fit each other or the model.
    """
    wide = model.schema.cells if task == "segment" else features_of(model.schema) + model.code_size
    batch, told = read(model, rows, target, task, max(100, min(ROWS, VALUES // max(1, wide))), seed)
    parted = part(told, labels, seed)
    if told.task == "segment":
        if tune:
            raise SettingError("tune=True to class pixels", "frozen codes", "tune=False")
        image_size_fits(model, told)
        readout, figures = read_pixels(model, batch, told, parted, seed)
        return _probe(model, told, readout, figures, parted)
    readouts = {name: _Read.of(values, told, parted, seed) for name, values in _values(model, batch).items()}
    figures = {name: {read.measure: read.figure} for name, read in readouts.items()}
    found = _probe(model, told, readouts["codes"].readout, figures | {"usual": _usual(told, parted)}, parted)
    return _tuned(found, batch, told, parted, seed) if tune else found


def _probe(model: Model, told: Target, readout: Readout, figures: dict[str, dict[str, float]], parted: Parted) -> Probe:
    return Probe(model, told.name, told.task, told.classes, readout, figures, len(parted.known), len(parted.held))


def _tuned(found: Probe, batch: Batch, told: Target, parted: Parted, seed: int) -> Probe:
    """The probe with encoder and head trained together."""
    known, held = torch.from_numpy(parted.known), torch.from_numpy(parted.held)
    weights, readout = fine_tune(found.model, found.readout, batch[known], told.values[parted.known], seed)
    model = with_weights(found.model, weights)
    figures = {"codes": found.figures["codes"]}
    figures["tuned"] = _figures(readout, model.codes(batch[held]).numpy(), told[parted.held])
    facts = (found.target, found.task, found.classes, readout, figures | found.figures)
    return Probe(model, *facts, found.labelled, found.held_out, weights)


@dataclass(frozen=True)
class _Read:
    """A readout and how well it does."""

    readout: Readout
    measure: str
    figure: float

    @classmethod
    def of(cls, values: Floats, told: Target, parted: Parted, seed: int) -> _Read:
        scaling, known = Scaling.of(values[parted.pool]), values[parted.known]
        if told.task == "classify":
            readout = classifier(known, told.values[parted.known], len(told.classes), scaling, seed)
        else:
            readout = regressor(known, told.values[parted.known], scaling)
        ((measure, value),) = _figures(readout, values[parted.held], told[parted.held]).items()
        return cls(readout, measure, value)


def _figures(readout: Readout, values: Floats, told: Target) -> dict[str, float]:
    """Accuracy, or R2, of a readout of values."""
    if told.task == "classify":
        return {"accuracy": float((readout.classes(values) == told.values).mean())}
    return {"r2": _r2(told.values, readout.numbers(values))}


def _usual(told: Target, parted: Parted) -> dict[str, float]:
    """The same for the most frequent class of the labelled rows, or their mean."""
    known, held = told.values[parted.known], told.values[parted.held]
    if told.task == "classify":
        return {"accuracy": float((held == np.bincount(known).argmax()).mean())}
    return {"r2": _r2(held, np.full(held.shape, known.mean()))}


def _r2(truth: npt.NDArray[np.float64], said: npt.NDArray[Any]) -> float:
    total = float(np.square(truth - truth.mean()).sum())
    return 1.0 - float(np.square(truth - said).sum()) / total if total else 0.0


def _values(model: Model, batch: Batch) -> dict[str, Floats]:
    """What is read: the codes, and where rows are more than texts, raw prepared rows and their principal components."""
    values = {"codes": model.codes(batch).numpy()}
    if not features_of(model.schema):
        return values
    pca = baseline_of(model, batch)
    raw = features(batch.dense(), model.schema)
    components = (raw - pca.mean) @ pca.components.T
    return values | {"raw": raw.numpy(), "pca": components.numpy()}
