"""The waist: a fitted model is a preparer, a module, and what tasks learnt beside them. Everything passes here.

Rows come in as anything `open_source` takes; answers are arrays, or Arrow tables with the columns, names and types of
the training data. Inference runs in fixed blocks, padded, so a row's answer does not depend on its neighbors; it costs
little, since a block is small. Data larger than memory goes through `batches` and the methods on tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import torch
from torch import Tensor, nn

from narrows import tensorfile
from narrows.errors import DataError, ModelFileError, NarrowsError, SettingError
from narrows.findings import Finding
from narrows.model.autoencoder import AutoencoderModule, Loss
from narrows.model.building import build
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.prepare.preparer import Preparer
from narrows.schema import Batch, Schema
from narrows.sources.reading import Reading
from narrows.sources.source import Source, naming, open_source
from narrows.train.devices import choose_device

BLOCK = 256  # rows a pass: large enough for two cores to be busy, small enough to pad a single row for nothing
OUTPUTS = 1 << 25  # numbers that the decoder may say in a pass: texts of many kinds of tokens get smaller blocks


@dataclass(frozen=True)
class Part:
    """What a task learnt after training and keeps with the model: plain JSON facts, and tensors by name."""

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Model:
    """A fitted model.

    Args:
        preparer: raw columns <-> tensors.
        module: the trained autoencoder, in eval mode.
        recipe: how its slots were filled.
        latent: numbers in a code of one member.
        network: its encoder and decoder; None where the user brought encoder and decoder.
        facts: of the training: rows, epochs, losses, why it stopped, seed. No clock, host or path.
        parts: name -> what a task learnt.
        reading: how the training data was read.
    """

    preparer: Preparer
    module: AutoencoderModule
    recipe: Recipe
    latent: int
    network: Network | None
    facts: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    reading: Reading = field(default_factory=Reading)

    @property
    def schema(self) -> Schema:
        """Columns and cells of the training data."""
        return self.preparer.schema

    @property
    def members(self) -> int | None:
        """Networks side by side; None for one."""
        return self.network.members if self.network else None

    @property
    def code_size(self) -> int:
        """Numbers in the code of one row: `latent` for each member."""
        return self.latent * (self.members or 1)

    @property
    def diagnosis(self) -> list[Finding]:
        """What was found after the fit, problems and others (see `tasks.diagnosis`); empty where nobody looked."""
        part = self.parts.get("diagnosis", Part())
        found = part.facts.get("findings", [])
        return [Finding.from_json(finding) for finding in (found if isinstance(found, list) else [found])]

    # rows -> answers

    def encode(self, rows: Any) -> np.ndarray:
        """(n, code_size) float32 codes of rows."""
        return self._gather((self.codes(batch) for _, batch in self.batches(rows)), self.code_size)

    def decode(self, codes: np.ndarray) -> pa.Table:
        """The rows that (n, code_size) codes stand for, with the columns and types of the training data.

        Raises:
            DataError: for codes of another width, or not finite.
        """
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.code_size or codes.dtype.kind not in "fiu":
            raise DataError(f"codes of shape {codes.shape} ({codes.dtype})", f"numbers of shape (n, {self.code_size})")
        with np.errstate(over="ignore"):
            z = torch.from_numpy(np.require(codes, np.float32, ["C", "W"]))  # torch warns of what it could not write to
        if not z.isfinite().all():
            row = int((~z.isfinite()).any(1).nonzero()[0])
            raise DataError(
                f"codes with NaN, infinity or a number beyond float32, first in row {row}", "finite numbers"
            )
        restored = [self.rows(z[start : start + 65_536]) for start in range(0, max(len(z), 1), 65_536)]
        return pa.Table.from_batches(restored)

    def reconstruct(self, rows: Any) -> pa.Table:
        """The rows as the model gives them back: encoded, decoded, and every hole filled."""
        restored = [self.rows(self.codes(batch)) for _, batch in self.batches(rows)]
        return pa.Table.from_batches(restored, self.preparer.arrow_schema)

    def score(self, rows: Any) -> np.ndarray:
        """(n,) how badly each row fits, in the loss's units over its seen cells: higher is more abnormal."""
        return self._gather((self._sums(batch) for _, batch in self.batches(rows)), None)

    def source(self, rows: Any, reading: Reading | None = None) -> Source:
        """The source of rows, read as the training data was: windows of the same length, texts where texts were.

        Args:
            rows: anything `open_source` takes.
            reading: says of the file whether it has a header; the rest is known.
        """
        known = self.reading if reading is None else self.reading.of_file(reading)
        return open_source(rows, reading=known, texts=self.preparer.texts)

    # tensors -> tensors, the river's own units

    def batches(self, rows: Any) -> Iterator[tuple[pa.RecordBatch, Batch]]:
        """Raw and prepared rows, in order, at most 65,536 at a time."""
        source = self.source(rows)
        for first, raw in source.batches():
            with naming(source):
                batch = self.preparer.prepare(raw, first)
            yield raw, batch

    @torch.inference_mode()
    def codes(self, batch: Batch) -> Tensor:
        """(B, code_size) codes."""
        return self.blocks(batch, lambda part: flat(self.module.encode(part).z[0]))

    @torch.inference_mode()
    def cells(
        self, codes: Tensor, say: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Numbers (B, N) and category codes (B, M) that codes stand for.

        Args:
            codes: (B, code_size).
            say: codes as the decoder takes them, (1, [E,] B, latent) -> numbers (B, N) and codes (B, M); by default the
                expected ones, averaged over members.
        """
        say = say or self._expected

        def decode(part: Batch) -> Tensor:
            numbers, levels = say(self.grid(part.numbers))
            return torch.cat([numbers.double(), levels.double()], dim=1)

        as_batch = Batch(codes, torch.zeros(len(codes), 0, dtype=torch.long))
        joined = self.blocks(as_batch, decode)
        dense, bags, levels = joined.tensor_split([self.schema.dense, self.schema.numbers], dim=1)
        return torch.cat([self.known(dense), bags], dim=1).float(), levels.long()

    def known(self, dense: Tensor) -> Tensor:
        """(B, dense) guesses of numbers, with what never varied as it always was, and no count out of all bounds."""
        low, high = self.preparer.scaling.low, self.preparer.scaling.high
        dense = torch.where(low == high, low, dense)
        counts = self.schema.cells_where(kind="count")
        if counts:  # an expected count is an exponential: a row unlike any in training made 20 million of it
            dense[:, counts] = torch.minimum(dense[:, counts], 2 * high[counts] + 1)
        return dense

    def _expected(self, z: Tensor) -> tuple[Tensor, Tensor]:
        p = self.module.decode(z)
        numbers, levels = p.numbers()[0], p.codes()[0]
        return (numbers.mean(0), levels.mode(0).values) if self.members else (numbers, levels)

    def rows(self, codes: Tensor) -> pa.RecordBatch:
        """The rows that (B, code_size) codes stand for; as many at a time as their cells leave room for."""
        step = max(self.block_rows, OUTPUTS // self.outputs // self.block_rows * self.block_rows)
        starts = range(0, max(1, len(codes)), step)
        parts = [self.preparer.restore(*self.cells(codes[start : start + step])) for start in starts]
        return parts[0] if len(parts) == 1 else pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    @torch.inference_mode()
    def costs(self, batch: Batch) -> Tensor:
        """(B, C + terms) what each cell, then each of the latent's terms, adds to a row's score; mean over members."""
        return self.blocks(batch, self._cost)

    @torch.inference_mode()
    def _sums(self, batch: Batch) -> Tensor:
        """(B,) the costs of each row, summed before the cells of many rows stand side by side."""
        return self.blocks(batch, lambda part: self._cost(part).sum(1))

    def _cost(self, part: Batch) -> Tensor:
        loss: Loss = self.module.score(part)
        terms = [loss.weights.get(name, 1.0) * term for name, term in loss.terms.items()]
        joined = torch.cat([loss.nll, *(term.unsqueeze(-1) for term in terms)], dim=-1)[0]
        return joined.mean(0) if self.members else joined

    @property
    def block_rows(self) -> int:
        """Rows of a pass: as many as leave room for what the decoder says."""
        return max(1, min(BLOCK, OUTPUTS // self.outputs))

    @property
    def outputs(self) -> int:
        """Numbers by which the decoder tells a row."""
        return self.module.likelihood.width

    def blocks(self, batch: Batch, work: Callable[[Batch], Tensor]) -> Tensor:
        """What `work` makes of rows, on the CPU; it gets them in blocks of one size, where the module is.

        The last block is padded with copies of its first row, whose results are dropped.
        """
        results = []
        size = self.block_rows
        for start in range(0, max(len(batch), 1), size):
            part = batch[start : start + size]
            if 0 < len(part) < size:
                part = Batch.concat([part, part[torch.zeros(size - len(part), dtype=torch.long)]])
            results.append(work(part.to(self.module.device)).cpu())
        return torch.cat(results)[: len(batch)]

    def grid(self, codes: Tensor) -> Tensor:
        """Flat codes (B, code_size) as the decoder wants them, (1, [E,] B, latent)."""
        if self.members is None:
            return codes.unsqueeze(0)
        return codes.view(-1, self.members, self.latent).transpose(0, 1).unsqueeze(0)

    @staticmethod
    def _gather(parts: Iterator[Tensor], width: int | None) -> np.ndarray:
        arrays = [part.numpy() for part in parts]
        empty = np.zeros((0,) if width is None else (0, width), np.float32)
        return np.concatenate(arrays) if arrays else empty

    # the file

    def save(self, path: str | Path) -> None:
        """Write the model to one file, atomically; the same model gives the same bytes.

        Raises:
            NarrowsError: when the file cannot be written; nothing is left behind.
        """
        preparer, prepared = self.preparer.to_file()
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= {f"preparer.{name}": tensor for name, tensor in prepared.items()}
        for name, part in self.parts.items():
            tensors |= {f"parts.{name}.{key}": tensor for key, tensor in part.tensors.items()}
        facts = {
            "preparer": preparer,
            "recipe": asdict(self.recipe),
            "latent": self.latent,
            "network": asdict(self.network) if self.network else None,
            "training": self.facts,
            "parts": {name: part.facts for name, part in self.parts.items()},
            "reading": self.reading.kept(),
        }
        tensorfile.write(path, "model", facts, tensors)


def flat(z: Tensor) -> Tensor:
    """Codes ([E,] B, latent) as (B, code_size)."""
    return z if z.ndim == 2 else z.transpose(0, 1).flatten(1)


class _Recipe(pydantic.BaseModel, extra="forbid"):
    name: str
    arguments: dict[str, Any]


class _Training(pydantic.BaseModel, extra="allow"):
    """What every task may rely on of the training's facts; newer facts are kept as they are."""

    rows: pydantic.NonNegativeInt
    validation_rows: pydantic.NonNegativeInt
    epochs: pydantic.NonNegativeInt
    reason: str
    best: pydantic.NonNegativeInt | None
    records: list[dict[str, int | float]]

    @pydantic.model_validator(mode="after")
    def best_is_a_record(self) -> _Training:
        if self.best is not None and self.best >= len(self.records):
            raise ValueError(f"best record {self.best} of {len(self.records)}")
        return self


class _Facts(pydantic.BaseModel, extra="forbid"):
    """The facts a model file must hold."""

    preparer: dict[str, Any]
    recipe: _Recipe
    latent: pydantic.PositiveInt
    network: Network | None
    training: _Training
    parts: dict[str, dict[str, Any]]
    reading: Reading = Reading()

    @pydantic.field_validator("network", mode="before")
    @classmethod
    def of_format_1(cls, network: Any) -> Any:
        """Files of format 1 hold the settings of a dense network and nothing else."""
        return {"kind": "dense", "dense": network} if isinstance(network, dict) and "hidden" in network else network


def load(path: str | Path, modules: Mapping[str, nn.Module] | None = None, device: str = "cpu") -> Model:
    """The model in a file.

    Args:
        path: of a `.narrows` file.
        modules: `encoder` and `decoder`, for a model that was trained with the user's own; a file holds no code.
        device: where to compute: `cpu`, `auto` (a GPU where there is one), `cuda:1`.

    Raises:
        ModelFileError: for a file that is missing, cut short, damaged, foreign or of a newer format.
        SettingError: when the model needs `modules` and none came, or the other way round.
    """
    facts, tensors = tensorfile.read(path, "model")
    try:
        known = _Facts.model_validate(facts)
        preparer = Preparer.from_file(known.preparer, tensorfile.under("preparer.", tensors))
        recipe = Recipe.of(known.recipe.name, known.recipe.arguments)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ModelFileError(f"{path}: {where}: {problem['msg']}", "a model written by Narrows") from None
    except NarrowsError as error:
        raise ModelFileError(f"{path}: {error.got}", error.wanted, error.hint) from None
    _check_modules(path, known.network, modules)
    try:
        weights = tensorfile.under("module.", tensors)
        module = _module(recipe, preparer.schema, known, modules, weights)
    except (NarrowsError, RuntimeError, OverflowError, TypeError) as error:
        raise ModelFileError(f"{path}: its network cannot be built: {error}", "a model written by Narrows") from None
    parts = {name: Part(part, tensorfile.under(f"parts.{name}.", tensors)) for name, part in known.parts.items()}
    module.to(choose_device(device))
    return Model(
        preparer, module, recipe, known.latent, known.network, known.training.model_dump(), parts, known.reading
    )


def _check_modules(path: str | Path, network: Network | None, modules: Mapping[str, nn.Module] | None) -> None:
    if network is None and (modules is None or set(modules) != {"encoder", "decoder"}):
        raise SettingError(
            f"{path} was trained with an encoder and a decoder of the user's own",
            "both of them, built as they were then",
            "load(path, modules={'encoder': ..., 'decoder': ...})",
        )
    if network is not None and modules:
        raise SettingError(f"modules for {path}, which has its own networks", "no modules")


def _module(
    recipe: Recipe,
    schema: Schema,
    known: _Facts,
    modules: Mapping[str, nn.Module] | None,
    weights: dict[str, Tensor],
) -> AutoencoderModule:
    """The module with its weights, after the file's shapes were compared with what its facts promise."""
    if not modules:  # on the meta device nothing is allocated, whatever sizes the facts claim
        with torch.device("meta"):
            _compare(build(recipe, schema, known.latent, known.network or Network()), weights)
    with torch.random.fork_rng(devices=[]):
        module = build(recipe, schema, known.latent, known.network or Network(), modules)
    _compare(module, weights)
    module.load_state_dict(weights)
    return module.eval()


def _compare(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not those of the module, or not finite."""
    promised = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in module.state_dict().items()}
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    for name in sorted(promised.keys() | stored.keys()):
        if promised.get(name) != stored.get(name):
            raise ModelFileError(f"weights {name}: {stored.get(name)}", f"{promised.get(name)}")
        if weights[name].is_floating_point() and not weights[name].isfinite().all():
            raise ModelFileError(f"weights {name} with NaN or infinity", "finite numbers")
