"""Ensembles in training: which weights are stacked along a members' axis, and clipping member by member.

The loss is the sum over members, so the gradient of each is what it would be alone; what is left for an optimizer is
to treat each slice of a stacked weight as the weight it stands for. What it does not know: how members are combined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrows.networks.dense import MemberLinear


@dataclass(frozen=True)
class Stacks:
    """The stacked weights of a module; empty for a single network.

    Args:
        matrices: (E, inputs, outputs) of `MemberLinear` layers: a matrix for each of E members.
        vectors: (E, 1, n), their biases and learnt scales: a vector for each.
    """

    matrices: frozenset[Tensor] = frozenset()
    vectors: frozenset[Tensor] = frozenset()

    def __contains__(self, weight: Tensor) -> bool:
        return weight in self.matrices or weight in self.vectors

    def axes(self, weight: Tensor) -> int:
        """Axes of a weight, as each member sees it."""
        if weight in self.matrices:
            return 2
        return 1 if weight in self.vectors else weight.ndim


def find_stacks(module: nn.Module) -> Stacks:
    """The stacked weights of a module. Other weights of three axes, such as those of convolutions, are not."""
    matrices = {layer.weight for layer in module.modules() if isinstance(layer, MemberLinear)}
    heads = {(len(weight), 1) for weight in matrices}
    vectors = {w for w in module.parameters() if w.ndim == 3 and tuple(w.shape[:2]) in heads and w not in matrices}
    return Stacks(frozenset(matrices), frozenset(vectors))


def shorten_members(gradients: list[Tensor], limit: float | None) -> Tensor:
    """As `clip_members`, without asking the device for the norms: () their common norm."""
    each = [torch.linalg.vector_norm(gradient, dim=(1, 2)) for gradient in gradients]
    norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
    if limit is not None:
        shares = (limit / norms).clamp_max(1.0)[:, None, None]
        for gradient in gradients:
            gradient.mul_(shares)
    common: Tensor = torch.linalg.vector_norm(norms)
    return common


def clip_members(gradients: list[Tensor], limit: float | None) -> float:
    """Shorten the gradient of each member whose norm is above `limit`.

    Args:
        gradients: (E, m, n) of stacked weights.
        limit: of each member's norm over all of them; None for none.

    Returns:
        The common norm, NaN or infinite where they are; nothing is shortened then.
    """
    each = [torch.linalg.vector_norm(gradient, dim=(1, 2)) for gradient in gradients]
    norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
    common = float(torch.linalg.vector_norm(norms))
    if limit is not None and limit < common < math.inf:
        shares = (limit / norms).clamp_max(1.0)[:, None, None]
        for gradient in gradients:
            gradient.mul_(shares)
    return common
