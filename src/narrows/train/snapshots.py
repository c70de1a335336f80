"""Snapshots: what a module made of the same few rows before training, and after some of its epochs.

A look costs a pass of a few rows, happens between steps and draws nothing that a step would draw: training is the same,
bit for bit, with or without. Taken early and late, since most is learnt at first. What it does not know: what a look
is, and which rows it is taken of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

LOOKS = 5  # after epochs; one more before the first


@dataclass
class Snapshots:
    """The looks of a training run, by the epochs that went before.

    Args:
        look: what to keep, (rows, cells) float32, of the module as it stands; called in eval mode.
        taken: epochs done -> what was kept, on the CPU.
    """

    look: Callable[[], Tensor]
    taken: dict[int, Tensor] = field(default_factory=dict)

    def offer(self, module: nn.Module, done: int, planned: int) -> None:
        """Look at the module if it is time to.

        Args:
            module: in training.
            done: epochs.
            planned: epochs of the whole run.
        """
        if done in wanted(planned):
            module.eval()
            self.taken[done] = self.look().float().cpu().clone()
            module.train()

    def tensors(self) -> dict[str, Tensor]:
        """What was taken, by name, for a checkpoint."""
        return {str(done): tensor for done, tensor in self.taken.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.taken = {int(done): tensors[done] for done in sorted(tensors, key=int)}


def wanted(epochs: int) -> list[int]:
    """Epochs after which a run of so many is looked at: 0, 1 and some more, each about as many times the last."""
    return sorted({0, *(round(epochs ** (index / LOOKS)) for index in range(LOOKS))} - {epochs})
