"""The settings of a training run, checked, and what is to be watched and kept of it.

A dataclass whose field texts are the command line's help. Values are stored as given and checked by `check`, as
scikit-learn wants it; `get_params` and `set_params` speak its language without importing it. Knows nothing of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self, get_args

from narrows.errors import SettingError
from narrows.train.snapshots import Snapshots

OptimizerName = Literal["auto", "gd", "sgd", "momentum", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "one-cycle"]
Precision = Literal["auto", "float32", "bfloat16"]
Record = dict[str, int | float]
FEWEST_STEPS = 150  # of a fit of few epochs, where its steps need not be of fewer than 32 rows


@dataclass
class Training:
    """How to train: the part of the settings that most users never touch."""

    batch_size: int | None = None
    """Rows of a step; by default the power of two nearest to a hundredth of the rows, between 32 and 1024, and smaller
    where so few epochs are asked for that less than 150 steps would be made."""

    optimizer: OptimizerName = "auto"
    """gd (all rows in one step), sgd, momentum, adam, adamw, muon (matrices by Muon, the rest by AdamW), or auto: muon
    unless its work on wide layers would dwarf that of a step, then adamw."""

    schedule: ScheduleName = "one-cycle"
    """Course of the learning rate: constant, cosine (falls to 0) or one-cycle (warms up, then falls)."""

    weight_decay: float | None = None
    """Pull of the weights towards 0; biases and other vectors are left alone. By default 0.03 with Muon, whose steps
    are as long where there is nothing left to learn, and 0 with the others."""

    clip: float | None = 1.0
    """Largest norm of the gradient, longer ones are shortened to it; none leaves them as they are."""

    patience: int | None = 10
    """Stop after this many epochs without a better validation loss, counted once the learning rate is past half.
    Does nothing where no rows are held out."""

    stop_loss: float | None = None
    """Stop once the validation loss, or without validation rows the training loss, is at or below this."""

    tolerance: float | None = None
    """Stop once the training loss, or the weights, changed by less than this share from one epoch to the next."""

    time_limit: float | None = None
    """Stop after this many seconds of training, those before a resume included. The learning rate falls with the
    time used, where that is ahead of the rows, so a resumed run is as good then, but not the same bit for bit."""

    validation: float | str | None = None
    """Share of the rows held out to choose the best weights and to stop early, or the data to do it on; 0 for none. By
    default 0.1; to detect anomalies, where these rows calibrate the scores, 0.2."""

    group: str | None = None
    """Column whose equal values are held out together, so that no person or machine stands on both sides."""

    balance: str | None = None
    """Column whose values training is to meet equally often, rare ones again and again; rows without a value are one
    group more. Rows held out are weighed alike, so that the weights kept are those that are best for all groups."""

    balance_power: float = 1.0
    """1 meets all values of `balance` equally often; less repeats rare rows less, which they may be learnt by heart by:
    0.5 takes square roots of how often values come."""

    time: str | None = None
    """Column whose highest values are held out, so that the model is judged on what came later."""

    budget: float = 2e9
    """Bytes of prepared rows that may be held in memory; more are streamed from the source every epoch."""

    precision: Precision = "auto"
    """Of matrix products: float32, bfloat16, or auto: bfloat16 where the processor gains by it and sizes repay it;
    below, GPUs round the factors of float32 products to 10 bits (TF32)."""

    sync: str = "every"
    """How several processes train one model: every (gradients are averaged in every step, as one process would with the
    same batch), local:H (H steps each, then weights are averaged), async or async:H (nobody waits: every H steps, 10 by
    default, a process and a common center pull at each other). A batch is that of all processes together."""

    checkpoint_every: float = 10.0
    """Seconds between two checkpoints of a run with a folder; 0 writes one after every step."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All settings by name; `deep` is there for scikit-learn, nothing is nested."""
        return {setting.name: getattr(self, setting.name) for setting in fields(self)}

    def set_params(self, **settings: Any) -> Self:
        """Change settings by name.

        Raises:
            SettingError: for a name that is no setting; nothing is changed then.
        """
        known = self.get_params()
        for name in settings.keys() - known.keys():
            raise SettingError(f"no training setting {name!r}", f"one of {', '.join(known)}")
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    def check(self) -> None:
        """Refuse settings out of range, or at odds with each other.

        Raises:
            SettingError: naming the setting.
        """
        for name, (allowed, wanted) in _RULES.items():
            value = getattr(self, name)
            if not allowed(value):
                raise SettingError(f"training setting {name}={value!r}", wanted)
        if self.balance is None and self.balance_power != 1.0:
            raise SettingError(f"balance_power={self.balance_power!r} without a column", "balance=COLUMN beside it")
        if self.optimizer == "gd" and self.batch_size is not None:
            raise SettingError(
                f"batch_size={self.batch_size} with optimizer='gd'",
                "no batch size: gd takes all rows in one step",
                "optimizer='sgd' for smaller steps",
            )

    def plain(self) -> Training:
        """The same settings, their numbers of Python's own kinds: NumPy's neither go into JSON nor all into torch."""
        return replace(self, **{name: plain(value) for name, value in self.get_params().items()})

    def step_rows(self, rows: int | None, epochs: int | None = None) -> int:
        """Rows of a step where an epoch has `rows` (None: unknown, then 512).

        The rule aims at a hundred steps an epoch, at rows that use a processor's vector units (32), and at no more
        than 1024, where further rows no longer make a step better. Few epochs (None: as many as it takes) are made of
        smaller steps: on 50,000 rows of MNIST, a network of 784-256-784 has a squared error of 0.0058 a cell after one
        epoch of 98 steps, 0.0017 after one of 196, and 0.0014 after two of 98.

        Raises:
            SettingError: for `gd` on an unknown number of rows.
        """
        if self.optimizer == "gd":
            if rows is None:
                raise SettingError("optimizer='gd' on an unknown number of rows", hint="another optimizer")
            return max(rows, 1)
        if self.batch_size is not None:
            return int(self.batch_size)
        if rows is None:
            return 512
        usual = int(min(max(2 ** round(math.log2(max(rows, 1) / 100)), 32), 1024))
        if epochs is None:
            return usual
        return max(min(usual, 1 << max(0, (epochs * rows // FEWEST_STEPS).bit_length() - 1)), 32)


@dataclass(frozen=True)
class Watch:
    """Who looks on while a module is trained.

    Args:
        folder: of the run: its settings, metrics and checkpoint go there; None keeps nothing.
        resume: go on from the folder's checkpoint; without one, training begins at the beginning, with a warning.
        about: facts that a resumed run must share, such as the recipe and the data, by name; plain JSON values.
        verbose: 0 silent, 1 a progress bar where there is a terminal, 2 a line an epoch.
        callbacks: each is called with the record of every epoch; training stops when one returns True.
        cells: names of the cells, for saying which column broke.
        snapshots: taken of the module between epochs; None for none. `fit` puts in its own.
    """

    folder: Path | None = None
    resume: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    verbose: int = 0
    callbacks: Sequence[Callable[[Record], bool | None]] = ()
    cells: Sequence[str] = ()
    snapshots: Snapshots | None = None


def sync_of(words: str) -> tuple[str, int]:
    """The way of `Training.sync`, and the steps between two exchanges.

    Raises:
        ValueError: for another word.
    """
    way, colon, steps = words.partition(":")
    if way not in ("every", "local", "async") or (colon and way == "every") or (way == "local" and not colon):
        raise ValueError(words)
    number = int(steps) if colon else {"every": 1, "async": 10}[way]
    if number < 1:
        raise ValueError(words)
    return way, number


def plain(value: Any) -> Any:
    """A number of any kind as one of Python's own; anything else as it is."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int) else value


def _number(value: object, low: float, *, strict: bool = False, whole: bool = False) -> bool:
    """Whether `value` is a finite number (no bool), at or above `low`."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        return False
    number = float(value)
    return math.isfinite(number) and (number > low if strict else number >= low)


def _one_of(words: Any) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in get_args(words)), f"one of {', '.join(get_args(words))}"


def _is_sync(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(sync_of(value))
    except ValueError:
        return False


_COUNT = (lambda value: value is None or _number(value, 1, whole=True)), "a whole number of at least 1, or None"
_POSITIVE = (lambda value: value is None or _number(value, 0, strict=True)), "a number above 0, or None"
_NAME = (lambda value: value is None or isinstance(value, str)), "the name of a column, or None"
_NOT_NEGATIVE = (lambda value: _number(value, 0)), "a number of at least 0"

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch_size": _COUNT,
    "optimizer": _one_of(OptimizerName),
    "schedule": _one_of(ScheduleName),
    "weight_decay": ((lambda value: value is None or _number(value, 0)), "a number of at least 0, or None"),
    "clip": _POSITIVE,
    "patience": _COUNT,
    "stop_loss": ((lambda value: value is None or _number(value, -math.inf)), "a finite number, or None"),
    "tolerance": _POSITIVE,
    "time_limit": _POSITIVE,
    "validation": (
        (lambda value: value is None or isinstance(value, str) or (_number(value, 0) and value < 1)),
        "a share from 0 up to, not including, 1, or the name of a file",
    ),
    "group": _NAME,
    "balance": _NAME,
    "balance_power": ((lambda value: _number(value, 0, strict=True) and value <= 1), "a number above 0 and up to 1"),
    "time": _NAME,
    "budget": _NOT_NEGATIVE,
    "precision": _one_of(Precision),
    "sync": (_is_sync, "every, local:H or async:H with a whole number of steps H, such as local:8"),
    "checkpoint_every": _NOT_NEGATIVE,
}
