"""How data is to be read where its own form does not say it, and what a source knows of a column beyond its Arrow type.

A model keeps the `Reading` of its training data, so that new data is cut and named the same way. What a source knows
of a column travels with it, as metadata of its Arrow field: the kind it should be, or that it only stands aside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import pyarrow as pa

from narrows.errors import SettingError

Form = Literal["auto", "table", "series", "text", "log"]
FORMS: tuple[Form, ...] = get_args(Form)

KIND, ASIDE, RATE, ITEMS = b"narrows.kind", b"narrows.aside", b"narrows.rate", b"narrows.items"
CHANNELS = b"narrows.channels"  # of a series: the names of its columns in the data, as a JSON list
OF_A_FILE = ("header", "strict")  # said anew of each file, not kept with a model


@dataclass(frozen=True)
class Reading:
    """How to read the data. The field texts are also the command line's help."""

    form: Form = "auto"
    """What the files hold, where that is not plain: table, series (rows follow each other in time: they are cut into
    windows), text (lines; with --window, pieces of so many characters) or log (a line for each user and item)."""

    header: bool | None = None
    """Whether the first line of a CSV file names the columns; found out by default."""

    window: int | None = None
    """Rows of a series, samples of a sound or characters of a text that make one row for the model."""

    stride: int | None = None
    """From one window's start to the next's; by default the window's length, so that windows do not overlap."""

    series: str | None = None
    """The column that tells one series from another, where a file holds several; no window spans two."""

    stamp: str | None = None
    """The column of time stamps of a series: they must rise, and stand aside. By default that of --time."""

    array: str | None = None
    """The array to read of an .npz file that holds several."""

    user: str | None = None
    """The column of users of a log; each becomes one row, a bag of items."""

    item: str | None = None
    """The column of items of a log."""

    value: str | None = None
    """The column of a log that says how often or how much; by default every line counts 1."""

    size: tuple[int, int] | None = None
    """Height and width that images are scaled to; by default they must all be of one size."""

    channels: int | None = None
    """1 to read images as gray, 3 as RGB; by default gray where all of them are."""

    strict: bool = False
    """Refuse a folder with a broken image or sound, instead of leaving it out with a warning."""

    def check(self) -> None:
        """Refuse settings out of range, or that contradict each other.

        Raises:
            SettingError: naming the setting.
        """
        if self.form not in FORMS:
            raise SettingError(f"form={self.form!r}", f"one of {', '.join(FORMS)}")
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value > 0):
                raise SettingError(f"{name}={value!r}", "a whole number above 0")
        if self.stride is not None and self.window is None:
            raise SettingError(f"stride={self.stride} without a window", "both", "window=")
        if self.size is not None and not (len(self.size) == 2 and all(isinstance(n, int) and n > 0 for n in self.size)):
            raise SettingError(f"size={self.size!r}", "height and width above 0, such as 64 64")
        if self.channels not in (None, 1, 3):
            raise SettingError(f"channels={self.channels!r}", "1 (gray) or 3 (RGB)")
        if (self.user is None) != (self.item is None):
            raise SettingError(f"user={self.user!r} and item={self.item!r}", "both columns of a log, or neither")
        self._check_form()

    def _check_form(self) -> None:
        """Refuse settings of one form beside another."""
        log, series = self.user is not None, self.form == "series" or self.window is not None
        if log and self.form not in ("auto", "log"):
            raise SettingError(f"user={self.user!r} beside form={self.form!r}", "form='log', or no users and items")
        if (log or self.form == "log") and self.window is not None:
            raise SettingError(f"window={self.window} for a log", "no window: a user's items have no order")
        if self.value is not None and not log:
            raise SettingError(f"value={self.value!r} without user and item", "the three columns of a log")
        for name in ("series", "stamp"):
            if getattr(self, name) is not None and not series:
                got = f"{name}={getattr(self, name)!r}, but the rows are no series"
                raise SettingError(got, "form='series' or window= beside it")

    def kept(self) -> dict[str, Any]:
        """What a model keeps of it: the settings that differ from the defaults, without what is said of a file."""
        pairs = {entry.name: (getattr(self, entry.name), entry.default) for entry in fields(self)}
        return {name: value for name, (value, usual) in pairs.items() if value != usual and name not in OF_A_FILE}

    def of_file(self, other: Reading) -> Reading:
        """These settings, with what `other` says of the file at hand."""
        return replace(self, **{name: getattr(other, name) for name in OF_A_FILE})


def field(
    name: str,
    arrow: Any,
    *,
    kind: str = "",
    aside: bool = False,
    rate: int = 0,
    items: int = 0,
    channels: Sequence[str] = (),
) -> pa.Field:
    """An Arrow field with what the source knows of the column.

    Args:
        name: of the column.
        arrow: its Arrow type.
        kind: it should be (see `schema.Kind`), unless the user says otherwise.
        aside: whether it is not for the model: a label, a path, the start of a window.
        rate: samples per second of a sound.
        items: of a bag of item numbers: how many there are, numbered from 0.
        channels: of a series: the columns of the data that it was made of.
    """
    facts = {KIND: kind, ASIDE: "1" if aside else "", RATE: str(rate or ""), ITEMS: str(items or "")}
    facts[CHANNELS] = json.dumps(list(channels)) if channels else ""
    return pa.field(name, arrow, metadata={key: text.encode() for key, text in facts.items() if text} or None)


def fact(entry: pa.Field, key: bytes) -> str:
    """What a source knows of a column under `KIND`, `ASIDE`, `RATE`, `ITEMS` or `CHANNELS`; empty where nothing."""
    metadata: Mapping[bytes, bytes] = entry.metadata or {}
    return metadata.get(key, b"").decode()


def asides(schema: pa.Schema) -> list[pa.Field]:
    """The columns that stand aside."""
    return [entry for entry in schema if fact(entry, ASIDE)]


def modeled(schema: pa.Schema) -> list[pa.Field]:
    """The columns that are for the model: all that do not stand aside."""
    return [entry for entry in schema if not fact(entry, ASIDE)]
