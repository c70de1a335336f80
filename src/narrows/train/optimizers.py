"""Optimizers by name, the one that Muon and AdamW make together, schedules of the learning rate, and clipping.

`Optimizer` is what the loop sees: one or two of torch's optimizers that step as one, with their state as named
tensors. The loss is summed over cells and averaged over rows, so plain gradient steps depend on the width of the data;
with the default clipping their length is bounded, and the default rates below suit that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.train.fused import FusedAdam, FusedSGD, without_compiler
from narrows.train.matrices import Uses, matrix_views
from narrows.train.members import Stacks, clip_members, find_stacks, shorten_members
from narrows.train.muon import Muon, orthogonalizing
from narrows.train.settings import OptimizerName, ScheduleName, Training

DEFAULT_RATES: dict[str, float] = {
    "gd": 0.5,
    "sgd": 0.5,
    "momentum": 0.05,
    "adam": 3e-3,
    "adamw": 3e-3,
    "muon": 2e-2,
}

# Muon's steps are as long where only noise is left, and weights grow by it. Of six tables, five ended lower with 0.03
# than without (by 1 to 33 %) and one higher (by 1 %); with 0.1 three ended higher. A network of 784-128-784 ended 8
# epochs on 9,000 images at 1.64 in place of 3.18.
MUON_DECAY = 0.03
STEADY = 4  # times the rows of a step: a matrix no longer than that gets the whole rate of Muon
OPPONENTS_RATE = 1e-3  # of weights that train against the rest, by Adam whatever trains these
WARM_UP = 0.2  # share of a one-cycle run in which the rate rises
START = 0.04  # of the peak: where it rises from
DWARFED = 8  # times the products of a step: MNIST's default network is at 0.4 with 512 rows, at 3 with 64


def rate_share(schedule: ScheduleName, done: float) -> float:
    """Learning rate, as a share of its peak, when the share `done` of all training rows has been seen.

    `cosine` falls from 1 to 0 (Loshchilov & Hutter 2017); `one-cycle` rises linearly from 0.04 over the first fifth,
    then falls likewise (Smith & Topin 2018).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "one-cycle":
        if done < WARM_UP:
            return START + (1 - START) * done / WARM_UP
        done = (done - WARM_UP) / (1 - WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def half_way(schedule: ScheduleName) -> float:
    """The share of training from which on the rate stays at or below half its peak; 0 where it never falls."""
    return {"constant": 0.0, "cosine": 0.5, "one-cycle": WARM_UP + 0.5 * (1 - WARM_UP)}[schedule]


class Optimizer:
    """Torch optimizers that step as one.

    Args:
        parts: each with weights of its own.
        names: of all weights, for naming the state.
        stacks: those of them that hold the weights of several members.
        opponents: those that train against the rest, and whose gradients are therefore clipped apart.

    A group of weights may have a `share` of the learning rate.
    """

    def __init__(
        self,
        parts: Iterable[torch.optim.Optimizer],
        names: Mapping[Tensor, str],
        stacks: Stacks | None = None,
        opponents: Iterable[Tensor] = (),
    ) -> None:
        self.parts, self.names = list(parts), dict(names)
        self.weights = [weight for part in self.parts for group in part.param_groups for weight in group["params"]]
        self._groups = [group for part in self.parts for group in part.param_groups]
        against, stacks = set(opponents), stacks or Stacks()
        sides = [[w for w in self.weights if (w in against) is opposing] for opposing in (False, True)]
        self._single = [[w for w in side if w not in stacks] for side in sides]
        self._stacked = [[w for w in side if w in stacks] for side in sides]

    def step(self, lr: float | Tensor) -> None:
        """Move the weights along their gradients with this learning rate, and drop the gradients.

        Args:
            lr: a number, or () where the weights are, so that a recorded step can be repeated at another.
        """
        for group in self._groups:
            group["lr"] = lr * group.get("share", 1.0)
        for part in self.parts:
            part.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for weight in self.weights:
            weight.grad = None

    def clip(self, limit: float | None) -> float:
        """Shorten gradients whose norm is above `limit`, for each member of an ensemble by itself.

        Weights that members share, such as those of modules of the user's own, are clipped apart from the members', and
        opponents apart from the rest.

        Returns:
            The norm that all had together, NaN or infinite where they are.
        """
        norms = [clip(gradients, limit) for side in self._single if (gradients := _gradients(side))]
        norms += [clip_members(gradients, limit) for side in self._stacked if (gradients := _gradients(side))]
        return math.hypot(*norms)

    def shorten(self, limit: float | None) -> Tensor:
        """As `clip`, without asking the device for the norm: () float64, the norm that all had together."""
        norms = [shorten(gradients, limit) for side in self._single if (gradients := _gradients(side))]
        norms += [shorten_members(gradients, limit) for side in self._stacked if (gradients := _gradients(side))]
        common: Tensor = torch.linalg.vector_norm(torch.stack(norms).double())
        return common

    def heed(self, broken: Tensor) -> None:
        """Leave weights and state as they are in steps that find 1 in `broken`, a () float32 tensor."""
        for part in self.parts:
            part.found_inf = broken  # type: ignore[attr-defined]  # what torch's gradient scaler tells them by

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Torch's optimizers want to be told that a step is recorded as a graph, and warn where one is not."""
        for group in self._groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in self._groups:
                group["capturable"] = False

    def broken(self, gradients: bool = False) -> dict[str, float]:
        """Weights that are not finite, or whose gradients are not: name -> NaN or infinity, from the loss backward."""
        both = [(name, weight.grad if gradients else weight.detach()) for weight, name in self.names.items()]
        named = [(name, tensor) for name, tensor in reversed(both) if tensor is not None]
        # asked once for all, as each answer of a GPU is waited for
        whole = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist() if named else []
        return {name: tensor.abs().max().item() for (name, tensor), fine in zip(named, whole, strict=True) if not fine}

    def tensors(self) -> dict[str, Tensor]:
        """The state: `weight|entry` -> tensor."""
        return {
            f"{self.names[weight]}|{entry}": value
            for part in self.parts
            for weight, state in part.state.items()
            for entry, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the state that `tensors` gave, laid out in memory as the weights are."""
        owners = {
            self.names[weight]: (part, weight)
            for part in self.parts
            for group in part.param_groups
            for weight in group["params"]
        }
        for name, value in tensors.items():
            owner, _, entry = name.rpartition("|")
            part, weight = owners[owner]
            like = torch.empty_like(weight if value.shape == weight.shape else value, device=weight.device)
            part.state[weight][entry] = like.copy_(value)


def _gradients(weights: list[Tensor]) -> list[Tensor]:
    """The gradients there are."""
    return [weight.grad for weight in weights if weight.grad is not None]


def settled(training: Training, module: nn.Module, rows: int, uses: Uses | None = None) -> Training:
    """The settings with the optimizer that suits the module and the rows of a step for `auto`, and its weight decay.

    Muon reached lower losses than AdamW in the same number of steps on every table and image set tried, at up to twice
    the time of a step. Where its products are many times those of the step itself it loses: on 3,840 one-hot inputs
    and 64 rows a step took 7 times as long, and the loss was higher.
    """
    if training.optimizer == "auto":
        dwarfed = step_work(module, rows, "muon", uses) > (1 + DWARFED) * step_work(module, rows, "adamw", uses)
        training = replace(training, optimizer="adamw" if dwarfed else "muon")
    return replace(training, weight_decay=decay_of(training))


def decay_of(training: Training) -> float:
    """The weight decay that the settings name, or by default that of the optimizer."""
    if training.weight_decay is not None:
        return training.weight_decay
    return MUON_DECAY if training.optimizer == "muon" else 0.0


def default_rate(optimizer: OptimizerName, module: nn.Module, rows: int, uses: Uses | None = None) -> float:
    """The peak learning rate for those who name none, in steps of so many rows.

    Muon moves a matrix as far along directions of noise as along others, and a step of few rows tells little of a large
    matrix. Where the longest side of one is over 4 times as often as a step uses it, the rate falls as the root of what
    is lacking: on 9,000 images of MNIST and 64 rows a step, 784-128-784 ended 8 epochs at 1.30 with 0.01, at 1.65 with
    0.02, and 40 epochs at 1.20 and 7.16.

    Args:
        optimizer: by name.
        module: whose weights are to move.
        rows: of a step.
        uses: how often a row uses each weight (see `count_uses`); once by default.
    """
    if optimizer != "muon":
        return DEFAULT_RATES[optimizer]
    shares = [(uses or {}).get(w, 1) * rows / max(view[-2:]) for w, view in matrix_views(module).items()]
    rate = DEFAULT_RATES[optimizer] * math.sqrt(min([1.0, *(STEADY * share for share in shares)]))
    return float(f"{rate:.3g}")  # as people read it


def step_work(module: nn.Module, rows: int, optimizer: OptimizerName, uses: Uses | None = None) -> int:
    """Multiplications in a step of `rows` rows: forward, backward, and what Muon adds to them.

    Args:
        module: whose weights work.
        rows: of a step.
        optimizer: by name; `muon` is the one whose own products count.
        uses: how often a row uses each weight (see `count_uses`); once by default.
    """
    views = matrix_views(module)
    learning = sum(3 * rows * (uses or {}).get(weight, 1) * weight.numel() for weight in views)
    shapes = [(math.prod(view[:-2]), *sorted(view[-2:])) for view in views.values()]
    return learning + (sum(e * orthogonalizing(m, n) for e, m, n in shapes) if optimizer == "muon" else 0)


def make_optimizer(module: nn.Module, training: Training) -> Optimizer:
    """The optimizer that the settings name, over the weights of a module that want gradients.

    Weight decay is for matrices and larger weights. Muon takes the weights that multiply (see `matrix_views`); tables,
    biases and the rest go to AdamW. Each member of an ensemble is treated as the single network it stands for.

    Raises:
        SettingError: when the module has nothing to train.
    """
    names: dict[Tensor, str] = {w: name for name, w in module.named_parameters() if w.requires_grad}
    if not names:
        raise SettingError("a module without weights to train", "at least one parameter")
    stacks, opponents = find_stacks(module), opponents_of(module)
    axes = {weight: stacks.axes(weight) for weight in names if weight not in opponents}
    with without_compiler():
        parts = _parts(training, axes, matrix_views(module))
        if opponents:
            share = OPPONENTS_RATE / DEFAULT_RATES[training.optimizer]
            # the averages of a game are short: what was right some steps ago is wrong now (Radford et al. 2016)
            parts.append(FusedAdam(list(opponents), betas=(0.5, 0.99)))
            parts[-1].param_groups[0]["share"] = share
    return Optimizer(parts, names, stacks, opponents)


def opponents_of(module: nn.Module) -> dict[Tensor, None]:
    """Weights that train against the rest of a module, as its method `opponents` gives them, in that order."""
    return dict.fromkeys(getattr(module, "opponents", list)())


def _parts(
    training: Training, axes: dict[Tensor, int], views: Mapping[Tensor, tuple[int, ...]]
) -> list[torch.optim.Optimizer]:
    decay = decay_of(training)
    if training.optimizer == "muon":
        matrices = [w for w in axes if w in views]
        rest = _groups({w: axes[w] for w in axes if w not in views}, decay)
        muon = [Muon(matrices, decay, views)] if matrices else []
        return [*muon, *([FusedAdam(rest)] if rest else [])]
    # Fused Adam is 5 times faster on a 1000 x 784 matrix (0.3 against 1.6 ms)
    makers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "gd": FusedSGD,
        "sgd": FusedSGD,
        "momentum": partial(FusedSGD, momentum=0.9),
        "adam": lambda groups: torch.optim.Adam(groups, fused=True) if decay else FusedAdam(groups),
        "adamw": FusedAdam,
    }
    return [makers[training.optimizer](_groups(axes, decay))]


def _groups(axes: dict[Tensor, int], decay: float) -> list[dict[str, Any]]:
    """Parameter groups, vectors without weight decay; one group where there is none, as each costs a call."""
    if not decay:
        return [{"params": list(axes), "weight_decay": 0.0}] if axes else []
    groups = [([w for w in axes if axes[w] > 1], decay), ([w for w in axes if axes[w] <= 1], 0.0)]
    return [{"params": chosen, "weight_decay": share} for chosen, share in groups if chosen]


def shorten(gradients: list[Tensor], limit: float | None) -> Tensor:
    """As `clip`, without asking the device for the norm: () the norm they had."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if limit is not None:
        torch._foreach_mul_(gradients, (limit / norm.double()).clamp_max(1.0).float())
    return norm


def clip(gradients: list[Tensor], limit: float | None) -> float:
    """Shorten gradients whose common norm is above `limit`; the norm they had, NaN or infinite where they are.

    A third of the time of torch's own (12 us against 38 us), by not touching gradients that are short enough.
    """
    norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
    if limit is not None and limit < norm < math.inf:
        torch._foreach_mul_(gradients, limit / norm)
    return norm
