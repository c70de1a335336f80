"""Codes in, a fitted code prior out: a mixture, a flow or a sequence, whichever finds codes held out most probable.

What it does not know: models, rows and files.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from narrows.errors import SettingError
from narrows.model.flow import Flow
from narrows.model.mixture import Mixture
from narrows.model.priors import Prior
from narrows.model.sequence import Sequence
from narrows.schema import Batch
from narrows.train.loop import train
from narrows.train.randomness import generator, kept
from narrows.train.resident import Resident
from narrows.train.settings import Training

Kind = Literal["auto", "mixture", "flow", "sequence"]
HELD = 0.1  # share of the codes by which priors are compared
BLUR = 1e-2  # of a number's spread: codes that repeat would have an infinite density
GAIN = 0.02  # nats that a richer prior must find codes more probable by
MOST_FULL = 256  # numbers of a code up to which components have covariances, and flows are tried
FEWEST_FLOW = 1_000  # codes from which a flow has something to learn
OF_AN_ENTRY = 20  # codes for each entry of a codebook, from which a sequence makes better rows than a mixture
STEPS = 1_000  # of a flow's or sequence's training: some 6 s for codes of 16 numbers on a core of its own
BATCH = 256


@dataclass(frozen=True)
class Codes:
    """Codes of training rows.

    Args:
        z: (n, size).
        symbols: (n, positions) their entries of a codebook, where they are discrete.
        count: entries of the codebook.
    """

    z: Tensor
    symbols: Tensor | None = None
    count: int = 0


@dataclass(frozen=True)
class Fitted:
    """A prior, and how probable each that was tried found codes that were held out: name -> mean nats."""

    prior: Prior
    held_out: dict[str, float]


def fit_prior(codes: Codes, kind: str = "auto", seed: int = 0) -> Fitted:
    """The prior of a kind that suits codes best.

    Args:
        codes: of training rows; a tenth of them is held out for choosing.
        kind: `mixture`, `flow`, `sequence` (discrete codes), or `auto`: a sequence where discrete codes are many, else
            the more probable of mixture and flow. (1,400 digits in codes of 256 entries were drawn better by a mixture,
            with an energy distance to new digits of 0.30 against 0.55; in codes of 8 entries with 0.25 against 0.33.)
        seed: of every draw.

    Raises:
        SettingError: for an unknown kind, or one that does not suit the codes.
    """
    if kind not in get_args(Kind):
        raise SettingError(f"prior {kind!r}", f"one of {', '.join(get_args(Kind))}")
    if kind == "sequence" and codes.symbols is None:
        raise SettingError("a sequence as the prior of codes that are not discrete", "mixture, flow or auto")
    if len(codes.z) == 1:  # has no spread of its own, but that of the blur
        codes = Codes(codes.z.repeat(2, 1), None if codes.symbols is None else codes.symbols.repeat(2, 1), codes.count)
    with kept(torch.device("cpu")):
        torch.manual_seed(seed)
        order = torch.randperm(len(codes.z), generator=generator(seed, 0))
        held, train_ = order.tensor_split([int(HELD * len(order))])
        enough = codes.symbols is not None and len(train_) >= OF_AN_ENTRY * codes.count
        if kind == "sequence" or (kind == "auto" and enough):
            return _sequence(codes, train_, held if len(held) else train_, seed)
        z = _blurred(codes.z)
        return _continuous(z[train_], z[held] if len(held) else z[train_], kind, seed)


def _blurred(z: Tensor) -> Tensor:
    spread = z.std(0, correction=0)
    return z + BLUR * torch.where(spread > 0, spread, spread.mean().clamp_min(BLUR)) * torch.randn_like(z)


def _continuous(z: Tensor, held: Tensor, kind: str, seed: int) -> Fitted:
    tried: dict[str, Prior] = {}
    if kind in ("auto", "mixture"):
        tried["mixture"] = fit_mixture(z, held, seed)
    worthwhile = 2 <= z.shape[1] <= MOST_FULL and len(z) >= FEWEST_FLOW
    if kind == "flow" or (kind == "auto" and worthwhile):
        tried["flow"] = fit_flow(z, held, seed)
    figures = {name: mean_log_prob(prior, held) for name, prior in tried.items()}
    flow_wins = "mixture" not in tried or figures.get("flow", -inf) > figures["mixture"] + GAIN
    return Fitted(tried["flow" if flow_wins else "mixture"], figures)


@torch.no_grad()
def mean_log_prob(prior: Prior, z: Tensor) -> float:
    """Mean log density of codes (n, size), in nats."""
    return float(torch.cat([prior.log_prob(part) for part in torch.split(z, 4096)]).double().mean())


def fit_mixture(z: Tensor, held: Tensor, seed: int = 0) -> Mixture:
    """A mixture with as many components, doubled from one, as find held-out codes more probable.

    Args:
        z: (n, size) codes.
        held: codes held out.
        seed: of the first guesses.
    """
    best, top, since = _mixture(z, 1, seed), -inf, 0
    for components in takewhile(lambda count: count == 1 or len(z) >= 20 * count, (2**i for i in range(8))):
        prior = best if components == 1 else _mixture(z, components, seed)
        figure = mean_log_prob(prior, held)
        since += 1
        if figure > top + GAIN:
            best, top, since = prior, figure, 0
        if since == 2:  # a ring is no better told by two components than by one, but by eight
            break
    return best


def _mixture(z: Tensor, components: int, seed: int) -> Mixture:
    """Fitted by expectation maximization to codes of unit spread, then brought to theirs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    full = z.shape[1] <= MOST_FULL and len(z) > 2 * z.shape[1] * components
    center, spread = z.double().mean(0), z.double().std(0, correction=0).clamp_min(1e-6)
    units = ((z.double() - center) / spread).numpy()
    form = "full" if full else "diag"
    fitted = GaussianMixture(
        components, covariance_type=form, reg_covar=BLUR**2, init_params="k-means++", random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what counts is how codes held out fare
        fitted.fit(units)
    covariances = torch.from_numpy(fitted.covariances_)
    factors = torch.linalg.cholesky(covariances) * spread.unsqueeze(1) if full else covariances.sqrt() * spread
    prior = Mixture(z.shape[1], components, full)
    prior.log_weights.copy_(torch.from_numpy(fitted.weights_).log())
    prior.means.copy_(torch.from_numpy(fitted.means_) * spread + center)
    prior.factors.copy_(factors)
    return prior


def fit_flow(z: Tensor, held: Tensor, seed: int = 0) -> Flow:
    """A flow trained by the one loop; the weights that found held-out codes most probable are kept."""
    flow = Flow(z.shape[1])
    flow.whiten(z)
    _train(flow, Batch(z, _nothing(z, torch.long)), Batch(held, _nothing(held, torch.long)), seed, lr=5e-3)
    return flow


def _sequence(codes: Codes, rows: Tensor, held: Tensor, seed: int) -> Fitted:
    symbols = codes.symbols
    if symbols is None:
        raise SettingError("a sequence as the prior of codes that are not discrete", "mixture, flow or auto")
    prior = Sequence.over(codes.z, symbols, codes.count)
    pair = [Batch(_nothing(codes.z[part], torch.float32), symbols[part]) for part in (rows, held)]
    _train(prior, pair[0], pair[1], seed, lr=2e-3)
    with torch.no_grad():
        figure = float(torch.cat([prior.log_chances(part) for part in torch.split(symbols[held], 1024)]).mean())
    return Fitted(prior, {"sequence": figure})


def _train(prior: Prior, rows: Batch, held: Batch, seed: int, lr: float) -> None:
    """AdamW, by which both kinds train: with some 1,000 steps, or until held-out codes stop to gain."""
    size = min(BATCH, max(32, len(rows) // 20))
    epochs = min(max(10, STEPS * size // len(rows)), 200)
    training = Training(batch_size=size, optimizer="adamw", patience=max(10, epochs // 5), precision="float32")
    streams = Resident(rows, size, seed), Resident(held, 4 * size, seed, shuffle=False)
    train(prior, *streams, training, epochs=epochs, lr=lr, seed=seed)
    prior.eval()


def _nothing(z: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(len(z), 0, dtype=dtype)
