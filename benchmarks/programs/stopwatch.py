"""What every timed program has: a folder with its settings and arrays, and a clock that tells on one line of JSON.

Standard library and NumPy alone, since any interpreter may run it; Linux, for `/proc`. A program is run as `python
PROGRAM FOLDER`, where `settings.json` lies. It trains, saves its model, tells, and after that, untimed, loads the saved
model and leaves in the folder what it makes of the validation rows, so that somebody else can judge it.
"""

from __future__ import annotations

import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def read(folder: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Settings, and the arrays they name: training and validation rows as they came, (n, ...) uint8 or float32."""
    settings = json.loads((folder / "settings.json").read_text())
    with np.load(settings["arrays"]) as arrays:
        return settings, arrays["train"], arrays["validation"]


def prepared(rows: np.ndarray) -> np.ndarray:
    """(n, cells) float32 in [0, 1]: pixels divided by 255, tables as they are."""
    flat = rows.reshape(len(rows), -1).astype(np.float32)
    return flat / 255 if rows.dtype == np.uint8 else flat


class Stopwatch:
    """Times since the process began, as long ago as the kernel says."""

    def __init__(self) -> None:
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2]  # a name may hold spaces
        self._began = int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
        self._times: dict[str, float] = {}
        self._epochs: list[tuple[float, int]] = []  # time and steps so far at the end of each

    def now(self) -> float:
        """Seconds since the process began."""
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - self._began, 4)

    def mark(self, moment: str) -> None:
        """Note the time of a moment: `loaded`, `fitted` or `saved`."""
        self._times[moment] = self.now()

    def epoch(self, steps: int) -> None:
        """Note the end of an epoch, its validation included, and the steps made so far."""
        self._epochs.append((self.now(), steps))

    def rates(self) -> dict[str, float]:
        """Steps a second and seconds an epoch: without the first, which compiles and warms up, if there are more."""
        first = self._epochs[0] if len(self._epochs) > 1 else (self._times["loaded"], 0)
        seconds, steps = (last - before for last, before in zip(self._epochs[-1], first, strict=True))
        epochs = max(1, len(self._epochs) - 1)
        return {"steps/s": round(steps / seconds, 3), "epoch seconds": round(seconds / epochs, 5)}

    def tell(self, loss: float, packages: tuple[str, ...], precision: str = "float32", **facts: Any) -> None:
        """Print everything: times, rates, memory and versions.

        Args:
            loss: of validation, as the program states it.
            packages: that the program rests on.
            precision: of its products.
            facts: of this program alone.
        """
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
        (first, _), (last, steps) = self._epochs[0], self._epochs[-1]
        told = self._times | {"first epoch": first, "last epoch": last, "epochs": len(self._epochs), "steps": steps}
        told |= self.rates() | {"loss": float(loss), "peak MB": peak, "precision": precision, **facts}
        print(json.dumps(told | {"versions": {package: version(package) for package in packages}}), flush=True)
