"""The record of a training run, and when it gives a reason to stop.

Every rule is a function of the record alone, so a resumed run stops where the uninterrupted one would have. Rules
look at the end of each epoch, or after every 10,000 steps of longer ones; the time limit is the loop's.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from narrows import world
from narrows.train.optimizers import half_way
from narrows.train.settings import Record, Training

FINISHED = ("epochs", "loss", "converged", "patience", "callback")  # resuming such a run changes nothing


@dataclass
class History:
    """What happened in training.

    Args:
        records: one an epoch: `epoch` (from 1), `step` and `rows` (so far), `loss` (mean over the epoch's rows, while
            the weights moved), `val_loss` where there are validation rows, `lr` (of the last step), `seconds` (so far),
            and with a tolerance `change` (of the weights, relative).
        reason: why training stopped: epochs, loss, converged, patience, time, callback, interrupted or diverged.
        best: position of the record whose weights were kept; None where none was finished.
    """

    records: list[Record] = field(default_factory=list)
    reason: str = ""
    best: int | None = None

    @property
    def best_record(self) -> Record | None:
        """The record of the weights that were kept."""
        return None if self.best is None else self.records[self.best]

    def shared(self) -> History:
        """Rank 0's, for all processes; itself where there is one."""
        if world.size() == 1:
            return self
        return History(**json.loads(world.given(json.dumps(asdict(self)).encode())))

    def facts(self) -> dict[str, Any]:
        """What may stand in a model file: everything but the clock."""
        timeless = [{key: value for key, value in record.items() if key != "seconds"} for record in self.records]
        return {"reason": self.reason, "best": self.best, "records": timeless}


def watched(record: Record) -> float:
    """The loss that decides: of the validation rows, or without them of the training rows."""
    return record.get("val_loss", record["loss"])


def improves(history: History, record: Record) -> bool:
    """Whether a record's weights are to be kept in place of the best so far: without validation, always."""
    best = history.best_record
    return best is None or "val_loss" not in record or watched(record) < watched(best)


def stop_reason(history: History, training: Training, epochs: int) -> str:
    """Why to stop after the last record; empty to go on.

    Args:
        history: at least one record.
        training: `stop_loss`, `tolerance`, `patience` and `schedule` decide.
        epochs: planned.
    """
    record = history.records[-1]
    if training.stop_loss is not None and watched(record) <= training.stop_loss:
        return "loss"
    if training.tolerance is not None and _converged(history.records, training.tolerance):
        return "converged"
    if training.patience is not None and _waited(history, training, epochs) >= training.patience:
        return "patience"
    return ""


def _converged(records: list[Record], tolerance: float) -> bool:
    """Whether the training loss, or the weights, changed by less than this share since the record before."""
    if len(records) < 2:
        return False
    before, now = records[-2]["loss"], records[-1]["loss"]
    change = abs(now - before) / max(abs(before), 1e-300)
    return min(change, records[-1].get("change", math.inf)) < tolerance


def _waited(history: History, training: Training, epochs: int) -> int:
    """Records since the last better one, counted from where the learning rate has fallen to half its peak.

    While the rate is high, the loss jumps about and often rises; most of the gain comes as the rate falls. To stop
    then would be to throw that gain away. A constant rate never falls, so there every record counts.
    """
    if "val_loss" not in history.records[-1] or history.best is None:
        return 0
    begun = half_way(training.schedule) * epochs
    settled = sum(record["epoch"] <= begun for record in history.records)
    return len(history.records) - max(history.best + 1, settled)
