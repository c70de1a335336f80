"""Draws of one of several, by the logits of all."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(...) the place of one of the last axis' entries, drawn with chances that are the softmax of (..., n) logits.

    By the largest of logits with Gumbel noise: no chances need to be summed up, and -inf is never drawn.
    """
    return (logits / temperature - torch.empty_like(logits).exponential_().log()).argmax(-1)
