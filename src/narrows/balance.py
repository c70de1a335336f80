"""Rows in an order in which every group is met equally often, however rare it is.

    an order of all rows -> of each group as many as its quota, each row as often as the others of its group -> shuffled

A row of a group of m rows with a quota of q comes q / m times: rounded down or up, which of the two changes with the
order. So a large group is seen without replacement, a part of it in every epoch, and a small one again and again; to
draw with replacement would leave out a third of the rows that could all be seen. What this file does not know: what
groups are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Balance:
    """Which groups rows belong to, and how many rows of each an order is to have.

    Args:
        groups: (n,) int64, from 0 to G - 1.
        quotas: (G,) int64.
    """

    groups: Tensor
    quotas: Tensor


def shares(counts: Tensor, power: float = 1.0) -> Tensor:
    """(G,) float64 share of the draws that each group gets: count^(1 - power), so that a power of 1 makes all alike.

    A power of 0 leaves shares as they are; one of 0.5 takes square roots (Mahajan et al. 2018). 0 for no rows.
    """
    weights = torch.where(counts > 0, counts.double().clamp_min(1).pow(1 - power), 0.0)
    return weights / weights.sum().clamp_min(1e-300)


def quotas_of(counts: Tensor, power: float = 1.0) -> Tensor:
    """(G,) whole numbers in these shares, whose sum is that of the counts (G,): by largest remainders."""
    wanted = shares(counts, power) * counts.sum()
    quotas = wanted.floor()
    left = round(float(counts.sum() - quotas.sum()))
    first = (wanted - quotas).argsort(descending=True, stable=True)[:left]
    quotas[first] += 1
    return quotas.long()


def evened(order: Tensor, groups: Tensor, quotas: Tensor, draws: torch.Generator) -> Tensor:
    """(sum of quotas,) the rows of an order, each as often as the quota of its group has it, in a new order.

    Args:
        order: (n,) int64 rows, in a random order: it decides which rows of a group come once more than others.
        groups: (n,) int64 group of each row of the order, from 0 to G - 1.
        quotas: (G,) int64 rows to take of each group; those of a group without rows are not taken.
        draws: where the new order comes from.
    """
    by_group = groups.argsort(stable=True)
    sizes = torch.bincount(groups, minlength=len(quotas))
    size, quota = sizes[groups[by_group]], quotas[groups[by_group]]
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(order)) - starts[groups[by_group]]
    times = (place + 1) * quota // size - place * quota // size
    taken = order[by_group].repeat_interleave(times)
    return taken[torch.randperm(len(taken), generator=draws)]
