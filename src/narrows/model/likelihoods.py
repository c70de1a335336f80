"""From the decoder's outputs to a distribution over cells: one family for each kind of cell, joined.

A row's outputs are those of the N number cells (a location for each, or the chances of its bins), then `levels + 1`
logits for each category and each token of a text: its known levels, and one for every other; fewer of a category with
many levels (see `factored`). Each family knows its link from outputs to the range of its data. The words people use:
`mse` is a Gaussian of fixed scale without its constant, so that the loss is the sum of squared errors; `bce` is the
Bernoulli likelihood; cross-entropy is what every category and token has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn

from narrows.errors import SettingError
from narrows.model.binned import BINS, Bins
from narrows.model.categorical import Categorical
from narrows.model.draws import drawn
from narrows.model.factored import Classes
from narrows.model.families import (
    Bernoulli,
    Gaussian,
    Huber,
    Multinomial,
    NegativeBinomial,
    NumberFamily,
    Poisson,
    SquaredError,
    Student,
)
from narrows.schema import Batch, Column, Schema

Words = str | dict[str, str]
BINNED = re.compile(r"bins\((\d+)\)")
FIXED = re.compile(r"(gaussian|huber|student)\(((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\)")
ALIASES = {"bce": "bernoulli", "nb": "negative_binomial", "huber": "huber(1.0)", "bins": f"bins({BINS})"}
SIMPLE: dict[str, Callable[[], NumberFamily]] = {"bernoulli": Bernoulli, "poisson": Poisson, "multinomial": Multinomial}
COUNTS = ("poisson", "negative_binomial")
BINNABLE = ("number", "count")  # kinds whose cells are sampled while the preparer learns
PLAIN = ("auto", "mse", "gaussian", "student", "bernoulli", "multinomial", *COUNTS)
LINKED = ("mse", "huber")  # families whose outputs have a link of choice
WORDS = (
    "auto, mse, huber, huber(0.1), gaussian, gaussian(0.1), student, student(5), bernoulli (bce), poisson, "
    "negative_binomial (nb), bins, bins(32) or multinomial"
)


@dataclass(frozen=True)
class Prediction:
    """p(row | code), as a likelihood and the decoder's outputs (K, [E,] B, outputs).

    Args:
        likelihood: that the outputs are for.
        outputs: of the decoder.
        told: text -> its codes (K * B, T) where the decoder drew them one after the other, reading what it said.
    """

    likelihood: Likelihood
    outputs: Tensor
    told: Mapping[str, Tensor] = field(default_factory=dict)

    def log_prob(self, batch: Batch) -> Tensor:
        """Log likelihood of each cell, (K, [E,] B, C); exactly 0 where it was not seen."""
        return self.likelihood.log_prob(self.outputs, batch)

    def cost(self, batch: Batch) -> Tensor:
        """Minus the log likelihood of each row's seen cells, (K, [E,] B): `-log_prob(batch).sum(-1)`, sooner."""
        return self.likelihood.cost(self.outputs, batch)

    def numbers(self) -> Tensor:
        """Expected number cells, (K, [E,] B, N)."""
        return self.likelihood.mean(self.outputs)

    def codes(self) -> Tensor:
        """Most probable known levels, (K, [E,] B, M)."""
        return self.likelihood.mode(self.outputs)

    def sample(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Drawn number cells (K, [E,] B, N) and known levels (K, [E,] B, M), from torch's global generator.

        Cells of squared error, huber, chances and shares are no draws but the expected ones; what was `told` stays.

        Args:
            temperature: times the standard deviation of numbers, and what logits of levels are divided by.
        """
        numbers, codes = self.likelihood.sample(self.outputs, temperature)
        for name, told in self.told.items():
            codes[..., self.likelihood.places[name]] = told.view(*codes.shape[:-1], -1)
        return numbers, codes


class Likelihood(nn.Module):
    """The families of a schema, joined: calling it on a decoder's outputs gives a `Prediction`.

    Args:
        schema: of the prepared data.
        numbers: family of each number cell: `mse`, `huber(1.0)` (squared error up to that distance, in prepared units,
            linear beyond; `huber` for short), `gaussian` (learnt scale), `gaussian(0.1)` (fixed scale, in prepared
            units), `student` (learnt scale and degrees of freedom), `student(5)` (fixed ones), `bernoulli` (or `bce`),
            `poisson`, `negative_binomial` (or `nb`), `bins(32)` (chances of at most so many bins, learnt from the data;
            `bins` for 64), `multinomial`, or `auto`: Bernoulli for columns that lie in
            [0, 1], negative binomial for counts, multinomial for bags, Gaussian for the rest.
            A mapping chooses by column; columns it leaves out are `auto`. One word for all is for the columns that it
            suits: `mse` leaves counts and bags what `auto` gives them.
        link: activation of the outputs where the family is `mse` or `huber`; `auto` is the sigmoid for columns that
            lie in [0, 1] (on MNIST it halved the error of the same network), and none for the rest.
        members: networks side by side.

    Raises:
        SettingError: for an unknown family or column, or one that does not suit the column's values.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self,
        schema: Schema,
        numbers: Words = "auto",
        link: str = "auto",
        members: int | None = None,
    ) -> None:
        super().__init__()
        # columns of one family and link are one group of cells; every bag is one of its own, as its softmax is
        chosen = {
            c: (f, _link(f, schema[c], link), c if f == "multinomial" else "")
            for c, f in choose_families(schema, numbers).items()
        }
        kinds = sorted(set(chosen.values()))
        groups = [[c for c in chosen if chosen[c] == kind] for kind in kinds]
        cells = [[i for c in group for i in _span(schema, c)] for group in groups]
        self.sizes = [len(group) for group in cells]
        self.families = nn.ModuleList(_family(*k[:2], n, members) for k, n in zip(kinds, self.sizes, strict=True))
        each = [family.outputs for family in self._families()]
        self.widths = [outputs * size for outputs, size in zip(each, self.sizes, strict=True)]
        self.spans = _output_spans(schema, {c: n for group, n in zip(groups, each, strict=True) for c in group})
        self.categories = Categorical(schema.levels, _many(schema), members) if schema.levels else None
        self.cells, self.count = schema.numbers, sum(self.widths)
        spans = {column.name: schema.spans[column.name] for column in schema if column.categorical}
        self.places = {c: slice(span.start - self.cells, span.stop - self.cells) for c, span in spans.items()}
        self.width = self.count + (self.categories.outputs if self.categories else 0)
        # the decoder's outputs stand family by family; `order` says which cell each is, `back` undoes it
        order = torch.tensor([i for group in cells for i in group], dtype=torch.long)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    @property
    def learns(self) -> bool:
        """Whether some family settles on a sample of the rows before training."""
        return any(type(family).learn is not NumberFamily.learn for family in self._families())

    def learn(self, sample: Tensor) -> None:
        """Let each family settle on a sample of the training rows, (R, N) prepared cells, NaN where not seen."""
        for family, cells in zip(self._families(), torch.split(sample[:, self.order], self.sizes, dim=1), strict=True):
            family.learn(cells)

    @property
    def density(self) -> bool:
        """Whether every cell has a proper density or probability."""
        return all(family.density for family in self._families())

    def forward(self, outputs: Tensor) -> Prediction:
        """The distribution that these outputs describe; float32, whatever precision the network ran in."""
        return Prediction(self, outputs.float())

    def log_prob(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Log likelihood of each cell, (..., B, C); exactly 0 where it was not seen."""
        parts = [family.log_prob(*group) for family, *group in self._beside(outputs, batch)]
        joined = self._in_cell_order(parts, outputs)
        if self.categories is not None:
            codes = self.categories.log_prob(outputs[..., self.count :], batch.codes)
            joined = torch.cat([joined, codes], dim=-1)
        return joined if batch.seen is None else joined.masked_fill(~batch.seen, 0.0)

    def cost(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Minus the log likelihood of each row's seen cells, (..., B); see `Prediction.cost`."""
        if batch.seen is not None:
            return -self.log_prob(outputs, batch).sum(-1)
        parts = [family.cost(*group) for family, *group in self._beside(outputs, batch)]
        if self.categories is not None:
            parts.append(-self.categories.log_prob(outputs[..., self.count :], batch.codes).sum(-1))
        return sum(parts[1:], parts[0])

    def _beside(self, outputs: Tensor, batch: Batch) -> Iterator[tuple[NumberFamily, Tensor, Tensor]]:
        """Each family, the outputs that are for it, and the cells."""
        if len(self.sizes) < 2:
            return zip(self._families(), self._grouped(outputs), [batch.numbers], strict=False)
        cells = torch.split(batch.numbers[:, self.order], self.sizes, dim=1)
        return zip(self._families(), self._grouped(outputs), cells, strict=True)

    def binned(self, outputs: Tensor | None) -> Iterator[tuple[Tensor, Bins, Tensor]]:
        """The cells that are told by bins (n,), their family, and the outputs for them; these are empty for None."""
        places = torch.split(self.order, self.sizes)
        groups = self._grouped(outputs) if outputs is not None else [self.order[:0]] * len(self.sizes)
        for cells, family, group in zip(places, self._families(), groups, strict=True):
            if isinstance(family, Bins):
                yield cells, family, group

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected number cells, (..., N)."""
        groups = zip(self._families(), self._grouped(outputs), strict=True)
        return self._in_cell_order([family.mean(group) for family, group in groups], outputs)

    def mode(self, outputs: Tensor) -> Tensor:
        """Most probable known levels, (..., M)."""
        if self.categories is None:
            return outputs.new_zeros((*outputs.shape[:-1], 0), dtype=torch.long)
        return self.categories.mode(outputs[..., self.count :])

    def sample(self, outputs: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Drawn number cells (..., N) and known levels (..., M); see `Prediction.sample`."""
        groups = zip(self._families(), self._grouped(outputs), strict=True)
        numbers = self._in_cell_order([family.sample(group, temperature) for family, group in groups], outputs)
        if self.categories is None:
            return numbers, self.mode(outputs)
        return numbers, self.categories.sample(outputs[..., self.count :], temperature)

    def at_position(self, column: Column, outputs: Tensor, temperature: float | None = None) -> Tensor:
        """What one position of an array column holds, by its outputs: cells (B, v) or codes (B,).

        The most probable, or with a temperature a drawn code.
        """
        if column.categorical:  # as `mode`: what is fed back is what is said
            logits = outputs[..., :-1]
            return logits.argmax(-1) if temperature is None else drawn(logits, temperature)
        start, at = self.spans[column.name].start, 0
        for family, size in zip(self._families(), self.widths, strict=True):
            if at <= start < at + size:
                return family.mean(outputs)
            at += size
        raise SettingError(f"column {column.name!r}", "a column of number cells")

    def _families(self) -> list[NumberFamily]:
        return list(self.families)  # type: ignore[arg-type]

    def _grouped(self, outputs: Tensor) -> tuple[Tensor, ...]:
        numbers = outputs if self.categories is None else outputs[..., : self.count]
        return (numbers,) if len(self.widths) == 1 else torch.split(numbers, self.widths, dim=-1)

    def _in_cell_order(self, parts: list[Tensor], outputs: Tensor) -> Tensor:
        """The families' values side by side, each in its cell's place."""
        if not parts:
            return outputs[..., :0]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)[..., self.back]


def choose_families(schema: Schema, numbers: Words) -> dict[str, str]:
    """The word for every column that has number cells: one of `WORDS` but `auto`, other names replaced.

    Raises:
        SettingError: for an unknown word or column, or `bernoulli` for a column that leaves [0, 1].
    """
    columns = [column for column in schema if not column.categorical and column.width]
    asked = {c.name: numbers for c in columns} if isinstance(numbers, str) else dict(numbers)
    unknown = set(asked) - {column.name for column in columns}
    if unknown:
        raise SettingError(f"a likelihood for {', '.join(sorted(unknown))}", "columns of numbers")
    one = isinstance(numbers, str)
    chosen = {column.name: _word(column, asked.get(column.name, "auto"), one) for column in columns}
    word = ALIASES.get(numbers, numbers) if isinstance(numbers, str) else "auto"
    if word not in ("auto", "mse", *chosen.values()) and not BINNED.fullmatch(word) and columns:
        raise SettingError(f"likelihood {numbers!r}", "one that suits some column", "--column.NAME count, or auto")
    return chosen


def _word(column: Column, asked: str, for_all: bool) -> str:
    """The word asked for, checked; `auto` and other names replaced by what they stand for."""
    word = ALIASES.get(asked, asked)
    if word not in PLAIN and not FIXED.fullmatch(word) and not BINNED.fullmatch(word):
        raise SettingError(f"likelihood {asked!r}", WORDS)
    if BINNED.fullmatch(word) and column.kind in BINNABLE and not column.grid:
        return word
    usual = {"count": "negative_binomial", "bag": "multinomial"}.get(column.kind)
    if word == "auto":
        return usual or ("bernoulli" if column.bounded else "gaussian")
    if for_all and usual and not (word in COUNTS or (word == "multinomial" and column.kind == "bag")):
        return usual
    if word == "bernoulli" and not column.bounded:
        raise SettingError(
            f"a Bernoulli likelihood for column {column.name!r}", "numbers in [0, 1]", "transform it by `minmax`"
        )
    if word in COUNTS and not usual:
        if for_all:
            return "bernoulli" if column.bounded else "gaussian"
        hint = f"--column.{column.name} count"
        raise SettingError(f"likelihood {asked!r} for column {column.name!r} of kind {column.kind}", "counts", hint)
    wanted = "single numbers or counts" if BINNED.fullmatch(word) else "a bag" if word == "multinomial" else ""
    if wanted and (column.kind != "bag" or wanted != "a bag"):
        if for_all:
            return _word(column, "auto", for_all)
        raise SettingError(f"likelihood {asked!r} for column {column.name!r} of kind {column.kind}", wanted)
    return word


def _many(schema: Schema) -> dict[int, Classes]:
    """Code cell -> how its levels are told, of categories with many."""
    columns = [column for column in schema if column.classes]
    places = [schema.spans[column.name].start - schema.numbers for column in columns]
    shapes = [Classes(column.levels, column.classes, column.vector) for column in columns]
    return dict(zip(places, shapes, strict=True))


def _output_spans(schema: Schema, numbers: dict[str, int]) -> dict[str, slice]:
    """Where each column's outputs stand: the numbers in this order, so many a cell, then the codes in the schema's."""
    codes = [column for column in schema if column.categorical]
    ordered = [(name, schema[name].width * outputs) for name, outputs in numbers.items()]
    ordered += [(column.name, column.cells * column.outputs) for column in codes]
    starts = accumulate((width for _, width in ordered), initial=0)
    return {name: slice(start, start + width) for (name, width), start in zip(ordered, starts, strict=False)}


def _span(schema: Schema, column: str) -> range:
    span = schema.spans[column]
    return range(span.start, span.stop)


def _link(family: str, column: Column, link: str) -> str:
    """The link of a column's squared errors or Huber's; the other families have their own."""
    if not family.startswith(LINKED):
        return "identity"
    return link if link != "auto" else "sigmoid" if column.bounded else "identity"


def _family(word: str, link: str, cells: int, members: int | None) -> NumberFamily:
    if word == "mse":
        return SquaredError(link)
    if word == "negative_binomial":
        return NegativeBinomial(cells, members)
    if word in SIMPLE:
        return SIMPLE[word]()
    if binned := BINNED.fullmatch(word):
        return Bins(cells, int(binned[1]))
    fixed = FIXED.fullmatch(word)
    number = float(fixed[2]) if fixed else None
    if number is not None and word.startswith("huber"):
        return Huber(number, link)
    return (Student if word.startswith("student") else Gaussian)(cells, number, members=members)
