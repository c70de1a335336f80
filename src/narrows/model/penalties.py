"""What is asked of a pass beside its likelihood: penalties, and opponents that train against the autoencoder.

A penalty is handed the whole pass and answers with what it costs: a number for each row, or one for the batch. It
trains and never scores. One with weights of its own is an opponent: those weights follow `opposing` alone, and the
penalty itself must read them through `frozen`, so that one backward pass gives each side its own gradient and both move
in the same step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from narrows.model.latents import Code, Latent
from narrows.model.likelihoods import Prediction
from narrows.schema import Batch, Schema


@dataclass(frozen=True)
class Pass:
    """One forward pass, as penalties see it.

    Args:
        batch: the uncorrupted rows.
        view: the rows that the encoder saw.
        code: of the rows.
        p: what the decoder made of the code.
        decode: codes (K, [E,] B, size) -> what they stand for.
    """

    batch: Batch
    view: Batch
    code: Code
    p: Prediction
    decode: Callable[[Tensor], Prediction]


@dataclass(frozen=True)
class Site:
    """Where a penalty will stand: what it may need to know to be built.

    Args:
        schema: of the prepared data.
        latent: whose codes it will see.
        encoder: of the model.
        members: networks side by side; None for one.
        critic: a fresh network over rows, of the kind that the encoder is: Batch -> ([E,] B, features).
        embed: Batch -> what the encoder reads.
    """

    schema: Schema
    latent: Latent
    encoder: nn.Module
    members: int | None
    critic: Callable[[int], nn.Module]
    embed: nn.Module


class Penalty(nn.Module, ABC):
    """A cost of a pass.

    Attributes:
        name: of its term, under which a recipe weighs it.
        judges: whether it also counts in the validation loss, which decides when to stop and which weights to keep. Not
            for one that needs gradients, or that an opponent decides: its values before and after cannot be compared.
    """

    name: str
    judges = False

    @abstractmethod
    def forward(self, passed: Pass) -> Tensor:
        """([E,] B) cost of each row, weighted as the row is; or () of the batch, summed over members."""

    def opposing(self, passed: Pass) -> Tensor | None:
        """() the loss of the penalty's own weights; None for a penalty without."""
        return None


def frozen(module: nn.Module, *arguments: Any) -> Any:
    """What a module answers, as if its weights were constants: gradients flow to the arguments only."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, weights, arguments)


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Kernels whose gradients have gradients; the fast ones of attention and of recurrent layers have none."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
