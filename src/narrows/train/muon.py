"""Muon: momentum whose steps are made orthogonal, for weights that are matrices.

What this file does not know: which weights these are, and what else is trained beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from narrows.train.devices import gains_by_bfloat16

REPAYS_BFLOAT16 = 1 << 20  # products a Newton-Schulz term: 100 x 10 takes 178 us in bfloat16 against 23, 128 x 128 half
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the first, third and fifth power
REPAYS_GRAM = 2  # times as many columns as rows: 1.5 to 1.8 times sooner at 4 to 12 times as many, level at 2
NOTHING = 1e-15  # squared length of rows below which steps shorten
BLOCK = 200  # rows that are made orthogonal together at most; see `Muon`
LARGE = 1 << 17  # numbers from which, on a CPU, joining costs a copy and saves nothing: .96 of a wide step without it
NEWTON_SCHULZ = 3  # steps; 5 gained nothing on 784-1000-500-250-30, 2 of Amsel et al. (2025) were behind in equal time


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al. 2024), for matrices.

    Scaled to the step length of AdamW, as Liu et al. (2025, "Muon is scalable for LLM training") do, so that one
    learning rate suits both. torch.optim.Muon multiplies in bfloat16 whatever the processor: 27 times slower than
    float32 on CPUs without it (1.3 s against 0.05 s for a 1000 x 784 matrix). This one asks first.

    A matrix of more than 200 rows (on its smaller side) is made orthogonal in even blocks of rows, as tensor-parallel
    training does to save exchanges (Khaled et al. 2025, "MuonBP"), here to save products: they grow with the rows of a
    block, so that they cost no more than a step of as many rows of data, however large the matrix. Steps are shorter by
    the root of the number of blocks, which keeps their spectral norm within that of a whole one. On MNIST, networks
    784-1000-500-250-30 and variational 784-512-20 ended at the same losses after as many epochs (3.354 and 3.353;
    104.51 and 104.48) in .41 and .53 of the time, in float32 on two cores; blocks of 130 gained little more, and longer
    steps lost.

    Args:
        matrices: weights.
        weight_decay: decoupled, as in AdamW.
        views: how a weight is seen: (rows, columns), or (n, rows, columns) for as many matrices; as it is by default.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        weight_decay: float = 0.0,
        views: Mapping[Tensor, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(matrices, {"lr": 0.0, "momentum": 0.95, "weight_decay": weight_decay})
        self.found_inf: Tensor | None = None
        self._views = dict(views or {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient.

        Small ones of one shape are made orthogonal together, on whichever side they lie: in a mirrored autoencoder a
        layer of the encoder and its counterpart of the decoder. With a `found_inf` and a rate on the device, as torch's
        fused optimizers: none moves where that is 1.
        """
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(tuple(sorted(self._view(weight)[-2:])), []).append(weight)
            for shape, weights in alike.items():
                self._move(weights, shape, group)

    step.hooked = True  # type: ignore[attr-defined]  # else torch wraps it, for a profiler and hooks: 30 us a step

    def _view(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(self._views.get(weight, weight.shape))

    def _move(self, weights: list[Tensor], shape: tuple[int, ...], group: dict[str, Any]) -> None:
        """Move weights that are stacks of matrices of one shape (rows, columns), rows <= columns, or its transpose."""
        turned = [self._view(weight)[-2:] != shape for weight in weights]
        ahead = self._ahead(weights, group["momentum"])
        stacks = [_stacked(gradient, shape, turn) for gradient, turn in zip(ahead, turned, strict=True)]
        rate = 0.2 * math.sqrt(max(shape) / blocks(shape[0])) * group["lr"]
        if len(stacks) == 1 or (stacks[0].numel() >= LARGE and stacks[0].device.type == "cpu"):
            for weight, stack, turn in zip(weights, stacks, turned, strict=True):
                self._move_apart(weight, stack, turn, rate, group)
            return
        parts = torch.split(orthogonal_blocks(torch.cat(stacks)), [len(stack) for stack in stacks])
        for weight, part, turn in zip(weights, parts, turned, strict=True):
            self._apply(weight, (part.mT if turn else part).reshape(weight.shape), rate, group)

    def _move_apart(
        self, weight: Tensor, stack: Tensor, turn: bool, rate: float | Tensor, group: dict[str, Any]
    ) -> None:
        """Move a weight by itself; where it can be, in the very product that makes its step orthogonal.

        That spares three passes over numbers that lie in slow memory: .75 of the time of the rest, .55 where it turns.
        """
        wide, into = _even_blocks(stack), _even_blocks(_stacked(weight, tuple(stack.shape[-2:]), turn))
        if wide is None or into is None or not weight.is_contiguous() or isinstance(rate, Tensor) or not _narrow(wide):
            part = orthogonal_blocks(stack)
            self._apply(weight, (part.mT if turn else part).reshape(weight.shape), rate, group)
        else:
            into.baddbmm_(factor(wide), wide, beta=1 - group["lr"] * group["weight_decay"], alpha=-rate)

    def _apply(self, weight: Tensor, update: Tensor, rate: float | Tensor, group: dict[str, Any]) -> None:
        """Decay a weight and move it along its update."""
        decay = group["weight_decay"]
        if not isinstance(rate, Tensor):
            if decay:
                weight.mul_(1 - group["lr"] * decay)
            weight.add_(update, alpha=-rate)
            return
        moved = torch.addcmul(weight * (1 - group["lr"] * decay) if decay else weight, update, rate, value=-1.0)
        weight.copy_(moved if self.found_inf is None else torch.where(self.found_inf == 1.0, weight, moved))

    def _ahead(self, weights: list[Tensor], momentum: float) -> list[Tensor]:
        """The gradients, averaged over steps and a step ahead (Nesterov), in their place: nobody asks again."""
        gradients = [cast(Tensor, weight.grad) for weight in weights]
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["average"] = torch.zeros_like(weight)
        averages = [self.state[weight]["average"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        torch._foreach_lerp_(gradients, averages, momentum)
        return gradients


def blocks(rows: int) -> int:
    """In how many blocks a matrix of so many rows, no more than it has columns, is made orthogonal.

    As few as BLOCK allows; up to twice as many where those are even, which spares a copy.
    """
    fewest = -(-rows // BLOCK)
    return next((parts for parts in range(fewest, 2 * fewest) if rows % parts == 0), fewest)


def _stacked(weight: Tensor, shape: tuple[int, ...], turn: bool) -> Tensor:
    """A weight, or its gradient, as (n, *shape)."""
    return weight.reshape(-1, *shape[::-1]).mT if turn else weight.reshape(-1, *shape)


def _even_blocks(stack: Tensor) -> Tensor | None:
    """Matrices (n, rows, columns) as their blocks of rows, in the same memory; None where there is no such view."""
    count, rows, columns = stack.shape
    parts = blocks(rows)
    if rows % parts or (count > 1 and parts > 1 and not stack.is_contiguous()):
        return None
    return stack.view(-1, rows // parts, columns)


def orthogonal_blocks(wide: Tensor) -> Tensor:
    """Matrices (n, rows, columns), rows <= columns, whose blocks of rows are each made orthogonal (see `orthogonal`).

    Blocks are as even as can be: rows of zeros, which stay zeros, make up for what the last one lacks.
    """
    count, rows, columns = wide.shape
    if (parts := blocks(rows)) == 1:
        return orthogonal(wide)
    height = -(-rows // parts)
    lacking = parts * height - rows
    padded = nn.functional.pad(wide, (0, 0, 0, lacking)) if lacking else wide  # it copies, whatever it adds
    return orthogonal(padded.reshape(-1, height, columns)).reshape(count, -1, columns)[:, :rows]


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the closest matrix with orthonormal rows or columns, all singular values near 1; of each, if stacked.

    A quintic Newton-Schulz iteration with the coefficients of Jordan et al. (2024): few steps, singular values
    between about 0.7 and 1.2, those that were tiny still below. They are first divided by the fourth root of the sum of
    their fourth powers, which is at least the largest of them and, where many are alike, far nearer to it than the
    usual root of the sum of squares, so that fewer stay tiny; it costs no product. Matrices of far more columns than
    rows, or of far more rows than columns, are iterated on the small side alone (see `factor`).
    """
    rows, columns = matrix.shape[-2:]
    wide = matrix if rows <= columns else matrix.mT
    wide = factor(wide) @ wide if _narrow(wide) else _by_rows(wide)
    return wide if rows <= columns else wide.mT


def factor(wide: Tensor) -> Tensor:
    """The matrix (rows, rows) that makes a wide one nearly orthogonal, as a factor from the left (Zhang et al. 2026).

    Each step of the iteration multiplies by a polynomial p(gram), which commutes with the Gram matrix: its next value
    is p gram p. One large product, and another for the result, in place of six; nine small ones in place of three. Of
    the wide matrices, which lie in slow memory, none is made: what divides them divides the small ones.
    """
    add_product = torch.addmm if wide.ndim == 2 else torch.baddbmm
    gram, size = _gram_and_size(wide)
    whole = 1 / size.sqrt()
    gram = gram / size
    for step in range(NEWTON_SCHULZ):
        term = add_product(gram, gram, gram, beta=QUINTIC[1], alpha=QUINTIC[2])
        term.diagonal(dim1=-2, dim2=-1).add_(QUINTIC[0])
        whole = whole @ term if step else whole * term
        if step < NEWTON_SCHULZ - 1:
            gram = term @ gram @ term
    return whole


def _by_rows(wide: Tensor) -> Tensor:
    """The iteration on wide matrices, the first step with the Gram matrix that tells their size."""
    add_product = torch.addmm if wide.ndim == 2 else torch.baddbmm
    wide = wide.bfloat16() if _in_bfloat16(wide) else wide
    gram, size = _gram_and_size(wide)
    wide, gram = wide / size.sqrt(), gram / size
    for step in range(NEWTON_SCHULZ):
        gram = wide @ wide.mT if step else gram
        wide = add_product(
            wide, add_product(gram, gram, gram, beta=QUINTIC[1], alpha=QUINTIC[2]), wide, beta=QUINTIC[0]
        )
    return wide


def _gram_and_size(wide: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix, and what it is divided by: the root of the sum of the squares of its eigenvalues."""
    gram = wide @ wide.mT
    # the largest number of a Gram matrix lies on its diagonal; without it, the norm's squares leave single precision
    peak = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None].clamp_min(NOTHING)
    return gram, peak * torch.linalg.vector_norm(gram / peak, dim=(-2, -1), keepdim=True).clamp_min(NOTHING)


def _narrow(wide: Tensor) -> bool:
    """Whether matrices are iterated on their small side; in bfloat16 that drifts away from their rows."""
    rows, columns = wide.shape[-2:]
    return columns > REPAYS_GRAM * rows and not _in_bfloat16(wide)


def _in_bfloat16(wide: Tensor) -> bool:
    """Whether products are taken in bfloat16."""
    rows, columns = wide.shape[-2:]
    return wide.dtype == torch.bfloat16 or (rows * rows * columns >= REPAYS_BFLOAT16 and gains_by_bfloat16(wide.device))


def orthogonalizing(m: int, n: int) -> int:
    """Multiplications that make an (m, n) matrix orthogonal, m <= n."""
    parts = blocks(m)
    height = -(-m // parts)
    if n > REPAYS_GRAM * height:
        return parts * (2 * height * height * n + (4 * NEWTON_SCHULZ - 3) * height**3)
    return parts * NEWTON_SCHULZ * (2 * height * height * n + height**3)
