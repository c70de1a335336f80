"""Rows in an order in which every group is met equally often, however rare it is.

    an order of all rows -> of each group as many as its quota, each row as often as the others of its group -> shuffled

A row of a group of m rows with a quota of q comes q / m times: rounded down or up, which of the two changes with the
order. So a large group is seen without replacement, a part of it in every epoch, and a small one again and again; to
draw with replacement would leave out a third of the rows that could all be seen. What this file does not know: what
groups are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def even_quotas(counts: Tensor) -> Tensor:
    """(G,) whole numbers, alike but for one, whose sum is that of the counts (G,); 0 for groups without rows."""
    there = (counts > 0).long()
    groups, rows = int(there.sum()), int(counts.sum())
    if not groups:
        return there
    return there * (rows // groups) + there * (there.cumsum(0) <= rows % groups)


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
