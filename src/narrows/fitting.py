"""Data and a plan in, a fitted model out: the one place where sources, preparing, the module and training meet.

source -> one pass of statistics -> preparer -> training and validation rows -> module -> train -> Model
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from narrows import world
from narrows.continued import Start
from narrows.errors import DataError, FitWarning, SettingError
from narrows.fitted import Model, Part
from narrows.model.building import assemble
from narrows.model.recipe import Recipe
from narrows.networks.choice import Network
from narrows.networks.dense import WIDEST
from narrows.prepare.gathered import Thinned
from narrows.prepare.preparer import Preparer
from narrows.rows import Core, Prepared, Rows, wishes
from narrows.schema import Batch, Schema, Stream, one_row
from narrows.sizing import JUDGED, MOST, Sizing
from narrows.sizing import PART as TUNE
from narrows.sources.source import Source, open_source
from narrows.stopwatch import spent
from narrows.tensorfile import pack, under, unpack
from narrows.train.devices import choose_device
from narrows.train.loop import train
from narrows.train.matrices import count_uses
from narrows.train.optimizers import default_rate, settled, step_work
from narrows.train.resident import Resident
from narrows.train.settings import Training, Watch
from narrows.train.snapshots import Snapshots
from narrows.train.stops import History

SNAPSHOTS = "snapshots"
HELD_OUT = 0.1  # share of the rows to validate on, where nobody says
SHOWN, SHOWN_CELLS = 8, 8_192  # rows of a snapshot, and cells in all: six of them take 200 KB at most
Learner = Callable[[Model, Prepared], Part]


@dataclass(frozen=True)
class Plan:
    """What to train: everything that decides a model besides its data.

    Args:
        recipe: `plain`, `vae:beta=4`, ...: fills the slots.
        latent: numbers in a row's code; None takes half of the cells, at most 16; `auto` tries sizes in short fits and
            takes the smallest that tells hidden cells as well as any (see `narrows.sizing`).
        network: encoder and decoder: a `Network`, the settings of one kind (`Conv()`), or a word (`conv`).
        training: how to train it.
        epochs: passes over the rows at most; None chooses by their number (see `default_epochs`).
        lr: peak learning rate; None takes the optimizer's own.
        seed: of every random draw; equal seeds, data and machines give equal models.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        columns: column -> a kind (number, count, binary, category, date, image, series, audio, tokens, bag), a
            transform (standardize, minmax, quantile, asinh, none; own, joint, wave, spectra; bytes, chars, words, bpe;
            counts, tfidf), or both with a space between, where the ones chosen are wrong; `*` stands for every column
            of numbers that is not named.
        steps: to make in as many epochs as they take, where `epochs` does not say it; None for a default.
        least_rows: of a step at least, where `training` leaves it open and memory allows; None for a default.
        suit: (plan, schema, rows) -> plan, for those who choose recipe, code, network and steps by the columns and by
            how many rows there are; None for nobody.
        start: a fitted model to go on from: its columns, recipe, network, code and weights are taken as they are. It
            stays as it is.
    """

    recipe: str | Recipe = "plain"
    latent: int | Literal["auto"] | None = None
    network: Any = None
    training: Training = field(default_factory=Training)
    epochs: int | None = None
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    steps: int | None = None
    least_rows: int | None = None
    suit: Callable[[Plan, Schema, int], Plan] | None = None
    start: Model | None = None

    def check(self) -> None:
        """Refuse a plan that cannot be carried out, before any data is read.

        Raises:
            SettingError: naming the setting.
        """
        Recipe.parse(self.recipe)
        if not isinstance(self.training, Training):
            raise SettingError(f"{self.training!r} in a plan", "a Training")
        self.training.check()
        Network.of(self.network).check()
        wishes(self.columns)
        if self.start is not None:
            Start(self.start).refuse_settings(self.recipe, self.latent, self.network, self.columns)
        for name in ("latent", "epochs", "steps", "least_rows"):
            value = getattr(self, name)
            if name == "latent" and isinstance(value, str) and value == "auto":
                continue
            if value is not None and not (isinstance(value, Integral) and 1 <= int(value) <= WIDEST):
                more = ", or auto" if name == "latent" else ""
                raise SettingError(f"{name}={value!r}", f"a whole number from 1 to {WIDEST:,}{more}")
        if self.lr is not None and not (isinstance(self.lr, Real) and 0 < float(self.lr) < inf):
            raise SettingError(f"lr={self.lr!r}", "a number above 0")
        if not (isinstance(self.seed, Integral) and abs(int(self.seed)) < 2**63):
            raise SettingError(f"seed={self.seed!r}", "a whole number of 64 bits")


def fit(
    data: Any,
    plan: Plan | None = None,
    *,
    validation: Any = None,
    weight: np.ndarray | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    learn: Mapping[str, Learner] | None = None,
    core: Core | None = None,
    watch: Watch | None = None,
) -> Model:
    """Train a model on rows.

    Under a launcher such as torchrun all processes call it alike, and get the same model. Each needs to see all the
    data, of which it then reads its share; what tasks learn after training rank 0 learns, for all.

    Args:
        data: anything `open_source` takes.
        plan: what to train.
        validation: rows to choose the best weights by; None holds out what `plan.training` says.
        weight: (n,) weight of each row of `data`, for data that fits the budget.
        modules: the user's own `encoder` and `decoder` (see `build`).
        learn: name -> what a task learns from the prepared training rows, to be kept with the model.
        core: trains on chosen rows alone; None on all.
        watch: run folder, progress, callbacks.

    Raises:
        DataError: for rows that cannot be read or modeled.
        SettingError: for a plan that does not fit itself or the data.
        TrainingError: when no epoch ended with finite numbers.
        WorldError: where processes do not fit together, or one is lost.
    """
    plan, watch = plan or Plan(), watch or Watch()
    plan.check()
    with world.together():
        model, rows = _trained(data, plan, validation, weight, modules, core, watch)
        _learn(model, rows, learn or {})
    if plan.start is not None:
        Start(plan.start).tell_lost(model)
    return model


def _trained(
    data: Any,
    plan: Plan,
    validation: Any,
    weight: np.ndarray | None,
    modules: Mapping[str, nn.Module] | None,
    core: Core | None,
    watch: Watch,
) -> tuple[Model, Rows]:
    """The model without what tasks learn, and the rows it was trained on."""
    device = choose_device(plan.device)
    with world.agreed():
        source = _opened(data, plan)
    world.compared(**_common(source, plan))
    held_out = plan.training.validation if validation is None else validation
    held_out = HELD_OUT if held_out is None else held_out
    frozen = None if plan.start is None else plan.start.preparer
    rows = Rows(source, held_out, plan.training, plan.seed, plan.columns, frozen)
    schema = rows.preparer.schema
    plan = plan.suit(plan, schema, rows.count) if plan.suit else plan
    rows.suit(plan.least_rows, plan.epochs)
    stream, held, sized = None, None, None
    if plan.latent == "auto":
        stream, held = rows.streams(device, weight, core)
        sized = _sized(rows, stream, plan, modules)
        plan = replace(plan, latent=sized.facts["latent"])
    model = _model(plan, rows.preparer, modules)
    module = model.module
    module.latent.check(rows.count)
    if plan.start is None and module.likelihood.learns:
        module.likelihood.learn(rows.sampled())
    if stream is None:
        stream, held = rows.streams(device, weight, core)
    module.to(device)
    about = _about(rows, model, plan)
    watch = replace(watch, cells=schema.cell_names, about=about, snapshots=_snapshots(model, held))
    uses = count_uses(module, lambda: module.score(one_row(schema).to(device)))
    plan = replace(plan, training=settled(_suited(plan.training, schema), module, rows.batch_size, uses))
    lr = default_rate(plan.training.optimizer, module, rows.batch_size, uses) if plan.lr is None else float(plan.lr)
    plan = replace(plan, lr=lr)
    work = step_work(module, rows.batch_size, plan.training.optimizer, uses)
    count = stream.rows or rows.count
    epochs = plan.epochs or default_epochs(work, count, rows.batch_size, plan.steps)
    history = train(module, stream, held, plan.training, epochs=epochs, lr=plan.lr, seed=plan.seed, watch=watch)
    model.facts, model.reading = _facts(rows, plan, history, held is not None), source.reading
    if sized:
        model.parts[TUNE] = sized
    if watch.snapshots:
        model.parts[SNAPSHOTS] = _developed(watch.snapshots, history)
    return model, rows


def _opened(data: Any, plan: Plan) -> Source:
    """The source of the rows; where a model is gone on from, one of its columns."""
    if plan.start is None:
        return open_source(data)
    source = plan.start.source(data)
    Start(plan.start).refuse_changed(source)
    return source


def _model(plan: Plan, preparer: Preparer, modules: Mapping[str, nn.Module] | None) -> Model:
    """The model before its training."""
    if (start := plan.start) is not None:
        return Model(preparer, Start(start).module(), start.recipe, start.latent, start.network, {})
    schema, recipe = preparer.schema, Recipe.parse(plan.recipe)
    latent = int(plan.latent or default_latent(schema))
    _warn_overcomplete(recipe, latent, schema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        # the user's own modules stay as they are: a second fit begins where the first began
        module, network = assemble(recipe, schema, latent, Network.of(plan.network), copy.deepcopy(modules))
    return Model(preparer, module, recipe, latent, None if modules else network, {})


def _sized(rows: Rows, stream: Stream, plan: Plan, modules: Mapping[str, nn.Module] | None) -> Part:
    """The part `tune`: the code size that short fits on some of the rows choose, and what each size cost.

    Raises:
        DataError: for too few rows to hold some out.
        SettingError: for networks of the user's own, whose code has one size.
    """
    if modules:
        raise SettingError("latent='auto' with an encoder and decoder of the user's own", "a size: theirs")
    device = choose_device(plan.device)
    schema, training = rows.preparer.schema, _suited(plan.training, rows.preparer.schema)
    asked = Recipe.parse(plan.recipe), Network.of(plan.network), training
    with spent("code size"):
        some = stream.batch if isinstance(stream, Resident) else _evenly(rows, MOST + JUDGED)
        _, facts = Sizing(schema, *asked, plan.lr, plan.seed, device).choose(some, rows.prepared().held)
    return Part(facts)


def _evenly(rows: Rows, count: int) -> Batch:
    """An even draw of so many of the rows that are streamed."""
    thinned = Thinned(count)
    for batch in rows.prepared():
        thinned.add(batch)
    some = thinned.batch()
    if some is None:
        raise DataError("no rows to choose a code size by", "at least one")
    return some


def _common(source: Source, plan: Plan) -> dict[str, str]:
    """What all processes must have alike, by name."""
    counts = [source.rows_of(piece) for piece in source.pieces]
    digest = hashlib.blake2b(f"{source.schema}{counts}".encode(), digest_size=4).hexdigest()
    rows = "unknown" if source.rows is None else f"{source.rows:,}"
    settings = {**plan.training.get_params(), "latent": plan.latent, "epochs": plan.epochs, "lr": plan.lr}
    settings |= {"seed": plan.seed, "columns": dict(plan.columns)}
    return {
        "data": f"{source.name}: {len(counts)} pieces of {rows} rows ({digest})",
        "recipe": str(Recipe.parse(plan.recipe)),
        "network": str(Network.of(plan.network)),
        "settings": ", ".join(f"{name}={value}" for name, value in settings.items()),
    }


def _learn(model: Model, rows: Rows, learn: Mapping[str, Learner]) -> None:
    """Let tasks learn their parts; of several processes rank 0 does, and tells the others."""
    parts: dict[str, Part] = {}
    leads = world.rank() == 0
    with world.agreed(), world.alone():
        for name, learner in learn.items() if leads else ():  # in order: a later one may use what an earlier one learnt
            with spent(name):
                model.parts[name] = parts[name] = learner(model, rows.prepared())
    if world.size() == 1:
        return
    named = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.tensors.items()}
    facts, tensors = unpack(world.given(pack({name: part.facts for name, part in parts.items()}, named)))
    for name, told in facts.items():
        model.parts[name] = Part(told, under(f"{name}.", tensors))


def _about(rows: Rows, model: Model, plan: Plan) -> dict[str, Any]:
    """What a run that is gone on with must share with this one."""
    facts: dict[str, Any] = {"data": rows.source.name, "data_fingerprint": rows.fingerprint}
    if plan.start is not None:
        facts["start"] = digest(plan.start.module)
    network = asdict(model.network or Network.of(plan.network))
    return facts | {"recipe": str(model.recipe), "latent": model.latent, "network": network}


def digest(module: nn.Module) -> str:
    """A hash of a module's weights, to know them again."""
    sums = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(module.state_dict().items()):
        sums.update(f"{name}{tuple(tensor.shape)}".encode())
        sums.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def _snapshots(model: Model, held: Stream | None) -> Snapshots | None:
    """Looks at a few rows held out as they come back; None for wide ones, and for what is told step by step."""
    rows = min(SHOWN, SHOWN_CELLS // max(1, model.schema.cells))
    if not isinstance(held, Resident) or not rows or model.module.autoregressive:
        return None
    count = len(held.batch)
    batch = held.batch[torch.arange(min(rows, count)) * count // min(rows, count)]

    def look() -> Tensor:
        numbers, codes = model.cells(model.codes(batch))
        return torch.cat([numbers, codes.float()], dim=1).nan_to_num()

    return Snapshots(look)


def _developed(snapshots: Snapshots, history: History) -> Part:
    """The part `snapshots`: `cells` (looks, rows, C) after each of `epochs`, the last by the weights that were kept."""
    last = int(history.best_record["epoch"]) if history.best_record else 0
    taken = {done: cells for done, cells in snapshots.taken.items() if done < last} | {last: snapshots.look()}
    return Part({"epochs": list(taken)}, {"cells": torch.stack([*taken.values()])})


def _suited(training: Training, schema: Schema) -> Training:
    """The settings with AdamW for bags, where the optimizer is open.

    A step of Muon moves all directions of a matrix alike. Of a bag's thousands of items each row has a few, so that
    what a step does to a row grows with the number of items: on 600 posts of 8,000 words Muon's loss rose fourfold.
    """
    if training.optimizer == "auto" and any(column.kind == "bag" for column in schema):
        return replace(training, optimizer="adamw")
    return training


def _facts(rows: Rows, plan: Plan, history: History, held: bool) -> dict[str, Any]:
    """What the training was."""
    facts = {"rows": rows.count, "validation_rows": rows.held if held else 0, "seed": int(plan.seed), **history.facts()}
    facts["epochs"] = history.records[-1]["epoch"] if history.records else 0
    if plan.start is not None:
        facts["before"] = Start(plan.start).before()
    return facts | {"settings": _settings(plan, rows.batch_size)}


def _settings(plan: Plan, batch_size: int) -> dict[str, Any]:
    """How the model was trained, for those who ask it later; nothing of the machine or its files."""
    names = ["optimizer", "schedule", "weight_decay", "clip", "patience", "precision"]
    names += ["balance"] if plan.training.balance else []
    return {name: getattr(plan.training, name) for name in names} | {
        "batch_size": batch_size,
        "lr": plan.lr,
    }


def default_epochs(work: int, rows: int, batch_size: int, wanted: int | None = None) -> int:
    """As many epochs as make 6,000 steps, but from 10 to 200, and fewer where a step is much work.

    The bound is 3.2e13 multiplications, which two cores do in about a minute and a half.

    Args:
        work: multiplications in a step.
        rows: of an epoch.
        batch_size: rows of a step.
        wanted: steps to make in place of all this, in one epoch at least.
    """
    if wanted is not None:
        return max(1, round(wanted * batch_size / rows))
    steps = min(6000.0, 3.2e13 / max(1, work))
    return min(max(10, round(steps * batch_size / rows)), 200)


def default_latent(schema: Schema) -> int:
    """Half as many numbers as a row has cells, at most 16."""
    return min(16, max(1, schema.cells // 2))


def _warn_overcomplete(recipe: Recipe, latent: int, schema: Schema) -> None:
    width = schema.numbers + sum(schema.levels)
    if latent >= width and recipe.slots().can_copy(latent):
        warnings.warn(
            f"a code of {latent} numbers for rows of {width} inputs can copy them without learning; "
            f"try a smaller latent, or the recipe denoising or vae",
            FitWarning,
            stacklevel=3,
        )
