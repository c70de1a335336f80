"""What the command line can be told: groups of options, whose field texts are its help, and where results may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from narrows.errors import SettingError
from narrows.files import refuse_unwritable

Flat = Parameter(name="*")


@dataclass
class Choices:
    """What to train."""

    recipe: str | None = None
    """plain, linear, denoising, masked, conditional, sparse, topk, contractive, vae, iwae, hierarchical, tcvae, vq,
    fsq, wae, aae or vaegan, with arguments as in `vae:beta=4` or `plain:likelihood.pay=gaussian`; by default plain, or
    what `--for` would choose."""

    job: Annotated[str | None, Parameter(name="--for")] = None
    """What the model is for, generate, denoise, detect, impute or drift: chooses a recipe where none is given, and
    learns what the job needs beside."""

    start: Annotated[Path | None, Parameter(name="--continue")] = None
    """A .narrows file to go on from: its columns, recipe, network, code and weights are taken as they are, and the
    optimizer begins anew."""

    latent: int | Literal["auto"] | None = None
    """Numbers in a row's code; by default half of the cells, at most 16. auto tries sizes in short fits and takes the
    smallest that tells hidden cells as well as any."""

    epochs: int | None = None
    """Passes over the rows at most; by default chosen by their number."""

    lr: float | None = None
    """Peak learning rate; by default the optimizer's own."""

    seed: int = 0
    """Of every random draw: equal seeds, data and machines give equal files."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""

    column: Annotated[dict[str, str], Parameter(show_default=False)] = field(default_factory=dict)
    """What a column is, where that was guessed wrong: `--column.zip category --column.income quantile`. Kinds: number,
    count, binary, category, date, image, series, audio, tokens, bag. Of numbers: standardize, minmax, quantile, asinh,
    none; of series also own (each by its own mean and spread) and joint (one scale for all channels); of sounds: wave,
    spectra; of texts: chars, bytes, words, bpe; of bags: counts, tfidf. An unnamed array is column x; `--column.*
    asinh` is for all other numbers."""


@dataclass
class Detecting:
    """What is known of anomalies, for `--for detect`."""

    contamination: float | Literal["auto"] = "auto"
    """Share of the training rows to call anomalies, such as 0.05; auto lets their scores say it."""

    all_normal: bool = False
    """The data holds no anomalies: train on all rows, not on those that look most ordinary."""


@dataclass
class Studying:
    """How long settings are searched for, and where what was found is kept."""

    trials: int = 30
    """That the study is to have in all: those before a kill, and of other processes, are counted."""

    time_limit: float | None = None
    """Seconds for the trials; two whole fits come on top. None by default."""

    folder: Path | None = None
    """Of the journal; by default the model's name with `.tune`. The same command again goes on with it, and started
    twice at once shares it."""


@dataclass
class Imputing:
    """How holes are filled."""

    draws: int | None = None
    """Complete the rows so many times, each numbered in a column `draw`; by default once, by what is expected."""

    interval: float | None = None
    """Add columns NAME_low and NAME_high, between which a missing number lies with this chance, such as 0.9."""

    indicator: bool = False
    """Add a column NAME_missing for each column that had holes in training."""

    seed: int = 0
    """Of the draws."""


@dataclass
class Drawing:
    """Which rows to generate."""

    rows: int | None = None
    """How many; 100 by default."""

    where: list[str] = field(default_factory=list)
    """Values that all rows are to hold: `--where town=Basel rooms=3`."""

    seed: int = 0
    """Of every draw: the same rows for the same seed, and the first of them whatever their number."""

    temperature: float = 1.0
    """Below 1 for more usual rows, above 1 for more unusual ones."""

    sample_cells: bool = True
    """Draw scalar cells from their likelihood; else all are the most probable ones."""

    def given(self) -> dict[str, str]:
        """Column -> value, of `where`.

        Raises:
            SettingError: for what is not a column and a value, or a column twice.
        """
        pairs = [text.partition("=") for text in self.where]
        for name, sign, _ in pairs:
            if not (name and sign) or [other for other, *_ in pairs].count(name) > 1:
                raise SettingError(f"--where {' '.join(self.where)}", "COLUMN=VALUE, each column once")
        return {name: value for name, _, value in pairs}


@dataclass
class Applying:
    """How to read the data at hand, and where to compute."""

    header: bool | None = None
    """Whether the first line of a CSV file names the columns; found out by default."""

    strict: bool = False
    """Refuse a folder with a broken image or sound, instead of leaving it out with a warning."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""


@dataclass
class Running:
    """Where the run is kept and what it prints."""

    run: Path | None = None
    """Folder of the run: settings, metrics, checkpoint; by default the model's name with `.run`."""

    resume: bool = False
    """Go on from the run's checkpoint: the model is the same, bit for bit, as if it had never stopped."""

    verbose: int = 1
    """0 silent, 1 a progress bar where there is a terminal, 2 a line an epoch."""

    json: bool = False
    """Print the result as JSON."""

    profile: bool = False
    """Print where the time went: reading, preparing, steps, validation, writing, diagnosis."""


def refuse_output(out: Path, *inputs: str | Path, suffix: str = "") -> None:
    """Find out before any work that a result may not be written to `out`.

    Args:
        out: where the result is to go.
        inputs: what the verb reads: none of them may be written over.
        suffix: that `out` must have.

    Raises:
        SettingError: for another suffix, or a file that is read.
        NarrowsError: for a place that cannot be written to.
    """
    if suffix and out.suffix != suffix:
        better = out.with_suffix(suffix) if out.name else f"m{suffix}"
        raise SettingError(f"--out {out}", f"a name that ends in {suffix}", str(better))
    for name in inputs:
        if out.exists() and Path(name).exists() and out.samefile(name):
            raise SettingError(f"--out {out}, which is read here", "another file", "another name")
    refuse_unwritable(out)
