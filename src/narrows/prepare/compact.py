"""Many values as tensors and back: the levels of a category with many, which would be a megabyte of JSON and more.

texts            their UTF-8 bytes, one after the other, and the length of each
whole numbers    themselves
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST = 1 << 63  # whole numbers below which fit a tensor


def values_to_tensors(values: list[Any]) -> dict[str, Tensor]:
    """`text` (bytes) uint8 and `lengths` (n,) int32, or `numbers` (n,) int64; empty for values of another sort."""
    if values and all(isinstance(value, str) for value in values):
        texts = [value.encode() for value in values]
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.int32)
        return {"text": torch.from_numpy(np.frombuffer(bytearray(b"".join(texts)), np.uint8)), "lengths": lengths}
    if values and all(type(value) is int and -MOST <= value < MOST for value in values):
        return {"numbers": torch.tensor(values, dtype=torch.int64)}
    return {}


def values_from_tensors(tensors: Mapping[str, Tensor]) -> list[Any]:
    """The values that `values_to_tensors` wrote.

    Raises:
        ValueError: for tensors that it does not write.
    """
    kinds = {name: (tensor.dtype, tensor.ndim) for name, tensor in tensors.items()}
    if kinds == {"numbers": (torch.int64, 1)}:
        return list(tensors["numbers"].tolist())
    if kinds != {"text": (torch.uint8, 1), "lengths": (torch.int32, 1)}:
        raise ValueError("levels that are neither texts nor whole numbers")
    text, lengths = tensors["text"].numpy().tobytes(), tensors["lengths"].tolist()
    if sum(lengths) != len(text) or min(lengths, default=0) < 0:
        raise ValueError("levels that are longer or shorter than their text")
    return [text[start:stop].decode() for start, stop in pairwise(accumulate(lengths, initial=0))]
