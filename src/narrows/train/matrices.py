"""Weights as the matrices they multiply by, and how often a row uses each: what Muon and estimates of work go by.

A convolution's kernel is one matrix (outputs, inputs x taps), each gate of a recurrent layer one of its own. Tables of
embeddings, positions, scales and biases are no matrices. What it does not know: optimizers and data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from narrows.train.members import find_stacks

Uses = Mapping[Tensor, int]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
ONE_BY_ONE = 4  # times the work of a product that a recurrent one is: its steps wait for each other and share nothing


def matrix_views(module: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """Each weight that multiplies, and its shape as a matrix (rows, columns) or as several (n, rows, columns).

    Of layers known to torch; of others, weights of two axes with `weight` in their name.
    """
    stacks = find_stacks(module)
    views: dict[Tensor, tuple[int, ...]] = {}
    for layer in module.modules():
        for name, weight in layer.named_parameters(recurse=False):
            if weight in stacks.matrices:
                views[weight] = tuple(weight.shape)
            elif isinstance(layer, CONVOLUTIONS) and name == "weight":
                view = (layer.groups, weight.shape[0] // layer.groups, weight[0].numel())
                views[weight] = view[1:] if layer.groups == 1 else view
            elif isinstance(layer, nn.RNNBase) and weight.ndim == 2:
                views[weight] = (-1, layer.hidden_size, weight.shape[1]) if "hr" not in name else tuple(weight.shape)
            elif weight.ndim == 2 and "weight" in name and not isinstance(layer, TABLES):
                views[weight] = tuple(weight.shape)
    return {weight: _sized(weight, view) for weight, view in views.items()}


def _sized(weight: Tensor, view: tuple[int, ...]) -> tuple[int, ...]:
    """The view without -1."""
    return view if view[0] > 0 else (weight.numel() // (view[1] * view[2]), *view[1:])


def count_uses(module: nn.Module, forward: Callable[[], Any]) -> dict[Tensor, int]:
    """How often each weight that multiplies is used for one row: once in a dense layer, at every position of a grid.

    Uses in recurrent layers count four times over, which is what they take.

    Args:
        module: whose weights are meant; in eval mode meanwhile, as a row alone has no variance and nothing is drawn.
        forward: runs it on one row.
    """
    uses: dict[Tensor, int] = {}
    views, training = matrix_views(module), module.training

    def count(layer: nn.Module, _: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        for weight in layer.parameters(recurse=False):
            if weight in views and isinstance(first, Tensor) and first.ndim:
                uses[weight] = uses.get(weight, 0) + max(1, _places(layer, first))

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if list(layer.parameters(recurse=False))]
    try:
        with torch.no_grad():
            module.eval()
            forward()
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return uses


def _places(layer: nn.Module, output: Tensor) -> int:
    """Positions at which a layer multiplied, from its output of one row; recurrent ones weighed by what they cost."""
    if isinstance(layer, CONVOLUTIONS):
        return output[0, 0].numel()
    places = output.numel() // output.shape[-1]
    return places * ONE_BY_ONE if isinstance(layer, nn.RNNBase) else places
