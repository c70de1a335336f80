"""The folder of a run: its settings, its metrics, and a checkpoint from which it goes on exactly.

    run.json                 settings, versions, seed, machine, when it began and ended
    metrics.jsonl            a line for every record, flushed as it is written
    checkpoint.safetensors   the whole state, replaced in one piece

The model is worth more than its folder: once training runs, a full disk costs the checkpoint and a warning, not the
run. What is here may hold clocks and paths; nothing of it goes into a model file.
"""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from narrows import tensorfile, world
from narrows.errors import FitWarning, NarrowsError, SettingError
from narrows.files import atomic
from narrows.train.settings import Record, plain
from narrows.train.stops import FINISHED

# Settings that may change between a run and its continuation: those that go by the clock, which no run repeats anyway,
# and how processes work together, of which there may be fewer.
FREE = ("time_limit", "checkpoint_every", "sync")


@dataclass
class RunFolder:
    """A run's folder.

    Args:
        path: of the folder; made if it is not there.
        identity: what decides the outcome of the run, by name: JSON values, numbers of any kind, or texts to be.
        surroundings: the machine and the versions, as they are when this is made: training changes the threads.
    """

    path: Path
    identity: dict[str, Any]
    surroundings: dict[str, Any] = field(default_factory=lambda: _surroundings())

    def __post_init__(self) -> None:
        self.identity = json.loads(json.dumps(self.identity, default=_plain))

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Facts and tensors of the checkpoint to go on from; None, with a warning, where there is none.

        Raises:
            SettingError: when the checkpoint is of a run with other settings, naming those that differ.
            ModelFileError: when it is damaged or foreign.
        """
        if not self._checkpoint.exists():
            _warn(f"no checkpoint in {self.path}: training begins at the beginning")
            return None
        facts, tensors = tensorfile.read(self._checkpoint, "checkpoint")
        stored, wanted = facts.get("identity", {}), self.identity
        other = [name for name in sorted(stored.keys() | wanted.keys()) if stored.get(name) != wanted.get(name)]
        if other:
            now, then = (", ".join(f"{name}={of.get(name)!r}" for name in other) for of in (wanted, stored))
            raise SettingError(f"{now} for the run in {self.path}", f"{then}, as it began", "those, or a new folder")
        return facts, tensors

    def open(self, records: list[Record], resumed: bool) -> None:
        """Make the folder ready: its metrics end with `records`; an earlier run in it is replaced unless `resumed`.

        Replacing a run that could have gone on gives a warning. What a kill left half-written is removed.

        Raises:
            NarrowsError: when the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            if not resumed:
                if self._unfinished():
                    _warn(f"the unfinished run in {self.path} is begun anew; --resume would have gone on")
                self._checkpoint.unlink(missing_ok=True)
                self._description.unlink(missing_ok=True)
        except OSError as error:
            raise NarrowsError(f"no run folder {self.path}: {error.strerror}", hint="another folder") from None
        self._describe(**{"resumed" if resumed else "started": _now()}, **self.surroundings)
        with atomic(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(_line(record) for record in records), "utf-8")

    def save(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Replace the checkpoint; a warning where that cannot be done, the one before then stays."""
        identified = {"identity": self.identity, **facts}
        self._attempt(lambda: tensorfile.write(self._checkpoint, "checkpoint", identified, tensors))

    def record(self, record: Record) -> None:
        """Add a line to the metrics; a warning where that cannot be done."""
        self._attempt(lambda: self._append(_line(record)))

    def finish(self, reason: str) -> None:
        """Note why the run ended, and when."""
        self._attempt(lambda: self._describe(finished=_now(), reason=reason))

    @property
    def _checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def _description(self) -> Path:
        return self.path / "run.json"

    def _told(self) -> dict[str, Any]:
        """What run.json says; nothing where it is not there or not ours."""
        try:
            told = json.loads(self._description.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def _unfinished(self) -> bool:
        """Whether resuming would train on: a run that ended as it was to, or diverged, would only do so again."""
        return self._checkpoint.exists() and self._told().get("reason") not in (*FINISHED, "diverged")

    def _sweep(self) -> None:
        """Remove the temporary files of `atomic` that a kill left: `.checkpoint.<12 hex digits>.safetensors`."""
        for name in ("checkpoint.{}.safetensors", "run.{}.json", "metrics.{}.jsonl"):
            for left in self.path.glob("." + name.format("[0-9a-f]" * 12)):
                left.unlink()

    def _describe(self, **facts: Any) -> None:
        """Write run.json: what it said before, and these facts."""
        with atomic(self._description) as temporary:
            text = json.dumps({**self._told(), "settings": self.identity, **facts}, indent=2, sort_keys=True)
            temporary.write_text(text + "\n", "utf-8")

    def _append(self, line: str) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)

    def _attempt(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (NarrowsError, OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
            _warn(f"run folder {self.path}: {error or 'out of memory'}; training goes on without")


def shared(found: tuple[dict[str, Any], dict[str, Tensor]] | None) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What rank 0 has read, for all processes: others may not see its folder."""
    if world.size() == 1:
        return found
    message = world.given(b"" if found is None else tensorfile.pack(*found))
    return tensorfile.unpack(message) if message else None


def _warn(sentence: str) -> None:
    warnings.warn(FitWarning(sentence), stacklevel=3)


def _plain(value: Any) -> Any:
    """What JSON does not know: a number, or else the text of it."""
    return plain(value) if isinstance(value, Real) else str(value)


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _surroundings() -> dict[str, Any]:
    machine = {
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    versions = {name: version(name) for name in ("narrows", "torch", "safetensors")}
    return {"machine": machine, "versions": {"python": platform.python_version(), **versions}}
