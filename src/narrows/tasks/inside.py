"""What can be wrong inside a network: codes that hold nothing, units and entries that died, gradients that vanish.

Each check looks at a few thousand rows at most and gives a `Finding`, or None where it does not apply. What this file
does not know: how well the model does; a network may have any of these and still be the best to be had.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from narrows.findings import Finding
from narrows.model.autoencoder import AutoencoderModule
from narrows.model.latents import Code, divergence
from narrows.networks.conv import ConvDecoder, ConvEncoder
from narrows.networks.dense import ACTIVATIONS
from narrows.schema import Batch
from narrows.tasks.figures import figure

COLLAPSED = 0.01  # nats: a number that tells less tells nothing (Burda et al. 2016 take a variance of 0.01)
LEVEL = 0.1  # nats of a whole level of a hierarchy
EMPTY = 0.5  # share of a code: a network puts aside what it does not need, but half of it was asked for in vain
DEAD, DEAD_LAYER = 0.25, 0.5  # shares of units: rectifiers lost an eighth on digits and did well; or of one layer
STILL = 1e-6  # of the largest value of a layer: what changes less is rounding
UNUSED = 0.5  # share of a codebook's entries
DRAWS = 10  # choices for each entry, or firings of each unit, that rows must be enough for: fewer tell nothing
VANISHED = 1e-3  # first layer's gradient to the last one's: Adam and Muon make up for scale, not for noise this small

UNITS = tuple(type(make()) for name, make in ACTIVATIONS.items() if name != "identity")


def posterior_collapse(code: Code) -> Finding | None:
    """How much of the code tells nothing of the row; level by level where the terms do so."""
    levels = {name: float(term.mean()) for name, term in code.terms.items() if name.startswith("kl")}
    advice = "a smaller beta, a warm_up of it, free_bits, or a smaller code"
    if code.posterior is not None:
        each = divergence(code.posterior.mean, code.posterior.log_variance).flatten(0, -2).mean(0)
        share = float((each < COLLAPSED).float().mean())
        count = round(share * len(each))
        text = f"{count} of {len(each)} code numbers tell less than {COLLAPSED} nats of a row"
    elif len(levels) > 1:
        empty = [name for name, nats in levels.items() if nats < LEVEL]
        share = len(empty) / len(levels)
        told = ", ".join(f"{name} {figure(nats)}" for name, nats in levels.items())
        text = f"{len(empty)} of {len(levels)} levels tell less than {LEVEL} nats of a row ({told})"
    else:
        return None
    return _finding("posterior collapse", share, share >= EMPTY, text, advice)


def dead_units(module: AutoencoderModule, batch: Batch, members: int | None) -> Finding | None:
    """Hidden units that answer every row alike."""
    layers: list[Tensor] = []
    with _watched(module, members, layers), torch.inference_mode():
        code = module.encode(batch)
        if not module.autoregressive:
            module.decode(code.z)
    if not layers:
        return None
    count, dead = sum(map(len, layers)), sum(int(layer.sum()) for layer in layers)
    worst = max(float(layer.float().mean()) for layer in layers)
    text = f"{dead:,} of {count:,} hidden units answer every row alike, of the worst layer {worst:.0%}"
    problem = dead > DEAD * count or worst > DEAD_LAYER
    return _finding("dead units", dead / count, problem, text, "a lower lr, another activation, or norm='layer'")


@contextmanager
def _watched(module: AutoencoderModule, members: int | None, layers: list[Tensor]) -> Iterator[None]:
    """Within, each activation notes which of its units are still."""
    handles = []
    for network in (module.encoder, module.decoder):
        inside = {
            id(part)
            for conv in network.modules()
            if isinstance(conv, ConvEncoder | ConvDecoder)
            for part in conv.modules()
        }
        for part in network.modules():
            if isinstance(part, UNITS):
                axes = {1} if id(part) in inside else {-1, -3} if members else {-1}
                handles.append(part.register_forward_hook(partial(_note, layers, axes)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(layers: list[Tensor], axes: set[int], _module: nn.Module, _inputs: Any, outputs: Tensor) -> None:
    over = sorted(set(range(outputs.ndim)) - {axis % outputs.ndim for axis in axes})
    values = outputs.float()
    layers.append(_still(values.amax(over) - values.amin(over), values).flatten())


def _still(spread: Tensor, values: Tensor) -> Tensor:
    return spread <= STILL * values.abs().amax()


def dead_numbers(codes: Tensor, code: Code) -> Finding | None:
    """Numbers of the code that are the same for every row, where rows are enough to tell.

    Args:
        codes: (B, size).
        code: of some rows, which says what kind of code it is.
    """
    active = float((codes != 0).float().mean())
    if code.posterior is not None or code.symbols is not None or (active and active * len(codes) < DRAWS):
        return None
    dead = _still(codes.amax(0) - codes.amin(0), codes)
    text = f"{int(dead.sum()):,} of {len(dead):,} code numbers are the same for every row"
    advice = "a lower lr, a smaller code, or for sparse codes a smaller weight or more patience"
    share = float(dead.float().mean())
    return _finding("dead code numbers", share, share > DEAD, text, advice)


def dead_entries(code: Code, entries: int) -> Finding | None:
    """Entries of a codebook that no row chooses, where rows are enough to tell, and how evenly the others are chosen.

    Args:
        code: of the rows.
        entries: that there are to choose from.
    """
    if code.symbols is None or code.symbols.numel() < DRAWS * entries:
        return None
    shares = torch.bincount(code.symbols.flatten(), minlength=entries).double()
    shares /= shares.sum()
    perplexity = float(torch.special.entr(shares).sum().exp())
    used = int((shares > 0).sum())
    text = (
        f"{entries - used:,} of {entries:,} entries are never chosen; the choice has a perplexity of {perplexity:.1f}"
    )
    unused = 1 - used / entries
    return _finding("dead codebook entries", unused, unused > UNUSED, text, "fewer levels, or a longer training")


def vanishing_gradients(module: AutoencoderModule, batch: Batch) -> Finding | None:
    """How much smaller the gradient of the encoder's first layer is than that of its last, a weight."""
    trained = copy.deepcopy(module).train()  # some latents pass gradients in training only, and learn as they do
    weights = [weight for weight in trained.encoder.parameters() if weight.ndim > 1 and weight.requires_grad]
    if len(weights) < 2:
        return None
    with torch.backends.cudnn.flags(enabled=False):  # which cannot go back through recurrent layers but its own way
        first, last = torch.autograd.grad(trained(batch).total(), [weights[0], weights[-1]], allow_unused=True)
    if first is None or last is None or not float(last.norm()):
        return None
    ratio = float(first.square().mean().sqrt() / last.square().mean().sqrt())
    text = f"a weight of the encoder's first layer gets {ratio:.1e} of the gradient of one in the last"
    advice = "fewer layers, residual=True, norm='layer', or the activation silu"
    return _finding("vanishing gradients", ratio, ratio < VANISHED, text, advice)


def _finding(name: str, value: float, problem: bool, sentence: str, advice: str) -> Finding:
    return Finding(name, value, problem, sentence, advice if problem else "")
