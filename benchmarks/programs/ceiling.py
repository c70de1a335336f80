"""The measured ceiling of matrix products: the best of large square ones, on as many threads as torch takes.

Prints one line of JSON: GFLOP/s in float32 and, where the processor multiplies in it, bfloat16. Run by `speed.py`.
"""

from __future__ import annotations

import json
import time

import torch

from narrows.train.devices import has_bfloat16

SIDE, REPEATS = 2048, 20


def rate(dtype: torch.dtype, side: int = SIDE, repeats: int = REPEATS) -> float:
    """GFLOP/s, two operations for each multiplication."""
    left, right = (torch.rand(side, side).to(dtype) for _ in range(2))
    product = left @ right
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        torch.matmul(left, right, out=product)
        best = min(best, time.perf_counter() - began)
    return round(2 * side**3 / best / 1e9, 1)


def main() -> None:
    """Measure and tell."""
    types = [torch.float32] + ([torch.bfloat16] if has_bfloat16(torch.device("cpu")) else [])
    rates = {str(dtype).removeprefix("torch."): rate(dtype) for dtype in types}
    print(json.dumps(rates | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
