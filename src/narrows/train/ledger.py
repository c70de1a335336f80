"""What many steps gave, added up where they are made: the loss, and whether one of them broke.

A GPU works through a queue of steps that the host fills. To ask each step for its loss would empty that queue, so sums
stay on the device until somebody wants to see a figure. What it does not know: how a step is made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sums:
    """What steps gave together, on the host.

    Args:
        mass: weight of their rows.
        loss: summed over rows; NaN or infinite where a step broke.
        norm: of the gradients, summed; likewise.
        spoilt: steps from the first broken one on.
    """

    mass: float
    loss: float
    norm: float
    spoilt: int


class Ledger:
    """Sums over steps, on a device.

    A number that is not finite leaves every later sum not finite: the sums themselves remember that a step broke.

    Args:
        device: where the steps are made.

    Attributes:
        halted: () float32, 1 in steps that are to move nothing: from the first broken one on, and on rows of no weight.
            Torch's fused optimizers take it as `found_inf`.
    """

    def __init__(self, device: torch.device) -> None:
        self.halted = torch.zeros((), device=device)
        self._spoilt = torch.zeros((), device=device)
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)  # as in `Sums`

    def enter(self, mass: Tensor, loss: Tensor, norm: Tensor) -> None:
        """Count a step: () mass of its rows, () loss in the mean over them, and () norm of its gradient."""
        mass, loss = mass.double(), loss.detach().double()
        self._sums += torch.stack([mass, mass * loss, norm.double()])
        spoilt = (self._sums - self._sums).sum() != 0.0  # what is not finite less itself is NaN
        self._spoilt += spoilt
        self.halted.copy_(spoilt | (mass == 0.0))

    def read(self) -> Sums:
        """The sums since this was last asked. Waits for the steps that are queued."""
        mass, loss, norm, spoilt = torch.cat([self._sums, self._spoilt[None].double()]).tolist()
        self._sums.zero_()
        self._spoilt.zero_()
        return Sums(mass, loss, norm, int(spoilt))
