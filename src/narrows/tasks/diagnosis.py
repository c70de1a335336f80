"""What is wrong with a model, told after each fit: a list of findings, each with a figure and what to try.

    training rows -> at most 2,048 of them -> [ losses | codes | units | gradients | PCA | untrained net ] -> findings

It costs a few percent of a fit at most, so it looks at a sample of the training rows, and at the validation loss that
the training has told. What it does not know: how the model does on rows to come; `evaluate` says that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from narrows.findings import Finding
from narrows.fitted import Model, Part
from narrows.fitting import Learner, Plan
from narrows.fitting import fit as fit_model
from narrows.model.building import build
from narrows.model.latents import Code, Posterior
from narrows.schema import Batch
from narrows.tasks.baseline import PART as BASELINE
from narrows.tasks.baseline import baseline_of, learn_baseline
from narrows.tasks.evaluate import squared_error
from narrows.tasks.features import features_of
from narrows.tasks.figures import figure
from narrows.tasks.heldout import as_validated
from narrows.tasks.history import validation_loss, whole
from narrows.tasks.inside import dead_entries, dead_numbers, dead_units, posterior_collapse, vanishing_gradients
from narrows.train.randomness import VALIDATION, generator, kept, seed_step
from narrows.train.settings import Watch

PART = "diagnosis"
MOST, LEAST, SHARE = 2_048, 128, 0.025  # rows looked at: a share of those trained on, epochs counted, in these bounds
CELLS = 2**23  # of all of them: 32 MB of numbers, and there are several such at a time
MET = 131_072  # streamed rows that they are drawn from: reading all would cost as much as an epoch's reading
BLOCK = 256  # rows encoded at once, and of a loss where the settings do not say
FEW = 64  # rows of a gradient: its direction does not matter, only how it shrinks
GAP, LUCK, WORTH = 0.2, 3.0, 0.03  # of the validation loss; standard errors; of what was learnt: a gap passes all
LINEAR = 1.05  # of PCA's error: what a linear model that is trained step by step may be off
FRESH = 0.95  # of the untrained net's error
DIGITS = 4  # that count: the rest differs from machine to machine


def learn_diagnosis(model: Model, batches: Iterator[Batch]) -> Part:
    """The part `diagnosis`: every finding, problems and others.

    Args:
        model: just trained.
        batches: the training rows.
    """
    epochs, rows = whole(model, "epochs") or 1, whole(model, "rows") or MOST
    most = min(MOST, max(1, CELLS // max(1, model.schema.cells)))
    batch, everything = _sampled(batches, int(min(most, max(LEAST, SHARE * rows * epochs))))
    device = model.module.device
    with kept(device):
        seed_step(0, VALIDATION, device)
        found = list(_findings(model, batch, everything)) if batch is not None else []
    told = [replace(finding, figure=_rounded(finding.figure)) for finding in found if isfinite(finding.figure)]
    return Part({"findings": [finding.to_json() for finding in told], "rows": 0 if batch is None else len(batch)})


def fit(
    data: Any,
    plan: Plan | None = None,
    *,
    validation: Any = None,
    weight: Any = None,
    modules: Mapping[str, torch.nn.Module] | None = None,
    learn: Mapping[str, Learner] | None = None,
    watch: Watch | None = None,
) -> Model:
    """`narrows.fitting.fit`, which says what the arguments are, with a diagnosis: `model.diagnosis`."""
    learners = {**(learn or {}), PART: learn_diagnosis}
    return fit_model(data, plan, validation=validation, weight=weight, modules=modules, learn=learners, watch=watch)


LEARNT: Mapping[str, Learner] = {BASELINE: learn_baseline, PART: learn_diagnosis}  # after a fit, in this order


def _sampled(batches: Iterator[Batch], count: int) -> tuple[Batch | None, bool]:
    """So many rows at random, and whether they are drawn from all."""
    draws, parts, met = generator(0, VALIDATION), [], 0
    everything = True
    for batch in batches:
        parts.append(batch[torch.randperm(len(batch), generator=draws)[:count]])
        met += len(batch)
        if met >= MET:
            everything = next(iter(batches), None) is None
            break
    kept_parts = [part for part in parts if len(part)]
    if not kept_parts:
        return None, everything
    joined = Batch.concat(kept_parts)
    return joined[torch.randperm(len(joined), generator=draws)[:count]], everything


def _findings(model: Model, batch: Batch, everything: bool) -> Iterator[Finding]:
    module, device = model.module, model.module.device
    fresh = untrained(model)
    code = _code(model, batch)
    checks = (
        over_fitting(model, fresh, batch) if everything else None,
        posterior_collapse(code),
        dead_units(module, batch[:BLOCK].to(device), model.members),
        dead_numbers(model.codes(batch), code),
        dead_entries(code, module.latent.symbols),
        vanishing_gradients(module, batch[:FEW].to(device)),
        no_better_than_pca(model, batch),
        no_better_thanuntrained(model, fresh, batch),
    )
    yield from (finding for finding in checks if finding is not None)


def _code(model: Model, batch: Batch) -> Code:
    """What the latent makes of rows, all of them, a block at a time."""
    with torch.inference_mode():
        parts = [
            model.module.encode(batch[start : start + BLOCK].to(model.module.device))
            for start in range(0, len(batch), BLOCK)
        ]
        posteriors = [code.posterior for code in parts if code.posterior is not None]
        symbols = [code.symbols for code in parts if code.symbols is not None]
        return Code(
            torch.cat([code.z for code in parts], dim=-2),
            {name: torch.cat([code.terms[name] for code in parts], dim=-1) for name in parts[0].terms},
            posterior=_joined(posteriors) if posteriors else None,
            symbols=torch.cat(symbols, dim=-2) if symbols else None,
        )


def _joined(posteriors: list[Posterior]) -> Posterior:
    means, variances = [each.mean for each in posteriors], [each.log_variance for each in posteriors]
    return Posterior(torch.cat(means, dim=-2), torch.cat(variances, dim=-2))


def untrained(model: Model) -> Model | None:
    """The same with the very weights that its training began with; None for a user's own network."""
    if model.network is None:
        return None
    torch.manual_seed(whole(model, "seed") or 0)
    fresh = build(model.recipe, model.schema, model.latent, model.network).to(model.module.device)
    return replace(model, module=fresh.eval(), parts={})


def over_fitting(model: Model, fresh: Model | None, batch: Batch) -> Finding | None:
    """The validation loss beside that of training rows, measured alike: same corruption, no dropout."""
    held = validation_loss(model)
    if held is None:
        return None
    losses = _losses(model, batch)
    known = float(losses.mean())
    others = whole(model, "validation_rows") or len(losses)
    error = float(losses.std(correction=0)) * sqrt(1 / len(losses) + 1 / others)
    learnt = float(_losses(fresh, batch).mean()) - known if fresh else 0.0
    gap = held - known
    problem = gap > max(GAP * abs(held), LUCK * error, WORTH * learnt)
    text = f"the loss is {figure(known)} a row on training rows and {figure(held)} on rows held out"
    advice = "more rows, the recipe denoising, dropout, weight_decay, or a smaller network" if problem else ""
    return Finding("over-fitting", gap / abs(held) if held else 0.0, problem, text, advice)


def _losses(model: Model, batch: Batch) -> Tensor:
    """(B,) the loss of rows as validation takes it, in batches as large as those of training."""
    settings = model.facts.get("settings")
    size = settings.get("batch_size", BLOCK) if isinstance(settings, dict) else BLOCK
    with torch.inference_mode():
        losses = [as_validated(model, batch[start : start + size]) for start in range(0, len(batch), size)]
    return torch.cat(losses).double().cpu()


def no_better_than_pca(model: Model, batch: Batch) -> Finding | None:
    """Squared error a row beside that of PCA with a component for each number of the code that a row may use.

    Rows told by texts alone have none; nor do codes as wide as the rows, of which PCA loses nothing.
    """
    known = "baseline" in model.parts or len(batch) >= 4 * model.code_size
    if not features_of(model.schema) or model.module.autoregressive or not known:
        return None
    rows = batch.dense()
    pca = baseline_of(model, batch)
    if pca.lossless or not pca.size:
        return None
    ours = squared_error(model.schema, rows, model.cells(model.codes(batch))) / len(rows)
    theirs = squared_error(model.schema, rows, pca.cells(rows)) / len(rows)
    linear = model.network is not None and model.recipe.slots().linear
    problem = ours > LINEAR * theirs if linear else ours >= theirs
    text = f"squared error {figure(ours)} a row against {figure(theirs)} of PCA with {pca.size} components"
    advice = "more epochs, wider hidden layers, another lr, or for a vae a smaller beta" if problem else ""
    return Finding("no better than PCA" if problem else "beside PCA", _ratio(ours, theirs), problem, text, advice)


def no_better_thanuntrained(model: Model, fresh: Model | None, batch: Batch) -> Finding | None:
    """Reconstruction error beside that of the network before its training."""
    if fresh is None:
        return None
    told = features_of(model.schema) and not model.module.autoregressive
    measure = _squared if told else _reconstruction
    ours, theirs = measure(model, batch), measure(fresh, batch)
    problem = ours > theirs - (1 - FRESH) * abs(theirs)
    what = "squared error" if told else "reconstruction loss"
    text = f"{what} {figure(ours)} a row against {figure(theirs)} before training"
    advice = "another lr, more epochs, or a look at the data: is there anything to learn?" if problem else ""
    name = "no better than the untrained net" if problem else "beside the untrained net"
    return Finding(name, _ratio(ours, theirs), problem, text, advice)


def _squared(model: Model, batch: Batch) -> float:
    return squared_error(model.schema, batch.dense(), model.cells(model.codes(batch))) / len(batch)


def _reconstruction(model: Model, batch: Batch) -> float:
    """Mean loss of a row's cells."""
    return float(model.costs(batch)[:, : model.schema.cells].sum(1).mean())


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else 0.0 if not ours else float("inf")


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
