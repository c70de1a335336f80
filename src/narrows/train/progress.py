"""What a user sees of training: a bar on a terminal, or a line an epoch.

All goes to standard error, so that results can be piped. The loop asks for a redraw ten times a second at most; no
thread of rich's own runs beside it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from narrows.train.settings import Record
from narrows.train.state import Place

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar(AbstractContextManager["Bar"]):
    """Shows how far a run is.

    Args:
        verbose: 0 nothing; 1 a bar, where standard error is a terminal; 2 a plain line an epoch.
        epochs: planned.
        rows: of an epoch, None where unknown.
    """

    def __init__(self, verbose: int, epochs: int, rows: int | None) -> None:
        self.verbose, self.epochs, self.rows = verbose, epochs, rows
        self._bar: Progress | None = None
        self._losses = ""
        self._start: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        if self.verbose == 1 and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._bar.add_task("", total=self.rows and self.epochs * self.rows, epoch="", losses="", speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.stop()

    def show(self, place: Place) -> None:
        """Redraw the bar."""
        if self._bar is None:
            return
        if self._start is None:
            self._start = place.rows, place.seconds
        rows, seconds = place.rows - self._start[0], place.seconds - self._start[1]
        speed = f"{rows / seconds:,.0f} rows/s" if seconds > 0 else ""
        epoch = f"epoch {min(place.epoch + 1, self.epochs)}/{self.epochs}"
        now = f"loss {place.loss / place.mass:.4g}" if place.mass and not self._losses else self._losses
        self._bar.update(self._bar.task_ids[0], completed=place.rows, epoch=epoch, losses=now, speed=speed)
        self._bar.refresh()

    def record(self, record: Record) -> None:
        """Show the losses of an epoch."""
        validation = f"  val {record['val_loss']:.4g}" if "val_loss" in record else ""
        self._losses = f"loss {record['loss']:.4g}{validation}"
        if self.verbose >= 2:
            when = f"epoch {record['epoch']}/{self.epochs}"
            print(f"{when}  {self._losses}  lr {record['lr']:.2g}  {record['seconds']:.1f} s", file=sys.stderr)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.fields[losses]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
    )
