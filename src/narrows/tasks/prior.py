"""The code prior that a model keeps: where the codes of training rows lie, learnt after training, as the part `prior`.

    rows -> codes -> mixture | flow | sequence -> part -> draws of codes, and their density

Recipes without a prior of their own need one to generate from. Those that have one, such as `vae`, profit too: training
never quite gets codes there, and draws from where they really lie make better rows. Codes of such recipes are drawn
from their posterior, as the decoder met them in training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from narrows.errors import ModelFileError, SettingError
from narrows.fitted import Model, Part, flat
from narrows.model.flow import Flow
from narrows.model.mixture import Mixture
from narrows.model.priors import Own, Prior
from narrows.model.sequence import Sequence
from narrows.schema import Batch
from narrows.tasks.keep import Keep
from narrows.tasks.priorfits import Codes, fit_prior
from narrows.train.randomness import generator, kept, seed_step

PART = "prior"
SAMPLE = 30_000  # codes that a prior is learnt from, evenly drawn where there are more
KINDS: dict[str, type[Prior]] = {"mixture": Mixture, "flow": Flow, "sequence": Sequence}


def prior_of(model: Model) -> Prior:
    """The prior of a model's codes: the learnt one that it keeps, else that of its recipe.

    `sample(n)` gives codes for `Model.decode`, `log_prob` the log density of codes as `Model.encode` gives them.

    Raises:
        SettingError: for a model with neither.
        ModelFileError: for a part that is no prior of such codes.
    """
    part = model.parts.get(PART)
    if part is not None:
        return _read(part, model)
    latent = model.module.latent
    if not latent.has_prior:
        got = f"a {model.recipe.name} model without a code prior, so that nobody knows where codes lie"
        hint = "narrows generate M --learn TRAINING-DATA; in Python keep_prior(model, rows); or the recipe vae"
        raise SettingError(got, "one that was learnt", hint)
    return Own(latent, model.members)


def keep_prior(model: Model, rows: Any, kind: str = "auto", seed: int = 0) -> None:
    """Learn a prior from rows, best those of training, and keep it with the model.

    Args:
        model: gets the part `prior`; save it to keep it.
        rows: anything `open_source` takes.
        kind: see `learn_prior`.
        seed: of every draw.

    Raises:
        SettingError: see `learn_prior`.
        DataError: for rows that do not fit the model.
    """
    model.parts[PART] = learn_prior(model, (batch for _, batch in model.batches(rows)), kind, seed)


def learn_prior(model: Model, batches: Iterator[Batch], kind: str = "auto", seed: int = 0) -> Part:
    """The part `prior`, from the codes of at most 30,000 rows.

    Args:
        model: whose codes they are.
        batches: prepared rows, each once, in any order.
        kind: `mixture`, `flow`, `sequence` (for discrete codes), or `auto`, which takes what finds codes held out most
            probable.
        seed: of every draw.

    Raises:
        SettingError: for a kind that does not suit the codes, or no rows.
    """
    codes = codes_of(model, batches, seed)
    if not len(codes.z):
        raise SettingError("a code prior of no rows", "at least one")
    fitted = fit_prior(codes, kind, seed)
    name = next(name for name, sort in KINDS.items() if isinstance(fitted.prior, sort))
    facts = {"kind": name, "settings": fitted.prior.settings, "rows": len(codes.z), "held_out": fitted.held_out}
    return Part(facts, {key: tensor.detach().clone() for key, tensor in fitted.prior.state_dict().items()})


@torch.no_grad()
def codes_of(model: Model, batches: Iterator[Batch], seed: int = 0) -> Codes:
    """An even sample of the codes of rows, each drawn from its posterior where it has one.

    Rows of unequal weights are drawn anew, as often as their weights say.
    """
    latent, keep = model.module.latent, Keep(SAMPLE)
    keys, width = generator(seed, 0), model.code_size
    with kept(model.module.device):
        for number, batch in enumerate(batches):
            seed_step(seed, number, model.module.device)
            coded = model.blocks(batch, lambda part: _coded(model, part))
            offered = {"coded": coded, "weight": batch.weights().cpu()}
            keep.offer(torch.rand(len(coded), generator=keys, dtype=torch.float64), offered)
    coded = keep.rows.get("coded", torch.zeros(0, width, dtype=torch.float64))
    if len(coded) and not (keep.rows["weight"] == keep.rows["weight"][0]).all():
        coded = coded[torch.multinomial(keep.rows["weight"], len(coded), replacement=True, generator=keys)]
    z, symbols = coded[:, :width].float(), coded[:, width:].long()
    return Codes(z, symbols, latent.symbols) if latent.symbols else Codes(z)


def _coded(model: Model, part: Batch) -> Tensor:
    """(B, code_size + positions) float64 codes, and their entries where they are discrete."""
    code = model.module.encode(part, samples=1)
    z = flat(code.z[0]).double()
    return z if code.symbols is None else torch.cat([z, flat(code.symbols[0]).double()], dim=1)


def _read(part: Part, model: Model) -> Prior:
    """The prior that a part holds, once its shapes, numbers and size were found to be those of one."""
    try:
        make, settings = KINDS[part.facts["kind"]], part.facts["settings"]
        with torch.device("meta"):  # nothing is allocated, whatever sizes the facts claim
            promised = {name: tensor.shape for name, tensor in make(**settings).state_dict().items()}
        if promised != {name: tensor.shape for name, tensor in part.tensors.items()}:
            raise ValueError("tensors that are not those of its settings")
        with torch.random.fork_rng(devices=[]):
            prior = make(**settings)
        prior.load_state_dict(part.tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = str(error).partition("\n")[0]
        raise ModelFileError(f"part {PART} of the model: {what}", "one that was learnt by Narrows") from None
    finite = all(tensor.isfinite().all() for tensor in part.tensors.values())
    if prior.size != model.code_size or not finite:
        got = f"part {PART} of the model, for codes of {prior.size} numbers" + ("" if finite else ", not all finite")
        raise ModelFileError(got, f"finite numbers for codes of {model.code_size}")
    return prior.eval().requires_grad_(False)
