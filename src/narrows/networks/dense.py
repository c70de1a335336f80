"""Dense encoder and decoder: stacks of linear layers over the last axis, for any leading axes.

An ensemble of E networks is one network whose weights have a leading axis: `members=E` costs one batched product a
layer instead of E trainings in turn. Members share nothing but the data; each starts from its own random weights.
What this file does not know: what the inputs mean, and what the outputs are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.world import drawn

Activation = Literal["identity", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh", "sigmoid"]
Norm = Literal["none", "layer", "batch"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
WIDEST = 1 << 20  # units of a layer, numbers of a code: more is a slip of the keyboard
DEEPEST = 1 << 10  # layers, blocks of a stage: a million would take hours to build
RECTIFIERS = {"relu", "leaky_relu", "elu", "gelu", "silu"}


def activation(name: str) -> nn.Module:
    """The activation of this name, as a module.

    Raises:
        SettingError: for a name that is not in `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise SettingError(f"activation {name!r}", f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class Dropout(nn.Module):
    """Silences a share of the units in training and raises the others (Srivastava et al. 2014).

    As torch's own, but for several processes that share a batch: each row then loses what it would lose in one.

    Args:
        share: of the units, from 0 up to, not including, 1.
        rows: the axis of rows.
    """

    def __init__(self, share: float, rows: int) -> None:
        super().__init__()
        self.share, self.rows = share, rows

    def forward(self, x: Tensor) -> Tensor:
        """As it came, or in training with zeros."""
        if not (self.training and self.share):
            return x
        return x * (drawn(torch.rand, *x.shape, rows=self.rows, device=x.device) >= self.share) / (1 - self.share)


@dataclass(frozen=True)
class Dense:
    """Settings of a dense encoder-decoder pair. The field texts are also the command line's help."""

    hidden: tuple[int, ...] | None = None
    """Widths of the encoder's hidden layers, such as 256 64; by default two that step down from the data's width."""

    decoder: tuple[int, ...] | None = None
    """Widths of the decoder's hidden layers; by default the encoder's, mirrored."""

    activation: Activation = "silu"
    """Between layers; SiLU reached lower errors than ReLU in the same time on MNIST."""

    norm: Norm = "none"
    """Normalization before each activation: layer (without scale and shift, which the next layer absorbs) or batch."""

    dropout: float = 0.0
    """Share of hidden units silenced in training, after each activation."""

    residual: bool = False
    """Add a hidden layer's input to its output wherever both have the same width (He et al. 2016)."""

    members: int | None = None
    """Train this many networks side by side as an ensemble; by default one."""

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            SettingError: naming the setting.
        """
        activation(self.activation)
        for name in ("hidden", "decoder"):
            widths = getattr(self, name)
            if widths is not None and any(not isinstance(w, int) or not 0 < w <= WIDEST for w in widths):
                raise SettingError(f"{name}={widths!r}", f"widths from 1 to {WIDEST:,}, such as (256, 64)")
            if widths is not None and len(widths) > DEEPEST:
                raise SettingError(f"{name} of {len(widths):,} layers", f"at most {DEEPEST:,}")
        if self.norm not in ("none", "layer", "batch"):
            raise SettingError(f"norm={self.norm!r}", "none, layer or batch")
        if not (isinstance(self.dropout, float | int) and 0 <= self.dropout < 1):
            raise SettingError(f"dropout={self.dropout!r}", "a share from 0 up to, not including, 1")
        if self.members is not None and not (isinstance(self.members, int) and 0 < self.members <= WIDEST):
            raise SettingError(f"members={self.members!r}", f"from 1 to {WIDEST:,}, or None for a single network")
        if self.members is not None and self.norm == "batch":
            raise SettingError("norm='batch' with members", "norm='layer' or 'none'", "members cannot share statistics")

    def build(self, inputs: int, features: int, code: int, outputs: int) -> tuple[nn.Module, nn.Module]:
        """An encoder `(..., inputs) -> (..., features)` and a decoder `(..., code) -> (..., outputs)`."""
        self.check()
        down, up = self.widths(inputs, features, code, outputs)
        return self._stack(down), self._stack(up)

    def settled(self, inputs: int, features: int, code: int, outputs: int) -> Dense:
        """The same with the widths that the defaults give."""
        down, up = self.widths(inputs, features, code, outputs)
        return replace(self, hidden=down[1:-1], decoder=up[1:-1])

    def widths(self, inputs: int, features: int, code: int, outputs: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The widths that a row passes through: encoder, `inputs` to `features`, and decoder, `code` to `outputs`."""
        down = self.hidden if self.hidden is not None else default_hidden(inputs, code)
        up = self.decoder if self.decoder is not None else down[::-1]
        return (inputs, *down, features), (code, *up, outputs)

    def _stack(self, widths: Sequence[int]) -> nn.Sequential:
        """Layers through these widths; the last is linear."""
        *pairs, last = pairwise(widths)
        added = sum(inside == outside for inside, outside in pairs) if self.residual else 0
        layers: list[nn.Module] = [self._hidden(inside, outside, added) for inside, outside in pairs]
        return (nn.Sequential if self.members else Stack)(*layers, linear(*last, "identity", self.members))

    def _hidden(self, inputs: int, outputs: int, added: int) -> nn.Module:
        """One hidden layer, one of `added` that add to their input if it does."""
        first = linear(inputs, outputs, self.activation, self.members)
        layers: list[nn.Module] = [first]
        if self.residual and inputs == outputs:
            with torch.no_grad():  # activations have a mean, so what n layers add grows with n, not its root
                first.weight /= added
        if self.norm == "layer":
            layers.append(nn.LayerNorm(outputs, elementwise_affine=False))
        elif self.norm == "batch":
            layers.append(BatchNorm(outputs))
        layers.append(activation(self.activation))
        if self.dropout:
            layers.append(Dropout(self.dropout, rows=-2))
        block = nn.Sequential(*layers)
        return Residual(block) if self.residual and inputs == outputs else block


def default_hidden(inputs: int, code: int) -> tuple[int, ...]:
    """Hidden widths for data of this many inputs: two layers that step down to the code, at least twice as wide as it.

    A table of ten columns gets (128, 64); 784 pixels get (1024, 512).
    """
    first = min(max(128, 1 << (inputs - 1).bit_length()), 1024)
    return first, max(first // 2, min(2 * code, 1024))


def linear(inputs: int, outputs: int, following: str, members: int | None) -> nn.Linear | MemberLinear:
    """A linear layer, drawn for the activation that follows it.

    He et al. (2015) before rectifiers, Glorot & Bengio (2010) before the rest; biases start at zero.
    """
    gain = 2.0 if following in RECTIFIERS else 2.0 * inputs / (inputs + outputs)
    deviation = (gain / inputs) ** 0.5
    layer = nn.Linear(inputs, outputs) if members is None else MemberLinear(inputs, outputs, members)
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)
    return layer


class Stack(nn.Sequential):
    """Layers over the last axis that find the leading axes joined: each would else join and part them for itself."""

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's outputs, with the leading axes that came."""
        joined: Tensor = super().forward(x.flatten(0, -2) if x.ndim > 2 else x)  # type: ignore[no-untyped-call]
        return joined.view(*x.shape[:-1], joined.shape[-1])


class MemberLinear(nn.Module):
    """E linear layers as one product: (..., B, inputs) or (..., E, B, inputs) -> (..., E, B, outputs)."""

    def __init__(self, inputs: int, outputs: int, members: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """The product, with the members' axis third from the end."""
        product: Tensor = x @ self.weight + self.bias
        return product


class BatchNorm(nn.Module):
    """Batch normalization over every leading axis (Ioffe & Szegedy 2015), as `nn.BatchNorm1d` does over one.

    Its statistics are those of the batch in training: a rank of several would have its own.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        """The normalized values, in the shape that came."""
        if self.training and x.numel() == x.shape[-1]:
            return x  # one row has no variance
        normalized: Tensor = self.norm(x.reshape(-1, x.shape[-1]))
        return normalized.view(x.shape)


class Residual(nn.Module):
    """A block whose input is added to its output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """`x + block(x)`."""
        added: Tensor = x + self.block(x)
        return added
