"""A recorder for the CPU that forgets what a CUDA graph forgets: all Python, all numbers on the host.

It notes every operation of torch with the tensors it read and wrote, and repeats these, on the same memory. What would
make a GPU wait or a recording fail is an error here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# what reads a number from the device, gives a shape that depends on numbers, or brings new numbers from the host
WAITED_FOR = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique2",
    "aten::lift_fresh",
    "aten::is_nonzero",
    "aten::equal",
}
RESHAPED = {"aten::transpose_", "aten::t_", "aten::squeeze_", "aten::unsqueeze_"}  # on the host alone


def tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def places(values: Any) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors(values)}


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        flags = name == "aten::index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in WAITED_FOR or flags or (name == "aten::repeat_interleave" and kwargs.get("output_size") is None):
            raise RuntimeError(f"{name} would wait for the GPU")
        # the same memory, whatever shape Python gives these tensors later on
        read = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs))
        there, out = places(read), func(*args, **kwargs)
        if name not in RESHAPED:
            self.notes.append((func, *read, [self.fresh(leaf, there) for leaf in tree_leaves(out)]))
        return out

    @staticmethod
    def fresh(leaf: Any, there: set[int]) -> torch.Tensor | None:
        """What an operation made; None for what it wrote in place, or only looked at."""
        made = isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in there
        return leaf.detach() if made else None

    def repeat(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, fresh in self.notes:
                for tensor, value in zip(fresh, tree_leaves(func(*args, **kwargs)), strict=True):
                    if tensor is not None and value is not None:
                        tensor.copy_(value)


def taped(act: Callable[[], None]) -> Callable[[], None]:
    """As `narrows.train.graphs.recorded`. A tape runs when it is recorded, so the first repetition is none."""
    tape = Tape()
    with tape:
        act()
    done = [True]

    def again() -> None:
        if done:
            done.clear()
        else:
            tape.repeat()

    return again
