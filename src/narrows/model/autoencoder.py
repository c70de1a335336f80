"""The one module: the slots, and a forward pass that reads in the order the data meets them.

    batch -> augment -> corrupt -> embed -> encoder -> latent -> decoder -> likelihood -> Loss
      B rows, C cells                              z (K, [E,] B, size)          nll (K, [E,] B, C)

K samples of the code, E members where the network is an ensemble. The loss counts the uncorrupted cells, where they
were seen; penalties look at the whole pass. Variants are other parts in the slots; nothing subclasses
`AutoencoderModule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import log
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from narrows.model.embed import CellEmbed, Embed, GridEmbed
from narrows.model.latents import Code, Latent
from narrows.model.likelihoods import Likelihood, Prediction
from narrows.model.objectives import Objective
from narrows.model.penalties import Pass, Penalty
from narrows.networks.grids import Feedback
from narrows.schema import Batch


@dataclass(frozen=True)
class Loss:
    """What a pass cost, row by row and term by term, not yet added up.

    Args:
        costs: (K, [E,] B) negative log likelihood of each row's seen cells.
        cells: gives `nll`, which training never looks at unless it is to say which cells broke.
        terms: name -> (K, [E,] B) what the latent asks of each row.
        weights: name -> weight of a term, a number or (), such as beta for `kl`; terms without one weigh 1.
        rows: (B,) weight of each row, or None for equal ones.
        scalars: name -> () what latent and penalties ask of the batch, members summed; trains, never scores.
        opposing: () the loss of the weights that train against the rest, which `total` leaves out; None without such.
        importance: whether the K samples are importance samples of one likelihood, in place of K losses to average.
    """

    costs: Tensor
    cells: Callable[[], Tensor]
    terms: dict[str, Tensor]
    weights: Mapping[str, float | Tensor]
    rows: Tensor | None = None
    scalars: dict[str, Tensor] = field(default_factory=dict)
    opposing: Tensor | None = None
    importance: bool = False

    @classmethod
    def of_cells(
        cls, nll: Tensor, terms: dict[str, Tensor], weights: Mapping[str, float | Tensor], rows: Tensor | None = None
    ) -> Loss:
        """The loss of cells that were looked at one by one."""
        return cls(nll.sum(-1), lambda: nll, terms, weights, rows)

    @property
    def nll(self) -> Tensor:
        """(K, [E,] B, C) negative log likelihood of each seen cell, 0 elsewhere."""
        return self.cells()

    def per_row(self) -> Tensor:
        """([E,] B) loss of each row: summed over cells and weighted terms, over samples the mean or -log mean exp."""
        total = self.costs
        for name, term in self.terms.items():
            total = total + self.weights.get(name, 1.0) * term
        if len(total) == 1:
            return total.squeeze(0)
        return log(len(total)) - torch.logsumexp(-total, dim=0) if self.importance else total.mean(0)

    def total(self) -> Tensor:
        """The number to minimize: (weighted) mean over rows; summed over members, each of which trains as if alone."""
        total = _mean(self.per_row(), self.rows)
        for name, scalar in self.scalars.items():
            total = total + self.weights.get(name, 1.0) * scalar
        return total

    def broken(self) -> list[int]:
        """Positions of the cells whose likelihood is not finite for some row."""
        finite = self.nll.isfinite().flatten(0, -2).all(0)
        return (~finite).nonzero().flatten().tolist()


def _mean(rows: Tensor, weight: Tensor | None) -> Tensor:
    """() the (weighted) mean of ([E,] B) over rows, summed over members."""
    if weight is None:
        return rows.mean() if rows.ndim == 1 else rows.mean(-1).sum()
    # a batch may hold rows of weight 0 alone; it costs nothing then
    return (rows @ weight).sum() / weight.sum().clamp_min(torch.finfo(torch.float32).tiny)


@final
class AutoencoderModule(nn.Module):
    """An autoencoder: the slots, filled.

    Args:
        augment: Batch -> Batch, applied to the rows of training and validation; what it gives is what the model is to
            reconstruct. It says itself what it does in training only.
        corrupt: Batch -> Batch, applied to what the encoder sees of the rows of training and validation: a code wide
            enough to copy clean rows would else be chosen by how well it copies, not by what it was trained for.
        embed: Batch -> (B, inputs), or a View where the network reads grids.
        encoder: (B, inputs) or View -> ([E,] B, features).
        latent: features -> Code.
        decoder: (K, [E,] B, size) -> (K, [E,] B, outputs). An autoregressive one also reads the embedded rows.
        likelihood: outputs -> Prediction.
        objective: weights of terms and penalties, and how samples of a code become one loss.
        penalties: on each pass of training.
    """

    def __init__(
        self,
        augment: nn.Sequential,
        corrupt: nn.Sequential,
        embed: Embed | GridEmbed | CellEmbed,
        encoder: nn.Module,
        latent: Latent,
        decoder: nn.Module,
        likelihood: Likelihood,
        objective: Objective,
        penalties: Sequence[Penalty] = (),
    ) -> None:
        super().__init__()
        self.augment, self.corrupt, self.embed, self.encoder = augment, corrupt, embed, encoder
        self.latent, self.decoder, self.likelihood = latent, decoder, likelihood
        self.objective, self.penalties = objective, nn.ModuleList(penalties)
        self._risen: dict[str, Tensor] = {}
        self._code: Code | None = None  # of the step that is being taken, where the latent learns from it
        self._learns = type(latent).update is not Latent.update

    def forward(self, batch: Batch) -> Loss:
        """The loss of a batch, with as many samples of each code as the objective asks for."""
        batch = self.augment(batch.dense())
        view = self.corrupt(batch)
        objective = self.objective
        code = self._code_of(view, objective.samples, objective.importance)
        if self.training and self._learns:
            self._code = code
        return self._loss(code, batch, view)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: all but the code of a step that may be open, whose gradients are no copy's."""
        return {**self.__dict__, "_code": None}

    def before_step(self, done: float) -> None:
        """Told before each step: the share of training that is done, by which weights may rise.

        They rise where they are: a step that was recorded on a GPU reads them anew each time.
        """
        if not self.objective.warm_up:
            return
        weights, device = self.objective.at(done), self.device
        if not self._risen or next(iter(self._risen.values())).device != device:
            self._risen = {name: torch.empty((), device=device) for name in weights}
        for name, weight in weights.items():
            self._risen[name].fill_(weight)

    def after_step(self) -> None:
        """Told after each step: the latent learns what gradients do not."""
        code, self._code = self._code, None
        if code is not None:
            with torch.no_grad():
                self.latent.update(code)

    def opponents(self) -> list[nn.Parameter]:
        """Weights that train against the rest, towards a loss of their own."""
        return list(self.penalties.parameters())

    def encode(self, batch: Batch, samples: int = 0) -> Code:
        """The best guess of each row's code, z (1, [E,] B, size); or draws of it, z (samples, [E,] B, size)."""
        return self._code_of(batch.dense(), samples)

    def decode(self, z: Tensor, temperature: float | None = None) -> Prediction:
        """The rows that codes (K, [E,] B, size) stand for.

        What is told step by step goes on from its own words: the most probable ones, or with a temperature drawn ones,
        which the prediction then keeps (`Prediction.told`).
        """
        if not self.autoregressive:
            prediction: Prediction = self.likelihood(self.decoder(z))
            return prediction
        said: dict[str, list[Tensor]] = {}
        prediction = self.likelihood(self.decoder(z, None, self._feedback(temperature, said)))
        columns = self.embed.columns if isinstance(self.embed, GridEmbed) else []
        grids = {column.name: column.grid for column in columns if temperature is not None and column.categorical}
        told = {name: torch.stack(said[name], dim=1)[:, : grid[0]] for name, grid in grids.items() if name in said}
        return replace(prediction, told=told)

    def score(self, batch: Batch) -> Loss:
        """The loss of a batch at the best guess of its codes: the same whenever it is asked."""
        batch = batch.dense()
        code = self.encode(batch)
        return Loss.of_cells(-self._predict(code, batch).log_prob(batch), code.terms, self.weights, batch.weight)

    def likelihoods(self, batch: Batch, samples: int) -> Tensor:
        """(samples, [E,] B) log importance weights, log p(x, z) - log q(z|x) with z from q: none of them weighed.

        The logarithm of their mean is an estimate of log p(x) from below that rises to it (Burda et al. 2016).
        """
        batch = batch.dense()
        code = self._code_of(batch, samples, ratio=True)
        log_prob = self._predict(code, batch).log_prob(batch).sum(-1)
        return log_prob - torch.stack([*code.terms.values()]).sum(0)

    @property
    def weights(self) -> Mapping[str, float | Tensor]:
        """Weight of each term, such as beta for `kl`: in training as far as it has risen."""
        return (self.training and self._risen) or self.objective.weights

    @property
    def repeats(self) -> bool:
        """Whether a step on rows of one shape is the same operations each time, so that it can be recorded.

        Not where opponents train, and not of modules of the user's own, which may do as they like.
        """
        ours = all(type(part).__module__.startswith(("torch.nn.", "narrows.")) for part in self.modules())
        return ours and not self.opponents()

    def _code_of(self, view: Batch, samples: int, ratio: bool = False) -> Code:
        code: Code = self.latent(self.encoder(self.embed(view)), samples, ratio)
        return code

    def _predict(self, code: Code, batch: Batch) -> Prediction:
        """What codes say of the rows that they are to stand for."""
        outputs = self.decoder(code.z, self.embed(batch)) if self.autoregressive else self.decoder(code.z)
        prediction: Prediction = self.likelihood(outputs)
        return prediction

    def _loss(self, code: Code, batch: Batch, view: Batch) -> Loss:
        """What codes cost that are to stand for these rows, penalties included."""
        p = self._predict(code, batch)
        passed = Pass(batch, view, code, p, self.decode)
        scalars, against = dict(code.scalars), []
        for penalty in cast(Sequence[Penalty], self.penalties):
            if self.training or penalty.judges:
                cost = penalty(passed)
                scalars[penalty.name] = _mean(cost, batch.weight) if cost.ndim else cost
            if self.training and (opposing := penalty.opposing(passed)) is not None:
                against.append(opposing)
        opposing = torch.stack(against).sum() if against else None
        cells = partial(self._cells, p, batch, view)
        costs = p.cost(batch) if self.objective.shown == 1.0 or view.seen is None else cells().sum(-1)
        importance = self.objective.importance
        return Loss(costs, cells, code.terms, self.weights, batch.weight, scalars, opposing, importance)

    def _cells(self, p: Prediction, batch: Batch, view: Batch) -> Tensor:
        """(K, [E,] B, C) what each cell costs, those that were shown as the objective weighs them."""
        nll = -p.log_prob(batch)
        if self.objective.shown == 1.0 or view.seen is None:
            return nll
        return torch.where(view.seen, self.objective.shown * nll, nll)

    @property
    def autoregressive(self) -> bool:
        """Whether the decoder reads what came before: the rows themselves in training, its own words in `decode`."""
        return bool(getattr(self.decoder, "autoregressive", False))

    def _feedback(self, temperature: float | None, said: dict[str, list[Tensor]]) -> list[Feedback]:
        """For each grid: outputs at a position -> the position as the decoder reads it; `said` keeps the words."""
        embed = self.embed
        if not isinstance(embed, GridEmbed):
            return []

        def feed(index: int, outputs: Tensor) -> Tensor:
            column = embed.columns[index]
            here = self.likelihood.at_position(column, outputs.float(), temperature)
            said.setdefault(column.name, []).append(here)
            return embed.feed(index, here)

        return [partial(feed, index) for index in range(len(embed.columns))]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
