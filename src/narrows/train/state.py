"""Where a training run stands: all that must be known to go on from here as if nothing had happened.

Counters and history are plain JSON, the rest is tensors; a checkpoint is the two together. What it does not know: the
data (only the position in its stream) and the clock, apart from the seconds used up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from narrows import world
from narrows.errors import ModelFileError, SettingError
from narrows.schema import Batch
from narrows.tensorfile import under
from narrows.train.optimizers import Optimizer
from narrows.train.snapshots import Snapshots
from narrows.train.stops import History, improves


class Heard(NamedTuple):
    """What a step came to, over the rows of all processes that took it together.

    Args:
        loss: mean over the rows, weighted.
        mass: weight of the rows; 0 for a step without any, which moves nothing.
        rows: number of them.
    """

    loss: float
    mass: float
    rows: int


@dataclass
class Place:
    """The counters of a run.

    Args:
        epoch: epochs finished.
        step: steps taken.
        rows: rows seen.
        epoch_rows: those of them in the present epoch.
        position: behind the last batch of the present epoch, as its stream gave it.
        steps: taken since the last record.
        mass: weight of the rows seen since the last record.
        loss: summed over them.
        lr: of the last step.
        seconds: spent so far.
    """

    epoch: int = 0
    step: int = 0
    rows: int = 0
    epoch_rows: int = 0
    position: dict[str, int] | None = None
    steps: int = 0
    mass: float = 0.0
    loss: float = 0.0
    lr: float = 0.0
    seconds: float = 0.0

    def advance(self, position: dict[str, int], heard: Heard) -> None:
        """Count a step."""
        self.step += 1
        self.steps += 1
        self.rows += heard.rows
        self.epoch_rows += heard.rows
        self.mass += heard.mass
        self.loss += heard.mass * heard.loss
        self.position = position

    def add(self, mass: float, loss: float) -> None:
        """Count what steps gave that told nothing: the weight of their rows, and the loss summed over them."""
        self.mass += mass
        self.loss += loss

    def stand(self, positions: Sequence[dict[str, int] | None]) -> None:
        """Go on from this process's own position, or from the beginning of the epoch where there is none."""
        if len(positions) == world.size():
            self.position = positions[world.rank()]
        else:
            self.rows, self.epoch_rows, self.position = self.rows - self.epoch_rows, 0, None

    def close_record(self) -> None:
        """Begin counting for the next record."""
        self.steps, self.mass, self.loss = 0, 0.0, 0.0

    def close_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        self.epoch, self.epoch_rows, self.position = self.epoch + 1, 0, None


def mass_of(batch: Batch) -> float:
    """What a batch counts for in a mean over batches: its rows, weighted."""
    return float(len(batch)) if batch.weight is None else batch.weight.sum().item()


@dataclass
class State:
    """A module in training, and all that belongs to it.

    Args:
        module: in training.
        optimizer: of its weights.
        place: how far it is.
        history: of its epochs.
        best: weights and buffers of the best record, by name; empty before the first.
        last: weights at the last record, by name; kept only where their change decides.
        snapshots: taken on the way; None without any.
    """

    module: nn.Module
    optimizer: Optimizer
    place: Place = field(default_factory=Place)
    history: History = field(default_factory=History)
    best: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    snapshots: Snapshots | None = None

    def close_record(self, record: dict[str, int | float]) -> None:
        """Add a record, and keep the weights if they are the best so far."""
        better = improves(self.history, record)
        self.history.records.append(record)
        self.place.close_record()
        if better:
            self.history.best = len(self.history.records) - 1
            self.best = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}

    def change(self) -> float | None:
        """How far the weights moved since this was last asked, relative to their norm; None the first time."""
        now = {name: weight.detach().clone() for weight, name in self.optimizer.names.items()}
        before, self.last = self.last, now
        if not before:
            return None
        # Both sums in the weights' own order: a loaded checkpoint comes in another, and rounding would tell.
        moved = [weight - before[name] for name, weight in now.items()]
        return _norm(moved) / max(_norm([before[name] for name in now]), 1e-30)

    def restore_best(self) -> bool:
        """Put the best weights back into the module; False where there are none."""
        if self.best:
            self.module.load_state_dict(self.best)
        return bool(self.best)

    def facts(self, positions: Sequence[dict[str, int] | None] = ()) -> dict[str, Any]:
        """Counters and history, as plain JSON values, and where each process stands in its stream, by rank."""
        return {"place": asdict(self.place), "history": asdict(self.history), "positions": [*positions]}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        groups = {
            "module": self.module.state_dict(),
            "best": self.best,
            "last": self.last,
            "optimizer": self.optimizer.tensors(),
            "snapshots": self.snapshots.tensors() if self.snapshots else {},
        }
        return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    def load(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], common: bool = True) -> None:
        """Take over what `facts` and `tensors` gave.

        Args:
            facts: of a checkpoint.
            tensors: of it.
            common: whether all processes go through one stream; else each goes on from where it stood, if there are
                as many as before, and all begin the epoch anew, if not.

        Raises:
            SettingError: when they belong to a module of another make; nothing is changed then.
            ModelFileError: when they are no state at all.
        """
        module, best = under("module/", tensors), under("best/", tensors)
        optimizer, last = under("optimizer/", tensors), under("last/", tensors)
        _compare(module, self.module)
        if best:
            _compare(best, self.module)
        try:
            self.place, self.history = Place(**facts["place"]), History(**facts["history"])
            self.optimizer.load(optimizer)
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"a checkpoint without {error}", hint="training from the beginning") from None
        if not common:
            self.place.stand(facts.get("positions") or [self.place.position])
        self.module.load_state_dict(module)
        device = self.optimizer.weights[0].device
        self.best = {name: tensor.to(device) for name, tensor in best.items()}
        self.last = {name: tensor.to(device) for name, tensor in last.items()}
        if self.snapshots:
            self.snapshots.load(under("snapshots/", tensors))


def _norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))


def _compare(stored: Mapping[str, Tensor], module: nn.Module) -> None:
    wanted = module.state_dict()
    for name in sorted(stored.keys() | wanted.keys()):
        shapes = [tuple(of[name].shape) if name in of else None for of in (stored, wanted)]
        if shapes[0] != shapes[1]:
            raise SettingError(f"weights {name} of shape {shapes[0]} in the checkpoint", f"shape {shapes[1]}")
