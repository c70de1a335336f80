"""Families of distributions for number cells: outputs and cells to log densities, each with its own link.

A family knows the range of its data and nothing of columns. Locations are one output a cell; scales and dispersions are
learnt, one for each cell, with floors that keep densities finite where values repeat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf, log, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.entropy import CrossEntropy
from narrows.networks.dense import activation

RATES = 20.0  # largest logarithm of an expected count: e^20 is half a billion, and float32 exponentials stay finite


class NumberFamily(nn.Module, ABC):
    """Outputs (..., n * outputs) and cells (B, n) -> log density of each cell.

    Attributes:
        density: whether it is one, and not an error without the constant that would make it one.
        outputs: that tell a cell, all of a cell side by side.
    """

    density = True
    outputs = 1

    def learn(self, sample: Tensor) -> None:
        """Settle before training on what a sample of the training rows shows.

        Args:
            sample: (R, n) prepared cells, NaN where they were not seen.
        """

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Expected cells, in prepared units."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log density of each cell, (..., B, n)."""

    def cost(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Minus the log density of each row, (..., B): what training asks for, in fewer passes where a family can."""
        return -self.log_prob(outputs, cells).sum(-1)

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Drawn cells, from torch's global generator; the expected ones where there is no distribution to draw from.

        Args:
            outputs: (..., n) as the decoder gives them.
            temperature: times the standard deviation, where there is one.
        """
        return self.mean(outputs)


class SquaredError(NumberFamily):
    """Minus the squared error: a Gaussian of variance 1/2 without its constant, so not a density.

    Args:
        link: activation of the outputs; `sigmoid` keeps reconstructions of [0, 1] data in range.
    """

    density = False

    def __init__(self, link: str = "identity") -> None:
        super().__init__()
        self.link = activation(link)

    def mean(self, outputs: Tensor) -> Tensor:
        """The linked outputs."""
        linked: Tensor = self.link(outputs)
        return linked

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Minus the squared error of each cell."""
        return -(self.mean(outputs) - cells).square()

    def cost(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """The squared error of each row."""
        return (self.mean(outputs) - cells).square().sum(-1)


class Huber(NumberFamily):
    """Minus the squared error of cells that are near, which grows but linearly beyond (Huber 1964): not a density.

    Within `delta` it is what `SquaredError` is (twice Huber's own scale), so that one wild cell pulls at the weights no
    harder than one that is `delta` off.

    Args:
        delta: where the linear part begins, in prepared units.
        link: activation of the outputs.

    Raises:
        SettingError: for a delta that is not above 0.
    """

    def __init__(self, delta: float = 1.0, link: str = "identity") -> None:
        super().__init__()
        if not 0 < delta < inf:
            raise SettingError(f"huber({delta:g})", "a distance above 0, such as huber(1.0)")
        self.delta, self.link = delta, activation(link)

    def mean(self, outputs: Tensor) -> Tensor:
        """The linked outputs; where cells are lopsided they tend to the median, the more so the smaller `delta`."""
        linked: Tensor = self.link(outputs)
        return linked

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Minus `e**2` up to `delta`, minus `2 delta |e| - delta**2` beyond."""
        distance = (self.mean(outputs) - cells).abs()
        near = distance.clamp_max(self.delta)
        return near * (near - 2 * distance)


class Gaussian(NumberFamily):
    """Normal density of each cell around the linked output.

    Args:
        cells: number cells of a row.
        scale: fixed standard deviation, in prepared units; None learns one for each cell.
        floor: smallest learnt scale, so that repeated values do not send the density to infinity: a hundredth of a
            standardized column's spread.
        members: networks side by side, each with scales of its own; None for one.
    """

    def __init__(self, cells: int, scale: float | None = None, floor: float = 1e-2, members: int | None = None) -> None:
        super().__init__()
        if scale is not None and not scale > 0:
            raise SettingError(f"scale={scale!r}", "a standard deviation above 0, or None to learn it")
        self.floor = floor
        shape = (cells,) if members is None else (members, 1, cells)
        self.log_scale = nn.Parameter(torch.zeros(shape)) if scale is None else None
        self.fixed = scale

    def mean(self, outputs: Tensor) -> Tensor:
        """The outputs themselves."""
        return outputs

    def scale(self) -> Tensor:
        """Standard deviation of each cell; one for all where it is fixed."""
        if self.log_scale is None:
            return torch.tensor(self.fixed)
        return _floored(self.log_scale, self.floor)

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log normal density of each cell."""
        scale = self.scale()
        return -0.5 * ((cells - outputs) / scale).square() - scale.log() - 0.5 * log(2 * pi)

    def cost(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Minus the log normal density of each row."""
        scale, count = self.scale(), cells.shape[-1]
        height = scale.log().sum(-1) if scale.ndim else count * scale.log()
        return 0.5 * ((cells - outputs) / scale).square().sum(-1) + height + 0.5 * count * log(2 * pi)

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Normal draws."""
        return outputs + temperature * self.scale() * torch.randn_like(outputs)


class Student(NumberFamily):
    """Student's t density of each cell around the output, its scale learnt for each cell: tails that bear outliers.

    Args:
        cells: number cells of a row.
        freedom: degrees of freedom; None learns them for each cell, between 1, below which there is no mean, and about
            1,000, where the density is as good as normal.
        floor: smallest learnt scale, as a `Gaussian`'s.
        members: networks side by side, each with scales and freedoms of its own; None for one.

    Raises:
        SettingError: for a freedom that is not above 0.
    """

    def __init__(
        self, cells: int, freedom: float | None = None, floor: float = 1e-2, members: int | None = None
    ) -> None:
        super().__init__()
        if freedom is not None and not 0 < freedom < inf:
            raise SettingError(f"student({freedom:g})", "degrees of freedom above 0, such as student(5)")
        self.floor, self.fixed = floor, freedom
        shape = (cells,) if members is None else (members, 1, cells)
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.log_freedom = nn.Parameter(torch.full(shape, log(4.0))) if freedom is None else None

    def mean(self, outputs: Tensor) -> Tensor:
        """The outputs themselves, where the density is highest."""
        return outputs

    def freedom(self) -> Tensor:
        """Degrees of freedom of each cell; one for all where they are fixed."""
        if self.log_freedom is None:
            return torch.tensor(self.fixed)
        return 1.0 + self.log_freedom.clamp(-7.0, 7.0).exp()

    def scale(self) -> Tensor:
        """Scale of each cell: the standard deviation, where the freedom is large."""
        return _floored(self.log_scale, self.floor)

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log density of each cell."""
        freedom, scale = self.freedom(), self.scale()
        half = freedom.double() / 2  # a difference of large logarithms
        height = torch.lgamma(half + 0.5) - torch.lgamma(half) - 0.5 * (2 * pi * half).log()
        tail = 0.5 * (freedom + 1) * (((cells - outputs) / scale).square() / freedom).log1p()
        return height.to(outputs.dtype) - scale.log() - tail

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Draws of this density, tails and all."""
        freedom = self.freedom().to(outputs).expand_as(outputs)
        return outputs + temperature * self.scale() * torch.distributions.StudentT(freedom).sample()


class Bernoulli(NumberFamily):
    """Binary cells, and cells in [0, 1] taken as chances: the cross-entropy of pixels.

    Beyond [0, 1] a cross-entropy has no meaning, and would reward what lies there; such a cell counts as the nearer
    end, less its squared distance from it, so that a row fits the worse the further out it is. A gray pixel is a chance
    itself, not the outcome of one, so that samples are the chances: zeros and ones would be a picture full of specks.
    """

    def mean(self, outputs: Tensor) -> Tensor:
        """The sigmoid of the outputs."""
        return outputs.sigmoid()

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """`x log m + (1 - x) log(1 - m)`, from logits, less the squared excess over [0, 1]."""
        within = cells.clamp(0.0, 1.0)
        return within * outputs - F.softplus(outputs) - (cells - within).square()

    def cost(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """The cross-entropy of each row."""
        within = cells.clamp(0.0, 1.0)
        entropy: Tensor = CrossEntropy.apply(outputs, within)  # type: ignore[no-untyped-call]
        return entropy + (cells - within).square().sum(-1)


class Counting(NumberFamily):
    """Families of counts 0, 1, 2, ...: an output is the logarithm of the expected count.

    Their logarithms are differences of numbers as large as `n log n`, so they are taken in float64: in float32 a count
    of a million was off by a nat, one of ten million by seven.
    """

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected counts."""
        return _rate(outputs).exp()


class Poisson(Counting):
    """Counts whose variance is their mean."""

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """`n log m - m - log n!`."""
        rate, counts = _rate(outputs.double()), cells.double().clamp_min(0.0)
        return (counts * rate - rate.exp() - torch.lgamma(counts + 1)).to(outputs.dtype)

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Drawn counts; no temperature changes them."""
        return torch.poisson(self.mean(outputs))


class NegativeBinomial(Counting):
    """Counts of variance m + m**2 / r, with a dispersion r learnt for each cell: a Poisson whose rate varies.

    What most real counts are (Lopez et al. 2018 on gene expression). Between r = 0.01 and 10,000, where counts of up
    to some hundreds are as good as Poisson's.

    Args:
        cells: number cells of a row.
        members: networks side by side, each with dispersions of its own; None for one.
    """

    def __init__(self, cells: int, members: int | None = None) -> None:
        super().__init__()
        self.log_dispersion = nn.Parameter(torch.zeros((cells,) if members is None else (members, 1, cells)))

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Log probability of each count."""
        log_r = self.log_dispersion.double().clamp(log(0.01), log(10_000.0))
        r, rate, counts = log_r.exp(), _rate(outputs.double()), cells.double().clamp_min(0.0)
        # log (r + m), log r / (r + m) and log m / (r + m) by way of logarithms: no difference of large numbers
        both = torch.logaddexp(log_r, rate)
        choices = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
        return (choices + r * (log_r - both) + counts * (rate - both)).to(outputs.dtype)

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> Tensor:
        """Drawn counts, Poisson around a rate that is drawn from a gamma distribution; no temperature changes them."""
        r = self.log_dispersion.clamp(log(0.01), log(10_000.0)).exp()
        mean = self.mean(outputs)
        return torch.poisson(torch.distributions.Gamma(r.expand_as(mean), r / mean).sample())


class Multinomial(NumberFamily):
    """One bag's counts, shared out by a softmax over its items (Liang et al. 2018).

    Without the multinomial coefficient, which no parameter changes: minus the sum over a row, divided by its total, is
    the logarithm of the perplexity. Weights need not be whole.
    """

    def mean(self, outputs: Tensor) -> Tensor:
        """Each item's share; they sum to 1."""
        return outputs.softmax(-1)

    def log_prob(self, outputs: Tensor, cells: Tensor) -> Tensor:
        """Count times log share."""
        return cells * outputs.log_softmax(-1)


def _floored(log_scale: Tensor, floor: float) -> Tensor:
    """The scales that logarithms stand for, none below the floor."""
    return (log_scale.clamp(-20.0, 20.0).mul(2).exp() + floor**2).sqrt()


def _rate(outputs: Tensor) -> Tensor:
    return outputs.clamp(-RATES, RATES)
