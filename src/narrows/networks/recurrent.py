"""Recurrent encoder and decoder of sequences (T,): GRU or LSTM, each row read up to its own last step.

What the encoder keeps is its state at each row's own last present position, so padding behind that changes nothing.
Rows are not packed: every layer runs over all T steps and the states are gathered, which exports and which a GPU
likes. The price is that padding is computed; steps one after another are slow anyway, so this is for short sequences
and for decoders whose steps depend on what was said before.
What this file does not know: what stands at a position.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.networks.dense import DEEPEST, WIDEST, linear
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
from narrows.world import drawn

Cell = Literal["gru", "lstm"]
State = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Recurrent:
    """Settings of a recurrent encoder-decoder pair. The field texts are also the command line's help."""

    cell: Cell = "gru"
    """gru (Cho et al. 2014) or lstm (Hochreiter & Schmidhuber 1997), which has a third more weights."""

    units: int = 128
    """Numbers of the state, in each direction."""

    layers: int = 1
    """Recurrent layers on top of each other; each after the first adds to what it reads."""

    bidirectional: bool = True
    """Whether the encoder also reads from the end."""

    patch: int | None = None
    """Steps that are read and said at once; by default 1 for up to 64 steps or autoregressive, and more beyond, since
    steps follow one another."""

    autoregressive: bool | None = None
    """Whether the decoder reads at each step what stood at the step before; by default of texts."""

    word_dropout: float = 0.0
    """Share of the steps that an autoregressive decoder does not get to read in training (Bowman et al. 2016)."""

    def check(self) -> None:
        """Refuse settings out of range.

        Raises:
            SettingError: naming the setting.
        """
        if self.cell not in ("gru", "lstm"):
            raise SettingError(f"cell={self.cell!r}", "gru or lstm")
        for name, most in (("units", WIDEST), ("layers", DEEPEST)):
            value = getattr(self, name)
            if not (isinstance(value, int) and 0 < value <= most):
                raise SettingError(f"{name}={value!r}", f"from 1 to {most:,}")
        if self.patch is not None and not (isinstance(self.patch, int) and 0 < self.patch <= WIDEST):
            raise SettingError(f"patch={self.patch!r}", f"from 1 to {WIDEST:,}")
        if self.autoregressive and self.patch not in (None, 1):
            raise SettingError(f"patch={self.patch} with autoregressive", "one step at a time", "patch=1")
        if not (isinstance(self.word_dropout, float | int) and 0 <= self.word_dropout <= 1):
            raise SettingError(f"word_dropout={self.word_dropout!r}", "a share from 0 to 1")

    def pair(self, grid: Grid) -> tuple[GridEncoder, GridDecoder]:
        """An encoder and a decoder of sequences (T,).

        Raises:
            SettingError: for settings out of range, or a grid of more axes.
        """
        self.check()
        if len(grid.positions) != 1:
            raise SettingError(f"a grid of {len(grid.positions)} axes for recurrent", "a sequence (T,)", "network conv")
        if self.word_dropout and not self.autoregressive:
            raise SettingError("word_dropout without autoregressive", "autoregressive=True with it")
        patch = self._patch(grid)
        return RecurrentEncoder(self, grid, patch), RecurrentDecoder(self, grid, patch)

    def settled(self, grid: Grid, told: bool = False) -> Self:
        """The same with the patch that the defaults give; autoregressive, where that is open, if `told`."""
        settled = self if self.autoregressive is not None else replace(self, autoregressive=told)
        return replace(settled, patch=settled._patch(grid))

    def _patch(self, grid: Grid) -> int:
        return self.patch or (1 if self.autoregressive else default_patch(grid.positions))


class RecurrentEncoder(GridEncoder):
    """Layers that read each row forwards, and backwards from its own end; the vector is the last states."""

    def __init__(self, settings: Recurrent, grid: Grid, patch: int) -> None:
        super().__init__()
        self.patch = patch
        directions = 2 if settings.bidirectional else 1
        self.units, self.width = settings.units, directions * settings.units
        widths = [grid.inputs * patch] + [self.width] * (settings.layers - 1)
        self.onwards = nn.ModuleList(recurrent(settings.cell, width, settings.units) for width in widths)
        turned = widths if settings.bidirectional else []
        self.back = nn.ModuleList(recurrent(settings.cell, width, settings.units) for width in turned)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """(B, T, inputs) -> (B, width)"""
        x = folded(without_absent(x, present), self.patch)
        if present is not None:
            present = folded(present[..., None], self.patch).any(-1)
        last = last_present(x, present)
        steps = torch.arange(x.shape[1], device=x.device)
        # each row's own steps from its end, then its padding where it was; its own inverse
        backwards = torch.where(steps <= last, last - steps, steps)
        for depth, onwards in enumerate(self.onwards):
            said = onwards(x)[0]
            if len(self.back):
                said = torch.cat([said, at(self.back[depth](at(x, backwards))[0], backwards)], dim=-1)
            x = x + said if depth else said
        end = at(x, last).squeeze(1)
        # reading backwards ends at the first step
        return torch.cat([end[:, : self.units], x[:, 0, self.units :]], dim=-1)


class RecurrentDecoder(GridDecoder):
    """Layers whose first states are the vector's, which they also read at each step.

    Beside the vector a step reads a learnt position or, autoregressively, what stood one step before.
    """

    def __init__(self, settings: Recurrent, grid: Grid, patch: int) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.autoregressive, self.word_dropout = bool(settings.autoregressive), settings.word_dropout
        self.units, (self.steps,) = settings.units, patches(grid.positions, patch)
        self.width = settings.layers * settings.units
        self.told = linear(self.width, settings.units, "identity", None)
        if self.autoregressive:
            self.start = nn.Parameter(torch.zeros(1, 1, grid.inputs))
            self.read = linear(grid.inputs, settings.units, "identity", None)
        else:
            self.places = nn.Parameter(torch.randn(1, self.steps, settings.units))
        self.layers = nn.ModuleList(
            recurrent(settings.cell, settings.units, settings.units) for _ in range(settings.layers)
        )
        self.said = linear(settings.units, grid.outputs * patch, "identity", None)

    def forward(self, vector: Tensor, targets: Tensor | None = None, feedback: Feedback | None = None) -> Tensor:
        """(B, width) -> (B, T, outputs)"""
        told = self.told(vector)[:, None]
        states = self._first_states(vector)
        if not self.autoregressive:
            return unfolded(self._run(told + self.places, states), self.patch, self.grid.positions)
        if targets is None:
            return self._run_freely(told, states, needed(feedback))
        shifted = torch.cat([self.start.expand(vector.shape[0], 1, -1).to(targets.dtype), targets[:, :-1]], dim=1)
        if self.training and self.word_dropout:
            kept = drawn(torch.rand, *shifted.shape[:2], device=vector.device) >= self.word_dropout
            shifted = shifted * kept[..., None]
        return self._run(told + self.read(shifted), states)

    def _run_freely(self, told: Tensor, states: list[State], feedback: Feedback) -> Tensor:
        before, outputs = self.start.expand(told.shape[0], 1, -1), []
        for _ in range(self.steps):
            outputs.append(self._run(told + self.read(before), states))
            before = feedback(outputs[-1][:, 0])[:, None]
        return torch.cat(outputs, dim=1)

    def _run(self, x: Tensor, states: list[State]) -> Tensor:
        """Outputs of some steps; `states` are moved on to the last of them."""
        for depth, layer in enumerate(self.layers):
            said, states[depth] = layer(x, states[depth])
            x = x + said if depth else said
        outputs: Tensor = self.said(x)
        return outputs

    def _first_states(self, vector: Tensor) -> list[State]:
        hidden = [part.contiguous() for part in torch.split(torch.tanh(vector)[None], self.units, dim=-1)]
        lstm = isinstance(self.layers[0], nn.LSTM)
        return [(part, part) if lstm else part for part in hidden]


class LongShortTerm(nn.LSTM):
    """Torch's LSTM; in float32 under an autocast to bfloat16 that the processor has none of, which torch refuses."""

    def forward(  # type: ignore[override]
        self, x: Tensor, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As torch's."""
        wide = x.is_cpu and torch.is_autocast_enabled("cpu") and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        with torch.autocast("cpu", enabled=False) if wide else nullcontext():
            if wide:
                x, states = x.float(), states and (states[0].float(), states[1].float())
            said: tuple[Tensor, tuple[Tensor, Tensor]] = super().forward(x, states)
        return said


def recurrent(cell: Cell, inputs: int, units: int) -> nn.GRU | nn.LSTM:
    """One layer; orthogonal between states (Saxe et al. 2014), and an LSTM that starts by remembering."""
    layer = (nn.GRU if cell == "gru" else LongShortTerm)(inputs, units, batch_first=True)
    weights = dict(layer.named_parameters())
    for gate in torch.split(weights["weight_hh_l0"].data, units):
        nn.init.orthogonal_(gate)
    nn.init.normal_(weights["weight_ih_l0"], std=inputs**-0.5)
    for bias in (weights["bias_ih_l0"], weights["bias_hh_l0"]):
        nn.init.zeros_(bias)
    if cell == "lstm":  # a forget gate that starts open (Gers et al. 2000)
        nn.init.ones_(weights["bias_ih_l0"].data[units : 2 * units])
    return layer


def last_present(x: Tensor, present: Tensor | None) -> Tensor:
    """(B, 1), the last step of each row that is present; the first where none is."""
    if present is None:
        return torch.full((x.shape[0], 1), x.shape[1] - 1, device=x.device)
    steps = torch.arange(x.shape[1], device=x.device)
    return (present * steps).amax(dim=1, keepdim=True)


def at(x: Tensor, steps: Tensor) -> Tensor:
    """(B, T, C) at (B, S) steps: (B, S, C)."""
    return x.gather(1, steps[..., None].expand(-1, -1, x.shape[-1]))
