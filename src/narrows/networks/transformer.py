"""Transformer encoder and decoder (Vaswani et al. 2017) of texts, series, images in patches, and cells of tables.

Every token looks at every other, so the cost grows with the square of their number: long grids are cut into patches.
The encoder's vector is what four learnt queries pick from the tokens. The decoder's vector is a token for each patch:
on heartbeats that left less than half the error of tokens that had to look the code up. Autoregressive, its
vector is four tokens before those of what was said, which look only back.
What this file does not know: what stands at a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.networks.dense import DEEPEST, WIDEST, Dropout, linear
from narrows.networks.grids import (
    Feedback,
    Grid,
    GridDecoder,
    GridEncoder,
    default_patch,
    folded,
    needed,
    patches,
    unfolded,
    without_absent,
)

QUERIES = 4  # tokens that the vector consists of


@dataclass(frozen=True)
class Transformer:
    """Settings of a transformer encoder-decoder pair. The field texts are also the command line's help."""

    width: int = 64
    """Numbers of each token."""

    layers: int = 2
    """Blocks of attention and perceptron, in the encoder and in the decoder."""

    heads: int = 4
    """Attention heads of each block; they share the width."""

    patch: int | None = None
    """Positions a side that make one token; by default 1 for up to 64 tokens or autoregressive, and more beyond."""

    autoregressive: bool | None = None
    """Whether the decoder reads at each token what stood at the tokens before; by default of texts."""

    dropout: float = 0.0
    """Share of what attention and perceptrons add that is silenced in training."""

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            SettingError: naming the setting.
        """
        for name, most in (("width", WIDEST), ("layers", DEEPEST), ("heads", WIDEST), ("patch", WIDEST)):
            value = getattr(self, name)
            if not (isinstance(value, int) and 0 < value <= most) and (name, value) != ("patch", None):
                raise SettingError(f"{name}={value!r}", f"from 1 to {most:,}")
        if self.width % self.heads:
            raise SettingError(f"width={self.width} for {self.heads} heads", "a width that the heads divide")
        if not (isinstance(self.dropout, float | int) and 0 <= self.dropout < 1):
            raise SettingError(f"dropout={self.dropout!r}", "a share from 0 up to, not including, 1")

    def pair(self, grid: Grid) -> tuple[GridEncoder, GridDecoder]:
        """An encoder and a decoder of grids of any number of axes.

        Raises:
            SettingError: for settings out of range.
        """
        self.check()
        patch = self._patch(grid)
        return TransformerEncoder(self, grid, patch), TransformerDecoder(self, grid, patch)

    def settled(self, grid: Grid, told: bool = False) -> Self:
        """The same with the patch that the defaults give; autoregressive, where that is open, if `told`."""
        settled = self if self.autoregressive is not None else replace(self, autoregressive=told)
        return replace(settled, patch=settled._patch(grid))

    def _patch(self, grid: Grid) -> int:
        return self.patch or (1 if self.autoregressive else default_patch(grid.positions))


class TransformerEncoder(GridEncoder):
    """Patches as tokens, blocks, and learnt queries that attend to the result (Lee et al. 2019)."""

    def __init__(self, settings: Transformer, grid: Grid, patch: int) -> None:
        super().__init__()
        self.patch, self.width = patch, QUERIES * settings.width
        width, channels = settings.width, grid.inputs * patch ** len(grid.positions)
        self.token = linear(channels, width, "identity", None)
        self.places = nn.Parameter(torch.randn(1, prod(patches(grid.positions, patch)), width))
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.queries = nn.Parameter(torch.randn(1, QUERIES, width))
        self.pool = Attention(width, settings.heads)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """(B, *positions, inputs) -> (B, width); a patch is absent where all its positions are."""
        tokens = self.token(folded(without_absent(x, present), self.patch).flatten(1, -2)) + self.places
        mask = None if present is None else self._mask(present)
        for block in self.blocks:
            tokens = block(tokens, mask=mask)
        picked: Tensor = self.pool(self.queries.expand(x.shape[0], -1, -1), self.norm(tokens), mask=mask)
        return picked.flatten(1)

    def _mask(self, present: Tensor) -> Tensor:
        """(B, 1, 1, S): the tokens to look at; all of them where none is present, as nothing else is finite."""
        some = folded(present[..., None].float(), self.patch).flatten(1, -2).amax(dim=-1) > 0
        return (some | ~some.any(dim=1, keepdim=True))[:, None, None]


class TransformerDecoder(GridDecoder):
    """The vector's tokens through blocks; autoregressive, each further token is the patch before the one it says."""

    inside: Tensor

    def __init__(self, settings: Transformer, grid: Grid, patch: int) -> None:
        super().__init__()
        self.autoregressive, self.patch, self.grid = bool(settings.autoregressive), patch, grid
        self.patches, channels = patches(grid.positions, patch), patch ** len(grid.positions)
        self.told = QUERIES if self.autoregressive else prod(self.patches)
        self.width = self.told * settings.width
        if self.autoregressive:
            self.token = linear(grid.inputs * channels, settings.width, "identity", None)
            # the vector's last token says the first patch, and the last patch is never read
            self.places = nn.Parameter(torch.randn(1, QUERIES + prod(self.patches) - 1, settings.width))
            # (1, S, positions of a patch): those that do not stick out
            whole = folded(torch.ones(1, *grid.positions, 1), patch).flatten(1, -2) > 0
            self.register_buffer("inside", whole, persistent=False)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width, elementwise_affine=False)
        self.said = linear(settings.width, grid.outputs * channels, "identity", None)

    def forward(self, vector: Tensor, targets: Tensor | None = None, feedback: Feedback | None = None) -> Tensor:
        """(B, width) -> (B, *positions, outputs)"""
        told = vector.reshape(-1, self.told, self.width // self.told)
        if not self.autoregressive:
            said = self._said(told)
        elif targets is None:
            said = self._run_freely(told, needed(feedback))
        else:
            before = self.token(folded(targets, self.patch).flatten(1, -2)[:, :-1])
            said = self._said(torch.cat([told, before], dim=1) + self.places)[:, QUERIES - 1 :]
        return unfolded(said.reshape(-1, *self.patches, said.shape[-1]), self.patch, self.grid.positions)

    def _run_freely(self, told: Tensor, feedback: Feedback) -> Tensor:
        """(B, S, outputs of a patch), one patch after the other, over remembered keys and values."""
        caches = [Cache() for _ in self.blocks]
        tokens, outputs, start = told, [], 0
        for _ in range(prod(self.patches)):
            places = self.places[:, start : start + tokens.shape[1]]
            start += tokens.shape[1]
            outputs.append(self._said(tokens + places, caches)[:, -1:])
            said = outputs[-1].view(-1, self.inside.shape[2], self.grid.outputs).unbind(dim=1)
            read = torch.stack([feedback(position) for position in said], dim=1)
            read = without_absent(read, self.inside[:, len(outputs) - 1])
            tokens = self.token(read.flatten(1))[:, None]
        return torch.cat(outputs, dim=1)

    def _said(self, tokens: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        for depth, block in enumerate(self.blocks):
            tokens = block(tokens, causal=self.autoregressive, cache=caches[depth] if caches else None)
        said: Tensor = self.said(self.norm(tokens))
        return said


class Block(nn.Module):
    """Attention and a perceptron, each added to what it reads normalized (pre-norm; Xiong et al. 2020).

    What n branches add is divided by n, as steps of the same size move all of them the same way: scaling only how
    they start (Radford et al. 2019) left 25 blocks stuck that train like one with it.
    """

    def __init__(self, settings: Transformer) -> None:
        super().__init__()
        width = settings.width
        self.share = 1 / (2 * settings.layers)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, settings.heads)
        last = linear(4 * width, width, "identity", None)
        self.perceptron = nn.Sequential(linear(width, 4 * width, "gelu", None), nn.GELU(), last)
        self.dropout = Dropout(settings.dropout, rows=0)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, causal: bool = False, cache: Cache | None = None
    ) -> Tensor:
        """(B, S, width), as it came."""
        normed = self.norm(x)
        x = x + self.share * self.dropout(self.attention(normed, normed, mask, causal, cache))
        added: Tensor = x + self.share * self.dropout(self.perceptron(self.norm(x)))
        return added


class Attention(nn.Module):
    """Attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.asked = linear(width, width, "identity", None)
        self.known = linear(width, 2 * width, "identity", None)
        self.said = linear(width, width, "identity", None)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Tensor:
        """What tokens `x` (B, S, width) find in `context` (B, T, width), and in the cache before it.

        Args:
            x: that ask.
            context: that is asked.
            mask: (B, 1, 1, T), true where the context may be looked at.
            causal: whether token s sees only the context up to s.
            cache: keys and values of earlier calls, which these are added to.
        """
        asked = self._by_head(self.asked(x))
        keys, values = (self._by_head(part) for part in self.known(context).chunk(2, dim=-1))
        if cache is not None:
            keys, values = cache.grown(keys, values)
        found = attended(asked, keys, values, mask, causal and x.shape[1] > 1)
        said: Tensor = self.said(found.transpose(1, 2).flatten(2))
        return said

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


def attended(asked: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scaled dot-product attention, (B, heads, S, width of a head); on a CPU in float32, whatever autocast says.

    There the backward pass in bfloat16 took six times as long as in float32 (70 tokens, heads of 16; torch 2.13).
    """
    if asked.device.type != "cpu":
        return F.scaled_dot_product_attention(asked, keys, values, mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        asked, keys, values = asked.float(), keys.float(), values.float()
        return F.scaled_dot_product_attention(asked, keys, values, mask, is_causal=causal)


class Cache:
    """Keys and values of the tokens so far, (B, heads, S, width of a head), for one block."""

    def __init__(self) -> None:
        self.pair: tuple[Tensor, Tensor] | None = None

    def grown(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, these last."""
        if self.pair is not None:
            keys, values = (torch.cat(both, dim=2) for both in zip(self.pair, (keys, values), strict=True))
        self.pair = keys, values
        return self.pair
